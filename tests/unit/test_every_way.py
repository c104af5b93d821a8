"""One image by itself, in a list, over each wire and behind each engine: the same detections."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from local_ray import ray_serving
from oip_answer import HEADER, tensors_of
from real_triton import asked, packages, tritonserver
from served import png, served

import samforge
from samforge.core.masks import Masks
from samforge.models import tiny
from samforge.workflows.export_triton import TritonOptions, export_triton

SCENE = tiny.draw_scene(11, split="demo").image
SMALL = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
PHRASES = ["blue square", "green triangle"]
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def root(proven_bundle: Callable[..., Path]) -> Path:
    return proven_bundle("every")


@pytest.fixture(scope="module")
def alone(root: Path) -> samforge.Detections:
    """From Python, one image by itself."""
    with samforge.load(root) as segmenter:
        found = segmenter.predict(SCENE, text=PHRASES, threshold=THRESHOLD)
    assert len(found) > 0
    return found


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[httpx.Client]:
    with served(root) as (one, _):
        yield one


def same(found: dict[str, Any], alone: samforge.Detections) -> None:
    """Make sure that outputs, by their names in the protocol, are what Python gave."""
    assert found["rle"] == [alone.masks.rle(index)["counts"] for index in range(len(alone))]
    assert found["scores"] == pytest.approx(alone.scores.tolist(), abs=1e-6)
    assert found["boxes"] == pytest.approx(alone.boxes_xyxy.ravel().tolist(), abs=1e-3)
    assert [PHRASES[number] for number in found["phrase"]] == list(alone.labels)
    assert found["best_scores"] == pytest.approx(
        [alone.best_scores[phrase] for phrase in PHRASES], abs=1e-6
    )
    assert found["size_hw"] == list(alone.size_hw)


def native(url: str, alone: samforge.Detections) -> None:
    """Make sure that the native API answers what Python gave."""
    question = {"text": PHRASES, "threshold": THRESHOLD}
    answer = httpx.post(
        f"{url}/v1/segment",
        json={"image": base64.b64encode(png(SCENE)).decode(), **question},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    rows = answer.json()["detections"]
    assert Masks.from_rle([row["rle"] for row in rows], alone.size_hw) == alone.masks
    assert [row["label"] for row in rows] == list(alone.labels)
    assert [row["score"] for row in rows] == pytest.approx(alone.scores.tolist(), abs=1e-6)


def tensors(url: str, *, binary: bool) -> dict[str, Any]:
    """What the Open Inference Protocol answers, to an array as JSON or to a file as binary."""
    inputs: list[dict[str, Any]] = [
        {"name": "prompts", "datatype": "BYTES", "shape": [2], "data": PHRASES},
        {"name": "threshold", "datatype": "FP32", "shape": [1], "data": [THRESHOLD]},
    ]
    shape = list(SCENE.shape)
    if not binary:
        picture = {"name": "image", "datatype": "UINT8", "shape": shape, "data": SCENE.tolist()}
        body, headers = json.dumps({"inputs": [picture, *inputs]}).encode(), {}
    else:
        file = png(SCENE)
        blob = struct.pack("<I", len(file)) + file
        size = {"binary_data_size": len(blob)}
        picture = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "parameters": size}
        head = json.dumps(
            {"inputs": [picture, *inputs], "parameters": {"binary_data_output": True}}
        ).encode()
        body, headers = head + blob, {HEADER: str(len(head))}
    answer = httpx.post(f"{url}/v2/models/every/infer", content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return tensors_of(answer)


def test_in_a_list(root: Path, alone: samforge.Detections) -> None:
    with samforge.load(root) as segmenter:
        listed = segmenter.predict([SCENE, SMALL], text=PHRASES, threshold=THRESHOLD)[0]
    assert listed.masks == alone.masks
    assert listed.scores.tolist() == pytest.approx(alone.scores.tolist(), abs=1e-6)


def test_over_http(client: httpx.Client, alone: samforge.Detections) -> None:
    native(str(client.base_url).rstrip("/"), alone)


@pytest.mark.parametrize("binary", [False, True])
def test_over_the_protocol(client: httpx.Client, alone: samforge.Detections, binary: bool) -> None:
    same(tensors(str(client.base_url).rstrip("/"), binary=binary), alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, as it starts and stops
def test_through_ray_serve(root: Path, alone: samforge.Detections) -> None:
    from samforge.apps.ray import serve_application

    with ray_serving(lambda: serve_application(root)) as url:
        assert httpx.get(f"{url}/health/ready", timeout=60).json()["ready"] is True
        native(url, alone)
        for binary in (False, True):
            same(tensors(url, binary=binary), alone)


@pytest.mark.slow
def test_through_triton(root: Path, alone: samforge.Detections, tmp_path: Path) -> None:
    """A real tritonserver, asked by NVIDIA's own client and by plain HTTP."""
    packages()
    export = export_triton(root, tmp_path / "models", TritonOptions(threads=1))
    file, phrases = np.empty(1, object), np.empty(2, object)
    file[0], phrases[:] = png(SCENE), [one.encode() for one in PHRASES]
    question = {"prompts": phrases, "threshold": np.array([THRESHOLD], np.float32)}
    with tritonserver(export.repository, tmp_path / "work") as address:
        for picture in ({"image": SCENE}, {"image_bytes": file}):
            same(asked(address, "every", {**picture, **question}, tmp_path), alone)
        for binary in (False, True):
            same(tensors(f"http://{address}", binary=binary), alone)
        nothing = {**question, "threshold": np.array([1.0], np.float32), "image": SCENE}
        assert asked(address, "every", nothing, tmp_path)["rle"] == []
        refused = httpx.post(
            f"http://{address}/v2/models/every/infer",
            json={
                "inputs": [{"name": "prompts", "datatype": "BYTES", "shape": [1], "data": ["x"]}]
            },
        )
        assert (refused.status_code, "Give one picture" in refused.text) == (400, True)
