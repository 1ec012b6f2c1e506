"""Trace and log settings, as Triton's clients ask for them: they can be read, and "changed" to what they are.

The gateway's log and its traces are set where it is started; a client of the yard has no say in either. Pure.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .errors import invalid

TRACE: Mapping[str, tuple[str, ...]] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
LISTS = ("trace_level",)  # the one setting that is a list in JSON
TRACE_ELSEWHERE = (
    "traces are OpenTelemetry's here: send a traceparent, and set the gateway's process up for it "
    "(docs/tracing.md)"
)
LOG_ELSEWHERE = "the gateway's log is set when it starts: -q leaves warnings and errors"


def log_settings() -> dict[str, bool | int | str]:
    return {
        "log_file": "",
        "log_info": logging.getLogger("gateway").isEnabledFor(logging.INFO),
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


def check_trace(wanted: Mapping[str, Any]) -> None:
    """Raises Refusal unless the settings are so already; None asks for the default, which they are."""
    for name, value in wanted.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if name not in TRACE:
            raise invalid(f"there is no trace setting {name[:40]!r}; there are {', '.join(TRACE)}")
        if values and tuple(map(str, values)) != TRACE[name]:
            raise invalid(f"{name} stays {' '.join(TRACE[name]) or 'empty'}: {TRACE_ELSEWHERE}")


def check_log(wanted: Mapping[str, Any]) -> None:
    """As `check_trace`."""
    current = log_settings()
    for name, value in wanted.items():
        if name not in current:
            raise invalid(f"there is no log setting {name[:40]!r}; there are {', '.join(current)}")
        if value is not None and (type(value), value) != (type(current[name]), current[name]):
            raise invalid(f"{name} stays {current[name]!r}: {LOG_ELSEWHERE}")
