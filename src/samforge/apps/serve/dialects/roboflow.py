"""Roboflow's routes of SAM 3, whose answers ``supervision.Detections.from_sam3`` reads.

The wire format: roboflow/inference, ``inference/core/entities`` (``requests/sam3.py``,
``requests/sam2.py`` and the same under ``responses``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, FiniteFloat
from starlette.responses import Response

from samforge.apps.serve.bodies import Label, OfBoxes, OfObjects, OfPoints, Share, at_most
from samforge.apps.serve.context import client_of
from samforge.apps.serve.dialects.common import Loose, found_in
from samforge.apps.serve.dialects.sources import sources_of
from samforge.apps.serve.native import as_json, beside
from samforge.apps.serve.openapi import PROBLEMS, body_schema
from samforge.apps.serve.reading import body_of, picture_from_data
from samforge.apps.serve.waiting import answered
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SettingError
from samforge.formats import pixel_rings_from_crop
from samforge.runtime import ObjectPrompt
from samforge.serving import Ask, Picture, Service

_ONLY_ANSWER = ("polygon", "json", "rle")


class Image(Loose):
    """A picture as its file in base64, or by its URL where the server may fetch that."""

    type: Literal["base64", "url"] = "base64"
    value: str


class Box(Loose):
    """A box by its left top corner and size, or by two corners, pixels."""

    x: FiniteFloat | None = None
    y: FiniteFloat | None = None
    width: FiniteFloat | None = None
    height: FiniteFloat | None = None
    x0: FiniteFloat | None = None
    y0: FiniteFloat | None = None
    x1: FiniteFloat | None = None
    y1: FiniteFloat | None = None

    def xyxy(self, *, middle: bool = False) -> list[float]:
        """Left, top, right, bottom.

        Args:
            middle: Whether x and y, where it has them, are its middle and not its left top corner.

        Raises:
            PromptError: It is neither kind.
        """
        corners = [self.x0, self.y0, self.x1, self.y1]
        given = [one for one in corners if one is not None]
        if len(given) == 4:
            return given
        x, y, width, height = self.x, self.y, self.width, self.height
        if x is None or y is None or width is None or height is None:
            raise PromptError("A box has x, y, width and height, or x0, y0, x1 and y1.")
        if middle:
            x, y = x - width / 2, y - height / 2
        return [x, y, x + width, y + height]


class ConceptPrompt(Loose):
    """A phrase, boxes that show examples, or both."""

    type: str | None = None
    text: str | None = None
    output_prob_thresh: Share | None = None
    boxes: Annotated[list[Box] | None, OfBoxes] = None
    box_labels: Annotated[list[Label] | None, OfBoxes] = None


class ConceptBody(Loose):
    """Find everything that prompts name."""

    image: Image
    prompts: Annotated[list[ConceptPrompt], at_most("prompts", "phrases")] = Field(min_length=1)
    output_prob_thresh: Share = 0.5
    format: str = "polygon"
    nms_iou_threshold: Share | None = None
    model_id: str | None = Field(
        default=None, description="A bundle's name; others mean the first."
    )


class EmbedBody(Loose):
    """Encode a picture ahead of questions about it."""

    image: Image
    image_id: str | None = None


class Point(Loose):
    """A click."""

    x: FiniteFloat
    y: FiniteFloat
    positive: bool = True


class VisualPrompt(Loose):
    """One object by clicks, by a box around it, or by both."""

    box: Box | None = Field(default=None, description="Here x and y are the middle of the box.")
    points: Annotated[list[Point] | None, OfPoints] = None


class PromptSet(Loose):
    """Objects."""

    prompts: Annotated[list[VisualPrompt] | None, OfObjects] = None


class VisualBody(Loose):
    """Segment objects that clicks show."""

    image: Image
    prompts: Annotated[PromptSet | list[VisualPrompt], OfObjects]
    format: str = "json"
    multimask_output: bool = True


def roboflow_router(service: Service) -> APIRouter:
    """``/roboflow``: give its URL to Roboflow's client as ``api_url``."""
    router = APIRouter(prefix="/roboflow", responses=PROBLEMS, tags=["roboflow"])

    @router.post(
        "/sam3/concept_segment",
        openapi_extra=body_schema(ConceptBody, files=False),
        operation_id="roboflow_concept_segment",
    )
    async def concept(request: Request) -> Response:
        """Find everything that phrases and examples name."""
        start = time.perf_counter()
        body, _ = await body_of(request, ConceptBody)
        _check_format(body.format)
        if body.nms_iou_threshold is not None:
            raise SettingError(
                "nms_iou_threshold asks to drop objects of one prompt for those of another, which "
                "this server does not do. Leave it out."
            )
        picture = await _picture(request, body.image)
        found = [await _concept(service, request, picture, body, prompt) for prompt in body.prompts]
        return await beside(found, _concepts_written, found, body, start)

    @router.post(
        "/sam3/embed_image",
        openapi_extra=body_schema(EmbedBody, files=False),
        operation_id="roboflow_embed_image",
    )
    async def embed(request: Request) -> Response:
        """Encode a picture: later questions about the same file find it encoded."""
        start = time.perf_counter()
        body, _ = await body_of(request, EmbedBody)
        picture = await _picture(request, body.image)
        ticket = service.encode(service.model(), picture, client=client_of(request))
        await answered(request, ticket)
        number = body.image_id or picture.key
        return as_json({"image_id": number, "time": time.perf_counter() - start})

    @router.post(
        "/sam3/visual_segment",
        openapi_extra=body_schema(VisualBody, files=False),
        operation_id="roboflow_visual_segment",
    )
    async def visual(request: Request) -> Response:
        """Segment each object that clicks or a box show."""
        start = time.perf_counter()
        body, _ = await body_of(request, VisualBody)
        _check_format(body.format)
        given = body.prompts if isinstance(body.prompts, list) else body.prompts.prompts or []
        if not given:
            raise PromptError("There is no prompt. Give points, or a box, of each object.")
        picture = await _picture(request, body.image)
        ask = Ask(objects=tuple(_object(one) for one in given))
        found = await found_in(service, request, service.model(), picture, ask)
        return await beside([found], _written, found, body.format, start)

    return router


