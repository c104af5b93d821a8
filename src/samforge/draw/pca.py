"""Feature maps as pictures: the three strongest directions become red, green and blue.

The picture that DINO's papers show (Oquab et al., DINOv2, https://arxiv.org/abs/2304.07193, figure
1): the first principal component tells the foreground from the background, and the components of
the foreground alone give the colours. Every sign is fixed, so the same features give the same
picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.core.images import RgbImage

Floats = npt.NDArray[np.float64]
COLORS = 3
_BACKGROUND = (255, 255, 255)
_CLIPPED = 1.0  # percent at either end of a component: a few extreme patches would grey the rest
_BINS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class PcaPicture:
    """One feature map as a picture."""

    rgb_cells: RgbImage
    """(h, w, 3): a pixel for each cell, white where it is background."""
    foreground: npt.NDArray[np.bool_]
    """(h, w): cells on the foreground's side of the first component."""
    explained: tuple[float, float, float]
    """Share of the foreground's variance in each of the three components."""

    def enlarged(self, size_hw: tuple[int, int]) -> RgbImage:
        """The picture at an image's size, (H, W, 3), cells with sharp edges."""
        size = (size_hw[1], size_hw[0])
        return np.asarray(Image.fromarray(self.rgb_cells).resize(size, Image.Resampling.NEAREST))


def pca_pictures(
    maps_dhw: Sequence[npt.NDArray[np.floating]],
    *,
    shared: bool = False,
    threshold: float | None = None,
) -> tuple[PcaPicture, ...]:
    """Turn feature maps into pictures.

    Args:
        maps_dhw: (D, h, w) each, of the same D and any sizes.
        shared: Fit one PCA to all of them, so that a colour means the same in every picture.
        threshold: Cells above this share of the first component's range are foreground, 0 to 1; 0
            takes every cell; None finds the threshold that parts the cells best (Otsu's).

    Raises:
        ShapeError: There is no map, or maps of different D or of another form.
        SettingError: ``threshold`` is outside 0 to 1.
        FidelityError: A feature is no finite number.
    """
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise SettingError(f"threshold is {threshold}. Give a number from 0 to 1.")
    _check_maps(maps_dhw)
    groups = [list(maps_dhw)] if shared else [[one] for one in maps_dhw]
    return tuple(picture for group in groups for picture in _pictures(group, threshold))


def _check_maps(maps_dhw: Sequence[npt.NDArray[np.floating]]) -> None:
    if not maps_dhw:
        raise ShapeError("There is no feature map. Give at least one (D, h, w).")
    shapes = [one.shape for one in maps_dhw]
    widths = {shape[0] for shape in shapes if len(shape) == 3}
    if len(widths) != 1 or any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
        raise ShapeError(f"Feature maps are (D, h, w) with one D, got {shapes}.")
    if min(widths) < COLORS:
        raise ShapeError(f"Three colours need at least {COLORS} channels, got {min(widths)}.")
    if not all(np.isfinite(one).all() for one in maps_dhw):
        raise FidelityError(
            "The features hold NaN or infinity: there is no picture of them. "
            "The artifact they come from does not compute what the model does."
        )


def _pictures(
    maps_dhw: list[npt.NDArray[np.floating]], threshold: float | None
) -> list[PcaPicture]:
    cells = [one.reshape(one.shape[0], -1).T.astype(np.float64) for one in maps_dhw]
    tokens = np.concatenate(cells)  # [N, D]
    # Each map around its own mean: between two photos more differs than between things and ground,
    # and one of them would be all foreground.
    around = np.concatenate([one - one.mean(axis=0) for one in cells])
    foreground = _foreground(around, _border([one.shape for one in maps_dhw]), threshold)
    inside = tokens[foreground]
    mean = inside.mean(axis=0)
    directions, explained = _components(inside - mean, COLORS)
    scores = (tokens - mean) @ directions  # [N, 3]
    low, high = np.percentile(scores[foreground], (_CLIPPED, 100 - _CLIPPED), axis=0)
    span = np.where(high > low, high - low, 1.0)
    middle = np.where(high > low, (scores - low) / span, 0.5)
    colors = np.rint(np.clip(middle, 0, 1) * 255).astype(np.uint8)
    colors[~foreground] = _BACKGROUND
    pictures, start = [], 0
    for one in maps_dhw:
        height, width = one.shape[1:]
        part = slice(start, start + height * width)
        pictures.append(
            PcaPicture(
                rgb_cells=colors[part].reshape(height, width, 3),
                foreground=foreground[part].reshape(height, width),
                explained=explained,
            )
        )
        start += height * width
    return pictures


def _border(shapes: Sequence[tuple[int, ...]]) -> npt.NDArray[np.bool_]:
    """Cells on the rim of their map, in the order of the tokens."""
    rims = []
    for _, height, width in shapes:
        rim = np.ones((height, width), np.bool_)
        rim[1:-1, 1:-1] = False
        rims.append(rim.ravel())
    return np.concatenate(rims)


def _foreground(
    tokens: Floats, border: npt.NDArray[np.bool_], threshold: float | None
) -> npt.NDArray[np.bool_]:
    """Cells on the side of the first component of centred tokens that has less of the rim.

    Too few of them for three components (fewer than four) means that nothing stands out: all are
    taken.
    """
    everything = np.ones(len(tokens), np.bool_)
    if threshold == 0.0:
        return everything
    directions, _ = _components(tokens, 1)
    score = tokens @ directions[:, 0]
    low, high = score.min(), score.max()
    if high <= low:
        return everything
    share = (score - low) / (high - low)
    # Most of a picture's rim is ground, also where things are cut off by it.
    if (share > _otsu(share))[border].mean() > 0.5:
        share = 1 - share
    found = share > (_otsu(share) if threshold is None else threshold)
    return found if found.sum() > COLORS else everything


def _components(centred: Floats, count: int) -> tuple[Floats, tuple[float, float, float]]:
    """Strongest directions (D, count), and each one's share of the variance.

    The largest entry of each direction is positive, so that signs do not depend on the solver.
    """
    from scipy.linalg import eigh  # 0.2 s to import, and only this picture needs it

    size = centred.shape[1]
    covariance = centred.T @ centred
    values, vectors = eigh(covariance, subset_by_index=(size - count, size - 1))
    directions = vectors[:, ::-1]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, range(count)] < 0, -1.0, 1.0)
    total = float(np.trace(covariance))
    shares = [max(0.0, float(value)) / total if total else 0.0 for value in values[::-1]]
    shares += [0.0] * (COLORS - count)
    return directions, (shares[0], shares[1], shares[2])


def _otsu(share: Floats) -> float:
    """Threshold that parts values within 0 to 1 into the two most distinct groups.

    Source: N. Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    counts, edges = np.histogram(share, bins=_BINS, range=(0.0, 1.0))
    weight = counts / counts.sum()
    centres = (edges[:-1] + edges[1:]) / 2
    below = weight.cumsum()
    moment = (weight * centres).cumsum()
    between = np.zeros(_BINS)
    valid = (below > 0) & (below < 1)
    between[valid] = (moment[-1] * below - moment)[valid] ** 2 / (below * (1 - below))[valid]
    # Empty bins between the groups tie: the middle of the gap is as far from both as can be.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)
