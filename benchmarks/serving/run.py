"""What the server promises, measured on this machine with a bundle of the tiny model.

    python benchmarks/serving/run.py BUNDLE [NAME …] [--litserve PYTHON] [--ray PYTHON]

Everything runs on one machine, the clients too: take the ratios of one run, not its milliseconds.
The library call is measured beside each server, in turns, because the machine is not always equally
fast. Results go to benchmarks/results/serving.json with hardware, versions and the load before and
after; what is not measured anew stays as it is there. Each measurement ends by itself: --minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _conditions import conditions  # noqa: E402
from page import page  # noqa: E402
from promises import leaving, memory, overload, signalled  # noqa: E402
from servers import TimeLeft  # noqa: E402
from speed import added_latency, one_picture, throughput  # noqa: E402

from samforge.media import write_png  # noqa: E402
from samforge.models.tiny import draw_scene  # noqa: E402

RESULT = HERE.parent / "results" / "serving.json"
IMAGES = 240
MEASURES = {
    "added_latency": "over HTTP against the same call of the library, p50 and p99",
    "throughput": "16 clients, distinct pictures, beside the library, LitServe and Ray Serve",
    "one_picture": "64 clients with one picture, and what a second phrase costs",
    "overload": "three times the capacity for 60 seconds",
    "signal": "SIGTERM under load",
    "memory": "resident memory over 10,000 mixed requests",
    "leaving": "30 clients that leave",
    "page": "what the page adds to the server's own time, in a headless Chromium",
}


def pictures(folder: Path) -> list[bytes]:
    """Distinct scenes as PNG files."""
    paths = [
        write_png(folder / f"{number:04}.png", draw_scene(number, split="demo").image)
        for number in range(IMAGES)
    ]
    return [path.read_bytes() for path in paths]


def other_servers(given: argparse.Namespace) -> tuple[dict[str, tuple[Path, str]], dict[str, str]]:
    """Interpreters and scripts of the other servers, and versions of all of them."""
    others: dict[str, tuple[Path, str]] = {}
    versions = {name: version(name) for name in ("fastapi", "uvicorn", "starlette")}
    for name, python in (("litserve", given.litserve), ("ray", given.ray)):
        if python is not None:
            others[name] = (python, f"with_{name}.py")
            code = f"from importlib.metadata import version; print(version({name!r}))"
            versions[name] = subprocess.check_output([python, "-c", code], text=True).strip()
    return others, versions


def load_average() -> list[float]:
    """Processes that ran or waited, over 1, 5 and 15 minutes."""
    return [round(one, 1) for one in os.getloadavg()]


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(f"{name}: {what}" for name, what in MEASURES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("measures", nargs="*", metavar="NAME", help="All, if none is given.")
    parser.add_argument("--litserve", type=Path, help="Python with litserve.")
    parser.add_argument("--ray", type=Path, help="Python with ray[serve].")
    parser.add_argument("--rounds", type=int, default=3, help="Of throughput.")
    parser.add_argument("--requests", type=int, default=10_000, help="Of the test of memory.")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="Of each measurement: then nothing is begun."
    )
    parser.add_argument("--result", type=Path, default=RESULT, help="Where results go.")
    given = parser.parse_args()
    unknown = [name for name in given.measures if name not in MEASURES]
    if unknown:
        parser.error(f"there is no {unknown[0]}; measure {', '.join(MEASURES)}")
    others, versions = other_servers(given)
    with tempfile.TemporaryDirectory() as folder:
        bundle, images = given.bundle, pictures(Path(folder))
        measure: dict[str, Callable[[TimeLeft], dict[str, Any]]] = {
            "added_latency": lambda left: added_latency(bundle, images, left),
            "throughput": lambda left: throughput(bundle, images, others, given.rounds, left),
            "one_picture": lambda _: one_picture(bundle, images),
            "overload": lambda _: overload(bundle, images),
            "signal": lambda left: signalled(bundle, images, left),
            "memory": lambda left: memory(bundle, images, given.requests, left),
            "leaving": lambda _: leaving(bundle, images),
            "page": lambda _: page(bundle, Path(folder, "0000.png")),
        }
        for name in given.measures or MEASURES:
            before = load_average()
            result = measure[name](TimeLeft(given.minutes))
            print(name, json.dumps(result), flush=True)
            where = conditions()
            where["versions"] |= versions
            where |= {"load_average_before": before, "load_average_after": load_average()}
            kept = json.loads(given.result.read_text()) if given.result.exists() else {}
            kept[name] = {**result, "measured": where}
            given.result.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
