"""What every backend must do, checked on every one that is installed here.

A new backend passes this suite by being listed in ``samforge.backends.BACKENDS``: nothing here
names one, except to know which of them compute (``fake`` makes its numbers up).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from samforge.backends import BACKENDS, backend_from_name
from samforge.core.errors import DamagedBundle, SettingError, ShapeError
from samforge.core.session import Array, PartSpec, Session
from samforge.measure.fidelity import compare_outputs, worst
from samforge.models.part import Part, example_inputs
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint
from samforge.transform.export import TRACED_SIZES, exported_from_part, save_exported
from samforge.transform.onnx.convert import onnx_from_exported, save_onnx

MADE_UP = {"fake"}
SIZES = ({"prompts": 1}, {"prompts": 2}, {"prompts": 7})
INSTALLED = [name for name in BACKENDS if backend_from_name(name).version() is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The part under test and its artifact in every form."""

    part: Part
    folder: Path
    eos_id: int

    def inputs(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
        """Inputs of the part as arrays."""
        tensors = example_inputs(
            self.part.spec, sizes, vocabulary=20, eos_id=self.eos_id, seed=seed
        )
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def reference(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the part itself computes."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in self.part(tensors).items()}

    def artifact(self, backend: str) -> Path:
        """The file this backend loads."""
        return self.folder / f"text.{backend_from_name(backend).artifact}"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    checkpoint = checkpoint_from_name("tiny")
    part = part_from_checkpoint(checkpoint, "text")
    inputs = example_inputs(part.spec, TRACED_SIZES, vocabulary=20, eos_id=checkpoint.eos_id)
    exported = exported_from_part(part, inputs)
    folder = tmp_path_factory.mktemp("artifacts")
    save_exported(exported, folder / "text.pt2")
    save_onnx(onnx_from_exported(exported, part.spec), folder / "text.onnx")
    return Subject(part=part, folder=folder, eos_id=checkpoint.eos_id)


@pytest.fixture(params=INSTALLED)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def session(subject: Subject, backend: str) -> Session:
    return backend_from_name(backend).session_from_artifact(
        subject.artifact(backend), subject.part.spec
    )


def test_it_says_what_it_is(backend: str, session: Session, subject: Subject) -> None:
    found = backend_from_name(backend)
    assert found.name == backend == session.runtime
    assert found.version()
    assert session.spec == subject.part.spec
    assert session.processor.startswith(("CPU", "NVIDIA"))
    assert isinstance(session, Session)


@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_have_the_promised_form(
    session: Session, subject: Subject, sizes: dict[str, int]
) -> None:
    outputs = session.run(subject.inputs(sizes))
    assert list(outputs) == [tensor.name for tensor in session.spec.outputs]
    for tensor in session.spec.outputs:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        assert outputs[tensor.name].shape == shape
        assert outputs[tensor.name].dtype == np.dtype(tensor.dtype)


@pytest.mark.parametrize("sizes", SIZES)
def test_it_computes_the_part(
    backend: str, session: Session, subject: Subject, sizes: dict[str, int]
) -> None:
    if backend in MADE_UP:
        pytest.skip("its numbers are made up")
    inputs = subject.inputs(sizes, seed=5)
    figures = compare_outputs(subject.reference(inputs), session.run(inputs))
    assert worst(figures).gated <= 1e-4
    assert {figure.tensor for figure in figures} == {"text_features", "text_mask"}


def test_the_same_input_gives_the_same_output(session: Session, subject: Subject) -> None:
    inputs = subject.inputs({"prompts": 3})
    first, second = session.run(inputs), session.run(inputs)
    for name in first:
        assert np.array_equal(first[name], second[name])


def test_inputs_stay_as_they_were(session: Session, subject: Subject) -> None:
    inputs = subject.inputs({"prompts": 3})
    before = {name: array.copy() for name, array in inputs.items()}
    session.run(inputs)
    for name, array in inputs.items():
        assert np.array_equal(array, before[name])


def test_a_later_call_leaves_earlier_results_alone(session: Session, subject: Subject) -> None:
    first = session.run(subject.inputs({"prompts": 3}, seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    second = session.run(subject.inputs({"prompts": 3}, seed=2))
    for name, array in first.items():
        assert np.array_equal(array, kept[name])
        assert not np.shares_memory(array, second[name])


def test_memory_order_does_not_matter(session: Session, subject: Subject) -> None:
    inputs = subject.inputs({"prompts": 4})
    strided = {name: np.asfortranarray(array) for name, array in inputs.items()}
    assert not strided["input_ids"].flags.c_contiguous
    wanted, found = session.run(inputs), session.run(strided)
    for name in wanted:
        assert np.array_equal(wanted[name], found[name])


def test_two_threads_do_not_mix(session: Session, subject: Subject) -> None:
    jobs = [subject.inputs({"prompts": 1 + seed % 3}, seed=seed) for seed in range(8)]
    wanted = [session.run(inputs) for inputs in jobs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(session.run, jobs))
    for one, other in zip(wanted, found, strict=True):
        for name in one:
            assert np.array_equal(one[name], other[name])


def test_wrong_names(session: Session) -> None:
    with pytest.raises(ShapeError, match=r"text wants the inputs \['input_ids'\], got \['ids'\]"):
        session.run({"ids": np.zeros((1, 32), np.int64)})


def test_wrong_type(session: Session) -> None:
    with pytest.raises(ShapeError, match=r"int64 \(prompts, 32\), got int32\. Convert"):
        session.run({"input_ids": np.zeros((1, 32), np.int32)})


@pytest.mark.parametrize("shape", [(1, 31), (0, 32), (32,), (1, 1, 32)])
def test_wrong_shape(session: Session, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="text wants input_ids of shape") as caught:
        session.run({"input_ids": np.zeros(shape, np.int64)})
    assert f"got {shape}" in str(caught.value)


def test_a_closed_session_says_so(backend: str, session: Session, subject: Subject) -> None:
    session.close()
    if backend in MADE_UP:
        pytest.skip("it has nothing to free")
    with pytest.raises(ShapeError, match=r"The session of text is closed\. Load it again\."):
        session.run(subject.inputs({"prompts": 1}))


@pytest.mark.parametrize("content", [b"", b"not an artifact", None])
def test_a_damaged_artifact(
    backend: str, subject: Subject, tmp_path: Path, content: bytes | None
) -> None:
    if backend in MADE_UP:
        pytest.skip("it reads no file")
    source = subject.artifact(backend)
    broken = tmp_path / source.name
    broken.write_bytes(source.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(DamagedBundle, match="cannot load") as caught:
        backend_from_name(backend).session_from_artifact(broken, subject.part.spec)
    assert str(broken) in str(caught.value)


def test_an_artifact_of_another_part(subject: Subject) -> None:
    tensors = subject.part.spec.inputs
    spec = PartSpec(name="text", inputs=tensors, outputs=tensors)
    onnxruntime = backend_from_name("onnxruntime")
    with pytest.raises(DamagedBundle, match="the manifest says"):
        onnxruntime.session_from_artifact(subject.folder / "text.onnx", spec)


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(SettingError, match=r"no target 'tpu'\. Targets: onnxruntime, torch"):
        backend_from_name("tpu")
