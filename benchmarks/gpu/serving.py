"""SAM 3 at its real size behind HTTP and under ``samforge label``, on one GPU and on several.

    python benchmarks/gpu/serving.py --out FILE [--gpus 1,2] [--bundle DIR] [--limit-s 580]
                                     [--masks 0] [--only-build]

A bundle is built as users build it, of random weights, verified on its tensors, and served by
``samforge serve``. Random weights name nothing, and the masks they draw are noise: many times the
runs of real objects. So nothing is found unless ``--masks`` asks for the best few of all queries.
Clients are processes of their own on the same machine, closed-loop, 64 connections, every picture
(1080p, JPEG) new to the server. Beside it in the same run: the library's ``stream`` over the same
bytes. A build takes minutes; one that was stopped goes on when the script is run again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _spans import PHRASE, pictures
from _timing import Results, synchronize
from PIL import Image

SERVING = Path(__file__).parents[1] / "serving"
sys.path.append(str(SERVING))
from load import Client, percentile  # noqa: E402
from servers import samforge_server  # noqa: E402

import samforge  # noqa: E402
from samforge.core.capabilities import TEXT  # noqa: E402
from samforge.labelling import LabelSettings, Ontology, label  # noqa: E402

SIZE_HW = (1080, 1920)
BASE = 96
"""Pictures that are drawn; bytes behind a JPEG's end make others of them, as many as are needed."""
PARTS = TEXT.parts
"""Of the bundle: boxes are not asked."""
CLIENTS, PROCESSES = 64, 4
OTHER = "a dog"
LEAST_SCORE = "score of the last that was asked for"
NOTHING = 0.999
"""A score that no query of random weights has."""
LEAST_OF_STREAM = 0.85
AT_MOST_OF_FIRST = 1 / 3
LEAST_OF_ONE = {2: 1.9, 4: 3.6}


def jpegs() -> list[bytes]:
    """Different pictures as files."""
    base = pictures(*SIZE_HW)
    found = []
    for number in range(BASE):
        image = np.roll(base[number % len(base)], 37 * number, axis=1)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def asked_for(masks: int) -> dict[str, Any]:
    """The question: so many masks, the best of all queries, whatever they are."""
    if not masks:
        return {"text": PHRASE, "threshold": NOTHING}
    return {"text": PHRASE, "threshold": 0.0, "max_detections": masks}


class Fresh:
    """Files that no server has seen: each time with other bytes behind their end."""

    def __init__(self, files: Sequence[bytes], folder: Path) -> None:
        self.files, self.folder, self.number = files, folder, 0

    def taken(self, count: int) -> list[bytes]:
        """So many."""
        begin, self.number = self.number, self.number + count
        return [self.files[n % BASE] + n.to_bytes(4, "big") for n in range(begin, begin + count)]

    def written(self, count: int) -> Path:
        """So many, in a folder of their own."""
        folder = self.folder / f"{self.number:06}"
        folder.mkdir(parents=True)
        for number, data in enumerate(self.taken(count)):
            (folder / f"{number:05}.jpg").write_bytes(data)
        return folder


