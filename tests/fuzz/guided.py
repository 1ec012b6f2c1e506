"""The same targets under atheris (libFuzzer), which keeps what reaches new code of ours.

Optional: `.venv/bin/pip install -e '.[fuzz]'`. It sees our Python and not msgspec's C, so it finds its
way through the checks behind the decoder and adds little before them; mutations.py is the other half.

`python -m batchyard.tests.fuzz.guided TARGET SECONDS CORPUS` is the process that it takes over.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

INPUT_BYTES_MAX = 4096
MEMORY_MAX_MB = 1024
INPUT_MAX_S = 5
PATIENCE_S = 60


def is_installed() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run(name: str, seconds: int) -> tuple[int, str]:
    """(inputs, what it said when a promise was broken or "")."""
    with tempfile.TemporaryDirectory(prefix="batchyard-fuzz-") as folder:
        command = [sys.executable, "-m", "batchyard.tests.fuzz.guided", name, str(seconds), folder]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + PATIENCE_S,
            check=False,
        )
    ran = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    if done.returncode or ran is None:
        return 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return int(ran[1]), ""


def campaign(names: tuple[str, ...], seconds: float, cores: int) -> tuple[Counter[str], list[str]]:
    """(inputs by target, what was broken), each target for its share of the time."""
    share_s = max(1, int(seconds * cores / len(names)))
    with ThreadPoolExecutor(cores) as pool:
        results = list(pool.map(lambda name: run(name, share_s), names))
    inputs = Counter({name: ran for name, (ran, _) in zip(names, results, strict=True)})
    return inputs, [said for _, said in results if said]


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["batchyard"]):
        from . import campaign as whole
        from . import targets
    name, seconds, folder = sys.argv[1:]
    for number, seed in enumerate(targets.target(name).seeds):
        (Path(folder) / f"seed-{number}").write_bytes(seed)

    def one(payload: bytes) -> None:
        _, _, broken = whole.judge(name, payload)
        if broken:
            print(whole.report(name, payload, broken), flush=True)
            raise AssertionError(broken)

    options = [f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={INPUT_MAX_S}"]
    options += [f"-rss_limit_mb={MEMORY_MAX_MB}", f"-artifact_prefix={folder}/", folder]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
