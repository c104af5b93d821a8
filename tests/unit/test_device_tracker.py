"""Clicks and tracks with everything on a device: what the host finds, bit for bit or nearly so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from samforge.core.errors import FidelityError, ShapeError
from samforge.core.session import TensorFormat
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name
from samforge.runtime import ObjectPrompt, PhraseTokenizer, Segmenter, follow_video
from samforge.runtime.device import DeviceExecutor
from samforge.runtime.device.tracker import DeviceTrackerParts
from samforge.runtime.host import HostExecutor
from samforge.runtime.tracking import PromptAt, TrackingSettings, VideoSession
from samforge.runtime.tracking.host_parts import HostTrackerParts

CLIP = tuple(tiny.draw_crossing(3, frames=4, split="demo"))


class OnDevice(EagerSession):
    """The same on tensors of a device, which is the processor."""

    device, captures = "cpu", False

    @property
    def formats(self) -> dict[str, TensorFormat]:
        return {one.name: TensorFormat(dtype=one.dtype) for one in self.spec.inputs}

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(self.part(tensors))


@pytest.fixture(scope="module")
def both(one_thread: None) -> tuple[Segmenter, Segmenter]:
    """The tiny model with its tracker, on the host and on a device."""
    model = model_from_name("tiny", tracker=True)
    names = [name for name in model.default_parts if name != "detector_boxes"]
    sessions = {name: OnDevice(model.part(name)) for name in names}
    text = model.text
    assert text is not None
    assert text.tokenizer is not None
    tokenizer = PhraseTokenizer(text.tokenizer, text.context, text.eos_id)
    executors: Any = [
        kind(sessions, model.image, tokenizer, read_image)
        for kind in (HostExecutor, DeviceExecutor)
    ]
    host, device = (
        Segmenter(one, image_size=model.image.size, parts=sessions, digest="0" * 64)
        for one in executors
    )
    return host, device


def test_clicks(both: tuple[Segmenter, Segmenter]) -> None:
    image = tiny.draw_scene(3, split="demo").image
    prompts = [
        ObjectPrompt(points=[[60, 60]]),
        ObjectPrompt(points=[[112, 112], [20, 20]], labels=[1, 0]),
        ObjectPrompt(box_xyxy=[10, 20, 90, 120]),
    ]
    host, device = (one.predict_objects(image, prompts, candidates=True) for one in both)
    assert np.abs(host.scores - device.scores).max() < 1e-5
    assert (host.masks.dense() != device.masks.dense()).mean() < 1e-4


def test_tracks(both: tuple[Segmenter, Segmenter]) -> None:
    pictures = [scene.image for scene in CLIP]
    phrases = [f"{CLIP[0].colours[0]} {CLIP[0].shapes[0]}", "circle"]
    runs = []
    for segmenter in both:
        session = segmenter.track(text=phrases)
        frames = session.step(pictures[0])
        session.add(ObjectPrompt(points=[[112, 112]]), label="clicked")
        for picture in pictures[1:]:
            frames += session.step(picture)
        runs.append([frame.detections for frame in (*frames, *session.finish())])
    for host, device in zip(*runs, strict=True):
        assert host.ids is not None
        assert device.ids is not None
        assert host.ids.tolist() == device.ids.tolist()
        assert host.labels == device.labels
        # The device resizes pictures by another order of sums: a grey level here and there.
        assert (host.masks.dense() != device.masks.dense()).mean() < 2e-3


def test_a_session_goes_on_where_it_was_saved(
    both: tuple[Segmenter, Segmenter], tmp_path: Path
) -> None:
    """Memories that lie on a device go through the file without loss."""
    _, device = both
    pictures = [scene.image for scene in CLIP]
    session = device.track()
    session.step(pictures[0])
    session.add(ObjectPrompt(points=[[112, 112]]))
    session.step(pictures[1])
    session.save(tmp_path / "session.npz")
    again = device.resume(tmp_path / "session.npz")
    (one,), (other,) = session.step(pictures[2]), again.step(pictures[2])
    assert np.array_equal(one.detections.masks.dense(), other.detections.masks.dense())
    parts = device.tracker_parts()
    assert isinstance(parts, DeviceTrackerParts)
    assert isinstance(both[0].tracker_parts(), HostTrackerParts)
    memory = next(iter(session.banks.values()))
    assert isinstance(session, VideoSession)
    assert memory.size_bytes > 0


class Turned:
    """A frame that cannot be followed: its pixels are of another size."""

    image_rgb = np.zeros((30, 40, 3), np.uint8)


def test_a_stream_encodes_the_next_frame_on_a_device(both: tuple[Segmenter, Segmenter]) -> None:
    pictures = [scene.image for scene in CLIP]
    phrase = f"{CLIP[0].colours[0]} {CLIP[0].shapes[0]}"
    for segmenter in both:
        wanted = [frame.detections for frame in segmenter.track_video(pictures, text=phrase)]
        found = [one.detections for one in follow_video(segmenter, pictures, text=phrase)]
        assert len(found) == len(wanted) == len(CLIP)
        assert sum(len(one) for one in found) > 0
        for one, other in zip(found, wanted, strict=True):
            assert one.ids is not None
            assert one.ids.tolist() == other.ids.tolist()
            assert np.array_equal(one.masks.dense(), other.masks.dense())
        # One frame that fails leaves the others as they are, in their places.
        broken: list[Any] = [*pictures[:2], Turned(), *pictures[2:]]
        kept = list(follow_video(segmenter, broken, text=phrase, isolate=True))
        assert [one.problem is not None for one in kept] == [False, False, True, False, False]
        assert isinstance(kept[2].problem, ShapeError)


def test_a_stream_with_prompts_is_what_frames_one_by_one_give(
    both: tuple[Segmenter, Segmenter],
) -> None:
    pictures = [scene.image for scene in CLIP]
    phrases = [f"{CLIP[0].colours[0]} {CLIP[0].shapes[0]}", "circle"]
    prompts = [PromptAt(frame=1, prompt=ObjectPrompt(points=[[112, 112]]), label="clicked")]
    _, device = both
    for settings in (TrackingSettings(), TrackingSettings(delay=0, detect_every=2)):
        given: dict[str, Any] = {"text": phrases, "prompts": prompts, "settings": settings}
        wanted = [frame.detections for frame in device.track_video(pictures, **given)]
        found = [one.detections for one in follow_video(device, pictures, **given)]
        assert "clicked" in wanted[-1].labels
        for one, other in zip(found, wanted, strict=True):
            assert one.ids is not None
            assert other.ids is not None
            assert one.ids.tolist() == other.ids.tolist()
            assert np.array_equal(one.scores, other.scores)
            assert one.masks == other.masks


class Overwriting(OnDevice):
    """Writes its answers where it wrote them the time before, as a CUDA graph does."""

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = super().run_on_device(tensors)
        kept = self.__dict__.setdefault("kept", found)
        for name, tensor in found.items():
            kept[name].copy_(tensor)
        return dict(kept)


def test_what_is_looked_for_outlasts_the_next_call_of_the_detector(
    both: tuple[Segmenter, Segmenter],
) -> None:
    _, device = both
    executor: Any = device._executor
    parts = device.tracker_parts()
    one, other = (parts.encode(scene.image) for scene in (CLIP[0], CLIP[-1]))
    asked = ("circle",), [0.01]
    wanted = [parts.begin_detect(image, *asked).result() for image in (one, other)]
    before = executor._sessions["detector"]
    executor._sessions["detector"] = Overwriting(before.part)
    try:
        first = parts.begin_detect(one, *asked)
        second = parts.begin_detect(other, *asked)
        device.predict(CLIP[1].image, text="circle")
        found = [first.result(), second.result()]
    finally:
        executor._sessions["detector"] = before
    assert not np.array_equal(found[0].masks.host(), found[1].masks.host())
    for own, true in zip(found, wanted, strict=True):
        assert np.array_equal(own.scores, true.scores)
        assert np.array_equal(own.masks.host(), true.masks.host())


def test_phrases_in_several_calls_are_found_in_their_order(
    both: tuple[Segmenter, Segmenter],
) -> None:
    phrases, limits = ("circle", "star", "square"), [0.2, -1.0, 0.05]
    for segmenter in both:
        executor: Any = segmenter._executor
        parts = segmenter.tracker_parts()
        image = parts.encode(CLIP[0].image)
        wanted = parts.begin_detect(image, phrases, limits).result()
        executor._prompt_batch = 2
        try:
            found = parts.begin_detect(image, phrases, limits).result()
        finally:
            executor._prompt_batch = None
        assert set(wanted.phrases.tolist()) >= {1}
        assert np.array_equal(found.phrases, wanted.phrases)
        assert np.abs(found.scores - wanted.scores).max() < 1e-5
        assert list(found.best_scores) == list(phrases)
        assert np.abs(found.masks.host() - wanted.masks.host()).max() < 1e-3


def test_encoded_images_of_other_parts_are_refused(both: tuple[Segmenter, Segmenter]) -> None:
    host, _ = both
    encoded = host.encode(CLIP[0].image)
    session = host.track(text="circle")
    assert session.step(encoded) == []
    for change, words in (
        ({"image_size": 28}, "image size of 224, the image was encoded at 28"),
        ({"device": "cuda:0"}, "keeps features on cpu, the image was encoded on cuda:0"),
        ({"digest": "1" * 64}, "encoded by another bundle"),
    ):
        with pytest.raises(ShapeError, match=words):
            session.step(replace(encoded, **change))
        with pytest.raises(ShapeError, match=words):
            host.predict(replace(encoded, **change), text="circle")
    assert session.index == 0


@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_masks_are_given_as_on_the_host(both: tuple[Segmenter, Segmenter], reference: str) -> None:
    parts = [one.tracker_parts() for one in both]
    for one in parts:
        side = 4 * one.facts.mask_side if reference == "meta" else one.facts.image_size
        one._facts = replace(one.facts, reference=reference, prompt_side=side)  # type: ignore[attr-defined]
    cells = np.random.default_rng(0).normal(size=(11, 64, 64)).astype(np.float32)
    logits = np.stack([smooth(one) for one in cells])
    (given, answer), (placed, other) = (one.give(one.masks(logits), (90, 130)) for one in parts)
    assert given.shape == (11, side, side)
    assert np.abs(given - placed.numpy()).max() < 1e-6
    assert np.allclose(answer.host(), other.host(), atol=2e-3 if reference == "meta" else 1e-4)


def smooth(cells: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(cells, 3).astype(np.float32) * 20


def test_masks_are_drawn_as_on_the_host(both: tuple[Segmenter, Segmenter]) -> None:
    noise = np.random.default_rng(1).normal(size=(5, 64, 64)).astype(np.float32)
    logits = np.stack([*(smooth(one) for one in noise), np.full((64, 64), -3, np.float32)])
    logits[4] -= 4  # small crops
    parts = [one.tracker_parts() for one in both]
    host, device = (one.begin_draw(one.masks(logits), (90, 131)).result() for one in parts)
    assert host == device
    assert host.areas[5] == 0
    assert host.areas[:5].all()
    logits[2, 3, 3] = np.inf
    for one in parts:
        with pytest.raises(FidelityError, match="infinity or NaN"):
            one.begin_draw(one.masks(logits), (90, 131))


def test_detections_come_in_the_order_of_the_queries(both: tuple[Segmenter, Segmenter]) -> None:
    """As Meta's tracker has them: ids of births and ties of the rules go by it."""
    for segmenter in both:
        parts = segmenter.tracker_parts()
        encoded = parts.encode(CLIP[0].image)
        every = parts.begin_detect(encoded, ("circle",), [-1.0]).result().scores
        median = float(np.median(every))
        some = parts.begin_detect(encoded, ("circle",), [median]).result().scores
        assert np.array_equal(some, every[every > np.float32(np.median(every))])
        assert not np.array_equal(some, np.sort(some)[::-1])
