"""What several test files share: one small manifest to bend, one real bundle to run."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from quick_torch import quicken

import samforge
from samforge.core.images import ImageSpec
from samforge.core.manifest import SCHEMA_VERSION, Manifest, PartEntry, StepResult, TextSpec
from samforge.core.session import PartSpec, TensorSpec


def pytest_configure() -> None:
    """Let Ctrl-C interrupt: behind a shell's ``&`` it is ignored, here and in what tests start."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests import it by themselves
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before those that are marked slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what slow.txt names, and let one process begin with the tiny bundle.

    Files that need the bundle come last, for they would wait for minutes; one is the first of all.
    """
    patterns = [re.compile(re.escape(name).replace(r"\*", ".*")) for name in slow_tests()]
    for item in items:
        if any(pattern.fullmatch(item.nodeid) for pattern in patterns):
            item.add_marker(pytest.mark.slow)
    needs: dict[Path, bool] = {}
    for item in items:
        own = "tiny_bundle" in getattr(item, "fixturenames", ())
        needs[item.path] = own or needs.get(item.path, False)
    builds = next((path for path, own in needs.items() if own), None)
    items.sort(key=lambda item: (item.path != builds, needs[item.path]))


def slow_tests() -> frozenset[str]:
    """Tests that take long and rarely break, by the names that pytest gives them."""
    lines = (Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line.split(maxsplit=1)[1] for line in lines if line and line[0] != "#")


@pytest.fixture
def manifest() -> Manifest:
    """A manifest of one part, without files."""
    return small_manifest()


def small_manifest() -> Manifest:
    """A manifest of one part, without files."""
    spec = PartSpec(
        name="vision",
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, 28, 28)),),
        outputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 4)),),
    )
    step = StepResult(
        name="export",
        part="vision",
        seconds=1.5,
        bytes=3,
        peak_gib=None,
        resumed=False,
        fidelity=({"tensor": "features", "max_abs": 0.0, "sqnr_db": "inf"},),
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        samforge="0.1.0",
        created="2026-01-31T12:00:00+00:00",
        family="sam3",
        model="tiny",
        reference="meta",
        recipe={"model": "tiny", "parts": None},
        image=ImageSpec(size=28),
        text=TextSpec(context=32, pad_id=0, tokenizer="tokenizer/tokenizer.json", synthetic=False),
        target="onnxruntime",
        parts={
            "vision": PartEntry(
                spec=spec,
                artifact="parts/vision/vision.onnx",
                side_files=("parts/vision/vision.onnx.data",),
            )
        },
        files={},
        parents={"checkpoint": "0" * 64},
        versions={"python": "3.11.7"},
        steps=(step,),
        gates={"export_max_abs": 0.0},
        weights_license="Apache-2.0",
    )


@pytest.fixture
def bundle_files() -> dict[str, bytes]:
    """Content of the files that the manifest's part and text need."""
    return {
        "parts/vision/vision.onnx": b"onnx",
        "parts/vision/vision.onnx.data": bytes(range(256)),
        "tokenizer/tokenizer.json": b"{}",
    }


@pytest.fixture(scope="session")
def one_thread() -> None:
    """At these sizes two threads of torch are no faster than one, and far slower on a busy host."""
    import torch

    torch.set_num_threads(1)
    quicken()


@pytest.fixture(autouse=True)
def quick_torch() -> None:
    """Where torch is in use, whoever imported it."""
    if "torch" in sys.modules:
        quicken()


@pytest.fixture(scope="session")
def shared_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of one run share (pytest-xdist)."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if hasattr(request.config, "workerinput") else folder) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or folder unless another process of the run has; the others wait for it."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(one_thread: None, shared_folder: Path) -> samforge.Bundle:
    """The tiny model's bundle, built once (minutes): read it, copy it, never change it.

    In this process: another is at work beside it, and fresh ones would import torch again.
    """
    keep = _KeepSteps(shared_folder)
    return samforge.open_bundle(
        _once(
            shared_folder / "tiny",
            lambda path: samforge.build("tiny", out=path, progress=keep),
        )
    )


