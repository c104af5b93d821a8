"""The device runtime on a processor: the same detections as the numpy runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import samforge
from samforge.backends.torch import TorchSession
from samforge.core.detections import Detections
from samforge.core.errors import (
    FidelityError,
    ImageError,
    OutOfMemory,
    PromptError,
    SettingError,
    ShapeError,
)
from samforge.core.images import ImageSpec
from samforge.core.masks import Masks
from samforge.core.packed_crop import PackedCrop
from samforge.core.session import Array, DeviceSession, TensorFormat, Tensors
from samforge.core.timing import Timings
from samforge.measure import Witness
from samforge.media import read_image, write_png
from samforge.models.tiny.scenes import draw_scene
from samforge.runtime import (
    PhraseTokenizer,
    Segmenter,
    image_bchw_from_rgb,
    question_from,
    segmenter_from_sessions,
)
from samforge.runtime.batches import decoded_ahead
from samforge.runtime.device import DeviceExecutor, Resizer
from samforge.runtime.device.admission import admitted_reference
from samforge.runtime.device.masks import above_reference, masks_to_host
from samforge.runtime.device.places import Places, places_from_reach, places_on_device
from samforge.runtime.device.reach import NOTHING, reach_reference
from samforge.runtime.device.reader import Asked, ResultReader
from samforge.runtime.device.resize import resize_weights, taps_from_weights
from samforge.runtime.device.results import (
    COLUMNS,
    Found,
    admitted,
    chosen_from_found,
    detections_from_found,
    found_from_summary,
    summary,
)
from samforge.runtime.device.transfer import only_read
from samforge.runtime.postprocess import (
    MaskLimit,
    RawDetections,
    Thresholds,
    detections_from_raw,
    mask_limit,
)

CPU = torch.device("cpu")
PHRASES = ("red circle", "star", "blue object")
NAMES = ("vision", "text", "detector", "detector_boxes")


class Eager:
    """A part of the tiny model behind the door of a device session."""

    runtime, processor, device, captures = "torch", "CPU", "cpu", False

    def __init__(self, part: Any) -> None:
        self.part, self.spec = part, part.spec
        self.formats = {one.name: TensorFormat(dtype=one.dtype) for one in part.spec.inputs}

    def close(self) -> None:
        pass

    def run(self, tensors: Tensors) -> dict[str, Array]:
        return dict(self.part.run(tensors))

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(self.part(tensors))


class Overwriting(Eager):
    """Like a CUDA graph, it writes every result where it wrote the last one of that shape."""

    def __init__(self, part: Any) -> None:
        super().__init__(part)
        self.results: dict[Any, torch.Tensor] = {}

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = super().run_on_device(tensors)
        kept = {
            name: self.results.setdefault((name, value.shape), torch.empty_like(value))
            for name, value in outputs.items()
        }
        for name, value in outputs.items():
            kept[name].copy_(value)
        return kept


class OtherStrides(Eager):
    """Like a package for a processor, it gives features channels last and takes them contiguous."""

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        return {
            name: value.contiguous(memory_format=torch.channels_last)
            if name.startswith("fpn_")
            else value
            for name, value in super().run_on_device(tensors).items()
        }


def on_device(
    sessions: Mapping[str, Any], image: ImageSpec, tokenizer: PhraseTokenizer, **settings: Any
) -> Segmenter:
    """A segmenter that keeps everything on the device, whichever it is."""
    executor = DeviceExecutor(sessions, image, tokenizer, read_image, **settings)
    return Segmenter(executor, image_size=image.size, parts=sessions)


def like(other: Segmenter, sessions: Mapping[str, Any] | None = None, **settings: Any) -> Segmenter:
    """A segmenter over other sessions, or with other settings."""
    one = executor_of(other)
    return on_device(
        sessions or one._sessions, one._image, one._network._text._tokenizer, **settings
    )


def wrapped(segmenter: Segmenter, kind: Callable[[Any], Any]) -> dict[str, Any]:
    """Its parts, behind sessions of another kind."""
    sessions: Mapping[str, Any] = executor_of(segmenter)._sessions
    return {name: kind(session.part) for name, session in sessions.items()}


def executor_of(segmenter: Segmenter) -> DeviceExecutor:
    assert isinstance(segmenter._executor, DeviceExecutor)
    return segmenter._executor


@pytest.fixture(scope="module")
def segmenters(
    part: Callable[..., Any],
    checkpoint: Callable[[str], Any],
    tiny_torch_bundle: samforge.Bundle,
) -> tuple[Segmenter, Segmenter]:
    """The parts in eager mode on a device, and as the bundle exported them on the host."""
    tiny = checkpoint("tiny")
    tokenizer = PhraseTokenizer(tiny.tokenizer, tiny.context, 0)
    sessions = {}
    for name in NAMES:
        path = tiny_torch_bundle.path(tiny_torch_bundle.manifest.parts[name].artifact)
        sessions[name] = TorchSession(torch.export.load(path), part(name, "tiny").spec, path)
    device = on_device({name: Eager(part(name, "tiny")) for name in NAMES}, tiny.image, tokenizer)
    host = segmenter_from_sessions(sessions, tiny.image, tokenizer, read_image)
    return device, host


def scenes(count: int) -> list[Any]:
    return [draw_scene(index, split="demo").image for index in range(count)]


def assert_same(found: Any, wanted: Any) -> None:
    assert found.labels == wanted.labels
    assert found.size_hw == wanted.size_hw
    assert np.allclose(found.scores, wanted.scores, atol=1e-5)
    assert np.allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=1e-3)
    assert found.best_scores.keys() == wanted.best_scores.keys()
    differing = np.count_nonzero(found.masks.dense() != wanted.masks.dense())
    assert differing <= 1e-5 * np.prod(wanted.masks.shape)


def test_it_finds_what_the_numpy_runtime_finds(segmenters: Any) -> None:
    device, host = segmenters
    images = scenes(3)
    wanted = host.predict(images, text=PHRASES)
    assert sum(map(len, wanted)) >= 4
    batch = device.predict(images, text=PHRASES)
    streamed = list(device.stream(iter(images), text=PHRASES, batch=2))
    encoded = [device.predict(device.encode(image), text=PHRASES) for image in images]
    for found in (batch, streamed, encoded):
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


def test_images_of_a_stream_may_differ_in_size(segmenters: Any) -> None:
    device, host = segmenters
    images = [scenes(1)[0], scenes(2)[1][:150, :201], scenes(1)[0][::2, ::2]]
    for found, image in zip(device.stream(images, text="star"), images, strict=True):
        assert found.size_hw == image.shape[:2]
        # Rounding between the passes of the resize may move a pixel by one grey level.
        wanted = host.predict(image, text="star")
        assert abs(found.best_scores["star"] - wanted.best_scores["star"]) < 0.02


def test_other_calls_between_the_results_of_a_stream_change_none(segmenters: Any) -> None:
    device, host = segmenters
    sessions = {
        name: Overwriting(session.part) for name, session in executor_of(device)._sessions.items()
    }
    overwriting = like(device, sessions)
    images, other = scenes(4), scenes(5)[4]
    encoded = overwriting.encode(other)
    wanted = host.predict([*images, other], text=PHRASES)
    assert len({found.masks.dense().tobytes() for found in wanted}) == 5
    second = overwriting.stream(iter(images), text=PHRASES, batch=2)
    for found, one in zip(overwriting.stream(images, text=PHRASES), wanted, strict=False):
        assert_same(found, one)
        assert_same(overwriting.predict(other, text=PHRASES), wanted[4])
        assert_same(next(second), one)
        assert_same(overwriting.predict(encoded, text=PHRASES), wanted[4])


def test_features_get_the_strides_that_the_detector_wants(segmenters: Any) -> None:
    device, host = segmenters
    sessions = {
        name: OtherStrides(session.part) for name, session in executor_of(device)._sessions.items()
    }
    other = like(device, sessions)
    (image,) = scenes(1)
    for source in (image, other.encode(image)):
        assert_same(other.predict(source, text="star"), host.predict(image, text="star"))


def test_every_call_of_the_host_is_one_of_the_device(segmenters: Any) -> None:
    device, host = segmenters
    images = scenes(3)
    red = host.predict(images[0], text="object").boxes_xyxy[:1]
    boxes: dict[str, Any] = {"boxes_xyxy": red, "box_labels": [1]}
    assert_same(device.predict(images[0], **boxes), host.predict(images[0], **boxes))
    both = {"text": "object", **boxes}
    assert_same(device.predict(device.encode(images[0]), **both), host.predict(images[0], **both))
    scores: dict[str, Any] = {"text": PHRASES, "threshold": [0.999, 0.02, 0.5]}
    for one, other in zip(
        device.predict([device.encode(images[1]), *images], **scores),
        host.predict([images[1], *images], **scores),
        strict=True,
    ):
        assert_same(one, other)
    encoded = [device.encode(image) for image in images]
    for one, other in zip(
        device.predict(encoded, text=PHRASES), host.predict(images, text=PHRASES), strict=True
    ):
        assert_same(one, other)


def test_phrases_some_at_a_time(segmenters: Any) -> None:
    device, host = segmenters
    few, images = like(device, prompt_batch=2), scenes(2)
    phrases = (*PHRASES, "object", "green square")
    wanted = host.predict(images, text=phrases)
    for found in (few.predict(images, text=phrases), list(few.stream(images, text=phrases))):
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


def test_stages_of_a_device(segmenters: Any) -> None:
    device, _ = segmenters
    timings = Timings()
    device.forget_phrases()
    device.predict(scenes(1)[0], text="star", timings=timings)
    stages = {stage.stage: stage for stage in timings.stages()}
    assert list(stages) == ["decode", "preprocess", "vision", "text", "detector", "post-process"]
    assert all(stage.milliseconds > 0 for stage in stages.values())
    assert stages["vision"].processor == "CPU, pictures to masks"


def test_what_is_asked_of_another_segmenters_image(segmenters: Any) -> None:
    device, host = segmenters
    encoded = replace(host.encode(scenes(1)[0]), device="cuda:1")
    with pytest.raises(ShapeError, match="keeps features on cpu, the image was encoded on cuda:1"):
        device.predict(encoded, text="star")


def test_a_broken_image_of_a_list_is_named(segmenters: Any) -> None:
    for segmenter in segmenters:
        images = [scenes(1)[0], b"no picture", scenes(1)[0]]
        with pytest.raises(ImageError, match=r"^Image 1 of the list: "):
            segmenter.predict(images, text="star")
        stream = segmenter.stream(iter(images), text="star")
        with pytest.raises(ImageError, match=r"^Image 1 of the stream: "):
            list(stream)
        with pytest.raises(PromptError, match="There are 2 phrases and 3 thresholds"):
            segmenter.predict(images[0], text=["star", "disc"], threshold=[0.1, 0.2, 0.3])
        with pytest.raises(SettingError, match="threshold is 2"):
            segmenter.predict(images[0], text=["star", "disc"], threshold=[0.1, 2])


def test_a_closed_segmenter_says_so_and_leaves_results_alone(segmenters: Any) -> None:
    device, host = segmenters
    image = scenes(1)[0]
    wanted = host.predict(image, text=PHRASES)
    with like(device) as closing:
        found = closing.predict(image, text=PHRASES)
        stream = closing.stream([image, image], text=PHRASES)
        first = next(stream)
    assert_same(found, wanted)
    assert_same(first, wanted)
    for call in (
        lambda: closing.predict(image, text="star"),
        lambda: closing.encode(image),
        lambda: closing.stream([image], text="star"),
        lambda: closing.encode_phrases("star"),
    ):
        with pytest.raises(ShapeError, match="The segmenter is closed"):
            call()


def test_a_watched_segmenter_is_asked_on_its_device(segmenters: Any) -> None:
    device, host = segmenters
    witnesses = Witness(), Witness()
    sessions: Mapping[str, Any] = executor_of(device)._sessions
    watched = like(device, witnesses[0].sessions(sessions))
    assert all(isinstance(one, DeviceSession) for one in executor_of(watched)._sessions.values())
    plain: Mapping[str, Any] = host._executor._sessions
    beside = segmenter_from_sessions(
        witnesses[1].sessions(plain),
        executor_of(device)._image,
        executor_of(device)._network._text._tokenizer,
        read_image,
    )
    for image in scenes(2):
        for segmenter in (watched, beside):
            segmenter.predict(segmenter.encode(image), text=PHRASES)
    (found, wanted) = witnesses
    assert found.image == wanted.image == 1
    assert len(found.readings) == len(wanted.readings) == 2 * len(PHRASES)
    for one, other in zip(found.readings, wanted.readings, strict=True):
        assert (one.image, one.part) == (other.image, other.part)
        assert np.allclose(one.logits, other.logits, atol=0.05)  # one grey level of the resize
    assert [one.tensor for one in found.features] == [one.tensor for one in wanted.features]


def test_two_threads_take_turns(segmenters: Any) -> None:
    device, host = segmenters
    sessions = wrapped(device, Overwriting)
    shared, images = like(device, sessions), scenes(4)
    wanted = host.predict(images, text=PHRASES)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            found = pool.map(lambda image: shared.predict(image, text=PHRASES), images)
            for one, other in zip(found, wanted, strict=True):
                assert_same(one, other)


def test_a_tensor_is_a_picture_too(segmenters: Any) -> None:
    device, host = segmenters
    image = scenes(1)[0]
    found = device.predict(torch.from_numpy(image.copy()), text="star")
    assert_same(found, host.predict(image, text="star"))


def test_a_later_call_leaves_earlier_results_alone(segmenters: Any) -> None:
    device, _ = segmenters
    first, second = scenes(2)
    found = device.predict(first, text="object", threshold=0.1)
    kept = found.masks.dense()
    device.predict(second, text="object", threshold=0.1)
    assert np.array_equal(found.masks.dense(), kept)


@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.999])
def test_masks_begun_ahead_are_the_same(segmenters: Any, threshold: float) -> None:
    device, host = segmenters
    ahead = like(device, masks_ahead=True)
    counts: list[int] = []
    first, second, third = scenes(3)
    for image in (first, second, first, first, first, third):  # changing, steady, changing
        steady = len(counts) > 1 and counts[-1] == counts[-2] > 0
        launched = ahead.launch(ahead.take(image), question_from(PHRASES, threshold))
        begun = launched.parts[0].begun
        assert (begun is None) if not steady or counts[-1] > 16 else (begun.slots == counts[-1])
        found = ahead.result(launched)
        assert_same(found, host.predict(image, text=PHRASES, threshold=threshold))
        counts.append(len(found))
        # Nothing keeps the memory of more than twice the masks that were found, or 64 KiB.
        owners = {id(one.bits.base): one.bits.base.nbytes for one in found.masks.packed}
        assert sum(owners.values()) <= max(2 * found.masks.nbytes, 1 << 16)
    assert len(set(counts)) > 1 or counts[0] == 0
    streamed = ahead.stream(iter(scenes(3)), text=PHRASES, threshold=threshold)
    for one, image in zip(streamed, scenes(3), strict=True):
        assert_same(one, host.predict(image, text=PHRASES, threshold=threshold))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
def test_the_device_admits_what_the_host_admits(
    phrases: int, queries: int, slots: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(0, 8, (phrases, queries)).astype(np.float32) / 8
    wanted = [(p, q) for p in range(phrases) for q in admitted(scores[p], 0.5)][:slots]
    index = admitted_reference(torch.from_numpy(scores), 0.5, slots)
    assert index[: len(wanted)].tolist() == [list(pair) for pair in wanted]
    assert (index[len(wanted) :] == -1).all()


def test_a_read_only_array_is_read_in_place() -> None:
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    picture.flags.writeable = False
    tensor = only_read(picture)
    assert tensor.data_ptr() == picture.ctypes.data
    assert np.array_equal(tensor.numpy(), picture)


@pytest.mark.parametrize("which", [0, 1], ids=["device", "host"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("unplugged", [False, True], ids=["no file", "no source"])
def test_what_came_before_a_fault_is_given(
    segmenters: Any, tmp_path: Path, which: int, batch: int, unplugged: bool
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, image in zip(files, scenes(3), strict=True):
        write_png(file, image)

    def source() -> Iterator[Path]:
        yield from files
        if unplugged:
            raise OSError("unplugged")
        yield tmp_path / "none.png"

    given = []
    fault = pytest.raises(OSError, match="unplugged") if unplugged else pytest.raises(ImageError)
    with fault:
        for one in segmenters[which].stream(source(), text="star", batch=batch):
            given.append(one)  # noqa: PERF402  those before the fault
    assert len(given) == 3


def test_bad_calls(segmenters: Any) -> None:
    device, _ = segmenters
    assert device.predict([], text="star") == []
    with pytest.raises(SettingError, match=r"batch is 0\. Give at least 1\."):
        list(device.stream(scenes(1), text="star", batch=0))
    with pytest.raises(SettingError, match=r"threshold is 1\.5"):
        device.predict(scenes(1)[0], text="star", threshold=1.5)
    parts = {name: executor_of(device)._sessions[name] for name in NAMES[:2]}
    with pytest.raises(SettingError, match=r"\['detector'\] are missing"):
        like(device, parts)


def test_parts_on_two_devices(segmenters: Any) -> None:
    device, _ = segmenters
    parts = dict(executor_of(device)._sessions)
    parts["text"] = Eager(parts["text"].part)
    parts["text"].device = "meta"
    with pytest.raises(SettingError, match=r"one device, got \['cpu', 'meta'\]"):
        like(device, parts)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_the_resize_is_pillows_to_one_grey_level(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    spec = ImageSpec(size=28)
    found = Resizer(spec, CPU)(torch.from_numpy(rgb)).numpy()
    levels = np.abs(found - image_bchw_from_rgb(rgb, spec)[0]) * 127.5
    assert levels.max() < 1.001


def test_weights_of_the_resize() -> None:
    weights = resize_weights(4, 2)
    assert weights == pytest.approx(
        np.array([[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]), abs=1e-12
    )
    assert resize_weights(3, 3) == pytest.approx(np.eye(3))


@pytest.mark.parametrize(("source", "target"), [(3840, 1008), (37, 14), (5, 14), (14, 14)])
def test_taps_are_all_of_the_weights(source: int, target: int) -> None:
    weights = resize_weights(source, target)
    first, taps = taps_from_weights(weights)
    again = np.zeros_like(weights)
    for row, (start, values) in enumerate(zip(first, taps.T, strict=True)):
        again[row, start : start + len(values)] = values
    assert np.abs(again - weights).max() < 1e-7


def test_the_resize_refuses_what_is_no_picture() -> None:
    resize = Resizer(ImageSpec(size=8), CPU)
    with pytest.raises(ShapeError, match=r"wants uint8 \(H, W, 3\), got float32 \(4, 4, 3\)"):
        resize(torch.zeros(4, 4, 3))
    with pytest.raises(ShapeError, match="runs on cpu, got a picture on meta"):
        resize(torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"))


def masks_from(
    logits: torch.Tensor, wanted: list[tuple[int, int]], size_hw: tuple[int, int], limit: MaskLimit
) -> Masks:
    """Masks of some phrases and queries, from logits (P, Q, h, w)."""
    index = np.array(wanted)
    ends = reach_reference(logits[None], torch.ones(1, *logits.shape[:2]), 0.5, limit)[0].numpy()
    cells_hw = (logits.shape[-2], logits.shape[-1])
    places = places_from_reach(index, ends[index[:, 0], index[:, 1]], cells_hw, size_hw)
    return masks_to_host(logits, places, limit).masks(places)


SIDES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=150, deadline=None)
@given(
    SIDES,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from(["meta", "transformers"]),
)
def test_crops_hold_all_of_their_masks(
    size_hw: tuple[int, int], cells_hw: tuple[int, int], seed: int, threshold: float, reference: str
) -> None:
    torch_rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 3, *cells_hw, generator=torch_rng) * 4 - 3
    logits[0, 2] = -50
    logits[0, 1, 0, 0] = 0  # as near to the limit as can be
    limit = mask_limit(threshold, reference)
    masks = masks_from(logits, [(0, 2), (0, 0), (0, 1)], size_hw, limit)
    for mask, query in zip(masks, (2, 0, 1), strict=True):
        assert np.array_equal(mask, above_reference(logits[0, query], size_hw, limit).numpy())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 300), st.data())
def test_places_are_around_what_the_resize_reads(
    pixels: int, cells: int, data: st.DataObject
) -> None:
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, cells - 1)] * 2)))
    ends = np.array([[-first, last, -first, last]], np.int32)
    places = places_from_reach(np.zeros((1, 2), int), ends, (cells, cells), (pixels, pixels))
    (_, _, top, bottom, left, columns, start) = places.table[0].tolist()
    source = ((np.arange(pixels) + 0.5) * cells / pixels - 0.5).clip(0, cells - 1)
    near = np.flatnonzero((source > first - 1) & (source < last + 1))
    assert 0 <= top <= bottom <= pixels
    assert (start, left % 8) == (0, 0)
    assert len(near) == 0 or (top <= near[0] and near[-1] < bottom)
    assert len(near) == 0 or (left <= near[0] and near[-1] < left + 8 * columns)
    assert left + 8 * columns < pixels + 8
    # No more than a cell and a few pixels on each side.
    assert bottom - top <= (last - first + 2) * pixels / cells + 6


def test_masks_lie_one_behind_the_other() -> None:
    ends = np.array([[-1, 2, -0, 3], [NOTHING] * 4, [-0, 3, -2, 2]], np.int32)
    index = np.array([[0, 5], [1, 0], [1, 7]])
    places = places_from_reach(index, ends, (4, 4), (40, 60))
    assert places.table[:, :2].tolist() == index.tolist()
    assert places.table[:, 2:6].tolist() == [[3, 37, 0, 8], [0, 0, 0, 0], [0, 40, 16, 5]]
    assert places.table[:, 6].tolist() == [0, 272, 272]
    assert (places.total, places.sizes.tolist()) == (472, [272, 0, 200])
    for most, counts in ((1, [1, 1, 1]), (300, [2, 1]), (472, [3])):
        groups = list(places.groups(most))
        assert [len(group) for group in groups] == counts
        assert [int(group.table[0, 6]) for group in groups] == [0] * len(counts)
        assert sum(group.total for group in groups) == 472
    # On the device, a row that nothing is left for is no mask.
    reach = torch.full((2, 8, 4), NOTHING, dtype=torch.int32)
    reach[0, 5], reach[1, 7] = torch.from_numpy(ends[0]), torch.from_numpy(ends[2])
    slots = torch.tensor([[0, 5], [1, 7], [-1, -1]], dtype=torch.int32)
    table = places_on_device(slots, reach, (4, 4), (40, 60))
    assert table[:, 6].tolist() == [0, 272, 472]
    assert table[2, 5] == 0


def test_masks_that_are_kept_long_lie_in_memory_of_their_own() -> None:
    """Pinned memory comes in powers of two, is never swapped and never given back."""
    logits = torch.full((1, 2, 8, 8), 1.0)
    table = np.array([[0, 0, 0, 8, 0, 1, 0], [0, 1, 2, 8, 0, 1, 8]], np.int32)
    places = Places(table=table, size_hw=(8, 8))
    begun = masks_to_host(logits, places, mask_limit(0.5, "meta"))
    shared, own = begun.masks(places), begun.taken(places)
    begun.bits.zero_()
    assert shared.areas.tolist() == [0, 0]
    assert own.areas.tolist() == [64, 48]
    assert all(not one.bits.flags.writeable for one in own.packed if isinstance(one, PackedCrop))


@pytest.mark.parametrize("most", [None, 1, 3, 100])
def test_only_the_best_are_kept(segmenters: Any, most: int | None) -> None:
    device, host = segmenters
    asked: dict[str, Any] = {"text": PHRASES, "threshold": 0.1, "max_detections": most}
    (image,) = scenes(1)
    everything = host.predict(image, text=PHRASES, threshold=0.1)
    assert len(everything) == 4
    for _ in range(4):  # masks may be begun ahead
        found = device.predict(image, **asked)
        wanted = everything.best(most)
        assert_same(host.predict(image, **asked), wanted)
        assert host.predict(image, **asked).cut_off == wanted.cut_off
        assert_same(found, wanted)
        assert found.cut_off == wanted.cut_off == max(0, 4 - (most or 100))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(0))
def test_the_best_of_all_phrases_are_kept(
    images: int, phrases: int, queries: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, (images, phrases, queries)).astype(np.float32) / 8
    boxes, finite = np.zeros((*scores.shape, 4), np.float32), np.ones(scores.shape, np.bool_)
    found = Found(scores=scores, boxes=boxes, finite=finite)
    thresholds = [Thresholds(score=0.3)] * phrases
    chosen, cut_off = chosen_from_found(found, thresholds, most)
    every, none = chosen_from_found(found, thresholds)
    assert none == (0,) * images
    for image in range(images):
        wanted = Detections.concatenate(
            [_of(scores[image, phrase, every[image, phrase]], phrase) for phrase in range(phrases)]
        ).best(most)
        kept = [(str(p), s) for p in range(phrases) for s in scores[image, p, chosen[image, p]]]
        assert kept == list(zip(wanted.labels, wanted.scores, strict=True))
        assert cut_off[image] == wanted.cut_off


def _of(scores: np.ndarray, phrase: int) -> Detections:
    return Detections(
        masks=np.zeros((len(scores), 1, 1), np.bool_),
        boxes_xyxy=np.zeros((len(scores), 4), np.float32),
        scores=scores,
        labels=(str(phrase),) * len(scores),
        size_hw=(1, 1),
    )


def test_scores_boxes_and_masks() -> None:
    outputs = {
        "pred_logits": torch.tensor([[[0.0, 2.0, -2.0]]]),
        "pred_boxes": torch.tensor([[[[0.0, 0.0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.0] * 4]]]),
        "presence_logit": torch.tensor([[0.0]]),
        "pred_masks": torch.zeros(1, 1, 3, 2, 2),
    }
    found = found_from_summary(summary(outputs))
    assert found.scores[0, 0] == pytest.approx([0.25, 0.4404, 0.0596], abs=1e-4)
    chosen = {(0, 0): admitted(found.scores[0, 0], 0.2)}
    assert chosen[0, 0].tolist() == [1, 0]
    logits = torch.tensor([[[9.0, -9.0], [-9.0, -9.0]], [[9.0, 9.0], [9.0, 9.0]]])
    # 9 and -9 meet in the middle, as their probabilities do; at 0.9 the logit is 2.2.
    for limit, sums in (
        (mask_limit(0.5, "transformers"), [4, 16]),
        (mask_limit(0.5, "meta"), [4, 16]),
        (mask_limit(0.9, "meta"), [3, 16]),
    ):
        masks = masks_from(logits[None], [(0, 0), (0, 1)], (4, 4), limit)
        assert masks.areas.tolist() == sums
    made = detections_from_found(found, masks, chosen, image=0, labels=("cat",), cut_off=7)
    assert made.cut_off == 7
    assert made.boxes_xyxy.tolist() == pytest.approx(
        np.array([[0.4, 0.8, 1.2, 1.6], [0.0, 0.0, 2.0, 2.0]]), abs=1e-6
    )


def test_masks_that_cannot_be_made_fail_one_call() -> None:
    collector = ResultReader(CPU, None, "meta")
    asked = Asked(question=question_from("cat"), sizes_hw=((4, 4),))
    pending = collector.pending(torch.ones(1, 1, 2, 4, 4), torch.ones(1, 1, 2, COLUMNS), asked)
    pending.masks = pending.masks[:, :, :1]
    with pytest.raises(IndexError):
        collector.make_room()
    collector.make_room()


def test_masks_that_could_not_be_made_are_not_made_later() -> None:
    """By then the detector may have written another image's in their place."""
    reader = ResultReader(CPU, None, "meta")
    asked = Asked(question=question_from("cat"), sizes_hw=((4, 4),))
    logits = torch.ones(1, 1, 2, 4, 4)
    pending = reader.pending(logits, torch.ones(1, 1, 2, COLUMNS), asked)
    pending.masks = logits[:, :, :1]
    with pytest.raises(IndexError):
        reader.make_room()
    pending.masks = logits
    assert [len(one) for one in reader.detections(pending)] == [2]  # nobody has run it since
    pending.arriving = None
    reader.make_room()
    logits.fill_(-1)
    for _ in "twice":
        with pytest.raises(OutOfMemory, match="masks of cat could not be taken"):
            list(reader.detections(pending))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_masks_that_are_not_finite_are_refused_as_on_the_host(value: float, reference: str) -> None:
    """Of what is found: nobody sees the masks of other queries."""
    asked = Asked(question=question_from("cat"), sizes_hw=((4, 4),))
    logits = torch.full((1, 1, 2, 4, 4), 2.0)
    for query in range(2):
        masks = logits.clone()
        masks[0, 0, query, 3, 1] = value
        outputs = {
            "pred_logits": torch.tensor([[[9.0, -9.0]]]),
            "pred_boxes": torch.zeros(1, 1, 2, 4),
            "presence_logit": torch.tensor([[9.0]]),
            "pred_masks": masks,
        }
        raw = RawDetections(
            logits=outputs["pred_logits"][0, 0].numpy(),
            boxes=outputs["pred_boxes"][0, 0].numpy(),
            masks=masks[0, 0].numpy(),
            presence_logit=9.0,
        )
        reader = ResultReader(CPU, None, reference)
        pending = reader.pending(masks, summary(outputs), asked)
        calls: list[Callable[[], Any]] = [
            lambda pending=pending, reader=reader: next(iter(reader.detections(pending))),
            lambda raw=raw: detections_from_raw(
                raw,
                label="cat",
                size_hw=(4, 4),
                thresholds=Thresholds(),
                reference=reference,
            ),
        ]
        for call in calls:
            if query == 0:
                with pytest.raises(FidelityError, match="masks for 'cat' hold infinity or NaN"):
                    call()
            else:
                assert len(call()) == 1


