"""Memory is bounded before anything is read: bodies that arrive, lists in them, videos."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from drawn_service import DrawnService, drawn_app
from fastapi.testclient import TestClient
from PIL import Image

from samforge.apps.serve.arriving import ArrivingBody, HeldBytes
from samforge.apps.serve.bodies import AskBody, VideoBody
from samforge.apps.serve.dialects.roboflow import ConceptBody, VisualBody
from samforge.apps.serve.dialects.xanylabeling import Parameters
from samforge.apps.serve.door import Door, Tokens
from samforge.apps.serve.reading import MOST_VALUES, checked
from samforge.core.detections import Detections
from samforge.core.errors import Overloaded, SettingError, TooLarge
from samforge.runtime import ObjectPrompt
from samforge.serving import Ask, Job, Limits, Picture
from samforge.serving.bounded import VideoRuns

LIMITS = Limits(phrases=4, boxes=3, points=5)
JSON = {"content-type": "application/json"}


@pytest.fixture
def service() -> DrawnService:
    return DrawnService()


@pytest.fixture
def client(service: DrawnService) -> Iterator[httpx.Client]:
    service.limits = LIMITS
    with TestClient(drawn_app(service), raise_server_exceptions=False) as one:
        yield one  # type: ignore[misc]  # it is one of httpx


class Uploads:
    """Requests to a door whose application reads the body and then waits."""

    def __init__(self, limits: Limits) -> None:
        self.release = asyncio.Event()
        self.door = Door(self.app, limits=limits, tokens=Tokens(by_name={}), seen=lambda *_: None)

    async def app(self, _: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(
        self, *parts: bytes, path: str = "/v1/segment", said: int | None = None
    ) -> tuple[int, dict[bytes, bytes]]:
        """Status and headers of the answer to a body that comes in these parts."""
        headers = [] if said is None else [(b"content-length", str(said).encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        left = list(parts)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            body = left.pop(0) if left else b""
            return {"type": "http.request", "body": body, "more_body": bool(left)}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.door(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])


def run(test: Callable[[Uploads], Coroutine[Any, Any, None]], limits: Limits) -> None:
    async def all_of_it() -> None:
        await asyncio.wait_for(test(Uploads(limits)), 20)

    asyncio.run(all_of_it())


def test_bodies_of_all_requests_are_bounded_together() -> None:
    async def test(uploads: Uploads) -> None:
        held = uploads.door._held
        first = asyncio.create_task(uploads.ask(bytes(400), bytes(300)))
        second = asyncio.create_task(uploads.ask(bytes(250)))
        while held.held < 950:
            await asyncio.sleep(0)
        for refused in (
            await uploads.ask(bytes(51)),  # what comes counts, said or not
            await uploads.ask(bytes(40), bytes(40)),
            await uploads.ask(said=51),  # and what is said to come, before it does
        ):
            assert refused[0] == 503
            assert int(refused[1][b"retry-after"]) >= 1
        assert held.held == 950  # those who were refused hold nothing
        assert [one.done() for one in (first, second)] == [False, False]
        uploads.release.set()
        assert [(await one)[0] for one in (first, second)] == [200, 200]
        assert held.held == 0
        assert (await uploads.ask(bytes(1000)))[0] == 200

    run(test, Limits(request_bytes=1000, bodies_bytes=1000))


def test_a_video_goes_to_disk_and_is_not_counted() -> None:
    async def test(uploads: Uploads) -> None:
        uploads.release.set()
        assert (await uploads.ask(bytes(5000), path="/v1/video"))[0] == 200
        assert uploads.door._held.held == 0

    run(test, Limits(request_bytes=1000, bodies_bytes=1000))


def test_a_picture_of_a_form_never_goes_to_disk(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_disk(_: Any) -> None:
        raise AssertionError("it went to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", no_disk)
    stream = io.BytesIO()
    Image.effect_noise((1400, 1400), 90).convert("RGB").save(stream, "PNG")
    assert len(stream.getvalue()) > 1 << 20
    answer = client.post("/v1/segment", files={"image": stream.getvalue()}, data={"text": "star"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["size_hw"] == [1400, 1400]


def test_one_body_fits_into_all_of_them() -> None:
    with pytest.raises(SettingError, match="above bodies_bytes"):
        Limits(request_bytes=11, bodies_bytes=10)


def test_a_body_that_failed_is_counted_no_more() -> None:
    held = HeldBytes(100)

    async def receive() -> dict[str, Any]:
        return {"body": bytes(40), "more_body": True}

    async def read() -> None:
        body = ArrivingBody(receive, {}, most=90, seconds=5, held=held)
        await body()
        await body()
        with pytest.raises(TooLarge):
            await body()
        assert held.held == 80
        body.close()
        body.close()

    asyncio.run(read())
    assert held.held == 0


class Unread(list[Any]):
    """A list that may be counted and not looked into."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the list was read")


