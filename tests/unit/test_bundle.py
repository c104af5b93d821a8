"""Opening bundles: the one that was built opens, every tampered one is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import forged

from samforge.core.bundle import Bundle, is_bundle, open_bundle
from samforge.core.errors import BundleError, DamagedBundle, ForeignBundle
from samforge.core.manifest import Manifest
from samforge.core.staging import Staging

DATA = "parts/vision/vision.onnx.data"


@pytest.fixture
def root(tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]) -> Path:
    """A published bundle."""
    with Staging.open(tmp_path / "bundle") as staging:
        for path, content in bundle_files.items():
            staging.path(path).write_bytes(content)
        return staging.publish(manifest, ["parts", "tokenizer"])


def test_opens_what_was_published(root: Path, bundle_files: dict[str, bytes]) -> None:
    bundle = open_bundle(root)
    assert bundle.root == root
    assert {path: bundle.path(path).read_bytes() for path in bundle.manifest.files} == bundle_files
    assert bundle.manifest.files[DATA].bytes == 256
    assert bundle.manifest.parts["vision"].side_files == (DATA,)
    assert bundle.manifest.steps[0].fidelity[0] == {
        "tensor": "features",
        "max_abs": 0.0,
        "sqnr_db": "inf",
    }


def test_opens_after_it_was_moved_and_through_a_link(root: Path, tmp_path: Path) -> None:
    moved = root.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(moved)
    assert open_bundle(tmp_path / "link").root == moved


def _flip(root: Path) -> None:
    content = bytearray((root / DATA).read_bytes())
    content[100] ^= 1
    (root / DATA).write_bytes(content)


def _escape_by_linked_folder(root: Path) -> None:
    outside = root.parent / "outside"
    shutil.move(root / "parts", outside)
    (root / "parts").symlink_to(outside)


def _list_outside(root: Path) -> None:
    table = json.loads((root / "manifest.json").read_text())
    table["files"]["../outside"] = {"sha256": "0" * 64, "bytes": 0}
    (root / "manifest.json").write_text(forged(table))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_flip, r"vision\.onnx\.data in .* is not the file that was built: its hash differs.*Copy"),
        (lambda root: (root / DATA).unlink(), r"vision\.onnx\.data is missing.*rebuild"),
        (lambda root: (root / DATA).write_bytes(b"1"), r"has 1 bytes .*, and 256 .* were built"),
        (lambda root: (root / "parts/more.onnx").write_text("x"), r"parts/more\.onnx lies in"),
        (_escape_by_linked_folder, "leads outside the bundle"),
        (_list_outside, r"the path '\.\./outside' leaves the bundle"),
        (lambda root: (root / "manifest.json").write_bytes(b"\xff"), "is not UTF-8"),
        (lambda root: (root / "manifest.json").write_text('{"a": '), "is not valid JSON"),
    ],
)
def test_refuses_the_tampered(root: Path, tamper: Callable[[Path], object], message: str) -> None:
    tamper(root)
    with pytest.raises(DamagedBundle, match=message):
        open_bundle(root)


def test_without_verify_only_hashing_is_left_out(root: Path) -> None:
    _flip(root)
    assert isinstance(open_bundle(root, verify=False), Bundle)
    (root / DATA).unlink()
    with pytest.raises(DamagedBundle, match="is missing"):
        open_bundle(root, verify=False)


def test_what_is_no_bundle(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ForeignBundle, match="there is no such folder"):
        open_bundle(tmp_path / "none")
    with pytest.raises(ForeignBundle, match=r"it has no manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(ForeignBundle, match=r"it has no manifest\.json"):
        open_bundle(root / DATA)
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ForeignBundle, match="is not a samforge manifest"):
        open_bundle(tmp_path)


def test_is_bundle(root: Path, tmp_path: Path) -> None:
    assert is_bundle(root)
    assert not is_bundle(tmp_path)
    _flip(root)
    assert is_bundle(root)
    (root / "manifest.json").write_text("{")
    assert not is_bundle(root)


def test_path_gives_listed_files_only(root: Path) -> None:
    bundle = open_bundle(root)
    for path in ("manifest.json", "../bundle/parts/vision/vision.onnx", "parts"):
        with pytest.raises(DamagedBundle, match="has no file"):
            bundle.path(path)


def test_every_refusal_has_the_exit_code_of_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert caught.value.exit_code == 5
