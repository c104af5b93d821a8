"""The native API over real sockets, before a bundle that has held its proof here."""

from __future__ import annotations

import base64
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import png, served

import samforge
from samforge.core.detections import Detections
from samforge.core.masks import Masks
from samforge.core.rle import mask_from_segmentation
from samforge.models import tiny
from samforge.serving import Limits, Service

SCENE = tiny.draw_scene(11, split="demo").image
PNG = png(SCENE)
PHRASES = ["red circle", "star"]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def root(proven_bundle: Make) -> Path:
    return proven_bundle("http")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[tuple[httpx.Client, Service]]:
    with served(root) as one:
        yield one


@pytest.fixture
def client(server: tuple[httpx.Client, Service]) -> httpx.Client:
    return server[0]


@pytest.fixture(scope="module")
def direct(root: Path) -> Detections:
    """What the library finds."""
    with samforge.load(root) as segmenter:
        return segmenter.predict(SCENE, text=PHRASES, threshold=0.3)


def asked(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"image": base64.b64encode(PNG).decode(), "text": PHRASES, "threshold": 0.3} | fields
    answer = client.post("/v1/segment", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def detections(answer: dict[str, Any]) -> Detections:
    rows = answer["detections"]
    size = (answer["size_hw"][0], answer["size_hw"][1])
    return Detections(
        masks=Masks.from_rle([row["rle"] for row in rows], size),
        boxes_xyxy=np.array([row["box_xyxy"] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row["score"] for row in rows], np.float32),
        labels=tuple(row["label"] for row in rows),
        size_hw=size,
        best_scores=answer["best_scores"],
        cut_off=answer["cut_off"],
    )


def assert_same(one: Detections, other: Detections) -> None:
    assert len(one) == len(other) > 0
    assert one.labels == other.labels
    assert one.masks == other.masks
    assert one.scores == pytest.approx(other.scores, abs=1e-6)
    assert one.boxes_xyxy == pytest.approx(other.boxes_xyxy, abs=1e-3)
    assert one.best_scores == pytest.approx(other.best_scores, abs=1e-6)
    assert one.cut_off == other.cut_off


def test_json_and_forms_find_what_the_library_finds(
    client: httpx.Client, direct: Detections
) -> None:
    answer = asked(client)
    assert_same(detections(answer), direct)
    form = client.post(
        "/v1/segment", files={"image": PNG}, data={"text": PHRASES, "threshold": "0.3"}
    )
    assert_same(detections(form.json()), direct)
    uri = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert_same(detections(asked(client, image=uri)), direct)
    assert answer["bundle"]["verified"] is True
    assert re.fullmatch(r"[0-9a-f]{64}", answer["bundle"]["digest"])
    assert set(answer["timings_ms"]) == {"queue", "decode", "encode", "detect", "pack", "total"}
    assert form.json()["encoded"] is False
    assert form.json()["timings_ms"]["encode"] == 0


def test_masks_in_every_form_are_the_same_masks(client: httpx.Client, direct: Detections) -> None:
    import io

    from PIL import Image

    size = direct.size_hw
    for row, mask in zip(asked(client, masks="png")["detections"], direct.masks, strict=True):
        place = row["png"]
        whole = np.zeros(size, np.bool_)
        if place["data"]:
            crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(place["data"]))))
            rows = slice(place["top"], place["top"] + place["height"])
            whole[rows, place["left"] : place["left"] + place["width"]] = crop
        assert np.array_equal(whole, mask)
    for row, mask in zip(asked(client, masks="polygons")["detections"], direct.masks, strict=True):
        rings = [part["outline"] for part in row["polygons"]]
        if rings and not any(part["holes"] for part in row["polygons"]):
            drawn = mask_from_segmentation(rings, size)
            assert (drawn & mask).sum() / (drawn | mask).sum() > 0.8
    bare = asked(client, masks="none")["detections"]
    assert len(bare) == len(direct)
    assert not {"rle", "png", "polygons"} & set(bare[0])


