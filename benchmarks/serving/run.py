"""What the server promises, measured on this machine with a bundle of the tiny model.

    python benchmarks/serving/run.py BUNDLE [--litserve PYTHON] [--ray PYTHON] [--only NAME …]

Everything runs on one machine, the clients too: take the ratios of one run, not its milliseconds.
The library call is measured beside each server, in turns, because the machine is not always equally
fast. Results go to benchmarks/results/serving.json; what is not measured anew stays as it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _conditions import conditions  # noqa: E402
from load import Client, closed_loop, open_loop, percentile  # noqa: E402

import samforge  # noqa: E402
from samforge.media import write_png  # noqa: E402
from samforge.models.tiny import draw_scene  # noqa: E402

RESULT = HERE.parent / "results" / "serving.json"
FIELDS = [("text", "red circle")]
IMAGES = 240
PART = 24


def pictures(folder: Path) -> list[bytes]:
    """Distinct scenes as PNG files."""
    paths = [
        write_png(folder / f"{number:04}.png", draw_scene(number, split="demo").image)
        for number in range(IMAGES)
    ]
    return [path.read_bytes() for path in paths]


@contextmanager
def samforge_server(bundle: Path, *words: str) -> Iterator[tuple[str, int]]:
    """Our server as users start it; its URL and process."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "samforge.apps.cli",
            "serve",
            f"tiny={bundle}",
            "--port",
            "0",
            *words,
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, log.read()
        wait_for(f"{found[0]}/health/ready")
        yield found[0], process.pid
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        log.close()


