"""Bundles as models of Triton: what is written, what is left alone, and what a model answers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_triton
import numpy as np
import pytest
from fake_triton import Request, arguments_of, config_of, texts
from made_up import reseal
from served import png

import samforge
from samforge.apps import cli
from samforge.apps.triton import TritonBundle
from samforge.apps.triton.model import served_from_arguments
from samforge.core import placing
from samforge.core.errors import BundleError, DamagedBundle, OutputError, SettingError
from samforge.formats import TENSORS_IN, TENSORS_OUT
from samforge.models import tiny
from samforge.workflows import triton_folder
from samforge.workflows.export_triton import TritonOptions, export_triton

SCENE = tiny.draw_scene(11, split="demo").image
PHRASES = ["red circle", "star"]


@pytest.fixture(scope="module")
def root(proven_bundle: Callable[..., Path]) -> Path:
    return proven_bundle("shapes")


@pytest.fixture(scope="module")
def model(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What the written model.py makes of the written config.pbtxt."""
    out = tmp_path_factory.mktemp("triton")
    export = export_triton(root, out, TritonOptions(threads=1))
    served = model_of(export.model / "1" / "model.py")
    served.initialize(arguments_of(export.model))
    yield served
    served.finalize()


def model_of(path: Path) -> Any:
    """The class of a model.py, which imports Triton's module."""
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", fake_triton)
        spec.loader.exec_module(module)
    return module.TritonPythonModel()


def ask(model: Any, **arrays: Any) -> Any:
    (answer,) = model.execute([Request(arrays)])
    return answer


def test_the_repository(root: Path, tmp_path: Path) -> None:
    export = samforge.export_triton(
        root, tmp_path / "models", TritonOptions(instances=2, threads=3, response_cache=True)
    )
    bundle = samforge.open_bundle(root)
    assert (export.name, export.kind, export.digest) == ("shapes", "KIND_CPU", bundle.digest)
    assert export.model == tmp_path / "models" / "shapes"
    assert samforge.open_bundle(export.bundle, digest=bundle.digest).root == export.bundle
    assert set(export.files) == {one for one in export.model.rglob("*") if one.is_file()}
    config = config_of(export.model / "config.pbtxt")
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("shapes", "python", 0)
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert config["response_cache"] == {"enable": True}
    assert {key: one["string_value"] for key, one in config["parameters"].items()} == {
        "bundle": "bundle",
        "digest": bundle.digest,
        "samforge": samforge.__version__,
        "threads": "3",
    }
    for forms, written in ((TENSORS_IN, config["input"]), (TENSORS_OUT, config["output"])):
        assert [(one["name"], tuple(one["dims"])) for one in written] == [
            (form.name, form.shape) for form in forms
        ]
        assert [one["data_type"].removeprefix("TYPE_") for one in written] == [
            form.datatype.replace("BYTES", "STRING") for form in forms
        ]
    assert all(one["optional"] for one in config["input"])
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["shapes"]


def test_a_link_holds_no_copy(root: Path, tmp_path: Path) -> None:
    export = export_triton(root, tmp_path, TritonOptions(name="by-link", link=True))
    assert export.bundle == root
    assert not (export.model / "1" / "bundle").exists()
    served = served_from_arguments(arguments_of(export.model))
    assert (served.path, served.digests) == (root, (export.digest,))


def test_the_notice_of_the_weights_goes_along(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "noticed"))
    (copy / "LICENSE-weights.txt").write_text("Apache-2.0, say\n")
    manifest = samforge.open_bundle(root).manifest
    reseal(copy, replace(manifest, weights_license="LICENSE-weights.txt"))
    for link in (False, True):
        export = export_triton(copy, tmp_path / str(link), TritonOptions(link=link))
        assert (export.model / "LICENSE-weights.txt").read_text() == "Apache-2.0, say\n"


@pytest.mark.parametrize(
    ("target", "devices", "group"),
    [
        ("onnxruntime", ("cpu",), {"count": 1, "kind": "KIND_CPU"}),
        ("tensorrt", ("auto",), {"count": 1, "kind": "KIND_GPU"}),
        ("tensorrt", ("cuda",), {"count": 1, "kind": "KIND_GPU"}),
        (
            "tensorrt",
            ("cuda:0", "cuda:2"),
            {"count": 1, "kind": "KIND_GPU", "gpus": [0, 2]},
        ),
    ],
)
def test_where_instances_run(
    root: Path, tmp_path: Path, target: str, devices: tuple[str, ...], group: dict[str, Any]
) -> None:
    bundle = samforge.open_bundle(root)
    other = replace(bundle, manifest=replace(bundle.manifest, target=target))
    export = export_triton(other, tmp_path, TritonOptions(devices=devices, link=True))
    assert config_of(export.model / "config.pbtxt")["instance_group"] == [group]
    kind = group["kind"].removeprefix("KIND_")
    served = served_from_arguments(arguments_of(export.model, kind, 2))
    assert served.devices == (("cuda:2",) if kind == "GPU" else ("cpu",))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "../up"},
        {"name": ""},
        {"name": ".hidden"},
        {"instances": 0},
        {"threads": 0},
        {"devices": ()},
        {"devices": ("cpu", "cuda:0")},
        {"devices": ("cuda", "cuda:1")},
        {"devices": ("tpu",)},
    ],
)
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        TritonOptions(**options)


