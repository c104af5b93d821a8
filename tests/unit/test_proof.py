"""A bundle's proof, and ``samforge verify`` that runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_up import reseal, stamp

import samforge
from samforge.apps import cli
from samforge.backends import backend_from_name
from samforge.core.axes import ONE_OF_EACH
from samforge.core.capabilities import MEMORY_ATTENTION, TRACK
from samforge.core.errors import DamagedBundle, FidelityError
from samforge.core.manifest import Manifest, PartEntry
from samforge.core.recipe import Gates, Recipe
from samforge.core.session import Array, PartSpec, Session, Tensors, TensorSpec
from samforge.measure import (
    PROOF_NAME,
    check_proof,
    proof_inputs,
    proven_tensors,
    write_proof,
)
from samforge.measure.proof import MOST_ELEMENTS, kept_elements
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name
from samforge.steps.context import arrays

WIDE = 300
FIRST = PartSpec(
    name="first",
    inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", WIDE)),),
    outputs=(TensorSpec(name="features", dtype="float32", shape=("batch", WIDE)),),
)
SECOND = PartSpec(
    name="second",
    inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", WIDE)),),
    outputs=(TensorSpec(name="scores", dtype="float32", shape=("batch", WIDE)),),
)
GRAPHS = {
    "first": ("images", "features", "Tanh"),
    "second": ("features", "scores", "Sigmoid"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """A session that multiplies; a kernel that is wrong multiplies by something else."""

    spec: PartSpec
    factors: Array
    runtime: str = "test"
    processor: str = "CPU"

    def run(self, tensors: Tensors) -> dict[str, Array]:
        (given,), (made,) = self.spec.inputs, self.spec.outputs
        return {made.name: (tensors[given.name] * self.factors).astype("float32")}

    def close(self) -> None:
        """Nothing to free."""


def _sessions(first: float = 1.0, second: float = 1.0, sign: int = 1) -> Mapping[str, Session]:
    alternating = np.where(np.arange(WIDE) % 2, 1.0, float(sign))
    return {
        "first": Factors(spec=FIRST, factors=np.full(WIDE, first)),
        "second": Factors(spec=SECOND, factors=second * alternating),
    }


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(3).normal(size=(300, WIDE)).astype("float32")


def test_a_tracker_is_a_circle_and_proves_itself(tmp_path: Path) -> None:
    model = model_from_name("tiny", tracker=True)
    specs = [model.spec(part) for part in TRACK.parts]
    examples = {part: arrays(model.inputs(part, ONE_OF_EACH, 1)) for part in TRACK.parts}
    inputs = proof_inputs(specs, lambda part: examples[part])
    assert inputs["memory"] is examples[MEMORY_ATTENTION]["memory"]
    assert not {"conditioned", "class_token"} & set(inputs)
    sessions = {part: EagerSession(model.part(part)) for part in TRACK.parts}
    write_proof(tmp_path / "proof.npz", sessions, inputs)
    tensors = proven_tensors(tmp_path / "proof.npz", sessions)
    assert {one.part for one in tensors} == set(TRACK.parts)
    assert check_proof(tensors, "fp32") <= min(one.fidelity.cosine for one in tensors)


def test_the_reference_proves_itself(tmp_path: Path, images: Array) -> None:
    path = tmp_path / "verify/proof.npz"
    write_proof(path, _sessions(), {"images": images})
    found = proven_tensors(path, _sessions())
    assert [(one.part, one.fidelity.tensor) for one in found] == [
        ("first", "features"),
        ("second", "scores"),
    ]
    assert all(one.fidelity.max_abs == 0.0 for one in found)
    assert check_proof(found, "fp16") == 0.999
    assert check_proof(found, "int8") == 0.98


def test_an_error_in_one_part_shows_in_those_behind_it(tmp_path: Path, images: Array) -> None:
    path = tmp_path / "proof.npz"
    write_proof(path, _sessions(), {"images": images})
    found = proven_tensors(path, _sessions(first=1.5, sign=-1))
    assert found[0].fidelity.cosine == pytest.approx(1.0)
    assert found[0].fidelity.std_ratio == pytest.approx(1.5)
    assert abs(found[1].fidelity.cosine) < 0.05
    with pytest.raises(FidelityError, match=r"cosine of scores of second -?0\.0.*fp16 is 0\.999"):
        check_proof(found, "fp16")


def test_the_gate_of_the_recipe_counts(tmp_path: Path, images: Array) -> None:
    path = tmp_path / "proof.npz"
    write_proof(path, _sessions(), {"images": images})
    noisy = replace(_sessions()["second"], factors=1 + 0.1 * images[0])  # type: ignore[type-var]
    found = proven_tensors(path, {**_sessions(), "second": noisy})
    assert check_proof(found, "fp16", Gates(feature_cosine=0.9)) == 0.9
    with pytest.raises(FidelityError):
        check_proof(found, "fp16")


def test_large_outputs_are_sampled_evenly() -> None:
    array = np.arange(4 * MOST_ELEMENTS).reshape(4, -1)
    kept = kept_elements(array)
    assert kept.size == MOST_ELEMENTS
    assert (kept[0], kept[-1]) == (0, array.size - 1)
    assert set(np.diff(kept)) <= {4, 5}
    assert kept_elements(array[:1, :7]).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_proofs_that_cannot_be_used(tmp_path: Path, images: Array) -> None:
    path = tmp_path / "proof.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(DamagedBundle, match="cannot be read as a proof"):
        proven_tensors(path, _sessions())
    write_proof(path, {"first": _sessions()["first"]}, {"images": images})
    with pytest.raises(DamagedBundle, match="holds no reference for scores of second"):
        proven_tensors(path, _sessions())
    with pytest.raises(DamagedBundle, match="second takes features, which neither"):
        proven_tensors(path, {"second": _sessions()["second"]})


@pytest.fixture
def bundle(tmp_path: Path, manifest: Manifest, images: Array) -> Path:
    """A bundle of two one-operator ONNX graphs and its proof."""
    root = tmp_path / "bundle"
    entries, sessions = {}, {}
    for spec in (FIRST, SECOND):
        given, made, operator = GRAPHS[spec.name]
        text = (
            f'<ir_version: 10, opset_import: ["" : 20]> g (float[batch,{WIDE}] {given}) '
            f"=> (float[batch,{WIDE}] {made}) {{ {made} = {operator}({given}) }}"
        )
        artifact = f"parts/{spec.name}/{spec.name}.onnx"
        (root / artifact).parent.mkdir(parents=True)
        onnx.save(onnx.parser.parse_model(text), root / artifact)
        entries[spec.name] = PartEntry(spec=spec, artifact=artifact)
        sessions[spec.name] = backend_from_name("onnxruntime").session_from_artifact(
            root / artifact, spec
        )
    write_proof(root / PROOF_NAME, sessions, {"images": images[:2]})
    recipe = Recipe(model="tiny", precision="fp32").to_dict()
    manifest = replace(manifest, parts=entries, text=None, recipe=recipe)
    for name, entry in entries.items():
        stamp(root / entry.artifact, manifest, name, size=None)
    reseal(root, manifest)
    return root


def test_a_bundle_that_is_right_remembers_it(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert cli.main(["verify", str(bundle)]) == 0
        out = capsys.readouterr().out
        assert "onnxruntime fp32 against fp32" in out
        assert "Verified on CPU" in out
    manifest = samforge.open_bundle(bundle).manifest
    (step,) = (step for step in manifest.steps if step.name == "verify here")
    assert step.gates == {"feature_cosine": 0.9999}
    assert step.notes[0].startswith("Verified on CPU")
    assert [figure["tensor"] for figure in step.fidelity] == ["features", "scores"]


def test_a_bundle_that_is_wrong_here(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = samforge.open_bundle(bundle).manifest
    path = bundle / "parts/second/second.onnx"
    path.write_bytes(path.read_bytes().replace(b"Sigmoid", b"Softmax"))
    reseal(bundle, manifest)
    assert cli.main(["verify", str(bundle), "--json"]) == 7
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["error"]["kind"]) == (False, "FidelityError")
    assert "cosine of scores of second 0." in report["error"]["message"]
    assert samforge.open_bundle(bundle).manifest.steps == manifest.steps


def test_a_bundle_without_a_proof(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = samforge.open_bundle(bundle).manifest
    shutil.rmtree(bundle / "verify")
    reseal(bundle, manifest)
    assert cli.main(["verify", str(bundle)]) == 5
    assert "holds no verify/pictures.npz and no verify/proof.npz" in capsys.readouterr().err
