"""What the benchmarks of labelling share: pictures, an ontology of ten phrases, clocks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from samforge.media import write_png
from samforge.models.tiny import draw_scene

CLASSES = (
    "circle=circle,red circle",
    "square=square,green square",
    "triangle=triangle,yellow triangle",
    "star=star,purple star",
    "ring=ring,orange ring",
)
FORMATS = ("coco", "yolo", "parquet")


def draw(folder: Path, first: int, count: int) -> list[Path]:
    """Draw scenes, as files; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.png" for number in range(first, first + count)]
    for number, file in enumerate(files, first):
        if not file.exists():
            write_png(file, draw_scene(number, split="train").image)
    return files


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def digest_of(out: Path) -> str:
    """SHA-256 over the names and contents of a data set, without the ledger."""
    total = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith("ledger"):
            total.update(path.relative_to(out).as_posix().encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
