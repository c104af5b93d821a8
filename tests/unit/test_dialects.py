"""Other tools' clients before the server: their requests, and what they read of the answers.

Requests are as the clients' own code makes them; each test names the file that it follows.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from browser_page import SIZE, picture
from brush import unpacked
from drawn_masks import drawn
from drawn_service import DrawnService, drawn_app
from fastapi.testclient import TestClient

from samforge.apps.serve.dialects.labelling import interface_from_config
from samforge.apps.serve.dialects.sources import ImageSources
from samforge.core.errors import SettingError
from samforge.core.rle import mask_from_segmentation
from samforge.serving import Ask, State

HW = (SIZE[1], SIZE[0])
PNG = base64.b64encode(picture()).decode()
URI = f"data:image/png;base64,{PNG}"


@pytest.fixture
def service() -> DrawnService:
    return DrawnService(("drawn", "other"))


@pytest.fixture
def client(service: DrawnService) -> Iterator[httpx.Client]:
    with TestClient(drawn_app(service), raise_server_exceptions=False) as one:
        yield one  # type: ignore[misc]  # it is one of httpx


def masks_of(*phrases: str, threshold: float = 0.5) -> Any:
    """What the service draws."""
    return drawn(Ask(text=phrases, threshold=threshold), HW).masks.dense()


def filled(rings: list[Any]) -> Any:
    """Pixels whose middle lies inside polygons."""
    flat = [np.asarray(ring, float).ravel().tolist() for ring in rings]
    return mask_from_segmentation(flat, HW)


class TestXAnyLabeling:
    """anylabeling/services/auto_labeling/remote_server.py of X-AnyLabeling, at 87da339."""

    def ask(self, client: httpx.Client, **params: Any) -> httpx.Response:
        # predict_shapes always sends these three.
        always = {"conf_threshold": 0.25, "iou_threshold": 0.0, "epsilon_factor": 0.001}
        body = {"model": "drawn", "image": URI, "params": {**always, **params}}
        headers = {"Content-Type": "application/json", "Token": ""}
        return client.post("/xanylabeling/v1/predict", json=body, headers=headers)

    def test_models_say_which_controls_to_show(self, client: httpx.Client) -> None:
        models = client.get("/xanylabeling/v1/models").json()["data"]
        assert list(models) == ["drawn", "other"]
        assert models["drawn"]["batch_processing_mode"] == "text_prompt"
        names = [one["name"] for one in models["drawn"]["widgets"]]
        assert {"edit_text", "add_pos_rect", "button_add_point", "edit_conf"} <= set(names)
        info = client.get("/xanylabeling/v1/models/other/info").json()
        assert info["data"]["model_id"] == "other"

    def test_a_bundle_without_clicks_shows_no_points(self) -> None:
        with TestClient(drawn_app(DrawnService(able=("text",)))) as client:
            (model,) = client.get("/xanylabeling/v1/models").json()["data"].values()
        names = {one["name"] for one in model["widgets"]}
        assert not names & {"button_add_point", "add_pos_rect"}

    def test_health(self, client: httpx.Client, service: DrawnService) -> None:
        answer = client.get("/xanylabeling/health").json()
        assert (answer["status"], answer["models_loaded"]) == ("healthy", 2)
        service.draining = True
        assert client.get("/xanylabeling/health").json()["status"] == "unhealthy"

    @pytest.mark.parametrize(
        "prompt", ["star,red circle", "star. red circle", "star, star,red circle,"]
    )
    def test_phrases(self, client: httpx.Client, service: DrawnService, prompt: str) -> None:
        answer = self.ask(client, text_prompt=prompt).json()
        assert answer["success"] is True
        assert service.asks[0][1].text == ("star", "red circle")
        shapes = answer["data"]["shapes"]
        assert [one["label"] for one in shapes] == ["star", "star", "red circle"]
        assert [round(one["score"], 2) for one in shapes] == [0.9, 0.6, 0.8]
        assert {one["shape_type"] for one in shapes} == {"polygon"}
        assert shapes[0]["points"][0] == shapes[0]["points"][-1]
        for shape, mask in zip(shapes, masks_of("star", "red circle"), strict=True):
            off = (filled([shape["points"]]) ^ mask).sum()
            assert off <= 0.03 * mask.sum()
        assert "replace" not in answer["data"]

    def test_nothing_found_deletes_nothing(self, client: httpx.Client) -> None:
        data = self.ask(client, text_prompt="dragon").json()["data"]
        assert data == {"shapes": [], "description": "", "replace": False}

    def test_rectangles_are_examples(self, client: httpx.Client, service: DrawnService) -> None:
        marks = [
            {
                "type": "rectangle",
                "label": 1,
                "data": [60, 80, 20, 30],
            },  # drawn from the far corner
            {"type": "rectangle", "label": 0, "data": [120, 40, 160, 90]},
        ]
        data = self.ask(client, marks=marks, show_boxes=True).json()["data"]
        ask = service.asks[0][1]
        assert ask.boxes_xyxy == [[20, 30, 60, 80], [120, 40, 160, 90]]
        assert ask.box_labels == [1, 0]
        assert [one["shape_type"] for one in data["shapes"]] == ["polygon", "rectangle"]
        assert {one["label"] for one in data["shapes"]} == {"AUTOLABEL_OBJECT"}
        assert data["shapes"][1]["points"] == [[20, 30], [60, 30], [60, 80], [20, 80]]

    def test_points_show_one_object(self, client: httpx.Client, service: DrawnService) -> None:
        marks = [
            {"type": "point", "label": 1, "data": [100, 100]},
            {"type": "point", "label": 1, "data": [200, 100]},
            {"type": "point", "label": 0, "data": [110, 100]},
        ]
        shapes = self.ask(client, marks=marks).json()["data"]["shapes"]
        prompt = service.asks[0][1].objects[0]
        assert prompt.points == [[100, 100], [200, 100], [110, 100]]
        assert prompt.labels == [1, 1, 0]
        # Two discs are one object: its parts share a group.
        assert [one["group_id"] for one in shapes] == [1, 1]

    @pytest.mark.parametrize(
        ("change", "status", "code"),
        [
            ({"model": "nobody"}, 404, "NOT_HERE"),
            ({"image": "http://example.org/a.png"}, 422, "IMAGE_ERROR"),
            ({"params": {"text_prompt": ""}}, 422, "PROMPT_ERROR"),
            ({"params": {"marks": [{"type": "point", "data": [1]}]}}, 422, "PROMPT_ERROR"),
            ({"params": {"marks": [{"type": "circle", "data": [1, 2]}]}}, 422, "PROMPT_ERROR"),
            ({"params": {"conf_threshold": 7}}, 422, "INVALID_REQUEST"),
        ],
    )
    def test_errors_have_their_envelope_and_their_status(
        self, client: httpx.Client, change: dict[str, Any], status: int, code: str
    ) -> None:
        body = {"model": "drawn", "image": URI, "params": {"text_prompt": "star"}} | change
        answer = client.post("/xanylabeling/v1/predict", json=body)
        assert answer.status_code == status
        assert answer.json()["success"] is False
        assert answer.json()["error"]["code"] == code
        assert len(answer.json()["error"]["message"]) > 20

    def test_a_server_that_ends_says_when_to_come_again(
        self, client: httpx.Client, service: DrawnService
    ) -> None:
        service.draining = True
        answer = self.ask(client, text_prompt="star")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


CONFIG = """<View>
  <!-- the labelling interface of label_studio_ml/examples/segment_anything_2_image -->
  <BrushLabels name="tag" toName="image"><Label value="star"/><Label value="cat"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true"><Label value="star"/></KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true"><Label value="star"/></RectangleLabels>
  <TextArea name="prompt" toName="image" editable="true"/>
  <Image name="image" value="$image" zoom="true"/>