@contextmanager
def other_server(python: Path, script: str, bundle: Path) -> Iterator[str]:
    """A server of another kind, in an environment of its own, over the same library call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = str(Path(samforge.__file__).parents[1])
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
    process = subprocess.Popen(
        [str(python), str(HERE / script), str(bundle), str(port)],
        env={**os.environ, "PYTHONPATH": source},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def wait_for(url: str, seconds: float = 180) -> None:
    """Until it answers 200."""
    import urllib.error
    import urllib.request

    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"{url} is not ready")
        time.sleep(0.3)


def metric(url: str, name: str, **labels: str) -> float:
    """A figure of the server's metrics, summed over its other labels."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(pid: int) -> float:
    """Time that a process has had on processors."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def added_latency(bundle: Path, images: list[bytes]) -> dict[str, Any]:
    """One client, a known picture: over HTTP against the same call of the library, in turns.

    Each pair is measured back to back; the difference of each pair counts. The call over a known
    picture is the shortest that there is, so nothing hides what the server adds.
    """
    with samforge.load(bundle) as segmenter, samforge_server(bundle) as (url, pid):
        client = Client(f"{url}/v1/segment")
        encoded = segmenter.encode(images[0])
        for _ in range(10):
            client.ask(images[0], FIELDS)
            segmenter.predict(encoded, text="red circle")
        added, library, over_http, told = [], [], [], []
        own_cpu, server_cpu = 0.0, processor_seconds(pid)
        for _ in range(200):
            start, cpu = time.perf_counter(), time.process_time()
            found = segmenter.predict(encoded, text="red circle")
            [found.masks.rle(row) for row in range(len(found))]
            middle = time.perf_counter()
            own_cpu += time.process_time() - cpu
            _, _, body = client.ask(images[0], FIELDS)
            end = time.perf_counter()
            detect = json.loads(body)["timings_ms"]["detect"] / 1e3
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
    bundle: Path, images: list[bytes], others: dict[str, tuple[Path, str]], rounds: int
) -> dict[str, Any]:
    """16 clients with distinct pictures, in turns with the offline rate and the other servers."""
    rates: dict[str, list[float]] = {}

    def note(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(round(rate, 3))
        print(name, round(rate, 3), flush=True)

    for number in range(rounds):
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


def overload(bundle: Path, images: list[bytes]) -> dict[str, Any]:
    """Three times the capacity for a minute, open-loop; then one client, served as before."""
    deadline = 8.0
    fields = [*FIELDS, ("seconds", str(deadline))]
    with samforge_server(bundle, "--limit", "cache_bytes=20e6") as (url, pid):
        target = f"{url}/v1/segment"
        closed_loop(target, images[:4], FIELDS, clients=2, requests=4)
        warm = closed_loop(target, images[8:32], FIELDS, clients=4, requests=24)
        assert warm.statuses == {"200": 24}, warm.statuses
        capacity = 24 / warm.wall
        alone = closed_loop(target, images[48:54], FIELDS, clients=1, requests=6)
        # Bytes behind the end of a PNG change its hash and nothing else: each is an encode.
        fresh = [
            images[number % IMAGES] + number.to_bytes(4, "big") for number in range(4 * IMAGES)
        ]
        before = resident_mib(pid)
        peak, done = [before], threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                peak.append(resident_mib(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        outcome = open_loop(target, fresh, fields, rate=3 * capacity, seconds=60)
        ended = time.perf_counter()
        done.set()
        watcher.join()
        client = Client(target)
        usual, back = percentile(alone.seconds, 0.5) or 0.0, None
        for number in range(40):
            start = time.perf_counter()
            status, _, _ = client.ask(images[100 + number], fields)
            took = (time.perf_counter() - start) * 1e3
            if status == "200" and took < 2 * usual:
                back = round(time.perf_counter() - ended, 2)
                break
        client.close()
    return {
        "capacity_a_second": round(capacity, 2),
        "rate_a_second": round(3 * capacity, 2),
        "deadline_s": deadline,
        **outcome.summary(),
        "resident_mib_before": round(before),
        "resident_mib_peak": round(max(peak)),
        "normal_again_after_s": back,
    }


def signalled(bundle: Path, images: list[bytes]) -> dict[str, Any]:
    """SIGTERM under load: what was accepted is answered."""
    with samforge_server(bundle, "--drain", "60") as (url, pid):
        target = f"{url}/v1/segment"
        statuses: list[str] = []
        lock = threading.Lock()

        def ask(worker: int) -> None:
            for number in range(100):
                client = Client(target)
                status, _, _ = client.ask(images[(worker * 17 + number) % len(images)], FIELDS)
                client.close()
                with lock:
                    statuses.append(status)
                if status != "200":
                    return

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(4)
        with lock:
            done = len(statuses)
        os.kill(pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    return {"answered_before_the_signal": done, "statuses": counts}


def memory(bundle: Path, images: list[bytes], requests: int) -> dict[str, Any]:
    """Mixed requests: known and new pictures, phrases, boxes, bad ones. Memory after each tenth."""
    with samforge_server(bundle, "--limit", "cache_bytes=30e6", "--limit", "kept_bytes=4e6") as (
        url,
        pid,
    ):
        target = f"{url}/v1/segment"
        kinds: list[tuple[bytes, list[tuple[str, str]]]] = [
            (images[0], [("text", "red circle")]),
            (images[1], [("text", "star"), ("masks", "png"), ("threshold", "0.3")]),
            (images[2], [("boxes_xyxy", "[[20, 20, 90, 90]]")]),
            (images[3], [("text", "blue square"), ("masks", "polygons")]),
            (b"no picture", [("text", "star")]),
            (images[4], [("boxes_xyxy", "[[9, 9, 9, 9]]")]),
            (images[5], []),
            (images[6], [("text", "star"), ("seconds", "-1")]),
        ]
        rng = np.random.default_rng(0)
        sizes, client = [], Client(target)
        for number in range(requests):
            image, fields = kinds[int(rng.integers(len(kinds)))]
            if number % 20 == 0:  # a new picture
                image, fields = images[10 + (number // 20) % 200], [("text", "star")]
            client.ask(image, fields)
            if number % (requests // 10) == requests // 10 - 1:
                sizes.append(round(resident_mib(pid), 1))
                print("memory", number + 1, sizes[-1], flush=True)
        client.close()
    return {
        "requests": requests,
        "resident_mib": sizes,
        "growth_of_the_last_half": round(sizes[-1] / sizes[len(sizes) // 2 - 1] - 1, 4),
    }


def leaving(bundle: Path, images: list[bytes]) -> dict[str, Any]:
    """Clients that leave: the next one waits for at most the picture that had begun."""
    with samforge_server(bundle) as (url, _):
        where = url.rpartition(":")
        target = f"{url}/v1/segment"
        closed_loop(target, images[:4], FIELDS, clients=1, requests=4)
        alone = closed_loop(target, images[4:12], FIELDS, clients=1, requests=8)
        from load import form

        before = metric(url, "samforge_encoded_images_total")
        sockets = []
        for number in range(30):
            body, kind = form(images[20 + number], FIELDS)
            one = socket.create_connection(("127.0.0.1", int(where[2])))
            head = (
                f"POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            one.sendall(head.encode() + body)
            sockets.append(one)
        time.sleep(0.3)
        for one in sockets:
            one.close()
        client = Client(target)
        start = time.perf_counter()
        client.ask(images[60], FIELDS)
        took = time.perf_counter() - start
        client.close()
        encodes = metric(url, "samforge_encoded_images_total") - before
        left = metric(url, "samforge_ended_total", outcome="left")
    return {
        "clients_that_left": 30,
        "counted_as_left": int(left),
        "pictures_encoded": int(encodes),
        "next_request_ms": round(took * 1e3, 1),
        "usual_p50_ms": percentile(alone.seconds, 0.5),
    }


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--litserve", type=Path, help="Python with litserve.")
    parser.add_argument("--ray", type=Path, help="Python with ray[serve].")
    parser.add_argument("--rounds", type=int, default=3, help="Of throughput.")
    parser.add_argument("--requests", type=int, default=10_000, help="Of the test of memory.")
    parser.add_argument("--only", nargs="*", default=None)
    given = parser.parse_args()
    others: dict[str, tuple[Path, str]] = {}
    versions = {name: version(name) for name in ("fastapi", "uvicorn", "starlette")}
    for name, python in (("litserve", given.litserve), ("ray", given.ray)):
        if python is not None:
            others[name] = (python, f"with_{name}.py")
            code = f"from importlib.metadata import version; print(version({name!r}))"
            versions[name] = subprocess.check_output([python, "-c", code], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(Path(folder))
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "added_latency": lambda: added_latency(given.bundle, images),
            "throughput": lambda: throughput(given.bundle, images, others, given.rounds),
            "one_picture": lambda: one_picture(given.bundle, images),
            "overload": lambda: overload(given.bundle, images),
            "signal": lambda: signalled(given.bundle, images),
            "memory": lambda: memory(given.bundle, images, given.requests),
            "leaving": lambda: leaving(given.bundle, images),
        }
        for name in given.only or measures:
            where = conditions()
            where["versions"] |= versions
            result = measures[name]()
            print(name, json.dumps(result), flush=True)
            where["load_average"] = [round(one, 1) for one in os.getloadavg()]
            kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            kept[name] = {**result, "measured": where}
            RESULT.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
