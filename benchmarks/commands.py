"""Time and memory of whole commands, each in processes of its own.

    python benchmarks/commands.py demo         # samforge demo, from nothing
    python benchmarks/commands.py build-full   # the 840 M architecture at 1008 px, random weights
    python benchmarks/commands.py build-full-int8   # the same in int8, calibrated on 4 images

Peak memory is the highest sum of resident memory over the command's processes, sampled ten times a
second, and the kernel's own high-water mark of the largest process. The size of an int8 bundle is
compared with that of the fp32 bundle in the kept result of ``build-full``. Random weights tell
size, time and memory, and calibration on noise gives ranges without meaning.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from _conditions import write_result

RESULTS = Path(__file__).parent / "results"
SAMFORGE = [sys.executable, "-m", "samforge.apps.cli"]
COMMANDS = {
    "demo": (["demo", "--out", "{out}"], {"seconds": 90.0}),
    "build-full": (
        [
            *("build", "facebook/sam3", "--random-weights", "--target", "onnxruntime"),
            *("--precision", "fp32", "--out", "{out}/bundle"),
        ],
        {"peak_gib": 6.0},
    ),
    "build-full-int8": (
        [
            *("build", "facebook/sam3", "--random-weights", "--target", "onnxruntime"),
            *("--precision", "int8", "--samples", "4", "--out", "{out}/bundle"),
        ],
        {"vision_peak_gib": 8.0, "of_fp32": 0.30},
    ),
}
"""Arguments and limits of each command."""
FP32 = {"build-full-int8": "build_full"}
"""Result whose bundle is the same model in fp32."""


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants."""
    total, waiting = 0, [pid]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            total += int((process / "statm").read_text().split()[1]) * resource.getpagesize()
            children = (process / "task" / process.name / "children").read_text()
        except OSError:  # it ended meanwhile
            continue
        waiting.extend(int(child) for child in children.split())
    return total


def run(name: str) -> dict[str, object]:
    """Run one command and measure it."""
    arguments, limits = COMMANDS[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [argument.format(out=folder) for argument in arguments]
        start = time.perf_counter()
        process = subprocess.Popen([*SAMFORGE, *command], stdout=subprocess.DEVNULL)
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        watcher.join()
        manifests = sorted(Path(folder).rglob("manifest.json"))
        manifest = json.loads(manifests[0].read_text()) if manifests else {}
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    measured = {"seconds": round(seconds, 1), "peak_gib": round(peak[0] / 2**30, 2)}
    size = sum(entry["bytes"] for entry in manifest.get("files", {}).values())
    steps = manifest.get("steps", [])
    compared: dict[str, Any] = {}
    if name in FP32 and code == 0:
        fp32 = json.loads((RESULTS / f"{FP32[name]}.json").read_text())
        measured |= {"of_fp32": round(size / fp32["bytes"], 4), "vision_peak_gib": _vision(steps)}
        compared = {"part_bytes": _part_bytes(steps), "fp32_bytes": fp32["bytes"]}
        compared["fp32_part_bytes"] = _part_bytes(fp32["steps"])
    return {
        "command": " ".join(["samforge", *arguments]).format(out="OUT"),
        "exit_code": code,
        **measured,
        "largest_process_gib": round(largest, 2),
        "limits": limits,
        "holds": code == 0 and all(measured[key] <= limit for key, limit in limits.items()),
        "steps": steps,
        "bytes": size,
        **compared,
    }


def _vision(steps: list[dict[str, Any]]) -> float:
    """Peak memory up to vision's ONNX file: its calibration and Q/DQ, and whatever came before."""
    peaks = {(step["name"], step["part"]): step["peak_gib"] for step in steps}
    return float(peaks["onnx", "vision"])


def _part_bytes(steps: list[dict[str, Any]]) -> dict[str, int]:
    """Size of each part's ONNX file with its weights."""
    return {step["part"]: step["bytes"] for step in steps if step["name"] == "onnx"}


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], resident_bytes(process.pid))
        time.sleep(0.1)


def main() -> int:
    """Run, write the result, and fail when a limit does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=COMMANDS)
    name = parser.parse_args().name
    result = run(name)
    path = write_result(name.replace("-", "_") + ".py", result)
    print(json.dumps({key: value for key, value in result.items() if key != "steps"}, indent=2))
    print(f"-> {path.name}")
    return int(not result["holds"])


if __name__ == "__main__":
    sys.exit(main())