</View>"""


def region(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A region of a smart tool's context."""
    size = {"original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0}
    return {"type": kind, "to_name": "image", "value": value, **size, **more}


class TestLabelStudio:
    """label_studio_ml/api.py of label-studio-ml-backend, at d02cedf, and its example SAM 2."""

    def ask(self, client: httpx.Client, config: str = CONFIG, **fields: Any) -> httpx.Response:
        context = fields.pop("context", None)
        body = {
            "tasks": [{"id": 7, "data": {"image": URI}}],
            "model_version": None,
            "project": "3.1700000000",
            "label_config": config,
            "params": {"login": None, "password": None, "context": context},
        }
        return client.post("/labelstudio/predict", json=body | fields)

    def test_labels_are_phrases(self, client: httpx.Client, service: DrawnService) -> None:
        (answer,) = self.ask(client).json()["results"]
        assert service.asks[0][1].text == ("star", "cat")
        assert answer["model_version"] == f"drawn {service.model().digest[:12]}"
        assert answer["score"] == pytest.approx(0.6)
        rows = answer["result"]
        assert [one["value"]["brushlabels"] for one in rows] == [["star"], ["star"]]
        for row, mask in zip(rows, masks_of("star"), strict=True):
            assert (row["from_name"], row["to_name"], row["type"]) == (
                "tag",
                "image",
                "brushlabels",
            )
            assert (row["original_width"], row["original_height"]) == SIZE
            assert (unpacked(row["value"]["rle"], HW) == mask).all()

    def test_polygons_are_per_cent(self, client: httpx.Client) -> None:
        config = CONFIG.replace("BrushLabels", "PolygonLabels")
        rows = self.ask(client, config).json()["results"][0]["result"]
        assert {one["type"] for one in rows} == {"polygonlabels"}
        rings = [np.array(one["value"]["points"]) * [SIZE[0] / 100, SIZE[1] / 100] for one in rows]
        for ring, mask in zip(rings, masks_of("star"), strict=True):
            assert (filled([ring]) ^ mask).sum() <= 0.05 * mask.sum()

    def test_key_points(self, client: httpx.Client, service: DrawnService) -> None:
        context = {
            "result": [
                region(
                    "keypointlabels",
                    {"x": 50, "y": 50, "width": 0.6, "keypointlabels": ["cat"]},
                    is_positive=True,
                ),
                region(
                    "keypointlabels",
                    {"x": 60, "y": 50, "width": 0.6, "keypointlabels": ["cat"]},
                    is_positive=False,
                ),
            ]
        }
        (row,) = self.ask(client, context=context).json()["results"][0]["result"]
        prompt = service.asks[0][1].objects[0]
        assert prompt.points == [[150, 100], [180, 100]]
        assert prompt.labels == [1, 0]
        assert row["value"]["brushlabels"] == ["cat"]
        assert unpacked(row["value"]["rle"], HW)[100, 150]

    def test_a_rectangle(self, client: httpx.Client, service: DrawnService) -> None:
        value = {
            "x": 10,
            "y": 20,
            "width": 30,
            "height": 40,
            "rotation": 0,
            "rectanglelabels": ["star"],
        }
        self.ask(client, context={"result": [region("rectanglelabels", value)]})
        assert service.asks[0][1].objects[0].box_xyxy == [30, 40, 120, 120]

    def test_text(self, client: httpx.Client, service: DrawnService) -> None:
        context = {"result": [region("textarea", {"text": ["red circle"]}, from_name="prompt")]}
        (row,) = self.ask(client, context=context).json()["results"][0]["result"]
        assert service.asks[0][1].text == ("red circle",)
        assert row["value"]["brushlabels"] == ["star"]  # the phrase is none of the labels
        context = {"result": [region("textarea", {"text": ["cat, star"]}, from_name="prompt")]}
        rows = self.ask(client, context=context).json()["results"][0]["result"]
        assert [one["value"]["brushlabels"] for one in rows] == [["star"], ["star"]]

    def test_setup_health_and_webhook(self, client: httpx.Client, service: DrawnService) -> None:
        setup = {"project": "3.17", "schema": CONFIG, "hostname": "http://x", "access_token": "t"}
        version = client.post("/labelstudio/setup", json=setup).json()["model_version"]
        assert version.startswith("drawn ")
        assert client.get("/labelstudio/").json()["status"] == "UP"
        event = {"action": "ANNOTATION_CREATED", "project": {"id": 3}}
        assert client.post("/labelstudio/webhook", json=event).status_code == 201
        service.model().state = State.VERIFYING
        assert client.get("/labelstudio/health").status_code == 503

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"config": "<View/>"}, "has no BrushLabels"),
            ({"config": "<View"}, "is no XML"),
            ({"config": '<!DOCTYPE a [<!ENTITY b "c">]><View/>'}, "declares"),
            ({"tasks": [{"data": {"picture": URI}}]}, "no data.image"),
            ({"tasks": [{"data": {"image": "/data/upload/1.png"}}]}, "fetches from nowhere"),
            ({"context": {"result": [region("ellipse", {"x": 1, "y": 1})]}}, "'ellipse'"),
            ({"context": {"result": [region("keypoint", {"x": "1", "y": 1})]}}, "lacks its x"),
            ({"context": {"result": [3]}}, "list of regions"),
        ],
    )
    def test_what_cannot_be_read(
        self, client: httpx.Client, fields: dict[str, Any], words: str
    ) -> None:
        answer = self.ask(client, **fields)
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


