"""Label Studio's packing, against its own reader and against one written from the format."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from brush import unpacked
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from samforge.core.masks import Masks
from samforge.formats import brush_rle

SQUARE = np.zeros((4, 6), np.bool_)
SQUARE[1:3, 2:5] = True


def _packed(mask: npt.NDArray[np.bool_]) -> list[int]:
    masks = Masks.from_dense(mask[None])
    return brush_rle(*masks.crop(0), (mask.shape[0], mask.shape[1]))


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_what_is_packed_is_the_mask(mask: npt.NDArray[np.bool_]) -> None:
    assert (unpacked(_packed(mask), mask.shape) == mask).all()


def test_long_runs_are_split() -> None:
    mask = np.zeros((300, 400), np.bool_)
    mask[150:] = True
    assert (unpacked(_packed(mask), mask.shape) == mask).all()


def test_the_bytes_stay_as_they_were_accepted() -> None:
    """label-studio-sdk 2.1.2 read these back as the mask; the next test does, where it is."""
    data = _packed(SQUARE)
    assert data[:7] == [0, 0, 0, 96, 57, 27, 254]
    assert hashlib.sha256(bytes(data)).hexdigest()[:16] == "47781bf12d3c63fd"


def test_label_studio_reads_it() -> None:
    brush: Any = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    pixels = brush.decode_rle(_packed(SQUARE)).reshape(4, 6, 4)
    assert ((pixels[..., 3] > 0) == SQUARE).all()
    assert (brush.decode_rle(brush.mask2rle(SQUARE * 255)).reshape(4, 6, 4) == pixels).all()
