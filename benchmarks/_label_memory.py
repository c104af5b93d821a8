"""Resident memory of one run of labelling, picture by picture."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from _label_work import CLASSES, draw, resident_mib

from samforge.labelling import Ontology, label

_WARM = 0.1
"""Share of the pictures that are not looked at: caches fill."""


class _Enough(Exception):
    """The time is over."""


def memory(bundle: Path, work: Path, pictures: int, until: float) -> dict[str, Any]:
    """Watch one run, until it ends or the time is over."""
    source = work / "memory"
    draw(source, 0, pictures)
    seen: list[tuple[int, float]] = []

    def watch(done: int, total: int) -> None:
        del total
        seen.append((done, resident_mib()))
        if done % 100 == 0:
            print(done, round(seen[-1][1], 1), "MiB", flush=True)
        if time.monotonic() > until:
            raise _Enough

    ended = True
    try:
        label(bundle, source, Ontology.from_texts(CLASSES), work / "memory-out", watch=watch)
    except _Enough:
        ended = False
    shutil.rmtree(source)
    done, mib = np.array(seen[int(len(seen) * _WARM) :], np.float64).T
    slope = float(np.polyfit(done, mib, 1)[0]) if len(done) > 2 else 0.0
    return {
        "pictures": seen[-1][0],
        "ended": ended,
        "watched_from": int(done[0]),
        "watched_pictures": int(done[-1] - done[0]),
        "mib_at_first": round(float(mib[0]), 1),
        "mib_at_the_end": round(float(mib[-1]), 1),
        "growth_mib": round(float(mib[-1] - mib[0]), 1),
        "growth_mib_a_thousand_pictures": round(1000 * slope, 2),
        "most_mib": round(float(mib.max()), 1),
    }
