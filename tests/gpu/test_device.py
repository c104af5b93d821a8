"""The device runtime's kernels on a GPU, against the processor's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from samforge.core.images import ImageSpec
from samforge.core.session import Array, TensorFormat, Tensors
from samforge.core.timing import Timings
from samforge.media import read_image
from samforge.models.tiny.scenes import draw_scene
from samforge.runtime import PhraseTokenizer, Segmenter
from samforge.runtime.device import DeviceExecutor, Resizer, masks, places, reach
from samforge.runtime.device.admission import admitted_on_device, admitted_reference
from samforge.runtime.device.masks import above_reference, masks_to_host
from samforge.runtime.device.transfer import Uploader, staged
from samforge.runtime.postprocess import MaskLimit, mask_limit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(
    ("height", "width"), [(2160, 3840), (37, 501), (1008, 400), (5, 3), (1008, 1008)]
)
def test_the_resize_is_the_processors_to_one_grey_level(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    spec = ImageSpec(size=1008)
    wanted = Resizer(spec, torch.device("cpu"))(rgb)
    found = Resizer(spec, torch.device("cuda"))(rgb.cuda()).cpu()
    grey = (found - wanted).abs() / (2 / 255)
    assert grey.max() < 1.01
    assert (grey > 0.5).float().mean() < 0.03


@pytest.mark.parametrize(
    ("shape", "size_hw"), [((2, 5, 288, 288), (2160, 3840)), ((1, 3, 64, 48), (37, 1001))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_masks_are_those_of_torchs_resize(
    shape: tuple[int, ...], size_hw: tuple[int, int], dtype: torch.dtype, reference: str
) -> None:
    torch.manual_seed(0)
    # Smooth, as masks are; the strides of a detector whose channels are last.
    logits = torch.nn.functional.interpolate(torch.randn(*shape[:2], 8, 8), shape[-2:]) * 4
    logits = logits.to("cuda", dtype).contiguous(memory_format=torch.channels_last)
    wanted = [(0, 2), (shape[0] - 1, 0), (0, 1)]
    limit = mask_limit(0.4, reference)
    where = laid_out(logits, wanted, size_hw, limit)
    found = masks_to_host(logits, where, limit, torch.cuda.Stream())
    found.wait()
    expected = np.stack(
        [above_reference(logits[one].cpu(), size_hw, limit).numpy() for one in wanted]
    )
    assert expected.any()
    assert not expected.all()
    assert (found.masks(where).dense() != expected).mean() < 1e-5


def laid_out(
    logits: torch.Tensor,
    wanted: list[tuple[int, int]],
    size_hw: tuple[int, int],
    limit: MaskLimit,
) -> places.Places:
    """Crops of some masks, as the reader has them from the device."""
    scores = torch.ones(1, *logits.shape[:2], device=logits.device)
    ends = reach.reach(logits[None], scores, 0.5, limit)[0].cpu().numpy()
    index = np.array(wanted)
    cells_hw = (logits.shape[-2], logits.shape[-1])
    return places.places_from_reach(index, ends[index[:, 0], index[:, 1]], cells_hw, size_hw)


@pytest.mark.parametrize(
    ("shape", "size_hw"),
    [
        ((2, 3, 5, 288, 288), (2160, 3840)),
        ((1, 1, 9, 64, 48), (37, 1001)),
        ((1, 1, 1, 6, 6), (1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_crops_are_where_the_processor_finds_them(
    shape: tuple[int, ...],
    size_hw: tuple[int, int],
    dtype: torch.dtype,
    threshold: float,
    reference: str,
) -> None:
    torch.manual_seed(0)
    logits = torch.full(shape, -20.0)
    for one in logits.flatten(0, 2)[1:]:  # the first is empty
        rows, columns = (sorted(torch.randint(0, side + 1, (2,)).tolist()) for side in shape[-2:])
        one[slice(*rows), slice(*columns)] = 3.0
    logits = logits.to("cuda", dtype)
    scores = torch.rand(*shape[:3], device="cuda")
    limit = mask_limit(threshold, reference)
    ends = reach.reach(logits, scores, 0.3, limit)
    assert torch.equal(ends.cpu(), reach.reach_reference(logits.cpu(), scores.cpu(), 0.3, limit))
    index = (scores[0] > 0.3).nonzero().int()
    index = torch.cat([index, index.new_full((2, 2), -1)])  # as where fewer are found than before
    cells_hw = (shape[-2], shape[-1])
    table = places.places_on_device(index, ends[0], cells_hw, size_hw).cpu()
    wanted = places.places_on_device(index.cpu(), ends[0].cpu(), cells_hw, size_hw)
    there = index[:, 0].cpu() >= 0
    assert torch.equal(table[there], wanted[there])
    assert torch.equal(table[:, 5:], wanted[:, 5:])


def test_masks_that_do_not_fit_are_left_out() -> None:
    logits = torch.full((1, 3, 16, 16), 9.0, device="cuda")
    limit, size_hw = mask_limit(0.5, "meta"), (64, 64)
    where = laid_out(logits, [(0, 0), (0, 1), (0, 2)], size_hw, limit)
    assert where.sizes.tolist() == [512] * 3
    table = masks.table_on_device(where, torch.device("cuda"))
    room = masks.bits_ahead(logits, table, 1100, size_hw, limit, torch.cuda.Stream())
    room.wait()
    assert len(room.bits) == 1100
    assert (room.bits[:1024] == 255).all()


@pytest.mark.parametrize(("phrases", "queries", "slots"), [(1, 200, 1), (3, 200, 16), (2, 11, 8)])
def test_what_is_admitted_on_the_device_is_what_the_host_admits(
    phrases: int, queries: int, slots: int
) -> None:
    torch.manual_seed(0)
    scores = torch.rand(phrases, queries, 5).round(decimals=2)[..., 0]  # many are equal
    for threshold in (0.4, 0.97, 1.0):
        wanted = admitted_reference(scores, threshold, slots)
        spread = torch.stack([scores] * 5, -1).cuda()[..., 0]  # the strides of a summary
        assert torch.equal(admitted_on_device(spread, threshold, slots).cpu(), wanted)


@pytest.mark.parametrize("size_hw", [(64, 48), (7, 9), (288, 1), (500, 3000)])
@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_every_row_of_a_mask_is_written(size_hw: tuple[int, int], reference: str) -> None:
    limit = mask_limit(0.5, reference)
    logits = torch.full((1, 1, 64, 48), 9.0, device="cuda")
    everything, nothing = (mask_limit(end, reference) for end in (0.0, 1.0))
    # The whole picture as a crop, whatever is above the limit.
    where = laid_out(logits, [(0, 0)], size_hw, everything)
    pixels = size_hw[0] * size_hw[1]
    for values, one, area in (
        *[(logits, limit, pixels), (-logits, limit, 0)] * 3,
        (-logits, everything, pixels),
        (logits, nothing, 0),
    ):
        found = masks_to_host(values, where, one, torch.cuda.Stream())
        found.wait()
        assert found.masks(where).areas.tolist() == [area]


def test_a_read_only_picture_arrives_whole() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (501, 307, 3), dtype=np.uint8)
    picture.flags.writeable = False
    upload = Uploader(torch.device("cuda"))
    assert np.array_equal(upload(picture).cpu().numpy(), picture)
    assert np.array_equal(upload(picture[::-1]).cpu().numpy(), picture[::-1])


def test_a_staged_picture_lies_in_pinned_memory_and_arrives_whole() -> None:
    device = torch.device("cuda")
    picture = np.random.default_rng(0).integers(0, 256, (501, 307, 3), dtype=np.uint8)
    there = staged(picture, device)
    assert torch.from_numpy(there).is_pinned()
    upload = Uploader(device)
    target = upload(there)
    upload.wait()
    there[:] = 0  # it is read no more
    assert np.array_equal(target.cpu().numpy(), picture)
    large = np.zeros((3000, 4000, 3), np.uint8)
    assert staged(large, device) is large


def on_device(
    sessions: Mapping[str, Any], image: ImageSpec, tokenizer: PhraseTokenizer, **settings: Any
) -> Segmenter:
    executor = DeviceExecutor(sessions, image, tokenizer, read_image, **settings)
    return Segmenter(executor, image_size=image.size, parts=sessions)


def differing(found: Any, wanted: Any) -> float:
    """Share of the masks' pixels."""
    pixels = max(1, int(np.prod(wanted.masks.shape)))
    return np.count_nonzero(found.masks.dense() != wanted.masks.dense()) / pixels


