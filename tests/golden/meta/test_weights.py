"""The checkpoint is the one that Meta's code ran with: drawn from the names, and checked."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from tests.golden.meta.arrays import BOX_CASES, FILE, TEXT_CASES, Arrays
from tools import meta_weights

README = Path(__file__).with_name("README.md").read_text()


def test_one_tensor_by_its_known_value() -> None:
    found = meta_weights.tensor("detector.dot_prod_scoring.hs_proj.bias", (3,))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([0.0140893, 0.06510519, -0.05869088], rel=1e-6)


def test_the_draw_is_nearly_normal() -> None:
    found = meta_weights.normal("anything", (400, 500))
    assert abs(found.mean()) < 0.01
    assert abs(found.var() - 1) < 0.01
    assert 3 < np.abs(found).max() <= 3.47


def test_all_tensors_by_their_hash(arrays: Arrays, layout: dict[str, list[int]]) -> None:
    tensors = {name: meta_weights.tensor(name, shape) for name, shape in layout.items()}
    assert len(tensors) == 338
    assert sum(tensor.size for tensor in tensors.values()) == 4_674_398
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].astype("<f4").tobytes())
    assert digest.digest() == arrays["weights_sha256"].tobytes()
    assert arrays["weights_sha256"].tobytes().hex() in README


def test_the_file_is_the_one_of_the_page() -> None:
    assert re.search(rf"`{hashlib.sha256(FILE.read_bytes()).hexdigest()}`", README)


def test_every_case_of_the_file_is_asked(arrays: Arrays) -> None:
    cases = {name.removesuffix("/pred_logits") for name in arrays if name.endswith("/pred_logits")}
    others = {"batch", "at252/text_bus", "at252/boxes_mixed"}
    assert cases == {*TEXT_CASES, *BOX_CASES} | others
