"""How fast a server is: what it adds to the library, how many pictures it answers, known ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from load import Client, closed_loop, percentile
from servers import FIELDS, TimeLeft, metric, other_server, processor_seconds, samforge_server

import samforge

CALLS = 200
PART = 24


def added_latency(bundle: Path, images: list[bytes], left: TimeLeft) -> dict[str, Any]:
    """One client, a known picture: over HTTP against the same call of the library, in turns.

    Each pair is measured back to back; the difference of each pair counts. The call over a known
    picture is the shortest that there is, so nothing hides what the server adds. A second call of
    the library follows: by how much two calls of one kind differ is what the machine adds.
    """
    with samforge.load(bundle) as segmenter, samforge_server(bundle) as (url, pid):
        client = Client(f"{url}/v1/segment")
        encoded = segmenter.encode(images[0])
        for _ in range(10):
            client.ask(images[0], FIELDS)
            segmenter.predict(encoded, text="red circle")
        added, library, over_http, told, noise = [], [], [], [], []
        own_cpu, server_cpu = 0.0, processor_seconds(pid)

        def call() -> None:
            found = segmenter.predict(encoded, text="red circle")
            [found.masks.rle(row) for row in range(len(found))]

        for _ in range(CALLS):
            if left.is_over():
                break
            start, cpu = time.perf_counter(), time.process_time()
            call()
            middle = time.perf_counter()
            own_cpu += time.process_time() - cpu
            _, _, body = client.ask(images[0], FIELDS)
            end = time.perf_counter()
            detect = json.loads(body)["timings_ms"]["detect"] / 1e3
            again = time.perf_counter()
            call()
            noise.append(time.perf_counter() - again - (middle - start))
            library.append(middle - start)
            over_http.append(end - middle)
            added.append(end - middle - (middle - start))
            told.append(end - middle - detect)
        server_cpu = processor_seconds(pid) - server_cpu
        client.close()
    return {
        "library_p50_ms": percentile(library, 0.5),
        "http_p50_ms": percentile(over_http, 0.5),
        "added_p50_ms": percentile(added, 0.5),
        "added_p99_ms": percentile(added, 0.99),
        "two_library_calls_differ_p50_ms": percentile(noise, 0.5),
        "two_library_calls_differ_p99_ms": percentile(noise, 0.99),
        "around_the_detector_p50_ms": percentile(told, 0.5),
        "around_the_detector_p99_ms": percentile(told, 0.99),
        "library_cpu_ms_a_call": round(own_cpu / len(added) * 1e3, 2),
        "server_cpu_ms_a_call": round(server_cpu / len(added) * 1e3, 2),
        "calls": len(added),
    }


def offline_rate(segmenter: samforge.Segmenter, images: list[bytes]) -> float:
    """Pictures a second of ``stream``, which reads ahead."""
    start = time.perf_counter()
    for found in segmenter.stream(images, text="red circle"):
        [found.masks.rle(row) for row in range(len(found))]
    return len(images) / (time.perf_counter() - start)


def throughput(
    bundle: Path,
    images: list[bytes],
    others: dict[str, tuple[Path, str]],
    rounds: int,
    left: TimeLeft,
) -> dict[str, Any]:
    """16 clients with distinct pictures, in turns with the offline rate and the other servers."""
    rates: dict[str, list[float]] = {}

    def note(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(round(rate, 3))
        print(name, round(rate, 3), flush=True)

    for number in range(rounds):
        if number and left.is_over():
            break
        part = images[number * PART : number * PART + PART]
        with samforge.load(bundle) as segmenter:
            offline_rate(segmenter, part[:4])
            note("offline", offline_rate(segmenter, part))
        with samforge_server(bundle) as (url, _):
            client = Client(f"{url}/v1/segment")
            client.ask(images[-1], FIELDS)
            client.close()
            patient = [*FIELDS, ("seconds", "300")]
            outcome = closed_loop(
                f"{url}/v1/segment", part, patient, clients=16, requests=len(part)
            )
            assert outcome.statuses == {"200": len(part)}, outcome.statuses
            note("samforge", len(part) / outcome.wall)
        for name, (python, script) in others.items():
            with other_server(python, script, bundle) as url:
                file = "request" if name == "litserve" else "image"  # it gives fields no names
                client = Client(url, file)
                client.ask(images[-1], FIELDS)
                client.close()
                outcome = closed_loop(url, part, FIELDS, clients=16, requests=len(part), file=file)
                assert outcome.statuses == {"200": len(part)}, (name, outcome.statuses)
                note(name, len(part) / outcome.wall)
    best = {name: median(values) for name, values in rates.items()}
    return {
        "rounds": len(rates["offline"]),
        "images_a_round": PART,
        "images_a_second": rates,
        "of_offline": {
            name: round(value / best["offline"], 3)
            for name, value in best.items()
            if name != "offline"
        },
    }


def one_picture(bundle: Path, images: list[bytes]) -> dict[str, Any]:
    """64 clients with one picture, and what a second phrase costs."""
    with samforge_server(bundle) as (url, _):
        name = "samforge_encoded_images_total"
        before = metric(url, name)
        outcome = closed_loop(f"{url}/v1/segment", images[:1], FIELDS, clients=64, requests=64)
        encodes = metric(url, name) - before
        client = Client(f"{url}/v1/segment")
        first, second = [], []
        for number in range(1, 16):
            for phrase, into in (("red circle", first), ("star", second)):
                start = time.perf_counter()
                status, _, _ = client.ask(images[number], [("text", phrase)])
                assert status == "200"
                into.append(time.perf_counter() - start)
        client.close()
    return {
        "statuses": dict(outcome.statuses),
        "encodes": int(encodes),
        "first_phrase_p50_ms": percentile(first, 0.5),
        "second_phrase_p50_ms": percentile(second, 0.5),
        "second_of_first": round(median(second) / median(first), 3),
    }