def test_a_device_that_the_runtime_has_not(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="onnxruntime runs on the processor"):
        export_triton(root, tmp_path / "out", TritonOptions(devices=("cuda",)))
    assert not (tmp_path / "out").exists()


def test_another_export_replaces_it(
    root: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").write_text("of somebody")
    first = export_triton(root, tmp_path)
    (first.model / "1" / "__pycache__").mkdir()
    (first.model / "1" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"compiled")
    second = export_triton(root, tmp_path, TritonOptions(link=True, threads=2))
    assert second.model == first.model
    files = snapshot(tmp_path)
    assert files["other/config.pbtxt"] == b"of somebody"
    assert {name for name in files if name.startswith("shapes/")} == {
        *("shapes/config.pbtxt", "shapes/1/model.py", "shapes/samforge.json"),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "shapes"]


def test_without_an_exchange_of_folders(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "exchange", lambda one, other: False)
    export_triton(root, tmp_path)
    export = export_triton(root, tmp_path, TritonOptions(link=True))
    assert not (export.model / "1" / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_an_earlier_export_is_back_where_the_new_one_cannot_take_its_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "exchange", lambda one, other: False)
    export = export_triton(root, tmp_path / "models")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == export.model and (self / "config.pbtxt").read_text().count("threads"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OutputError, match="Input/output error"):
            export_triton(root, tmp_path / "models", TritonOptions(threads=2))
    assert samforge.open_bundle(export.bundle).digest == export.digest
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_model_is_on_the_disk_before_it_takes_its_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    write = placing._sync_tree

    def watched(folder: Path) -> None:
        seen.append((folder / "config.pbtxt").is_file() and not (tmp_path / "shapes").exists())
        write(folder)

    monkeypatch.setattr(placing, "_sync_tree", watched)
    export_triton(root, tmp_path, TritonOptions(link=True))
    assert seen == [True]


@pytest.mark.parametrize("strange", ["notes.txt", "2/model.py", "1/bundle/x.onnx", "config.pbtxt"])
def test_files_of_others_are_left_alone(
    root: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]], strange: str
) -> None:
    export = export_triton(root, tmp_path)
    (export.model / strange).parent.mkdir(exist_ok=True)
    (export.model / strange).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=strange.replace(".", r"\.")):
        export_triton(root, tmp_path)
    assert snapshot(tmp_path) == before


