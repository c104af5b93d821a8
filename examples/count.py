"""Counts what phrases name in one picture.

python examples/count.py BUNDLE IMAGE PHRASE...
"""

import sys

import samforge

if __name__ == "__main__":
    bundle, image, *phrases = sys.argv[1:]
    segmenter = samforge.load(bundle)
    encoded = segmenter.encode(image)  # the expensive part, once
    for phrase in phrases:
        found = segmenter.predict(encoded, text=phrase)
        areas = [int(area) for area in found.areas]
        print(f"{phrase}: {len(found)} found, {areas} pixels, best {found.best_scores[phrase]:.3f}")
