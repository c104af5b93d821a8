"""Make the README's picture from the demo's contact sheet, which is too large for a repository.

    samforge demo --out build/demo
    python tools/shrink_picture.py build/demo/demo.png docs/demo.png

The grain of calm areas is smoothed, because grain is most of what a PNG has to store; shapes,
contours and tags stay as they are.
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageFilter

WIDTH, COLOURS = 1200, 160
CALM = 16
"""Grey levels below which a difference from the surroundings is grain."""


def shrink(source: str, target: str) -> None:
    """Write a smaller copy of a picture."""
    sheet = Image.open(source).convert("RGB")
    size = (WIDTH, round(sheet.height * WIDTH / sheet.width))
    small = sheet.resize(size, Image.Resampling.LANCZOS)
    sharp = np.asarray(small, np.int16)
    smooth = np.asarray(small.filter(ImageFilter.GaussianBlur(2)), np.int16)
    grain = (np.abs(sharp - smooth).max(2) < CALM).astype(np.uint8) * 255
    calm = np.asarray(Image.fromarray(grain).filter(ImageFilter.MinFilter(3))) > 0
    mixed = np.where(calm[..., None], smooth, sharp).astype(np.uint8)
    reduced = Image.fromarray(mixed).quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE)
    reduced.save(target, optimize=True)


if __name__ == "__main__":
    shrink(*sys.argv[1:])
