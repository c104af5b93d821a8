"""Probes: alive is not ready. And what Prometheus reads."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from samforge.apps.serve.native import as_json
from samforge.serving import Service

_NOT: dict[str, Any] = {
    "description": "Not now.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def health_router(service: Service) -> APIRouter:
    """``/health`` and ``/metrics``."""
    router = APIRouter(tags=["health"])

    @router.get("/health/live", operation_id="live", responses={503: _NOT})
    async def live() -> Response:
        """Whether the process does its work: restart it where this fails."""
        alive = service.is_alive()
        return as_json({"live": alive}, 200 if alive else 503)

    @router.get("/health/ready", operation_id="ready", responses={503: _NOT})
    async def ready() -> Response:
        """Whether every bundle has held its proof on this machine, and requests are accepted."""
        is_ready = service.is_ready()
        answer: dict[str, Any] = {
            "ready": is_ready,
            "draining": service.draining,
            "models": {
                name: {
                    "state": str(model.state),
                    "error": model.trouble(),
                }
                for name, model in service.models.items()
            },
        }
        response = as_json(answer, 200 if is_ready else 503)
        if not is_ready:
            response.headers["Retry-After"] = "5"
        return response

    @router.get("/metrics", operation_id="metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """In Prometheus's text format."""
        return Response(
            request.app.state.metrics.text(),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    return router
