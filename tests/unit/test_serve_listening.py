"""Where the server listens."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from samforge.apps.serve.run import Listening, _bound, _Server
from samforge.core.errors import SettingError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_do_not_wait_for_acknowledgements(host: str) -> None:
    """Headers and body of an answer go out in two pieces: Nagle's algorithm would hold the other.

    asyncio switches it off for sockets that say that they are of TCP, and for no others.
    """
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def accepted() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own: socket.socket = writer.get_extra_info("socket")
            seen.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = _bound(Listening(host=host, port=0))
        async with await asyncio.start_server(serve, sock=bound):
            _, writer = await asyncio.open_connection(host, bound.getsockname()[1])
            writer.close()
            return await asyncio.wait_for(seen, 5)

    assert asyncio.run(accepted()) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_the_second_signal_everything_ends_at_once(number: int) -> None:
    service: Any = SimpleNamespace(draining=False)
    server = _Server(FastAPI(), service, Listening(drain_seconds=300, notice_seconds=300))
    server.handle_exit(number, None)
    assert service.draining
    waiting = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    assert waiting
    assert all(one.daemon for one in waiting)  # the process ends without them
    assert not server.force_exit
    server.handle_exit(number, None)
    assert (server.should_exit, server.force_exit) == (True, True)


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_that_are_none(port: int) -> None:
    with pytest.raises(SettingError, match=r"Give 1 to 65535, or 0 for a free one"):
        Listening(port=port)


def test_a_host_that_is_not_known() -> None:
    listening = Listening(host="no-such-host.invalid", port=0, open_to_all=True)
    with pytest.raises(SettingError, match=r"no-such-host\.invalid is not known here"):
        _bound(listening)