POINT = {"x": 1, "y": 1}


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (AskBody, {"text": Unread(["a"] * 5)}, "5 phrases, at most 4"),
        (AskBody, {"threshold": Unread([0.5] * 5)}, "at most 4"),
        (AskBody, {"boxes_xyxy": Unread([[0, 0, 1, 1]] * 4)}, "4 boxes, at most 3"),
        (AskBody, {"box_labels": Unread([1] * 4)}, "at most 3"),
        (AskBody, {"objects": Unread([{}] * 4)}, "4 objects, at most 3"),
        (AskBody, {"objects": [{"points": Unread([[1, 1]] * 6)}]}, "6 points, at most 5"),
        (AskBody, {"objects": [{"labels": Unread([1] * 6)}]}, "at most 5"),
        (AskBody, {"earlier": Unread([{}] * 4)}, "at most 3"),
        (AskBody, {str(n): 1 for n in range(1000)}, "1,000 fields"),
        (VideoBody, {"text": Unread(["a"] * 5)}, "5 phrases"),
        (VideoBody, {"prompts": Unread([{}] * 4)}, "4 objects"),
        (VideoBody, {"prompts": [{"points": Unread([[1, 1]] * 6)}]}, "6 points"),
        (ConceptBody, {"prompts": Unread([{}] * 5)}, "5 prompts, at most 4"),
        (ConceptBody, {"prompts": [{"boxes": Unread([{}] * 4)}]}, "4 boxes"),
        (ConceptBody, {"prompts": [{"box_labels": Unread([1] * 4)}]}, "at most 3"),
        (VisualBody, {"prompts": Unread([{}] * 4)}, "4 objects"),
        (VisualBody, {"prompts": {"prompts": Unread([{}] * 4)}}, "4 objects"),
        (VisualBody, {"prompts": [{"points": Unread([POINT] * 6)}]}, "6 points"),
        (Parameters, {"marks": Unread([{}] * 6)}, "6 points"),
    ],
)
def test_a_list_is_counted_before_it_is_read(kind: Any, fields: Any, words: str) -> None:
    with pytest.raises(TooLarge, match=words):
        checked(kind, fields, LIMITS)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/segment", "/v1/images", "/roboflow/sam3/concept_segment", "/labelstudio/predict"),
        "/xanylabeling/v1/predict",
    ],
)
def test_a_body_of_countless_values_is_not_parsed(client: httpx.Client, path: str) -> None:
    body = b'{"text": [' + b"1," * (MOST_VALUES + 1) + b"1]}"
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 413, answer.text[:300]
    assert "1,000,000 values" in answer.text


def test_what_goes_with_earlier_masks_is_no_larger_than_a_picture(
    client: httpx.Client, service: DrawnService
) -> None:
    body = {
        "image": "aGVsbG8=",
        "objects": [{"points": [[1, 1]]}],
        "earlier": [{"rle": {"size": [2**31, 2**31], "counts": [2**62]}}],
    }
    answer = client.post("/v1/segment", json=body)
    assert answer.status_code == 413
    assert "earlier" in answer.json()["detail"]
    large = {"rle": {"size": [8000, 8000], "counts": [0, 64_000_000]}}
    service.limits = replace(LIMITS, pixels=64_000_000, boxes=9)
    answer = client.post("/v1/segment", json=body | {"earlier": [large] * 5})
    assert answer.status_code == 413
    assert "The 5 masks of earlier" in answer.json()["detail"]
    body["earlier"] = [{"rle": {"size": [-4, -4], "counts": [16]}}]
    assert client.post("/v1/segment", json=body).status_code == 422


def test_masks_that_work_holds_are_bytes_that_wait() -> None:
    earlier = Detections.from_coco(
        [{"segmentation": {"size": [400, 400], "counts": [0, 160_000]}, "category_name": "object"}],
        (400, 400),
    )
    ask = Ask(objects=(ObjectPrompt(points=[[1, 1]]),), earlier=earlier)
    assert ask.masks_bytes == earlier.masks.nbytes >= 20_000
    job = Job(client="a", seconds=9, picture=Picture.of(b"abc"), masks_bytes=ask.masks_bytes)
    assert job.nbytes == ask.masks_bytes + 3


def test_fields_of_a_video_are_small(client: httpx.Client, service: Any) -> None:
    service.videos = VideoRuns(1)
    for fields in ({"text": "a" * 200_000}, {f"field {n}": "1" for n in range(200)}):
        answer = client.post("/v1/video", files={"video": b"abc"}, data=fields)
        assert answer.status_code == 400, answer.text


def test_a_video_has_its_place_before_it_is_read(client: httpx.Client) -> None:
    videos = VideoRuns(1)
    client.app.state.service.videos = videos  # type: ignore[attr-defined]
    place = videos.begin()
    read: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(3):
            read.append(number)
            yield bytes(100)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/video", content=parts(), headers=headers)
    # "no form" would be the answer of whoever read it.
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10"), answer.text
    place.close()
    place.close()
    assert videos._running == 0
    assert client.post("/v1/video", content=b"", headers=headers).status_code == 422
    assert videos._running == 0
    with pytest.raises(Overloaded):
        [videos.begin() for _ in range(2)]


def test_points_of_a_video_are_bounded_together(client: httpx.Client) -> None:
    from samforge.runtime import ObjectPrompt
    from samforge.serving.asking import check_objects

    shown = [ObjectPrompt(points=[[1, 1]] * 3, labels=[1] * 3)] * 2
    with pytest.raises(TooLarge, match="6 points, at most 5"):
        check_objects(shown, LIMITS)
    check_objects(shown[:1], LIMITS)
    shown_twice = [{"frame": 0, "points": [[1, 1]] * 3, "labels": [1] * 3}] * 2
    client.app.state.service.videos = VideoRuns(1)  # type: ignore[attr-defined]
    answer = client.post(
        "/v1/video", files={"video": b"x"}, data={"prompts": json.dumps(shown_twice)}
    )
    assert answer.status_code == 413
    assert "6 points" in answer.json()["detail"]