def test_boxes_and_limits_go_through(client: httpx.Client, root: Path) -> None:
    """With a phrase of its own: these graphs mix what is encoded in one call."""
    asks: dict[str, Any] = {
        "text": "blue square",
        "boxes_xyxy": [[10.0, 10.0, 80.0, 90.0], [100.0, 100.0, 150.0, 150.0]],
        "box_labels": [1, 0],
        "threshold": 0.0,
        "max_detections": 2,
    }
    with samforge.load(root) as segmenter:
        found = segmenter.predict(SCENE, **asks)
    assert (len(found), found.cut_off) == (2, 1)
    assert_same(detections(asked(client, **asks)), found)
    mixed = asked(client, threshold=[0.2, 0.9], max_detections=1)
    assert len(mixed["detections"]) == 1


def test_a_picture_is_kept_under_an_id(server: tuple[httpx.Client, Service]) -> None:
    client, service = server
    fresh = png(tiny.draw_scene(5, split="demo").image)
    kept = client.post("/v1/images", files={"image": fresh})
    assert kept.status_code == 201
    assert kept.json()["encoded"] is True
    assert kept.json()["size_hw"] == list(SCENE.shape[:2])
    number = kept.json()["image_id"]
    again = client.post("/v1/images", json={"image": base64.b64encode(fresh).decode()})
    assert (again.json()["image_id"], again.json()["encoded"]) == (number, False)
    first = client.post(f"/v1/images/{number}/segment", json={"text": "star", "threshold": 0.2})
    other = client.post("/v1/segment", json={"image_id": number, "text": "star", "threshold": 0.2})
    assert first.json()["detections"] == other.json()["detections"] != []
    assert first.json()["image_id"] == number
    assert first.json()["encoded"] is other.json()["encoded"] is False
    # What is encoded may be dropped for others: the file is kept, and is encoded again.
    picture = service.pictures.get("127.0.0.1", number)
    service.model().require().forget(picture.key)
    assert client.post(f"/v1/images/{number}/segment", json={"text": "star"}).json()["encoded"]
    assert client.delete(f"/v1/images/{number}").status_code == 204
    for gone in (
        client.delete(f"/v1/images/{number}"),
        client.post(f"/v1/images/{number}/segment", json={"text": "star"}),
        client.post("/v1/segment", json={"image_id": number, "text": "star"}),
    ):
        assert gone.status_code == 404
        assert "Send the picture again" in gone.json()["detail"]


def test_64_clients_with_one_picture_are_one_encode(
    server: tuple[httpx.Client, Service],
) -> None:
    client, _ = server
    fresh = png(tiny.draw_scene(6, split="demo").image)
    before = metric(client, "samforge_encoded_images_total")

    def ask(number: int) -> httpx.Response:
        return httpx.post(
            f"{client.base_url}/v1/segment",
            files={"image": fresh},
            data={"text": f"{('red', 'blue')[number % 2]} star"},
            timeout=30,
        )

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    assert {answer.status_code for answer in answers} == {200}
    assert metric(client, "samforge_encoded_images_total") - before == 1


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_models_say_what_they_can_do_and_what_they_proved(client: httpx.Client) -> None:
    answer = client.get("/v1/models").json()
    (model,) = answer["models"]
    assert (model["name"], model["state"], model["prompts"]) == ("http", "ready", ["text", "boxes"])
    assert model["verdict"]["held"] is True
    assert model["verdict"]["gates"]
    assert answer["limits"]["phrases"] == 64


def test_metrics_tell_stages_hits_and_what_is_ready(client: httpx.Client) -> None:
    asked(client)
    assert metric(client, "samforge_ready", model="http") == 1
    for stage in ("queue", "decode", "encode", "detect", "pack"):
        assert metric(client, "samforge_stage_seconds_count", stage=stage) >= 1
    assert metric(client, "samforge_encoding_lookups_total", result="hit") >= 1
    assert metric(client, "samforge_cache_bytes") > 0
    before = metric(client, "samforge_http_requests_total", route="/v1/models", status="200")
    client.get("/v1/models")
    after = metric(client, "samforge_http_requests_total", route="/v1/models", status="200")
    assert after - before == 1
    # A path that is none is no label: there would be one for each that somebody tries.
    client.get("/no/such/path")
    assert metric(client, "samforge_http_requests_total", route="/no/such/path") == 0
    assert metric(client, "samforge_http_requests_total", route="unknown", status="404") >= 1


