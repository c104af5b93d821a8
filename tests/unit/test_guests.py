"""Files of others in a bundle's folder, and bundles whose files are links."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from made_up import reseal, stamp

import samforge
from samforge.apps import cli
from samforge.assembly import session_from_bundle
from samforge.core.errors import BundleError, DamagedBundle, SamforgeWarning
from samforge.core.files import sha256_of

Make = Callable[..., samforge.Bundle]

HARMLESS = [
    "README.md",
    "readme.txt",
    ".gitattributes",
    ".gitignore",
    ".DS_Store",
    "parts/.DS_Store",
    "parts/vision/._vision.onnx",
    ".nfs000000000ab1c0de00000001",
    "parts/text/.nfs80f2",
    ".fuse_hidden0000001200000001",
    "Thumbs.db",
    "desktop.ini",
    ".directory",
    "LICENSE",
    "NOTICE.txt",
    "notes.md",
    "model_card.md",
    ".cache/huggingface/.gitignore",
    ".cache/huggingface/download/manifest.json.metadata",
    ".git/HEAD",
    ".git/objects/ab/cdef",
    "__MACOSX/._manifest.json",
    ".ipynb_checkpoints/x-checkpoint.ipynb",
    "@eaDir/manifest.json@SynoEAStream",
]
HARMFUL = [
    "parts/more.onnx",
    "parts/vision/vision.onnx.data",
    "parts/vision/README.md",
    "parts/vision/notes.txt",
    "parts/text/text.engine.json",
    "tokenizer/special_tokens.json",
    "verify/proof.npz",
    "weights.bin",
    "model.onnx",
    ".cache/other/x",
    ".hidden",
    "report/script.js",
    "parts/vision/.data",
]


def _put(root: Path, relative: str) -> None:
    (root / relative).parent.mkdir(parents=True, exist_ok=True)
    (root / relative).write_bytes(b"somebody's")


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_stranger_is_named(fake_bundle: Make, name: str) -> None:
    root = fake_bundle().root
    _put(root, name)
    with pytest.warns(SamforgeWarning, match="files that are not its own and are not used") as said:
        opened = samforge.open_bundle(root)
    assert len(said) == 1
    assert all(name.startswith(stranger) for stranger in opened.strangers)
    assert opened.strangers[0] in str(said[0].message)
    assert samforge.load(opened)
    assert (root / name).read_bytes() == b"somebody's"


@pytest.mark.parametrize("name", HARMFUL)
def test_what_a_runtime_could_read_is_refused(fake_bundle: Make, name: str) -> None:
    root = fake_bundle().root
    _put(root, name)
    with pytest.raises(DamagedBundle, match=f"{name} lies in .* and not in its manifest"):
        samforge.open_bundle(root)


def test_a_clone_is_not_walked_through(fake_bundle: Make) -> None:
    root = fake_bundle().root
    for number in range(30):
        _put(root, f".git/objects/{number}/x")
    with pytest.warns(SamforgeWarning, match=r"not used: \.git/\.$"):
        assert samforge.open_bundle(root).strangers == (".git/",)


def test_a_stranger_with_an_odd_name_is_shown_escaped(fake_bundle: Make) -> None:
    root = fake_bundle().root
    _put(root, "notes\x1b[2J.md")
    with pytest.warns(SamforgeWarning) as said:
        samforge.open_bundle(root)
    assert "\x1b" not in str(said[0].message)
    assert r"notes\x1b[2J.md" in str(said[0].message)


def test_inspect_names_strangers(fake_bundle: Make, capsys: pytest.CaptureFixture[str]) -> None:
    root = fake_bundle().root
    _put(root, "README.md")
    assert cli.main(["inspect", str(root)]) == 0
    printed = capsys.readouterr()
    assert "README.md: not used" in printed.out
    assert "Warning: " in printed.err
    assert cli.main(["inspect", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["strangers"] == ["README.md"]


def _cached(bundle: samforge.Bundle, hub: Path) -> Path:
    """The bundle as ``huggingface_hub.snapshot_download`` leaves it."""
    repository = hub / "models--someone--sam3-onnx"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for source in sorted(path for path in bundle.root.rglob("*") if path.is_file()):
        blob = blobs / sha256_of(source)
        shutil.copy(source, blob)
        link = snapshot / source.relative_to(bundle.root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_bundle_in_a_hub_cache(fake_bundle: Make, tmp_path: Path) -> None:
    bundle = fake_bundle()
    snapshot = _cached(bundle, tmp_path / "hub")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = samforge.open_bundle(snapshot, digest=bundle.digest)
        assert samforge.load(opened)
        assert samforge.load(snapshot)
        assert samforge.open_bundle(snapshot, verify=False).manifest == bundle.manifest
    assert opened.linked_out == ()
    assert (opened.root, opened.manifest) == (snapshot, bundle.manifest)


def test_a_hub_cache_with_its_readme(fake_bundle: Make, tmp_path: Path) -> None:
    snapshot = _cached(fake_bundle(), tmp_path / "hub")
    for name in ("README.md", ".gitattributes"):
        (snapshot.parents[1] / "blobs" / name).write_text("x")
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    with pytest.warns(SamforgeWarning, match=r"not used: \.gitattributes, README\.md\.$"):
        assert samforge.load(snapshot)


def test_a_changed_blob_is_refused(fake_bundle: Make, tmp_path: Path) -> None:
    snapshot = _cached(fake_bundle(), tmp_path / "hub")
    blob = (snapshot / "parts/vision/vision.onnx").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(DamagedBundle, match="hash differs"):
        samforge.open_bundle(snapshot)


def test_verify_does_not_write_into_a_cache(fake_bundle: Make, tmp_path: Path) -> None:
    from samforge.workflows.verify import _recorded

    snapshot = _cached(fake_bundle(), tmp_path / "hub")
    opened = samforge.open_bundle(snapshot)
    assert _recorded(opened, (), "CPU", 1.0, {"feature_cosine": 0.9}) is None
    assert samforge.open_bundle(snapshot).digest == opened.digest


PART = "parts/vision/vision.onnx"


def _file_to_elsewhere(root: Path) -> None:
    shutil.move(root / PART, root.parent / "elsewhere.onnx")
    (root / PART).symlink_to(root.parent / "elsewhere.onnx")


def _chain(root: Path) -> None:
    _file_to_elsewhere(root)
    (root / PART).rename(root.parent / "first")
    (root / PART).symlink_to("../../../first")


def _inside(root: Path) -> None:
    same = root / "parts/text/text.onnx"
    same.unlink()
    same.symlink_to("../vision/vision.onnx")


def test_a_link_out_with_the_right_bytes_is_named(fake_bundle: Make) -> None:
    for name, change in (("one", _file_to_elsewhere), ("two", _chain)):
        root = fake_bundle(name).root
        change(root)
        for verify in (True, False):
            with pytest.warns(SamforgeWarning, match="links to somewhere else.*: parts/vision/vis"):
                opened = samforge.open_bundle(root, verify=verify)
            assert opened.linked_out == (PART,)
        assert samforge.load(opened)


def test_a_link_out_with_other_bytes_is_refused_hashed_or_not(fake_bundle: Make) -> None:
    root = fake_bundle().root
    _file_to_elsewhere(root)
    elsewhere = root.parent / "elsewhere.onnx"
    elsewhere.write_bytes(b"x" * elsewhere.stat().st_size)
    for verify in (True, False):
        with pytest.raises(DamagedBundle, match="hash differs"):
            samforge.open_bundle(root, verify=verify)


def _folder_link(root: Path) -> None:
    shutil.move(root / "parts", root.parent / "parts")
    (root / "parts").symlink_to(root.parent / "parts")


def _folder_link_inside(root: Path) -> None:
    shutil.move(root / "parts/vision", root / "parts/elsewhere")
    (root / "parts/vision").symlink_to("elsewhere")


def _loop(root: Path) -> None:
    (root / PART).unlink()
    (root / PART).symlink_to(PART.rpartition("/")[2])


def _two_step_loop(root: Path) -> None:
    for name in ("vision", "text"):
        (root / f"parts/{name}/{name}.onnx").unlink()
    (root / PART).symlink_to("../text/text.onnx")
    (root / "parts/text/text.onnx").symlink_to("../vision/vision.onnx")


def _dangling(root: Path) -> None:
    (root / PART).unlink()
    (root / PART).symlink_to("nowhere")


def _to_a_folder(root: Path) -> None:
    (root / PART).unlink()
    (root / PART).symlink_to(root / "tokenizer")


def _to_zeros(root: Path) -> None:
    (root / PART).unlink()
    (root / PART).symlink_to("/dev/zero")


def _stranger_loop(root: Path) -> None:
    (root / "more").symlink_to(".")


def _stranger_out(root: Path) -> None:
    (root / "parts/all").symlink_to("/")


def _manifest_loop(root: Path) -> None:
    (root / "manifest.json").unlink()
    (root / "manifest.json").symlink_to("manifest.json")


LINKS = [
    *(_folder_link, _folder_link_inside, _loop, _two_step_loop, _dangling, _to_a_folder),
    *(_to_zeros, _stranger_loop, _stranger_out, _manifest_loop, _inside),
]


@pytest.mark.parametrize("change", LINKS, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("verify", [True, False], ids=["hashed", "not hashed"])
def test_links_that_lead_nowhere_or_astray(
    fake_bundle: Make, change: Callable[[Path], None], verify: bool
) -> None:
    if change is _inside and not verify:
        pytest.skip("the same size: only the hash tells")
    root = fake_bundle().root
    change(root)
    with pytest.raises(BundleError):
        samforge.open_bundle(root, verify=verify)


def test_a_bundle_that_is_itself_a_link_or_a_loop(fake_bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fake_bundle().root)
    assert samforge.load(tmp_path / "link")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", "a\0b"):
        with pytest.raises(BundleError):
            samforge.open_bundle(path)


@pytest.fixture
def split_bundle(fake_bundle: Make) -> samforge.Bundle:
    """A bundle whose image encoder has its weights in a file beside it."""
    bundle = fake_bundle()
    file = bundle.root / PART
    model = onnx.load(file)
    for weight in model.graph.initializer:  # shapes have to be in the file itself
        if weight.name == "stretch":
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)))
            weight.name = "stretch"
    onnx.save_model(
        model,
        file,
        save_as_external_data=True,
        location="vision.onnx.data",
        size_threshold=0,
    )
    stamp(file, bundle.manifest, "vision", size=None)
    from dataclasses import replace

    part = replace(bundle.manifest.parts["vision"], side_files=(f"{PART}.data",))
    parts = {**bundle.manifest.parts, "vision": part}
    reseal(bundle.root, replace(bundle.manifest, parts=parts))
    return samforge.open_bundle(bundle.root)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_weights_beside_a_graph_load_from_a_cache(
    split_bundle: samforge.Bundle, tmp_path: Path, target: str
) -> None:
    from dataclasses import replace

    from samforge.backends import backend_from_name

    if backend_from_name(target).version() is None:
        pytest.skip(f"{target} is not installed")
    manifest = replace(split_bundle.manifest, target=target)
    for name in manifest.parts:
        stamp(split_bundle.root / manifest.parts[name].artifact, manifest, name, size=None)
    reseal(split_bundle.root, manifest)
    snapshot = _cached(samforge.open_bundle(split_bundle.root), tmp_path / "hub")
    session = session_from_bundle(samforge.open_bundle(snapshot), "vision")
    import numpy as np

    images = {"images": np.ones((1, 3, 28, 28), np.float32)}
    plain = session_from_bundle(samforge.open_bundle(split_bundle.root), "vision")
    for name, array in plain.run(images).items():
        assert np.array_equal(array, session.run(images)[name])
    assert not list(snapshot.parents[1].glob("blobs/.samforge-*")), "nothing is left behind"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_not_passed_over(fake_bundle: Make) -> None:
    root = fake_bundle().root
    (root / "parts/secret").mkdir(mode=0)
    with pytest.raises(BundleError, match="Check its permissions"):
        samforge.open_bundle(root)
