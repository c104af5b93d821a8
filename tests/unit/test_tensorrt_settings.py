"""What is decided before TensorRT is asked: versions, GPU generations, shapes, the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from samforge.backends.tensorrt.build import target_capabilities
from samforge.backends.tensorrt.capabilities import (
    CAPABILITIES,
    FORMATS_OF_PRECISION,
    check_capabilities,
    first_form,
)
from samforge.backends.tensorrt.command import command_line
from samforge.backends.tensorrt.cuda import Gpu
from samforge.backends.tensorrt.library import (
    RTX,
    TENSORRT,
    Flavour,
    Library,
    installed_version,
    library,
    version_number,
)
from samforge.backends.tensorrt.settings import DEFAULT_AXES, AxisRange, EngineSettings
from samforge.backends.tensorrt.shapes import check_sizes, shapes_from_spec
from samforge.backends.tensorrt.timing_cache import TimingCache
from samforge.core.errors import EngineError, MissingExtra, OutputError, SettingError, ShapeError
from samforge.core.recipe import PRECISIONS
from samforge.core.session import PartSpec, TensorSpec

SPEC = PartSpec(
    name="detector",
    inputs=(
        TensorSpec(name="fpn", dtype="float32", shape=("batch", 8, 4, 4)),
        TensorSpec(name="text", dtype="float32", shape=("prompts", 32, 8)),
        TensorSpec(name="table", dtype="float32", shape=(2, 2)),
    ),
    outputs=(TensorSpec(name="masks", dtype="float32", shape=("batch", "prompts", 9)),),
)
L4 = Gpu(index=0, name="NVIDIA L4", compute_capability="89")


def _library(flavour: Flavour, version: str, **names: object) -> Library:
    """A library of some version: only what is asked of it is there."""

    class Namespace:
        pass

    module = Namespace()
    for name, value in names.items():
        setattr(module, name, value)
    return Library(flavour=flavour, trt=module, version=version)


class _Flags:
    STRONGLY_TYPED = 1


class _Generations:
    SM75 = SM80 = SM86 = SM89 = SM120 = SM121 = NONE = CURRENT = 0


RTX_17 = _library(
    RTX,
    "1.7.1.116",
    NetworkDefinitionCreationFlag=_Flags,
    ComputeCapability=_Generations,
)


@pytest.mark.parametrize(
    ("flavour", "version", "flags", "words"),
    [
        (TENSORRT, "10.13.3.9", 2, ("--stronglyTyped",)),
        (TENSORRT, "10.16.1.11", 2, ("--stronglyTyped",)),
        (TENSORRT, "11.0.0.1", 0, ()),
        (TENSORRT, "11.4.1", 0, ()),
        (RTX, "1.7.1.116", 2, ()),
    ],
)
def test_networks_are_strongly_typed_in_every_version(
    flavour: Flavour, version: str, flags: int, words: tuple[str, ...]
) -> None:
    lib = _library(flavour, version, NetworkDefinitionCreationFlag=_Flags)
    assert lib.network_flags == flags
    assert lib.command_flags == words


def test_version_numbers() -> None:
    assert version_number("10.16.1.11") == (10, 16)
    assert version_number("11") == (11, 0)
    assert version_number("weird") == (0, 0)


def test_a_missing_library_says_the_exact_pip_line() -> None:
    gone = replace(TENSORRT, module="tensorrt_that_nobody_has")
    with pytest.raises(MissingExtra) as caught:
        library(gone)
    assert str(caught.value) == (
        "TensorRT is not installed. Run: pip install 'samforge[tensorrt]'."
    )


def test_a_wrong_version_names_both() -> None:
    # Any module with a version stands for a TensorRT that is too old.
    with pytest.raises(MissingExtra) as caught:
        library(replace(TENSORRT, module="numpy"))
    message = str(caught.value)
    assert message.startswith("TensorRT 10.13 or newer, below 12.0, (there is 2.")
    assert message.endswith("Run: pip install 'samforge[tensorrt]'.")


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert installed_version(replace(RTX, distributions=("no-such-package",))) is None
    assert installed_version(replace(RTX, distributions=("no-such-package", "numpy"))) is not None


def test_every_precision_knows_its_formats() -> None:
    assert set(FORMATS_OF_PRECISION) == set(PRECISIONS)
    formats = {name for c in CAPABILITIES.values() for name in c.formats}
    assert {name for needed in FORMATS_OF_PRECISION.values() for name in needed} <= formats


def test_fp8_for_sm86_is_refused_with_the_reason() -> None:
    with pytest.raises(SettingError) as caught:
        check_capabilities(RTX, ("89", "86"), "fp8")
    assert str(caught.value) == (
        "Compute capability 86 (A10, RTX 30) has no fp8 in TensorRT for RTX, which precision fp8 "
        "needs: that begins with 89 (L4, L40S, RTX 40). For 86 choose fp32, fp16, bf16, int8, "
        "int8-weights."
    )


@pytest.mark.parametrize(
    ("flavour", "name", "precision", "message"),
    [
        (RTX, "90", "fp16", "TensorRT for RTX does not run on compute capability 90 (H100, H200)"),
        (RTX, "87", "fp16", "does not run on compute capability 87 (Jetson Orin)"),
        (RTX, "75", "fp32", "has no fp32 in TensorRT for RTX"),
        (RTX, "75", "int8", "has no int8 in TensorRT for RTX"),
        (TENSORRT, "75", "bf16", "has no bf16 in TensorRT"),
        (TENSORRT, "87", "fp8", "Compute capability 87 (Jetson Orin) has no fp8 in TensorRT"),
        (TENSORRT, "61", "fp16", "There is no compute capability '61'. Known: 75 (T4, RTX 20)"),
    ],
)
def test_other_refusals(flavour: Flavour, name: str, precision: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_capabilities(flavour, (name,), precision)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flavour", "name", "precision"),
    [
        (RTX, "89", "fp8"),
        (RTX, "120", "fp8"),
        (RTX, "75", "fp16"),
        (TENSORRT, "75", "int8"),
        (TENSORRT, "87", "int8"),
        (TENSORRT, "90", "fp8"),
    ],
)
def test_what_is_possible_passes(flavour: Flavour, name: str, precision: str) -> None:
    check_capabilities(flavour, (name,), precision)


def test_where_fused_attention_is_known_to_be_wrong_it_is_not_tried() -> None:
    assert first_form(TENSORRT, (10, 13), ("120",)) == "unfused"
    assert first_form(TENSORRT, (10, 16), ("89", "120")) == "unfused"
    assert first_form(TENSORRT, (10, 16), ("89",)) == "fused"
    assert first_form(TENSORRT, (11, 0), ("120",)) == "fused"
    assert first_form(RTX, (1, 7), ("120",)) == "fused"


def test_rtx_builds_for_named_generations_or_the_gpu_at_hand() -> None:
    named = EngineSettings(compute_capabilities=("86", "120"))
    assert target_capabilities(RTX_17, named, None) == ("86", "120")
    assert target_capabilities(RTX_17, EngineSettings(), L4) == ("89",)
    with pytest.raises(SettingError, match=r"There is no GPU here to build for.*75, 80, 86, 89"):
        target_capabilities(RTX_17, EngineSettings(), None)
    hopper = replace(L4, name="NVIDIA H200", compute_capability="90")
    with pytest.raises(SettingError, match=r"does not build for compute capability 90\. It builds"):
        target_capabilities(RTX_17, EngineSettings(), hopper)
    with pytest.raises(SettingError, match="does not run on compute capability 90"):
        target_capabilities(RTX_17, EngineSettings(compute_capabilities=("90",)), None)


def test_tensorrt_builds_for_the_gpu_at_hand_alone() -> None:
    lib = _library(TENSORRT, "10.16.0")
    assert lib.generations() == ()
    assert target_capabilities(lib, EngineSettings(), L4) == ("89",)
    assert target_capabilities(lib, EngineSettings(compute_capabilities=("89",)), L4) == ("89",)
    with pytest.raises(SettingError, match=r"NVIDIA L4 \(compute capability 89\) here; .* 86 was"):
        target_capabilities(lib, EngineSettings(compute_capabilities=("86",)), L4)
    with pytest.raises(EngineError, match="builds for the GPU at hand, and none is found here"):
        target_capabilities(lib, EngineSettings(), None)


def test_shapes_of_a_part() -> None:
    axes = {**DEFAULT_AXES, "batch": AxisRange(min=1, opt=2, max=3)}
    shapes = shapes_from_spec(SPEC, axes)
    assert list(shapes) == ["fpn", "text"]
    assert (shapes["fpn"].min, shapes["fpn"].opt) == ((1, 8, 4, 4), (2, 8, 4, 4))
    assert (shapes["fpn"].max, shapes["text"].max) == ((3, 8, 4, 4), (8, 32, 8))


def test_a_profile_without_an_axis() -> None:
    with pytest.raises(SettingError, match=r"detector has the dynamic axis prompts .* no range"):
        shapes_from_spec(SPEC, {"batch": AxisRange()})


def test_a_profile_that_excludes_the_asked_batch() -> None:
    axes = {"batch": AxisRange(min=1, max=4), "prompts": AxisRange(min=2, opt=2, max=2)}
    check_sizes(SPEC, axes, {"batch": 4, "prompts": 2})
    with pytest.raises(ShapeError) as caught:
        check_sizes(SPEC, axes, {"batch": 5, "prompts": 2})
    assert str(caught.value) == (
        "The engine of detector takes 1 to 4 for batch, got 5. "
        "Build it with a wider range, or split the call."
    )
    with pytest.raises(ShapeError, match="takes 2 for prompts, got 1"):
        check_sizes(SPEC, axes, {"batch": 1, "prompts": 1})


@pytest.mark.parametrize("numbers", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_an_axis_in_the_wrong_order(numbers: tuple[int, int, int]) -> None:
    low, best, high = numbers
    with pytest.raises(SettingError, match="An axis wants 1 <= min <= opt <= max"):
        AxisRange(min=low, opt=best, max=high)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("precision", "fp4", "precision is 'fp4'. Precisions: fp32"),
        ("workspace_gib", 0.0, "workspace_gib wants more than 0, got 0.0"),
        ("optimization_level", 6, "optimization_level wants 0 to 5, got 6"),
    ],
)
def test_settings_out_of_range(setting: str, value: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        EngineSettings(**{setting: value})  # type: ignore[arg-type]


def test_the_exact_line_of_trtexec() -> None:
    axes = {"batch": AxisRange(), "prompts": AxisRange(opt=2, max=8)}
    settings = EngineSettings(precision="fp32", axes=axes, workspace_gib=4, optimization_level=4)
    settings = replace(settings, timing_cache=Path("t.cache"))
    lib = _library(TENSORRT, "10.16.0", NetworkDefinitionCreationFlag=_Flags)
    shapes = shapes_from_spec(SPEC, axes)
    line = command_line(lib, Path("d.onnx"), Path("d.engine"), shapes, settings)
    assert line == (
        "trtexec --onnx=d.onnx --saveEngine=d.engine --stronglyTyped "
        "--minShapes=fpn:1x8x4x4,text:1x32x8 --optShapes=fpn:1x8x4x4,text:2x32x8 "
        "--maxShapes=fpn:1x8x4x4,text:8x32x8 --noTF32 --memPoolSize=workspace:4096 "
        "--builderOptimizationLevel=4 --timingCacheFile=t.cache --profilingVerbosity=detailed "
        "--skipInference"
    )


def test_the_exact_line_for_rtx() -> None:
    settings = EngineSettings(compute_capabilities=("89", "120"))
    line = command_line(RTX_17, Path("a b.onnx"), Path("v.engine"), {}, settings)
    assert line == (
        "tensorrt_rtx '--onnx=a b.onnx' --saveEngine=v.engine --computeCapabilities=89,120 "
        "--profilingVerbosity=detailed --skipInference"
    )


@pytest.mark.parametrize("place", ["folder", "file/cache"])
def test_an_unwritable_cache(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"The timing cache .*(is no file|cannot be used)"):
        TimingCache(tmp_path / place)


class _Config:
    """What TensorRT's builder configuration does with caches; it cannot be installed here."""

    def __init__(self, own: bytes) -> None:
        self.own = own
        self.content: bytes | None = None

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = cache == b"" or cache.startswith(self.own)
        self.content = cache if fits else self.content
        return fits

    def get_timing_cache(self) -> _Config:
        return self

    def serialize(self) -> bytes:
        return self.own + b" timings"


