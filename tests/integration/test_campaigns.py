"""The reliability campaigns in small: real kills by the command that `run` calls. No time is held to a bound."""

from __future__ import annotations

import json
from pathlib import Path

from ..campaigns.reliability.__main__ import main


def test_quick_campaigns_lose_nothing_leave_nothing_and_write_every_figure(run_folder: Path) -> None:
    file = run_folder / "figures.json"
    main(["worker-kills", "client-kills", "cancels", "--quick", "--json", str(file)])
    campaigns = json.loads(file.read_text())["campaigns"]
    assert list(campaigns) == ["worker-kills", "client-kills", "cancels"]
    for name, campaign in campaigns.items():
        assert campaign["error"] == "", name
        broken = [
            figure for figure in campaign["figures"] if figure["met"] is False and figure["unit"] != "ns"
        ]
        assert broken == [], name
    file.unlink()
