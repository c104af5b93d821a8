"""Runs the application until a signal ends it, and lets it finish what it accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from samforge.apps.serve.app import app_from_settings
from samforge.apps.serve.dialects.sources import ImageSources
from samforge.apps.serve.door import Tokens
from samforge.core.errors import SettingError
from samforge.serving import Service, Settings

_LOG = logging.getLogger("samforge.serve")
_WAITING = 2048
"""Connections that wait to be accepted; uvicorn's own number."""
_MOST_PORT = 65535
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Where a server listens, and how it ends."""

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Tokens = field(default_factory=lambda: Tokens(by_name={}))
    """Who may ask."""
    open_to_all: bool = False
    """Whether others than this machine may ask without a token."""
    drain_seconds: float = 30.0
    """Time that accepted requests have to end after SIGTERM."""
    sources: ImageSources = field(default_factory=ImageSources)
    """Where pictures may be fetched from, for clients that send their addresses."""
    notice_seconds: float = 0.0
    """Time between becoming unready and refusing: a load balancer has to notice."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _MOST_PORT:
            raise SettingError(
                f"--port is {self.port}. Give 1 to {_MOST_PORT}, or 0 for a free one."
            )
        if self.host not in LOOPBACK and not self.tokens.by_name and not self.open_to_all:
            raise SettingError(
                f"At {self.host} everybody on the network could ask this server. Give tokens, or "
                "say that this is meant: --open."
            )


def serve(
    settings: Settings, listening: Listening, *, started: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then end what was accepted.

    The server listens at once and is live; it is ready when every bundle has held its proof.

    Args:
        settings: What to serve.
        listening: Where.
        started: Called with the server's URL once it listens.

    Raises:
        BundleError: A bundle cannot be opened.
        SettingError: The address cannot be had.
    """
    app = app_from_settings(settings, tokens=listening.tokens, sources=listening.sources)
    service: Service = app.state.service
    bound = _bound(listening)
    host, port = bound.getsockname()[:2]
    server = _Server(app, service, listening)
    service.start()
    if started is not None:
        started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        server.run(sockets=[bound])
    finally:
        drained = service.drain(0.0)
        service.close()
        _LOG.info("ended", extra={"fields": {"nothing_lost": drained}})


class _Server(uvicorn.Server):
    """Becomes unready first, then stops to listen, then waits for what was accepted."""

    def __init__(self, app: FastAPI, service: Service, listening: Listening) -> None:
        super().__init__(
            _config(
                app,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(listening.drain_seconds) + 1,
            )
        )
        self._service, self._notice = service, listening.notice_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """SIGTERM or SIGINT: at the second one everything ends at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True  # uvicorn does so for SIGINT alone
            return
        self._service.draining = True
        _LOG.info("draining", extra={"fields": {"signal": sig}})
        # Not in the handler: it interrupts whatever the event loop does.
        timer = threading.Timer(self._notice, self._stop)
        timer.daemon = True  # a second signal does not wait for it
        timer.start()

    def _stop(self) -> None:
        self.should_exit = True


def _config(app: FastAPI, **more: Any) -> uvicorn.Config:
    # By itself uvicorn takes httptools where that is installed, which holds headers without end in
    # memory; h11 refuses what is above 64 KiB.
    return uvicorn.Config(app, http="h11", log_config=None, access_log=False, **more)


def _bound(listening: Listening) -> socket.socket:
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    # By this protocol's name asyncio knows that it may switch Nagle's algorithm off: without, the
    # body of an answer waits 40 ms for the client to acknowledge its headers.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((listening.host, listening.port))
        bound.listen(
            _WAITING
        )  # who connects before the first is accepted waits, and is not refused
    except socket.gaierror as error:
        bound.close()
        raise SettingError(
            f"The host {listening.host} is not known here: {error.strerror}. Give an address of "
            "this machine as --host, such as 127.0.0.1 or 0.0.0.0."
        ) from error
    except OSError as error:
        bound.close()
        raise SettingError(
            f"{listening.host}:{listening.port} cannot be listened at: {error.strerror}. Give "
            "another --port; 0 takes a free one."
        ) from error
    return bound


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an application in a thread, on a free port of this machine: for tests and notebooks.

    Yields:
        Its URL: it listens there.
    """
    bound = _bound(Listening(port=0))
    server = uvicorn.Server(_config(app))
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[bound])), name="uvicorn", daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
