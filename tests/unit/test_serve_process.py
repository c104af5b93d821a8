"""The command: where it listens, who may ask, and that a signal loses nothing it accepted."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from served import png

import samforge
from samforge.apps import cli
from samforge.apps.cli.serving import (
    devices_from_text,
    limits_from_texts,
    shadowing_from_text,
    tokens_from_file,
)
from samforge.apps.serve.door import Tokens
from samforge.apps.serve.run import Listening, _bound
from samforge.core.errors import SettingError
from samforge.models import tiny
from samforge.serving import Limits, named

SCENE = tiny.draw_scene(11, split="demo").image


@contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server process, its URL, and what it logs."""
    environment = {**os.environ, "PYTHONPATH": str(Path(samforge.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "samforge.apps.cli", "serve", *words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    logged: list[str] = []
    said: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    assert process.stderr is not None
    streams = ((process.stdout, said.put), (process.stderr, logged.append))
    threads = [
        threading.Thread(target=lambda s=stream, k=keep: [k(line) for line in s])  # type: ignore[misc]
        for stream, keep in streams
    ]
    for thread in threads:
        thread.start()
    try:
        line = said.get(timeout=60)
        url = re.search(r"http://\S+", line)
        assert url, line
        yield process, url[0], logged
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join()
        for stream, _ in streams:
            stream.close()


def until_ready(url: str) -> None:
    end = time.monotonic() + 60
    while httpx.get(f"{url}/health/ready").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_signal_loses_nothing_that_was_accepted(proven_bundle: Callable[..., Path]) -> None:
    words = (str(proven_bundle("signal")), "--threads", "1", "--notice", "4")
    # Its own client: making one takes a second where eight others are at work.
    with running(*words) as one, httpx.Client(timeout=30) as probe:
        process, url, logged = one
        assert url.startswith("http://127.0.0.1:")
        assert probe.get(f"{url}/health/live").status_code == 200
        until_ready(url)
        started, stop = threading.Event(), threading.Event()

        def ask(worker: int) -> list[int | str]:
            answers: list[int | str] = []
            with httpx.Client(timeout=30) as client:
                for number in range(10_000):
                    if stop.is_set():
                        break
                    image = np.full((64, 64 + number % 7, 3), (worker * 31 + number) % 256)
                    try:
                        answer = client.post(
                            f"{url}/v1/segment",
                            files={"image": png(image.astype(np.uint8))},
                            data={"text": "star"},
                        )
                        answers.append(answer.status_code)
                        started.set()
                    except httpx.ConnectError:
                        return answers  # the port is closed: nobody was accepted
                    except httpx.HTTPError as error:
                        answers.append(type(error).__name__)
            return answers

        with ThreadPoolExecutor(8) as pool:
            results = [pool.submit(ask, worker) for worker in range(8)]
            assert started.wait(30)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            unready = probe.get(f"{url}/health/ready")
            assert (unready.status_code, unready.json()["draining"]) == (503, True)
            process.wait(timeout=60)
            stop.set()
            statuses = [status for result in results for status in result.result()]
    assert process.returncode == 0
    assert statuses.count(200) > 8
    # A request on a connection that had been idle finds it closed: it was never accepted.
    assert set(statuses) <= {200, "RemoteProtocolError", "ReadError"}, set(statuses)
    lines = [json.loads(line) for line in logged]
    (end,) = [line for line in lines if line["event"] == "ended"]
    assert end["nothing_lost"] is True
    requests = [line for line in lines if line["event"] == "request"]
    answered = [one for one in requests if one["route"] == "/v1/segment"]
    assert {one["status"] for one in answered} == {200}
    assert statuses.count(200) == len(answered)
    assert {"request_id", "client", "ms", "timings", "model"} <= set(answered[0])


def test_a_missing_extra_says_what_to_install(proven_bundle: Callable[..., Path]) -> None:
    script = """
import sys
sys.modules["fastapi"] = None
from samforge.apps import cli
sys.exit(cli.main(["serve", sys.argv[1]]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(proven_bundle("extra"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 3
    assert "samforge[serve]" in run.stderr


def test_others_may_ask_only_with_tokens_or_where_it_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingError, match="everybody on the network"):
        Listening(host="0.0.0.0")
    assert Listening(host="0.0.0.0", open_to_all=True).host == "0.0.0.0"
    assert Listening(host="0.0.0.0", tokens=Tokens(by_name={"a": "b"})).port == 8000
    assert cli.main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--open" in capsys.readouterr().err
    for place in ("nowhere", "file:///etc/", "https://host/folder"):
        assert cli.main(["serve", str(tmp_path), "--fetch-from", place]) == 2
        assert "no place to fetch from" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["serve", str(tmp_path)]) == 5  # no bundle


def test_it_listens_before_it_says_so() -> None:
    bound = _bound(Listening(port=0))
    try:
        with socket.create_connection(bound.getsockname(), timeout=5):
            pass
    finally:
        bound.close()


def test_a_port_that_is_taken(
    proven_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(proven_bundle("taken")), "--port", str(port)]) == 2
    assert "Give another --port" in " ".join(capsys.readouterr().err.split())


def test_tokens_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may ask\nrobot:{'a' * 16}\n\n page : {'b:c' * 8} \n")
    assert tokens_from_file(file) == {"robot": "a" * 16, "page": "b:c" * 8}
    for text in ("robot", f":{'a' * 16}", "robot:short", "# nothing\n"):
        file.write_text(text)
        with pytest.raises(SettingError) as caught:
            tokens_from_file(file)
        assert "short" not in str(caught.value).replace("a token of", "")
    with pytest.raises(SettingError, match="cannot be read"):
        tokens_from_file(tmp_path / "none")


def test_options_as_values() -> None:
    assert devices_from_text("cuda:0, cuda:1") == ("cuda:0", "cuda:1")
    assert devices_from_text("") == ("auto",)
    limits = limits_from_texts(["pixels=20e6", "seconds=2.5"])
    assert (limits.pixels, limits.seconds, limits.phrases) == (20_000_000, 2.5, 64)
    assert isinstance(limits.pixels, int)
    for text in ("nothing=1", "pixels", "pixels=many", "pixels=inf", "pixels=0", "pixels=-1"):
        with pytest.raises(SettingError):
            limits_from_texts([text])
    assert shadowing_from_text("fp32=0.25").share == 0.25
    for text in ("fp32", "fp32=often", "fp32=2"):
        with pytest.raises(SettingError):
            shadowing_from_text(text)
    assert named(["build/tiny", "b=build/other/"]) == {
        "tiny": "build/tiny",
        "b": "build/other/",
    }


@pytest.mark.parametrize(
    "bundles", [["a/tiny", "b/tiny"], ["a/tiny/", "tiny=b"], ["x=a", "c", "x=b"]]
)
def test_two_bundles_of_one_name_are_refused(
    bundles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = named(bundles[:1]).popitem()[0]
    with pytest.raises(SettingError, match=f"both called {name}.*{name}-2="):
        named(bundles)
    assert cli.main(["serve", *bundles]) == 2
    assert f"{name}-2=" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("bundle", ["/", "=a", "a=", ""])
def test_a_bundle_has_a_name_and_a_folder(bundle: str) -> None:
    with pytest.raises(SettingError, match="names no bundle"):
        named([bundle])


def test_what_comes_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    one, other = "a" * 16, "b" * 16
    for text in (f"robot:{one}\n\nrobot:{other}\n", f"robot:{one}\n# same\npage:{one}\n"):
        file.write_text(text)
        with pytest.raises(SettingError, match=r"Line 3 .* that a line above has") as caught:
            tokens_from_file(file)
        assert one not in str(caught.value)
    file.write_text("robot:" + "ä" * 20)  # headers have no such letters
    with pytest.raises(SettingError, match="ASCII"):
        tokens_from_file(file)
    with pytest.raises(SettingError, match="pixels came twice"):
        limits_from_texts(["pixels=5", "pixels=6"])


@pytest.mark.parametrize("name", ["waiting", "seconds", "cache_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1"])
def test_limits_that_are_none(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_the_usual_time_is_within_the_most() -> None:
    with pytest.raises(SettingError, match="above most_seconds"):
        Limits(seconds=400)
