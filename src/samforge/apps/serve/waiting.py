"""Waits for an answer, as long as the client does."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from fastapi import Request

from samforge.apps.serve.problems import ClientLeft
from samforge.core.errors import DeadlineExceeded
from samforge.serving import Ticket


async def answered(request: Request, ticket: Ticket) -> Any:
    """The answer to an accepted job.

    Raises:
        ClientLeft: It closed its connection: the job is taken back.
        DeadlineExceeded: Its time has passed: likewise.
        SamforgeError: What went wrong with it.
    """
    return await finished(request, ticket.future, ticket.job.deadline)


async def finished(request: Request, future: Future[Any], deadline: float) -> Any:
    """What a future gives, unless the client leaves or the time passes; it is cancelled then."""
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait(
            {answer, gone},
            timeout=max(0.0, deadline - time.monotonic()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if answer.done():
            return answer.result()
        if gone.done():
            raise ClientLeft
        raise DeadlineExceeded(
            "The time that the request was given has passed. Ask again, or give it more: seconds."
        )
    finally:
        gone.cancel()
        answer.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