class OnGpu:
    """A part of the tiny model behind the door of a device session, in float32."""

    runtime, processor, device, captures = "torch", "the GPU", "cuda:0", True

    def __init__(self, part: Any) -> None:
        module = copy.deepcopy(part.module).cuda()
        self.part, self.spec = dataclasses.replace(part, module=module), part.spec
        self.formats = {one.name: TensorFormat(dtype=one.dtype) for one in part.spec.inputs}

    def run(self, tensors: Tensors) -> dict[str, Array]:
        raise AssertionError("nothing goes through the host")

    def close(self) -> None:
        pass

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(self.part(tensors))


class Uncaptured(OnGpu):
    """Of which no CUDA graph is made."""

    captures = False


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_in_cuda_graphs_finds_what_single_calls_find(
    part: Callable[..., Any], checkpoint: Callable[[str], Any], batch: int
) -> None:
    tiny = checkpoint("tiny")
    tokenizer = PhraseTokenizer(tiny.tokenizer, tiny.context, 0)
    sessions = {name: OnGpu(part(name, "tiny")) for name in ("vision", "text", "detector")}
    phrases = ("red circle", "star", "blue object")
    images = [draw_scene(index, split="demo").image for index in range(8)]
    plain, graphs = (
        on_device(sessions, tiny.image, tokenizer, graphs=graphs) for graphs in (False, True)
    )
    with torch.inference_mode():
        wanted = [plain.predict(image, text=phrases) for image in images]
        assert sum(map(len, wanted)) >= 8
        encoded = graphs.encode(images[0])
    for _ in range(2):
        streamed = graphs.stream(images, text=phrases, batch=batch)
        for found, one in zip(streamed, wanted, strict=True):
            assert found.labels == one.labels
            assert differing(found, one) <= 1e-4
            # A call between two results uses the same graphs.
            again = graphs.predict(encoded, text=phrases)
            assert again.labels == wanted[0].labels
            assert differing(again, wanted[0]) <= 1e-4


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("where", ["array", "pinned", "device"])
def test_a_camera_may_fill_one_buffer(
    part: Callable[..., Any], checkpoint: Callable[[str], Any], batch: int, where: str
) -> None:
    tiny = checkpoint("tiny")
    tokenizer = PhraseTokenizer(tiny.tokenizer, tiny.context, 0)
    sessions = {name: OnGpu(part(name, "tiny")) for name in ("vision", "text", "detector")}
    device = on_device(sessions, tiny.image, tokenizer)
    images = [torch.from_numpy(draw_scene(index, split="demo").image) for index in range(7)]
    # Large, so that copies take long enough to be overtaken.
    images = [image.repeat_interleave(16, 0).repeat_interleave(16, 1) for image in images]
    wanted = [device.predict(image.numpy(), text="star") for image in images]

    def camera() -> Any:
        buffer = torch.empty_like(images[0], device="cuda" if where == "device" else "cpu")
        buffer = buffer.pin_memory() if where == "pinned" else buffer
        for image in images:
            buffer.copy_(image)
            yield buffer.numpy() if where == "array" else buffer
        buffer.zero_()

    for found, one in zip(device.stream(camera(), text="star", batch=batch), wanted, strict=True):
        assert found.labels == one.labels
        assert differing(found, one) <= 1e-4
    pinned = images[0].pin_memory()
    encoded = device.encode(pinned)
    pinned.zero_()
    assert device.predict(encoded, text="star").labels == wanted[0].labels


