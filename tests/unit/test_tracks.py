"""Track metrics: on cases counted by hand, and on random tracks against TrackEval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.core.masks import Masks
from samforge.measure.clicking import first_click, iou_after_clicks, next_click
from samforge.measure.identities import Identities, identities_from_overlaps, summed_identities
from samforge.measure.overlaps import frame_overlaps
from samforge.measure.regions import boundary, boundary_f, object_scores, region_similarity
from samforge.measure.tracks import compare_tracks, temporal_iou

Mask = np.ndarray
Frames = Sequence[dict[int, Mask]]


def bar(left: int, right: int) -> Mask:
    """Columns of a picture of 4 by 20."""
    mask = np.zeros((4, 20), np.bool_)
    mask[:, left:right] = True
    return mask


def counted(true: Frames, found: Frames) -> Identities:
    return identities_from_overlaps(frame_overlaps(true, found))


# J and F


def test_j() -> None:
    assert region_similarity(bar(0, 6), bar(3, 9)) == 3 / 9
    assert region_similarity(bar(0, 0), bar(0, 0)) == 1
    assert region_similarity(bar(0, 2), bar(0, 0)) == 0


def test_a_boundary_lies_half_a_pixel_up_and_left() -> None:
    mask = np.zeros((5, 6), np.bool_)
    mask[2:4, 2:5] = True
    edge = np.array([list(row) for row in ("000000", "011110", "010010", "011110", "000000")])
    assert np.array_equal(boundary(mask), edge == "1")
    assert not boundary(np.ones((4, 4), np.bool_)).any()


def test_f() -> None:
    # One straight edge of four pixels each, three columns apart.
    left, right = bar(0, 5), bar(0, 8)
    assert boundary_f(left, right, tolerance=3) == 1
    assert boundary_f(left, right, tolerance=2) == 0
    # A second edge that is not in the truth: precision one half, recall 1.
    assert boundary_f(bar(12, 17), bar(0, 17), tolerance=2) == pytest.approx(2 / 3)
    assert boundary_f(bar(0, 0), bar(0, 0)) == 1
    assert boundary_f(bar(0, 5), bar(0, 0)) == 0


def test_tolerance_is_a_share_of_the_diagonal_rounded_up() -> None:
    true, found = np.zeros((2, 224, 224), np.bool_)
    true[:, :100] = True
    for shift, value in ((3, 1.0), (4, 0.0)):  # 0.008 * 316.8 = 2.53
        found[:] = False
        found[:, : 100 + shift] = True
        assert boundary_f(found, true) == value


@pytest.mark.parametrize("score", [region_similarity, boundary_f])
def test_masks_that_do_not_go_together(score: Any) -> None:
    with pytest.raises(ShapeError, match=r"two masks \(H, W\), got \(2, 3\) and \(3, 2\)"):
        score(np.zeros((2, 3), np.bool_), np.zeros((3, 2), np.bool_))
    with pytest.raises(ShapeError, match="want bool, got uint8"):
        score(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.bool_))


def test_scores_of_objects_with_given_ids() -> None:
    true = [{5: bar(0, 4)}, {5: bar(0, 4)}, {}, {5: bar(0, 4)}]
    found = [{}, {0: bar(0, 2), 9: bar(0, 4)}, {}, {0: bar(0, 4)}]
    (one,) = object_scores(true, found, pairs={5: 0})
    assert (one.id, one.found) == (5, 0)
    assert one.j == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert one.j_present == pytest.approx((0 + 0.5 + 1) / 3)
    (other,) = object_scores(true, found, pairs={5: 9})
    assert other.j == pytest.approx((0 + 1 + 1 + 0) / 4)
    (middle,) = object_scores(true, found, pairs={5: 0}, skip_ends=True)
    assert middle.j == pytest.approx((0.5 + 1) / 2)
    assert middle.j_and_f == pytest.approx((middle.j + middle.f) / 2)
    (never,) = object_scores(true, [{}, {}, {}, {}], pairs={})
    assert (never.found, never.j, never.f, never.j_present) == (None, 0.25, 0.25, 0)


def test_an_object_that_the_ends_alone_show_counts() -> None:
    true: Frames = [{1: bar(0, 4)}, {}, {}, {}]
    (gone,) = object_scores(true, [{}, {}, {}, {}], pairs={1: 0}, skip_ends=True)
    assert (gone.j, gone.f, gone.j_present) == (1, 1, None)
    ghost = [{}, {0: bar(0, 4)}, {}, {}]
    (gone,) = object_scores(true, ghost, pairs={1: 0}, skip_ends=True)
    assert (gone.j, gone.f) == (0.5, 0.5)
    with pytest.raises(ShapeError, match="at least one frame"):
        object_scores(true[:2], true[:2], skip_ends=True)


def test_tracks_are_paired_so_that_j_is_largest() -> None:
    true = [{0: bar(0, 4), 1: bar(6, 10)}] * 3
    found = [{7: bar(6, 10), 8: bar(0, 4)}] * 2 + [{7: bar(0, 4), 9: bar(15, 19)}]
    scores = object_scores(true, found)
    assert [(one.id, one.found) for one in scores] == [(0, 8), (1, 7)]
    assert [one.j for one in scores] == pytest.approx([2 / 3, 2 / 3])


# Identities


def test_one_switch_halves_the_identity() -> None:
    true = [{0: bar(0, 4)}] * 10
    found = [{1: bar(0, 4)}] * 5 + [{2: bar(0, 4)}] * 5
    one = counted(true, found)
    assert one == Identities(true_positives=5, false_positives=5, false_negatives=5, switches=1)
    assert one.idf1 == 0.5


def test_two_that_cross_and_swap_make_two_switches() -> None:
    a, b = bar(0, 4), bar(6, 10)
    one = counted([{0: a, 1: b}] * 4, [{0: a, 1: b}] * 3 + [{0: b, 1: a}])
    assert (one.switches, one.true_positives) == (2, 6)
    assert one.idf1 == 0.75


def test_lost_and_found_again_is_a_switch_only_under_another_id() -> None:
    true = [{0: bar(0, 4)}] * 6
    same = [{3: bar(0, 4)}, {}, {}, {3: bar(0, 4)}, {3: bar(0, 4)}, {}]
    assert counted(true, same) == Identities(
        true_positives=3, false_positives=0, false_negatives=3, switches=0
    )
    other = [*same[:3], {4: bar(0, 4)}, {4: bar(0, 4)}, {}]
    assert counted(true, other).switches == 1


def test_a_pair_goes_on_though_another_overlaps_more() -> None:
    true = [{0: bar(0, 8)}, {0: bar(0, 8)}]
    found = [{1: bar(0, 8)}, {1: bar(0, 5), 2: bar(0, 8)}]
    assert counted(true, found).switches == 0
    assert counted(true, [found[0], {1: bar(0, 3), 2: bar(0, 8)}]).switches == 1


def test_nothing_there_and_nothing_found() -> None:
    assert counted([{}, {}], [{}, {}]).idf1 == 1
    assert counted([{}], [{0: bar(0, 4)}]).idf1 == 0
    assert counted([{0: bar(0, 4)}], [{0: bar(0, 0)}]).false_positives == 0


def test_clips_add_up() -> None:
    one = Identities(true_positives=3, false_positives=1, false_negatives=0, switches=2)
    two = Identities(true_positives=1, false_positives=0, false_negatives=3, switches=1)
    both = summed_identities([one, two])
    assert both == Identities(true_positives=4, false_positives=1, false_negatives=3, switches=3)
    assert both.idf1 == pytest.approx(8 / 12)


# Temporal IoU, and two runs


def test_temporal_iou_sums_before_it_divides() -> None:
    true = [{0: bar(0, 10)}, {0: bar(0, 2)}]
    found = [{4: bar(0, 5)}, {4: bar(0, 2), 5: bar(10, 20)}]
    table = temporal_iou(frame_overlaps(true, found))
    assert (table.true_ids, table.found_ids) == ((0,), (4, 5))
    assert table.iou.tolist() == [[7 / 12, 0.0]]  # the mean over the frames would be 0.75
    assert table.pairs() == {0: 4}


def test_two_runs_are_compared() -> None:
    reference = [{0: bar(0, 4)}, {0: bar(0, 4), 1: bar(6, 10)}, {1: bar(6, 10), 2: bar(12, 14)}]
    found = [{}, {5: bar(0, 4), 3: bar(6, 10)}, {3: bar(6, 9), 8: bar(18, 20)}]
    one = compare_tracks(reference, found)
    assert one.pairs == {0: 5, 1: 3}
    assert one.temporal_iou == {0: 0.5, 1: 7 / 8, 2: 0.0}
    assert (one.lost, one.extra, one.tracks) == ((2,), (8,), 3)
    assert (one.mean, one.worst) == (pytest.approx(1.375 / 3), 0)
    assert (one.born_alike, one.ended_alike) == (1, 2)
    assert one.worst_frame == (0, 0, 0.0)
    assert one.identities.switches == 0


def test_a_run_against_itself() -> None:
    frames = [{0: bar(0, 4), 7: bar(8, 9)}, {7: bar(9, 10)}]
    one = compare_tracks(frames, frames)
    assert (one.mean, one.worst, one.lost, one.extra) == (1, 1, (), ())
    assert (one.born_alike, one.ended_alike, one.identities.switches) == (2, 2, 0)
    assert one.worst_frame is not None
    assert one.worst_frame[2] == 1


def test_two_runs_that_find_nothing_agree() -> None:
    one = compare_tracks([{}, {}], [{}, {}])
    assert (one.mean, one.worst, one.worst_frame, one.tracks) == (1, 1, None, 0)


# What comes in


def detections(masks: dict[int, Mask], *, ids: bool = True) -> Detections:
    packed = Masks.from_dense(np.stack(list(masks.values())))
    return Detections(
        masks=packed,
        boxes_xyxy=packed.boxes.astype(np.float32),
        scores=np.ones(len(masks), np.float32),
        labels=("star",) * len(masks),
        size_hw=packed.size_hw,
        ids=np.array(list(masks), np.int64) if ids else None,
    )


def test_detections_with_ids_are_frames() -> None:
    masks = {3: bar(0, 4), 9: bar(6, 10)}
    empty = Detections.empty((4, 20))
    nothing = detections(masks)[[]]
    assert compare_tracks([detections(masks), nothing], [masks, {}]).temporal_iou == {3: 1, 9: 1}
    assert object_scores([detections(masks)], [masks])[0].j_and_f == 1
    with pytest.raises(SettingError, match="detections with ids"):
        frame_overlaps([detections(masks, ids=False)], [masks])
    with pytest.raises(SettingError, match="detections with ids"):
        frame_overlaps([empty], [masks])


def test_frames_that_do_not_go_together() -> None:
    with pytest.raises(ShapeError, match="the same frames, got 1 and 2"):
        frame_overlaps([{}], [{}, {}])
    with pytest.raises(ShapeError, match="masks of one image size"):
        frame_overlaps([{0: bar(0, 2)}], [{0: bar(0, 2)[:, :10]}])
    with pytest.raises(ShapeError, match="Masks of a frame are of one size"):
        frame_overlaps([{0: bar(0, 2), 1: bar(0, 2)[:, :10]}], [{}])
    twice = detections({1: bar(0, 4), 2: bar(6, 8)})
    twice.ids[:] = 1
    with pytest.raises(SettingError, match=r"An id is on a frame once, got \[1, 1\]"):
        frame_overlaps([twice], [{}])


# Clicks


def test_clicks_lie_where_it_is_thickest() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[2:7, 1:6] = True
    mask[4, 6:] = True
    assert first_click(mask) == (3, 4)
    assert next_click(mask, mask) == (3, 4, 1)
    assert next_click(np.zeros_like(mask), mask) == (3, 4, 1)
    added = mask.copy()
    added[:, 6:] = True  # three columns too many, five rows high at most between edges
    assert next_click(added, mask)[2] == 0
    missed = mask.copy()
    missed[2:7, 1:4] = False
    assert next_click(missed, mask) == (2, 3, 1)


class Asked:
    """A segmenter that answers with the whole picture, then with the truth."""

    def __init__(self, true: Mask) -> None:
        self.true, self.asked = true, []
        self.hole_areas: list[int | None] = []

    def encode(self, image: Any) -> Any:
        return image

    def predict_objects(
        self, image: Any, prompts: Any, *, earlier: Any, hole_area: int | None
    ) -> Detections:
        self.hole_areas.append(hole_area)
        self.asked.append([(one.points, one.labels) for one in prompts])
        assert (earlier is None) == (len(self.asked) == 1)
        given = np.ones_like(self.true) if earlier is None else self.true
        return detections({0: given}, ids=False)


def test_every_click_is_asked_again_with_the_next() -> None:
    true = bar(0, 4)
    segmenter = Asked(true)
    ious = iou_after_clicks(segmenter, true, {7: true}, 3)  # type: ignore[arg-type]
    assert ious == {7: (0.2, 1.0, 1.0)}
    first, second, third = (one[0] for one in segmenter.asked)
    assert first[1] == [1]
    assert second[0][0] == first[0][0]
    assert second[1] == [1, 0], "beside the object, where the answer was too large"
    assert third[1] == [1, 0, 1]
    assert iou_after_clicks(segmenter, true, {}, 3) == {}  # type: ignore[arg-type]


def test_every_click_is_judged_with_the_same_holes_filled() -> None:
    true = bar(0, 4)
    for area in (None, 0, 12):
        segmenter = Asked(true)
        iou_after_clicks(segmenter, true, {7: true}, 2, hole_area=area)  # type: ignore[arg-type]
        assert segmenter.hole_areas == [area, area]


# TrackEval as the oracle


def random_tracks(seed: int) -> tuple[Frames, Frames]:
    """Discs that wander; of the run some are missed, moved, swapped, or of nothing."""
    rng = np.random.default_rng(seed)
    frames, count = 12, int(rng.integers(2, 5))
    rows, columns = np.mgrid[:48, :64]
    place = rng.uniform(8, 40, (count, 2))
    speed = rng.uniform(-3, 3, (count, 2))
    names = np.arange(count)
    true: list[dict[int, Mask]] = []
    found: list[dict[int, Mask]] = []
    for frame in range(frames):

        def disc(centre: Any, radius: float) -> Mask:
            return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2

        if frame and rng.random() < 0.3:
            names = rng.permutation(names)
        centres = place + frame * speed
        there = {index: disc(centres[index], 7) for index in range(count) if rng.random() < 0.85}
        seen = {
            int(names[index]): disc(centres[index] + rng.normal(0, 1.2, 2), rng.uniform(5, 9))
            for index in range(count)
            if rng.random() < 0.85
        }
        if rng.random() < 0.3:
            seen[count] = disc(rng.uniform(8, 40, 2), 6)
        true.append({number: mask for number, mask in there.items() if mask.any()})
        found.append({number: mask for number, mask in seen.items() if mask.any()})
    return true, found


def as_trackeval(true: Frames, found: Frames) -> dict[str, Any]:
    """What TrackEval's ``eval_sequence`` takes; ids count from 0 without gaps."""
    mask_utils = pytest.importorskip("pycocotools.mask")
    data: dict[str, Any] = {"num_timesteps": len(true)}
    for side, frames in (("gt", true), ("tracker", found)):
        known = sorted({number for frame in frames for number in frame})
        data[f"num_{side}_ids"] = len(known)
        data[f"num_{side}_dets"] = sum(map(len, frames))
        data[f"{side}_ids"] = [
            np.array([known.index(number) for number in frame], int) for frame in frames
        ]
        data[f"{side}_dets"] = [
            [mask_utils.encode(np.asfortranarray(mask, np.uint8)) for mask in frame.values()]
            for frame in frames
        ]
    data["similarity_scores"] = [
        np.array(mask_utils.iou(other, one, [False] * len(one)), float)
        .reshape(len(other), len(one))
        .T
        for one, other in zip(data["gt_dets"], data["tracker_dets"], strict=True)
    ]
    return data