def test_every_answer_has_an_id(client: httpx.Client) -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", client.get("/v1/models").headers["x-request-id"])
    given = client.get("/v1/models", headers={"X-Request-Id": "robot-7.1"})
    assert given.headers["x-request-id"] == "robot-7.1"
    forged = client.get("/v1/models", headers={"X-Request-Id": "a b{}"})
    assert re.fullmatch(r"[0-9a-f]{16}", forged.headers["x-request-id"])


def test_tokens_name_clients(root: Path) -> None:
    tokens = {"robot": "t" * 20, "page": "p" * 20}
    with served(root, **tokens) as (client, _):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic %%"}):
            refused = client.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["content-type"] == "application/problem+json"
        basic = base64.b64encode(f"anyone:{tokens['page']}".encode()).decode()
        for value in (
            {"Authorization": f"Bearer {tokens['robot']}"},
            {"Authorization": f"Basic {basic}"},
            {"Token": tokens["page"]},
        ):
            assert client.get("/v1/models", headers=value).status_code == 200
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200
        assert client.get("/metrics").status_code == 401
        # The page comes without one, and asks for it.
        shown = client.get("/")
        assert (shown.status_code, shown.headers["content-type"][:9]) == (200, "text/html")
        assert client.get("/page/main.js").status_code == 200
        # A client would take the dots out of the path itself: this one sends it as it stands.
        for path in ("/page/../metrics", "/page/%2e%2e/metrics", "/page/../v1/models"):
            connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, b"samforge_" in answer.read()) == (404, False)
            connection.close()
        # An id of one client is none of another: it names its owner.
        robot = {"Authorization": f"Bearer {tokens['robot']}"}
        page = {"Authorization": f"Bearer {tokens['page']}"}
        ids = [
            client.post("/v1/images", files={"image": PNG}, headers=one).json()["image_id"]
            for one in (robot, page)
        ]
        assert ids[0] != ids[1]
        foreign = f"/v1/images/{ids[0]}"
        assert client.delete(foreign, headers=page).status_code == 404
        assert client.delete(foreign, headers=robot).status_code == 204
        body = {"text": "star"}
        own = client.post(f"/v1/images/{ids[1]}/segment", json=body, headers=page)
        assert (own.status_code, own.json()["encoded"]) == (200, False)


