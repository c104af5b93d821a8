"""Whether ONNX Runtime can use an NVIDIA GPU here, and if not, what to install."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import Any

from samforge.backends.onnxruntime.session import installed_version
from samforge.core import targets
from samforge.core.errors import MissingExtra

PROVIDER = "CUDAExecutionProvider"
"""ONNX Runtime's name of what runs operators on NVIDIA GPUs."""
LIBRARIES = {
    major: (
        *(f"lib{name}.so.{major}" for name in ("cudart", "cublasLt", "cublas")),
        *("libcurand.so.10", "libcudnn.so.9"),
    )
    for major in ("12", "13")
}
"""What its CUDA provider loads, by the CUDA it was built with."""
REPAIR = (
    "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps 'onnxruntime-gpu{pin}'"
)


class OtherWheel(MissingExtra):
    """The module that is loaded is ONNX Runtime's package for processors."""

    def __init__(self, loaded: str, gpu_version: str | None) -> None:
        first = "" if gpu_version else "pip install 'samforge[onnxruntime-cuda]' && "
        pin = f"=={gpu_version}" if gpu_version else ""
        ImportError.__init__(
            self,
            f"onnxruntime {loaded} is loaded here, which has no {PROVIDER}. The packages "
            "onnxruntime and onnxruntime-gpu share one module, and what was installed last is "
            f"what runs. Run: {first}{REPAIR.format(pin=pin)}. It runs on processors, too.",
        )
        self.extra = targets.ONNXRUNTIME_CUDA.extra or ""


def require_provider(runtime: Any) -> None:
    """Make sure that the loaded module is the one for NVIDIA GPUs.

    Args:
        runtime: The module ``onnxruntime``.

    Raises:
        OtherWheel: It is not; the message says what to remove and what to install.
    """
    if PROVIDER not in runtime.get_available_providers():
        gpu_version = installed_version(*targets.ONNXRUNTIME_CUDA.distributions)
        raise OtherWheel(str(runtime.__version__), gpu_version)


def require_libraries(runtime: Any) -> None:
    """Load CUDA's libraries, from NVIDIA's packages where they are not there yet.

    Raises:
        MissingExtra: Some are nowhere: ONNX Runtime would go to the processor, with a warning.
    """
    cuda = str(getattr(runtime, "cuda_version", "") or "")
    names = LIBRARIES.get(cuda.partition(".")[0], ())
    if missing_of(names):  # torch may have brought them, or the system
        with redirect_stdout(io.StringIO()):  # it prints what it does not find: the error says so
            runtime.preload_dlls()
    if missing := missing_of(names):
        raise MissingExtra(
            f"A part of CUDA {cuda} that ONNX Runtime needs ({', '.join(missing)})",
            targets.ONNXRUNTIME_CUDA.extra or "",
        )


def missing_of(names: Iterable[str]) -> list[str]:
    """Shared libraries that cannot be loaded; one that is loaded already is found by its name."""
    missing = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing
