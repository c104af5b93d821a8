"""Labelling on Ray: a real local cluster comes to the same bytes as one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.apps import cli
from samforge.apps.ray import ray_engine
from samforge.core.errors import MissingExtra
from samforge.labelling import LabelSettings, Ontology, label


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03d}.png")
    return folder


def test_without_ray_it_is_an_extra(
    fake_bundle: Callable[..., samforge.Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    source = draw(tmp_path / "pictures", 2)
    bundle = fake_bundle("small")
    with pytest.raises(MissingExtra, match=r"samforge\[ray\]"):
        label(bundle, source, Ontology.from_texts(["star"]), tmp_path / "out", engine=ray_engine)
    words = ["label", str(bundle.root), str(source), "--class", "star", "--out"]
    assert cli.main([*words, str(tmp_path / "other"), "--engine", "spark"]) == 2
    assert "There are local, ray" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, as it starts and stops
def test_one_process_and_ray_come_to_the_same_bytes(
    fake_bundle: Callable[..., samforge.Bundle],
    tmp_path: Path,
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    pytest.importorskip("ray")
    bundle, source = fake_bundle("small"), draw(tmp_path / "pictures", 40)
    (source / "007.png").write_bytes(b"junk")
    ontology = Ontology.from_texts(["circle", "star"], threshold=0.2)
    settings = LabelSettings(formats=("coco", "parquet"), jobs=2)
    label(bundle, source, ontology, tmp_path / "one")
    label(bundle, source, ontology, tmp_path / "one", settings=settings)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        label(
            bundle, source, ontology, tmp_path / "ray",
            settings=settings, watch=stop, engine=ray_engine,
        )  # fmt: skip
    result = label(bundle, source, ontology, tmp_path / "ray", settings=settings, engine=ray_engine)
    assert "Ray" in result.processor
    assert 0 < result.resumed < 40
    assert result.labelled + result.resumed == 39

    def files(out: Path) -> dict[str, bytes]:
        return {name: data for name, data in snapshot(out).items() if "ledger" not in name}

    assert files(tmp_path / "ray") == files(tmp_path / "one")
