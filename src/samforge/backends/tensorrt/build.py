"""ONNX -> engine: reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from samforge.backends.tensorrt.capabilities import UNTOUCHED, check_capabilities
from samforge.backends.tensorrt.command import command_line
from samforge.backends.tensorrt.cuda import Gpu, gpu_here
from samforge.backends.tensorrt.library import RTX, Flavour, Library, library
from samforge.backends.tensorrt.network import parsed_network
from samforge.backends.tensorrt.plan_text import computation_from_plan
from samforge.backends.tensorrt.reporting import ERRORS, Progress, new_logger, new_monitor, texts
from samforge.backends.tensorrt.settings import EngineSettings
from samforge.backends.tensorrt.shapes import InputShapes, shapes_from_spec
from samforge.backends.tensorrt.stamp import EngineStamp, write_stamp
from samforge.backends.tensorrt.timing_cache import TimingCache
from samforge.core.computation import Computation, check_computation
from samforge.core.errors import EngineError, SettingError
from samforge.core.files import atomic_write_bytes, sha256_of, size_text, writable_folder
from samforge.core.session import PartSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """What a build made and what it took."""

    engine: Path
    """The engine."""
    stamp: Path
    """What it was built for; belongs beside it."""
    version: str
    """Of the library."""
    form: str
    """Form of attention of the graph."""
    seconds: float
    """Wall-clock time of parsing and building."""
    bytes: int
    """Size of the engine."""
    layers: int
    """Layers of the network before fusion."""
    command: str
    """The line that builds the same without samforge."""
    timing_cache: str
    """What became of the cache: ``none``, ``new``, ``used``, ``ignored: …``."""
    computation: Computation | None
    """What the engine computes in which format; None where it cannot be read here."""
    warnings: tuple[str, ...]
    """What the library warned of, each once."""


def engine_from_onnx(  # noqa: PLR0913  # two files, what they are, and three options
    flavour: Flavour,
    onnx: Path,
    engine: Path,
    spec: PartSpec,
    settings: EngineSettings,
    *,
    form: str = "fused",
    planned: Computation | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Build an engine and make sure that it computes what its graph planned.

    Args:
        flavour: ``TENSORRT`` or ``RTX``.
        onnx: The graph, in the number formats that the engine shall have.
        engine: File to write; it appears whole or not at all, with its stamp beside it.
        spec: Interface of the part.
        settings: How to build.
        form: Form of attention of the graph, for the stamp; in another than ``fused`` no attention
            may be fused that is not planned to be.
        planned: What the graph plans, from ``computation_from_onnx``; None checks nothing.
        progress: Called with the phase and the share that is done; what it raises ends the build.

    Raises:
        MissingExtra: The library is missing or of another version.
        SettingError: A GPU generation cannot run the precision, or a setting is not usable.
        EngineError: The graph cannot be parsed or built, or the engine falls short of the plan.
        OutputError: The engine or the timing cache cannot be written.
    """
    lib = library(flavour)
    gpu = gpu_here()
    targets = target_capabilities(lib, settings, gpu)
    check_capabilities(flavour, targets, settings.precision)
    shapes = shapes_from_spec(spec, settings.axes)
    writable_folder(engine.parent)
    cache = TimingCache(settings.timing_cache if flavour.keeps_timings else None)
    logger = new_logger(lib.trt)
    start = time.perf_counter()
    builder = _builder(lib, logger, gpu)
    network = parsed_network(lib, builder, logger, onnx, spec)
    config = _config(lib, builder, settings, targets, shapes)
    cache_state = cache.attach(config)
    serialized = _built(lib, builder, network, config, logger, settings, onnx, progress)
    seconds = time.perf_counter() - start
    # The library's memory is read and written as it is: a copy of a gibibyte is one too many.
    content = memoryview(serialized)
    computation = computation_from_plan(content) if flavour is RTX else None
    if planned is not None and computation is not None:
        made = f"{lib.flavour.title} {lib.version} made of {onnx}"
        check_computation(made, planned, computation, apart=form != UNTOUCHED)
    atomic_write_bytes(engine, cast(bytes, content))
    cache.save(config)
    layers = int(network.num_layers)
    del content, serialized, network, config, builder
    stamp = EngineStamp(
        target=flavour.name,
        version=lib.version,
        compute_capabilities=targets,
        gpu=None if flavour.targets_generations or gpu is None else gpu.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        precision=settings.precision,
        form=form,
        axes=dict(settings.axes),
        computation=computation,
        facts=settings.facts,
    )
    return EngineReport(
        engine=engine,
        stamp=write_stamp(engine, stamp),
        version=lib.version,
        form=form,
        seconds=round(seconds, 3),
        bytes=stamp.bytes,
        layers=layers,
        command=command_line(lib, onnx, engine, shapes, settings),
        timing_cache=cache_state
        if flavour.keeps_timings or settings.timing_cache is None
        else f"ignored: {flavour.title} times nothing when it builds",
        computation=computation,
        warnings=texts(logger, "WARNING"),
    )


