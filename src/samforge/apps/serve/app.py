"""The application: routers over one service, behind one door."""

from __future__ import annotations

import logging
import time
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
        metrics.requests.labels(route, scope["method"], str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        _LOG.info("request", extra={"fields": _fields(scope, status, seconds, route)})

    app.add_middleware(Door, limits=settings.limits, tokens=tokens or Tokens(by_name={}), seen=seen)
    return app


def _fields(scope: Scope, status: int, seconds: float, route: str) -> dict[str, Any]:
    """What the log says of a request: never its content."""
    fields: dict[str, Any] = {
        "request_id": scope.get("samforge.request_id"),
        "client": scope.get("samforge.client"),
        "method": scope["method"],
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
        fields["error"] = f"{type(error).__name__}: {error}"[:500]
    return fields
