"""A server of the tests: on a free port of this machine, in a thread."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from samforge.apps.serve.app import app_from_settings
from samforge.apps.serve.door import Tokens
from samforge.apps.serve.run import running
from samforge.serving import Limits, Served, Service, Settings


@contextmanager
def served(
    *roots: Path, limits: Limits | None = None, wait: bool = True, **tokens: str
) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a server of bundles, and what is behind it."""
    bundles = tuple(Served(name=root.name, path=root, threads=1) for root in roots)
    settings = Settings(bundles=bundles, limits=limits or Limits())
    app = app_from_settings(settings, tokens=Tokens(by_name=tokens))
    service: Service = app.state.service
    service.start()
    if wait:
        assert service.wait(), service.model().proof.error
    try:
        with running(app) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield client, service
    finally:
        service.close()


def png(image: Any, kind: str = "PNG") -> bytes:
    """A picture as a file."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, kind)
    return stream.getvalue()
