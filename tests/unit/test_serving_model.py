"""A bundle of a server that is closed stays closed, however far its proof has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting import Counting
from tests.unit.conftest import FAKE_PARTS

import samforge
from samforge.core.errors import FidelityError, OutOfMemory, Overloaded, SettingError
from samforge.core.images import RgbImage
from samforge.serving import EncodingCache, Limits, Model, Picture, Served, State, model


class Held:
    """A step of the proof: waits where it is told to."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.give, self.calls = give, 0
        self.come, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        self.come.set()
        assert self.go.wait(10)
        return self.give()


class Steps:
    """Verifying and loading, and what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[Counting] = []
        self.verify, self.load = (
            Held(lambda: SimpleNamespace(gates={}, processor="cpu")),
            Held(self._one),
        )

    def _one(self) -> Counting:
        self.loaded.append(Counting())
        return self.loaded[-1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(model, "verify", steps.verify)
    monkeypatch.setattr(model, "load", steps.load)
    return steps


def read(_: Picture) -> RgbImage:
    raise AssertionError("nothing is asked here")


@pytest.fixture
def bundle(fake_bundle: Callable[..., samforge.Bundle]) -> Path:
    return fake_bundle("closing").root


def made(bundle: Path, devices: tuple[str, ...] = ("cpu",)) -> Model:
    served = Served(name="one", path=bundle, devices=devices)
    return Model(served, read, limits=Limits(), cache=EncodingCache(1 << 20))


def assert_closed(one: Model, steps: Steps) -> None:
    assert one.wait() is State.CLOSED
    assert one.scheduler is None
    assert one.verdict()["held"] is False
    assert [segmenter.closed for segmenter in steps.loaded] == [True] * len(steps.loaded)
    with pytest.raises(Overloaded, match="closed"):
        one.require()


def test_it_is_ready_where_nobody_closes_it(bundle: Path, steps: Steps) -> None:
    one = made(bundle, ("cpu", "cuda:0"))
    one.start()
    assert one.wait() is State.READY
    assert [segmenter.closed for segmenter in steps.loaded] == [False, False]
    one.close()
    assert_closed(one, steps)
    assert len(steps.loaded) == 2


def test_a_gpu_has_run_calls_of_each_size_before_it_is_ready(
    bundle: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting("cuda:0", most_images=3)
    counting.overlaps = True
    encode, asked = counting.encode_images, []

    def small(images: list[Any]) -> Any:
        asked.append(len(images))
        if len(images) == 3:
            raise OutOfMemory("there is no room")
        return encode(images)

    monkeypatch.setattr(counting, "encode_images", small)
    monkeypatch.setattr(steps.load, "give", lambda: counting)
    one = made(bundle, ("cuda:0",))
    one.start()
    assert one.wait() is State.READY
    assert asked == [3, 2, 1]
    assert counting.asks == [([0, 0], ("object",)), ([0], ("object",))]
    assert counting.order == ["encode", "begin", "finish"] * 2
    one.close()


def test_closing_while_it_is_warmed_lasts(bundle: Path, steps: Steps) -> None:
    one, counting = made(bundle, ("cuda:0",)), Counting("cuda:0", most_images=3)
    counting.overlaps = True
    counting.gate.clear()
    steps.load.give = lambda: steps.loaded.append(counting) or counting
    one.start()
    assert counting.waits.wait(10)
    one.close()
    counting.gate.set()
    assert_closed(one, steps)
    assert len(counting.encodes) == 1


def test_what_cannot_segment_is_refused_at_once(fake_bundle: Callable[..., Any]) -> None:
    text = [part for part in FAKE_PARTS if part.name == "text"]
    with pytest.raises(SettingError, match="cannot segment: it has no vision, detector"):
        made(fake_bundle("text", parts=tuple(text)).root)


def closed_during(one: Model, step: Held) -> None:
    """Close it while a step is under way."""
    step.go.clear()
    one.start()
    assert step.come.wait(10)
    one.close()
    step.go.set()


def test_closing_while_it_is_verified_lasts(bundle: Path, steps: Steps) -> None:
    one = made(bundle, ("cpu", "cuda:0"))
    closed_during(one, steps.verify)
    assert_closed(one, steps)
    assert (steps.verify.calls, steps.load.calls) == (1, 0)  # the second device is not begun


def test_closing_while_it_is_loaded_lasts(bundle: Path, steps: Steps) -> None:
    one = made(bundle, ("cpu", "cuda:0"))
    closed_during(one, steps.load)
    assert_closed(one, steps)
    assert len(steps.loaded) == 1


def test_what_fails_after_it_was_closed_is_closed(bundle: Path, steps: Steps) -> None:
    def fails() -> Any:
        raise FidelityError("it is not what it was")

    one = made(bundle)
    steps.verify.give = fails
    closed_during(one, steps.verify)
    assert_closed(one, steps)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{root} is damaged: {root}/parts/vision.onnx.", "…/closing is damaged: …/vision.onnx."),
        ("read('/srv/a b/x.json'), ~/models/x, ./a/b", "read('…/a b/x.json'), …/x, …/b"),
        ("mask_iou is 0.9/1.0, 3 images/s; see https://a.b/c.", None),
    ],
)
def test_clients_hear_of_no_place_of_a_file(
    bundle: Path, steps: Steps, said: str, told: str | None
) -> None:
    said = said.format(root=bundle)

    def fails() -> Any:
        raise FidelityError(said)

    one = made(bundle)
    assert one.trouble() is None
    steps.verify.give = fails
    one.start()
    assert one.wait() is State.FAILED
    assert one.trouble() == (told or said)
    with pytest.raises(Overloaded) as refused:
        one.require()
    assert str(one.trouble()) in str(refused.value)
    assert str(bundle.parent) not in str(refused.value)


def test_what_was_closed_before_it_began_never_begins(bundle: Path, steps: Steps) -> None:
    one = made(bundle)
    one.close()
    one.start()
    assert_closed(one, steps)
    assert steps.verify.calls == 0


def test_what_was_loaded_before_the_second_device_failed_is_freed(
    bundle: Path, steps: Steps
) -> None:
    def second_fails() -> Any:
        if steps.loaded:
            raise FidelityError("no room")
        return steps._one()

    one = made(bundle, ("cpu", "cuda:0"))
    steps.load.give = second_fails
    one.start()
    assert one.wait() is State.FAILED
    assert [segmenter.closed for segmenter in steps.loaded] == [True]