def test_alive_at_once_and_ready_when_proven(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    from samforge.serving import model

    gate, verify = Event(), model.verify

    def slow(*arguments: Any, **settings: Any) -> Any:
        assert gate.wait(10)
        return verify(*arguments, **settings)

    monkeypatch.setattr(model, "verify", slow)
    with served(root, wait=False) as (client, service):
        assert client.get("/health/live").json() == {"live": True}
        early = client.get("/health/ready")
        assert (early.status_code, early.headers["retry-after"]) == (503, "5")
        assert early.json()["models"]["http"]["state"] == "verifying"
        refused = client.post("/v1/segment", files={"image": PNG}, data={"text": "star"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        gate.set()
        assert service.wait()
        assert client.get("/health/ready").json()["ready"] is True
        before = samforge.open_bundle(root).digest
        assert client.get("/v1/models").json()["models"][0]["digest"] == before


def test_a_bundle_that_does_not_hold_its_proof_is_never_ready(proven_bundle: Make) -> None:
    with served(proven_bundle("broken", broken=True), wait=False) as (client, service):
        assert not service.wait()
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["models"]["broken"]["state"] == "failed"
        assert "does not hold its gates" in answer.json()["models"]["broken"]["error"]
        assert client.get("/health/live").status_code == 200
        refused = client.post("/v1/segment", files={"image": PNG}, data={"text": "star"})
        assert refused.status_code == 503


def test_several_bundles_behind_one_door(root: Path, proven_bundle: Make) -> None:
    with served(root, proven_bundle("second", precision="fp16")) as (client, service):
        body = {"text": "star", "model": "second"}
        answer = client.post("/v1/segment", files={"image": PNG}, data=body)
        assert answer.json()["bundle"]["name"] == "second"
        number = answer.json()["image_id"]
        first = client.post(f"/v1/images/{number}/segment", json={"text": "star", "model": "http"})
        # Of one picture each bundle has an encoding of its own.
        assert first.json()["encoded"] is True
        assert len(service.cache) == 2
        unknown = client.post("/v1/segment", files={"image": PNG}, data={"model": "third"})
        assert unknown.status_code == 404
        assert "http, second" in unknown.json()["detail"]


def test_a_client_that_leaves_frees_its_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    from threading import Event

    with served(root) as (client, service):
        scheduler = service.model().scheduler
        assert scheduler is not None
        (segmenter,) = scheduler._segmenters
        gate, encode = Event(), segmenter.encode_images
        calls: list[int] = []

        def slow(images: Any, **settings: Any) -> Any:
            calls.append(len(images))
            assert gate.wait(10)
            return encode(images, **settings)

        monkeypatch.setattr(segmenter, "encode_images", slow)
        port = int(str(client.base_url).rpartition(":")[2].strip("/"))
        sockets = []
        for number in range(4):
            body = json.dumps(
                {
                    "image": base64.b64encode(png(SCENE[: 50 + number])).decode(),
                    "text": "star",
                }
            ).encode()
            one = socket.create_connection(("127.0.0.1", port))
            head = (
                "POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            one.sendall(head.encode() + body)
            sockets.append(one)
        until(lambda: scheduler.load().waiting == 4)
        for one in sockets[1:]:
            one.close()
        until(lambda: scheduler.load().waiting == 1)
        gate.set()
        assert b"200 OK" in sockets[0].recv(4096)
        sockets[0].close()
        until(lambda: scheduler.load().waiting == 0)
        assert len(calls) <= 2  # the one that was asked for, and the one that had begun


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_torch_is_loaded_to_serve_onnx(root: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from samforge.apps.serve.app import app_from_settings
from samforge.apps.serve.run import running
from samforge.serving import Served, Settings
import httpx
app = app_from_settings(Settings(bundles=(Served(name="one", path=Path({str(root)!r})),)))
app.state.service.start()
assert app.state.service.wait()
with running(app) as url:
    answer = httpx.post(url + "/v1/segment", files={{"image": open(sys.argv[1], "rb")}},
                        data={{"text": "star"}})
    assert answer.status_code == 200, answer.text
app.state.service.close()
print(sorted({{"torch", "transformers", "onnx", "cv2"}} & set(sys.modules)))
"""
    picture = root.parent / "scene.png"
    picture.write_bytes(PNG)
    run = subprocess.run(
        [sys.executable, "-c", script, str(picture)], capture_output=True, text=True, check=False
    )
    assert run.stdout == "[]\n", run.stderr


def test_the_openapi_document_shows_every_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {
        "/v1/segment",
        "/v1/images",
        "/v1/images/{image_id}",
        "/v1/images/{image_id}/segment",
        "/v1/models",
        "/v1/video",
        "/v2/models/{name}/infer",
        "/health/live",
        "/health/ready",
    } <= set(document["paths"])
    segment = document["paths"]["/v1/segment"]["post"]
    assert set(segment["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert "application/problem+json" in segment["responses"]["422"]["content"]


def test_too_many_are_told_when_to_come_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    limits = Limits(waiting=2, waiting_of_client=2)
    with served(root, limits=limits) as (client, service):
        scheduler = service.model().scheduler
        assert scheduler is not None
        (segmenter,) = scheduler._segmenters
        gate, encode = Event(), segmenter.encode_images

        def slow(images: Any, **settings: Any) -> Any:
            assert gate.wait(10)
            return encode(images, **settings)

        monkeypatch.setattr(segmenter, "encode_images", slow)

        def ask(number: int) -> httpx.Response:
            return httpx.post(
                f"{client.base_url}/v1/segment",
                files={"image": png(SCENE[: 60 + number])},
                data={"text": "star"},
            )

        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(ask, number) for number in range(2)]
            until(lambda: scheduler.load().waiting == 2)
            refused = ask(3)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["title"] == "Overloaded"
            late = client.post(
                "/v1/segment",
                files={"image": PNG},
                data={"text": "star", "seconds": "0.001", "model": "http"},
            )
            assert late.status_code == 429
            gate.set()
            assert [one.result().status_code for one in waiting] == [200, 200]
        assert ask(4).status_code == 200


@pytest.mark.filterwarnings("ignore:The model does not know")
def test_words_that_the_model_does_not_know_are_told(client: httpx.Client) -> None:
    assert asked(client)["warnings"] == []
    (warning,) = asked(client, text=["star", "purple unicorn"], threshold=0.5)["warnings"]
    assert "does not know 'unicorn'" in warning.replace("'purple', ", "")
