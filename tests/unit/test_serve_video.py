"""Clicks and videos over HTTP: the tiny model with its tracker behind a bundle that is proven."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from benchmarks._eager import eager_segmenter
from served import png, served
from tests.unit.conftest import FAKE_PARTS

import samforge
from samforge.apps.serve import reading
from samforge.core.capabilities import TRACKER_PARTS
from samforge.core.masks import Masks
from samforge.core.session import PartSpec, TensorSpec
from samforge.media import VideoWriter
from samforge.models import tiny
from samforge.runtime import ObjectPrompt, Segmenter
from samforge.serving import Limits, Service, model
from samforge.workflows.verify import Verification

SCENE = tiny.draw_scene(1, split="demo")
CLIP = tuple(tiny.draw_crossing(1, frames=6, split="demo"))


@pytest.fixture(scope="module")
def segmenter(one_thread: None) -> Segmenter:
    """The tiny model with its tracker, its parts as they stand."""
    return eager_segmenter()


@pytest.fixture
def server(
    fake_bundle: Callable[..., samforge.Bundle],
    segmenter: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[httpx.Client, Service]]:
    """A bundle that says it has a tracker; what it is loaded as is the segmenter above."""
    score = TensorSpec(name="score", dtype="float32", shape=("objects", 1))
    more = [PartSpec(name=name, inputs=(score,), outputs=(score,)) for name in TRACKER_PARTS]
    bundle = fake_bundle("tracked", parts=(*FAKE_PARTS, *more))
    proven = Verification(
        bundle=bundle.root,
        target="onnxruntime",
        precision="fp32",
        processor="CPU",
        seconds=0.0,
        limit=None,
        tensors=(),
        evidence=None,
        gates={},
        tracking=None,
        tracker_unproven=False,
        recorded=False,
        digest=bundle.digest,
    )
    monkeypatch.setattr(model, "verify", lambda *_, **__: proven)
    monkeypatch.setattr(model, "load", lambda *_, **__: segmenter)
    monkeypatch.setattr(segmenter, "close", lambda: None)
    with served(bundle.root, limits=Limits(videos=1)) as one:
        yield one


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    size = CLIP[0].image.shape[0]
    with VideoWriter(path, (size, size)) as writer:
        for number, scene in enumerate(CLIP):
            writer.write(scene.image, Fraction(number, 10))
    return path


def followed(client: httpx.Client, clip: Path, **fields: str | list[str]) -> list[dict[str, Any]]:
    answer = client.post("/v1/video", files={"video": clip.read_bytes()}, data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_clicks_find_what_the_library_finds(
    server: tuple[httpx.Client, Service], segmenter: Segmenter
) -> None:
    client, _ = server
    shape = np.argwhere(SCENE.masks[0])
    y, x = shape.mean(axis=0).round().tolist()
    body = {"objects": [{"points": [[x, y]]}], "masks": "rle"}
    kept = client.post("/v1/images", files={"image": png(SCENE.image)}).json()["image_id"]
    first = client.post(f"/v1/images/{kept}/segment", json=body).json()
    direct = segmenter.predict_objects(SCENE.image, ObjectPrompt(points=[[x, y]]))
    assert mask_of(first, 0) == direct.masks
    assert first["detections"][0]["score"] == pytest.approx(float(direct.scores[0]), abs=1e-5)
    # A second click corrects the first answer, by its id: with the model's own small masks.
    more = {"points": [[x + 2.0, y]], "labels": [1]}
    second = client.post(
        f"/v1/images/{kept}/segment", json={"objects": [more], "earlier": first["answer_id"]}
    ).json()
    corrected = segmenter.predict_objects(SCENE.image, ObjectPrompt(**more), earlier=direct)
    assert mask_of(second, 0) == corrected.masks
    # Or what a phrase found, as masks.
    rle = first["detections"][0]["rle"]
    third = client.post(
        f"/v1/images/{kept}/segment", json={"objects": [more], "earlier": [{"rle": rle}]}
    )
    assert third.status_code == 200
    assert len(third.json()["detections"]) == 1
    choice = client.post(
        f"/v1/images/{kept}/segment", json={"objects": body["objects"], "candidates": True}
    ).json()
    assert len(choice["detections"]) == 3


def test_an_answer_about_another_picture_is_not_corrected(
    server: tuple[httpx.Client, Service],
) -> None:
    """It would be corrected without a word: the model's small masks say not what they are of."""
    client, _ = server
    other = np.ascontiguousarray(SCENE.image[:, ::-1])
    body = {"objects": [{"points": [[5, 5]]}]}
    ids = [
        client.post("/v1/images", files={"image": png(one)}).json()["image_id"]
        for one in (SCENE.image, other)
    ]
    first = client.post(f"/v1/images/{ids[0]}/segment", json=body).json()["answer_id"]
    answer = client.post(f"/v1/images/{ids[1]}/segment", json=body | {"earlier": first})
    assert answer.status_code == 422
    assert "about another picture" in answer.json()["detail"]
    # The same file under another id is the same picture.
    form = {"objects": json.dumps(body["objects"]), "earlier": first}
    files = {"image": png(SCENE.image)}
    assert client.post("/v1/segment", files=files, data=form).status_code == 200