def test_nan_is_not_nothing() -> None:
    outputs = {
        "pred_logits": torch.full((1, 1, 2), torch.nan),
        "pred_boxes": torch.zeros(1, 1, 2, 4),
        "presence_logit": torch.zeros(1, 1),
        "pred_masks": torch.zeros(1, 1, 2, 2, 2),
    }
    found = found_from_summary(summary(outputs))
    chosen = {(0, 0): admitted(found.scores[0, 0], 0.5)}
    with pytest.raises(FidelityError, match="scores for 'cat' hold NaN"):
        detections_from_found(found, Masks.empty((2, 2)), chosen, image=0, labels=("cat",))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("tensors", [False, True])
def test_a_camera_may_fill_one_buffer(segmenters: Any, batch: int, *, tensors: bool) -> None:
    device, _ = segmenters
    images = scenes(4)
    wanted = [device.predict(image, text=PHRASES) for image in images]

    def camera() -> Any:
        buffer = np.empty_like(images[0])
        for image in images:
            buffer[:] = image
            yield torch.from_numpy(buffer) if tensors else buffer
        buffer[:] = 0

    found = list(device.stream(camera(), text=PHRASES, batch=batch))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)


def test_files_of_a_stream_are_decoded_ahead_and_pixels_are_not() -> None:
    began: list[str] = []
    held = threading.Event()

    def read(name: Any) -> str:
        began.append(name)
        if name == "0":
            assert held.wait(20)
        if name == "bad":
            raise ImageError("broken")
        return f"{name} decoded"

    asked: list[str] = []

    def images() -> Any:
        for name in ("0", "1", "bad", pixels, "2"):
            asked.append(str(name))
            yield name

    pixels = np.zeros((2, 2, 3), np.uint8)
    line = decoded_ahead(images(), read)
    timer = threading.Timer(0.2, held.set)
    timer.start()
    first, own = next(line)
    assert (first(), own) == ("0 decoded", True)
    assert "1" in began
    second, broken = next(line)[0], next(line)[0]
    assert second() == "1 decoded"
    with pytest.raises(ImageError, match="broken"):
        broken()
    given, own = next(line)
    assert (given() is pixels, own) == (True, False)
    assert asked[-1] == str(pixels)  # what comes next may lie in the same memory
    assert [one() for one, _ in line] == ["2 decoded"]


def test_a_stream_of_files_finds_what_their_pixels_give(segmenters: Any, tmp_path: Path) -> None:
    device, _ = segmenters
    images = scenes(4)
    files: list[Any] = []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.png")
        write_png(files[-1], image)
    files[1] = files[1].read_bytes()
    wanted = [device.predict(image, text=PHRASES) for image in images]
    for source in (files, iter([*files[:2], images[2], files[3]])):
        for one, other in zip(device.stream(source, text=PHRASES), wanted, strict=True):
            assert_same(one, other)
    early = device.stream([*files, tmp_path / "none.png"], text=PHRASES)
    assert_same(next(early), wanted[0])
    early.close()
    with pytest.raises(ImageError, match=r"^Image 2 of the stream: .*none\.png"):
        list(device.stream([*files[:2], tmp_path / "none.png", *files], text=PHRASES))