def build(options: argparse.Namespace, results: Results) -> Path:
    """The bundle, unless one is there."""
    bundle: Path = options.bundle
    if not (bundle / "manifest.json").exists():
        words = [sys.executable, "-m", "samforge.apps.cli", "build", options.model]
        words += ["--random-weights", "--target", options.target, "--precision", options.precision]
        words += ["--out", str(bundle), "--jobs", str(len(PARTS))]
        words += [word for part in PARTS for word in ("--part", part)]
        words += ["--image-size", str(options.size)] if options.size else []
        start = time.perf_counter()
        # Each of the processes would take every core, and they would wait for one another.
        threads = str(max(1, (os.cpu_count() or 1) // len(PARTS)))
        subprocess.run(words, check=True, env={"OMP_NUM_THREADS": threads, **os.environ})
        results.add("build s, of this run", round(time.perf_counter() - start, 1))
    opened = samforge.open_bundle(bundle)
    results.add("seconds of the build's steps", steps(opened))
    results.add("bundle MB", round(sum(f.bytes for f in opened.manifest.files.values()) / 1e6))
    return bundle


def steps(bundle: samforge.Bundle) -> dict[str, float]:
    """What each step took."""
    return {f"{s.name}/{s.part or ''}": round(s.seconds, 1) for s in bundle.manifest.steps}


def verified(bundle: Path, device: str) -> dict[str, Any]:
    """Every output of every part against float32."""
    found = samforge.verify(bundle, device=device, record=False)
    return {
        "processor": found.processor,
        "seconds": found.seconds,
        "limit": found.limit,
        "cosines": {
            f"{one.part} {one.fidelity.tensor}": round(one.fidelity.cosine, 6)
            for one in found.tensors
        },
    }


# In the library


def in_the_library(
    bundle: Path, fresh: Fresh, asked: dict[str, Any], results: Results, count: int
) -> None:
    """A stream of files, and a list of them against one after the other."""
    with samforge.load(bundle) as segmenter:
        results.add("way", segmenter.processor)
        list(segmenter.stream(fresh.taken(24), **asked))
        for name, batch in (("stream", 1), ("stream of four", 4)):
            files = fresh.taken(count)
            list(segmenter.stream(files[:8], batch=batch, **asked))
            seconds = timed(
                lambda f=files, b=batch: consumed(segmenter.stream(f, batch=b, **asked))
            )
            results.add(f"{name}, images/s", round(count / seconds, 2))
        images = [np.array(Image.open(io.BytesIO(one))) for one in fresh.files[:8]]
        for image in (images, *images):
            segmenter.predict(image, **asked)
        alone, listed = [], []
        for _ in range(8):
            alone.append(timed(lambda: [segmenter.predict(one, **asked) for one in images]))
            listed.append(timed(lambda: segmenter.predict(images, **asked)))
        results.add(
            "a list of 8 decoded pictures",
            {
                "one by one ms": round(1e3 * statistics.median(alone), 2),
                "as a list ms": round(1e3 * statistics.median(listed), 2),
                "times as fast": round(statistics.median(alone) / statistics.median(listed), 3),
            },
        )
        found = segmenter.predict(images, **asked)
        if all(map(len, found)):
            results.add(LEAST_SCORE, float(np.median([one.scores[-1] for one in found])))


def consumed(found: Any) -> None:
    """Everything a server would send of it."""
    for one in found:
        [one.masks.rle(row) for row in range(len(one))]


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call, everything finished."""
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


# Over HTTP


def loaded(url: str, asked: dict[str, Any], folders: Sequence[Path], each: int) -> dict[str, Any]:
    """All clients at once, in processes of their own."""
    running = [
        subprocess.Popen(
            [
                *(sys.executable, str(SERVING / "load.py"), f"{url}/v1/segment"),
                *("--mode", "closed", "--images", str(folder), "--requests", str(each)),
                *("--clients", str(CLIENTS // PROCESSES)),
                *(word for name, value in asked.items() for word in ("--field", f"{name}={value}")),
                *("--field", "seconds=120"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    told = [json.loads(process.communicate()[0]) for process in running]
    statuses: dict[str, int] = {}
    for one in told:
        for status, count in one["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "statuses": statuses,
        "images/s": round(statuses.get("200", 0) / max(one["seconds"] for one in told), 2),
        "p50 ms": statistics.median(one["p50_ms"] or 0.0 for one in told),
        "p99 ms": max(one["p99_ms"] or 0.0 for one in told),
    }


def over_http(
    bundle: Path, gpus: int, fresh: Fresh, asked: dict[str, Any], results: Results, count: int
) -> None:
    """64 clients with new pictures; on one GPU also what a second phrase costs."""
    devices = ",".join(f"cuda:{number}" for number in range(gpus))
    devices = devices if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    with samforge_server(bundle, "--device", devices) as (url, _):
        results.add(f"{gpus} GPUs, s to readiness", round(time.perf_counter() - start, 1))
        each, few = count // PROCESSES, max(1, count // PROCESSES // 4)
        warm = loaded(url, asked, [fresh.written(few) for _ in range(PROCESSES)], few)
        results.add(f"{gpus} GPUs, warm-up", warm)
        for turn in (1, 2):
            folders = [fresh.written(each) for _ in range(PROCESSES)]
            results.add(
                f"{gpus} GPUs, {CLIENTS} clients, {turn}", loaded(url, asked, folders, each)
            )
        if gpus == 1:
            results.add("one client", one_client(url, fresh, asked))


def one_client(url: str, fresh: Fresh, asked: dict[str, Any]) -> dict[str, Any]:
    """A new picture, then another phrase of it."""
    client = Client(f"{url}/v1/segment")
    first: list[float] = []
    second: list[float] = []
    stages: dict[str, list[float]] = {}
    fields = [(name, str(value)) for name, value in asked.items()]
    other = [("text", OTHER), *fields[1:]]
    for data in fresh.taken(40):
        for question, into in ((fields, first), (other, second)):
            begin = time.perf_counter()
            status, _, body = client.ask(data, question)
            into.append(time.perf_counter() - begin)
            if status != "200":
                raise RuntimeError(f"{status}: {body[:300]!r}")
            if question is fields:
                for name, value in json.loads(body)["timings_ms"].items():
                    stages.setdefault(name, []).append(value)
    client.close()
    return {
        "first phrase p50 ms": percentile(first[8:], 0.5),
        "second phrase p50 ms": percentile(second[8:], 0.5),
        "second of first": round(statistics.median(second[8:]) / statistics.median(first[8:]), 3),
        "stages ms": {name: round(statistics.median(v[8:]), 2) for name, v in stages.items()},
    }


# Labels


def labelled(bundle: Path, gpus: int, folder: Path, results: Results, threshold: float) -> None:
    """``samforge label`` over a folder, one process a GPU."""
    ontology = Ontology.from_texts(["person=a person", "dog=a dog"], threshold=threshold)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = label(
        bundle,
        folder,
        ontology,
        folder.parent / f"labels-{gpus}",
        settings=LabelSettings(formats=("coco",), jobs=gpus, device=device),
    )
    results.add(
        f"label, {gpus} GPUs",
        {
            "pictures": result.labelled,
            "objects": result.objects,
            "failures": len(result.failures),
            "seconds": round(result.seconds, 2),
            "images/s": round(result.labelled / result.seconds, 2),
        },
    )


def judged(figures: dict[str, Any], counts: Sequence[int], results: Results) -> None:
    """Hold the figures to what is promised."""

    def rate(gpus: int) -> float:
        turns = [figures.get(f"{gpus} GPUs, {CLIENTS} clients, {turn}", {}) for turn in (1, 2)]
        return max((one.get("images/s", 0.0) for one in turns), default=0.0)

    if "stream, images/s" in figures and rate(1):
        share = rate(1) / figures["stream, images/s"]
        results.add("over HTTP, of stream", [round(share, 3), f"at least {LEAST_OF_STREAM}"])
    for gpus in counts:
        if gpus == 1:
            continue
        least = LEAST_OF_ONE.get(gpus)
        if rate(1):
            results.add(f"over HTTP, {gpus} GPUs of one", [round(rate(gpus) / rate(1), 3), least])
        one, more = (figures.get(f"label, {n} GPUs", {}).get("images/s") for n in (1, gpus))
        if one and more:
            results.add(f"label, {gpus} GPUs of one", [round(more / one, 3), least])


def main() -> int:
    """Measure what there is time for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", default="1")
    parser.add_argument("--bundle", type=Path, default=Path("/tmp/serving/sam3"))
    parser.add_argument("--model", default="facebook/sam3")
    parser.add_argument("--size", type=int)
    parser.add_argument("--target", default="inductor")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--pictures", type=int, default=960, help="of each measurement")
    parser.add_argument("--masks", type=int, default=0, help="of each picture: they are noise")
    parser.add_argument("--limit-s", type=float, default=580)
    parser.add_argument("--only-build", action="store_true", help="measure in another call")
    options = parser.parse_args()
    counts = [int(one) for one in options.gpus.split(",")]
    results = Results(options.out, options.limit_s)
    results.values["conditions"]["masks of each picture"] = options.masks
    asked = asked_for(options.masks)
    bundle = build(options, results)
    if options.only_build:
        return 0
    with tempfile.TemporaryDirectory() as work:
        fresh = Fresh(jpegs(), Path(work))
        for gpus in counts:
            device = f"cuda:{gpus - 1}" if torch.cuda.is_available() else "cpu"
            with results.section(f"verify on {device}", needs_s=30) as go:
                if go:
                    results.add(f"verify on {device}", verified(bundle, device))
        with results.section("library", needs_s=60) as go:
            if go:
                in_the_library(bundle, fresh, asked, results, options.pictures)
        for gpus in counts:
            with results.section(f"HTTP, {gpus} GPUs", needs_s=60) as go:
                if go:
                    over_http(bundle, gpus, fresh, asked, results, options.pictures * gpus)
        threshold = results.values["figures"].get(LEAST_SCORE, NOTHING)
        folder = fresh.written(2 * options.pictures)
        for gpus in counts:
            with results.section(f"label, {gpus} GPUs", needs_s=45) as go:
                if go:
                    labelled(bundle, gpus, folder, results, threshold)
    judged(results.values["figures"], counts, results)
    return int(bool(results.values["failed"]))


if __name__ == "__main__":
    sys.exit(main())
