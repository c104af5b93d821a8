"""Masks as crops: the same pixels, areas, boxes, IoU and runs as dense masks have."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from samforge.core.errors import SettingError, ShapeError
from samforge.core.masks import Masks
from samforge.core.packed_crop import PackedCrop
from samforge.core.rle import mask_from_segmentation, segmentation_from_mask

SIDES = st.integers(1, 23)
ANY = st.one_of(
    hnp.arrays(np.bool_, st.tuples(st.integers(0, 3), SIDES, SIDES)),
    # Rectangles and bars: runs that go on over several columns, edges on both sides of a byte.
    st.builds(
        lambda size, spans: np.stack([_rectangle(size, span) for span in spans]),
        st.tuples(SIDES, SIDES),
        st.lists(st.tuples(*[st.integers(0, 24)] * 4), min_size=1, max_size=3),
    ),
)


def _rectangle(size: tuple[int, int], span: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[span[0] : span[1], span[2] : span[3]] = True
    return mask


@settings(max_examples=200, deadline=None)
@given(ANY)
@example(np.ones((2, 7, 17), np.bool_))
@example(np.zeros((2, 3, 9), np.bool_))
def test_what_dense_masks_say(dense: np.ndarray) -> None:
    masks = Masks.from_dense(dense)
    assert masks.shape == dense.shape
    for kept in (masks, masks.compact(), pickle.loads(pickle.dumps(masks))):
        assert np.array_equal(kept.dense(), dense)
        assert np.array_equal(np.asarray(kept), dense)
        assert [one.tolist() for one in kept] == dense.tolist()
        assert kept.areas.tolist() == dense.sum((1, 2)).tolist()
        assert kept == masks
    for mask, box in zip(dense, masks.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        tight = [min(columns), min(rows), max(columns) + 1, max(rows) + 1] if len(rows) else [0] * 4
        assert box == tight
    for i, mask in enumerate(dense):
        crop, (top, left) = masks.crop(i)
        pasted = np.zeros_like(mask)
        pasted[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert np.array_equal(pasted, mask)
        assert crop.dtype == np.bool_
        assert crop.size == 0 or all(ends[[0, -1]].all() for ends in (crop.any(0), crop.any(1)))


@settings(max_examples=300, deadline=None)
@given(ANY)
@example(np.ones((1, 7, 17), np.bool_))
@example(np.zeros((1, 3, 9), np.bool_))
def test_runs_are_pycocotools(dense: np.ndarray) -> None:
    masks = Masks.from_dense(dense)
    segmentations = [masks.rle(i) for i in range(len(masks))]
    for mask, segmentation in zip(dense, segmentations, strict=True):
        theirs = coco.encode(np.asfortranarray(mask.view(np.uint8)))
        assert segmentation["counts"].encode() == theirs["counts"]
        assert segmentation["size"] == list(mask.shape)
        assert segmentation_from_mask(mask) == segmentation
        assert np.array_equal(mask_from_segmentation(segmentation, mask.shape), mask)
    assert np.array_equal(Masks.from_rle(segmentations, masks.size_hw), dense)


def _dense_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """With products of dense masks, as it was computed before masks were crops."""
    flat, other = (one.reshape(len(one), -1).astype(np.float32) for one in (first, second))
    overlap = (flat @ other.T).astype(np.float64)
    union = flat.sum(1)[:, None] + other.sum(1)[None] - overlap
    return overlap / np.maximum(union, 1)


@settings(max_examples=150, deadline=None)
@given(st.data(), SIDES, SIDES, st.integers(1, 3), st.integers(1, 3))
def test_iou_is_that_of_dense_masks(
    data: st.DataObject, height: int, width: int, count: int, others: int
) -> None:
    first = data.draw(hnp.arrays(np.bool_, (count, height, width)))
    second = data.draw(hnp.arrays(np.bool_, (others, height, width)))
    crops = Masks.from_dense(first), Masks.from_dense(second).compact()
    assert np.array_equal(crops[0].iou(crops[1]), _dense_iou(first, second))
    assert np.array_equal(crops[0].iou(crops[0]), _dense_iou(first, first))


def _three() -> np.ndarray:
    dense = np.zeros((3, 30, 50), np.bool_)
    dense[0, 3:20, 11:40] = True
    dense[1, 29, 49] = True
    return dense


def test_indexing() -> None:
    dense, masks = _three(), Masks.from_dense(_three())
    assert np.array_equal(masks[0], dense[0])
    assert np.array_equal(masks[np.int64(-2)], dense[-2])
    for index in (slice(1, None), [2, 0], np.array([True, False, True]), [], slice(None, None, -1)):
        chosen = masks[index]
        assert isinstance(chosen, Masks)
        assert np.array_equal(chosen, dense[index] if len(chosen) else dense[:0])
    for wrong in (3, [5], [True, False]):
        with pytest.raises(IndexError):
            masks[wrong]
    joined = Masks.concatenate([masks, Masks.empty((30, 50)), masks[:1]])
    assert np.array_equal(joined, dense[[0, 1, 2, 0]])
    assert joined.packed[3] is masks.packed[0]
    assert repr(joined) == "Masks(4 of 30 x 50 pixels)"


def test_equality_is_of_pixels() -> None:
    masks = Masks.from_dense(_three())
    crops = ((mask[1:], (1, 0)) for mask in _three())  # wider crops, the same masks
    assert masks == Masks.from_crops(crops, (30, 50))
    assert masks != masks[::-1]
    assert masks != masks[:2]
    assert Masks.empty((3, 4)) != Masks.empty((4, 3))
    other = _three()
    other[0, 4, 12] = False
    assert masks != Masks.from_dense(other)
    assert masks != "masks"
    with pytest.raises(TypeError, match="unhashable"):
        hash(masks)


def test_a_mask_does_not_change() -> None:
    dense = _three()
    masks = Masks.from_dense(dense)
    dense[:] = True
    assert np.array_equal(masks, _three())
    masks[0][:] = True  # what is given is a copy
    masks.crop(0)[0][:] = False
    assert np.array_equal(masks, _three())
    with pytest.raises(ValueError, match="read-only"):
        masks.packed[0].bits[:] = 0
    with pytest.raises(ValueError, match="is a copy"):
        np.asarray(masks, copy=False)


@pytest.mark.parametrize(
    ("crop", "top_left"), [((3, 4), (28, 0)), ((3, 4), (0, 47)), ((1, 1), (-1, 0))]
)
def test_crops_lie_inside_the_image(crop: tuple[int, int], top_left: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=r"not all inside an image of \(30, 50\) \(H, W\)"):
        Masks.from_crops([(np.ones(crop, np.bool_), top_left)], (30, 50))


@pytest.mark.parametrize(("left", "columns"), [(4, 1), (-8, 1), (40, 3)])
def test_packed_crops_lie_inside_the_image(left: int, columns: int) -> None:
    bits = np.zeros((2, columns), np.uint8)
    with pytest.raises(ShapeError, match="do not begin at a multiple of 8"):
        Masks(size_hw=(30, 50), packed=(PackedCrop(top=0, left=left, bits=bits),))


def test_what_does_not_fit_is_refused() -> None:
    masks = Masks.from_dense(_three())
    with pytest.raises(ShapeError, match=r"bool \(N, H, W\), got uint8 \(3, 30, 50\)"):
        Masks.from_dense(_three().view(np.uint8))
    with pytest.raises(ShapeError, match=r"got \(30, 50\) and \(3, 4\)"):
        masks.iou(Masks.empty((3, 4)))
    with pytest.raises(ShapeError, match=r"got sizes \[\(3, 4\), \(30, 50\)\]"):
        Masks.concatenate([masks, Masks.empty((3, 4))])
    with pytest.raises(ShapeError, match="got sizes"):
        Masks.concatenate([])
    with pytest.raises(SettingError, match="The RLE is damaged"):
        Masks.from_rle([{"size": [2, 2], "counts": [3]}], (2, 2))


def _ellipses(count: int, size_hw: tuple[int, int]) -> Any:
    height, width = size_hw
    rng = np.random.default_rng(0)
    for _ in range(count):
        rows, columns = (int(rng.uniform(0.1, 0.4) * side) for side in size_hw)
        top, left = int(rng.integers(height - rows)), int(rng.integers(width - columns))
        down, across = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        yield down**2 + across**2 < 1, (top, left)


def test_masks_that_are_kept_are_small_at_any_resolution() -> None:
    masks = Masks.from_crops(_ellipses(5, (3000, 4000)), (3000, 4000))
    assert masks.nbytes < masks.areas.sum() / 8 * 1.3 + 5 * 1200
    compact = masks.compact()
    assert compact.nbytes < 5 * 8_000
    assert compact == masks
    assert compact.compact().packed == compact.packed
    assert np.array_equal(compact.iou(masks).diagonal(), np.ones(5))