@pytest.fixture(scope="session")
def tracked_bundle(one_thread: None, shared_folder: Path) -> samforge.Bundle:
    """The tiny model with its tracker, built once (minutes): read it, copy it, never change it.

    Without ``detector_boxes``: the parts that clicks, phrases and tracks need.
    """
    from samforge.core.capabilities import TRACK

    return samforge.open_bundle(
        _once(
            shared_folder / "tracked",
            lambda path: samforge.build("tiny", tracker=True, parts=TRACK.parts, out=path),
        )
    )


class _KeepSteps:
    """Copies the working folder of ``tiny`` after its last step: ``torch`` can resume from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended = 0
        self.total = 0

    def started(self, step: str, part: str, index: int, total: int) -> None:
        self.total = total

    def finished(self, result: StepResult) -> None:
        self.ended += 1
        if self.ended == self.total:
            shutil.copytree(self.folder / ".tiny.building", self.folder / ".torch.building")


@pytest.fixture(scope="session")
def tiny_torch_bundle(shared_folder: Path, tiny_bundle: samforge.Bundle) -> samforge.Bundle:
    """The same, stopped after the export: its steps are taken over from the other build."""
    return samforge.open_bundle(
        _once(
            shared_folder / "torch", lambda path: samforge.build("tiny", until="export", out=path)
        )
    )


@pytest.fixture
def bundle_copy(tiny_bundle: samforge.Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "copy"))


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Reads every file below a folder, to show that a failure changed none."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def roi_align_by_definition() -> Callable[..., Any]:
    """``torchvision.ops.roi_align(aligned=False, sampling_ratio=-1)`` in plain loops.

    From torchvision's ``csrc/ops/cpu/roi_align_kernel.cpp``, in the boxes' own precision: samples
    on the very border count or not by their last bit. torchvision itself is not installed.
    """
    import torch

    def sample(feature: Any, y: float, x: float) -> Any:
        height, width = feature.shape[-2:]
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros_like(feature[:, 0, 0])
        y, x = min(max(float(y), 0), height - 1), min(max(float(x), 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        down, across = y - top, x - left
        return (
            feature[:, top, left] * ((1 - down) * (1 - across))
            + feature[:, top, right] * ((1 - down) * across)
            + feature[:, bottom, left] * (down * (1 - across))
            + feature[:, bottom, right] * (down * across)
        )

    def pool(feature: Any, box: Any, bins: int) -> Any:
        left, top = box[:2]
        one = box.dtype.type(1)
        width, height = max(box[2] - left, one) / bins, max(box[3] - top, one) / bins
        columns, rows = math.ceil(width), math.ceil(height)
        pooled = torch.zeros(len(feature), bins, bins, dtype=feature.dtype)
        for bin_y, bin_x, row, column in product(
            range(bins), range(bins), range(rows), range(columns)
        ):
            y = top + bin_y * height + (row + 0.5) * height / rows
            x = left + bin_x * width + (column + 0.5) * width / columns
            pooled[:, bin_y, bin_x] += sample(feature, y, x)
        return pooled / (rows * columns)

    def roi_align(features: Any, boxes: Sequence[Any], output_size: int) -> Any:
        return torch.stack(
            [
                pool(feature, box, output_size)
                for feature, own in zip(features, boxes, strict=True)
                for box in own.numpy()
            ]
        )

    return roi_align


@pytest.fixture(scope="session")
def small_config() -> Callable[..., Any]:
    """Makes SAM 3's real structure at a thousandth of its size: patch 14, scales 4, 2, 1, 1/2."""

    def make(image_size: int = 112, width: int = 32) -> Any:
        from transformers import Sam3Config

        detr = {"hidden_size": width, "num_layers": 2, "num_attention_heads": 4}
        detr |= {"intermediate_size": 64, "dropout": 0.0}
        return Sam3Config(
            vision_config={
                "fpn_hidden_size": width,
                "backbone_config": {
                    "model_type": "sam3_vit_model",
                    "hidden_size": 64,
                    "intermediate_size": 96,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": image_size,
                    "pretrain_image_size": 70,  # 5 x 5 positions, tiled over 8 x 8 tokens
                    "window_size": 3,  # does not divide 8: windows are padded, as at 924 pixels
                    "global_attn_indexes": [1],
                },
            },
            text_config={
                "model_type": "clip_text_model",
                "vocab_size": 300,
                "hidden_size": 48,
                "intermediate_size": 64,
                "projection_dim": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 12,
                "hidden_act": "gelu",
                "bos_token_id": 298,
                "eos_token_id": 299,
                "pad_token_id": 299,
            },
            geometry_encoder_config=detr | {"roi_size": 3},
            detr_encoder_config=dict(detr),
            detr_decoder_config=detr | {"num_queries": 10},
            mask_decoder_config={"hidden_size": width, "num_attention_heads": 4, "dropout": 0.0},
        )

    return make


