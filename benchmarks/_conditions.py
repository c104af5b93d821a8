"""What a figure was measured on: written beside every result."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samforge.workflows.machine import this_machine

PACKAGES = ("samforge", "numpy", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def conditions() -> dict[str, Any]:
    """Date, hardware and versions; nothing that names the machine."""
    machine = asdict(this_machine())
    kept = ["system", "python", "processor", "cores", "features", "memory_gib"]
    if machine["gpus"]:
        kept.append("gpus")
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": {key: machine[key] for key in kept},
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    """None where it runs from a folder, or is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_result(script: str, result: dict[str, Any]) -> Path:
    """Write a result with its conditions to ``benchmarks/results/<script's name>.json``."""
    path = Path(__file__).parent / "results" / f"{Path(script).stem}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**conditions(), **result}, indent=2) + "\n")
    return path
