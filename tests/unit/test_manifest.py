"""Manifests: they read back equal, and every bent one is refused with its reason."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import forged

from samforge.core.errors import BundleError, DamagedBundle, ForeignBundle
from samforge.core.manifest import (
    FileEntry,
    Manifest,
    check_relative,
    evidence_in_words,
    evidence_of,
    manifest_from_text,
    manifest_text,
    sealed,
)
from samforge.core.structure import json_from_value, value_from_json


@pytest.fixture
def whole(manifest: Manifest, bundle_files: dict[str, bytes]) -> Manifest:
    files = {
        path: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for path, content in bundle_files.items()
    }
    return replace(manifest, files=files)


def _table(manifest: Manifest) -> dict[str, Any]:
    table = json_from_value(manifest)
    assert isinstance(table, dict)
    return table


def test_reads_back_equal(whole: Manifest) -> None:
    assert manifest_from_text(manifest_text(whole), place="here") == sealed(whole)


def test_keys_are_the_documented_ones(whole: Manifest) -> None:
    assert list(_table(whole)) == [
        "schema_version",
        "samforge",
        "created",
        "family",
        "model",
        "reference",
        "recipe",
        "image",
        "text",
        "target",
        "parts",
        "files",
        "parents",
        "versions",
        "steps",
        "gates",
        "weights_license",
        "digest",
    ]


Bend = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("bend", "kind", "message"),
    [
        (lambda t: t.pop("schema_version"), ForeignBundle, "is not a samforge manifest"),
        (
            lambda t: t.update(schema_version=4),
            ForeignBundle,
            "schema version 4 .* reads 3. Install",
        ),
        (
            lambda t: t.update(schema_version=2, reference=t.pop("reference")),
            ForeignBundle,
            "schema version 2 .*what transformers' Sam3Model finds.*--reference transformers",
        ),
        (lambda t: t.pop("reference"), DamagedBundle, "the top level lacks reference"),
        (lambda t: t.update(reference="Meta"), DamagedBundle, "'Meta', and there are meta and tra"),
        (lambda t: t.update(schema_version="1"), ForeignBundle, "schema version '1'"),
        (lambda t: t.update(schema_version=True), ForeignBundle, "schema version True"),
        (lambda t: t.pop("gates"), DamagedBundle, "the top level lacks gates"),
        (lambda t: t.update(gate={}), DamagedBundle, r"unknown: 'gate' \(did you mean 'gates'\?\)"),
        (lambda t: t.update(model=3), DamagedBundle, "model wants a text, got 3"),
        (lambda t: t["image"].update(size="28"), DamagedBundle, "image.size wants a whole number"),
        (
            lambda t: t["image"].update(mean=[0.5]),
            DamagedBundle,
            "image.mean wants 3 values, got 1",
        ),
        (lambda t: t["image"].update(std=[0, 1, 1]), DamagedBundle, "std"),
        (lambda t: t["text"].pop("synthetic"), DamagedBundle, "text lacks synthetic"),
        (
            lambda t: t["steps"][0].update(bytes=1.5),
            DamagedBundle,
            r"steps\[0\].bytes wants a whole",
        ),
        (lambda t: t.update(text=None), None, ""),
        (
            lambda t: t["parts"]["vision"].update(artifact="parts/other.onnx"),
            DamagedBundle,
            "part vision needs 'parts/other.onnx', which is not among its files",
        ),
        (
            lambda t: t["files"]["tokenizer/tokenizer.json"].update(sha256="0" * 63),
            DamagedBundle,
            "hash or size of tokenizer/tokenizer.json",
        ),
    ],
)
def test_bent(whole: Manifest, bend: Bend, kind: type[BundleError] | None, message: str) -> None:
    table = _table(whole)
    bend(table)
    if kind is None:
        assert manifest_from_text(forged(table), place="here").text is None
        return
    with pytest.raises(kind, match=message):
        manifest_from_text(forged(table), place="here")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/passwd", "leaves the bundle"),
        ("../secret", "leaves the bundle"),
        ("parts/../../secret", "leaves the bundle"),
        ("C:/windows", "backslash or a colon"),
        ("parts\\vision", "backslash or a colon"),
        ("", "is empty"),
        ("a\0b", "cannot be printed"),
        ("./a", "shortest form"),
        ("a//b", "shortest form"),
        ("a/", "shortest form"),
    ],
)
def test_paths_that_may_not_stand_in_a_manifest(whole: Manifest, path: str, reason: str) -> None:
    table = _table(whole)
    table["files"][path] = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(DamagedBundle, match=reason):
        manifest_from_text(forged(table), place="here")


@given(st.text(max_size=30) | st.text(alphabet="a./\\:~ ", max_size=12))
def test_an_allowed_path_stays_inside(path: str) -> None:
    root = Path("/bundle")
    if check_relative(path) is None:
        inside = root.joinpath(path)
        assert inside.resolve().is_relative_to(root)
        assert inside != root
        assert inside.relative_to(root).as_posix() == path


@given(
    st.lists(
        st.text(alphabet="abcXYZ0189_-.", min_size=1, max_size=8).filter(lambda t: t.strip(".")),
        min_size=1,
        max_size=4,
    )
)
def test_ordinary_paths_are_allowed(parts: list[str]) -> None:
    assert check_relative("/".join(parts)) is None


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ufeff{}"])
def test_not_json(text: str) -> None:
    with pytest.raises(DamagedBundle, match="is not valid JSON"):
        manifest_from_text(text, place="here")


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"schema_version": 1}'])
def test_not_a_manifest(text: str) -> None:
    with pytest.raises(ForeignBundle, match="is not a samforge manifest"):
        manifest_from_text(text, place="here")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Number:
    value: float


@given(st.floats())
def test_every_float_survives_json(value: float) -> None:
    text = json.dumps(json_from_value(_Number(value=value)), allow_nan=False)
    back = value_from_json(_Number, json.loads(text)).value
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_a_manifest_says_what_its_gates_rest_on(manifest: Manifest) -> None:
    assert evidence_of(manifest) is None
    assert evidence_in_words(manifest) == ""
    row = {
        "images": 32,
        "questions": 359,
        "objects": 634,
        "present": 153,
        "absent": 142,
        "made_up": 1,
        "mask_iou": 0.99,
        "intervals": {"mask_iou": [0.98, 0.995]},
        "weak_evidence": True,
    }
    step = replace(manifest.steps[0], name="verify", part=None, fidelity=(row,))
    with_it = replace(manifest, steps=(*manifest.steps, step))
    found = evidence_of(with_it)
    assert found == {key: value for key, value in row.items() if key != "mask_iou"}
    assert evidence_in_words(with_it) == (
        "WEAK EVIDENCE: 32 pictures, 359 questions, 634 objects, 153 phrases present and 142 absent"
    )
