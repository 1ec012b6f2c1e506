"""What a model's file says of itself, and the digest of the file that was really loaded.

Whoever wrote the file wrote this as well: every text and number is bounded, and what is not as
`batchyard export` writes it is left out, never an error. Who believes what is the broker's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from ..transport.messages import Provenance
from . import providers

OWN = "batchyard."
VALUE_CHARACTERS_MAX = 1 << 20  # of one entry: it is parsed
ENTRIES_MAX = 64  # that are not our own
METADATA_CHARACTERS_MAX = 1 << 16  # of these, in all: 1,000 names of classes take half of it
TEXT_MAX = 256
FIGURES = ("rms", "abs_max", "rel_max", "scaled_max", "agreement", "rows")  # of batchyard.validation
FIGURE_MAX = 1e18
PROVIDERS_MAX = 8
SIZES_MAX = 16
TOOK_NS_MAX = 10**13


class _Timing(msgspec.Struct):
    """An entry of batchyard.timings, as far as it matters here."""

    batch: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    provider: Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]
    ms: float


def read(session: Any, path: str, provider: str) -> tuple[Provenance, dict[int, int]]:
    """The origin of the file that `session` was made from, and {rows: ns} that it claims for `provider`,
    a recipe's name. Raises OSError."""
    digest = digest_of(path)
    try:
        entries = dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError:  # nothing makes a file hold text
        entries = {}
    claimed = of_metadata(entries, digest)
    called = providers.PROVIDERS[provider].EXECUTION_PROVIDER if provider in providers.LADDER else provider
    return claimed, dict(claimed.measured_ns.get(called, {}))


def digest_of(path: str) -> str:
    """Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_metadata(entries: Mapping[str, str], digest: str) -> Provenance:
    """The bounded form of a file's `metadata_props`; `digest` is the file's."""
    figures = {}
    validation = _parsed(entries, "validation", dict[str, Any]) or {}
    size_ratio = _parsed(entries, "size_ratio", float)
    for name, value in {"size_ratio": size_ratio, **{name: validation.get(name) for name in FIGURES}}.items():
        if isinstance(value, float | int) and abs(value) <= FIGURE_MAX:  # NaN and the infinities are not
            figures[name] = float(value)
    measured: dict[str, dict[int, int]] = {}
    for timing in _parsed(entries, "timings", list[_Timing]) or []:
        took_ns = timing.ms * 1e6
        if not 1 <= took_ns <= TOOK_NS_MAX:  # NaN, too
            continue
        provider = _text(timing.provider)
        if provider in measured or len(measured) < PROVIDERS_MAX:
            sizes = measured.setdefault(provider, {})
            if timing.batch in sizes or len(sizes) < SIZES_MAX:
                sizes[timing.batch] = int(took_ns)
    variant, source = (_text(entries.get(f"{OWN}{key}", "")) for key in ("variant", "source"))
    return Provenance(digest, variant, source, figures, measured, _others(entries))


def _others(entries: Mapping[str, str]) -> dict[str, str]:
    """The entries that are not batchyard's own, whole, as far as there is room."""
    kept: dict[str, str] = {}
    left = METADATA_CHARACTERS_MAX
    for key, text in entries.items():
        size = len(key) + len(text)
        if not key.startswith(OWN) and len(key) <= TEXT_MAX and size <= left and len(kept) < ENTRIES_MAX:
            kept[key] = text
            left -= size
    return kept


def _parsed(entries: Mapping[str, str], key: str, kind: Any) -> Any:
    """The JSON under `batchyard.<key>`; None if it is missing or of another kind."""
    text = entries.get(f"{OWN}{key}", "")
    if not text or len(text) > VALUE_CHARACTERS_MAX:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError, OverflowError):
        return None


def _text(text: str) -> str:
    """The text, shortened, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:TEXT_MAX])
