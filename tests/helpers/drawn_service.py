"""A service that answers at once with masks drawn from what is asked: for the page and dialects.

Routers, documents, packing and the door are the server's own; only the model is not there.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

from drawn_masks import FINDS, drawn
from fastapi import FastAPI

from samforge.apps.serve.app import ROUTERS
from samforge.apps.serve.door import Door, Seen, Tokens
from samforge.apps.serve.metrics import Metrics
from samforge.apps.serve.problems import add_problems
from samforge.apps.serve.run import running
from samforge.core.capabilities import BOXES, POINTS, TEXT
from samforge.core.errors import NotHere, Overloaded, SettingError
from samforge.media import read_image
from samforge.runtime.prompts import exemplars_from_boxes
from samforge.serving import Ask, Job, Limits, Picture, Service, State, Ticket
from samforge.serving.kept import Kept, KeptAnswer

ABLE = {"text": TEXT, "boxes": BOXES, "points": POINTS}


class DrawnModel:
    """What answers say of a bundle."""

    def __init__(self, name: str, parts: Sequence[str]) -> None:
        self.name, self.parts, self.state = name, tuple(parts), State.READY
        self.digest = f"{name:0<64}"[:64].replace(" ", "0")
        manifest = SimpleNamespace(
            family="sam3",
            model="drawn",
            target="onnxruntime",
            recipe={"precision": "fp32"},
            image=SimpleNamespace(size=64),
        )
        self.bundle = SimpleNamespace(manifest=manifest)
        self.processors = ("nothing",)
        self.scheduler = None
        self.proof = SimpleNamespace(error=None)

    def remarks(self, phrases: Sequence[str]) -> list[str]:
        unknown = [one for one in phrases if one not in FINDS]
        return [f"The model knows nothing of the phrase {one!r}." for one in unknown]

    def trouble(self) -> str | None:
        return None

    def verdict(self) -> dict[str, Any]:
        gates = {"mask_iou": {"figure": 1.0, "limit": 0.995}}
        return {"held": self.state is State.READY, "gates": gates, "processor": "nothing"}


class DrawnService:
    """Has what routers ask of a service."""

    def __init__(
        self, names: Sequence[str] = ("drawn",), able: Sequence[str] = ("text", "boxes", "points")
    ) -> None:
        parts = tuple(dict.fromkeys(part for one in able for part in ABLE[one].parts))
        self.models = {name: DrawnModel(name, parts) for name in names}
        self.limits = Limits()
        self.pictures: Kept[Picture] = Kept(self.limits.kept_bytes, "picture")
        self.answers: Kept[KeptAnswer] = Kept(self.limits.kept_bytes, "answer")
        self.cache = SimpleNamespace(nbytes=0, __len__=lambda: 0)
        self.draining = False
        self.encoded: list[str] = []
        """Keys of pictures, as they were encoded."""
        self.asks: list[tuple[str, Ask]] = []
        """Bundle and question, as they came."""

    def is_ready(self) -> bool:
        return not self.draining and all(m.state is State.READY for m in self.models.values())

    def is_alive(self) -> bool:
        return True

    def model(self, name: str | None = None) -> DrawnModel:
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NotHere(f"No bundle {name!r} is served. Ask one of {', '.join(self.models)}.")
        return self.models[name]

    def encode(self, model: DrawnModel, picture: Picture, **_: Any) -> Ticket:
        self._check(model)
        return self._ticket(picture, read_image(picture.data).shape[:2])

    def segment(self, model: DrawnModel, picture: Picture, ask: Ask, **_: Any) -> Ticket:
        self._check(model)
        ask = ask.within(self.limits)
        if not ask.needs()(model.parts):
            raise SettingError(f"The bundle {model.name} lacks a part for that.")
        ask.question()
        self.asks.append((model.name, ask))
        size_hw = read_image(picture.data).shape[:2]
        if ask.boxes_xyxy is not None:
            exemplars_from_boxes(ask.boxes_xyxy, ask.box_labels, size_hw)
        return self._ticket(picture, drawn(ask, size_hw))

    def forget(self, client: str, number: str) -> None:
        picture = self.pictures.drop(client, number)
        if self.pictures.holds(picture.key):
            return
        self.encoded = [key for key in self.encoded if key != picture.key]

    def _check(self, model: DrawnModel) -> None:
        if self.draining:
            raise Overloaded("The server is ending. Ask another one.", retry_after_s=5.0)
        if model.state is not State.READY:
            raise Overloaded(f"The bundle {model.name} is {model.state}.", retry_after_s=5.0)

    def _ticket(self, picture: Picture, result: Any) -> Ticket:
        job = Job(client="test", seconds=30.0, picture=picture)
        ticket = Ticket(job)
        ticket.spent.known = picture.key in self.encoded
        if not ticket.spent.known:
            self.encoded.append(picture.key)
            ticket.spent.encode = 2.0
        ticket.spent.detect = 1.0
        ticket.answer(result)
        ticket.spent.total = ticket.spent.encode + ticket.spent.detect
        return ticket


def drawn_app(
    service: DrawnService, tokens: Tokens | None = None, seen: Seen = lambda *_: None
) -> FastAPI:
    """The server's own application before such a service."""
    app = FastAPI(title="drawn")
    app.state.service, app.state.metrics = service, Metrics()
    for make in ROUTERS:
        app.include_router(make(cast(Service, service)))
    add_problems(app)
    app.add_middleware(
        Door,
        limits=service.limits,
        tokens=tokens or Tokens(by_name={}),
        seen=seen,
    )
    return app


@contextmanager
def drawn_server(service: DrawnService) -> Iterator[str]:
    """Its URL, while it runs."""
    with running(drawn_app(service)) as url:
        place = urlsplit(url)
        for _ in range(500):  # it is bound before it listens
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection((str(place.hostname), place.port or 0), 1).close()
                break
            time.sleep(0.01)
        yield url
