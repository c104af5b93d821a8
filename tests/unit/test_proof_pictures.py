"""Pictures that a bundle carries: the segmenter that users load is held to what fp32 found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import samforge
from samforge.apps import cli
from samforge.core.errors import DamagedBundle, FidelityError
from samforge.core.images import ImageSpec
from samforge.core.labelled import LabelledImage, Question
from samforge.core.manifest import PICTURES_NAME, Manifest, manifest_text, sealed
from samforge.measure.proof_pictures import proof_pictures_from_file, write_proof_pictures
from samforge.models.tiny.scenes import draw_scene
from samforge.steps.verify import PROOF_SIDE, smaller


@pytest.fixture
def bundle(tiny_bundle: samforge.Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle"))


def changed(bundle: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """The bundle with another manifest, whole in itself."""
    manifest = sealed(change(samforge.open_bundle(bundle).manifest))
    (bundle / "manifest.json").write_text(manifest_text(manifest), encoding="utf-8")
    return bundle


def test_what_users_load_is_held_to_fp32(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = samforge.open_bundle(bundle)
    found = samforge.verify(bundle, device="cpu")
    assert found.tensors == ()  # of a bundle that runs where it was built
    assert found.evidence is not None
    assert found.evidence.images == 2
    assert found.evidence.objects >= 4
    assert found.gates["mask_iou"][0] > 0.999
    assert found.gates["agreement"] == (1.0, 0.95)
    assert found.processor.startswith("CPU")
    assert found.recorded
    assert found.digest != before.digest
    (step,) = (one for one in samforge.open_bundle(bundle).manifest.steps if "here" in one.name)
    assert step.gates["mask_iou"] == found.gates["mask_iou"][1]
    assert cli.main(["verify", str(bundle)]) == 0
    printed = capsys.readouterr().out
    assert "Found in 2 pictures, against fp32" in printed
    assert "every gate holds" in printed


def test_another_way_to_the_masks_is_seen(bundle: Path) -> None:
    """No tensor of a part differs: what is wrong lies before the first and behind the last."""
    dark = ImageSpec(size=224, mean=(0.1, 0.1, 0.1))
    changed(bundle, lambda manifest: replace(manifest, image=dark))
    with pytest.raises(FidelityError, match="does not hold its gates"):
        samforge.verify(bundle)


def test_masks_of_another_reference_are_seen(bundle: Path) -> None:
    changed(
        bundle,
        lambda manifest: replace(
            manifest,
            reference="transformers",
            recipe={**manifest.recipe, "reference": "transformers"},
        ),
    )
    with pytest.raises((FidelityError, DamagedBundle)):
        samforge.verify(bundle)


def test_a_proof_that_is_none(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / PICTURES_NAME
    path.write_bytes(b"PK" + path.read_bytes()[2:100])
    assert cli.main(["verify", str(bundle), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "DamagedBundle"
    with pytest.raises(DamagedBundle, match=r"cannot be read as a proof: .* Build again\."):
        proof_pictures_from_file(path)


def test_questions_come_back_as_they_were(tmp_path: Path, tiny_bundle: samforge.Bundle) -> None:
    proof = proof_pictures_from_file(tiny_bundle.path(PICTURES_NAME))
    write_proof_pictures(tmp_path / "again.npz", proof.images, proof.answers)
    again = proof_pictures_from_file(tmp_path / "again.npz")
    assert [image.name for image in again.images] == [image.name for image in proof.images]
    assert again.answers.keys() == proof.answers.keys()
    kinds = set()
    for one, other in zip(again.images, proof.images, strict=True):
        assert np.array_equal(one.image_rgb, other.image_rgb)
        for question, wanted in zip(one.questions, other.questions, strict=True):
            kinds.add(question.boxes_xyxy is None)
            assert question.text == wanted.text
            assert np.array_equal(np.asarray(question.masks), np.asarray(wanted.masks))
            if question.boxes_xyxy is not None:
                assert np.array_equal(question.boxes_xyxy, wanted.boxes_xyxy)
    assert kinds == {True, False}


def test_large_pictures_are_carried_small() -> None:
    scene = draw_scene(0).image
    small = LabelledImage(name="scene", image_rgb=scene, questions=())
    assert smaller(small) is small
    wide = np.zeros((1500, 4000, 3), np.uint8)
    box = np.array([[3000.0, 1400.0, 4000.0, 1500.0]], np.float32)
    asked = Question(
        text=None,
        boxes_xyxy=box,
        box_labels=np.ones(1, np.int64),
        masks=np.zeros((0, 1500, 4000), np.bool_),
    )
    image = smaller(LabelledImage(name="wide", image_rgb=wide, questions=(asked,)))
    assert image.image_rgb.shape == (375, 1000, 3)
    assert max(image.image_rgb.shape) <= PROOF_SIDE
    (question,) = image.questions
    assert question.boxes_xyxy is not None
    assert question.boxes_xyxy.tolist() == [[750, 350, 1000, 375]]
