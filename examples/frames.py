"""Segments frames as they come: here a moving picture, as well a camera's.

python examples/frames.py BUNDLE IMAGE PHRASE
"""

import sys
from collections.abc import Iterator

import numpy as np

import samforge
from samforge.core.images import RgbImage
from samforge.runtime import segment_video


def camera(rgb: RgbImage, count: int) -> Iterator[RgbImage]:
    """A picture that moves; one buffer is filled again and again, as cameras do."""
    buffer = np.empty_like(rgb)
    for step in range(count):
        buffer[:] = np.roll(rgb, 8 * step, axis=1)
        yield buffer


if __name__ == "__main__":
    bundle, image, phrase = sys.argv[1:]
    frames = camera(samforge.read_image(image), 4)
    shots = segment_video(samforge.load(bundle), frames, text=phrase)
    for number, shot in enumerate(shots):
        boxes = shot.detections.boxes_xyxy.round().astype(int).tolist()
        print(f"frame {number}: {len(shot.detections)} at {boxes}")
