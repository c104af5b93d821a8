"""Pictures by their URL: from nowhere, unless the server's owner says from where."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from fastapi import Request

from samforge.core.errors import ImageError, SettingError, TooLarge
from samforge.serving import Limits, Service

_PIECE = 1 << 16
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSources:
    """Where pictures may be fetched from.

    Raises:
        SettingError: A prefix is no URL of a folder.
    """

    prefixes: tuple[str, ...] = ()
    """URLs of folders, each with its final slash: what lies below one may be fetched. A path
    without a host lies below the first."""
    authorization: str | None = field(default=None, repr=False)
    """Sent as ``Authorization`` to the host of the first prefix, and to no other."""
    most_bytes: int = Limits().request_bytes
    """Of a picture."""
    seconds: float = 20.0
    """Time that its bytes have to arrive, and the longest wait for the first and the next: threads
    that fetch are few."""

    def __post_init__(self) -> None:
        for one in self.prefixes:
            if not _is_folder(one):
                raise SettingError(
                    f"{one!r:.80} is no place to fetch from. Give http://HOST/ or a folder below "
                    "it, with its final slash."
                )

    async def fetch(self, url: str) -> bytes:
        """The bytes behind a URL.

        Raises:
            ImageError: It may not be fetched, or cannot be.
            TooLarge: There are too many bytes.
        """
        try:
            whole = urljoin(self.prefixes[0], url) if self.prefixes else url
            steps = unquote(urlsplit(whole).path).replace("\\", "/").split("/")
        except ValueError as error:
            raise ImageError(f"{url[:120]!r} is no URL: {error}.") from error
        below = any(whole.startswith(one) for one in self.prefixes)
        if not below or ".." in steps:  # which a server might take out of the folder
            allowed = ", ".join(self.prefixes) or "nowhere"
            raise ImageError(
                f"{url[:120]!r} is not fetched: this server fetches from {allowed}. Send the "
                "picture itself as base64, or let the server fetch from there."
            )
        return await asyncio.to_thread(self._read, whole)

    def _read(self, url: str) -> bytes:
        opener = urllib.request.build_opener(_NoRedirects)
        secret = self.authorization if _origin(url) == _origin(self.prefixes[0]) else None
        headers = {} if secret is None else {"Authorization": secret}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # checked
        try:
            with opener.open(request, timeout=self.seconds) as answer:
                data = self._arriving(answer)
                missing = answer.length or 0
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the answer, and so the connection
            raise ImageError(f"{url[:120]} cannot be fetched: {error}.") from error
        if len(data) > self.most_bytes:
            raise TooLarge(f"{url[:120]} has more than {self.most_bytes:,} bytes.")
        if missing:
            raise ImageError(f"{url[:120]} cannot be fetched: it ended {missing:,} bytes early.")
        return data

    def _arriving(self, answer: HTTPResponse) -> bytes:
        """The bytes of an answer, and one more than may be where there are too many.

        Raises:
            TimeoutError: They come too slowly.
        """
        data, end = bytearray(), time.monotonic() + self.seconds
        while len(data) <= self.most_bytes and (piece := answer.read1(_PIECE)):
            data += piece
            if time.monotonic() > end:
                raise TimeoutError(f"it has not arrived within {self.seconds:g} s")
        return bytes(data)


def _is_folder(url: str) -> bool:
    try:
        scheme, host, _ = _origin(url)
    except ValueError:  # its port, or its brackets
        return False
    return scheme in _PORTS and bool(host) and url.endswith("/")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: whom a secret is told."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead anywhere, and take the secret along."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, *_: Any
    ) -> None:
        raise urllib.error.HTTPError(req.full_url, code, f"redirected: {msg}", req.headers, fp)  # type: ignore[arg-type]


def sources_of(request: Request) -> ImageSources:
    """What the application may fetch from: nothing, where nobody said otherwise."""
    service: Service = request.app.state.service
    found: ImageSources | None = getattr(request.app.state, "sources", None)
    return found or ImageSources(most_bytes=service.limits.request_bytes)