@pytest.fixture(scope="session")
def small_folder(small_config: Callable[..., Any], shared_folder: Path) -> Path:
    """A checkpoint as transformers saves it, with random weights of ordinary size: read only."""
    return _once(shared_folder / "small", lambda folder: _save_small(small_config(), folder))


def _save_small(config: Any, folder: Path) -> None:
    from transformers import Sam3Model

    from samforge.models.sam3.byte_tokenizer import byte_tokenizer

    model = Sam3Model(config)
    _enliven(model)
    model.save_pretrained(folder)
    byte_tokenizer(300).save(str(folder / "tokenizer.json"))


def _enliven(model: Any) -> None:
    """Draw weights of ordinary size."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh weights are so small that every answer is nearly zero, and all of those agree.
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + ("norm" in name and name.endswith(".weight")))


@pytest.fixture(scope="session")
def checkpoint(one_thread: None, small_folder: Path) -> Callable[..., Any]:
    """The checkpoint ``small`` or ``tiny``, held to Meta's code or to transformers."""
    from samforge.models.sam3.loading import checkpoint_from_name

    places = {"small": str(small_folder), "tiny": "tiny"}
    return lru_cache(
        lambda name, reference="meta": checkpoint_from_name(places[name], reference=reference)
    )


@pytest.fixture(scope="session")
def stock_model(checkpoint: Callable[..., Any]) -> Callable[[str], Any]:
    """transformers' own model with the weights of ``small`` or ``tiny``."""
    from transformers import Sam3Model

    @lru_cache
    def make(name: str) -> Any:
        own = checkpoint(name, "transformers")
        source = own.source
        model = Sam3Model(own.config).eval().requires_grad_(False)
        model.load_state_dict({key: source.tensor(key).float() for key in source.names()})
        return model

    return make


@pytest.fixture(scope="session")
def part(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A part of ``small`` or ``tiny``."""
    from samforge.models.sam3.parts import part_from_checkpoint

    return lru_cache(
        lambda name, model="small", reference="meta": part_from_checkpoint(
            checkpoint(model, reference), name
        )
    )


@pytest.fixture(scope="session")
def example(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Random inputs of a part, with dynamic axes of the given sizes."""
    from samforge.models.part import example_inputs
    from samforge.models.sam3.parts import part_inputs

    def make(
        name: str,
        sizes: dict[str, int],
        *,
        model: str = "small",
        reference: str = "meta",
        seed: int = 0,
    ) -> Any:
        own = checkpoint(model, reference)
        return example_inputs(
            part_inputs(own.config, name, reference),
            sizes,
            vocabulary=own.config.text_config.vocab_size,
            eos_id=own.eos_id,
            seed=seed,
        )

    return make


@pytest.fixture(scope="session")
def exported_file(
    part: Callable[..., Any], example: Callable[..., Any], shared_folder: Path
) -> Callable[[str], Path]:
    """The ``.pt2`` of a part of ``small``: some seconds each, once."""
    from samforge.transform.export import TRACED_SIZES, exported_from_part, save_exported

    def make(name: str) -> Path:
        return _once(
            shared_folder / f"{name}.pt2",
            lambda path: save_exported(
                exported_from_part(part(name), example(name, TRACED_SIZES)), path
            ),
        )

    return lru_cache(make)


@pytest.fixture(scope="session")
def onnx_file(
    part: Callable[..., Any], exported_file: Callable[[str], Path]
) -> Callable[[str], Path]:
    """The ``.onnx`` of a part of ``small``: some ten seconds each, once."""
    from samforge.transform.export import exported_from_file
    from samforge.transform.onnx.convert import onnx_from_exported, save_onnx

    def convert(name: str, path: Path) -> None:
        model = onnx_from_exported(exported_from_file(exported_file(name)), part(name).spec)
        save_onnx(model, path)

    def make(name: str) -> Path:
        path = exported_file(name).with_suffix(".onnx")
        return _once(path, lambda path: convert(name, path))

    return lru_cache(make)
