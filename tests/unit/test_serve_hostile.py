"""Requests made to break a server: each is told what is allowed, and none is a fault of its own."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import logging
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import httpx
import pytest
from browser_page import picture
from drawn_service import DrawnService, drawn_app
from fastapi.testclient import TestClient

from samforge.apps.serve import native
from samforge.apps.serve.app import _fields, method_of
from samforge.apps.serve.dialects import labelstudio, roboflow, xanylabeling
from samforge.apps.serve.dialects.sources import ImageSources
from samforge.apps.serve.door import Tokens, token_from_headers
from samforge.apps.serve.logs import log_to_stderr
from samforge.apps.serve.problems import CLIENT_LEFT
from samforge.core.errors import ImageError, PromptError, PromptWarning, ShapeError, TooLarge

PNG = picture()
B64 = base64.b64encode(PNG).decode()
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="star"/></BrushLabels></View>'
)


@pytest.fixture
def service() -> DrawnService:
    return DrawnService()


@pytest.fixture
def client(service: DrawnService) -> Iterator[httpx.Client]:
    with TestClient(drawn_app(service), raise_server_exceptions=False) as one:
        yield one  # type: ignore[misc]  # it is one of httpx


def test_an_authorization_of_any_bytes_is_no_token() -> None:
    tokens = Tokens(by_name={"anna": "a token of anna's"})
    app = drawn_app(DrawnService(), tokens)
    with TestClient(app, raise_server_exceptions=False) as client:
        for value in (
            *(b"Basic \xe4\xf6\xfc", b"Basic \xff\xfe==", b"Basic %%%", b"Basic ", b"Basic YQ"),
            *(b"Basic " + base64.b64encode(b"\xff\xfe:\xff"), b"Bearer \xe4", b"\xe4 \xf6"),
        ):
            answer = client.get("/v1/models", headers=[(b"authorization", value)])  # type: ignore[arg-type]
            assert answer.status_code == 401, (value, answer.text)
            assert "Authorization: Bearer" in answer.json()["detail"]
        basic = base64.b64encode(b"x:a token of anna's").decode()
        assert token_from_headers({"authorization": f"Basic {basic}"}) == "a token of anna's"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/segment", "application/json"),
        ("/v1/segment", "multipart/form-data; boundary=x"),
        ("/v1/video", "multipart/form-data; boundary=x"),
        ("/v2/models/drawn/infer", "application/json"),
        ("/xanylabeling/v1/predict", "application/json"),
        ("/labelstudio/predict", "application/json"),
        ("/roboflow/sam3/concept_segment", "application/json"),
    ],
)
def test_who_leaves_in_the_middle_of_a_body_is_no_fault(
    path: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    from samforge.serving.bounded import VideoRuns

    service = DrawnService()
    service.videos = VideoRuns(1)  # type: ignore[attr-defined]
    ended: list[int] = []
    app = drawn_app(service, seen=lambda _, status, __: ended.append(status))
    begun = b'{"image": "'
    if kind.startswith("multipart"):
        begun = b'--x\r\ncontent-disposition: form-data; name="text"\r\n\r\nst'
    messages = [
        {"type": "http.request", "body": begun, "more_body": True},
        {"type": "http.disconnect"},
    ]
    headers = [(b"content-type", kind.encode()), (b"content-length", b"9000")]
    scope = {
        "type": "http", "method": "POST", "path": path, "headers": headers,
        "query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http",
        "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
    }  # fmt: skip

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_: Any) -> None:
        """Nobody reads it."""

    with caplog.at_level(logging.ERROR):
        asyncio.run(app(scope, receive, send))
    assert ended == [CLIENT_LEFT]
    assert caplog.records == []
    assert service.videos._running == 0  # type: ignore[attr-defined]


def inferred(client: httpx.Client, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    image = {"name": "image_bytes", "datatype": "BYTES", "shape": [1]}
    blob = struct.pack("<I", len(PNG)) + PNG
    image["parameters"] = {"binary_data_size": len(blob)}
    text = json.dumps({"inputs": [*inputs, image], **more}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return client.post("/v2/models/drawn/infer", content=text + blob, headers=headers)


STAR = {"name": "prompts", "datatype": "BYTES", "shape": [1], "data": ["star"]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([{**STAR, "data": ["\ud800"]}], "no Unicode"),
        ([{**STAR, "shape": [2**31 - 1] * 8}], "has 1 values"),
        ([{**STAR, "shape": [0, *([2**31 - 1] * 7)], "data": []}], "shape of 'prompts'"),
        (
            [STAR, {"name": "boxes", "datatype": "FP32", "data": [], "shape": [0, *([2**30] * 6)]}],
            "shape of 'boxes'",
        ),
        ([{"name": "boxes", "datatype": "FP32", "shape": [], "data": [1.0]}], "(K, 4)"),
        ([{"name": "boxes", "datatype": "FP32", "shape": [4], "data": [1.0] * 4}], "(K, 4)"),
        ([STAR, {"name": "threshold", "datatype": "FP32", "shape": [1], "data": [1e300]}], "0 to"),
        (
            [STAR, {"name": "threshold", "datatype": "FP32", "shape": [1], "data": [float("nan")]}],
            "nan",
        ),
        (
            [STAR, {"name": "mask_threshold", "datatype": "FP32", "shape": [0], "data": []}],
            "one number",
        ),
        ([STAR, {"name": "box_labels", "datatype": "INT64", "shape": [1], "data": [1]}], "without"),
    ],
)
def test_tensors_that_are_none(
    client: httpx.Client, inputs: list[dict[str, Any]], words: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 1e300 as float32
        answer = inferred(client, *inputs)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    "timeout",
    [True, [], {}, "", "soon", "nan", "-1", -1, 0, float("nan"), float("inf"), 10**400, "1e999"],
)
def test_timeouts_that_are_none(client: httpx.Client, timeout: Any) -> None:
    answer = inferred(client, STAR, parameters={"timeout": timeout})
    assert answer.status_code == 400, answer.text
    assert "timeout is microseconds" in answer.json()["error"]


def test_a_timeout_is_microseconds(client: httpx.Client) -> None:
    assert inferred(client, STAR, parameters={"timeout": "5e6"}).status_code == 200
    assert inferred(client, STAR, parameters={"timeout": None}).status_code == 200


@pytest.mark.parametrize(
    "length", [b"\xb2", b"\xd9\xa3", b"-1", b"+5", b"1_0", b" ", b"9" * 5000, b"0x10", b"1e3"]
)
def test_lengths_of_strange_digits(client: httpx.Client, length: bytes) -> None:
    headers = [(b"Inference-Header-Content-Length", length)]
    answer = client.post("/v2/models/drawn/infer", content=b"{}", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400, answer.text
    assert "Give the bytes of its JSON" in answer.json()["error"]


def region(**changes: Any) -> dict[str, Any]:
    return {
        "type": "keypointlabels",
        "original_width": 100,
        "original_height": 100,
        "value": {"x": 10, "y": 10},
    } | changes


@pytest.mark.parametrize("side", [0, -5, True, "100", None, [], float("nan"), 10**400, 1e300])
@pytest.mark.parametrize("name", ["original_width", "original_height"])
def test_pictures_of_no_size(client: httpx.Client, name: str, side: Any) -> None:
    task = {"data": {"image": f"data:image/png;base64,{B64}"}}
    params = {"context": {"result": [region(**{name: side})]}}
    body = json.dumps({"tasks": [task], "label_config": CONFIG, "params": params})
    headers = {"content-type": "application/json"}
    answer = client.post("/labelstudio/predict", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert "pixels above 0" in answer.json()["detail"]


def test_no_more_regions_than_points(client: httpx.Client) -> None:
    task = {"data": {"image": f"data:image/png;base64,{B64}"}}
    params = {"context": {"result": [region()] * 257}}
    body = {"tasks": [task], "label_config": CONFIG, "params": params}
    answer = client.post("/labelstudio/predict", json=body)
    assert answer.status_code == 413
    assert "257 regions, at most 256" in answer.json()["detail"]


@pytest.mark.parametrize(
    "tail",
    ["a b.png", "a\x7f.png", "\x00", "a\r\nHost: x", "ä.png", "\ud7ff", "%", "a" * 5000, "[", "?#"],
)
def test_addresses_that_are_none(tail: str) -> None:
    sources = ImageSources(prefixes=("http://127.0.0.1:9/",))  # nobody listens there
    with pytest.raises(ImageError, match=r"cannot be fetched|is no URL"):
        asyncio.run(sources.fetch(f"http://127.0.0.1:9/{tail}"))


class _Told(BaseHTTPRequestHandler):
    """Notes what it is told, and answers as the path says."""

    told: ClassVar[list[tuple[int, str | None]]] = []

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        self.told.append((port, self.headers.get("Authorization")))
        if self.path.startswith("/broken"):
            self.wfile.write(b"nonsense\r\n\r\n")
            return
        if self.path.startswith("/short"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x")
            return
        if self.path.startswith("/slow"):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    _Told.told.clear()
    servers = [HTTPServer(("127.0.0.1", 0), _Told) for _ in range(2)]
    threads = [threading.Thread(target=one.serve_forever, daemon=True) for one in servers]
    for thread in threads:
        thread.start()
    first, second = (f"http://127.0.0.1:{one.server_port}/" for one in servers)
    yield first, second
    for one in servers:
        one.shutdown()
        one.server_close()


def test_a_secret_is_told_to_the_host_it_is_of(hosts: tuple[str, str]) -> None:
    first, second = hosts
    sources = ImageSources(prefixes=(f"{first}data/", second, first), authorization="Token abc")
    assert "abc" not in repr(sources)
    ports = [int(one.rpartition(":")[2].strip("/")) for one in hosts]
    for url in (f"{first}data/a.png", f"{second}a.png", f"{first}other/a.png", "/data/b.png"):
        assert asyncio.run(sources.fetch(url)) == PNG
    for url in (f"{first}away?{second}a.png", f"{second}away?{first}data/a.png"):
        with pytest.raises(ImageError, match="redirected"):
            asyncio.run(sources.fetch(url))
    gc.collect()  # a connection that was left open would be told of here
    assert _Told.told == [
        *((ports[0], "Token abc"), (ports[1], None), (ports[0], "Token abc")),
        *((ports[0], "Token abc"), (ports[0], "Token abc"), (ports[1], None)),
    ]


# What is no HTTP at all, urllib leaves to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hosts_that_answer_nonsense(hosts: tuple[str, str]) -> None:
    sources = ImageSources(prefixes=(hosts[0],))
    for path in ("broken", "short"):
        with pytest.raises(ImageError, match="cannot be fetched"):
            asyncio.run(sources.fetch(f"/{path}"))


def test_a_host_that_drips_is_not_waited_for(hosts: tuple[str, str]) -> None:
    """Each byte comes in time, and the picture does not: six of them would hold all threads."""
    sources = ImageSources(prefixes=(hosts[0],), seconds=0.3)
    begin = time.monotonic()
    with pytest.raises(ImageError, match=r"within 0\.3 s"):
        asyncio.run(sources.fetch("/slow"))
    assert time.monotonic() - begin < 3
    with pytest.raises(TooLarge, match="more than 9 bytes"):
        asyncio.run(ImageSources(prefixes=(hosts[0],), most_bytes=9).fetch("/a.png"))


def test_only_methods_of_http_are_counted_by_name(client: httpx.Client) -> None:
    assert [method_of({"method": one}) for one in ("GET", "PATCH", "BREW", "X" * 99)] == [
        *("GET", "PATCH", "other", "other"),
    ]


@pytest.mark.parametrize(
    "error", [PromptError("A phrase is text, got 'my secret'."), ShapeError("secret")]
)
def test_the_log_quotes_no_client(error: Exception) -> None:
    scope = {"method": "POST", "samforge.error": error}
    assert _fields(scope, 422, 0.1, "/v1/segment")["error"] == type(error).__name__
    assert _fields(scope, 500, 0.1, "/v1/segment")["error"].endswith(str(error))


def test_a_server_logs_no_phrase(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    names = ("samforge", "uvicorn", "py.warnings")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level,
                     logging.getLogger(name).propagate) for name in names}  # fmt: skip
    stream = io.StringIO()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # whoever asked for it before has another stream
        patch.setattr(sys, "stderr", stream)
        try:
            log_to_stderr()
            warnings.warn("nobody knows 'my secret'", PromptWarning, stacklevel=1)
            warnings.warn("the disk is nearly full", UserWarning, stacklevel=1)
        finally:
            logging.captureWarnings(False)
            for name, (handlers, level, propagate) in before.items():
                logger = logging.getLogger(name)
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)
    assert "disk is nearly full" in stream.getvalue()
    assert "secret" not in stream.getvalue()


def test_validation_keeps_what_came_to_itself(client: httpx.Client) -> None:
    answer = client.post("/v1/segment", json={"text": "star", "threshold": "my secret"})
    assert answer.status_code == 422
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("module", "name", "path", "body"),
    [
        (
            xanylabeling, "rings_from_crop", "/xanylabeling/v1/predict",
            {"model": "drawn", "image": B64, "params": {"text_prompt": "star"}},
        ),
        (
            labelstudio, "brush_rle", "/labelstudio/predict",
            {"tasks": [{"data": {"image": f"data:image/png;base64,{B64}"}}],
             "label_config": CONFIG},
        ),
        (
            labelstudio, "interface_from_config", "/labelstudio/predict",
            {"tasks": [{"data": {"image": f"data:image/png;base64,{B64}"}}],
             "label_config": CONFIG},
        ),
        (
            roboflow, "pixel_rings_from_crop", "/roboflow/sam3/concept_segment",
            {"image": {"value": B64}, "prompts": [{"text": "star"}, {"text": "red circle"}]},
        ),
        (
            roboflow, "pixel_rings_from_crop", "/roboflow/sam3/visual_segment",
            {"image": {"value": B64}, "prompts": [{"points": [{"x": 100, "y": 100}]}]},
        ),
    ],
)  # fmt: skip
def test_dialects_write_beside_the_event_loop(
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    path: str,
    body: dict[str, Any],
) -> None:
    monkeypatch.setattr(native, "_FEW", 0)  # as if there were many
    inside: list[bool] = []
    plain = getattr(module, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            asyncio.get_running_loop()
            inside.append(True)
        except RuntimeError:
            inside.append(False)
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert set(inside) == {False}
