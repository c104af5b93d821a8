"""What Label Studio speaks with its machine learning backends.

The wire format: HumanSignal/label-studio-ml-backend, ``label_studio_ml/api.py``; what a smart tool
sends as context and reads as results: its examples ``segment_anything_2_image`` and
``grounding_sam``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from samforge.apps.serve.bodies import Share
from samforge.apps.serve.dialects.common import Loose, found_in
from samforge.apps.serve.dialects.labelling import Interface, interface_from_config
from samforge.apps.serve.dialects.sources import sources_of
from samforge.apps.serve.native import as_json, beside
from samforge.apps.serve.openapi import PROBLEMS, body_schema
from samforge.apps.serve.reading import body_of, picture_from_data
from samforge.core.detections import Detections
from samforge.core.errors import Overloaded, PromptError
from samforge.formats import brush_rle, rings_from_crop
from samforge.runtime import ObjectPrompt
from samforge.serving import Ask, Limits, Model, Picture, Service, check_at_most

MOST_TASKS = 64
_MOST_PIXELS = 1 << 31


class Parameters(Loose):
    """What comes with tasks."""

    context: dict[str, Any] | None = Field(
        default=None, description="What a smart tool drew just now."
    )
    threshold: Share = 0.5


class PredictBody(Loose):
    """Tasks to answer."""

    tasks: list[dict[str, Any]] = Field(max_length=MOST_TASKS)
    label_config: str = Field(description="The project's labelling interface, XML.")
    params: Parameters | None = None


class SetupBody(Loose):
    """A project that begins to use this backend."""

    project: str | None = None
    label_schema: str | None = Field(default=None, alias="schema")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """What is asked about one task, and under which label the answer goes."""

    ask: Ask
    label: str | None = None
    """None: each detection's phrase is its label."""


def labelstudio_router(service: Service) -> APIRouter:
    """``/labelstudio``: give its URL to a project as that of its model."""
    router = APIRouter(prefix="/labelstudio", responses=PROBLEMS, tags=["labelstudio"])

    @router.get("/", operation_id="labelstudio_root")
    @router.get("/health", operation_id="labelstudio_health")
    async def health() -> Response:
        """Whether predictions can be asked for."""
        if not service.is_ready():
            raise Overloaded("No bundle is ready yet, or the server ends.", retry_after_s=5.0)
        return as_json({"status": "UP", "model_class": "samforge"})

    @router.post(
        "/setup",
        openapi_extra=body_schema(SetupBody, files=False),
        operation_id="labelstudio_setup",
    )
    async def setup(request: Request) -> Response:
        """Which bundle answers."""
        body, _ = await body_of(request, SetupBody)
        if body.label_schema:
            await asyncio.to_thread(interface_from_config, body.label_schema)
        return as_json({"model_version": _version(service.model())})

    @router.post(
        "/webhook",
        status_code=201,
        openapi_extra=body_schema(Loose, files=False),
        operation_id="labelstudio_webhook",
    )
    async def webhook(request: Request) -> Response:
        """Annotations change: nothing is learned from them here."""
        await body_of(request, Loose)
        return as_json({"status": "ok", "result": None}, 201)

    @router.post(
        "/predict",
        openapi_extra=body_schema(PredictBody, files=False),
        operation_id="labelstudio_predict",
    )
    async def predict(request: Request) -> Response:
        """Find the project's labels in pictures, or what a smart tool points at."""
        body, _ = await body_of(request, PredictBody)
        interface = await asyncio.to_thread(interface_from_config, body.label_config)
        params = body.params or Parameters()
        model = service.model()
        results, answers = [], []
        for task in body.tasks:
            question = _question(interface, params, service.limits)
            picture = await _picture(request, interface, task)
            found = await found_in(service, request, model, picture, question.ask)
            answers.append(found)
            rows = await beside([found], _rows, interface, found, question)
            scores = [float(score) for score in found.scores]
            results.append(
                {
                    "result": rows,
                    "score": min(scores, default=0.0),  # the least sure is reviewed first
                    "model_version": _version(model),
                }
            )
        return await beside(answers, as_json, {"results": results})

    return router


def _version(model: Model) -> str:
    return f"{model.name} {model.digest[:12]}"