def target_capabilities(lib: Library, settings: EngineSettings, gpu: Gpu | None) -> tuple[str, ...]:
    """GPU generations to build for.

    Raises:
        SettingError: None is named and there is no GPU, or the library builds for others than
            those named.
    """
    named = settings.compute_capabilities
    if lib.flavour.targets_generations:
        able = lib.generations()
        targets = named or ((gpu.compute_capability,) if gpu else ())
        if not targets:
            raise SettingError(
                "There is no GPU here to build for. Name the generations: "
                f"--compute-capability with {', '.join(able)}."
            )
        foreign = [name for name in targets if name not in able]
        if foreign and named:
            check_capabilities(lib.flavour, foreign, settings.precision)  # says more where it can
        if foreign:
            raise SettingError(
                f"{lib.flavour.title} {lib.version} does not build for compute capability "
                f"{foreign[0]}. It builds for {', '.join(able)}."
            )
        return targets
    if gpu is None:
        raise EngineError(
            f"{lib.flavour.title} builds for the GPU at hand, and none is found here. Build where "
            "the engine will run; --target tensorrt-rtx builds without a GPU."
        )
    if named and named != (gpu.compute_capability,):
        raise SettingError(
            f"{lib.flavour.title} builds for the GPU at hand, {gpu} here; compute capability "
            f"{', '.join(named)} was asked for. Build on such a GPU, or leave the option out."
        )
    return (gpu.compute_capability,)


def _builder(lib: Library, logger: Any, gpu: Gpu | None) -> Any:
    try:
        return lib.trt.Builder(logger)
    except Exception as error:  # pybind raises TypeError for a null pointer
        said = " ".join(texts(logger, *ERRORS)) or str(error)
        place = f"on {gpu}" if gpu else "without a GPU"
        raise EngineError(
            f"{lib.flavour.title} {lib.version} does not start {place}: {said}"
        ) from (error)


def _config(
    lib: Library,
    builder: Any,
    settings: EngineSettings,
    targets: tuple[str, ...],
    shapes: Mapping[str, InputShapes],
) -> Any:
    trt = lib.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and 13 bits less
    if settings.workspace_gib is not None:
        limit = int(settings.workspace_gib * 2**30)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if lib.flavour.targets_generations:
        config.num_compute_capabilities = len(targets)
        for index, name in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name}"), index)
    if shapes:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.min, shape.opt, shape.max)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{lib.flavour.title} refuses the shapes {dict(shapes)}.")
    return config


def _built(  # noqa: PLR0913, PLR0917  # the pieces of one build
    lib: Library,
    builder: Any,
    network: Any,
    config: Any,
    logger: Any,
    settings: EngineSettings,
    onnx: Path,
    progress: Progress | None,
) -> Any:
    monitor = new_monitor(lib.trt, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    if serialized is None:
        raise EngineError(_why(lib, logger, settings, onnx))
    return serialized


def _why(lib: Library, logger: Any, settings: EngineSettings, onnx: Path) -> str:
    said = texts(logger, *ERRORS)
    text = " ".join(said) or "it gives no reason."
    message = f"{lib.flavour.title} {lib.version} cannot build {onnx}: {text}"
    if "workspace" in text and settings.workspace_gib is not None:
        room = size_text(int(settings.workspace_gib * 2**30))
        message += f" The workspace limit is {room}: raise it, or leave it out."
    return message
