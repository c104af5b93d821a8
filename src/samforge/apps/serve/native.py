"""The native API: pictures and questions in, runs of pixels out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from samforge.apps.serve.bodies import (
    AskBody,
    ImageAnswer,
    ImageBody,
    ModelsAnswer,
    SegmentAnswer,
    SegmentBody,
)
from samforge.apps.serve.context import client_of
from samforge.apps.serve.describing import bundle_of, limits_of, model_of, timings_of
from samforge.apps.serve.openapi import PROBLEMS, body_schema
from samforge.apps.serve.reading import ask_from, body_of, picture_from, picture_from_data
from samforge.apps.serve.waiting import answered
from samforge.core.detections import Detections
from samforge.serving import KeptAnswer, MaskFormat, Model, Picture, Service, Ticket, packed

P = ParamSpec("P")
T = TypeVar("T")
_SMALL_MASKS, _FEW = 1 << 14, 16
"""Bytes of packed masks, and detections, that take about a millisecond to write."""


def native_router(service: Service) -> APIRouter:
    """``/v1``: what samforge's own clients speak."""
    router = APIRouter(prefix="/v1", responses=PROBLEMS, tags=["native"])

    @router.post(
        "/segment",
        response_model=SegmentAnswer,
        openapi_extra=body_schema(SegmentBody),
        operation_id="segment",
    )
    async def segment(request: Request) -> Response:
        """Find what phrases or boxes name in a picture, or segment what clicks show."""
        body, file = await body_of(request, SegmentBody)
        picture = await picture_from(request, body, file)
        return await _segmented(service, request, picture, body)

    @router.post(
        "/images",
        status_code=201,
        response_model=ImageAnswer,
        openapi_extra=body_schema(ImageBody),
        operation_id="keep_image",
    )
    async def keep(request: Request) -> Response:
        """Encode a picture and keep it: questions by its id are answered at once."""
        body, file = await body_of(request, ImageBody)
        model = service.model(body.model)
        picture = await picture_from_data(file if file is not None else body.image)
        client = client_of(request)
        ticket = service.encode(model, picture, client=client, seconds=body.seconds)
        size_hw = await answered(request, ticket)
        number = service.pictures.put(client, picture.key, picture, picture.nbytes)
        answer = {
            "image_id": number,
            "size_hw": list(size_hw),
            "encoded": not ticket.spent.known,
            "timings_ms": timings_of(ticket.spent, 0.0),
            "bundle": bundle_of(model),
        }
        return as_json(answer, status=201)

    @router.post(
        "/images/{image_id}/segment",
        response_model=SegmentAnswer,
        openapi_extra=body_schema(AskBody, files=False),
        operation_id="segment_image",
    )
    async def segment_kept(image_id: str, request: Request) -> Response:
        """Ask about a picture that is kept."""
        body, _ = await body_of(request, AskBody)
        picture = service.pictures.get(client_of(request), image_id)
        return await _segmented(service, request, picture, body)

    @router.delete("/images/{image_id}", status_code=204, operation_id="forget_image")
    async def forget(image_id: str, request: Request) -> Response:
        """Drop a picture and its encoding."""
        service.forget(client_of(request), image_id)
        return Response(status_code=204)

    @router.get("/models", response_model=ModelsAnswer, operation_id="models")
    async def models() -> Any:
        """Which bundles there are, what each can do, and what its proof said here."""
        return {
            "models": [model_of(one) for one in service.models.values()],
            "limits": limits_of(service.limits),
        }

    return router


async def _segmented(
    service: Service, request: Request, picture: Picture, body: AskBody
) -> Response:
    model = service.model(body.model)
    client = client_of(request)
    ask = await ask_from(request, body, picture)
    ticket = service.segment(model, picture, ask, client=client, seconds=body.seconds)
    found: Detections = await answered(request, ticket)
    number = service.pictures.put(client, picture.key, picture, picture.nbytes)
    answer = {
        "image_id": number,
        "answer_id": _kept_answer(service, request, picture, found),
        "size_hw": list(found.size_hw),
        "best_scores": {phrase: float(score) for phrase, score in found.best_scores.items()},
        "cut_off": found.cut_off,
        "warnings": model.remarks(ask.text or ()),
        "encoded": not ticket.spent.known,
        "bundle": bundle_of(model),
    }
    request.scope["samforge.model"] = model.name
    return await beside([found], _packed, answer, found, body.masks, ticket, model, request)


async def beside(
    found: Sequence[Detections], write: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Write an answer beside the event loop, unless it is so small that a thread costs more.

    Args:
        found: What is written of.
        write: Does it.
        *args: What it takes.
        **kwargs: Likewise.
    """
    few = sum(map(len, found)) < _FEW
    if few and sum(one.masks.nbytes for one in found) < _SMALL_MASKS:
        return write(*args, **kwargs)
    return await asyncio.to_thread(write, *args, **kwargs)


def _packed(
    answer: dict[str, Any],
    found: Detections,
    masks: MaskFormat,
    ticket: Ticket,
    model: Model,
    request: Request,
) -> Response:
    start = time.perf_counter()
    answer["detections"] = packed(found, masks)
    pack_ms = (time.perf_counter() - start) * 1e3
    answer["timings_ms"] = request.scope["samforge.timings"] = timings_of(ticket.spent, pack_ms)
    request.app.state.metrics.packed(model.name, pack_ms)
    return as_json(answer)


def _kept_answer(
    service: Service, request: Request, picture: Picture, found: Detections
) -> str | None:
    """Answers to clicks can be corrected: the model's own small masks are kept for that."""
    if found.logits is None:
        return None
    name = f"answer {request.scope['samforge.request_id']} {time.monotonic_ns()}"
    size = int(found.logits.nbytes) + found.masks.nbytes
    answer = KeptAnswer(picture=picture.key, found=found)
    return service.answers.put(client_of(request), name, answer, size)


def as_json(answer: Any, status: int = 200) -> Response:
    """An answer as JSON."""
    return Response(
        json.dumps(answer, separators=(",", ":")),
        status_code=status,
        media_type="application/json",
    )