class TestRoboflow:
    """inference_sdk/http/client.py of roboflow/inference, at 3bb973b: sam3_concept_segment, …"""

    IMAGE: ClassVar = {"type": "base64", "value": PNG}

    def ask(self, client: httpx.Client, *prompts: dict[str, Any], **fields: Any) -> Any:
        body = {
            "model_id": "sam3/sam3_final",
            "prompts": list(prompts),
            "output_prob_thresh": 0.5,
            "format": "polygon",
            "image": self.IMAGE,
            "api_key": "none",
        }
        return client.post("/roboflow/sam3/concept_segment", json=body | fields)

    def test_supervision_reads_the_answer(self, client: httpx.Client) -> None:
        supervision = pytest.importorskip("supervision")
        prompts = ({"type": "text", "text": "red circle"}, {"type": "text", "text": "star"})
        answer = self.ask(client, *prompts).json()
        found = supervision.Detections.from_sam3(answer, resolution_wh=SIZE)
        assert found.class_id.tolist() == [0, 1, 1]
        assert found.confidence.round(2).tolist() == pytest.approx([0.8, 0.9, 0.6])
        for mask, drawn_mask in zip(found.mask, masks_of("red circle", "star"), strict=True):
            assert (mask ^ drawn_mask).sum() <= 0.02 * drawn_mask.sum()
        echo = answer["prompt_results"][1]["echo"]
        assert echo == {"prompt_index": 1, "type": "text", "text": "star", "num_boxes": 0}

    def test_rle_is_exact(self, client: httpx.Client) -> None:
        answer = self.ask(client, {"text": "star"}, format="rle").json()
        rows = answer["prompt_results"][0]["predictions"]
        assert {one["format"] for one in rows} == {"rle"}
        for row, mask in zip(rows, masks_of("star"), strict=True):
            assert (mask_from_segmentation(row["masks"], HW) == mask).all()

    def test_a_threshold_of_a_prompt(self, client: httpx.Client) -> None:
        answer = self.ask(client, {"text": "star", "output_prob_thresh": 0.7}, {"text": "star"})
        counts = [len(one["predictions"]) for one in answer.json()["prompt_results"]]
        assert counts == [1, 2]

    def test_boxes_of_both_kinds(self, client: httpx.Client, service: DrawnService) -> None:
        boxes = [
            {"x": 20, "y": 30, "width": 40, "height": 50},
            {"x0": 120, "y0": 40, "x1": 160, "y1": 90},
        ]
        prompt = {"type": "visual", "boxes": boxes, "box_labels": [True, 0]}
        answer = self.ask(client, prompt).json()
        assert service.asks[0][1].boxes_xyxy == [[20, 30, 60, 80], [120, 40, 160, 90]]
        assert service.asks[0][1].box_labels == [1, 0]
        assert answer["prompt_results"][0]["echo"]["num_boxes"] == 2

    def test_a_picture_is_encoded_once(self, client: httpx.Client, service: DrawnService) -> None:
        answer = client.post("/roboflow/sam3/embed_image", json={"image": self.IMAGE}).json()
        assert answer["image_id"] == service.encoded[0]
        self.ask(client, {"text": "star"}, {"text": "cat"})
        assert len(service.encoded) == 1

    def test_visual_prompts(self, client: httpx.Client, service: DrawnService) -> None:
        prompts = [
            {
                "points": [
                    {"x": 100, "y": 100, "positive": True},
                    {"x": 110, "y": 100, "positive": False},
                ]
            },
            {"box": {"x": 200, "y": 100, "width": 40, "height": 20}},  # x, y: the middle
        ]
        body = {"image": self.IMAGE, "prompts": {"prompts": prompts}, "format": "rle"}
        answer = client.post("/roboflow/sam3/visual_segment", json=body).json()
        first, second = service.asks[0][1].objects
        assert (first.points, first.labels) == ([[100, 100], [110, 100]], [1, 0])
        assert second.box_xyxy == [180, 90, 220, 110]
        masks = [mask_from_segmentation(one["masks"], HW) for one in answer["predictions"]]
        assert masks[0][100, 85]
        assert not masks[0][100, 112]
        assert masks[1].sum() == 40 * 20
        flat = client.post("/roboflow/sam3/visual_segment", json=body | {"prompts": prompts})
        assert flat.json()["predictions"] == answer["predictions"]

    def test_corners_of_a_box_are_its_corners(
        self, client: httpx.Client, service: DrawnService
    ) -> None:
        box = {"x0": 180, "y0": 90, "x1": 220, "y1": 110}
        body = {"image": self.IMAGE, "prompts": [{"box": box}]}
        assert client.post("/roboflow/sam3/visual_segment", json=body).status_code == 200
        assert service.asks[0][1].objects[0].box_xyxy == [180, 90, 220, 110]

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"format": "binary"}, "format is 'binary'"),
            ({"nms_iou_threshold": 0.9}, "nms_iou_threshold"),
            ({"prompts": []}, "prompts"),
            ({"prompts": [{"boxes": [{"x": 1}]}]}, "A box has x, y"),
            ({"image": {"type": "url", "value": "http://example.org/a.png"}}, "nowhere"),
        ],
    )
    def test_what_is_refused(
        self, client: httpx.Client, fields: dict[str, Any], words: str
    ) -> None:
        answer = self.ask(client, {"text": "star"}, **fields)
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