def test_a_file_that_comes_at_the_last_moment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = export_triton(root, tmp_path)
    really = placing.exchange

    def exchange(one: Path, other: Path) -> bool:
        (other / "late.txt").write_text("mine")
        return really(one, other)

    monkeypatch.setattr(placing, "exchange", exchange)
    with pytest.raises(OutputError, match=r"late\.txt"):
        export_triton(root, tmp_path, TritonOptions(link=True))
    assert (export.model / "late.txt").read_text() == "mine"
    assert samforge.open_bundle(export.bundle).digest == export.digest
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("closed", [False, True])
def test_half_a_model_is_never_in_the_repository(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """Triton takes every folder in it for a model, hidden ones too."""
    out, seen = tmp_path / "models", []

    def put(staged: Path, model: Path, **_: object) -> None:
        seen.append(staged.parent)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_folder, "place_folder", put)
    monkeypatch.setattr(triton_folder.os, "access", lambda path, mode: not closed)
    with pytest.raises(OutputError, match="No space is left"):
        export_triton(root, out)
    assert seen == [out if closed else tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert list(out.iterdir()) == []


def test_places_that_are_taken(root: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "config.pbtxt").write_text("mine")
    with pytest.raises(OutputError, match=r"no samforge\.json"):
        export_triton(root, tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="no folder of a model"):
        export_triton(root, tmp_path, TritonOptions(name="file"))
    with pytest.raises(OutputError, match="lies in the bundle"):
        export_triton(root, root / "models")
    with pytest.raises(DamagedBundle):
        export_triton(root, tmp_path, digest="0" * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "shapes"]


def test_a_model_answers_as_the_library(model: Any, root: Path) -> None:
    with samforge.load(root, threads=1) as segmenter:
        text = segmenter.predict(SCENE, text=PHRASES, threshold=0.3)
        boxes = segmenter.predict(SCENE, boxes_xyxy=[[20, 20, 90, 90]], threshold=0.3)
    assert len(text) > 0
    file = np.empty(1, object)
    file[0] = png(SCENE)
    threshold = np.array([0.3], np.float32)
    for picture in ({"image": SCENE}, {"image_bytes": file}):
        found = ask(model, prompts=texts(*PHRASES), threshold=threshold, **picture)
        assert found.error is None
        same(found.arrays, text)
    box = np.array([[20, 20, 90, 90]], np.float32)
    same(ask(model, image=SCENE, boxes=box, threshold=threshold).arrays, boxes)


def same(arrays: dict[str, Any], found: samforge.Detections) -> None:
    assert list(arrays) == ["boxes", "scores", "phrase", "rle", "best_scores", "size_hw"]
    assert [one.decode() for one in arrays["rle"]] == [
        found.masks.rle(index)["counts"] for index in range(len(found))
    ]
    assert arrays["scores"].tolist() == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert arrays["boxes"] == pytest.approx(found.boxes_xyxy, abs=1e-3)
    labels = list(found.best_scores)
    assert [labels[number] for number in arrays["phrase"]] == list(found.labels)
    assert arrays["size_hw"].tolist() == list(found.size_hw)


def test_what_goes_wrong_with_one_is_its_own(model: Any) -> None:
    good = Request({"image": SCENE, "prompts": texts("star")}, outputs=["scores"])
    answers = model.execute(
        [
            good,
            Request({"prompts": texts("star")}),
            Request({"image": SCENE, "prompts": texts("")}),
            Request({"image": SCENE}),
            Request({"image_bytes": texts("x"), "prompts": texts("star")}),
            Request({"image": SCENE[:, :, :2], "prompts": texts("star")}),
            Request({"image": SCENE, "prompts": texts("star"), "threshold": np.array([3.0])}),
            Request({"image": SCENE, "prompts": texts(*["star"] * 99)}),
            Request({"image": SCENE, "prompts": texts("star")}, timeout=1),
            good,
        ]
    )
    codes = [None if one.error is None else one.error.code for one in answers]
    assert codes == [None, *["invalid"] * 7, "unavailable", None]
    assert "Give one picture" in answers[1].error.message
    assert list(answers[0].arrays) == ["scores"]


def test_a_request_that_is_cancelled_is_left(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from samforge.apps.triton import model as module

    monkeypatch.setattr(module, "wait", lambda futures, seconds: type("No", (), {"done": ()}))
    request = Request({"image": SCENE, "prompts": texts("left")}, cancelled=True)
    (answer,) = model.execute([request])
    assert answer.error.code == "gone"


def test_what_nobody_foresaw_fails_one_request(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from samforge.apps.triton import model as module

    def broken(request: Any, ticket: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "_waited", broken)
    answer = ask(model, image=SCENE, prompts=texts("star"))
    assert answer.error.code == "internal"


def test_a_bundle_that_does_not_hold_its_proof_is_not_served(
    proven_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    export = export_triton(proven_bundle("broken", broken=True), tmp_path)
    with pytest.raises(BundleError, match="is not served"):
        TritonBundle.from_arguments(arguments_of(export.model), fake_triton)
    arguments = arguments_of(export.model)
    config = json.loads(arguments["model_config"])
    config["parameters"]["digest"]["string_value"] = "0" * 64
    with pytest.raises(DamagedBundle, match="none of the bundles"):
        TritonBundle.from_arguments(arguments | {"model_config": json.dumps(config)}, fake_triton)


def test_a_backend_for_numpy_1_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end at the first text: the stub asks for numpy's functions by their old name."""
    export = export_triton(root, tmp_path, TritonOptions(link=True))

    class Old(fake_triton.Tensor):
        def __init__(self, name: str, array: Any) -> None:
            super().__init__(name, array)
            monkeypatch.setitem(sys.modules, "numpy.core.multiarray", ModuleType("old"))

    monkeypatch.delitem(sys.modules, "numpy.core.multiarray", raising=False)
    utils = type("Utils", (), {"Tensor": Old})
    with pytest.raises(SettingError, match="built for numpy 1"):
        TritonBundle.from_arguments(arguments_of(export.model), utils)


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export-triton", str(root), "--out", str(tmp_path), "--name", "by-cli", "--link"]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["export"]
    assert (told["name"], told["kind"]) == ("by-cli", "KIND_CPU")
    assert Path(told["model"], "config.pbtxt").is_file()
    assert cli.main(words) == 0
    assert "Wrote the model by-cli" in capsys.readouterr().out
    assert cli.main([*words, "--device", "cuda"]) == 2
