"""Segments a folder of pictures into one COCO file.

python examples/folder_to_coco.py BUNDLE FOLDER OUT.json PHRASE...
"""

import json
import sys
from pathlib import Path

import samforge
from samforge.formats import coco_dataset
from samforge.media import list_images

if __name__ == "__main__":
    bundle, folder, out, *phrases = sys.argv[1:]
    segmenter = samforge.load(bundle)
    answers, failed = [], []
    for image in list_images(Path(folder)):
        try:
            answers.append((image.name, segmenter.predict(image, text=phrases)))
        except samforge.SamforgeError as error:  # one bad picture must not end the others
            failed.append(f"{image.name}: {error}")
    Path(out).write_text(json.dumps(coco_dataset(answers, categories=phrases)))
    print(f"{len(answers)} pictures in {out}, {len(failed)} left out", *failed, sep="\n")
    sys.exit(1 if failed else 0)
