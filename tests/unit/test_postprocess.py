import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

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


def expected(
    raw: RawDetections, size_hw: tuple[int, int], thresholds: Thresholds, reference: str = "meta"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the references' own post-processing gives for one image, by torch.

    Meta's Sam3Processor resizes logits, takes their sigmoid and compares it with 0.5;
    post_process_instance_segmentation of transformers' Sam3ImageProcessor resizes probabilities.
    """
    logits, boxes, masks = (torch.from_numpy(a) for a in (raw.logits, raw.boxes, raw.masks))
    scores = logits.sigmoid() * torch.tensor([raw.presence_logit]).sigmoid()
    height, width = size_hw
    boxes = boxes * torch.tensor([width, height, width, height])
    keep = scores > thresholds.score
    masks = masks[keep]
    if reference == "transformers":
        masks = masks.sigmoid()
    if len(masks):
        masks = torch.nn.functional.interpolate(
            masks[None], size=size_hw, mode="bilinear", align_corners=False
        )[0]
    if reference == "meta":
        masks = masks.sigmoid()
    return scores[keep], boxes[keep], masks > thresholds.mask


@pytest.mark.parametrize("reference", ["meta", "transformers"])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("mask_threshold", [0.5, 0.3])
@pytest.mark.parametrize(
    "size_hw", [(480, 640), (720, 1280), (224, 224), (288, 288), (37, 501), (1, 1), (2, 900)]
)
def test_equal_to_the_reference(
    size_hw: tuple[int, int], mask_threshold: float, *, smooth: bool, reference: str
) -> None:
    outputs = raw(12, 72, smooth=smooth)
    thresholds = Thresholds(score=0.3, mask=mask_threshold)
    found = detections_from_raw(
        outputs, label=LABEL, size_hw=size_hw, thresholds=thresholds, reference=reference
    )
    scores, boxes, masks = expected(outputs, size_hw, thresholds, reference)
    order = torch.argsort(scores, descending=True)
    assert len(found) == len(scores) > 3
    assert np.allclose(found.scores, scores[order], atol=2e-7)
    # Theirs are not clipped; drawn boxes can have their corners the wrong way round.
    assert np.array_equal(found.boxes_xyxy, clipped_boxes(boxes[order].numpy(), size_hw))
    # One rounding of the exponential (ours or theirs) can turn a pixel exactly at the threshold.
    differing = np.count_nonzero(found.masks != masks[order].numpy())
    assert differing <= (0 if smooth else 1e-6 * masks.numel())


def test_the_order_matters() -> None:
    """Between logits 1 and -9 the edge lies near the first; between their shares, further on."""
    outputs = raw(1, 2)
    outputs.masks[:] = np.array([1.0, -9.0], np.float32)
    covered = {
        reference: detections_from_raw(
            outputs,
            label=LABEL,
            size_hw=(20, 200),
            thresholds=Thresholds(score=0.0),
            reference=reference,
        )
        .masks.dense()
        .mean()
        for reference in ("meta", "transformers")
    }
    # The first column of each row is centred at 50 pixels, the second at 150.
    crossing = {"meta": 50 + 100 * 1 / 10, "transformers": 50 + 100 * (0.7311 - 0.5) / 0.7309}
    for reference, column in crossing.items():
        assert covered[reference] == pytest.approx(column / 200, abs=0.003)


@pytest.mark.parametrize("reference", ["meta", "transformers"])
@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_thresholds_at_the_ends(reference: str, threshold: float, share: float) -> None:
    outputs = raw(2, 8, smooth=False)
    found = detections_from_raw(
        outputs,
        label=LABEL,
        size_hw=(33, 20),
        thresholds=Thresholds(score=0.0, mask=threshold),
        reference=reference,
    )
    assert found.masks.dense().mean() == share


def test_logits_that_overflowed_are_no_masks() -> None:
    outputs = raw(3, 8)
    outputs.masks[:, 2, 2] = np.inf
    with pytest.raises(FidelityError, match="masks for 'star' hold infinity or NaN"):
        detections_from_raw(outputs, label=LABEL, size_hw=(9, 9), thresholds=Thresholds(score=0))


def test_288_mask_to_full_hd_is_equal_to_torch() -> None:
    outputs, thresholds = raw(4, 288), Thresholds(score=0.0)
    found = detections_from_raw(outputs, label=LABEL, size_hw=(1080, 1920), thresholds=thresholds)
    scores, _, masks = expected(outputs, (1080, 1920), thresholds)
    assert np.array_equal(found.masks, masks[torch.argsort(scores, descending=True)].numpy())


@settings(max_examples=40, deadline=None)
@given(
    size_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.integers(1, 40),
    seed=st.integers(0, 99),
    reference=st.sampled_from(["meta", "transformers"]),
)
def test_any_sizes(size_hw: tuple[int, int], size: int, seed: int, reference: str) -> None:
    outputs, thresholds = raw(3, size, seed), Thresholds(score=0.0)
    found = detections_from_raw(
        outputs, label=LABEL, size_hw=size_hw, thresholds=thresholds, reference=reference
    )
    scores, _, masks = expected(outputs, size_hw, thresholds, reference)
    wanted = masks[torch.argsort(scores, descending=True, stable=True)].numpy()
    assert np.count_nonzero(found.masks != wanted) <= 1


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
    assert not below.masks.areas.any()  # probability 0.5 everywhere is not above 0.5


def test_extreme_logits() -> None:
    outputs = RawDetections(
        logits=np.array([1000.0, -1000.0], np.float32),
        boxes=np.zeros((2, 4), np.float32),
        masks=np.full((2, 2, 2), 1000.0, np.float32),
        presence_logit=float("inf"),
    )
    found = detections_from_raw(outputs, label=LABEL, size_hw=(2, 2), thresholds=Thresholds())
    assert found.scores.tolist() == [1.0]
    assert found.masks.dense().all()


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


@pytest.mark.parametrize("most", [0, -1, 2.5, True, "3"])
def test_max_detections_is_checked(most: object) -> None:
    with pytest.raises(SettingError, match=r"^max_detections is .* whole number from 1"):
        Thresholds(max_detections=most)


def test_the_best_are_kept_and_the_others_counted() -> None:
    outputs = raw(30, 8)
    settings = {"label": LABEL, "size_hw": (9, 9)}
    everything = detections_from_raw(outputs, thresholds=Thresholds(score=0.2), **settings)
    assert len(everything) > 7
    assert everything.cut_off == 0
    best = Thresholds(score=0.2, max_detections=7)
    found = detections_from_raw(outputs, thresholds=best, **settings)
    assert found.scores.tolist() == everything.scores[:7].tolist()
    assert found.masks == everything.masks[:7]
    assert found.cut_off == len(everything) - 7
    assert found.to_dict()["cut_off"] == found.cut_off


@pytest.mark.slow
def test_100_masks_of_12_megapixels_take_60_mib() -> None:
    """Of resident memory, in a process of its own: benchmarks/masks.py has the figures."""
    path = Path(__file__).parents[2] / "benchmarks" / "masks.py"
    done = subprocess.run(
        [sys.executable, str(path), "--side"], check=True, capture_output=True, text=True
    )
    figures = json.loads(done.stdout)
    assert figures["masks"] == 100
    assert figures["peak_mib"] < 60
    assert figures["to_coco_seconds"] < 2  # 0.25 to 0.4 on two cores


def test_masks_are_made_one_by_one() -> None:
    outputs = raw(100, 72)
    size_hw = (1200, 1600)
    tracemalloc.start()
    found = detections_from_raw(
        outputs, label=LABEL, size_hw=size_hw, thresholds=Thresholds(score=0.0)
    )
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 100
    assert found.masks.nbytes < held < found.masks.nbytes + 1e6 < 25e6
    assert peak < held + 8e6  # beside a dense mask of 1.9 MB, not 100 of them


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
    assert peak < 9_000 * 12_000 + 50e6  # one crop of booleans, and no float32 of it (432 MB)
    _, _, masks = expected(outputs, (900, 1200), Thresholds())
    assert abs(found.areas.sum() / (9_000 * 12_000) - masks.double().mean().item()) < 1e-4
