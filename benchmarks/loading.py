"""What trust costs when a bundle is loaded: ``samforge.load`` beside hashing and opening alone.

    python benchmarks/loading.py BUNDLE [--rounds 5] [--out FILE]

Alone means: every file is hashed once, and each part is opened by its runtime, as it has to be.
What ``load`` does beside that, it does to be believed: the manifest is read strictly and held to
its digest, files have to say what the manifest says of them, and what is loaded has to be what was
hashed. Both take turns in one process; the first turn is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _conditions import conditions

import samforge
from samforge.backends import backend_from_name
from samforge.core.files import sha256_of
from samforge.runtime import PhraseTokenizer

CLAIM = "a bundle is loaded in at most 1.10 times the time of hashing and opening its files"
MOST = 1.10
RESULT = Path(__file__).parent / "results" / "loading.json"


def alone(folder: Path) -> Callable[[], tuple[float, float]]:
    """What hashes every file and opens every part, and gives the seconds of each."""
    manifest = samforge.open_bundle(folder).manifest
    backend = backend_from_name(manifest.target)

    def opened() -> tuple[float, float]:
        start = time.perf_counter()
        for name in manifest.files:
            sha256_of(folder / name)
        hashed = time.perf_counter()
        sessions = [
            backend.session_from_artifact(folder / part.artifact, part.spec, options=part.options)
            for part in manifest.parts.values()
        ]
        text = manifest.text
        assert text is not None
        PhraseTokenizer(
            folder / text.tokenizer, text.context, text.pad_id, reference=manifest.reference
        )
        end = time.perf_counter()
        for session in sessions:
            session.close()
        return hashed - start, end - hashed

    return opened


def loaded(folder: Path) -> float:
    """Seconds of a load."""
    start = time.perf_counter()
    segmenter = samforge.load(folder)
    end = time.perf_counter()
    segmenter.close()
    return end - start


def main() -> int:
    """Measure, write the result, and fail when the limit does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    opened = alone(options.bundle)
    rows = []
    for number in range(options.rounds + 1):
        hashing, opening = opened()
        rows.append({"hashing_s": hashing, "opening_s": opening, "load_s": loaded(options.bundle)})
        print(f"round {number}: {rows[-1]}", file=sys.stderr)
    counted = rows[1:]
    ratios = [row["load_s"] / (row["hashing_s"] + row["opening_s"]) for row in counted]
    manifest = samforge.open_bundle(options.bundle).manifest
    result = {
        **conditions(),
        "claim": CLAIM,
        "limit": MOST,
        "bundle": {
            "model": manifest.model,
            "target": manifest.target,
            "precision": manifest.recipe["precision"],
            "parts": list(manifest.parts),
            "bytes": sum(file.bytes for file in manifest.files.values()),
        },
        "rounds": [{name: round(value, 3) for name, value in row.items()} for row in counted],
        "ratio": round(statistics.median(ratios), 3),
    }
    result["holds"] = result["ratio"] <= MOST
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"ratio": result["ratio"], "holds": result["holds"]}))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
