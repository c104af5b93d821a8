"""Engines on a GPU: what the conformance suite does not ask of every backend.

    pytest -m gpu

Written against the public API of TensorRT 10.13 to 11.x and TensorRT for RTX 1.7; not run where
there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samforge.backends import backend_from_name
from samforge.backends.tensorrt.cuda import gpu_here
from samforge.backends.tensorrt.session import EngineSession
from samforge.backends.tensorrt.settings import AxisRange, EngineSettings
from samforge.core.computation import lost_computation
from samforge.core.errors import ShapeError
from samforge.models.part import Part
from samforge.transform.onnx.planned import computation_from_onnx
from samforge.transform.onnx.tensorrt_flavour import tensorrt_flavour

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_here() is None, reason="there is no NVIDIA GPU here"),
]
AXES = {"batch": AxisRange(max=2), "prompts": AxisRange(max=4), "boxes": AxisRange(max=2)}


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def session(
    request: pytest.FixtureRequest,
    part: Callable[[str], Part],
    onnx_file: Callable[[str], Path],
    tmp_path: Path,
) -> EngineSession:
    """The detector in fp16, built for the GPU at hand."""
    backend: Any = backend_from_name(request.param)
    if backend.version() is None:
        pytest.skip(f"{request.param} is not installed")
    model = tensorrt_flavour(ir.load(onnx_file("detector")), "fp16")
    ir.save(model, tmp_path / "detector.onnx")
    engine = tmp_path / "detector.engine"
    spec = part("detector").spec
    settings = EngineSettings(precision="fp16", axes=AXES)
    backend.engine_from_onnx(tmp_path / "detector.onnx", engine, spec, settings)
    loaded = backend.session_from_artifact(engine, spec)
    assert isinstance(loaded, EngineSession)
    return loaded


def _inputs(example: Callable[..., dict[str, Any]], prompts: int, seed: int) -> dict[str, Any]:
    return example("detector", {"batch": 1, "prompts": prompts, "boxes": 1}, seed=seed)


def _cosine(first: Any, second: Any) -> float:
    one, other = (np.asarray(a, np.float64).ravel() for a in (first, second))
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_half_is_close_to_fp32_at_every_size(
    session: EngineSession, part: Callable[[str], Part], example: Callable[..., dict[str, Any]]
) -> None:
    for prompts in (1, 4, 2):
        inputs = _inputs(example, prompts, seed=prompts)
        found = session.run({name: tensor.numpy() for name, tensor in inputs.items()})
        for name, wanted in part("detector")(inputs).items():
            assert found[name].shape == tuple(wanted.shape)
            assert _cosine(found[name], wanted) >= 0.999, name


def test_tensors_on_the_gpu_stay_there(
    session: EngineSession, example: Callable[..., dict[str, Any]]
) -> None:
    inputs = _inputs(example, 2, seed=5)
    wanted = session.run({name: tensor.numpy() for name, tensor in inputs.items()})
    found = session.run_on_device({name: tensor.cuda() for name, tensor in inputs.items()})
    for name, array in found.items():
        tensor = torch.as_tensor(array, device="cuda")
        assert tensor.data_ptr() == array.pointer
        np.testing.assert_array_equal(tensor.cpu().numpy(), wanted[name])


def test_tensors_elsewhere_are_refused(
    session: EngineSession, example: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(ShapeError, match=r"runs on cuda:0, and .* lies on the processor"):
        session.run_on_device(_inputs(example, 1, seed=1))


def test_repeated_shapes_replay_a_graph_and_give_the_same(
    session: EngineSession, example: Callable[..., dict[str, Any]]
) -> None:
    first, second = (
        {name: tensor.numpy() for name, tensor in _inputs(example, 2, seed=seed).items()}
        for seed in (1, 2)
    )
    wanted = session.run(first)
    for inputs in (second, first, second, first):
        found = session.run(inputs)
    session.run({n: t.numpy() for n, t in _inputs(example, 3, seed=3).items()})
    again = session.run(first)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(again[name], array)


def test_threads_have_contexts_of_their_own(
    session: EngineSession, example: Callable[..., dict[str, Any]]
) -> None:
    jobs = [
        {name: tensor.numpy() for name, tensor in _inputs(example, 1 + n % 4, seed=n).items()}
        for n in range(16)
    ]
    wanted = [session.run(inputs) for inputs in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(session.run, jobs))
    for one, other in zip(wanted, found, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(other[name], array)


def test_sizes_the_engine_was_not_built_for(
    session: EngineSession, example: Callable[..., dict[str, Any]]
) -> None:
    inputs = {name: tensor.numpy() for name, tensor in _inputs(example, 5, seed=1).items()}
    with pytest.raises(ShapeError, match="takes 1 to 4 for prompts, got 5"):
        session.run(inputs)


def test_the_inspector_agrees_with_the_plan(
    session: EngineSession, onnx_file: Callable[[str], Path]
) -> None:
    planned = computation_from_onnx(tensorrt_flavour(ir.load(onnx_file("detector")), "fp16"))
    found = session.computation()
    assert found is not None
    assert lost_computation(planned, found) == ()
