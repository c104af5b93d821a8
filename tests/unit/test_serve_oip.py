"""Open Inference Protocol v2: what tritonclient sends, and that every way finds the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oip_answer import tensors_of
from served import served

import samforge
from samforge.apps.serve.tensors import (
    BYTES,
    DTYPES,
    Tensor,
    body_from_tensors,
    request_from_body,
)
from samforge.core.errors import ShapeError
from samforge.serving import Service

HEADER = "Inference-Header-Content-Length"
SMALL = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
# What tritonclient[http] 2.73.0 sent for SMALL, two phrases, a threshold and four binary outputs.
RECORDED = (
    b'{"id":"7","inputs":[{"name":"image","shape":[4,6,3],"datatype":"UINT8","parameters":'
    b'{"binary_data_size":72}},{"name":"prompts","shape":[2],"datatype":"BYTES","parameters":'
    b'{"binary_data_size":22}},{"name":"threshold","shape":[1],"datatype":"FP32","parameters":'
    b'{"binary_data_size":4}}],"outputs":[{"name":"boxes","parameters":{"binary_data":true}},'
    b'{"name":"scores","parameters":{"binary_data":true}},{"name":"phrase","parameters":'
    b'{"binary_data":true}},{"name":"rle","parameters":{"binary_data":true}}],"parameters":'
    b'{"timeout":20000000}}'
)
RECORDED_BINARY = (
    bytes(range(72)) + b"\n\x00\x00\x00red circle\x04\x00\x00\x00star" + b"\x00\x00\x00\x00"
)


@pytest.fixture(scope="module")
def root(proven_bundle: Callable[..., Path]) -> Path:
    return proven_bundle("oip")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[tuple[httpx.Client, Service]]:
    with served(root) as one:
        yield one


@pytest.fixture
def client(server: tuple[httpx.Client, Service]) -> httpx.Client:
    return server[0]


def test_what_tritonclient_sends(client: httpx.Client, root: Path) -> None:
    answer = client.post(
        "/v2/models/oip/infer",
        content=RECORDED + RECORDED_BINARY,
        headers={HEADER: str(len(RECORDED))},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    head = json.loads(answer.content[: int(answer.headers[HEADER])])
    assert (head["id"], head["model_name"]) == ("7", "oip")
    found = tensors_of(answer)
    assert list(found) == ["boxes", "scores", "phrase", "rle"]
    with samforge.load(root) as segmenter:
        direct = segmenter.predict(SMALL, text=["red circle", "star"], threshold=0.0)
    assert len(direct) > 0
    assert found["scores"] == pytest.approx(direct.scores.tolist(), abs=1e-6)
    assert found["rle"] == [direct.masks.rle(i)["counts"] for i in range(len(direct))]


def test_the_server_describes_itself(client: httpx.Client) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "parameters"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/oip/ready"):
        assert client.get(path).status_code == 200
    model = client.get("/v2/models/oip").json()
    assert {one["name"] for one in model["inputs"]} >= {"image", "image_bytes", "prompts", "boxes"}
    digest = model["parameters"]["digest"]
    for version in ("1", digest):
        assert client.get(f"/v2/models/oip/versions/{version}").json() == model
        assert client.get(f"/v2/models/oip/versions/{version}/ready").status_code == 200
    for path in ("/v2/models/none", "/v2/models/oip/versions/2", "/v2/models/none/ready"):
        answer = client.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "inputs is a list"),
        ({"inputs": [3]}, "is an object"),
        ({"inputs": [{"name": "image"}]}, "Give one of BOOL"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 2, 3]}]}, "The shape"),
        (
            {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1 << 40, 2, 3]}]},
            "The shape",
        ),
        (
            {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2], "data": [1]}]},
            "1 values",
        ),
        (
            {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "data": [300]}]},
            "is not UINT8",
        ),
        (
            {
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "UINT8",
                        "shape": [4],
                        "parameters": {"binary_data_size": 4},
                    }
                ]
            },
            "0 bytes are left",
        ),
        ({"inputs": []}, "Give one picture"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]},
            "There is no input 'x'",
        ),
        (
            {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1], "data": [[1]]}]},
            "UINT8 (H, W, 3)",
        ),
    ],
)
def test_tensors_that_are_none(client: httpx.Client, table: dict[str, Any], words: str) -> None:
    answer = client.post("/v2/models/oip/infer", json=table)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


def test_headers_and_encodings_that_are_none(client: httpx.Client) -> None:
    for value in ("-1", "9999", "x"):
        answer = client.post("/v2/models/oip/infer", content=b"{}", headers={HEADER: value})
        assert (answer.status_code, "bytes of its JSON" in answer.text) == (400, True)
    zipped = client.post(
        "/v2/models/oip/infer", content=b"{}", headers={"Content-Encoding": "gzip"}
    )
    assert zipped.status_code == 415


def picture_and(*outputs: str, **parameters: Any) -> dict[str, Any]:
    small = {"name": "image", "datatype": "UINT8", "shape": [4, 6, 3], "data": SMALL.tolist()}
    prompts = {"name": "prompts", "datatype": "BYTES", "shape": [1], "data": ["star"]}
    table: dict[str, Any] = {"inputs": [small, prompts], "parameters": parameters}
    return table | ({"outputs": [{"name": name} for name in outputs]} if outputs else {})


def test_outputs_and_timeouts(client: httpx.Client) -> None:
    path = "/v2/models/oip/infer"
    assert list(tensors_of(client.post(path, json=picture_and("size_hw")))) == ["size_hw"]
    assert "no output 'x'" in client.post(path, json=picture_and("x")).json()["error"]
    assert client.post(path, json=picture_and(timeout=10_000_000)).status_code == 200
    for bad in ("soon", True, [], 0, 1e30):
        assert client.post(path, json=picture_and(timeout=bad)).status_code == 400
    late = client.post(path, json=picture_and(timeout=1))
    assert (late.status_code, "Retry-After" in late.headers) == (503, True)


@given(
    name=st.text(max_size=8),
    datatype=st.sampled_from([*DTYPES, BYTES]),
    shape=st.lists(st.integers(0, 4), max_size=3),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read(
    name: str, datatype: str, shape: list[int], data: st.DataObject
) -> None:
    count = int(np.prod(shape, dtype=int))
    array: Any
    if datatype == BYTES:
        array = np.empty(count, object)
        array[:] = data.draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
    else:
        raw = data.draw(st.binary(min_size=8 * count, max_size=8 * count))
        array = np.frombuffer(raw, np.uint8)[:count].astype(DTYPES[datatype])
    tensor = Tensor(name=name, datatype=datatype, array=array.reshape(shape))
    body, length = body_from_tensors({"id": "1"}, [(tensor, True)])
    assert length is not None
    table = json.loads(body[:length])
    table["inputs"] = table.pop("outputs")
    head = json.dumps(table).encode()
    read = request_from_body(head + body[length:], str(len(head)))
    found = read.tensors[name]
    assert (found.datatype, found.array.shape) == (datatype, tuple(shape))
    assert found.array.tolist() == tensor.array.tolist()


@given(st.binary(max_size=400), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes, length: int) -> None:
    with pytest.raises(ShapeError):
        request_from_body(body, str(length))