def test_a_timing_cache_is_shared_and_a_foreign_one_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "caches" / "timing.cache"
    for expected in ("new", "used"):
        config, cache = _Config(b"L4"), TimingCache(path)
        assert cache.attach(config) == expected
        cache.save(config)
        assert path.read_bytes() == b"L4 timings"
    config, cache = _Config(b"H100"), TimingCache(path)
    assert cache.attach(config) == (
        "ignored: timing.cache is of another GPU or version, and was begun anew"
    )
    assert config.content == b""
    cache.save(config)
    assert path.read_bytes() == b"H100 timings"
    assert TimingCache(None).attach(config) == "none"


def test_a_file_that_is_no_timing_cache_of_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a year of work")
    cache = TimingCache(path)
    with pytest.raises(OutputError, match=r"weights\.bin holds no timings .* left alone"):
        cache.attach(_Config(b"L4"))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "weights.bin": b"a year of work"
    }


def test_timings_of_trtexec_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"L4 of trtexec")
    config, cache = _Config(b"L4"), TimingCache(path)
    assert cache.attach(config) == "used"
    cache.save(config)
    assert path.read_bytes() == b"L4 timings"
    assert TimingCache(path).attach(_Config(b"H100")).startswith("ignored: ")  # it is ours now


def test_our_timing_cache_that_somebody_wrote_over_is_somebodys(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    config, cache = _Config(b"L4"), TimingCache(path)
    cache.attach(config)
    cache.save(config)
    path.write_bytes(b"notes")
    with pytest.raises(OutputError, match="samforge did not write it"):
        TimingCache(path).attach(_Config(b"L4"))
    assert path.read_bytes() == b"notes"


def test_an_empty_file_is_a_new_cache(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.touch()
    assert TimingCache(path).attach(_Config(b"L4")) == "new"


def test_where_the_mark_goes_somebodys_file_is_left_alone(tmp_path: Path) -> None:
    mark = tmp_path / "timing.cache.samforge"
    mark.write_text("notes")
    with pytest.raises(OutputError, match=r"timing\.cache\.samforge is where samforge marks"):
        TimingCache(tmp_path / "timing.cache")
    assert mark.read_text() == "notes"
