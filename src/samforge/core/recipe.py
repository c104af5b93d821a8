"""What to build: the model, its size, the target, the precision and the gates that must hold."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from samforge.core.axes import AXES, BATCH, BOXES, PROMPTS
from samforge.core.errors import SettingError
from samforge.core.reference import META, REFERENCES
from samforge.core.strict_json import LARGEST
from samforge.core.structure import (
    Json,
    StructureError,
    json_from_value,
    unknown_names,
    value_from_json,
)
from samforge.core.targets import PRECISIONS, TARGET_NAMES, target_from_name

OBSERVERS = ("min-max", "moving-average", "histogram", "percentile", "entropy", "mse")
"""How an activation's range is chosen from what calibration saw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which data sets the activation ranges."""

    source: Path | None = None
    """Folder of images, or one video; None takes drawn scenes, which only the tiny model knows."""
    samples: int = 16
    """Images or evenly spaced frames to read."""
    prompts: tuple[str, ...] = ()
    """Noun phrases run on every sample: ranges of the detector depend on them. Drawn scenes bring
    their own."""
    seed: int = 0
    """Seed of what is drawn or chosen."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SettingError(f"calibration.samples wants at least 1, got {self.samples}.")
        _check_fits("calibration.samples", self.samples)
        _check_seed("calibration.seed", self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """Where and how int8 and fp8 bundles are quantized."""

    observer: str = "min-max"
    """How ranges of activations are chosen, one of ``OBSERVERS``."""
    smooth: bool = True
    """Whether SmoothQuant evens out the channels of LayerNorms and of pairs of weights."""
    smooth_alpha: float = 0.5
    """How much of an activation's spread SmoothQuant moves into the weights, 0 to 1."""
    smooth_skip: tuple[str, ...] = ()
    """Module path patterns that SmoothQuant leaves alone."""
    skip: tuple[str, ...] = ()
    """``part`` or ``part/module.path`` patterns (``*`` matches anything) that stay float."""
    skip_operators: tuple[str, ...] = ()
    """Operators that stay float: ``linear``, ``conv2d``, ``conv_transpose2d``, ``matmul``."""
    patch_embedding: bool = False
    """Whether the patch embedding is quantized too."""
    mixed: bool = True
    """Keep the worst groups in half until the gate holds."""
    max_kept: float = 0.25
    """Largest share of a part's multiplications that may be kept in half before the build stops."""

    def __post_init__(self) -> None:
        _check_choice("quantization.observer", self.observer, OBSERVERS)
        if not 0 <= self.smooth_alpha <= 1:
            raise SettingError(
                f"quantization.smooth_alpha wants 0 to 1, got {self.smooth_alpha!r}."
            )
        if not 0 <= self.max_kept <= 1:
            raise SettingError(f"quantization.max_kept wants 0 to 1, got {self.max_kept!r}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How TensorRT builds engines."""

    batch: int = BATCH.engine
    """Most images in one call."""
    prompts: int = PROMPTS.engine
    """Most phrases in one call."""
    boxes: int = BOXES.engine
    """Most exemplar boxes of a phrase."""
    workspace_gib: float | None = None
    """Most GPU memory a layer may use for itself; None leaves it to the library."""
    optimization_level: int | None = None
    """0 (quick build) to 5 (long search); None takes the library's 3."""
    timing_cache: Path | None = None
    """File that remembers timings of kernels across builds; ignored when it is another GPU's."""

    def __post_init__(self) -> None:
        for name, size in self.largest().items():
            if size < 1:
                raise SettingError(f"engine.{name} wants at least 1, got {size}.")
            _check_fits(f"engine.{name}", size)
        _check_fits("engine.optimization_level", self.optimization_level or 0)

    def largest(self) -> dict[str, int]:
        """Largest size of every axis: those that have a field here, and the table's for others."""
        own = {field.name for field in fields(self)}
        return {
            name: getattr(self, name) if name in own else axis.engine for name, axis in AXES.items()
        }


LARGEST_IMAGE = 1 << 14
"""Side of a square image in pixels that is still asked of a model."""

SHARES = (
    *("mask_iou", "box_iou", "agreement", "score_shift", "absent_score_shift"),
    *("cgf1_alike", "cgf1_drop", "odd_cosine", "feature_cosine", "click_iou", "track_iou"),
    "j_and_f_drop",
)
"""Gates on figures that reach at most 1."""
COSINES = ("odd_cosine", "feature_cosine")
"""Gates on figures that reach down to -1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """How far each step may stray from what it was made from before the build stops."""

    export_max_abs: float = 0.0
    """Largest difference allowed between the exported part and the part in eager mode."""
    fuse_max_abs: float = 1e-5
    """Largest difference allowed between the fused and the exported part."""
    onnx_max_abs: float = 1e-4
    """Largest difference allowed between the fp32 ONNX graph and the exported part."""
    mask_iou: float | None = None
    """Smallest mean IoU of the masks that a reduced precision and fp32 both find; None takes 0.995
    for fp16 and bf16 and 0.98 for the others."""
    agreement: float = 0.95
    """Smallest F1 of the objects found against those that fp32 finds: lost objects count."""
    box_iou: float | None = None
    """Smallest mean IoU of the boxes of these objects; None, here and below, takes the precision's
    own, see ``samforge.measure.gates``."""
    score_shift: float | None = None
    """Largest mean difference of the scores of these objects."""
    absent_score_shift: float | None = None
    """Largest mean difference of the best score where fp32 finds nothing."""
    logit_shift: float | None = None
    """Largest mean difference of the logits of all queries, found or not."""
    presence_shift: float | None = None
    """Largest mean difference of the logit of whether a phrase is in the image."""
    cgf1_alike: float | None = None
    """Smallest cgF1 with what fp32 finds as the truth: no labels are needed."""
    cgf1_drop: float = 0.01
    """Largest loss of cgF1 against fp32 on labelled images."""
    odd_logit_shift: float | None = None
    """Largest mean difference of logits, of queries or of presence, for a picture with nothing to
    find: black, white, saturated, of one colour, noise."""
    odd_cosine: float | None = None
    """Smallest cosine of the features of such a picture with fp32's."""
    feature_cosine: float | None = None
    """Smallest cosine of a backbone's features with fp32's; None takes 0.999 for fp16 and bf16 and
    0.98 for the others."""
    channel_gain: float | None = None
    """Largest factor by which a channel of the features may have grown or shrunk."""
    click_iou: float | None = None
    """Smallest mean IoU of the masks that the same clicks give."""
    track_iou: float | None = None
    """Smallest temporal IoU of a track with fp32's."""
    j_and_f_drop: float = 0.01
    """Largest loss of J&F against fp32 on labelled videos."""
    switch_rise: float = 0.02
    """Largest number of identity switches beyond fp32's there, as a share of them."""
    weak_evidence: bool = False
    """Publish, and say so, where the gates hold and the pictures are too few to be sure of it."""

    def __post_init__(self) -> None:
        if not isinstance(self.weak_evidence, bool):
            raise SettingError(
                f"gates.weak_evidence wants true or false, got {self.weak_evidence!r}."
            )
        for gate in fields(self):
            if gate.name == "weak_evidence":
                continue
            value = getattr(self, gate.name)
            if value is None and gate.default is None:
                continue
            least = -1 if gate.name in COSINES else 0
            if not _is_number(value) or not value >= least:
                raise SettingError(
                    f"gates.{gate.name} wants a number from {least} up, got {value!r}."
                )
            if gate.name in SHARES and value > 1:
                raise SettingError(
                    f"gates.{gate.name} is {value:g}, and nothing reaches more than 1: a build "
                    f"with it could never publish. Give {least} to 1."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what a build makes."""

    model: str = "tiny"
    """A built-in model, a local checkpoint folder or a Hugging Face id."""
    reference: str = META
    """Whose computation the weights belong to and the bundle is held to, one of ``REFERENCES``."""
    image_size: int | None = None
    """Side of the square image in pixels, a multiple of the model's patch; None takes its own."""
    parts: tuple[str, ...] | None = None
    """Parts to build; None builds those that text and box prompts need, and the tracker's if it is
    wanted."""
    tracker: bool = False
    """Whether the model is loaded with its tracker, for clicks and for videos with memory."""
    target: str = TARGET_NAMES[0]
    """Runtime the bundle is for, one of ``TARGET_NAMES``."""
    precision: str = "fp32"
    """Number format of weights and activations, one of ``PRECISIONS``."""
    random_weights: bool = False
    """Draw the weights instead of loading them: tells size and speed, never meaning."""
    seed: int = 0
    """Seed of random weights and of example inputs."""
    tokenizer: Path | None = None
    """A tokenizer.json to use in place of the checkpoint's."""
    calibration: Calibration = field(default_factory=Calibration)
    """What int8 and fp8 measure ranges on."""
    quantization: Quantization = field(default_factory=Quantization)
    """Where and how int8 and fp8 quantize."""
    compute_capabilities: tuple[str, ...] = ()
    """GPU generations an engine is built for: ``89``, ``86``; empty takes the one at hand."""
    engine: Engine = field(default_factory=Engine)
    """How TensorRT builds engines."""
    gates: Gates = field(default_factory=Gates)
    """What must hold for the build to publish."""

    def __post_init__(self) -> None:
        _check_choice("reference", self.reference, REFERENCES)
        allowed = target_from_name(self.target).forms
        _check_choice("precision", self.precision, PRECISIONS)
        if self.precision not in allowed:
            raise SettingError(
                f"{self.target} takes {', '.join(allowed)}, not {self.precision}. Choose one of "
                "these, or another target."
            )
        _check_image_size(self.image_size)
        if not self.model:
            raise SettingError(
                "model is empty. Name a built-in model, a folder or a Hugging Face id."
            )
        _check_seed("seed", self.seed)
        if isinstance(self.parts, str) or (self.parts is not None and not self.parts):
            raise SettingError(f"parts wants at least one name in a tuple, got {self.parts!r}.")
        if self.parts is not None and len(set(self.parts)) != len(self.parts):
            raise SettingError(f"parts names one more than once: {', '.join(self.parts)}.")

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file: one key a field, gates in a ``[gates]`` table.

        A relative ``tokenizer`` or ``calibration.source`` is looked for next to the file.

        Raises:
            SettingError: The file cannot be read, or a key or value is not allowed.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise SettingError(f"The recipe {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            # ValueError: of TOML, of UTF-8, of integers too long to read, of a null in the path.
            raise SettingError(f"The recipe {path} is not valid TOML: {error}.") from error
        try:
            recipe = cls.from_dict(table)
        except SettingError as error:
            raise SettingError(f"The recipe {path} is not usable: {error}") from error
        source = recipe.calibration.source
        if source is not None:
            calibration = replace(recipe.calibration, source=path.parent / source)
            recipe = replace(recipe, calibration=calibration)
        if recipe.tokenizer is not None:
            recipe = replace(recipe, tokenizer=path.parent / recipe.tokenizer)
        return recipe

    @classmethod
    def from_dict(cls, table: Mapping[str, object]) -> Recipe:
        """Read a recipe from plain values, as ``to_dict`` or TOML give them.

        Raises:
            SettingError: A key or value is not allowed.
        """
        try:
            return value_from_json(cls, dict(table), complete=False)
        except StructureError as error:
            raise SettingError(str(error)) from error

    def to_dict(self) -> dict[str, Json]:
        """Every field as plain JSON values; ``from_dict`` gives back an equal recipe."""
        table = json_from_value(self)
        assert isinstance(table, dict)  # noqa: S101  # a dataclass always becomes a table
        return table


def _check_choice(setting: str, value: str, allowed: tuple[str, ...]) -> None:
    if problem := unknown_names([value], allowed):
        raise SettingError(f"{setting} is {problem}.")


def _check_seed(setting: str, seed: object) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SettingError(f"{setting} wants a whole number from 0 up, got {seed!r}.")
    _check_fits(setting, seed)


def _check_fits(setting: str, number: int) -> None:
    """Refuse here what the bundle's manifest cannot hold: it is written after hours of work."""
    if number > LARGEST:
        raise SettingError(
            f"{setting} wants a whole number below 2^63, got one of {number.bit_length()} bits."
        )


def _check_image_size(size: int | None) -> None:
    # What it must be a multiple of is the model's to say.
    if size is None:
        return
    if not isinstance(size, int) or isinstance(size, bool):
        raise SettingError(f"image_size wants a whole number of pixels, got {size!r}.")
    if size < 1:
        raise SettingError(f"image_size wants a positive number of pixels, got {size}.")
    _check_fits("image_size", size)
    if size > LARGEST_IMAGE:
        raise SettingError(
            f"image_size wants at most {LARGEST_IMAGE} pixels, got {size:.0e}: its attention would "
            "fit no memory."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
