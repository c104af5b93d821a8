"""What a bundle's report shows, as plain values: whoever builds a bundle fills it in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samforge.core.images import RgbImage
    from samforge.core.manifest import StepResult
    from samforge.measure.predictions import PredictionFidelity
    from samforge.measure.segmentation import SegmenterAccuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """One gate and what was reached."""

    name: str
    """What it limits: ``mask IoU against fp32``."""
    limit: float
    """The gate."""
    reached: float
    """The figure; the worst of them where there are several."""
    at_least: bool
    """Whether the figure has to reach the limit, or must not exceed it."""
    where: str = ""
    """Where the worst figure stands: ``vision, fpn_2``."""
    interval: tuple[float, float] | None = None
    """Where the figure would lie on other pictures; None where it is of the worst of all."""

    @property
    def holds(self) -> bool:
        """Whether the gate held; never for NaN."""
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRow:
    """One part and what its files take."""

    name: str
    """``vision``."""
    artifact: str
    """The file that is loaded, relative to the bundle."""
    bytes: int
    """Size with side files."""
    reference_bytes: int | None = None
    """Size of the same in fp32, where it was made."""
    precisions: Mapping[str, int] | None = None
    """How many operators compute in which number format, as read back from what was built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRow:
    """What quantizing one group of layers alone costs."""

    part: str
    """Its part."""
    group: str
    """``layers.3.attention``."""
    share: float
    """Of the part's multiplications, 0 to 1."""
    sqnr_db: float
    """Of the worst output."""
    damage: float
    """What the choice was made by; 0 is none."""
    kept: bool = False
    """Whether it stays in half."""
    reason: str = ""
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """Fidelity behind one layer."""

    part: str
    """Its part."""
    path: str
    """Module path."""
    sqnr_db: float
    """Signal to noise ratio in dB; infinite when it is exact."""
    kept: bool = False
    """Whether the layer stays in half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionRow:
    """What one fusion did to one part."""

    part: str
    """The part."""
    name: str
    """``parallel-linears``."""
    fired: int
    """Places that were rewritten."""
    left: tuple[str, ...] = ()
    """Candidates that stayed, each with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountRow:
    """What one step made of one part's weights."""

    part: str
    """The part."""
    step: str
    """``export``, ``fuse``, …"""
    weights: int
    """Tensors that were looked up in what the step made."""
    forms: Mapping[str, int]
    """How many were found equal, moved, cast, …, or changed by which fusion."""

    @property
    def words(self) -> str:
        """The forms, the most frequent first: ``155 equal, 87 moved``."""
        ranked = sorted(self.forms.items(), key=lambda item: -item[1])
        return "; ".join(f"{count} {form}" for form, count in ranked)


def account_rows(steps: Iterable[StepResult]) -> Iterator[AccountRow]:
    """The accounts of weights that steps left in their figures."""
    for step in steps:
        for row in step.fidelity:
            if "weights" in row and "forms" in row:
                yield AccountRow(
                    part=step.part or "",
                    step=step.name,
                    weights=int(row["weights"]),
                    forms={str(form): int(count) for form, count in row["forms"].items()},
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRow:
    """What became of one part in TensorRT."""

    part: str
    """``vision``."""
    form: str
    """Form of attention: ``fused``, ``unfused``, …"""
    build_s: float
    """Seconds of parsing and building."""
    bytes: int
    """Size of the engine."""
    products: Mapping[str, int]
    """Matrix products by number format."""
    convolutions: Mapping[str, int]
    """Convolutions by number format."""
    attentions: int | None
    """Fused attentions; None where the engine could not be read."""
    source: str = ""
    """What the counts were read from."""
    version: str = ""
    """Of the library."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OverlayPair:
    """One prompt answered twice: by the reference and by this bundle."""

    prompt: str
    """What was asked: ``red circle``."""
    reference_rgb: RgbImage
    """(H, W, 3), the reference's answer drawn over the image."""
    rgb: RgbImage
    """The same of this bundle."""
    note: str = ""
    """``3 objects, mask IoU 0.995``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReportData:
    """Everything on the page. What is empty or None has no section."""

    model: str
    """Name of the checkpoint."""
    family: str
    """Architecture."""
    reference: str
    """Whose computation it is held to: ``meta`` or ``transformers``."""
    target: str
    """Runtime."""
    precision: str
    """Number format."""
    image_size: int
    """Side of the model's square image, pixels."""
    created: str
    """When, in UTC, as in the manifest."""
    samforge: str
    """Version that built it."""
    steps: tuple[StepResult, ...]
    """In order."""
    gates: tuple[GateRow, ...]
    """All that were checked."""
    parts: tuple[PartRow, ...]
    """In order."""
    versions: Mapping[str, str]
    """Python and packages."""
    weights_license: str
    """Name of the licence of the weights, or of the file in the bundle that holds it."""
    license_text: str = ""
    """The licence itself."""
    random_weights: bool = False
    """Whether the weights are drawn: figures of meaning are then left out by the page."""
    fidelity: PredictionFidelity | None = None
    """This bundle's answers against fp32's."""
    fidelity_data: str = ""
    """What they were asked about: ``200 drawn scenes``."""
    accuracy: SegmenterAccuracy | None = None
    """This bundle on labelled images."""
    reference_accuracy: SegmenterAccuracy | None = None
    """fp32 on the same."""
    reference_name: str = "fp32"
    """What fp32 was run by, where times are compared: ``fp32 in PyTorch``."""
    layers: tuple[LayerRow, ...] = ()
    """In the order of the graph, part by part."""
    groups: tuple[GroupRow, ...] = ()
    """The sensitivity table."""
    fusions: tuple[FusionRow, ...] = ()
    """What the fusions did."""
    engines: tuple[EngineRow, ...] = ()
    """What TensorRT made of each part, for its two targets."""
    overlays: tuple[OverlayPair, ...] = ()
    """A few prompts."""
    prompts: tuple[str, ...] = ()
    """Phrases that calibration and the comparison asked."""
    recipe: Mapping[str, object] | None = None
    """What was asked for, as ``Recipe.to_dict`` gives it."""
    notes: tuple[str, ...] = ()
    """What a reader has to know: a slower way taken, a check that could not run."""

    @property
    def holds(self) -> bool:
        """Whether every gate held."""
        return all(gate.holds for gate in self.gates)
