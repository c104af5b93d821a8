"""What a quantized bundle of the tiny model must keep, on a thousand scenes it has never seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

import samforge
from samforge.measure import SegmenterAccuracy, measure_segmenter
from samforge.models import tiny

SCENES = 1000
CGF1_DROP = 0.01
MASK_IOU = 0.98
AGREEMENT = 0.98
"""F1 of the objects against fp32's: one in fifty may change. The gate of a build has 0.95, because
a user's images may be few and hard."""

Answers = dict[tuple[int, int], samforge.Detections]
Reference = tuple[SegmenterAccuracy, Answers]


def recorded(bundle: samforge.Bundle | Path, scenes: int = SCENES) -> Reference:
    """What fp32 answers, to be compared with any number of bundles."""
    answers: Answers = {}
    accuracy = measure_segmenter(
        samforge.load(bundle), tiny.labelled_scenes(scenes), record=answers
    )
    return accuracy, answers


def floors(
    bundle: samforge.Bundle | Path, reference: Reference, scenes: int = SCENES
) -> SegmenterAccuracy:
    """Assert that a bundle of the tiny model keeps what fp32 finds.

    Args:
        bundle: int8 or fp8, of the model as it is or stressed.
        reference: ``recorded`` of fp32 on the same scenes.
        scenes: How many.

    Returns:
        Its figures, for what else a test has to say.
    """
    wanted, answers = reference
    found = measure_segmenter(
        samforge.load(bundle), tiny.labelled_scenes(scenes), reference=answers
    )
    assert wanted.images == found.images == scenes
    assert wanted.cgf1 is not None
    assert found.cgf1 is not None
    assert wanted.cgf1.mcc_defined, "present and absent phrases are asked"
    assert found.fidelity is not None
    assert found.fidelity.questions == 4 * scenes
    assert wanted.cgf1.cgf1 - found.cgf1.cgf1 <= CGF1_DROP
    assert found.fidelity.mask_iou is not None
    assert found.fidelity.mask_iou >= MASK_IOU
    assert found.fidelity.agreement is not None
    assert found.fidelity.agreement >= AGREEMENT
    return found


@pytest.fixture(scope="module")
def fp32(tiny_bundle: samforge.Bundle) -> Reference:
    return recorded(tiny_bundle)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], samforge.Bundle]:
    """Builds a bundle of the tiny model."""
    folder = tmp_path_factory.mktemp("quantized")

    @lru_cache
    def make(precision: str, target: str) -> samforge.Bundle:
        out = folder / f"{precision}-{target}"
        return samforge.build("tiny", precision=precision, target=target, out=out)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "target"), [("int8", "onnxruntime"), ("fp8", "torch")])
def test_quantized_bundles_keep_what_fp32_finds(
    precision: str,
    target: str,
    fp32: Reference,
    quantized: Callable[[str, str], samforge.Bundle],
) -> None:
    floors(quantized(precision, target), fp32)


def test_the_floors_hold_for_fp32_itself(tiny_bundle: samforge.Bundle) -> None:
    found = floors(tiny_bundle, recorded(tiny_bundle, 3), 3)
    assert found.fidelity is not None
    assert (found.fidelity.mask_iou, found.fidelity.best_score_shift_max) == (1.0, 0.0)
