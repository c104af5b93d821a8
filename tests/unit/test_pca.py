"""The PCA picture: worked colours, deterministic signs, foreground, shared axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.draw import pca_pictures


def disc(size: int = 24, radius: float = 7.0, width: int = 8, seed: int = 0) -> Any:
    """Features of a disc in the middle: far from the ground's, and varied inside."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centre = (size - 1) / 2
    inside = np.hypot(rows - centre, columns - centre) < radius
    features = rng.normal(0, 0.05, (width, size, size))
    features[0, inside] += 10.0
    features[1] += np.where(inside, (columns - centre) / radius, 0) * 3
    features[2] += np.where(inside, (rows - centre) / radius, 0) * 2
    features[3] += np.where(inside, rng.normal(0, 0.5, (size, size)), 0)
    return features.astype(np.float32), inside


def test_foreground_is_what_stands_out_off_the_rim() -> None:
    features, inside = disc()
    for sign in (1, -1):
        (picture,) = pca_pictures([features * sign])
        assert np.array_equal(picture.foreground, inside)
        assert (picture.rgb_cells[~inside] == 255).all()


def test_colours_are_the_foregrounds_three_components() -> None:
    features, inside = disc()
    (picture,) = pca_pictures([features])
    shares = picture.explained
    assert shares[0] > shares[1] > shares[2] > 0
    assert 0.9 < sum(shares) <= 1
    # Left to right is the strongest direction, top to bottom the second.
    row, column = np.nonzero(inside)
    colors = picture.rgb_cells[inside].astype(float)
    assert np.corrcoef(colors[:, 0], column)[0, 1] > 0.98
    assert np.corrcoef(colors[:, 1], row)[0, 1] > 0.98
    # One percent at either end is clipped: the whole range is used.
    assert (colors.min(0), colors.max(0)) == (pytest.approx([0] * 3), pytest.approx([255] * 3))


def test_the_sign_of_each_colour_is_fixed() -> None:
    # The largest entry of each direction is positive: red grows with channel 1, green with 2.
    features, inside = disc()
    (picture,) = pca_pictures([features])
    flipped = features.copy()
    flipped[1] *= -1
    (mirrored,) = pca_pictures([flipped])
    one, other = (p.rgb_cells[inside][:, 0].astype(float) for p in (picture, mirrored))
    assert np.corrcoef(one, features[1][inside])[0, 1] > 0.98
    assert np.corrcoef(other, flipped[1][inside])[0, 1] > 0.98


def test_equal_features_give_equal_pictures() -> None:
    features, _ = disc()
    (one,), (other,) = pca_pictures([features]), pca_pictures([features.copy()])
    assert np.array_equal(one.rgb_cells, other.rgb_cells)


def test_small_errors_do_not_turn_the_colours_over() -> None:
    features, inside = disc()
    noise = np.random.default_rng(1).normal(0, 0.02, features.shape)
    (one,), (other,) = pca_pictures([features]), pca_pictures([features + noise])
    difference = one.rgb_cells[inside].astype(int) - other.rgb_cells[inside]
    assert np.abs(difference).mean() < 12


def test_photos_that_differ_as_a_whole_share_a_pca() -> None:
    # Night and day: what parts the two photos is not what parts a thing from its ground.
    features, inside = disc()
    other = features.copy()
    other[4] += 40.0
    for picture in pca_pictures([features, other], shared=True):
        assert np.array_equal(picture.foreground, inside)


def test_shared_colours_mean_the_same() -> None:
    features, inside = disc()
    # The same disc with its strongest direction at half strength.
    weaker = features.copy()
    weaker[1] *= 0.5
    own = pca_pictures([features, weaker])
    shared = pca_pictures([features, weaker], shared=True)
    assert [p.foreground.sum() for p in shared] == [inside.sum()] * 2

    def spread(picture: Any) -> float:
        return float(np.ptp(picture.rgb_cells[inside][:, 0].astype(int)))

    assert spread(own[0]) == spread(own[1]) == 255
    assert spread(shared[0]) == 255
    assert spread(shared[1]) == pytest.approx(128, abs=16)
    assert shared[0].explained == shared[1].explained


def test_maps_of_several_sizes() -> None:
    (small, _), (large, _) = disc(16, 5), disc(24, 7)
    pictures = pca_pictures([small, large], shared=True)
    assert [picture.rgb_cells.shape for picture in pictures] == [(16, 16, 3), (24, 24, 3)]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_everything_is_foreground(threshold: float) -> None:
    features, _ = disc()
    (picture,) = pca_pictures([features], threshold=threshold)
    assert picture.foreground.all()


def test_the_threshold_is_a_share_of_the_first_component() -> None:
    # One channel that runs from 0 at the left to 10 in the middle and back: the rim has least.
    ramp = 10 - np.abs(np.arange(21) - 10.0)
    features = np.zeros((4, 21, 21))
    features[0] = np.minimum(ramp[None], ramp[:, None])
    features[1:] = np.random.default_rng(0).normal(0, 0.01, (3, 21, 21))
    (picture,) = pca_pictures([features], threshold=0.55)
    assert np.array_equal(picture.foreground, features[0] > 5.5)


def test_constant_features_are_grey() -> None:
    (picture,) = pca_pictures([np.ones((5, 4, 4), np.float32)])
    assert picture.foreground.all()
    assert (picture.rgb_cells == 128).all()
    assert picture.explained == (0.0, 0.0, 0.0)


def test_cells_keep_sharp_edges() -> None:
    features, _ = disc(8, 3)
    (picture,) = pca_pictures([features])
    large = picture.enlarged((16, 24))
    assert large.shape == (16, 24, 3)
    assert np.array_equal(large[::2, ::3], picture.rgb_cells)
    assert np.array_equal(large[1::2, 2::3], picture.rgb_cells)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused(value: float) -> None:
    features, _ = disc()
    features[0, 0, 0] = value
    with pytest.raises(FidelityError, match="The features hold NaN or infinity"):
        pca_pictures([features])


@pytest.mark.parametrize(
    ("maps", "named"),
    [
        ([], "There is no feature map"),
        ([np.zeros((4, 4))], r"Feature maps are \(D, h, w\) with one D, got \[\(4, 4\)\]"),
        ([np.zeros((4, 2, 2)), np.zeros((5, 2, 2))], "with one D"),
        ([np.zeros((2, 4, 4))], "Three colours need at least 3 channels, got 2"),
    ],
)
def test_other_shapes_are_refused(maps: list[Any], named: str) -> None:
    with pytest.raises(ShapeError, match=named):
        pca_pictures(maps)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, np.nan])
def test_thresholds_outside_the_range_are_refused(threshold: float) -> None:
    with pytest.raises(SettingError, match="Give a number from 0 to 1"):
        pca_pictures([disc()[0]], threshold=threshold)


def test_things_that_are_cut_off_by_the_rim_are_foreground() -> None:
    features = np.random.default_rng(0).normal(0, 0.05, (6, 16, 16))
    inside = np.zeros((16, 16), np.bool_)
    inside[:4, :5] = inside[:4, 9:13] = True
    features[0, inside] += 5
    features[1:4, inside] += np.random.default_rng(1).normal(0, 1, (3, inside.sum()))
    for sign in (1, -1):
        (picture,) = pca_pictures([features * sign])
        assert np.array_equal(picture.foreground, inside)
