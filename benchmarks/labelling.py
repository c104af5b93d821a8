"""What labelling costs over segmenting, what it keeps in memory, and what a kill costs.

    python benchmarks/labelling.py BUNDLE [--pictures N] [--kills N] [--minutes M] [--resume FILE]

Rate: blocks of drawn pictures, ten phrases each. The segmenter's own call on a list of the files
and `samforge.label` on a folder of the same files take turns, and change who begins, so that both
see the same machine. Both read and decode. The time of a block of `label` includes its ledger and
every picture's resolved and encoded labels; loading the model and writing the data sets stand
beside it.

Memory: resident memory of one run over all pictures, from the tenth of it on to the end.

Kills: a run is killed with SIGKILL at random moments until it has had so many, then ends; its data
set is compared with one that nothing disturbed, by SHA-256 over all files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _conditions import conditions

import samforge
from samforge.labelling import LabelSettings, Ontology, label
from samforge.media import write_png
from samforge.models.tiny import draw_scene

CLASSES = [
    "circle=circle,red circle",
    "square=square,green square",
    "triangle=triangle,yellow triangle",
    "star=star,purple star",
    "ring=ring,orange ring",
]
LEAST = 0.9
BLOCK = 25
FORMATS = ("coco", "yolo", "parquet")


def draw(folder: Path, first: int, count: int) -> list[Path]:
    """Draw scenes, as files."""
    folder.mkdir(parents=True)
    return [
        write_png(folder / f"{number:05d}.png", draw_scene(number, split="train").image)
        for number in range(first, first + count)
    ]


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def rate(bundle: Path, work: Path, pictures: int, until: float) -> dict[str, Any]:
    """Time blocks in turns."""
    ontology = Ontology.from_texts(CLASSES)
    blocks: list[dict[str, float]] = []
    with samforge.load(bundle) as segmenter:
        phrases, thresholds = list(ontology.phrases), list(ontology.phrases.values())
        segmenter.encode_phrases(phrases)
        for number in range(pictures // BLOCK):
            if time.monotonic() > until:
                break
            folder = work / f"block-{number}"
            files = draw(folder, number * BLOCK, BLOCK)
            times: dict[str, float] = {}

            def alone(files: list[Path] = files, times: dict[str, float] = times) -> None:
                start, cpu = time.perf_counter(), time.process_time()
                segmenter.predict(files, text=phrases, threshold=thresholds)
                times["segmenter_s"] = time.perf_counter() - start
                times["segmenter_cpu_s"] = time.process_time() - cpu

            def labelled(folder: Path = folder, times: dict[str, float] = times) -> None:
                moments: list[tuple[float, float]] = []
                start = time.perf_counter()
                result = label(
                    bundle,
                    folder,
                    ontology,
                    work / f"{folder.name}-out",
                    settings=LabelSettings(formats=FORMATS),
                    watch=lambda *_: moments.append((time.perf_counter(), time.process_time())),
                )
                times["label_s"] = result.seconds
                # From the first picture's end to the last one's: the model's loading is before.
                times["label_cpu_s"] = (moments[-1][1] - moments[1][1]) * BLOCK / (BLOCK - 1)
                times["load_and_write_s"] = time.perf_counter() - start - result.seconds

            for side in (alone, labelled) if number % 2 else (labelled, alone):
                side()
            blocks.append(times)
            print(number, {key: round(value, 2) for key, value in times.items()}, flush=True)
            shutil.rmtree(folder)
            shutil.rmtree(work / f"{folder.name}-out")
    ratios = [one["segmenter_s"] / one["label_s"] for one in blocks]
    cpu = [one["segmenter_cpu_s"] / one["label_cpu_s"] for one in blocks]
    total = {key: round(sum(one[key] for one in blocks), 2) for key in blocks[0]}
    return {
        "pictures": len(blocks) * BLOCK,
        "phrases": len(phrases),
        "totals": total,
        "rate_ratio": round(total["segmenter_s"] / total["label_s"], 4),
        "rate_ratio_median_of_blocks": round(statistics.median(ratios), 4),
        "processor_time_ratio": round(statistics.median(cpu), 4),
    }


def memory(bundle: Path, work: Path, pictures: int, until: float) -> dict[str, Any]:
    """Watch one run."""
    source = work / "memory"
    draw(source, 0, pictures)
    seen: list[tuple[int, float]] = []

    class Enough(Exception):
        """The time is over."""

    def watch(done: int, total: int) -> None:
        del total
        seen.append((done, resident_mib()))
        if time.monotonic() > until:
            raise Enough

    ended = True
    try:
        label(bundle, source, Ontology.from_texts(CLASSES), work / "memory-out", watch=watch)
    except Enough:
        ended = False
    start = len(seen) // 10
    after = [mib for _, mib in seen[start:]]
    shutil.rmtree(source)
    return {
        "pictures": seen[-1][0],
        "ended": ended,
        "mib_after_a_tenth": round(after[0], 1),
        "mib_at_the_end": round(after[-1], 1),
        "growth_mib": round(after[-1] - after[0], 1),
        "most_mib": round(max(after), 1),
    }


def digest(out: Path) -> str:
    """SHA-256 over the names and contents of a data set, without the ledger."""
    total = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith("ledger"):
            total.update(path.relative_to(out).as_posix().encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def kills(bundle: Path, work: Path, pictures: int, count: int, until: float) -> dict[str, Any]:
    """Kill one run again and again."""
    source = work / "kills"
    draw(source, 0, pictures)
    generator = random.Random(0)

    def command(out: Path) -> list[str]:
        words = [sys.executable, "-m", "samforge.apps.cli", "label", str(bundle), str(source)]
        words += [word for one in CLASSES for word in ("--class", one)]
        words += [word for one in FORMATS for word in ("--format", one)]
        return [*words, "--out", str(out), "--jobs", "2"]

    start = time.monotonic()
    subprocess.run(command(work / "whole"), check=True, capture_output=True)
    whole = time.monotonic() - start
    out = work / "killed"
    killed, moments = 0, []
    while killed < count and time.monotonic() < until:
        process = subprocess.Popen(
            command(out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        moment = generator.uniform(0, whole)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            moments.append(round(moment, 2))
            print("killed after", moments[-1], "s", flush=True)
            continue
        shutil.rmtree(out)  # it has ended: begin again
    subprocess.run(command(out), check=True, capture_output=True)
    same = digest(out) == digest(work / "whole")
    return {
        "pictures": pictures,
        "jobs": 2,
        "kills": killed,
        "seconds_of_a_whole_run": round(whole, 1),
        "killed_after_s": moments,
        "sha256": digest(out),
        "same": same,
    }


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--killed-pictures", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="for each of the three")
    parser.add_argument("--only", choices=("rate", "memory", "kills"))
    parser.add_argument("--resume", type=Path, help="file of earlier results to add to")
    asked = parser.parse_args()
    file = asked.resume or Path(__file__).parent / "results" / "labelling.json"
    result: dict[str, Any] = json.loads(file.read_text()) if asked.resume else {}
    bundle = asked.bundle.absolute()
    made: dict[str, Any] = {
        "rate": lambda work, until: rate(bundle, work, asked.pictures, until),
        "memory": lambda work, until: memory(bundle, work, asked.pictures, until),
        "kills": lambda work, until: kills(bundle, work, asked.killed_pictures, asked.kills, until),
    }
    for name, measure in made.items():
        if asked.only in (None, name):
            with tempfile.TemporaryDirectory() as work:
                until = time.monotonic() + 60 * asked.minutes
                load = round(os.getloadavg()[0], 1)
                found = measure(Path(work), until)
            result[name] = {
                **found,
                "load_before": load,
                "load_after": round(os.getloadavg()[0], 1),
            }
    opened = samforge.open_bundle(bundle)
    result |= {
        "bundle": {
            "target": opened.manifest.target,
            "precision": opened.manifest.recipe["precision"],
        }
    }
    file.write_text(json.dumps({**conditions(), **result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    held = result.get("rate", {}).get("rate_ratio", 1.0) >= LEAST
    return 0 if held and result.get("kills", {}).get("same", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
