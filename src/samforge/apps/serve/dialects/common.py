"""What dialects share: a question asked and answered, bodies of other tools."""

from __future__ import annotations

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from samforge.apps.serve.context import client_of
from samforge.apps.serve.describing import timings_of
from samforge.apps.serve.waiting import answered
from samforge.core.detections import Detections
from samforge.serving import Ask, Model, Picture, Service


class Loose(BaseModel):
    """A body of another tool: fields that say nothing to samforge are passed over."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


async def found_in(
    service: Service, request: Request, model: Model, picture: Picture, ask: Ask
) -> Detections:
    """Ask a bundle about a picture, and wait for the answer as long as the client does.

    Raises:
        SamforgeError: As :meth:`Service.segment`, and what went wrong on the way.
    """
    ticket = service.segment(model, picture, ask, client=client_of(request))
    found: Detections = await answered(request, ticket)
    request.scope["samforge.model"] = model.name
    request.scope["samforge.timings"] = timings_of(ticket.spent, 0.0)
    return found
