"""Errors as problem documents (RFC 9457): what came, what is allowed, what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from samforge.core.errors import (
    DeadlineExceeded,
    InputError,
    MissingExtra,
    NotHere,
    OutOfMemory,
    Overloaded,
    SamforgeError,
    TooLarge,
)

MEDIA_TYPE = "application/problem+json"
CLIENT_LEFT = 499
"""Nobody reads it: for the log, as nginx has it."""

_STATUS: tuple[tuple[type[SamforgeError], int], ...] = (
    (TooLarge, 413),
    (NotHere, 404),
    (DeadlineExceeded, 504),
    (OutOfMemory, 503),
    (MissingExtra, 501),
    (InputError, 422),
)
"""The first that an error is."""
_OF_TYPES = re.compile(r"constrained-|\[")
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    type: str
    """A name for the kind of problem, always the same: ``urn:samforge:problem:prompt-error``."""
    title: str
    """The kind in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What came, what is allowed and what to do."""
    instance: str
    """The request's id, as the log has it: ``urn:samforge:request:…``."""
    errors: list[dict[str, Any]] | None = None
    """Each field that is not as it should be: ``field`` and ``detail``."""


class Refused(Exception):
    """A request that is refused before anything of it is understood."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


class ClientLeft(Exception):
    """The client closed its connection."""


def problem(
    status: int,
    kind: str,
    detail: str,
    request_id: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, Any]] | None = None,
) -> Response:
    """A problem document."""
    body: dict[str, Any] = {
        "type": f"urn:samforge:problem:{_WORD.sub('-', kind).lower()}",
        "title": _WORD.sub(" ", kind).capitalize(),
        "status": status,
        "detail": detail,
        "instance": f"urn:samforge:request:{request_id}",
    }
    if errors is not None:
        body["errors"] = list(errors)
    return Response(
        json.dumps(body), status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def problem_from_error(error: Exception, request_id: str) -> Response:
    """The problem document of whatever was raised.

    What samforge did not foresee says nothing of its inside: the log has it, under the request's
    id.
    """
    if isinstance(error, Overloaded):
        status = 429 if error.of_client else 503
        headers = {"Retry-After": f"{max(1, round(error.retry_after_s))}"}
        return problem(status, "Overloaded", str(error), request_id, headers=headers)
    if isinstance(error, SamforgeError):
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        retry = {"Retry-After": "5"} if status == 503 else None
        return problem(status, type(error).__name__, str(error), request_id, headers=retry)
    if isinstance(error, Refused):
        kind = HTTPStatus(error.status).phrase.replace(" ", "")
        return problem(error.status, kind, error.detail, request_id, headers=error.headers)
    if isinstance(error, ValidationError | RequestValidationError):
        return _invalid(error, request_id)
    if isinstance(error, HTTPException):
        kind = HTTPStatus(error.status_code).phrase.replace(" ", "")
        return problem(
            error.status_code, kind, str(error.detail), request_id, headers=error.headers
        )
    if isinstance(error, ClientLeft | ClientDisconnect):
        return problem(CLIENT_LEFT, "ClientLeft", "The client left.", request_id)
    return problem(
        500,
        "InternalError",
        "Something unforeseen went wrong, and the server's log says what, under this request's id.",
        request_id,
    )


def _invalid(error: ValidationError | RequestValidationError, request_id: str) -> Response:
    all_of_them = (
        error.errors(include_url=False, include_input=False, include_context=False)
        if isinstance(error, ValidationError)
        else error.errors()
    )
    # Of the forms that a field may have, the one that fits best is wrong at the deepest place.
    deepest = sorted(all_of_them, key=lambda found: -len(found["loc"]))[:20]
    errors = [{"field": _field(found["loc"]), "detail": found["msg"][:300]} for found in deepest]
    first = errors[0] if errors else {"field": "", "detail": "It cannot be read."}
    where = first["field"] or "the body"
    detail = f"{where}: {first['detail']}. The document /openapi.json says what is allowed."
    return problem(422, "InvalidRequest", detail, request_id, errors=errors)


def _field(place: Sequence[int | str]) -> str:
    """Names and positions, without pydantic's names of types."""
    return ".".join(str(one) for one in place if not _OF_TYPES.search(str(one)))[:200]


def request_id_of(request: Request) -> str:
    """The id that the door gave a request."""
    return str(request.scope.get("samforge.request_id", "unknown"))


def add_problems(app: FastAPI) -> None:
    """Answer every error of an application with a problem document."""

    async def handled(request: Request, error: Exception) -> Response:
        request.scope["samforge.error"] = error
        return problem_from_error(error, request_id_of(request))

    for kind in (
        SamforgeError,
        Refused,
        ClientLeft,
        ClientDisconnect,
        ValidationError,
        RequestValidationError,
        HTTPException,
    ):
        app.add_exception_handler(kind, handled)
