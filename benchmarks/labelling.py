"""What labelling costs over segmenting, what it keeps in memory, and what a kill costs.

    python benchmarks/labelling.py rate BUNDLE [--pictures 5000] [--minutes 60]
    python benchmarks/labelling.py memory BUNDLE [--pictures 5000] [--minutes 60]
    python benchmarks/labelling.py kills BUNDLE [--pictures 200] [--kills 20] [--minutes 60]

``rate``: blocks of drawn pictures, ten phrases each. One segmenter's own call on a list of the
files, and `samforge.label` with the very same segmenter on a folder of them, take turns, and change
who begins, so that both see the same machine. Both read and decode. ``label_s`` includes the ledger
and every picture's resolved and encoded labels; ``label_and_write_s`` listing the folder and
writing three data sets, too.

``memory``: resident memory of one run over all pictures, from the tenth of it on to the end.

``kills``: runs are killed with SIGKILL at random moments, started again until they end, and the
data set of each is compared with one that nothing disturbed, by SHA-256 over all files.

Each takes the time of its ``--minutes`` at most, plus that of the block, picture or run it is at,
and replaces its own part of ``benchmarks/results/labelling.json``, with the conditions it was
measured under. The status is 1 where a limit does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _conditions import conditions
from _label_kills import kills
from _label_memory import memory
from _label_rate import rate

import samforge

LIMITS: dict[str, float] = {"rate_ratio": 0.9, "growth_mib": 16.0}
PICTURES = {"rate": 5000, "memory": 5000, "kills": 200}
RESULT = Path(__file__).parent / "results" / "labelling.json"


def held(part: dict[str, Any]) -> bool:
    """Whether what was measured is within the limits."""
    return (
        part.get("rate_ratio", 1.0) >= LIMITS["rate_ratio"]
        and part.get("growth_mib", 0.0) <= LIMITS["growth_mib"]
        and part.get("same", True)
    )


def main() -> int:
    """Measure one of the three, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=PICTURES)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, help=f"by default {PICTURES}")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON to add to")
    asked = parser.parse_args()
    bundle = asked.bundle.absolute()
    pictures = asked.pictures or PICTURES[asked.what]
    load = round(os.getloadavg()[0], 1)
    until = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if asked.what == "rate":
            found = rate(bundle, work, pictures, until)
        elif asked.what == "memory":
            found = memory(bundle, work, pictures, until)
        else:
            found = kills(bundle, work, pictures, asked.kills, until)
    manifest = samforge.open_bundle(bundle).manifest
    part = {
        **conditions(),
        "bundle": {
            "model": manifest.model,
            "target": manifest.target,
            "precision": manifest.recipe["precision"],
        },
        "load_before": load,
        "load_after": round(os.getloadavg()[0], 1),
        "asked": {"pictures": pictures, "minutes": asked.minutes},
        **found,
        "held": held(found),
    }
    known = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    result = {"limits": LIMITS, **known, asked.what: part}
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(part, indent=2))
    return 0 if part["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
