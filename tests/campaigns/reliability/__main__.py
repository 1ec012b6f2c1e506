"""`python3 run reliability`: arguments in, a table out. Owns the command line and the exit code.

Exit codes: 0 every bound is met, 1 one is not (the table says which), 2 the arguments are wrong or this
is not Linux: what a killed process leaves behind is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from batchyard.bench.report import machine, machine_line, without_nan
from batchyard.tools.processes import is_supported
from batchyard.transport.arguments import count, number

from .campaign import Campaign
from .registry import CAMPAIGNS
from .verdict import Verdict, table

EPILOG = """\
examples:
  python3 run reliability                               everything, about an hour
  python3 run reliability --quick                        a look at everything, about a minute
  python3 run reliability worker-kills cancels           two campaigns in full
  python3 run reliability soak --soak.seconds 3600       one of them, longer
  python3 run reliability --json figures.json            every figure, with the machine it holds on

campaigns:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python3 run reliability` with `argv` (without the verb), and return the exit code."""
    options = _parser().parse_args(argv)
    if not is_supported():
        _say("", "what a killed process leaves behind is read from /proc: this needs Linux")
        return 2
    verdicts = []
    demands = {}
    for name in options.names or CAMPAIGNS:
        campaign = CAMPAIGNS[name]
        demands[name] = demand = _demand(campaign, options)
        _say(name, f"{campaign.promise} ...")
        verdicts.append(_run(campaign, demand))
        print(table(verdicts[-1:]), flush=True)
    facts = machine()
    print(machine_line(facts))
    if options.json is not None:
        content = {
            "machine": facts,
            "demands": {name: {f.name: getattr(d, f.name) for f in fields(d)} for name, d in demands.items()},
            "campaigns": {verdict.campaign: verdict.values() for verdict in verdicts},
        }
        options.json.write_text(json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")
    return 0 if all(verdict.kept for verdict in verdicts) else 1


def _run(campaign: Campaign, demand: Any) -> Verdict:
    verdict = Verdict(campaign.name)
    try:
        verdict.figures = campaign.run(demand, partial(_say, campaign.name))
    except ModuleNotFoundError:
        raise  # a package that is not installed is no figure
    except Exception as error:  # the other campaigns may still have something to say
        verdict.error = f"{type(error).__name__}: {error}"
    return verdict


def _demand(campaign: Campaign, options: argparse.Namespace) -> Any:
    """The full or the quick demand, with what the command line changes in it."""
    chosen = campaign.quick if options.quick else campaign.full
    given = {field.name: getattr(options, f"{campaign.name}.{field.name}") for field in fields(chosen)}
    return replace(chosen, **{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<14}{campaign.promise}" for name, campaign in CAMPAIGNS.items())
    parser = argparse.ArgumentParser(
        "reliability",
        description="Kill, stop, and overload a yard's real processes, and hold its promises against it.",
        epilog=EPILOG + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name, help="campaigns; default: all")
    parser.add_argument("--quick", action="store_true", help="small counts: a look, and no proof")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    for campaign in CAMPAIGNS.values():
        group = parser.add_argument_group(campaign.name)
        for field in fields(campaign.full):
            full, quick = getattr(campaign.full, field.name), getattr(campaign.quick, field.name)
            group.add_argument(
                f"--{campaign.name}.{field.name.replace('_', '-')}",
                dest=f"{campaign.name}.{field.name}",
                type=count if isinstance(full, int) else number,
                metavar="N",
                help=f"{field.metadata['meaning']} ({full:g}; quick: {quick:g})",
            )
    return parser


def _name(text: str) -> str:
    if text not in CAMPAIGNS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(CAMPAIGNS)}")
    return text


def _say(name: str, line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {name}: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