def test_callers_may_be_on_streams_of_their_own(
    part: Callable[..., Any], checkpoint: Callable[[str], Any]
) -> None:
    tiny = checkpoint("tiny")
    tokenizer = PhraseTokenizer(tiny.tokenizer, tiny.context, 0)
    sessions = {name: OnGpu(part(name, "tiny")) for name in ("vision", "text", "detector")}
    device = on_device(sessions, tiny.image, tokenizer)
    images = [draw_scene(index, split="demo").image for index in range(2)]
    wanted = [device.predict(image, text="star") for image in images]
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(2):
        with torch.cuda.stream(one):
            late = torch.zeros_like(torch.from_numpy(images[0]), device="cuda")
            square = torch.randn(4096, 4096, device="cuda")
            for _ in range(100):
                square = square @ square / 4096
            late.copy_(torch.from_numpy(images[0]).pin_memory(), non_blocking=True)
            encoded = device.encode(late)
        with torch.cuda.stream(other):  # its features are not there yet
            found = device.predict(encoded, text="star")
            second = device.predict(images[1], text="star")
        for answer, true in zip((found, second), wanted, strict=True):
            assert answer.labels == true.labels
            assert differing(answer, true) <= 1e-4


def test_boxes_thresholds_and_stages_on_the_gpu(
    part: Callable[..., Any], checkpoint: Callable[[str], Any]
) -> None:
    tiny = checkpoint("tiny")
    tokenizer = PhraseTokenizer(tiny.tokenizer, tiny.context, 0)
    names = ("vision", "text", "detector", "detector_boxes")
    # In eager mode the part with boxes makes a tensor on the host, which no graph can hold.
    sessions = {name: Uncaptured(part(name, "tiny")) for name in names}
    plain, graphs = (on_device(sessions, tiny.image, tokenizer) for _ in "ab")
    images = [draw_scene(index, split="demo").image for index in range(3)]
    found = plain.predict(images[0], text="object")
    asked: list[dict[str, Any]] = [
        {"boxes_xyxy": found.boxes_xyxy[:1]},
        {"boxes_xyxy": found.boxes_xyxy[:2], "box_labels": [1, 0], "text": "object"},
        {"text": ["star", "object"], "threshold": [0.9, 0.1]},
    ]
    for prompt in (*asked, *asked):
        for source in (images[0], graphs.encode(images[0])):
            one = graphs.predict(source, **prompt)
            other = plain.predict(images[0], **prompt)
            assert one.labels == other.labels
            assert len(one)
            assert np.allclose(one.scores, other.scores, atol=1e-4)
            different = np.asarray(one.masks) != np.asarray(other.masks)
            assert different.sum() <= 1e-4 * different.size
    timings = Timings()
    graphs.predict(images, text="star", timings=timings)
    stages = {stage.stage: stage.milliseconds for stage in timings.stages()}
    assert list(stages) == ["decode", "preprocess", "vision", "text", "detector", "post-process"]
    assert min(stages.values()) > 0
    for _ in graphs.stream(iter(images), text="star"):
        graphs.close()  # results that are on their way may be lost, nothing else
        break
