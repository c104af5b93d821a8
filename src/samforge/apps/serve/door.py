"""What every request passes first: its id, who sends it, how large it is, how slow.

A plain ASGI layer: bodies stream through it, and are refused at the first byte too many.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect

from samforge.apps.serve.arriving import ArrivingBody, HeldBytes, Message, Receive
from samforge.apps.serve.problems import CLIENT_LEFT, Refused, problem_from_error
from samforge.core.errors import Overloaded, TooLarge
from samforge.serving import Limits

Scope: TypeAlias = MutableMapping[str, Any]
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
        except ValueError:  # not base64, or not of ASCII or UTF-8
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
        self._held = HeldBytes(limits.bodies_bytes)

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
            with closing(self._body(scope, receive, headers)) as body:
                await self._app(scope, body, answer)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            if not isinstance(error, Refused | TooLarge | Overloaded):
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
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity" and not path.startswith("/v2/"):  # which has errors of its own
            raise Refused(
                415, f"The body is encoded as {encoding[:40]!r}. Send it as it is, not compressed."
            )

    def _body(self, scope: Scope, receive: Receive, headers: Mapping[str, str]) -> ArrivingBody:
        limits, is_video = self._limits, scope["path"] == "/v1/video"
        return ArrivingBody(
            receive,
            headers,
            most=limits.video_bytes if is_video else limits.request_bytes,
            seconds=limits.video_upload_seconds if is_video else limits.upload_seconds,
            held=None if is_video else self._held,  # videos go to disk, and have places
        )


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
