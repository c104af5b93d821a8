"""ONNX Runtime on the processor: numpy in, numpy out, no copies on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samforge.backends._onnx_file import notes_from_onnx
from samforge.backends.onnxruntime.session import (
    INTEGER_NOTE,
    UNOPTIMIZED_NOTE,
    BoundSession,
    Notes,
    elements,
    installed_version,
    loaded,
    session_options,
)
from samforge.core import targets
from samforge.core.cpu_flags import SATURATING, products_saturate
from samforge.core.devices import CPU, require_kind
from samforge.core.facts import FACTS_KEY
from samforge.core.session import PartSpec, Session, checked_options, checked_threads

LARGE_INPUT = 2**20
"""Elements of one item of an input from which memory matters more than reuse."""
PROVIDERS = ("CPUExecutionProvider",)


class OnnxRuntimeSession(BoundSession):
    """Runs one ``.onnx`` file."""

    runtime = targets.ONNXRUNTIME.name

    def __init__(self, path: Path, spec: PartSpec, *, threads: int | None = None) -> None:
        notes = notes_from_onnx(path)
        options = session_options(notes)
        options.intra_op_num_threads = threads or 0
        if max(elements(tensor) for tensor in spec.inputs) > LARGE_INPUT:
            # The arena grows by powers of two around attention scores of 1.6 GiB: vision at 1008
            # pixels peaks at 7.1 GiB with it and 4.6 without. Small parts are 10 % faster with it.
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        super().__init__(path, spec, options, PROVIDERS, notes)
        self.processor = f"CPU, {threads or len(os.sched_getaffinity(0))} threads"
        for reason in _reasons(notes):
            self.processor += f" ({reason})"
        self.hold()


def optimized_from_onnx(path: Path, out: Path) -> None:
    """Write the graph that ONNX Runtime really runs, with the settings a session would take.

    Weights above 1 MiB go to a file beside it. To compare it with what was intended.

    Args:
        path: The ``.onnx`` file.
        out: File to write.

    Raises:
        DamagedBundle: The file does not load.
    """
    notes = notes_from_onnx(path)
    options = session_options(notes)
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3  # writing an optimized graph warns that it fits this machine
    side = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{side}file_name", f"{out.name}.data")
    options.add_session_config_entry(f"{side}min_size_in_bytes", str(2**20))
    # Kernels' own layouts of the weights would double what is written, and are not looked at.
    options.add_session_config_entry("session.disable_prepacking", "1")
    loaded(path, options, PROVIDERS, notes)


def _reasons(notes: Notes) -> list[str]:
    """What one should know about this file on this processor."""
    found = [notes[UNOPTIMIZED_NOTE]] if UNOPTIMIZED_NOTE in notes else []
    if int(notes.get(INTEGER_NOTE, "0")) and products_saturate():
        found.append(SATURATING)
    return found


@dataclass(frozen=True, slots=True)
class OnnxRuntimeBackend:
    """ONNX Runtime's CPU execution provider: the default, everywhere."""

    name: str = targets.ONNXRUNTIME.name

    def version(self) -> str | None:
        """Version of the installed package, in whichever of its forms."""
        return installed_version(*targets.ONNXRUNTIME.distributions)

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """Its execution providers."""
        return tuple(runtime.get_available_providers())

    def facts_from_artifact(self, path: Path) -> str | None:
        """The stamp among the file's ``metadata_props``."""
        return notes_from_onnx(path).get(FACTS_KEY)

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load an ``.onnx`` file; what its flavour needs stands in the file.

        Raises:
            DamagedBundle: The file does not load or is not the part the manifest says.
            SettingError: An option is given: there is none. Or ``device`` is a GPU.
        """
        checked_threads(threads)
        checked_options(self.name, options, {})
        require_kind(self.name, device, (CPU,))
        return OnnxRuntimeSession(path, spec, threads=threads)


BACKEND = OnnxRuntimeBackend()