class _Pictures(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        if self.path == "/data/away.png":
            self.send_response(302)
            self.send_header("Location", "/secret.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(picture())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def pictures() -> Iterator[str]:
    _Pictures.seen.clear()
    server = HTTPServer(("127.0.0.1", 0), _Pictures)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pictures_are_fetched_where_that_is_allowed(pictures: str, service: DrawnService) -> None:
    app = drawn_app(service)
    app.state.sources = ImageSources(prefixes=(f"{pictures}data/",), authorization="Token abc")
    with TestClient(app) as client:
        body = {"tasks": [{"data": {"image": "/data/a.png?x=1"}}], "label_config": CONFIG}
        answer = client.post("/labelstudio/predict", json=body)
        assert len(answer.json()["results"][0]["result"]) == 2
        assert _Pictures.seen == [("/data/a.png?x=1", "Token abc")]
        for where in ("/secret.png", "/data/../secret.png", "/data/%2e%2e/secret.png", "file:///a"):
            body["tasks"] = [{"data": {"image": where}}]
            assert client.post("/labelstudio/predict", json=body).status_code == 422
        assert len(_Pictures.seen) == 1
        body["tasks"] = [{"data": {"image": "/data/away.png"}}]
        answer = client.post("/labelstudio/predict", json=body)
        assert "redirected" in answer.json()["detail"]
        assert _Pictures.seen[1:] == [("/data/away.png", "Token abc")]


@pytest.mark.parametrize(
    "prefix", ["ftp://a/", "http://a", "a/", "", "http://a:b/", "http://[/", "http:///"]
)
def test_prefixes_are_folders(prefix: str) -> None:
    with pytest.raises(SettingError, match="no place to fetch from"):
        ImageSources(prefixes=(prefix,))


def test_an_interface_is_read() -> None:
    found = interface_from_config(CONFIG)
    assert (found.control, found.kind, found.image) == ("tag", "brushlabels", "image")
    assert (found.labels, found.variable) == (("star", "cat"), "image")


def test_a_large_interface_is_read_at_once() -> None:
    text = "<View>" + "<BrushLabels/>" * 50_000 + "</View>"
    start = time.monotonic()
    with pytest.raises(SettingError, match="no BrushLabels or PolygonLabels with labels"):
        interface_from_config(text)
    assert time.monotonic() - start < 5  # a minute, where each control looks for its image
