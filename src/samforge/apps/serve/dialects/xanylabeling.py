"""What X-AnyLabeling's remote server speaks, so that its client finds samforge in its place.

The wire format: CVHub520/X-AnyLabeling-Server, ``app/api`` and ``app/schemas``; what the client
reads of it: CVHub520/X-AnyLabeling, ``anylabeling/services/auto_labeling/remote_server.py``.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import Field, FiniteFloat, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from samforge.apps.serve.bodies import OfPoints, Share
from samforge.apps.serve.dialects.common import Loose, found_in
from samforge.apps.serve.native import as_json, beside
from samforge.apps.serve.openapi import PROBLEMS, body_schema
from samforge.apps.serve.problems import Refused, problem_from_error, request_id_of
from samforge.apps.serve.reading import body_of, picture_from_data
from samforge.core.capabilities import BOXES, POINTS
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SamforgeError
from samforge.formats import rings_from_crop
from samforge.runtime import ObjectPrompt
from samforge.serving import Ask, Model, Service, State

UNNAMED = "AUTOLABEL_OBJECT"
"""The client asks its user for the label of a shape that is called so."""
_TEXT = ("edit_text", "button_send")
_BOXES = ("add_pos_rect", "add_neg_rect", "button_run_rect")
_POINTS = ("button_add_point", "button_remove_point")
_END = ("button_clear", "button_finish_object", "input_conf")
_VALUES = {
    "edit_conf": 0.25,
    "mask_fineness_slider": 10,
    "mask_fineness_value_label": None,
    "toggle_preserve_existing_annotations": True,
}


class Mark(Loose):
    """Something that the user pointed at."""

    type: str
    data: list[FiniteFloat] = Field(
        max_length=8, description="A point's x, y; a rectangle's x1, y1, x2, y2."
    )
    label: Literal[0, 1] = 1


class Parameters(Loose):
    """Settings of a prediction."""

    conf_threshold: Share = 0.25
    epsilon_factor: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.001
    text_prompt: str = Field(default="", description="Phrases, parted by commas or by full stops.")
    marks: Annotated[list[Mark], OfPoints] = Field(default_factory=list)
    show_boxes: bool = False
    show_masks: bool = True


class PredictBody(Loose):
    """A picture and what to find in it."""

    model: str = Field(description="A bundle's name.")
    image: str = Field(description="The picture's file as base64, or as a data URI.")
    params: Parameters = Field(default_factory=Parameters)


class ErrorDetail(Loose):
    """What went wrong."""

    code: str
    message: str


class ErrorEnvelope(Loose):
    """An answer that is none."""

    success: Literal[False] = False
    error: ErrorDetail


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": one["description"], "model": ErrorEnvelope}
    for status, one in PROBLEMS.items()
}


class _Enveloped(APIRoute):
    """Puts errors into the envelope of this dialect; the status stays, because clients read it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except (SamforgeError, Refused, ValidationError, HTTPException) as error:
                return _failed(request, error)
            except RequestValidationError as error:
                return _failed(request, error)

        return handled


def _failed(request: Request, error: Exception) -> Response:
    request.scope["samforge.error"] = error
    problem = problem_from_error(error, request_id_of(request))
    words = json.loads(bytes(problem.body))
    code = words["title"].upper().replace(" ", "_")
    envelope = {"success": False, "error": {"code": code, "message": words["detail"]}}
    answer = as_json(envelope, problem.status_code)
    if "retry-after" in problem.headers:
        answer.headers["Retry-After"] = problem.headers["retry-after"]
    return answer


def xanylabeling_router(service: Service) -> APIRouter:
    """``/xanylabeling``: give its URL to the client as that of the server."""
    router = APIRouter(
        prefix="/xanylabeling", responses=_ERRORS, tags=["xanylabeling"], route_class=_Enveloped
    )

    @router.get("/health", operation_id="xanylabeling_health")
    async def health() -> Response:
        """How many bundles are ready."""
        ready = sum(model.state is State.READY for model in service.models.values())
        now = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
        status = "healthy" if service.is_ready() else "unhealthy"
        return as_json({"status": status, "models_loaded": ready, "timestamp": now})

    @router.get("/v1/models", operation_id="xanylabeling_models")
    async def models() -> Response:
        """Bundles, and which controls the client shows for each."""
        return as_json({"success": True, "data": {n: _shown(m) for n, m in service.models.items()}})

    @router.get("/v1/models/{model_id}/info", operation_id="xanylabeling_model")
    async def info(model_id: str) -> Response:
        """One bundle."""
        data = {"model_id": model_id, **_shown(service.model(model_id))}
        return as_json({"success": True, "data": data})

    @router.post(
        "/v1/predict",
        openapi_extra=body_schema(PredictBody, files=False),
        operation_id="xanylabeling_predict",
    )
    async def predict(request: Request) -> Response:
        """Find what phrases or rectangles name, or segment what points show."""
        body, _ = await body_of(request, PredictBody)
        model = service.model(body.model)
        picture = await picture_from_data(body.image)
        ask = _ask(body.params)
        found = await found_in(service, request, model, picture, ask)
        return await beside([found], _written, found, body.params, named=bool(ask.text))

    return router


