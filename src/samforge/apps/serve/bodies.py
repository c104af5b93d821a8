"""What the native API takes and gives, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationInfo,
    model_validator,
)

from samforge.core.errors import TooLarge
from samforge.serving import Limits, check_at_most

_MOST_NAMES = 64
"""Fields of one object: each that is unknown would be told of."""


def at_most(what: str, limit: str) -> BeforeValidator:
    """Counts a list before anything in it is read; the context of a validation is the limits.

    Args:
        what: Messages call its entries that.
        limit: Name of the limit that holds.
    """

    def check(given: Any, info: ValidationInfo) -> Any:
        if isinstance(given, list):
            limits = info.context if isinstance(info.context, Limits) else Limits()
            check_at_most(what, len(given), getattr(limits, limit))
        return given

    return BeforeValidator(check)


Point = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
Box = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
Label = Annotated[int, Field(ge=0, le=1)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Phrase = Annotated[str, Field(min_length=1, max_length=512)]
OfPhrases = at_most("phrases", "phrases")
OfBoxes = at_most("boxes", "boxes")
OfObjects = at_most("objects", "boxes")
OfPoints = at_most("points", "points")


class Strict(BaseModel):
    """A body with the fields that it has, and no others."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_names(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > _MOST_NAMES:
            raise TooLarge(
                f"An object has {len(given):,} fields, and {', '.join(cls.model_fields)} are known."
            )
        return given


class ObjectBody(Strict):
    """One object, shown by points or by a box around it."""

    points: Annotated[list[Point] | None, OfPoints] = Field(
        None, description="x and y of each, pixels."
    )
    labels: Annotated[list[Label] | None, OfPoints] = Field(
        None, description="1 on the object, 0 beside it."
    )
    box_xyxy: Box | None = Field(None, description="Left, top, right, bottom, pixels.")


class Rle(BaseModel):
    """COCO's run lengths of a mask."""

    size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    counts: str | list[int]


class EarlierMask(BaseModel):
    """A mask that is known of an object."""

    rle: Rle


class AskBody(Strict):
    """What to find, or to segment, and how to answer."""

    model: str | None = Field(None, description="A bundle's name; the server's first if left out.")
    text: Annotated[Phrase | list[Phrase] | None, OfPhrases] = Field(
        None, description="Noun phrases to find."
    )
    boxes_xyxy: Annotated[list[Box] | None, OfBoxes] = Field(
        None, description="Examples of what to find: left, top, right, bottom, pixels."
    )
    box_labels: Annotated[list[Label] | None, OfBoxes] = Field(
        None, description="1 to find it, 0 to leave it out."
    )
    objects: Annotated[list[ObjectBody] | None, OfObjects] = Field(
        None, description="Clicks: one entry an object."
    )
    earlier: Annotated[str | list[EarlierMask] | None, OfObjects] = Field(
        None,
        description="What the clicks correct, a row for each object: an answer_id, or masks.",
    )
    candidates: bool = Field(False, description="Give three masks of each object to choose from.")
    threshold: Annotated[Share | list[Share], OfPhrases] = Field(
        0.5, description="Detections score above it; one, or one for each phrase."
    )
    mask_threshold: Share = Field(0.5, description="Pixels of a mask are likelier than it.")
    hole_area: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Holes of up to so many cells of the model's mask are filled in what clicks "
        "show; 0 keeps them. Meta's predictor fills 256.",
    )
    max_detections: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The best so many; the server's most if left out."
    )
    masks: Literal["rle", "polygons", "png", "none"] = Field(
        "rle", description="How masks are given."
    )
    seconds: Annotated[FiniteFloat, Field(gt=0)] | None = Field(
        None, description="Time the answer is worth waiting for."
    )


class SegmentBody(AskBody):
    """A picture, or the id of one that was sent before, and what is asked of it."""

    image: str | None = Field(
        None, description="The picture's file as base64, or as a data URI. No URL is fetched."
    )
    image_id: str | None = Field(None, max_length=64, description="What POST /v1/images gave.")


class ImageBody(Strict):
    """A picture to keep."""

    image: str = Field(description="The picture's file as base64, or as a data URI.")
    model: str | None = Field(None, description="Which bundle encodes it.")
    seconds: Annotated[FiniteFloat, Field(gt=0)] | None = None


class PromptBody(ObjectBody):
    """An object that is shown on a frame of a video."""

    frame: Annotated[int, Field(ge=0)] = Field(
        0, description="Number among the frames that are looked at, from 0."
    )
    label: Annotated[str, Field(min_length=1, max_length=128)] = "object"


class VideoBody(Strict):
    """What to follow through a video."""

    model: str | None = Field(None, description="A bundle's name; the server's first if left out.")
    text: Annotated[Phrase | list[Phrase] | None, OfPhrases] = Field(
        None, description="Noun phrases to look for."
    )
    prompts: Annotated[list[PromptBody] | None, OfObjects] = Field(
        None, description="Objects that are shown."
    )
    threshold: Share = Field(0.5, description="Of each frame, where there is no tracker.")
    every: Annotated[int, Field(ge=1)] = Field(1, description="Only every so many frames.")
    max_frames: Annotated[int, Field(ge=1)] | None = Field(None, description="End after so many.")
    masks: Literal["rle", "polygons", "png", "none"] = "rle"


class Timing(BaseModel):
    """Where the time went, milliseconds."""

    queue: float = Field(description="Waiting for others.")
    decode: float = Field(description="0 where the encoding was there.")
    encode: float = Field(description="0 where the encoding was there.")
    detect: float
    pack: float
    total: float


class BundleBody(BaseModel):
    """Which bundle answered."""

    name: str
    digest: str = Field(description="SHA-256 that covers all of it.")
    verified: bool = Field(description="Whether it held its proof on this machine.")


class DetectionBody(BaseModel):
    """One thing that was found."""

    label: str
    score: float
    box_xyxy: list[float]
    area: int = Field(description="Pixels of the mask.")
    id: int | None = Field(None, description="The same object through a video.")
    rle: dict[str, Any] | None = None
    polygons: list[dict[str, Any]] | None = None
    png: dict[str, Any] | None = None


class SegmentAnswer(BaseModel):
    """What was found in a picture."""

    image_id: str
    answer_id: str | None = Field(None, description="Of clicks: what a later call corrects.")
    size_hw: list[int]
    detections: list[DetectionBody]
    best_scores: dict[str, float] = Field(
        description="Best score of each phrase, found or not: how far an empty answer was off."
    )
    cut_off: int = Field(description="How many more there were.")
    warnings: list[str] = Field(description="Words that the model does not know, or not read.")
    encoded: bool = Field(description="Whether the picture had to be encoded for this request.")
    timings_ms: Timing
    bundle: BundleBody


class ImageAnswer(BaseModel):
    """A picture that is kept."""

    image_id: str
    size_hw: list[int]
    encoded: bool
    timings_ms: Timing
    bundle: BundleBody


class ModelBody(BaseModel):
    """A bundle and what it can do."""

    name: str
    state: str
    digest: str
    family: str
    model: str
    target: str
    precision: str
    image_size: int
    prompts: list[str] = Field(description="Of: text, boxes, points, video.")
    processors: list[str]
    verdict: dict[str, Any]
    error: str | None = None


class ModelsAnswer(BaseModel):
    """All bundles of the server."""

    models: list[ModelBody]
    limits: dict[str, float]
