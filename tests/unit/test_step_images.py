"""What calibration and verification look at, and what they refuse."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from samforge.core.errors import ImageError, SamforgeWarning, SettingError
from samforge.core.recipe import Calibration, Recipe
from samforge.media import write_png
from samforge.models import tiny
from samforge.models.loading import model_from_name
from samforge.models.tiny import draw_scene
from samforge.steps.context import BuildContext, StepOutput
from samforge.steps.images import calibration_images, verification_images, verified_on_others
from samforge.steps.phrases import knows_scenes
from samforge.steps.plan import Kind, Step
from samforge.steps.run import _made


def context(
    root: Path, calibration: Calibration, model: str = "tiny", **recipe: object
) -> BuildContext:
    return BuildContext(
        recipe=Recipe(model=model, precision="int8", calibration=calibration, **recipe),
        model=model_from_name(model),
        root=root,
        parts=("vision", "text", "detector"),
    )


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        write_png(path / f"{number:02d}.png", draw_scene(number, split="demo").image)
    return path


def test_the_tiny_model_is_calibrated_on_scenes_it_is_not_measured_on(tmp_path: Path) -> None:
    mine = context(tmp_path, Calibration(samples=3))
    seen = [one.image_rgb for one in calibration_images(mine)]
    assert len(seen) == 3
    assert all(np.array_equal(a, draw_scene(n, split="train").image) for n, a in enumerate(seen))
    first = next(verification_images(mine))
    assert np.array_equal(first.image_rgb, draw_scene(0, split="held-out").image)
    assert verified_on_others(mine)


def test_words_decide_what_was_taught_and_no_name_does(tmp_path: Path, small_folder: Path) -> None:
    """A copy of the tiny model in a folder needs no images either; other words need some."""
    copy = tmp_path / "copy"
    copy.mkdir()
    config = {"model_type": "sam3", **json.loads(tiny.CONFIG_PATH.read_text())}
    (copy / "config.json").write_text(json.dumps(config))
    for file in (tiny.WEIGHTS_PATH, tiny.TOKENIZER_PATH):
        (copy / file.name).symlink_to(file)
    models = {"tiny": True, "tiny-stressed": True, str(copy): True, str(small_folder): False}
    for number, (model, taught) in enumerate(models.items()):
        mine = context(tmp_path / str(number), Calibration(samples=1), model=model)
        assert knows_scenes(mine) is taught, model
    first = next(calibration_images(context(tmp_path, Calibration(samples=1), model=str(copy))))
    assert np.array_equal(first.image_rgb, draw_scene(0, split="train").image)


def test_a_folder_is_shared_between_calibration_and_verification(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 9)
    mine = context(tmp_path, Calibration(source=folder, samples=4, prompts=("star",)))
    seen = [one.name for one in calibration_images(mine)]
    kept = [one.name for one in verification_images(mine)]
    assert seen == ["00.png", "02.png", "05.png", "07.png"]
    assert kept == ["01.png", "03.png", "06.png", "08.png"]
    assert verified_on_others(mine)
    questions = next(calibration_images(mine)).questions
    assert [question.text for question in questions] == ["star", None]
    assert questions[1].boxes_xyxy is not None
    assert questions[1].boxes_xyxy.tolist() == [[56, 56, 168, 168]]


def test_too_few_images_serve_both_and_say_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 3)
    mine = context(tmp_path, Calibration(source=folder, samples=3, prompts=("star",)))
    assert [one.name for one in calibration_images(mine)] == ["00.png", "01.png", "02.png"]
    assert not verified_on_others(mine)


def test_one_grey_image_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_png(folder / "grey.png", np.full((32, 32, 3), 128, np.uint8))
    mine = context(tmp_path, Calibration(source=folder, prompts=("star",)))
    with pytest.raises(SettingError, match="of one colour: there is no range to measure"):
        list(calibration_images(mine))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    mine = context(tmp_path, Calibration(source=tmp_path / "none", prompts=("star",)))
    with pytest.raises(ImageError, match="none holds 0 files and no image among them"):
        list(calibration_images(mine))


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    mine = context(tmp_path, Calibration(source=tmp_path / "gone", prompts=("star",)))
    with pytest.raises(ImageError, match="gone does not exist"):
        list(calibration_images(mine))


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 1)
    (folder / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    mine = context(tmp_path, Calibration(source=folder, prompts=("star",)))
    with pytest.raises(ImageError, match=r"00\.png"):
        list(calibration_images(mine))


def test_other_models_need_images(tmp_path: Path, small_folder: Path) -> None:
    mine = context(tmp_path, Calibration(), model=str(small_folder))
    with pytest.raises(SettingError, match="--calibration DIR --prompt person"):
        list(calibration_images(mine))


def test_phrases_come_with_the_images(tmp_path: Path) -> None:
    mine = context(tmp_path, Calibration(source=folder_of(tmp_path / "images", 1)))
    with pytest.raises(SettingError, match=r"calibration\.prompts is empty"):
        list(calibration_images(mine))


def test_random_weights_see_noise(tmp_path: Path, small_folder: Path) -> None:
    settings = {"model": str(small_folder), "random_weights": True}
    mine = context(tmp_path, Calibration(samples=2), **settings)
    first, second = calibration_images(mine)
    assert first.image_rgb.shape == (mine.model.image.size, mine.model.image.size, 3)
    assert 120 < first.image_rgb.mean() < 135
    assert not np.array_equal(first.image_rgb, second.image_rgb)


@pytest.mark.filterwarnings("always::samforge.SamforgeWarning")
def test_what_could_not_be_read_stands_in_the_result(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A warning is seen once, if at all; the bundle's manifest, its report and --json are read."""
    source = folder_of(tmp_path / "mine", 6)
    (source / "04.png").write_bytes(b"no picture")
    mine = context(tmp_path, Calibration(source=source, samples=3, prompts=("star",)))

    def look(build: BuildContext) -> StepOutput:
        seen = [one.name for _ in range(2) for one in calibration_images(build)]
        return StepOutput(outputs=(), figures=({"seen": seen},), notes=("mine",))

    step = Step(kind=Kind(name="calibrate", make=look), part=None)
    _, result = _made(mine, step)
    assert result.fidelity == ({"seen": ["00.png", "02.png"] * 2},)
    said = f"1 of 3 images of {source} cannot be read and are left out: {source / '04.png'}"
    own, note = result.notes
    assert own == "mine"
    assert note.startswith(said)
    assert [str(one.message) for one in recwarn.list] == [note]  # read twice, said once


def test_a_step_that_fails_says_what_it_had_to_say_first(tmp_path: Path) -> None:
    def fail(build: BuildContext) -> StepOutput:
        warnings.warn("one picture is left out", SamforgeWarning, stacklevel=1)
        raise ImageError("no other is left")

    step = Step(kind=Kind(name="calibrate", make=fail), part=None)
    mine = context(tmp_path, Calibration())
    with (
        pytest.warns(SamforgeWarning, match="one picture is left out"),
        pytest.raises(ImageError, match="no other is left"),
    ):
        _made(mine, step)
