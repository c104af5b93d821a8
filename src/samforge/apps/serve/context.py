"""What the door and the application know of a request."""

from __future__ import annotations

from fastapi import Request

from samforge.serving import Service


def client_of(request: Request) -> str:
    """Whose turn a request takes: the name of its token, or its address."""
    return str(request.scope["samforge.client"])


def service_of(request: Request) -> Service:
    """The service that the application is before."""
    service: Service = request.app.state.service
    return service
