"""Features of images from whatever runs the encoder, and the command that draws them."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import samforge
from samforge.assembly import session_from_bundle
from samforge.core.errors import FidelityError, ForeignBundle, ImageError, SettingError
from samforge.core.images import ImageSpec
from samforge.core.session import PartSpec, TensorSpec, checked_tensors
from samforge.core.timing import Timings
from samforge.media import read_image
from samforge.models.tiny import draw_scene
from samforge.runtime import FeatureExtractor, image_bchw_from_rgb
from samforge.workflows.features import PictureSettings, feature_pictures

SPEC = ImageSpec(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def part_spec(name: str = "backbone", *, outputs: tuple[str, ...] = ("features",)) -> PartSpec:
    return PartSpec(
        name=name,
        inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", 3, 32, 32)),),
        outputs=tuple(
            TensorSpec(name=output, dtype="float32", shape=("batch", 3, 2, 2)) for output in outputs
        ),
    )


@dataclass
class Blocks:
    """A part that averages blocks of 16 pixels, channel by channel."""

    spec: PartSpec = field(default_factory=part_spec)
    runtime: str = "numpy"
    processor: str = "CPU"
    broken: int = 0
    runs: int = 0

    def run(self, tensors: Any) -> Any:
        images = checked_tensors(self.spec, tensors)["images"]
        self.runs += 1
        found = images.reshape(len(images), 3, 2, 16, 2, 16).mean(axis=(3, 5))
        found.reshape(-1)[: self.broken] = np.nan
        return {output.name: found for output in self.spec.outputs}

    def close(self) -> None:
        pass


@pytest.fixture
def quarters(tmp_path: Path) -> Path:
    """A picture of four colours."""
    rgb = np.zeros((64, 32, 3), np.uint8)
    rgb[:32, :16], rgb[:32, 16:], rgb[32:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = tmp_path / "quarters.png"
    Image.fromarray(rgb).save(path)
    return path


def test_features_of_one_image(quarters: Path) -> None:
    timings = Timings()
    found = FeatureExtractor(Blocks(), SPEC, read_image).extract(quarters, timings=timings)
    assert found.map_dhw.shape == (3, 2, 2)
    # A half of the blocks' rows are mixed by the resize; their middles are pure.
    red = (1 - 0.485) / 0.229
    assert found.map_dhw[0, 0, 0] == pytest.approx(red, rel=0.08)
    assert found.map_dhw[0, 1, 1] == pytest.approx(-0.485 / 0.229, rel=0.08)
    assert found.rgb.shape == (64, 32, 3)
    assert [stage.stage for stage in timings.stages()] == ["decode", "preprocess", "backbone"]


def test_figures_by_hand(quarters: Path) -> None:
    found = FeatureExtractor(Blocks(), SPEC, read_image).extract(quarters)
    figures = found.statistics
    values = found.map_dhw.astype(np.float64)
    assert figures.mean == pytest.approx(values.sum() / 12)
    assert figures.std == pytest.approx(np.sqrt(((values - values.mean()) ** 2).mean()))
    lengths = [np.sqrt((values[:, i, j] ** 2).sum()) for i in (0, 1) for j in (0, 1)]
    assert figures.norm == pytest.approx(sum(lengths) / 4)
    assert (figures.min, figures.max) == (values.min(), values.max())


def test_the_coarsest_map_unless_another_is_named() -> None:
    session = Blocks(part_spec("vision", outputs=("fpn_0", "fpn_1", "fpn_2")))
    assert FeatureExtractor(session, SPEC, read_image).output == "fpn_2"
    assert FeatureExtractor(session, SPEC, read_image, "fpn_0").output == "fpn_0"
    with pytest.raises(SettingError, match=r"no feature map 'x'\. It has fpn_0, fpn_1, fpn_2"):
        FeatureExtractor(session, SPEC, read_image, "x")


def test_a_part_without_maps_is_refused() -> None:
    text = PartSpec(
        name="text",
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("prompts", 32)),),
        outputs=(TensorSpec(name="text_features", dtype="float32", shape=("prompts", 32, 8)),),
    )
    with pytest.raises(SettingError, match=r"text takes input_ids\. Give the session of"):
        FeatureExtractor(Blocks(text), SPEC, read_image)


def test_nan_features_are_an_error(quarters: Path) -> None:
    extractor = FeatureExtractor(Blocks(broken=5), SPEC, read_image)
    with pytest.raises(
        FidelityError, match="5 of 12 values of backbone's features are NaN or infinite on numpy"
    ):
        extractor.extract(quarters)


def test_latency_runs_the_part_alone() -> None:
    session = Blocks()
    times = FeatureExtractor(session, SPEC, read_image).latency_ms(np.zeros((8, 8, 3), np.uint8), 4)
    assert session.runs == len(times) == 4
    assert min(times) > 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> samforge.Bundle:
    """A backbone of random weights, as far as the export: some seconds."""
    out = tmp_path_factory.mktemp("dinov3") / "bundle"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", samforge.SamforgeWarning)
        return samforge.build("dinov3-tiny", random_weights=True, until="export", out=out)


@pytest.fixture
def scenes(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"scene{index}.png" for index in range(2)]
    for index, path in enumerate(paths):
        Image.fromarray(draw_scene(index, split="demo").image).save(path)
    return paths


def run(*words: Any) -> Any:
    """Run the command as a process would, and give what it printed."""
    import typer

    from samforge.apps.cli.features import features

    app = typer.Typer()
    app.command()(features)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command(bundle: samforge.Bundle, scenes: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "made" / "pca.png"
    done = run(bundle.root, *scenes, "--out", out, "--shared", "--runs", 2)
    assert done.exit_code == 0, done.output
    assert "backbone: features, 4 x 4 cells, on torch" in done.output
    assert "median of 2 runs" in done.output
    assert "has random weights: its features mean nothing" in done.output
    # Two rows of the picture and its features.
    with Image.open(out) as sheet:
        assert sheet.size[0] > 2 * 480
        assert sheet.size[1] > 2 * 480


def test_the_command_for_machines(
    bundle: samforge.Bundle, scenes: list[Path], tmp_path: Path
) -> None:
    done = run(bundle.root, scenes[0], "--out", tmp_path / "pca.png", "--json", "--runs", 1)
    table = json.loads(done.stdout)
    assert (table["command"], table["ok"], table["part"]) == ("features", True, "backbone")
    (image,) = table["images"]
    assert image["cells_hw"] == [4, 4]
    session = session_from_bundle(bundle, "backbone")
    tensors = {"images": image_bchw_from_rgb(read_image(scenes[0]), bundle.manifest.image)}
    wanted = session.run(tensors)["features"]
    assert image["statistics"]["mean"] == pytest.approx(float(wanted.mean()), abs=1e-6)
    assert image["statistics"]["std"] == pytest.approx(float(wanted.std()), abs=1e-5)
    assert 0 < image["foreground"] <= 1
    assert table["latency"]["samples"] == 1
    assert table["latency"]["median_ms"] > 0


def test_what_cannot_be_read(bundle: samforge.Bundle, scenes: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(scenes[0].read_bytes()[:200])
    done = run(bundle.root, broken, "--out", tmp_path / "pca.png")
    assert isinstance(done.exception, ImageError)
    assert not (tmp_path / "pca.png").exists()
    done = run(bundle.root, tmp_path / "nothing", "--out", tmp_path / "pca.png")
    assert isinstance(done.exception, ImageError)


def test_the_picture_is_a_png(bundle: samforge.Bundle, scenes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"pca\.jpg does not end in \.png"):
        feature_pictures(bundle, scenes, tmp_path / "pca.jpg")


def test_a_bundle_without_an_encoder(
    bundle: samforge.Bundle, scenes: list[Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    entry = bundle.manifest.parts["backbone"]
    other = replace(bundle, manifest=replace(bundle.manifest, parts={"text": entry}))
    with pytest.raises(ForeignBundle, match=r"no part backbone or vision.* It holds text\."):
        feature_pictures(other, scenes, tmp_path / "pca.png", PictureSettings(), runs=1)


def test_sam_3s_vision_part_works_too(
    tiny_bundle: samforge.Bundle, scenes: list[Path], tmp_path: Path
) -> None:
    report = feature_pictures(
        tiny_bundle, scenes, tmp_path / "pca.png", PictureSettings(shared=True), runs=1
    )
    assert (report.part, report.output) == ("vision", "fpn_2")
    # The trained model parts its scenes' shapes from the ground.
    assert all(0.02 < one.foreground < 0.9 for one in report.images)
    assert sum(report.images[0].explained) > 0.3