@pytest.fixture(scope="module")
def trackeval() -> Any:
    return pytest.importorskip("trackeval.metrics")


@pytest.mark.parametrize("seed", range(25))
def test_identities_are_those_of_trackeval(trackeval: Any, seed: int) -> None:
    true, found = random_tracks(seed)
    data = as_trackeval(true, found)
    quiet = {"PRINT_CONFIG": False}
    identity = trackeval.Identity(quiet).eval_sequence(data)
    clear = trackeval.CLEAR(quiet).eval_sequence(data)
    one = counted(true, found)
    assert one == Identities(
        true_positives=identity["IDTP"],
        false_positives=identity["IDFP"],
        false_negatives=identity["IDFN"],
        switches=clear["IDSW"],
    )
    assert one.idf1 == pytest.approx(identity["IDF1"], abs=1e-12)


# pycocotools 2.0.11 decodes through an array type of before NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("seed", range(8))
def test_j_and_f_are_those_of_trackeval(trackeval: Any, seed: int) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("skimage")
    true, found = random_tracks(seed)
    wanted = trackeval.JAndF().eval_sequence(as_trackeval(true, found))
    scores = object_scores(true, found)
    assert len(scores) == wanted["num_gt_tracks"]
    assert np.mean([one.j for one in scores]) == pytest.approx(wanted["J-Mean"], abs=1e-12)
    assert np.mean([one.f for one in scores]) == pytest.approx(wanted["F-Mean"], abs=1e-12)
    assert np.mean([one.j_and_f for one in scores]) == pytest.approx(wanted["J&F"], abs=1e-12)


def test_there_is_something_to_count() -> None:
    switches = [counted(*random_tracks(seed)).switches for seed in range(25)]
    assert sum(switches) > 50
    assert min(switches) < max(switches)