def _shown(model: Model) -> dict[str, Any]:
    boxes, points = BOXES.among(model.parts), POINTS.among(model.parts)
    names = (*_TEXT, *(_BOXES if boxes else ()), *(_POINTS if points else ()), *_END)
    widgets = [{"name": name, "value": None} for name in names]
    widgets += [{"name": name, "value": value} for name, value in _VALUES.items()]
    return {
        "display_name": f"samforge {model.name}",
        "batch_processing_mode": "text_prompt",
        "widgets": widgets,
        "params": {"conf_threshold": 0.25, "epsilon_factor": 0.001},
        "digest": model.digest,
    }


def _ask(params: Parameters) -> Ask:
    """Points show one object, rectangles examples of what to find; else phrases are asked for.

    Raises:
        PromptError: There is nothing to find, or a mark is not usable.
    """
    points = [one for one in params.marks if one.type == "point"]
    boxes = [one for one in params.marks if one.type == "rectangle"]
    others = sorted({one.type for one in params.marks} - {"point", "rectangle"})
    if others:
        raise PromptError(f"There are marks of {', '.join(others)}. Give points and rectangles.")
    for one, count in ((one, 2 if one.type == "point" else 4) for one in params.marks):
        if len(one.data) != count:
            raise PromptError(f"A {one.type} has {count} numbers, got {len(one.data)}.")
    if points:
        around = [one.data for one in boxes if one.label]
        prompt = ObjectPrompt(
            points=[one.data for one in points],
            labels=[one.label for one in points],
            box_xyxy=_ordered(around[0]) if around else None,
        )
        return Ask(objects=(prompt,))
    if boxes:
        return Ask(
            boxes_xyxy=[_ordered(one.data) for one in boxes],
            box_labels=[one.label for one in boxes],
            threshold=params.conf_threshold,
        )
    comma = "," if "," in params.text_prompt else "."
    phrases = [one.strip() for one in params.text_prompt.split(comma)]
    return Ask(
        text=tuple(dict.fromkeys(one for one in phrases if one)), threshold=params.conf_threshold
    )


def _ordered(box: list[float]) -> list[float]:
    """A rectangle from any corner to the one across."""
    x, y = sorted(box[::2]), sorted(box[1::2])
    return [x[0], y[0], x[1], y[1]]


def _written(found: Detections, params: Parameters, *, named: bool) -> Response:
    shapes = _shapes(found, params, named=named)
    data: dict[str, Any] = {"shapes": shapes, "description": ""}
    if not shapes:
        data["replace"] = False  # the client would delete what a person drew
    return as_json({"success": True, "data": data})


def _shapes(found: Detections, params: Parameters, *, named: bool) -> list[dict[str, Any]]:
    """A polygon for each part of a mask; parts of one object share a group."""
    shapes: list[dict[str, Any]] = []
    for index in range(len(found)):
        own = {
            "label": found.labels[index] if named else UNNAMED,
            "score": min(1.0, float(found.scores[index])),
        }
        if params.show_masks:
            crop = found.masks.crop(index)
            rings = rings_from_crop(*crop, epsilon_factor=params.epsilon_factor)
            group = {"group_id": index + 1} if len(rings) > 1 else {}
            shapes += [
                {**own, **group, "shape_type": "polygon", "points": [*ring, ring[0]]}
                for ring in (ring.tolist() for ring in rings)
            ]
        if params.show_boxes:
            left, top, right, bottom = found.boxes_xyxy[index].tolist()
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            shapes.append({**own, "shape_type": "rectangle", "points": corners})
    return shapes
