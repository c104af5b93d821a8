"""A manifest that cannot lie: sealed, read strictly, and held against what the files say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import forged, reseal, stamp

import samforge
from samforge.apps import cli
from samforge.assembly import session_from_bundle
from samforge.core.errors import BundleError, DamagedBundle, SettingError
from samforge.core.facts import FACTS_KEY, facts_of_manifest
from samforge.core.manifest import digest_of, manifest_from_text, manifest_text, sealed
from samforge.core.strict_json import StrictJsonError, strict_json
from samforge.core.structure import json_from_value

Make = Callable[..., samforge.Bundle]
Bend = Callable[[dict[str, Any]], object]


def _bent(bundle: samforge.Bundle, bend: Bend, *, forge: bool) -> Path:
    path = bundle.root / "manifest.json"
    table = json.loads(path.read_text("utf-8"))
    bend(table)
    path.write_text(
        forged(table) if forge else json.dumps(table, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    return bundle.root


def test_any_flipped_bit_is_refused(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    path = bundle.root / "manifest.json"
    content = path.read_bytes()
    rng = random.Random(0)
    places = {*range(8 * 60), *rng.sample(range(8 * len(content)), 400)}
    places |= {8 * len(content) - bit for bit in range(1, 8 * 90)}  # the digest, at the end
    accepted = []
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        try:
            manifest_from_text(flipped.decode(), place="here")
            accepted.append(place)
        except (BundleError, UnicodeDecodeError):
            continue
    assert len(places) > 1000
    assert accepted == []
    for place in sorted(places)[::40]:  # the same through the door
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(BundleError):
            samforge.open_bundle(bundle.root)


CHANGES: dict[str, Bend] = {
    "the mean of images": lambda t: t["image"].update(mean=[0.1, 0.1, 0.1]),
    "the deviation of images": lambda t: t["image"].update(std=[0.25, 0.25, 0.25]),
    "the padding token": lambda t: t["text"].update(pad_id=7),
    "the precision": lambda t: t["recipe"].update(precision="int8"),
    "no gates": lambda t: t.update(gates={}),
    "no steps": lambda t: t.update(steps=[]),
    "the gates of a step": lambda t: t["steps"][0].update(gates={"mask_iou": 0.99}),
    "a figure": lambda t: t["steps"][0]["fidelity"][0].update(max_abs=1e-9),
    "the target": lambda t: t.update(target="openvino"),
    "the model": lambda t: t.update(model="facebook/sam3"),
    "whose computation it is": lambda t: t.update(reference="transformers"),
    "the weights' hash": lambda t: t["parents"].update(checkpoint="1" * 64),
    "the licence": lambda t: t.update(weights_license="MIT"),
    "a version": lambda t: t["versions"].update(python="3.12"),
    "when it was built": lambda t: t.update(created="2027-01-31T12:00:00+00:00"),
    "the digest itself": lambda t: t.update(digest="0" * 64),
    "no digest": lambda t: t.pop("digest"),
    "an empty digest": lambda t: t.update(digest=""),
    "a digest that is no text": lambda t: t.update(digest=None),
}


@pytest.mark.parametrize("bend", CHANGES.values(), ids=CHANGES)
def test_whatever_is_changed_shows(fake_bundle: Make, bend: Bend) -> None:
    root = _bent(fake_bundle(), bend, forge=False)
    changed = r"was changed: its digest is .* Copy the bundle|lacks digest|digest wants a text"
    with pytest.raises(DamagedBundle, match=changed):
        samforge.load(root)


FORGERIES: dict[str, tuple[Bend, str]] = {
    "the mean of images": (CHANGES["the mean of images"], "its image is .*0.5.*manifest says.*0.1"),
    "the deviation of images": (CHANGES["the deviation of images"], "its image is"),
    "the padding token": (CHANGES["the padding token"], r"its text is \[32, 0\].*says \[32, 7\]"),
    "the precision": (CHANGES["the precision"], 'its precision is "fp32".*says "int8"'),
    "whose computation it is": (CHANGES["whose computation it is"], "its reference is"),
    "the target": (CHANGES["the target"], 'its target is "onnxruntime".*says "openvino"'),
    "another size of a feature": (
        lambda t: t["parts"]["vision"]["spec"]["outputs"][0].update(shape=["batch", 4, 8, 9]),
        "its outputs is",
    ),
    "another type of a mask": (
        lambda t: t["parts"]["text"]["spec"]["outputs"][1].update(dtype="float32"),
        "its outputs is",
    ),
    "inputs in another order": (
        lambda t: t["parts"]["detector"]["spec"]["inputs"].reverse(),
        "its inputs is",
    ),
    "one part for another": (
        lambda t: t["parts"]["vision"].update(artifact=t["parts"]["text"]["artifact"]),
        'its part is "text", and the manifest says "vision"',
    ),
    "the size of images": (
        lambda t: t["image"].update(size=56),
        "its image is",
    ),
}


@pytest.mark.parametrize(("bend", "message"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_manifest_contradicts_its_files(
    fake_bundle: Make, bend: Bend, message: str
) -> None:
    root = _bent(fake_bundle(), bend, forge=True)
    with pytest.raises(DamagedBundle, match=message):
        samforge.load(root)


IMPOSSIBLE: dict[str, tuple[Bend, str]] = {
    "the target fake": (lambda t: t.update(target="fake"), "target is 'fake', and bundles are for"),
    "a target with a path": (lambda t: t.update(target="../x"), "its target is"),
    "a part under another name": (
        lambda t: t["parts"].update(backbone=t["parts"].pop("vision")),
        "the part 'backbone' calls itself 'vision'",
    ),
    "a gate that is no number": (lambda t: t["gates"].update(mask_iou="nan"), "no finite number"),
    "a gate without an end": (
        lambda t: t["steps"][0].update(gates={"onnx_max_abs": "inf"}),
        "onnx_max_abs in the gates of export is no finite number",
    ),
    "a negative size": (
        lambda t: next(iter(t["files"].values())).update(bytes=-1),
        "the hash or size of",
    ),
    "a context of no tokens": (lambda t: t["text"].update(context=0), "text.context wants 1 to"),
    "a context of billions": (lambda t: t["text"].update(context=2**40), "text.context wants"),
    "a negative padding token": (lambda t: t["text"].update(pad_id=-1), "text.pad_id wants"),
    "an image of no pixels": (lambda t: t["image"].update(size=0), "Image size is 0"),
    "no deviation": (lambda t: t["image"].update(std=[0, 1, 1]), "Image std"),
}


@pytest.mark.parametrize(("bend", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_is_refused_under_any_digest(
    fake_bundle: Make, bend: Bend, message: str
) -> None:
    root = _bent(fake_bundle(), bend, forge=True)
    with pytest.raises(DamagedBundle, match=message):
        samforge.open_bundle(root)


NOT_OURS: dict[str, Callable[[str], str]] = {
    "a key given twice": lambda text: text.replace('"model":', '"model": "x",\n  "model":', 1),
    "a key of a file given twice": lambda text: text.replace('"bytes":', '"bytes": 1, "bytes":', 1),
    "lists in lists": lambda text: text.replace('"tiny"', "[" * 5000 + "]" * 5000, 1),
    "tables in tables": lambda text: text.replace('"tiny"', '{"a":' * 3000 + "1" + "}" * 3000, 1),
    "40 levels": lambda text: text.replace('"tiny"', "[" * 40 + "]" * 40, 1),
    "a number of 400 digits": lambda text: text.replace('"size": 28', f'"size": {"9" * 400}', 1),
    "a number of 400 digits for a float": lambda text: text.replace("1.5", "1" * 400, 1),
    "a number of 10,000 digits": lambda text: text.replace("1.5", "1" * 10_000, 1),
    "a number of more than 64 bits": lambda text: text.replace('"size": 28', f'"size": {2**63}', 1),
    "a float beyond the largest": lambda text: text.replace("1.5", "1e999", 1),
    "NaN": lambda text: text.replace("1.5", "NaN", 1),
    "Infinity": lambda text: text.replace("1.5", "-Infinity", 1),
    "a comment": lambda text: "// fine\n" + text,
    "a mark of the byte order": lambda text: "\ufeff" + text,
    "something behind it": lambda text: text + "{}",
    "a comma too many": lambda text: text.rstrip().removesuffix("}") + ",}",
    "half of it": lambda text: text[: len(text) // 2],
    "other spaces": lambda text: text.replace(": ", ":  ", 1),
    "no line end": lambda text: text.rstrip("\n"),
    "another line end": lambda text: text.replace("\n", "\r\n"),
    "one line": lambda text: json.dumps(json.loads(text)),
    "an escape for a letter": lambda text: text.replace('"tiny"', '"\\u0074iny"', 1),
    "another form of a number": lambda text: text.replace("1.5,", "15e-1,", 1),
    "half of a surrogate pair": lambda text: text.replace('"tiny"', '"\\ud800"', 1),
    "megabytes of spaces": lambda text: text + " " * (16 << 20),
}


@pytest.mark.parametrize("change", NOT_OURS.values(), ids=NOT_OURS)
def test_the_text_itself_is_covered(fake_bundle: Make, change: Callable[[str], str]) -> None:
    root = fake_bundle().root
    path = root / "manifest.json"
    before = path.read_text("utf-8")
    after = change(before)
    assert after != before
    path.write_bytes(after.encode("utf-8", "surrogatepass"))
    with pytest.raises(DamagedBundle):
        samforge.open_bundle(root)


def test_strict_reading_takes_what_is_written() -> None:
    value = {"a": [1, -2, 2**63 - 1, 1e-300, 0.1, True, None, '[{"}]\\'], "b": {"c": {}}}
    assert strict_json(json.dumps(value)) == value
    with pytest.raises(StrictJsonError, match="gives the key 'a' twice"):
        strict_json('{"a": 1, "a": 1}')


def test_the_digest_is_that_of_the_canonical_form(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    table = json.loads((bundle.root / "manifest.json").read_text("utf-8"))
    assert bundle.digest == table["digest"] == digest_of(table)
    shuffled = dict(reversed(table.items()))
    assert digest_of(shuffled) == bundle.digest
    assert sealed(replace(bundle.manifest, digest="")) == bundle.manifest
    assert manifest_from_text(manifest_text(bundle.manifest), place="x") == bundle.manifest


def test_a_name_that_is_no_text_is_an_error_of_ours(fake_bundle: Make) -> None:
    manifest = replace(fake_bundle().manifest, model="a\udcff")
    with pytest.raises(SettingError, match="not UTF-8"):
        manifest_text(manifest)


def test_an_artifact_without_a_stamp(fake_bundle: Make) -> None:
    import onnx

    bundle = fake_bundle()
    file = bundle.root / "parts/text/text.onnx"
    model = onnx.load(file)
    del model.metadata_props[:]
    file.write_bytes(model.SerializeToString())
    reseal(bundle.root, bundle.manifest)
    with pytest.raises(DamagedBundle, match=r"text\.onnx does not say what it is: it has no stamp"):
        samforge.load(bundle.root)


def test_an_artifact_with_a_stamp_that_is_none(fake_bundle: Make) -> None:
    import onnx

    bundle = fake_bundle()
    file = bundle.root / "parts/text/text.onnx"
    for note in ("", "[" * 5000, "[]", "{}"):
        model = onnx.load(file)
        (entry,) = (one for one in model.metadata_props if one.key == FACTS_KEY)
        entry.value = note
        file.write_bytes(model.SerializeToString())
        reseal(bundle.root, bundle.manifest)
        with pytest.raises(DamagedBundle, match=r"text\.onnx (has a stamp that is not|says of)"):
            samforge.load(bundle.root)


def test_one_part_by_itself_is_compared_too(fake_bundle: Make) -> None:
    bundle = samforge.open_bundle(_bent(fake_bundle(), CHANGES["the precision"], forge=True))
    with pytest.raises(DamagedBundle, match="its precision is"):
        session_from_bundle(bundle, "vision")


def test_the_target_decides_what_a_stamp_says(fake_bundle: Make) -> None:
    manifest = fake_bundle().manifest
    assert facts_of_manifest(manifest, "vision").target == "onnxruntime"
    exported = replace(
        manifest,
        target="torch",
        recipe={"precision": "int8"},
        parts={"vision": replace(manifest.parts["vision"], artifact="parts/vision/vision.pt2")},
    )
    assert facts_of_manifest(exported, "vision").precision == "fp32"
    quantized = replace(exported.parts["vision"], artifact="parts/vision/int8.pt2")
    exported = replace(exported, parts={"vision": quantized})
    assert facts_of_manifest(exported, "vision").precision == "int8"


@pytest.mark.parametrize(
    "form", [str, str.upper, lambda d: f"sha256:{d}", lambda d: f" {d}\n"], ids=range(4)
)
def test_a_pinned_bundle_opens(fake_bundle: Make, form: Callable[[str], str]) -> None:
    bundle = fake_bundle()
    assert samforge.open_bundle(bundle.root, digest=form(bundle.digest)) == bundle
    assert samforge.load(bundle.root, digest=form(bundle.digest))
    assert samforge.load(bundle, digest=form(bundle.digest))


def test_another_bundle_than_the_pinned_is_refused(fake_bundle: Make) -> None:
    bundle, other = fake_bundle(), fake_bundle("other", precision="fp16")
    assert bundle.digest != other.digest
    for load in (
        lambda: samforge.open_bundle(other.root, digest=bundle.digest),
        lambda: samforge.open_bundle(other.root, digest=bundle.digest, verify=False),
        lambda: samforge.load(other.root, digest=bundle.digest),
        lambda: samforge.load(other, digest=bundle.digest),
        lambda: samforge.load(other.root, device="cpu", digest=bundle.digest),
    ):
        with pytest.raises(DamagedBundle, match=f"is {other.digest}, and {bundle.digest} is"):
            load()


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "g" * 64, "sha1:" + "0" * 40])
def test_a_pin_that_is_no_digest(fake_bundle: Make, digest: str) -> None:
    with pytest.raises(SettingError, match="A digest has 64 hexadecimal digits, got"):
        samforge.load(fake_bundle().root, digest=digest)


def _commands(root: Path, tmp_path: Path) -> Iterator[list[str]]:
    out = str(tmp_path / "results")
    yield ["predict", str(root), str(tmp_path / "x.png"), "--text", "star", "--out", out]
    yield ["features", str(root), str(tmp_path / "x.png"), "--out", f"{out}.png"]
    yield ["inspect", str(root)]
    yield ["compare", str(root), "--data", "scenes:1"]
    yield ["bench", str(root), "--iterations", "1", "--warm-up", "0", "--no-memory"]
    yield ["verify", str(root)]


def test_commands_take_a_pin(
    fake_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from samforge.media import write_png
    from samforge.models.tiny import draw_scene

    write_png(tmp_path / "x.png", draw_scene(0).image)
    bundle = fake_bundle()
    for words in _commands(bundle.root, tmp_path):
        assert cli.main([*words, "--digest", "0" * 64]) == 5, words
        printed = capsys.readouterr()
        assert bundle.digest in printed.out + printed.err, words
        if words[0] != "verify":  # which wants a proof
            assert cli.main([*words, "--digest", bundle.digest]) == 0, words
        capsys.readouterr()
    assert cli.main(["inspect", str(bundle.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == bundle.digest


def test_each_of_several_bundles_is_pinned(
    fake_bundle: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = fake_bundle("one"), fake_bundle("other", precision="fp16")
    words = ["bench", str(one.root), str(other.root), "--iterations", "1", "--no-memory"]
    assert cli.main([*words, "--digest", one.digest]) == 5
    assert "other is none of the bundles that were asked for" in capsys.readouterr().err
    assert cli.main([*words, "--digest", one.digest, "--digest", other.digest]) == 0


def test_the_stamp_of_a_program_is_read_without_torch(tmp_path: Path, fake_bundle: Make) -> None:
    import torch

    from samforge.backends import backend_from_name
    from samforge.transform.export import save_exported

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    program = torch.export.export(Double(), (torch.zeros(2),))
    facts = facts_of_manifest(fake_bundle().manifest, "vision").to_text()
    save_exported(program, tmp_path / "a.pt2", facts=facts)
    save_exported(program, tmp_path / "b.pt2")
    torch_backend = backend_from_name("torch")
    assert torch_backend.facts_from_artifact(tmp_path / "a.pt2") == facts
    assert torch_backend.facts_from_artifact(tmp_path / "b.pt2") is None
    assert torch_backend.facts_from_artifact(tmp_path / "none.pt2") is None


def test_the_stamp_of_an_engine_is_read_without_its_library(tmp_path: Path) -> None:
    from samforge.backends import backend_from_name
    from samforge.backends.tensorrt.stamp import EngineStamp, write_stamp

    engine = tmp_path / "vision.engine"
    engine.write_bytes(b"engine")
    for name in ("tensorrt", "tensorrt-rtx"):
        backend = backend_from_name(name)
        assert backend.facts_from_artifact(tmp_path / "none") is None
        stamped = EngineStamp(
            target=name,
            version="1",
            compute_capabilities=("89",),
            gpu=None,
            sha256="0" * 64,
            bytes=6,
            precision="fp16",
            form="fused",
            facts='{"part":"vision"}',
        )
        write_stamp(engine, stamped)
        assert backend.facts_from_artifact(engine) == '{"part":"vision"}'


def test_the_stamp_of_a_package_is_read_without_its_code(tmp_path: Path) -> None:
    import zipfile

    from samforge.backends import backend_from_name

    backend = backend_from_name("inductor")
    for number, (notes, wanted) in enumerate(
        [
            ({FACTS_KEY: "facts", "samforge": "{}"}, "facts"),
            ({"samforge": "{}"}, None),
            ([], None),
        ]
    ):
        path = tmp_path / f"{number}.aoti.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("p/data/aotinductor/model/x_metadata.json", json.dumps(notes))
        assert backend.facts_from_artifact(path) == wanted


def test_facts_are_one_line_and_equal_for_equal_facts(fake_bundle: Make) -> None:
    manifest = fake_bundle().manifest
    text = facts_of_manifest(manifest, "vision").to_text()
    assert "\n" not in text
    read = manifest_from_text(manifest_text(manifest), place="x")
    assert facts_of_manifest(read, "vision").to_text() == text
    assert json.loads(text)["image"] == json_from_value(manifest.image)


def test_stamps_survive_a_second_reading(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    stamp(bundle.root / "parts/text/text.onnx", bundle.manifest, "text", size=None)
    reseal(bundle.root, bundle.manifest)
    assert samforge.load(bundle.root)
