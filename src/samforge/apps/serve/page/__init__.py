"""The page at ``/``: files of its own, which ask the native API and nobody else."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from samforge.serving import Service

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
SECURITY = {
    # Nothing inline, nothing from elsewhere; pictures are the user's own.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Headers of every file of the page."""


def page_router(service: Service) -> APIRouter:  # noqa: ARG001  # a router is made over a service
    """``/`` and ``/page``: the files are read once, and no other file can be asked for."""
    router = APIRouter(include_in_schema=False)
    folder = files(__name__).joinpath("static")
    known = {
        one.name: (one.read_bytes(), _TYPES[f".{one.name.rpartition('.')[2]}"])
        for one in folder.iterdir()
        if one.is_file()
    }
    index = known.pop("index.html")

    @router.get("/")
    async def page(request: Request) -> Response:
        return _file(request, *index)

    @router.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in known:
            raise HTTPException(404, "The page has no such file. Open / for the page.")
        return _file(request, *known[name])

    return router


def _file(request: Request, data: bytes, media_type: str) -> Response:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**SECURITY, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
