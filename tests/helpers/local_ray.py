"""Ray Serve on a real local cluster, on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from samforge.core.telemetry import ray_declined


@contextmanager
def ray_serving(application: Any, *, processors: int = 2) -> Iterator[str]:
    """URL of an application that a cluster serves; the test is skipped where Ray is not."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ray_declined():
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            num_cpus=processors,
        )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(), route_prefix="/", name="samforge")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
