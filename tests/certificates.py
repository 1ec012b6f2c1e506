"""A certificate that signs itself, by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def certificate(folder: Path, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """One for this address: (chain, key)."""
    chain, key = folder / f"chain-{host}.pem", folder / f"key-{host}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(chain), "-days", "2", "-subj", "/CN=batchyard"]
    try:
        subprocess.run([*command, "-addext", f"subjectAltName=IP:{host}"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return chain, key
