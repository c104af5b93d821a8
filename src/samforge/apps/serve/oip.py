"""Open Inference Protocol v2, with Triton's binary tensors: what machines speak to any server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

import samforge
from samforge.apps.serve.context import client_of
from samforge.apps.serve.native import as_json
from samforge.apps.serve.oip_values import (
    HEADER,
    answer_from_detections,
    ask_from_request,
    metadata_of,
    picture_from_request,
    seconds_from_request,
)
from samforge.apps.serve.problems import Refused, problem_from_error, request_id_of
from samforge.apps.serve.tensors import request_from_body
from samforge.apps.serve.waiting import answered
from samforge.core.detections import Detections
from samforge.core.errors import NotHere, SamforgeError
from samforge.serving import Model, Service, State

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": {"type": "object"}},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string"}},
        }
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "The request is not answered.", "content": _ERROR}
    for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 501, 503, 504)
}


_EMPTY: dict[str, Any] = {
    "response_class": Response,
    "responses": {404: _ERRORS[404], 503: {"description": "Not yet, or no longer."}},
}


def oip_router(service: Service) -> APIRouter:
    """``/v2``. Errors are ``{"error": "…"}`` here, as the protocol has them."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    _add_server(router, service)
    _add_models(router, service)
    _add_infer(router, service)
    return router


def _add_server(router: APIRouter, service: Service) -> None:
    @router.get("", operation_id="oip_server", response_class=JSONResponse)
    async def server() -> Response:
        """Name, version and extensions of the server."""
        return as_json(
            {
                "name": "samforge",
                "version": samforge.__version__,
                "extensions": ["binary_tensor_data", "parameters"],
            }
        )

    @router.get("/health/live", operation_id="oip_live", **_EMPTY)
    async def live() -> Response:
        """Whether the process does its work."""
        return Response(status_code=200 if service.is_alive() else 503)

    @router.get("/health/ready", operation_id="oip_ready", **_EMPTY)
    async def ready() -> Response:
        """Whether every bundle has held its proof here."""
        return Response(status_code=200 if service.is_ready() else 503)


def _add_models(router: APIRouter, service: Service) -> None:
    @router.get("/models/{name}", operation_id="oip_model", responses=_ERRORS)
    @router.get(
        "/models/{name}/versions/{version}", operation_id="oip_model_version", responses=_ERRORS
    )
    async def metadata(request: Request, name: str, version: str | None = None) -> Response:
        """Inputs and outputs of a bundle."""
        try:
            return as_json(metadata_of(_model(service, name, version)))
        except SamforgeError as error:
            return _failed(request, error)

    @router.get("/models/{name}/ready", operation_id="oip_model_ready", **_EMPTY)
    @router.get(
        "/models/{name}/versions/{version}/ready", operation_id="oip_version_ready", **_EMPTY
    )
    async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
        """Whether a bundle has held its proof here."""
        try:
            model = _model(service, name, version)
        except SamforgeError as error:
            return _failed(request, error)
        is_ready = model.state is State.READY and not service.draining
        return Response(status_code=200 if is_ready else 503)


def _add_infer(router: APIRouter, service: Service) -> None:
    @router.post(
        "/models/{name}/infer",
        operation_id="oip_infer",
        openapi_extra=_BODY,
        responses=_ERRORS,
    )
    @router.post(
        "/models/{name}/versions/{version}/infer",
        operation_id="oip_version_infer",
        openapi_extra=_BODY,
        responses=_ERRORS,
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Find what phrases or boxes name in a picture."""
        try:
            model = _model(service, name, version)
            _require_plain(request)
            body = await request.body()
            asked = await asyncio.to_thread(request_from_body, body, request.headers.get(HEADER))
            picture = await asyncio.to_thread(picture_from_request, asked)
            ticket = service.segment(
                model,
                picture,
                await asyncio.to_thread(ask_from_request, asked),  # of any number of phrases
                client=client_of(request),
                seconds=seconds_from_request(asked.parameters),
            )
            found: Detections = await answered(request, ticket)
            request.scope["samforge.model"] = model.name
            return await asyncio.to_thread(answer_from_detections, asked, model, found)
        except (SamforgeError, Refused) as error:
            return _failed(request, error)


def _model(service: Service, name: str, version: str | None) -> Model:
    model = service.model(name)
    if version not in (None, "1", model.digest):
        raise NotHere(f"{name[:40]} has the version 1 here, which is its digest, {model.digest}.")
    return model


def _require_plain(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "The body is compressed. Send it as it is.")


def _failed(request: Request, error: Exception) -> Response:
    """The protocol's error; statuses as Triton has them, where it has them."""
    request.scope["samforge.error"] = error
    told = problem_from_error(error, request_id_of(request))
    status = 400 if told.status_code == 422 else told.status_code
    answer = as_json({"error": json.loads(bytes(told.body))["detail"]}, status)
    if "retry-after" in told.headers:
        answer.headers["Retry-After"] = told.headers["retry-after"]
    return answer
