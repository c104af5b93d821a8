"""Packages of the tiny model on a GPU: build, load, run at several sizes, replay CUDA graphs.

    python benchmarks/gpu/packages.py --out FILE

Sizes stay dynamic: one package runs them all. A replay has to give what the call gave.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _parts import Order, build, family_checkpoint, family_inputs, session
from _timing import Results, synchronize

from samforge.runtime.device.graphs import Captured
from samforge.runtime.device.session import placed

ORDERS = (
    Order(part="vision", precision="fp8", model="tiny", residual="half"),
    Order(part="detector", precision="bf16", model="tiny", residual="half"),
)
SIZES = (1, 4, 16)


def largest_difference(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Over all outputs; infinite where one holds NaN."""
    return max(
        float((found[name].float() - value.float()).abs().nan_to_num(nan=float("inf")).max())
        for name, value in wanted.items()
    )


def main() -> None:
    """Build and run both packages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results = Results(options.out, 600)
    checkpoint = family_checkpoint("sam3", "tiny", None)
    with tempfile.TemporaryDirectory() as folder:
        for order in ORDERS:
            with results.section(order.part) as go:
                if not go:
                    continue
                results.add(f"{order.part} build", build(order, Path(folder), "cuda"))
                loaded = session(order, Path(folder))
                for count in SIZES:
                    sizes = {"batch": 1, "prompts": count}
                    if order.part == "vision":
                        sizes = {"batch": min(count, 4)}
                    words = " ".join(f"{axis} {size}" for axis, size in sizes.items())
                    inputs = placed(loaded, family_inputs(checkpoint, loaded.spec, sizes, 3))
                    call = partial(loaded.run_on_device, inputs)
                    outputs, captured = call(), Captured(call, None)
                    captured.replay()
                    synchronize()
                    difference = largest_difference(captured.outputs, outputs)
                    results.add(f"{order.part} {words}, replay against call", difference)


if __name__ == "__main__":
    main()
