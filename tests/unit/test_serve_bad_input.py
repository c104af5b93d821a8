"""What clients should not send: each is told what is allowed, and the server lives on."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from served import png, served

from samforge.apps.serve.run import _config
from samforge.models import tiny
from samforge.serving import Limits, Service

SCENE = tiny.draw_scene(11, split="demo").image
PNG = png(SCENE)
LIMITS = Limits(
    request_bytes=300_000, pixels=200_000, upload_seconds=1.0, phrases=8, boxes=4, detections=50
)


@pytest.fixture(scope="module")
def server(proven_bundle: Callable[..., Path]) -> Iterator[tuple[httpx.Client, Service]]:
    with served(proven_bundle("bad"), limits=LIMITS) as one:
        yield one


@pytest.fixture
def client(server: tuple[httpx.Client, Service]) -> Iterator[httpx.Client]:
    client, service = server
    yield client
    # Whatever came, it answers the next one, and nothing is left behind.
    good = client.post("/v1/segment", files={"image": PNG}, data={"text": "star"})
    assert good.status_code == 200, good.text
    assert service.is_alive()
    assert len(service.model().require()._open) == 0


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["instance"].endswith(answer.headers["x-request-id"])
    for word in words:
        assert word in problem["detail"], problem["detail"]


def sent(client: httpx.Client, picture: bytes = PNG, **fields: Any) -> httpx.Response:
    body = {"image": base64.b64encode(picture).decode(), "text": "star", **fields}
    return client.post("/v1/segment", json=body)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (bomb(60_000, 60_000), ("60000 x 60000", "at most 200,000")),
        (bomb(1_000, 1_000), ("1,000,000 pixels", "at most 200,000")),
        (bomb(400, 400), ("cannot be decoded",)),
        (PNG[: len(PNG) // 2], ("cannot be",)),
        (b"", ("no picture",)),
        (b"GIF89a", ("cannot be opened",)),
        (b"%!PS-Adobe-3.0 EPSF-3.0", ("is not an image",)),
        (b"<svg/>", ("is not an image",)),
        (bytes(1000), ("is not an image",)),
    ],
    ids=[
        *("bomb", "large", "short of data", "truncated", "empty", "a magic word", "EPS", "SVG"),
        "zeros",
    ],
)
def test_pictures_that_are_none(client: httpx.Client, image: bytes, words: tuple[str, ...]) -> None:
    start = time.monotonic()
    refused(sent(client, image), 422, *words)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (png(np.full((1, 1, 3), 200, np.uint8)), [1, 1]),
        (png(np.full((40, 30), 30_000, np.uint16)), [40, 30]),
        (png(np.full((40, 30), 9, np.uint8)), [40, 30]),
        (animated(), list(SCENE.shape[:2])),
    ],
    ids=["one pixel", "16 bit", "grey", "animated"],
)
def test_unusual_pictures_are_pictures(client: httpx.Client, image: bytes, size: list[int]) -> None:
    answer = sent(client, image)
    assert (answer.status_code, answer.json()["size_hw"]) == (200, size)


def test_cmyk_is_a_picture(client: httpx.Client) -> None:
    stream = io.BytesIO()
    Image.fromarray(SCENE).convert("CMYK").save(stream, "JPEG")
    assert sent(client, stream.getvalue()).status_code == 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": ["star"] * 9}, ("9 phrases", "at most 8")),
        ({"text": [str(n) for n in range(20_000)]}, ("20,000 phrases", "at most 8")),
        ({"text": "x" * 600}, ("512",)),
        ({"text": ""}, ("text",)),
        ({"text": "   "}, ("A phrase is text",)),
        ({"text": []}, ("empty",)),
        ({"text": None}, ("Say what to find",)),
        ({"text": 7}, ("text",)),
        ({"text": "star", "boxes_xyxy": [[0, 0, 5, 5]] * 5}, ("5 boxes", "at most 4")),
        ({"text": "star", "boxes_xyxy": [[5, 5, 5, 9]]}, ("no area",)),
        ({"text": "star", "boxes_xyxy": [[0, 0, 9999, 5]]}, ("leaves the image",)),
        ({"text": "star", "boxes_xyxy": [[0, 0, 1e39, 5]]}, ("leaves the image",)),
        ({"text": "star", "boxes_xyxy": []}, ("(K, 4)",)),
        ({"text": "star", "boxes_xyxy": [[1, 2, 3]]}, ("boxes_xyxy",)),
        ({"text": "star", "box_labels": [1]}, ("box_labels",)),
        ({"text": ["a", "b"], "boxes_xyxy": [[0, 0, 5, 5]]}, ("one phrase",)),
        ({"objects": [{"points": [[1, 1]]}]}, ("one after the other",)),
        ({"text": None, "objects": [{"points": [[1, 1]]}]}, ("clicks need another",)),
        ({"text": None, "objects": [{}]}, ("Show the object",)),
        ({"candidates": True}, ("go with clicks",)),
        ({"hole_area": 5}, ("go with clicks",)),
        ({"hole_area": -1}, ("hole_area",)),
        ({"threshold": 1.5}, ("less than or equal to 1",)),
        ({"threshold": [0.1, 0.2]}, ("1 phrases and 2 thresholds",)),
        ({"threshold": "high"}, ("threshold",)),
        ({"max_detections": 0}, ("max_detections",)),
        ({"seconds": 1e9}, ("at most 300",)),
        ({"seconds": 0}, ("seconds",)),
        ({"masks": "bitmap"}, ("masks",)),
        ({"model": "../../etc/passwd"}, ("No bundle",)),
        ({"image_id": "x"}, ("image and image_id",)),
        ({"no_such_field": 1}, ("no_such_field",)),
        ({"image": "http://example.org/a.png"}, ("fetches none",)),
        ({"image": "file:///etc/passwd"}, ("fetches none",)),
        ({"image": "data:image/png,abc"}, ("base64",)),
        ({"image": "####"}, ("not base64",)),
    ],
)
def test_questions_that_are_none(
    client: httpx.Client, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    too_many = any("at most" in word and "300" not in word for word in words)
    refused(sent(client, **fields), 404 if "model" in fields else 413 if too_many else 422, *words)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(client: httpx.Client, number: str) -> None:
    image = base64.b64encode(PNG).decode()
    body = f'{{"image": "{image}", "text": "a", "boxes_xyxy": [[1, 2, 3, {number}]]}}'
    headers = {"content-type": "application/json"}
    refused(client.post("/v1/segment", content=body, headers=headers), 422)
    form = {"text": "a", "boxes_xyxy": f"[[1, 2, 3, {number}]]"}
    refused(client.post("/v1/segment", files={"image": PNG}, data=form), 422, "finite")


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b'"text"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"{}x"],
)
def test_bodies_that_are_no_json(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/segment", "/v1/images", "/v1/images/x/segment"):
        refused(client.post(path, content=body, headers=headers), 422)


@pytest.mark.parametrize(
    "kind", ["text/plain", "image/png", "", "application/xml", "multipart/mixed; boundary=a"]
)
def test_content_of_other_types(client: httpx.Client, kind: str) -> None:
    for path in ("/v1/segment", "/v1/images", "/v1/video"):
        answer = client.post(path, content=PNG, headers={"content-type": kind})
        refused(answer, 415, "multipart/form-data")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("multipart/form-data", PNG),
        ("multipart/form-data; boundary=x", PNG),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\ncontent-disposition: form-data\r\n\r\na\r\n--x--",
        ),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x"),
    ],
)
def test_forms_that_are_none(client: httpx.Client, head: str, body: bytes) -> None:
    answer = client.post("/v1/segment", content=body, headers={"content-type": head})
    assert 400 <= answer.status_code < 500
    refused(answer, answer.status_code)


def test_compressed_bodies(client: httpx.Client) -> None:
    body = gzip.compress(b"{}")
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post("/v1/segment", content=body, headers=headers)
    refused(answer, 415, "'gzip'", "not compressed")


def test_forms_with_too_much(client: httpx.Client) -> None:
    fields = {f"field{n}": "1" for n in range(1000)}
    answer = client.post("/v1/segment", files={"image": PNG}, data=fields)
    refused(answer, 400)
    files = {"image": PNG, "other": b"x"}
    refused(client.post("/v1/segment", files=files, data={"text": "a"}), 422, "Only image is one")
    twice = [("image", PNG), ("image", PNG)]
    refused(client.post("/v1/segment", files=twice, data={"text": "a"}), 422, "came 2 times")
    unknown = client.post("/v1/segment", files={"image": PNG}, data={"txet": "star"})
    refused(unknown, 422, "'txet'", "image, model, text")
    empty = client.post("/v1/segment", files={"image": PNG}, data={"text": ""})
    refused(empty, 422, "text.0: String should have at least 1 character")
    text = client.post("/v1/segment", files={"image": PNG}, data={"threshold": "[[["})
    refused(text, 422, "is JSON in a form")


def test_bodies_that_are_too_large(client: httpx.Client) -> None:
    huge = base64.b64encode(bytes(400_000)).decode()
    refused(client.post("/v1/segment", json={"image": huge}), 413, "at most 300,000")
    refused(client.post("/v1/segment", files={"image": bytes(400_000)}), 413, "at most 300,000")

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(10_000)

    answer = client.post(
        "/v1/segment", content=endless(), headers={"content-type": "application/json"}
    )
    refused(answer, 413, "more than 300,000")


def raw(client: httpx.Client, head: str, body: bytes = b"", wait: float = 0.0) -> bytes:
    """Bytes on the wire, and what comes back."""
    port = int(str(client.base_url).rpartition(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(head.replace("\n", "\r\n").encode("latin-1"))
        for place in range(0, len(body), 40):
            try:
                one.sendall(body[place : place + 40])
            except OSError:
                break
            time.sleep(wait)
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = one.recv(65536)
            if not more:
                break
            answer += more
        return answer


HEAD = (
    "POST /v1/segment HTTP/1.1\nhost: x\ncontent-type: application/json\ncontent-length: 9000\n\n"
)


def test_a_body_that_comes_too_slowly(client: httpx.Client) -> None:
    start = time.monotonic()
    answer = raw(client, HEAD, bytes(9000), wait=0.05)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - start < 6


def test_a_body_that_breaks_off(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    port = int(str(client.base_url).rpartition(":")[2].strip("/"))
    head = HEAD.replace("host: x", "host: x\nx-request-id: breaks-off")

    def told() -> list[Any]:
        # Requests of earlier tests may end meanwhile, and are told of, too.
        own: list[Any] = [one for one in caplog.records if hasattr(one, "fields")]
        return [one for one in own if one.fields.get("request_id") == "breaks-off"]

    with caplog.at_level("INFO", "samforge.serve"):
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(head.replace("\n", "\r\n").encode() + b'{"image": "')
        end = time.monotonic() + 10
        while not told():
            assert time.monotonic() < end
            time.sleep(0.01)
    (record,) = told()
    assert (record.message, record.fields["status"]) == ("request", 499)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /v1/segment HTTP/1.1\nhost: x\ncontent-length: -5\n\n", 400),
        ("POST /v1/segment HTTP/1.1\nhost: x\ncontent-length: 99999999999999999999\n\n", 413),
        ("POST /v1/segment HTTP/1.1\nhost: x\ncontent-length: 9999999999\n\n", 413),
        ("POST /v1/segment HTTP/1.1\nhost: x\ntransfer-encoding: chunked\n\nZZ\n", 400),
        ("BREW /v1/segment HTTP/1.1\nhost: x\n\n", 405),
        ("GET /\x00 HTTP/1.1\nhost: x\n\n", 400),
        ("nonsense\n\n", 400),
    ],
)
def test_requests_that_are_none(client: httpx.Client, head: str, status: int) -> None:
    assert int(raw(client, head).split(b" ")[1]) == status


def test_headers_without_an_end_are_not_held(client: httpx.Client) -> None:
    """Before any token is asked for. httptools, where it is installed, would hold all of them."""
    assert _config(FastAPI()).http == "h11"
    port, took = int(str(client.base_url).rpartition(":")[2].strip("/")), 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
        with suppress(OSError):
            for number in range(1000):
                one.sendall(b"x-%d: %s\r\n" % (number, b"a" * 20_000))
                took = number
    assert took < 900, "all of 20 MB were taken"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/..%2f..%2f..%2fetc%2fpasswd/segment",
        "/v1/images/%00/segment",
        "/v1/images/" + "0" * 32 + "/segment",
        "/v1/images/" + "z" * 5000 + "/segment",
        "/../../etc/passwd",
        "/v1/segment/../../../etc/passwd",
        "/static/..%2f..%2fetc%2fpasswd",
    ],
)
def test_paths_and_ids_that_nobody_was_given(client: httpx.Client, path: str) -> None:
    refused(client.post(path, json={"text": "star"}), 404)


def test_methods_that_are_none(client: httpx.Client) -> None:
    answer = client.get("/v1/segment")
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_an_error_within_says_nothing_of_the_inside(
    client: httpx.Client,
    server: tuple[httpx.Client, Service],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (segmenter,) = server[1].model().require()._segmenters

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret place /srv/models")

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "begin_answers", broken)
        answer = sent(client)
    refused(answer, 500, "the server's log")
    assert "secret" not in answer.text


def test_clients_cannot_ask_for_more_than_the_server_gives(client: httpx.Client) -> None:
    answer = sent(client, threshold=0.0, max_detections=10**9)
    assert answer.status_code == 200
    assert len(answer.json()["detections"]) <= 50


def test_a_huge_json_of_numbers(client: httpx.Client) -> None:
    boxes = json.dumps([[0, 0, 5, 5]] * 10_000)
    answer = client.post("/v1/segment", files={"image": PNG}, data={"boxes_xyxy": boxes})
    refused(answer, 413, "10,000 boxes")