def _check_format(given: str) -> None:
    if given not in _ONLY_ANSWER:
        raise SettingError(f"format is {given[:40]!r}. Give one of {', '.join(_ONLY_ANSWER)}.")


async def _picture(request: Request, image: Image) -> Picture:
    if image.type == "url":
        return await picture_from_data(await sources_of(request).fetch(image.value))
    return await picture_from_data(image.value)


async def _concept(
    service: Service, request: Request, picture: Picture, body: ConceptBody, prompt: ConceptPrompt
) -> Detections:
    boxes = [one.xyxy() for one in prompt.boxes or ()]
    ask = Ask(
        text=(prompt.text,) if prompt.text else None,
        boxes_xyxy=boxes or None,
        box_labels=prompt.box_labels if boxes else None,
        threshold=(
            body.output_prob_thresh
            if prompt.output_prob_thresh is None
            else prompt.output_prob_thresh
        ),
    )
    model = service.models.get(body.model_id or "", service.model())
    return await found_in(service, request, model, picture, ask)


def _concepts_written(found: Sequence[Detections], body: ConceptBody, start: float) -> Response:
    """An answer for each prompt."""
    results = [
        {
            "prompt_index": index,
            "echo": _echo(index, prompt),
            "predictions": _predictions(one, body.format),
        }
        for index, (one, prompt) in enumerate(zip(found, body.prompts, strict=True))
    ]
    return as_json({"prompt_results": results, "time": time.perf_counter() - start})


def _written(found: Detections, kind: str, start: float) -> Response:
    """An answer for all objects."""
    predictions = _predictions(found, kind)
    return as_json({"predictions": predictions, "time": time.perf_counter() - start})


def _echo(index: int, prompt: ConceptPrompt) -> dict[str, Any]:
    return {
        "prompt_index": index,
        "type": prompt.type or ("visual" if prompt.boxes else "text"),
        "text": prompt.text,
        "num_boxes": len(prompt.boxes or ()),
    }


def _object(prompt: VisualPrompt) -> ObjectPrompt:
    points = prompt.points or []
    box = None
    if prompt.box is not None:
        # Here a box is given by its middle (``Sam2PromptSet.to_sam2_inputs``).
        box = prompt.box.xyxy(middle=True)
    return ObjectPrompt(
        points=[[one.x, one.y] for one in points] or None,
        labels=[int(one.positive) for one in points] or None,
        box_xyxy=box,
    )


def _predictions(found: Detections, kind: str) -> list[dict[str, Any]]:
    rows = []
    for index in range(len(found)):
        if kind == "rle":
            masks: Any = found.masks.rle(index)
        else:
            masks = [ring.tolist() for ring in pixel_rings_from_crop(*found.masks.crop(index))]
        rows.append(
            {
                "masks": masks,
                "confidence": float(found.scores[index]),
                "format": "rle" if kind == "rle" else "polygon",
            }
        )
    return rows
