"""Imports runtimes without what they would collect: samforge sends nothing, and they shall not.

What each does on its own, where it is switched off, and how to decide otherwise stands in
``docs/privacy.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from samforge.core.paths import is_file

ONNXRUNTIME_SWITCH = "ORT_DISABLE_TELEMETRY"
"""Read once, when ONNX Runtime's library is loaded; its ``disable_telemetry_events`` comes too late
to keep a device id and a store of events from being written (1.31 on Linux)."""
HUB_SWITCH = "HF_HUB_DISABLE_TELEMETRY"
"""Read once, when huggingface_hub is imported."""
RAY_SWITCH = "RAY_USAGE_STATS_ENABLED"
"""Read by the processes of a cluster that ``ray.init`` starts; 0 says no."""
_OPENVINO_TELEMETRY = "openvino_telemetry"


def import_runtime(name: str) -> Any:
    """Import ONNX Runtime or OpenVINO with its telemetry switched off, and others as they are.

    What the user has decided stays: the variable ``ORT_DISABLE_TELEMETRY``, whatever its value, and
    what ``opt_in_out`` of openvino-telemetry has written. Nothing of the process changes for good,
    and a runtime that was imported before is left alone.

    Raises:
        ImportError: It is not installed.
    """
    if name in sys.modules:
        return import_module(name)
    if name == "onnxruntime":
        with _set_meanwhile(os.environ, ONNXRUNTIME_SWITCH, "1"):
            return import_module(name)
    if name == "openvino" and not _openvino_decided():
        # Its import sends an event ("general_import") and writes a client id to ~/intel. OpenVINO
        # does without the package where it is not installed, which None says.
        with _set_meanwhile(sys.modules, _OPENVINO_TELEMETRY, None):
            return import_module(name)
    return import_module(name)


@contextmanager
def ray_declined() -> Iterator[None]:
    """Start a local cluster of Ray in the body without its usage statistics, unless decided."""
    with _set_meanwhile(os.environ, RAY_SWITCH, "0"):
        yield


def decline_for_process() -> None:
    """Decline for this process and those it starts: for the command line, which owns its process.

    A variable that is set already, to whatever value, stays.
    """
    for switch in (ONNXRUNTIME_SWITCH, HUB_SWITCH):
        os.environ.setdefault(switch, "1")


@contextmanager
def _set_meanwhile(table: MutableMapping[str, Any], key: str, value: Any) -> Iterator[None]:
    """Set what is not set, for as long as the body runs."""
    if key in table:
        yield
        return
    table[key] = value
    try:
        yield
    finally:
        table.pop(key, None)


def _openvino_decided() -> bool:
    """Whether the user has said yes or no to openvino-telemetry: it keeps the answer in a file."""
    if sys.platform == "win32":
        base, folder = os.environ.get("LOCALAPPDATA", ""), "Intel Corporation"
    else:
        base, folder = os.environ.get("HOME", "/"), "intel"
    return is_file(Path(base, folder, _OPENVINO_TELEMETRY))
