"""Bodies on their way in: how large one may be, how slow, and how much all of them together."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from samforge.apps.serve.problems import Refused
from samforge.core.errors import Overloaded, TooLarge

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

_WHOLE = re.compile(r"[0-9]{1,18}")
_AGAIN_SECONDS = 2.0


def whole_number(text: str) -> int | None:
    """A number of bytes as a header has it; None where it is something else."""
    return int(text) if _WHOLE.fullmatch(text) else None


class HeldBytes:
    """How much of bodies is in memory. For one event loop."""

    def __init__(self, most: int) -> None:
        """Hold at most so many bytes, in all requests together."""
        self._most, self.held = most, 0

    def check(self, more: int) -> None:
        """Make sure that there is room.

        Raises:
            Overloaded: There is none for so many more bytes.
        """
        if self.held + more > self._most:
            raise Overloaded(
                f"Bodies of {self.held:,} bytes are held already, at most {self._most:,} are. Send "
                "the request again later.",
                retry_after_s=_AGAIN_SECONDS,
            )

    def add(self, more: int) -> None:
        """Count bytes that have come.

        Raises:
            Overloaded: There is no room for them.
        """
        self.check(more)
        self.held += more

    def remove(self, count: int) -> None:
        """Count bytes no more: their request has ended."""
        self.held -= count


class ArrivingBody:
    """Gives a body on, up to its most bytes, as long as it has time and there is room."""

    def __init__(
        self,
        receive: Receive,
        headers: Mapping[str, str],
        *,
        most: int,
        seconds: float,
        held: HeldBytes | None,
    ) -> None:
        """Look at what the headers say of it.

        Args:
            receive: Gives its parts.
            headers: Of the request.
            most: Bytes that it may have.
            seconds: Time that it may take.
            held: Counts it with all others, until :meth:`close`; None where it goes to disk.

        Raises:
            TooLarge: It says that it is.
            Overloaded: There is no room for what it says it is.
        """
        self._receive, self._most, self._held = receive, most, held
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self._come, self._counted, self._whole = 0, 0, False
        said = headers.get("content-length", "0")
        size = whole_number(said)
        if said.isdigit() and (size is None or size > most):
            raise self._too_large(said[:20] if size is None else f"{size:,}")
        if held is not None:
            held.check(size or 0)

    async def __call__(self) -> Message:
        """The next part."""
        if self._whole:  # the next message is that the client left
            return await self._receive()
        try:
            # Not wait_for, which makes a task for every part.
            async with asyncio.timeout(self._end - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise Refused(
                408,
                f"The body did not arrive within {self._seconds:g} s: {self._come:,} bytes came. "
                "Send a smaller one.",
                {"Connection": "close"},
            ) from error
        self._count(len(message.get("body", b"")))
        self._whole = not message.get("more_body", False)
        return message

    def close(self) -> None:
        """The request has ended: its body is counted no more."""
        if self._held is not None:
            self._held.remove(self._counted)
            self._counted = 0

    def _count(self, more: int) -> None:
        self._come += more
        if self._come > self._most:
            raise self._too_large(f"more than {self._most:,}")
        if self._held is not None:
            self._held.add(more)
            self._counted += more

    def _too_large(self, size: str) -> TooLarge:
        return TooLarge(
            f"The body has {size} bytes, at most {self._most:,} are taken. Send a smaller picture, "
            "or fewer at once."
        )
