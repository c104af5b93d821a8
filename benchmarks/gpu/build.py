"""Build one package for the GPU benchmarks: see ``Order`` in _parts.py for the arguments."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path

# Sixteen builds of one machine do not each need all its processors.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")

from _parts import Order, build, device_name


def main() -> None:
    """Build and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    for field in fields(Order):
        kind = {"int | None": int, "bool": lambda text: text == "True"}.get(str(field.type), str)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    order = Order(**options)
    made = build(order, folder, device_name())
    (folder / f"{order.name}.json").write_text(json.dumps(made))
    print(json.dumps(made))


if __name__ == "__main__":
    main()
