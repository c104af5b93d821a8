"""What a tracker in 8 bits loses: J&F, IDF1 and switches beside fp32's, on held-out clips.

    python benchmarks/tracking_bits.py build/tracked build/tracked-int8
    python benchmarks/tracking_bits.py build/tracked build/tracked-fp8 --name tracking_fp8 --clips 8

Both bundles are asked for the shapes of each clip by phrases and by clicks on its first frame.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from _conditions import write_result

import samforge
from samforge.workflows.compare_videos import BundleTracking
from samforge.workflows.inspect import inspect

CLAIM = "in 8 bits the tracker loses at most 0.01 J&F and makes at most 2 % more switches"
LIMITS = {"j_and_f_drop": 0.01, "switch_rise": 0.02}
"""At most: of J&F, by phrases and by clicks; of fp32's switches."""


def side(row: BundleTracking) -> dict[str, Any]:
    """One bundle: what it is, and its figures."""
    return {
        "target": row.target,
        "precision": row.precision,
        "bytes": row.bytes,
        "in 8 bits": {name: asdict(one) for name, one in inspect(row.bundle).quantized.items()},
        "figures": asdict(row.accuracy),
    }


def main() -> int:
    """Measure, write the result, and fail when a limit does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", help="bundle with its tracker, in fp32")
    parser.add_argument("bundle", help="the same in 8 bits")
    parser.add_argument("--clips", type=int, default=20, help="held-out clips of 32 frames")
    parser.add_argument("--name", default="tracking_int8", help="of the result")
    options = parser.parse_args()
    reference, measured = samforge.compare_videos(
        [options.reference, options.bundle], f"clips:{options.clips}"
    )
    fidelity = measured.accuracy.fidelity
    assert fidelity is not None  # the second of two is compared with the first
    rise = (fidelity.switches - fidelity.reference_switches) / max(1, fidelity.reference_switches)
    holds = {
        **{
            f"J&F, {way}": drop <= LIMITS["j_and_f_drop"]
            for way, drop in fidelity.j_and_f_drop.items()
        },
        "switches": rise <= LIMITS["switch_rise"],
    }
    result = {
        "claim": CLAIM,
        "clips": options.clips,
        "limits": LIMITS,
        "reference": side(reference),
        "measured": side(measured),
        "switch_rise": round(rise, 5),
        "holds": holds,
    }
    written = write_result(f"{options.name}.py", result)
    print(json.dumps(holds, indent=2))
    print(f"-> {written.name}", file=sys.stderr)
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
