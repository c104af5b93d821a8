"""Labelling on Ray: a real local cluster comes to the same bytes as one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.apps import cli
from samforge.apps.ray import ray_engine
from samforge.apps.ray.engine import _told as told
from samforge.core.errors import BundleError, MissingExtra, SettingError
from samforge.labelling import (
    LabelSettings,
    MakeEngine,
    Ontology,
    Opening,
    label,
    local_engine,
)
from samforge.labelling.opening import openings


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
    monkeypatch.setitem(sys.modules, "ray", None)
    source = draw(tmp_path / "pictures", 2)
    bundle = fake_bundle("small")
    with pytest.raises(MissingExtra, match=r"samforge\[ray\]"):
        label(bundle, source, Ontology.from_texts(["star"]), tmp_path / "out", engine=ray_engine)
    words = ["label", str(bundle.root), str(source), "--class", "star", "--out"]
    assert cli.main([*words, str(tmp_path / "other"), "--engine", "spark"]) == 2
    assert "There are local, ray" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


class Cluster:
    """What the engine asks of Ray before anything runs."""

    __version__ = "2.0"

    def __init__(self, resources: dict[str, float]) -> None:
        self._resources = resources

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self._resources}]


def opened(device: str, jobs: int, threads: int | None = None) -> list[Opening]:
    return openings("bundle", "digest", device=device, threads=threads, jobs=jobs)


@pytest.mark.parametrize(
    ("resources", "opening", "where"),
    [
        ({"CPU": 8.0}, ("cpu", 1, None), "1 actors on the processor, 8 threads each"),
        ({"CPU": 8.0}, ("cpu", 2, 3), "2 actors on the processor, 3 threads each"),
        ({"CPU": 8.0, "GPU": 2.0}, ("cuda", 1, None), "1 actors on a GPU each"),
        ({"CPU": 8.0, "GPU": 2.0}, ("cuda", 2, None), "2 actors on a GPU each"),
    ],
)
def test_it_says_what_runs(
    resources: dict[str, float],
    opening: tuple[str, int, int | None],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", Cluster(resources))
    with ExitStack() as stack:
        _, said = ray_engine(opened(*opening), Ontology.from_texts(["star"]), stack)
    assert said == f"Ray 2.0, {where}"


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        (("auto", 1, None), "Give --device cpu or --device cuda"),
        (("cuda:1", 1, None), "Ray gives actors their GPUs, and --device cuda:1 names one"),
        (("cuda", 1, None), "The actors want 1 GPUs, and the Ray cluster has 0"),
        (("cuda", 3, None), "want 3 GPUs, and the Ray cluster has 0"),
        (("cpu", 2, 5), "want 10 processor cores, and the Ray cluster has 8"),
    ],
)
def test_a_device_that_the_cluster_has_not_is_an_error(
    opening: tuple[str, int, int | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would wait for it without an end."""
    monkeypatch.setitem(sys.modules, "ray", Cluster({"CPU": 8.0}))
    with ExitStack() as stack, pytest.raises(SettingError, match=message):
        ray_engine(opened(*opening), Ontology.from_texts(["star"]), stack)


def test_several_jobs_have_to_know_their_device() -> None:
    with pytest.raises(SettingError, match="2 jobs have to know which"):
        opened("auto", 2)


@pytest.mark.parametrize("engine", [local_engine, ray_engine])
def test_a_bundle_runs_where_its_target_does(
    engine: MakeEngine, fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    source = draw(tmp_path / "pictures", 2)
    with pytest.raises(SettingError, match="device is cuda"):
        label(
            fake_bundle("small"), source, Ontology.from_texts(["star"]), tmp_path / "out",
            settings=LabelSettings(device="cuda"), engine=engine,
        )  # fmt: skip


def test_what_an_actor_says_comes_out_of_what_ray_makes_of_it() -> None:
    said = BundleError("The bundle is another one by now.")
    wrapped = RuntimeError("ray::map_batches failed")
    wrapped.cause = said  # type: ignore[attr-defined]
    outer = RuntimeError("the task failed")
    outer.__cause__ = wrapped
    assert told(outer) is said
    assert str(told(RuntimeError("a node died"))).startswith("Ray ended the run: a node died")


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
