"""Engine file -> engine in memory, refused with both sides named where it cannot run here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samforge.backends.tensorrt.cuda import Gpu
from samforge.backends.tensorrt.library import Flavour, Library
from samforge.backends.tensorrt.reporting import ERRORS, new_logger, texts
from samforge.backends.tensorrt.settings import AxisRange
from samforge.backends.tensorrt.stamp import EngineStamp
from samforge.core.errors import DamagedBundle, ForeignBundle
from samforge.core.files import sha256_of
from samforge.core.session import PartSpec, TensorSpec

ELEMENT_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""The library's name of an element type and numpy's."""


def check_file(flavour: Flavour, path: Path, stamp: EngineStamp | None) -> None:
    """Make sure that an engine file is there, whole, and of this product.

    Raises:
        DamagedBundle: It is missing, truncated or changed.
        ForeignBundle: It is of the other product.
    """
    if not path.is_file():
        raise DamagedBundle(f"{flavour.title} cannot load {path}: there is no such file.")
    if stamp is None:
        return
    if stamp.target != flavour.name:
        raise ForeignBundle(
            f"{flavour.title} cannot load {path}: it was built for the target {stamp.target}, and "
            f"{flavour.name} was asked to run it. Build it for {flavour.name}."
        )
    size = path.stat().st_size
    if size != stamp.bytes:
        what = "truncated" if size < stamp.bytes else "not the one that was built"
        raise DamagedBundle(
            f"{flavour.title} cannot load {path}: it is {what}, {size} of {stamp.bytes} bytes. "
            "Copy it again from where it came, or build it again."
        )
    if sha256_of(path) != stamp.sha256:
        raise DamagedBundle(
            f"{flavour.title} cannot load {path}: its hash is not the one in its stamp. "
            "Copy both again from where they came, or build it again."
        )


def check_version(path: Path, stamp: EngineStamp | None, flavour: Flavour, version: str) -> None:
    """Engines run on the very version that built them.

    Raises:
        ForeignBundle: Names both versions.
    """
    if stamp is not None and stamp.version != version:
        raise ForeignBundle(
            f"{path} was built by {flavour.title} {stamp.version}, and {version} is installed "
            f"here. Run: pip install '{flavour.distributions[0]}=={stamp.version}', or build it "
            "again."
        )


def check_gpu(path: Path, stamp: EngineStamp | None, flavour: Flavour, gpu: Gpu | None) -> Gpu:
    """Engines run on the GPUs they were built for.

    Raises:
        ForeignBundle: Names both GPUs, or says that there is none.
    """
    built = "an NVIDIA GPU"
    if stamp is not None:
        numbers = " or ".join(stamp.compute_capabilities)
        built = f"{stamp.gpu or 'a GPU'} of compute capability {numbers}"
    if gpu is None:
        raise ForeignBundle(
            f"{path} was built for {built}, and there is no GPU here. "
            "Run it where there is one, or build for --target onnxruntime or openvino."
        )
    if stamp is None:
        return gpu
    fits = gpu.compute_capability in stamp.compute_capabilities
    if not fits or stamp.gpu not in (None, gpu.name):
        raise ForeignBundle(
            f"{path} was built for {built}, and this is {gpu}. Build it again"
            + (
                f" with --compute-capability {gpu.compute_capability}."
                if flavour.targets_generations
                else " on this GPU."
            )
        )
    return gpu


def deserialized(lib: Library, path: Path) -> tuple[Any, Any]:
    """Load the engine.

    Returns:
        The runtime, which must outlive it, and the engine.

    Raises:
        DamagedBundle: The library refuses it, with its own words.
    """
    logger = new_logger(lib.trt)
    runtime = lib.trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        said = " ".join(texts(logger, *ERRORS)) or "it gives no reason."
        raise DamagedBundle(f"{lib.flavour.title} {lib.version} cannot load {path}: {said}")
    return runtime, engine


def tensors_of(engine: Any, mode: str) -> tuple[TensorSpec, ...]:
    """Inputs (``INPUT``) or outputs (``OUTPUT``) of an engine."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        TensorSpec(
            name=name,
            dtype=element_type(engine.get_tensor_dtype(name)),
            shape=tuple(
                int(axis) if axis >= 0 else f"{name}_{index}"
                for index, axis in enumerate(engine.get_tensor_shape(name))
            ),
        )
        for name in names
        if str(engine.get_tensor_mode(name)).endswith(mode)
    )


def element_type(dtype: Any) -> str:
    """Name of an element type of the library as numpy has it."""
    name = str(dtype).rpartition(".")[2]
    return ELEMENT_TYPES.get(name, name)


def axes_of(engine: Any, spec: PartSpec) -> Mapping[str, AxisRange]:
    """Sizes of each dynamic axis that an engine takes, from its optimization profile."""
    axes: dict[str, AxisRange] = {}
    for tensor in spec.inputs:
        if all(isinstance(axis, int) for axis in tensor.shape):
            continue
        shapes = engine.get_tensor_profile_shape(tensor.name, 0)
        for axis, *sizes in zip(tensor.shape, *shapes, strict=True):
            if isinstance(axis, str):
                low, best, high = (int(size) for size in sizes)
                axes[axis] = AxisRange(min=low, opt=best, max=high)
    return axes
