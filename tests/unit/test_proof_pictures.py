"""Pictures that a bundle carries: the segmenter that users load is held to what fp32 found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samforge
from samforge.apps import cli
from samforge.core.errors import DamagedBundle, FidelityError
from samforge.core.labelled import LabelledImage, Question
from samforge.core.manifest import PICTURES_NAME
from samforge.measure.proof_pictures import proof_pictures_from_file, write_proof_pictures
from samforge.models.tiny.scenes import draw_scene
from samforge.runtime import Thresholds, host
from samforge.steps.verify import PROOF_SIDE, smaller


@pytest.fixture
def bundle(tiny_bundle: samforge.Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle"))


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


@pytest.mark.parametrize("where", ["before the first part", "behind the last"])
def test_another_way_to_the_masks_is_seen(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No tensor of a part differs: the segmenter's own work is wrong."""
    if where == "before the first part":
        own = host.image_bchw_from_rgb
        monkeypatch.setattr(
            host, "image_bchw_from_rgb", lambda rgb, spec: own(255 - rgb // 2, spec)
        )
    else:
        found = host.detections_from_raw

        def cut_off_elsewhere(raw: Any, *, thresholds: Thresholds, **others: Any) -> Any:
            return found(raw, thresholds=replace(thresholds, mask=0.999), **others)

        monkeypatch.setattr(host, "detections_from_raw", cut_off_elsewhere)
    before = samforge.open_bundle(bundle).digest
    with pytest.raises(FidelityError, match="does not hold its gates"):
        samforge.verify(bundle)
    assert samforge.open_bundle(bundle).digest == before


def test_a_narrow_terminal_has_room_for_what_verify_adds(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samforge.verify(bundle)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["inspect", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("detector_boxes" in line for line in lines[lines.index("Steps") :]) == 3


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
