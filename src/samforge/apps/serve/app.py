"""The application: routers over one service, behind one door."""

from __future__ import annotations

import logging
import time
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI

import samforge
from samforge.apps.serve.dialects.labelstudio import labelstudio_router
from samforge.apps.serve.dialects.roboflow import roboflow_router
from samforge.apps.serve.dialects.sources import ImageSources
from samforge.apps.serve.dialects.xanylabeling import xanylabeling_router
from samforge.apps.serve.door import Door, Scope, Tokens
from samforge.apps.serve.health import health_router
from samforge.apps.serve.metrics import Metrics
from samforge.apps.serve.native import native_router
from samforge.apps.serve.oip import oip_router
from samforge.apps.serve.page import page_router
from samforge.apps.serve.problems import add_problems
from samforge.apps.serve.video import video_router
from samforge.serving import Service, Settings

_METHODS = frozenset(HTTPMethod)
_LOG = logging.getLogger("samforge.serve")
ROUTERS = (
    *(health_router, native_router, video_router, oip_router, page_router),
    *(labelstudio_router, roboflow_router, xanylabeling_router),
)
"""What the server speaks: each makes a router over a service. A dialect is one more."""


def app_from_settings(
    settings: Settings, *, tokens: Tokens | None = None, sources: ImageSources | None = None
) -> FastAPI:
    """Put the server together; nothing is verified or loaded before ``app.state.service`` starts.

    Args:
        settings: What to serve.
        tokens: Who may ask; None lets everybody.
        sources: Where dialects may fetch pictures from; None: nowhere.

    Raises:
        BundleError: A bundle cannot be opened.
    """
    metrics = Metrics()
    watchers = {one.name: metrics.watcher(one.name) for one in settings.bundles}
    service = Service(settings, watchers=watchers, drift=metrics)
    metrics.watch(service)
    app = FastAPI(
        title="samforge",
        version=samforge.__version__,
        description="Segments pictures with bundles that have held their proof on this machine.",
    )
    app.state.service, app.state.metrics, app.state.sources = service, metrics, sources
    for make in ROUTERS:
        app.include_router(make(service))
    add_problems(app)

    def seen(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        metrics.requests.labels(route, method_of(scope), str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        _LOG.info("request", extra={"fields": _fields(scope, status, seconds, route)})

    app.add_middleware(Door, limits=settings.limits, tokens=tokens or Tokens(by_name={}), seen=seen)
    return app


def method_of(scope: Scope) -> str:
    """The method of a request; ``other`` where HTTP knows it not: anybody can make up more."""
    method = str(scope["method"])
    return method if method in _METHODS else "other"


def _fields(scope: Scope, status: int, seconds: float, route: str) -> dict[str, Any]:
    """What the log says of a request: never its content."""
    fields: dict[str, Any] = {
        "request_id": scope.get("samforge.request_id"),
        "client": scope.get("samforge.client"),
        "method": method_of(scope),
        "route": route,
        "status": status,
        "ms": round(seconds * 1e3, 1),
        "ended": time.time(),
    }
    for name in ("model", "timings"):
        if f"samforge.{name}" in scope:
            fields[name] = scope[f"samforge.{name}"]
    error = scope.get("samforge.error")
    if error is not None:
        # What a client did wrong quotes the client: it is told, and the log has the kind alone.
        own_fault = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        fields["error"] = type(error).__name__ + (f": {error}"[:500] if own_fault else "")
    return fields
