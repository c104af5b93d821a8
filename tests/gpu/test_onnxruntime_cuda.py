"""ONNX Runtime on a GPU: what it computes, where, and in which order with torch's work.

    pytest -m gpu tests/gpu/test_onnxruntime_cuda.py

Skipped where ``onnxruntime-gpu`` or the GPU is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from samforge.backends import backend_from_name
from samforge.core.errors import EngineError
from samforge.core.session import PartSpec, TensorSpec
from samforge.measure.fidelity import compare_outputs
from samforge.transform.onnx.convert import save_onnx
from samforge.transform.onnx.cuda_flavour import to_cuda

BACKEND = backend_from_name("onnxruntime-cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(BACKEND.version() is None, reason="no onnxruntime-gpu or no GPU here"),
]
SIZES = {"batch": 1, "prompts": 2, "boxes": 2}
MATMUL = PartSpec(
    name="square",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 2048)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 2048)),),
)


def saved(text: str, path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}'), path)
    return path


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = saved(
        "g (float[n, 2048] x) => (float[n, 2048] y) { y = Add(x, x) }",
        tmp_path_factory.mktemp("g") / "x.onnx",
    )
    return BACKEND.session_from_artifact(path, MATMUL)


@pytest.fixture(scope="module")
def session(
    onnx_file: Callable[[str], Path],
    part: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Any]:
    """A part of the small model in a precision."""
    made: dict[tuple[str, str], Any] = {}

    def load(name: str, precision: str) -> Any:
        if (name, precision) not in made:
            path = tmp_path_factory.mktemp("cuda") / "x.onnx"
            save_onnx(to_cuda(ir.load(onnx_file(name)), precision), path)
            made[name, precision] = BACKEND.session_from_artifact(path, part(name).spec)
        return made[name, precision]

    return load


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999999), ("fp16", 0.9999)])
@pytest.mark.parametrize("name", ["vision", "text", "detector", "detector_boxes"])
def test_it_computes_the_part(
    session: Any, part: Any, example: Any, name: str, precision: str, least: float
) -> None:
    inputs = example(name, SIZES, seed=3)
    wanted = {key: tensor.numpy() for key, tensor in part(name)(inputs).items()}
    one = session(name, precision)
    assert one.processor.startswith("NVIDIA")
    found = one.run({key: tensor.numpy() for key, tensor in inputs.items()})
    assert min(figure.cosine for figure in compare_outputs(wanted, found)) >= least
    on_device = one.run_on_device({key: tensor.cuda() for key, tensor in inputs.items()})
    for key, tensor in on_device.items():
        taken = torch.from_dlpack(tensor)
        assert taken.is_cuda
        # Sums of float32 are split between programs, and come together in no fixed order.
        last_bits = 0.0 if precision == "fp16" else 1e-5
        one_way = torch.from_numpy(found[key])
        assert torch.allclose(taken.cpu(), one_way, rtol=last_bits, atol=last_bits), key


def test_parts_hand_tensors_on_without_waiting(session: Any, example: Any) -> None:
    vision, text, detector = (session(name, "fp16") for name in ("vision", "text", "detector"))
    picture, phrase = example("vision", SIZES, seed=1), example("text", SIZES, seed=1)
    on_host = {
        **vision.run({key: tensor.numpy() for key, tensor in picture.items()}),
        **text.run({key: tensor.numpy() for key, tensor in phrase.items()}),
    }
    names = [tensor.name for tensor in detector.spec.inputs]
    wanted = detector.run({name: on_host[name] for name in names})
    pictures = {key: tensor.cuda() for key, tensor in picture.items()}
    phrases = {key: tensor.cuda() for key, tensor in phrase.items()}
    results = []
    for _ in range(5):  # nothing of torch's in between
        on_device = {**vision.run_on_device(pictures), **text.run_on_device(phrases)}
        results.append(detector.run_on_device({name: on_device[name] for name in names}))
        del on_device  # its memory may be taken by the next round, behind the reading
    for found in results:
        for key, tensor in found.items():
            assert torch.equal(torch.from_dlpack(tensor).cpu(), torch.from_numpy(wanted[key]))


@pytest.mark.parametrize("own_stream", [False, True])
def test_it_waits_for_what_torch_still_computes(doubles: Any, own_stream: bool) -> None:
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    factor = torch.full((2048, 2048), 1 / 2048, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        x = torch.ones(2048, 2048, device="cuda")
        for _ in range(200):  # long in the queue
            x = x @ factor
        x = x * 3  # its buffer held ones before
        y = torch.from_dlpack(doubles.run_on_device({"x": x})["y"])
        z = y + 1  # and torch waits for it
    torch.cuda.synchronize()
    assert torch.allclose(z, torch.full_like(z, 7), atol=1e-2)


def test_an_operator_without_a_kernel_there_is_refused(tmp_path: Path) -> None:
    path = saved(
        """g (float[n, 2048] x) => (float[n, 2048] y) {
            a, b, inverse, d = Unique <axis = 0> (x)
            y = Gather(a, inverse)
        }""",
        tmp_path / "x.onnx",
    )
    with pytest.raises(EngineError, match="to the processor: 1 x Unique"):
        BACKEND.session_from_artifact(path, MATMUL)
