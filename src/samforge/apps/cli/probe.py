"""Loads one runtime and prints what it can use; ``doctor`` starts it in a process of its own.

A broken runtime often takes its process with it, and a sound one is slow to load.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from samforge.backends import backend_from_name
from samforge.core.telemetry import import_runtime


def processors_of(name: str, runtime: Any) -> list[str]:
    """What an imported runtime can run on, in its own words."""
    if name == "onnxruntime":
        return list(runtime.get_available_providers())
    if name == "openvino":
        core = runtime.Core()
        return [core.get_property(device, "FULL_DEVICE_NAME") for device in core.available_devices]
    if name == "torch":
        gpus = [runtime.cuda.get_device_name(i) for i in range(runtime.cuda.device_count())]
        return [f"CPU, {runtime.get_num_threads()} threads", *gpus]
    # TensorRT and TensorRT for RTX: making a builder is what fails without libraries or a driver.
    runtime.Builder(runtime.Logger(runtime.Logger.ERROR))
    backend: Any = backend_from_name("tensorrt-rtx")
    found = [f"GPU of compute capability {one}" for one in backend.capabilities_here()]
    return found or ["builds engines; no GPU here to run them"]


def _main(name: str) -> None:
    runtime = import_runtime(name)
    found = {"version": str(runtime.__version__), "processors": processors_of(name, runtime)}
    print(json.dumps(found))  # noqa: T201  # the answer to the process that started this one


if __name__ == "__main__":
    _main(sys.argv[1])
