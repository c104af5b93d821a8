"""Parts for the benchmarks: from a checkpoint with random weights to compiled ones."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from samforge.backends.inductor.backend import OPTIONS, InductorSession, package_from_exported
from samforge.core.reference import META
from samforge.core.session import PartSpec, TensorFormat
from samforge.media import read_image
from samforge.runtime import PhraseTokenizer, Segmenter
from samforge.runtime.device import DeviceExecutor
from samforge.runtime.device.session import placed
from samforge.transform.export import TRACED_SIZES, exported_from_part
from samforge.transform.fuse import fuse
from samforge.transform.lower import Lowering, fp8_scales_from_samples, lower


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One package to build."""

    part: str
    """Name of the part."""
    precision: str
    """``bf16``, ``fp16`` or ``fp8``."""
    family: str = "sam3"
    """Model family."""
    model: str = "facebook/sam3"
    """Checkpoint; its weights are random unless it is ``tiny``."""
    reference: str = META
    """Whose computation it is: ``meta`` or ``transformers``."""
    size: int | None = None
    """Image size, or None for the model's own."""
    attention: str = "fastest"
    """Kernel for attention without a mask."""
    residual: str = "fp32"
    """Type of residual sums."""
    position_bias: str = "separable"
    """How attention with a position bias runs."""
    sums: str = "joined"
    """Whether a residual sum and the norm behind it are one kernel."""
    fixed: str = ""
    """Axes that are constants: ``batch=1,prompts=1``."""
    tuned: bool = False
    """Whether Inductor tunes its pointwise kernels."""
    tracker: bool = False
    """Whether the checkpoint comes with its tracker: ``vision`` gives its maps then."""

    @property
    def name(self) -> str:
        """Names the package's file."""
        words = [self.family, self.part, self.precision, self.residual, self.attention]
        words += [self.reference] if self.reference != META else []
        words += [str(self.size)] if self.size else []
        words += [self.fixed.replace("=", "").replace(",", "-")] if self.fixed else []
        words += ["tuned"] if self.tuned else []
        words += ["tracker"] if self.tracker else []
        return "_".join(words)


def family_checkpoint(
    family: str, model: str, size: int | None, reference: str = META, *, tracker: bool = False
) -> Any:
    """The checkpoint of a family, with random weights where it is not the tiny model."""
    if family == "sam3":
        from samforge.models.sam3.loading import checkpoint_from_name

        random = model != "tiny"
        return checkpoint_from_name(
            model, reference=reference, image_size=size, random_weights=random, tracker=tracker
        )
    from samforge.models.loading import model_from_name

    return model_from_name(model, image_size=size, random_weights=True)


def family_part(family: str, checkpoint: Any, name: str) -> Any:
    """One part of a checkpoint, whatever the family."""
    if hasattr(checkpoint, "part"):
        return checkpoint.part(name)
    from importlib import import_module

    return import_module(f"samforge.models.{family}.parts").part_from_checkpoint(checkpoint, name)


def family_spec(family: str, checkpoint: Any, name: str) -> PartSpec:
    """Interface of one part, whatever the family."""
    if hasattr(checkpoint, "spec"):
        return cast(PartSpec, checkpoint.spec(name))
    from importlib import import_module

    parts = import_module(f"samforge.models.{family}.parts")
    tracker = getattr(checkpoint, "tracker", None)
    return cast(PartSpec, parts.part_spec(checkpoint.config, name, checkpoint.reference, tracker))


def family_inputs(checkpoint: Any, spec: PartSpec, sizes: dict[str, int], seed: int) -> Any:
    """Random inputs of a part."""
    if hasattr(checkpoint, "inputs"):
        return checkpoint.inputs(spec.name, sizes, seed)
    from samforge.models.part import example_inputs
    from samforge.models.sam3.parts import part_inputs

    return example_inputs(
        part_inputs(checkpoint.config, spec.name, checkpoint.reference, checkpoint.tracker),
        sizes,
        vocabulary=checkpoint.config.text_config.vocab_size,
        eos_id=checkpoint.eos_id,
        seed=seed,
    )


