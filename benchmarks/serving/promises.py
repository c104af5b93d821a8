"""What a server promises under load: refusals, signals, memory, clients that leave."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from load import Client, closed_loop, form, open_loop, percentile
from servers import FIELDS, TimeLeft, metric, resident_mib, samforge_server


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
            images[number % len(images)] + number.to_bytes(4, "big")
            for number in range(4 * len(images))
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


def signalled(bundle: Path, images: list[bytes], left: TimeLeft) -> dict[str, Any]:
    """SIGTERM under load: what was accepted is answered.

    Each request has a connection of its own. Who cannot connect, or is refused with 503, was not
    accepted; any other end without an answer is a request that was lost.
    """
    with samforge_server(bundle, "--drain", "60") as (url, pid):
        target = f"{url}/v1/segment"
        statuses: list[str] = []
        lock = threading.Lock()

        def ask(worker: int) -> None:
            for number in range(1000):
                if left.is_over():
                    return
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
        done = 0
        while done < 8 and not left.is_over():
            time.sleep(0.05)
            with lock:
                done = len(statuses)
        if done == 0:
            raise TimeoutError("Nothing was answered in time: there is no load to end. Give more.")
        sent = time.perf_counter()
        os.kill(pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
        last = time.perf_counter() - sent
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    accounted = ("200", "503", "ConnectionRefusedError")
    return {
        "clients": len(threads),
        "answered_before_the_signal": done,
        "statuses": counts,
        "lost": sum(count for status, count in counts.items() if status not in accounted),
        "last_answer_s_after_the_signal": round(last, 2),
    }


def memory(bundle: Path, images: list[bytes], requests: int, left: TimeLeft) -> dict[str, Any]:
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
        sizes, done, client = [], 0, Client(target)
        for number in range(requests):
            if left.is_over():
                break
            image, fields = kinds[int(rng.integers(len(kinds)))]
            if number % 20 == 0:  # a new picture
                image, fields = images[10 + (number // 20) % 200], [("text", "star")]
            client.ask(image, fields)
            done += 1
            if number % (requests // 10) == requests // 10 - 1:
                sizes.append(round(resident_mib(pid), 1))
                print("memory", number + 1, sizes[-1], flush=True)
        client.close()
    half = sizes[max(0, len(sizes) // 2 - 1)] if sizes else None
    return {
        "requests": done,
        "requests_asked_for": requests,
        "resident_mib": sizes,
        "growth_of_the_last_half": None if half is None else round(sizes[-1] / half - 1, 4),
    }


def leaving(bundle: Path, images: list[bytes]) -> dict[str, Any]:
    """Clients that leave: the next one waits for at most the picture that had begun.

    They have time enough that admission takes them all.
    """
    with samforge_server(bundle) as (url, _):
        where = url.rpartition(":")
        target = f"{url}/v1/segment"
        closed_loop(target, images[:4], FIELDS, clients=1, requests=4)
        alone = closed_loop(target, images[4:12], FIELDS, clients=1, requests=8)
        before = metric(url, "samforge_encoded_images_total")
        sockets = []
        for number in range(30):
            body, kind = form(images[20 + number], [*FIELDS, ("seconds", "300")])
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
        end = time.monotonic() + 10
        while (left := metric(url, "samforge_http_requests_total", status="499")) < 30:
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        accepted = metric(url, "samforge_ended_total", outcome="left")
    return {
        "clients_that_left": 30,
        "requests_ended_as_left": int(left),
        "of_them_accepted_before": int(accepted),
        "pictures_encoded": int(encodes),
        "next_request_ms": round(took * 1e3, 1),
        "usual_p50_ms": percentile(alone.seconds, 0.5),
    }
