"""The real Ultralytics package, unmodified, with a gateway's address in place of a model's file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ...required import part
from ..gateways import gateway

YOLO = "nudenet/320n.onnx"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_yolo_by_an_address_sees_what_it_sees_in_its_own_process(
    served: Callable[..., Any], models_folder: Path, tmp_path: Path, tools: Any, scheme: str
) -> None:
    part("torch", find_spec("torch"))
    yolo = served(YOLO)
    with gateway(yolo.yard.url, tools.free_port()) as started:
        url = f"{scheme}://{started.http if scheme == 'http' else started.grpc}/{yolo.name}"
        program = Path(__file__).with_name("ultralytics_program.py")
        done = subprocess.run(
            [sys.executable, str(program), str(models_folder), url, str(models_folder / YOLO)],
            env=dict(os.environ, YOLO_CONFIG_DIR=str(tmp_path)), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert started.gauge("requests_in_yard") == 0