async def _picture(request: Request, interface: Interface, task: dict[str, Any]) -> Picture:
    """The picture of a task.

    Raises:
        ImageError: The server may not fetch it, or it is none.
        PromptError: The task has none.
    """
    data = task.get("data")
    where = data.get(interface.variable) if isinstance(data, dict) else None
    if not isinstance(where, str) or not where:
        raise PromptError(
            f"The task has no data.{interface.variable}, where the interface has its picture. "
            "Give a URL or a data URI there."
        )
    if where.startswith("data:"):
        return await picture_from_data(where)
    return await picture_from_data(await sources_of(request).fetch(where))


def _question(interface: Interface, params: Parameters, limits: Limits) -> _Question:
    """Without context the labels are the phrases; else what was drawn or written is asked.

    Raises:
        PromptError: The context holds nothing that can be asked.
        TooLarge: It holds more regions than points may be.
    """
    drawn = (params.context or {}).get("result") or []
    if not drawn:
        return _Question(ask=Ask(text=interface.labels, threshold=params.threshold))
    if not isinstance(drawn, list) or not all(isinstance(one, dict) for one in drawn):
        raise PromptError("context.result is a list of regions. Give those that were drawn.")
    check_at_most("regions", len(drawn), limits.points)
    written = _written(drawn)
    if written:
        label = None if set(written) <= set(interface.labels) else interface.labels[0]
        return _Question(ask=Ask(text=written, threshold=params.threshold), label=label)
    prompt, label = _shown(drawn)
    return _Question(ask=Ask(objects=(prompt,)), label=label or interface.labels[0])


def _written(drawn: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Phrases of text areas; commas part several."""
    texts: list[str] = []
    for region in drawn:
        text = _value(region).get("text")
        texts += [text] if isinstance(text, str) else text if isinstance(text, list) else []
    phrases = [one.strip() for text in texts if isinstance(text, str) for one in text.split(",")]
    return tuple(dict.fromkeys(one for one in phrases if one))


def _value(region: dict[str, Any]) -> dict[str, Any]:
    value = region.get("value")
    return value if isinstance(value, dict) else {}


def _shown(drawn: Sequence[dict[str, Any]]) -> tuple[ObjectPrompt, str | None]:
    """One object by key points and a rectangle, and the label that was chosen for it."""
    points, labels, box, label = [], [], None, None
    for region in drawn:
        value, kind = _value(region), str(region.get("type", "")).lower()
        left, top = _pixels(region, "x"), _pixels(region, "y")
        chosen = value.get(kind)
        label = str(chosen[0]) if isinstance(chosen, list) and chosen else label
        if kind.startswith("keypoint"):
            points.append([left, top])
            labels.append(int(bool(region.get("is_positive", 1))))
        elif kind.startswith("rectangle"):
            width, height = _pixels(region, "width"), _pixels(region, "height")
            box = [left, top, left + width, top + height]
        else:
            raise PromptError(
                f"The context holds a region of type {kind[:40]!r}. Key points, a rectangle and "
                "text are understood."
            )
    prompt = ObjectPrompt(points=points or None, labels=labels or None, box_xyxy=box)
    return prompt, label


def _pixels(region: dict[str, Any], name: str) -> float:
    """A coordinate in pixels: Label Studio gives per cent of the picture's side."""
    side = _number(region.get("original_width" if name in ("x", "width") else "original_height"))
    share = _number(_value(region).get(name))
    if side is None or share is None or side <= 0:
        raise PromptError(
            f"A region of the context lacks its {name} or the picture's size. Regions have value.x "
            "and value.y, per cent, and original_width and original_height, pixels above 0."
        )
    return share * side / 100


def _number(given: Any) -> float | None:
    """A finite number that a picture's sides can have; None of anything else."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    return float(given) if abs(given) <= _MOST_PIXELS else None  # which NaN is not


def _rows(interface: Interface, found: Detections, question: _Question) -> list[dict[str, Any]]:
    """A region for each mask; as polygons, one for each of its parts."""
    height, width = found.size_hw
    rows: list[dict[str, Any]] = []
    for index in range(len(found)):
        crop, place = found.masks.crop(index)
        label = [question.label or found.labels[index]]
        if interface.kind == "brushlabels":
            rle = brush_rle(crop, place, found.size_hw)
            values: list[dict[str, Any]] = [{"format": "rle", "rle": rle}]
        else:
            values = [
                {"points": (ring * [100 / width, 100 / height]).tolist(), "closed": True}
                for ring in rings_from_crop(crop, place)
            ]
        rows += [
            {
                "id": secrets.token_hex(5),
                "type": interface.kind,
                "from_name": interface.control,
                "to_name": interface.image,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, interface.kind: label},
                "score": float(found.scores[index]),
                "readonly": False,
            }
            for value in values
        ]
    return rows
