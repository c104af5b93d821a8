"""What every request passes first: its id, who sends it, how large it is, how slow.

A plain ASGI layer: bodies stream through it, and are refused at the first byte too many.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from samforge.apps.serve.problems import CLIENT_LEFT, Refused, problem_from_error
from samforge.core.errors import TooLarge
from samforge.serving import Limits

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that probes ask without a token, and the page, which asks for one."""
OPEN_BELOW = "/page/"
"""Files of the page."""
_LOG = logging.getLogger("samforge.serve")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Who may ask."""

    by_name: Mapping[str, str]
    """Token by the name of its client; empty lets everybody in."""

    def client(self, headers: Mapping[str, str], address: str) -> str | None:
        """Name of the client who sends these headers; None where its token is not known.

        Every token is compared, each in a time that does not depend on where it differs.
        """
        if not self.by_name:
            return address
        given = token_from_headers(headers).encode()
        names = [
            name
            for name, token in self.by_name.items()
            if hmac.compare_digest(given, token.encode())
        ]
        return names[0] if names else None


def token_from_headers(headers: Mapping[str, str]) -> str:
    """The token of a request: ``Authorization: Bearer``, a basic password, or ``Token``.

    Annotation tools speak the latter two. Empty where there is none.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token"):
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return b64decode(value, validate=True).decode().partition(":")[2]
        except (Base64Error, UnicodeDecodeError):
            return ""
    return headers.get("token", "")


Seen: TypeAlias = Callable[[Scope, int, float], None]
"""Hears of a request's end: its scope, its status and its seconds."""


class Door:
    """The outermost layer of the application."""

    def __init__(self, app: App, *, limits: Limits, tokens: Tokens, seen: Seen) -> None:
        """Guard an application.

        Args:
            app: What is behind.
            limits: Of bodies and their time.
            tokens: Who may ask.
            seen: Hears of every request that ended.
        """
        self._app, self._limits, self._tokens, self._seen = app, limits, tokens, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        given = headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["samforge.request_id"] = number
        answer = _Answer(send, number)
        try:
            self._identify(scope, headers)
            body = self._body(scope, receive, headers)
            await self._app(scope, body, answer)
        except Exception as error:
            if not isinstance(error, Refused | TooLarge):
                _LOG.exception("request %s failed", number)
            if answer.status is not None:
                raise  # half an answer is out: the connection has to break
            await problem_from_error(error, number)(scope, receive, answer)
        finally:
            self._seen(scope, answer.status or CLIENT_LEFT, time.monotonic() - start)

    def _identify(self, scope: Scope, headers: Mapping[str, str]) -> None:
        address = (scope.get("client") or ("unknown", 0))[0]
        client = self._tokens.client(headers, address)
        path: str = scope["path"]
        if client is None and path not in OPEN and not path.startswith(OPEN_BELOW):
            raise Refused(
                401,
                "The request has no token that this server knows. Send it as "
                "'Authorization: Bearer TOKEN'.",
                {"WWW-Authenticate": "Bearer"},
            )
        scope["samforge.client"] = client or address

    def _body(self, scope: Scope, receive: Receive, headers: Mapping[str, str]) -> _Body:
        limits = self._limits
        if scope["path"] == "/v1/video":
            return _Body(receive, limits.video_bytes, limits.video_upload_seconds, headers)
        return _Body(receive, limits.request_bytes, limits.upload_seconds, headers)


class _Answer:
    """Sends an answer with the request's id, and remembers its status."""

    def __init__(self, send: Send, number: str) -> None:
        self._send, self._number = send, number
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [
                (b"x-request-id", self._number.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            message["headers"] = [*message.get("headers", []), *own]
        await self._send(message)


class _Body:
    """Gives a body on, up to its most bytes, as long as it has time."""

    def __init__(
        self, receive: Receive, most: int, seconds: float, headers: Mapping[str, str]
    ) -> None:
        self._receive, self._most = receive, most
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._come, self._whole = 0, False
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said) > most:
            raise self._too_large(f"{int(said):,}")

    async def __call__(self) -> Message:
        if self._whole:  # the next message is that the client left
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._end - time.monotonic())
        except TimeoutError as error:
            raise Refused(
                408,
                f"The body did not arrive within {self._seconds:g} s: {self._come:,} bytes came. "
                "Send a smaller one.",
                {"Connection": "close"},
            ) from error
        self._come += len(message.get("body", b""))
        if self._come > self._most:
            raise self._too_large(f"more than {self._most:,}")
        self._whole = not message.get("more_body", False)
        return message

    def _too_large(self, size: str) -> TooLarge:
        return TooLarge(
            f"The body has {size} bytes, at most {self._most:,} are taken. Send a smaller picture, "
            "or fewer at once."
        )
