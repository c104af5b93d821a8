"""What every backend must do, checked on every one that is installed here.

A new backend passes this suite by being listed in ``samforge.backends.BACKENDS``: nothing here
names one, except to know which of them compute (``fake`` makes its numbers up).
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samforge.backends import BACKENDS, backend_from_name
from samforge.backends.tensorrt.settings import EngineSettings
from samforge.core.errors import DamagedBundle, ForeignBundle, SettingError, ShapeError
from samforge.core.session import Array, DeviceSession, PartSpec, Session
from samforge.core.targets import ONNXRUNTIME_CUDA, TARGETS
from samforge.measure.fidelity import compare_outputs, worst
from samforge.models.part import Part
from samforge.runtime.device.session import placed
from samforge.runtime.device.session import run as run_on_device
from samforge.transform.onnx.convert import save_onnx
from samforge.transform.onnx.cuda_flavour import to_cuda

MARKS = {"inductor": pytest.mark.slow, "onnxruntime-cuda": pytest.mark.gpu}
"""What is compiled for minutes, and what runs on a GPU alone."""
INSTALLED = [
    pytest.param(name, marks=MARKS[name]) if name in MARKS else name
    for name in BACKENDS
    if backend_from_name(name).version() is not None
]
GPU_TARGETS = [name for name, target in TARGETS.items() if "cuda" in target.devices]
REAL = [name for name in INSTALLED if name != "fake"]
"""Those that read their artifact and compute what it says."""
PARTS = ("text", "detector_boxes")
"""Between them: one input and many, every element type, every dynamic axis."""
SIZES = (
    {"batch": 1, "prompts": 1, "boxes": 1},
    {"batch": 1, "prompts": 2, "boxes": 3},
    {"batch": 3, "prompts": 5, "boxes": 2},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The part under test and its artifact in every form."""

    part: Part
    example: Callable[..., dict[str, Any]]
    files: Mapping[str, Callable[[str], Path]]

    def inputs(self, sizes: Mapping[str, int] = SIZES[1], seed: int = 0) -> dict[str, Array]:
        """Inputs of the part as arrays."""
        return {name: tensor.numpy() for name, tensor in self.example(sizes, seed=seed).items()}

    def reference(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the part itself computes."""
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in self.part(tensors).items()}

    def artifact(self, backend: str) -> Path:
        """The file this backend loads."""
        name = self.part.spec.name
        suffix = TARGETS[backend].suffix if backend in TARGETS else "onnx"
        if suffix == "engine":
            return engine_file(backend, self.files["onnx"](name), self.part.spec)
        if suffix == "aoti.pt2":
            return package_file(self.files["pt2"](name), self.part.spec)
        if backend == ONNXRUNTIME_CUDA.name:
            return cuda_file(self.files["onnx"](name))
        return self.files[suffix](name)

    def session(self, backend: str, **options: Any) -> Session:
        """The part on a backend."""
        return backend_from_name(backend).session_from_artifact(
            self.artifact(backend), self.part.spec, **options
        )


@lru_cache
def engine_file(backend: str, onnx: Path, spec: PartSpec) -> Path:
    """Build an engine for the GPU at hand; reached only where there is one."""
    path = onnx.with_suffix(f".{backend}.engine")
    builder: Any = backend_from_name(backend)
    builder.engine_from_onnx(onnx, path, spec, EngineSettings(precision="fp32"))
    return path


@lru_cache
def cuda_file(onnx: Path) -> Path:
    """Bring a graph into the form whose operators all run on the GPU."""
    path = onnx.with_suffix(".cuda.onnx")
    save_onnx(to_cuda(ir.load(onnx), "fp32"), path)
    return path


@lru_cache
def package_file(exported: Path, spec: PartSpec) -> Path:
    """Compile a part for the processor."""
    from samforge.backends.inductor.backend import package_from_exported
    from samforge.transform.export import exported_from_file
    from samforge.transform.lower import Lowering, lower

    path = exported.with_suffix(".aoti.pt2")
    settings = Lowering(precision="fp32", gelu="exact")
    lowered = lower(exported_from_file(exported), spec, settings=settings)
    package_from_exported(lowered.program, spec, path, precision="fp32")
    return path


@pytest.fixture(params=PARTS)
def subject(
    request: pytest.FixtureRequest,
    part: Callable[[str], Part],
    example: Callable[..., dict[str, Any]],
    exported_file: Callable[[str], Path],
    onnx_file: Callable[[str], Path],
) -> Subject:
    return Subject(
        part=part(request.param),
        example=partial(example, request.param),
        files={"pt2": exported_file, "onnx": onnx_file},
    )


@pytest.fixture(params=INSTALLED)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def sessions() -> dict[tuple[str, str], Session]:
    """Loaded once: sessions keep nothing between calls, which is shown below."""
    return {}


@pytest.fixture
def session(sessions: dict[tuple[str, str], Session], subject: Subject, backend: str) -> Session:
    key = (backend, subject.part.spec.name)
    if key not in sessions:
        sessions[key] = subject.session(backend)
    return sessions[key]


def assert_same(first: Mapping[str, Array], second: Mapping[str, Array]) -> None:
    """To the bit."""
    assert list(first) == list(second)
    for name in first:
        assert np.array_equal(first[name], second[name]), name


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
        assert outputs[tensor.name].flags.c_contiguous
        assert outputs[tensor.name].flags.writeable


@pytest.mark.parametrize("backend", REAL, indirect=True)
@pytest.mark.parametrize("sizes", SIZES)
def test_it_computes_the_part(session: Session, subject: Subject, sizes: dict[str, int]) -> None:
    inputs = subject.inputs(sizes, seed=5)
    figures = compare_outputs(subject.reference(inputs), session.run(inputs))
    assert worst(figures).gated <= 1e-4
    assert {figure.tensor for figure in figures} == {t.name for t in session.spec.outputs}


def test_the_same_input_gives_the_same_output(session: Session, subject: Subject) -> None:
    inputs = subject.inputs()
    first = session.run(inputs)
    session.run(subject.inputs(SIZES[2]))
    assert_same(first, session.run(inputs))


def test_other_inputs_give_other_outputs(session: Session, subject: Subject) -> None:
    first, second = (session.run(subject.inputs(seed=seed)) for seed in (1, 2))
    changed = [name for name in first if not np.array_equal(first[name], second[name])]
    assert changed == list(first)


def test_the_order_of_the_names_does_not_matter(session: Session, subject: Subject) -> None:
    inputs = subject.inputs()
    assert_same(session.run(inputs), session.run(dict(reversed(inputs.items()))))


def test_inputs_stay_as_they_were(session: Session, subject: Subject) -> None:
    inputs = subject.inputs()
    before = {name: array.copy() for name, array in inputs.items()}
    outputs = session.run(inputs)
    assert_same(inputs, before)
    for output in outputs.values():
        assert not any(np.shares_memory(output, array) for array in inputs.values())


def test_inputs_may_be_read_only(session: Session, subject: Subject) -> None:
    inputs = subject.inputs()
    wanted = session.run(inputs)
    for array in inputs.values():
        array.flags.writeable = False
    assert_same(wanted, session.run(inputs))


def test_a_later_call_leaves_earlier_results_alone(session: Session, subject: Subject) -> None:
    first = session.run(subject.inputs(seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    second = session.run(subject.inputs(seed=2))
    assert_same(first, kept)
    for name, array in first.items():
        assert not np.shares_memory(array, second[name])


def test_results_outlive_the_session(backend: str, subject: Subject) -> None:
    session = subject.session(backend)
    outputs = session.run(subject.inputs())
    kept = {name: array.copy() for name, array in outputs.items()}
    session.close()
    del session
    assert_same(outputs, kept)


def test_memory_order_does_not_matter(session: Session, subject: Subject) -> None:
    inputs = subject.inputs(SIZES[2])
    wanted = session.run(inputs)
    reordered = {name: np.asfortranarray(array) for name, array in inputs.items()}
    spread = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in inputs.items()}
    for strided in (reordered, spread):
        assert not any(array.flags.c_contiguous for array in strided.values())
        assert_same(wanted, session.run(strided))


def test_two_threads_do_not_mix(session: Session, subject: Subject) -> None:
    jobs = [subject.inputs(SIZES[seed % 3], seed=seed) for seed in range(8)]
    wanted = [session.run(inputs) for inputs in jobs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(session.run, jobs))
    for one, other in zip(wanted, found, strict=True):
        assert_same(one, other)


def test_two_sessions_do_not_mix(backend: str, subject: Subject) -> None:
    first, second = subject.session(backend), subject.session(backend)
    wanted = first.run(subject.inputs())
    first.close()
    assert_same(wanted, second.run(subject.inputs()))


def test_wrong_names(session: Session, subject: Subject) -> None:
    names = sorted(subject.inputs())
    for inputs in (
        {f"my_{name}": array for name, array in subject.inputs().items()},
        subject.inputs() | {"more": np.zeros(1)},
        {},
    ):
        with pytest.raises(ShapeError) as caught:
            session.run(inputs)
        name = subject.part.spec.name
        assert f"{name} wants the inputs {names}, got {sorted(inputs)}." == str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4"])
def test_wrong_type(session: Session, subject: Subject, dtype: str) -> None:
    for tensor in session.spec.inputs:
        inputs = subject.inputs()
        inputs[tensor.name] = inputs[tensor.name].astype(dtype)
        with pytest.raises(ShapeError) as caught:
            session.run(inputs)
        assert f"{session.spec.name} wants {tensor}, got {np.dtype(dtype)}. " in str(caught.value)
        assert f"array.astype('{tensor.dtype}')" in str(caught.value)


def test_wrong_shape(session: Session, subject: Subject) -> None:
    for tensor in session.spec.inputs:
        right = subject.inputs()
        array = right[tensor.name]
        for wrong in (array[..., :-1], array[None], array[0], array[:0]):
            with pytest.raises(ShapeError) as caught:
                session.run(right | {tensor.name: wrong})
            assert f"{session.spec.name} wants " in str(caught.value)
            assert "got (" in str(caught.value)


@pytest.mark.parametrize("subject", ["detector_boxes"], indirect=True)
def test_one_name_has_one_size(session: Session, subject: Subject) -> None:
    inputs, others = subject.inputs(SIZES[1]), subject.inputs(SIZES[2])
    for name in list(inputs)[1:]:
        with pytest.raises(ShapeError, match=r"detector_boxes wants \w+ of shape \(.*got \("):
            session.run(inputs | {name: others[name]})


@pytest.mark.parametrize("subject", ["text"], indirect=True)
def test_a_closed_session_says_so(backend: str, subject: Subject) -> None:
    session = subject.session(backend)
    session.close()
    session.close()
    with pytest.raises(ShapeError) as caught:
        session.run(subject.inputs())
    assert str(caught.value) == f"The session of {session.spec.name} is closed. Load it again."


@pytest.mark.parametrize("backend", REAL, indirect=True)
@pytest.mark.parametrize("subject", ["text"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"not an artifact", None])
def test_a_damaged_artifact(
    backend: str, subject: Subject, tmp_path: Path, content: bytes | None
) -> None:
    source = subject.artifact(backend)
    broken = tmp_path / source.name
    broken.write_bytes(source.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(DamagedBundle, match="cannot load") as caught:
        backend_from_name(backend).session_from_artifact(broken, subject.part.spec)
    assert str(broken) in str(caught.value)


@pytest.mark.parametrize("subject", ["text"], indirect=True)
def test_an_artifact_that_is_not_there(backend: str, subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(DamagedBundle, match=r"cannot load .*gone\.bin"):
        backend_from_name(backend).session_from_artifact(tmp_path / "gone.bin", subject.part.spec)


@pytest.mark.parametrize("backend", REAL, indirect=True)
@pytest.mark.parametrize("subject", ["text"], indirect=True)
def test_an_artifact_of_another_interface(backend: str, subject: Subject) -> None:
    spec = subject.part.spec
    first, *rest = spec.outputs
    for outputs in (
        rest,
        [replace(first, dtype="float16"), *rest],
        [replace(first, shape=(*first.shape, 1)), *rest],
        [replace(first, shape=(*first.shape[:-1], 7)), *rest],
        [first, *rest, first],
    ):
        other = replace(spec, outputs=tuple(outputs))
        with pytest.raises(DamagedBundle, match="the manifest says"):
            backend_from_name(backend).session_from_artifact(subject.artifact(backend), other)


@pytest.mark.parametrize("subject", ["text"], indirect=True)
def test_threads_are_counted_or_refused(backend: str, subject: Subject) -> None:
    inputs = subject.inputs()
    if backend in ("torch", "inductor"):
        with pytest.raises(SettingError, match=r"torch\.set_num_threads"):
            subject.session(backend, threads=1)
    elif backend.startswith("tensorrt") or backend == ONNXRUNTIME_CUDA.name:
        with pytest.raises(SettingError, match="no processor threads to count"):
            subject.session(backend, threads=1)
    else:
        session = subject.session(backend, threads=1)
        assert session.run(inputs).keys() == {tensor.name for tensor in session.spec.outputs}
        assert backend == "fake" or "1 threads" in session.processor


@pytest.mark.parametrize("subject", ["text"], indirect=True)
def test_an_unknown_option_is_refused(backend: str, subject: Subject) -> None:
    with pytest.raises(SettingError) as caught:
        subject.session(backend, options={"colour": "blue"})
    known = "Options: precision, hint, cache." if backend == "openvino" else "It has none."
    assert str(caught.value) == f"{backend} has no option 'colour'. {known}"


def test_onnx_runtime_copies_nothing(subject: Subject) -> None:
    session = subject.session("onnxruntime")
    inputs = subject.inputs(SIZES[2])
    session.run(inputs)
    tracemalloc.start()
    try:
        outputs = session.run(inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # numpy tells tracemalloc of its arrays: there were the results and nothing else of their size.
    results = sum(array.nbytes for array in outputs.values())
    assert all(array.flags.owndata for array in outputs.values())
    assert results <= peak < results + 20_000


def test_onnx_runtime_finds_its_tensors_by_name(subject: Subject) -> None:
    spec = subject.part.spec
    renamed = tuple(replace(tensor, name=f"my_{tensor.name}") for tensor in spec.inputs)
    onnxruntime = backend_from_name("onnxruntime")
    with pytest.raises(DamagedBundle, match="the manifest says"):
        onnxruntime.session_from_artifact(
            subject.artifact("onnxruntime"), replace(spec, inputs=renamed)
        )


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(
        SettingError, match=r"no target 'tpu'\. Targets: onnxruntime, openvino, tensorrt"
    ):
        backend_from_name("tpu")


ON_DEVICE = [
    pytest.param(name, marks=MARKS[name]) if name in MARKS else name
    for name in BACKENDS
    if backend_from_name(name).version() is not None and name in GPU_TARGETS
]
"""Those that take tensors where they are."""


def tensors_for(session: Session, inputs: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Inputs in the formats and on the device of a session."""
    assert isinstance(session, DeviceSession)
    return placed(session, {name: torch.from_numpy(array) for name, array in inputs.items()})


@pytest.mark.parametrize("backend", ON_DEVICE, indirect=True)
class TestOnDevice:
    """The second door of sessions: the same results, and nothing passes through the host."""

    @pytest.mark.parametrize("sizes", SIZES)
    def test_it_gives_what_arrays_give(
        self, session: Session, subject: Subject, sizes: dict[str, int]
    ) -> None:
        inputs = subject.inputs(sizes, seed=4)
        assert isinstance(session, DeviceSession)
        assert set(session.formats) == set(inputs)
        found = run_on_device(session, tensors_for(session, inputs))
        assert list(found) == [tensor.name for tensor in session.spec.outputs]
        assert {str(tensor.device) for tensor in found.values()} == {session.device}
        wanted = session.run(inputs)
        for tensor in session.spec.outputs:
            array = found[tensor.name].to("cpu", getattr(torch, tensor.dtype)).numpy()
            assert np.array_equal(array, wanted[tensor.name]), tensor.name

    def test_results_are_the_callers(self, session: Session, subject: Subject) -> None:
        first = run_on_device(session, tensors_for(session, subject.inputs(seed=1)))
        kept = {name: tensor.clone() for name, tensor in first.items()}
        second = run_on_device(session, tensors_for(session, subject.inputs(seed=2)))
        for name, tensor in first.items():
            assert torch.equal(tensor, kept[name])
            assert not torch.equal(tensor, second[name])

    def test_other_names_types_and_shapes(self, session: Session, subject: Subject) -> None:
        assert isinstance(session, DeviceSession)
        tensors = tensors_for(session, subject.inputs())
        name = next(iter(tensors))
        for wrong in (
            {f"my_{key}": tensor for key, tensor in tensors.items()},
            {},
            tensors | {name: tensors[name].to(torch.int8)},
        ):
            with pytest.raises(ShapeError, match=f"^{subject.part.spec.name} wants "):
                session.run_on_device(wrong)

    @pytest.mark.parametrize("subject", ["text"], indirect=True)
    def test_closed_while_others_call(self, backend: str, subject: Subject) -> None:
        session = subject.session(backend)
        tensors = tensors_for(session, subject.inputs())
        assert isinstance(session, DeviceSession)
        results = session.run_on_device(tensors)
        session.close()
        assert list(results) == [tensor.name for tensor in session.spec.outputs]
        with pytest.raises(ShapeError, match=r"is closed\. Load it again\."):
            session.run_on_device(tensors)

    @pytest.mark.parametrize("subject", ["text"], indirect=True)
    def test_a_device_that_is_not_there(self, backend: str, subject: Subject) -> None:
        with pytest.raises((ForeignBundle, SettingError), match=r"cuda:99|no GPU"):
            subject.session(backend, device="cuda:99")


@pytest.mark.parametrize(
    "backend",
    [name for name in INSTALLED if isinstance(name, str) and name not in GPU_TARGETS],
    indirect=True,
)
@pytest.mark.parametrize("subject", ["text"], indirect=True)
def test_what_runs_on_the_processor_says_so(backend: str, subject: Subject) -> None:
    with pytest.raises(SettingError, match="runs on the processor, and device is cuda:0"):
        subject.session(backend, device="cuda:0")