def lowered_part(order: Order, device: str) -> tuple[Any, PartSpec, dict[str, float]]:
    """Checkpoint to lowered program, with the seconds that each step took."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()

    checkpoint = family_checkpoint(
        order.family, order.model, order.size, order.reference, tracker=order.tracker
    )
    part = family_part(order.family, checkpoint, order.part)
    lap("load")
    inputs = family_inputs(checkpoint, part.spec, dict(TRACED_SIZES), 0)
    program = exported_from_part(part, inputs)
    lap("export")
    program = fuse(program, target="inductor").program
    lap("fuse")
    scales: dict[str, float] = {}
    if order.precision == "fp8":
        samples = [family_inputs(checkpoint, part.spec, {"batch": 1, "prompts": 1}, 1)]
        scales = fp8_scales_from_samples(program, part.spec, samples, device=device)
        lap("calibrate")
    settings = Lowering(
        precision=order.precision,
        attention=order.attention,
        residual=order.residual,
        position_bias=order.position_bias,
        sums=order.sums,
        scales=scales,
        half_features=True,
    )
    fixed = dict(pair.split("=") for pair in order.fixed.split(",") if pair)
    lowered = lower(
        program,
        part.spec,
        settings=settings,
        device=device,
        sizes={axis: int(value) for axis, value in fixed.items()},
    )
    lap("lower")
    return lowered, part.spec, seconds


def build(order: Order, folder: Path, device: str) -> dict[str, Any]:
    """Build one package and say what it took."""
    lowered, spec, seconds = lowered_part(order, device)
    start = time.perf_counter()
    options = {"coordinate_descent_tuning": True} if order.tuned else {}
    path = folder / f"{order.name}.aoti.pt2"
    package_from_exported(lowered.program, spec, path, precision=order.precision, options=options)
    seconds["compile"] = round(time.perf_counter() - start, 1)
    formats = [form for _, form in lowered.layers]
    return {
        "seconds": seconds,
        "bytes": path.stat().st_size,
        "layers": {form: formats.count(form) for form in sorted(set(formats))},
    }


class OnDevice:
    """What sessions that are compiled in this process share."""

    runtime, captures = "torch.compile", True
    spec: PartSpec
    device: str
    formats: dict[str, TensorFormat]
    processor: str

    def run(self, tensors: Any) -> Any:
        """On arrays of the host: nothing here asks for it."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free before the process ends."""


def session_device(device: torch.device) -> str:
    """A device as sessions name it."""
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type


def segmenter_over(
    sessions: dict[str, Any], checkpoint: Any, tokenizer: PhraseTokenizer, reference: str = META
) -> Segmenter:
    """A segmenter that keeps everything on the device, the processor included."""
    executor = DeviceExecutor(
        sessions, checkpoint.image, tokenizer, read_image, reference=reference
    )
    return Segmenter(executor, image_size=checkpoint.image.size, parts=sessions)


class CompiledPart(OnDevice):
    """A lowered program through torch.compile, with the door of a session."""

    def __init__(self, lowered: Any, spec: PartSpec, options: dict[str, Any]) -> None:
        self.spec = spec
        self.examples = lowered.program.example_inputs[0]
        self.device = session_device(self.examples[0].device)
        self.processor = self.device
        self.formats = {
            tensor.name: TensorFormat(
                dtype=str(example.dtype).removeprefix("torch."),
                channels_last=example.ndim == 4 and not example.is_contiguous(),
            )
            for tensor, example in zip(spec.inputs, self.examples, strict=True)
        }
        # Fixed sizes need no guards, and for the dynamic ones the spec has them.
        self.plain: torch.nn.Module = lowered.program.module(check_guards=False)
        self.module: Any = self.plain
        if not options.get("eager"):
            self.module = torch.compile(self.plain, options={**OPTIONS, **options})

    def run_on_device(self, tensors: Any) -> dict[str, torch.Tensor]:
        """Run it."""
        with torch.inference_mode():
            results = self.module(*(tensors[tensor.name] for tensor in self.spec.inputs))
        return {t.name: value for t, value in zip(self.spec.outputs, results, strict=True)}

    def placed(self, tensors: Any) -> dict[str, torch.Tensor]:
        """As the program was traced; some of the inputs may be given alone."""
        return placed(self, tensors)


def compiled(order: Order, device: str, eager: bool = False) -> CompiledPart:
    """The lowered part through torch.compile in this process."""
    lowered, spec, seconds = lowered_part(order, device)
    print("lowered", seconds, flush=True)
    options: dict[str, Any] = {"coordinate_descent_tuning": True} if order.tuned else {}
    return CompiledPart(lowered, spec, {"eager": True} if eager else options)


class SizedPart(OnDevice):
    """One part at several fixed sizes: the sizes of its inputs choose."""

    def __init__(self, parts: dict[tuple[int, ...], CompiledPart]) -> None:
        self.parts = parts
        first = next(iter(parts.values()))
        self.spec, self.device = first.spec, first.device
        self.formats, self.processor = first.formats, first.processor

    def _key(self, tensors: Any) -> tuple[int, ...]:
        names = ("images", "fpn_0", "text_features")
        return tuple(tensors[name].shape[0] for name in names if name in tensors)

    def run_on_device(self, tensors: Any) -> dict[str, torch.Tensor]:
        """Run the part of these sizes."""
        return self.parts[self._key(tensors)].run_on_device(tensors)


def session(order: Order, folder: Path) -> InductorSession:
    """Load a package that was built."""
    checkpoint = family_checkpoint(
        order.family, order.model, order.size, order.reference, tracker=order.tracker
    )
    spec = family_spec(order.family, checkpoint, order.part)
    return InductorSession(folder / f"{order.name}.aoti.pt2", spec)


def device_name() -> str:
    """``cuda`` where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
