import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samforge.core.boxes import clipped_boxes
from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.runtime import RawDetections, Thresholds, detections_from_raw

LABEL = "star"


def raw(queries: int, size: int, seed: int = 0, *, smooth: bool = True) -> RawDetections:
    rng = np.random.default_rng(seed)
    masks = rng.normal(0, 3, (queries, size, size))
    if smooth:
        rows, columns = np.mgrid[:size, :size] / size
        centres, radii = rng.uniform(0, 1, (2, queries, 1, 1)), rng.uniform(0.1, 0.4, queries)
        distance = np.hypot(rows - centres[0], columns - centres[1])
        masks = (radii[:, None, None] - distance) * 40 + 0.1 * masks
    return RawDetections(
        logits=rng.normal(0, 2, queries).astype(np.float32),
        boxes=rng.uniform(0, 1, (queries, 4)).astype(np.float32),
        masks=masks.astype(np.float32),
        presence_logit=2.0,
    )


def reference(
    raw: RawDetections, size_hw: tuple[int, int], thresholds: Thresholds
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sam3ImageProcessor.post_process_instance_segmentation of transformers 5.23, one image."""
    logits, boxes, masks = (torch.from_numpy(a) for a in (raw.logits, raw.boxes, raw.masks))
    scores = logits.sigmoid() * torch.tensor([raw.presence_logit]).sigmoid()
    height, width = size_hw
    boxes = boxes * torch.tensor([width, height, width, height])
    keep = scores > thresholds.score
    masks = masks.sigmoid()[keep]
    if len(masks):
        masks = torch.nn.functional.interpolate(
            masks[None], size=size_hw, mode="bilinear", align_corners=False
        )[0]
    return scores[keep], boxes[keep], masks > thresholds.mask


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("mask_threshold", [0.5, 0.3])
@pytest.mark.parametrize(
    "size_hw", [(480, 640), (720, 1280), (224, 224), (288, 288), (37, 501), (1, 1), (2, 900)]
)
def test_equal_to_transformers(
    size_hw: tuple[int, int], mask_threshold: float, *, smooth: bool
) -> None:
    outputs = raw(12, 72, smooth=smooth)
    thresholds = Thresholds(score=0.3, mask=mask_threshold)
    found = detections_from_raw(outputs, label=LABEL, size_hw=size_hw, thresholds=thresholds)
    scores, boxes, masks = reference(outputs, size_hw, thresholds)
    order = torch.argsort(scores, descending=True)
    assert len(found) == len(scores) > 3
    assert np.allclose(found.scores, scores[order], atol=2e-7)
    # Theirs are not clipped; drawn boxes can have their corners the wrong way round.
    assert np.array_equal(found.boxes_xyxy, clipped_boxes(boxes[order].numpy(), size_hw))
    # One rounding of the exponential (ours or theirs) can turn a pixel exactly at the threshold.
    differing = np.count_nonzero(found.masks != masks[order].numpy())
    assert differing <= (0 if smooth else 1e-6 * masks.numel())


def test_288_mask_to_full_hd_is_equal_to_torch() -> None:
    outputs, thresholds = raw(4, 288), Thresholds(score=0.0)
    found = detections_from_raw(outputs, label=LABEL, size_hw=(1080, 1920), thresholds=thresholds)
    scores, _, masks = reference(outputs, (1080, 1920), thresholds)
    assert np.array_equal(found.masks, masks[torch.argsort(scores, descending=True)].numpy())


@settings(max_examples=40, deadline=None)
@given(
    size_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_sizes(size_hw: tuple[int, int], size: int, seed: int) -> None:
    outputs, thresholds = raw(3, size, seed), Thresholds(score=0.0)
    found = detections_from_raw(outputs, label=LABEL, size_hw=size_hw, thresholds=thresholds)
    scores, _, masks = reference(outputs, size_hw, thresholds)
    expected = masks[torch.argsort(scores, descending=True, stable=True)].numpy()
    assert np.count_nonzero(found.masks != expected) <= 1


def test_sorted_and_best_score() -> None:
    outputs = raw(30, 8)
    found = detections_from_raw(
        outputs, label=LABEL, size_hw=(9, 9), thresholds=Thresholds(score=0.4)
    )
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() > 0.4
    assert found.labels == (LABEL,) * len(found)
    assert found.best_scores == {LABEL: float(found.scores[0])}


def test_nothing_admitted_still_says_how_near_it_was() -> None:
    outputs = RawDetections(
        logits=np.array([0.0, -1.0], np.float32),
        boxes=np.zeros((2, 4), np.float32),
        masks=np.zeros((2, 4, 4), np.float32),
        presence_logit=0.0,
    )
    at = detections_from_raw(
        outputs, label=LABEL, size_hw=(3, 5), thresholds=Thresholds(score=0.25)
    )
    assert len(at) == 0  # a score equal to the threshold is not above it
    assert at.masks.shape == (0, 3, 5)
    assert at.best_scores == {LABEL: 0.25}
    below = detections_from_raw(
        outputs, label=LABEL, size_hw=(3, 5), thresholds=Thresholds(score=0.24)
    )
    assert len(below) == 1
    assert not below.masks.any()  # probability 0.5 everywhere is not above 0.5


def test_extreme_logits() -> None:
    outputs = RawDetections(
        logits=np.array([1000.0, -1000.0], np.float32),
        boxes=np.zeros((2, 4), np.float32),
        masks=np.full((2, 2, 2), 1000.0, np.float32),
        presence_logit=float("inf"),
    )
    found = detections_from_raw(outputs, label=LABEL, size_hw=(2, 2), thresholds=Thresholds())
    assert found.scores.tolist() == [1.0]
    assert found.masks.all()


@pytest.mark.parametrize("where", ["logits", "boxes", "masks"])
def test_nan_is_no_empty_answer(where: str) -> None:
    outputs = raw(5, 8)
    getattr(outputs, where)[:] = np.nan
    with pytest.raises(FidelityError, match=r"NaN.*precision fp32"):
        detections_from_raw(outputs, label=LABEL, size_hw=(4, 4), thresholds=Thresholds(score=0))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_are_checked(value: float) -> None:
    with pytest.raises(SettingError, match=r"^threshold is .* from 0 to 1"):
        Thresholds(score=value)
    with pytest.raises(SettingError, match="mask_threshold"):
        Thresholds(mask=value)


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"got \(2,\), \(3, 4\)"):
        RawDetections(
            logits=np.zeros(2), boxes=np.zeros((3, 4)), masks=np.zeros((2, 4, 4)), presence_logit=0
        )


def test_108_megapixels_in_little_memory() -> None:
    outputs = raw(200, 288)
    outputs.logits[:] = -9
    outputs.logits[7] = 9
    size_hw = (9_000, 12_000)
    tracemalloc.start()
    found = detections_from_raw(outputs, label=LABEL, size_hw=size_hw, thresholds=Thresholds())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1
    assert peak < 9_000 * 12_000 + 150e6  # the mask itself, and no float32 copy of it (432 MB)
    _, _, expected = reference(outputs, (900, 1200), Thresholds())
    assert abs(found.masks.mean() - expected.double().mean().item()) < 1e-4