def test_masks_of_a_request_are_decoded_beside_the_event_loop(
    server: tuple[httpx.Client, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = server
    threads: list[str] = []
    decode = reading._of_masks

    def watched(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return decode(*given)

    monkeypatch.setattr(reading, "_of_masks", watched)
    height, width = SCENE.image.shape[:2]
    rle = {"size": [height, width], "counts": [height * width - 9, 9]}
    body = {"objects": [{"points": [[5, 5]]}], "earlier": [{"rle": rle}]}
    kept = client.post("/v1/images", files={"image": png(SCENE.image)}).json()["image_id"]
    assert client.post(f"/v1/images/{kept}/segment", json=body).status_code == 200
    assert [name.startswith("asyncio_") for name in threads] == [True]


def test_clicks_that_do_not_fit(server: tuple[httpx.Client, Service]) -> None:
    client, _ = server
    kept = client.post("/v1/images", files={"image": png(SCENE.image)}).json()["image_id"]
    click = {"points": [[5, 5]]}
    for body, status, words in (
        ({"objects": [{"points": [[999, 5]]}]}, 422, "not on the frame"),
        ({"objects": [{"points": [[5, 5]], "labels": [1, 0]}]}, 422, "1 points"),
        ({"objects": [click], "earlier": "made up"}, 404, "No answer is kept"),
        ({"objects": [click], "earlier": []}, 422, "earlier is empty"),
        (
            {"objects": [click], "earlier": [{"rle": {"size": [9, 9], "counts": "x"}}]},
            422,
            "RLE",
        ),
        (
            {"objects": [click, click], "earlier": [{"rle": {"size": [2, 2], "counts": [4]}}]},
            422,
            "2 prompts and 1 earlier",
        ),
        ({"objects": [{"points": [[1, 1]] * 300}]}, 413, "300 points"),
    ):
        answer = client.post(f"/v1/images/{kept}/segment", json=body)
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def mask_of(answer: dict[str, Any], index: int) -> Masks:
    rle = answer["detections"][index]["rle"]
    return Masks.from_rle([rle], (rle["size"][0], rle["size"][1]))


def test_objects_keep_their_ids(
    server: tuple[httpx.Client, Service], segmenter: Segmenter, clip: Path
) -> None:
    client, service = server
    head, *frames, end = followed(client, clip, text="object")
    assert (head["tracks"], head["bundle"]["name"]) == (True, "tracked")
    assert end == {"end": True, "frames": 6, "problem": None}
    assert [one["frame"] for one in frames] == list(range(6))
    assert [one["seconds"] for one in frames] == pytest.approx([n / 10 for n in range(6)], abs=0.02)
    from samforge.media import VideoReader

    with VideoReader(clip) as reader:
        pictures = [frame.image_rgb for frame in reader.frames()]
    direct = list(segmenter.track_video(pictures, text="object"))
    assert len(direct[0].detections) > 1
    for own, line in zip(direct, frames, strict=True):
        ids = own.detections.ids
        assert ids is not None
        assert [row["id"] for row in line["detections"]] == ids.tolist()
        rles = [row["rle"] for row in line["detections"]]
        assert Masks.from_rle(rles, own.detections.size_hw) == own.detections.masks
    assert service.videos._running == 0


def test_an_object_that_is_shown_is_followed(
    server: tuple[httpx.Client, Service], clip: Path
) -> None:
    client, _ = server
    y, x = np.argwhere(CLIP[0].masks[0]).mean(axis=0).round().tolist()
    shown = json.dumps([{"frame": 0, "points": [[x, y]], "label": "mine"}])
    _, *frames, _ = followed(client, clip, prompts=shown, max_frames="4", masks="none")
    assert [[row["label"] for row in one["detections"]] for one in frames] == [["mine"]] * 4
    late = json.dumps([{"frame": 40, "points": [[x, y]]}])
    *_, end = followed(client, clip, prompts=late)
    assert end["problem"]["type"] == "urn:samforge:problem:prompt-error"
    assert "ended with frame 5" in end["problem"]["detail"]


def test_every_other_frame(server: tuple[httpx.Client, Service], clip: Path) -> None:
    _, *frames, _ = followed(server[0], clip, text="object", every="2", masks="none")
    assert [one["frame"] for one in frames] == [0, 2, 4]


def test_videos_that_are_none(server: tuple[httpx.Client, Service], clip: Path) -> None:
    client, service = server
    for data, fields, status in (
        (b"nonsense", {"text": "object"}, 422),
        (b"", {"text": "object"}, 422),
        (clip.read_bytes()[:200], {"text": "object"}, 422),
        (clip.read_bytes(), {}, 422),
        (clip.read_bytes(), {"text": "object", "every": "0"}, 422),
        (clip.read_bytes(), {"text": ["a"] * 99}, 413),
        (clip.read_bytes(), {"text": "object", "model": "none"}, 404),
    ):
        answer = client.post("/v1/video", files={"video": data}, data=fields)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    missing = client.post("/v1/video", files={"other": (None, "x")})
    assert missing.status_code == 422
    assert service.videos._running == 0


def test_only_so_many_videos_at_a_time(server: tuple[httpx.Client, Service], clip: Path) -> None:
    client, service = server
    place = service.videos.begin()
    answer = client.post("/v1/video", files={"video": clip.read_bytes()}, data={"text": "object"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    place.close()
    place.close()
    assert followed(client, clip, text="object", masks="none")[-1]["frames"] == 6


def test_a_client_that_leaves_ends_its_video(
    server: tuple[httpx.Client, Service], clip: Path
) -> None:
    client, service = server
    request = {"files": {"video": clip.read_bytes()}, "data": {"text": "object"}}
    with client.stream("POST", "/v1/video", **request) as answer:  # type: ignore[arg-type]
        assert "frame_rate" in next(answer.iter_lines())
        assert service.videos._running == 1
    import time

    end = time.monotonic() + 20
    while service.videos._running:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert service.is_alive()
