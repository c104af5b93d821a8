"""Builds the tiny model and shows on drawn scenes what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from samforge.assembly import load
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import TRACK
from samforge.core.errors import FidelityError, SamforgeError
from samforge.core.files import sha256_of, writable_folder
from samforge.core.images import RgbImage
from samforge.core.outputs import require_own
from samforge.core.own_folder import require_outside_bundles
from samforge.core.recipe import Recipe
from samforge.core.timing import StageTime, Timings
from samforge.core.version import __version__
from samforge.draw import grid
from samforge.measure import SegmenterAccuracy
from samforge.media import write_png
from samforge.models import tiny
from samforge.pipeline import build
from samforge.runtime import Segmenter
from samforge.steps.run import Progress
from samforge.workflows.compare import BundleAccuracy, accuracy_of
from samforge.workflows.labelled_data import images_from_text
from samforge.workflows.predict import READABLE_PX, overlay_of
from samforge.workflows.tracking_demo import Tracking, show_track
from samforge.workflows.watching import Done, unseen

SCENES = 6
"""Scenes in the picture: the first of the demo split, none picked by hand."""
SCENE_PX = 360
"""Side of a scene, and of its tile: tags stay readable when nothing is resized."""
EVALUATED = 40
"""Held-out scenes that the accuracy is measured on."""
LOWEST_F1 = 0.85
"""Below this the demo fails. The model card's figure on a thousand scenes lies well above."""
_OPACITY = 0.35
"""Of the masks: the colours that the phrases name show through."""


Boxes: TypeAlias = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPrompt:
    """One tile of the picture."""

    title: str
    """What stands above it."""
    text: str | None
    """A phrase, or None when a box asks."""
    boxes_xyxy: Boxes = ()
    """Exemplar boxes, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Showing:
    """The pictures and what they took."""

    picture: Path
    """All tiles on one sheet."""
    overlays: tuple[Path, ...]
    """Each tile by itself."""
    found: int
    """Objects found in all of them."""
    scenes: int
    """Scenes shown."""
    stages: tuple[StageTime, ...]
    """Where the time went, summed over the scenes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """What the demo showed."""

    bundle: Bundle
    """The tiny model's."""
    reused: bool
    """Whether an earlier run had built it."""
    showing: Showing
    """The pictures."""
    measured: BundleAccuracy
    """How right it is on held-out scenes."""
    tracking: Tracking | None = None
    """What was followed through a clip, where the bundle has a tracker."""


def recipe_of(*, tracker: bool) -> Recipe:
    """What the demo builds."""
    return Recipe(model=tiny.NAME, tracker=tracker)


def demo(  # noqa: PLR0913  # each is a choice of its own
    out: str | Path,
    *,
    tracker: bool = False,
    bundle: Bundle | None = None,
    reused: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    done: Done = unseen,
) -> Demonstration:
    """Build the tiny bundle, prove it, segment drawn scenes and show them; no network, no GPU.

    Args:
        out: Folder for ``bundle/``, ``demo.png``, ``overlays/`` and ``track.png``.
        tracker: Build the tracker too, which takes as long again, and show a track.
        bundle: One that is built already; None builds it, or takes over that of an earlier run.
        reused: Whether ``bundle`` is that of an earlier run.
        overwrite: Whether pictures that samforge did not write may be replaced.
        progress: Told about each step of the build.
        done: Called after each of ``SCENES + EVALUATED`` scenes, and each frame that is tracked.

    Raises:
        OutputError: A file cannot be written, or is in the way.
        FidelityError: A gate does not hold.
    """
    out = Path(out)
    check_pictures(out, overwrite=overwrite)
    out = writable_folder(out)
    if bundle is None:
        recipe = recipe_of(tracker=tracker)
        bundle, _ = finished_bundle(out / "bundle", recipe)
        reused = bundle is not None
        bundle = bundle or build(recipe, out=out / "bundle", progress=progress)
    with load(bundle) as segmenter:
        showing = show_scenes(segmenter, out, done=done)
        follows = TRACK.among(bundle.manifest.parts)
        tracking = show_track(segmenter, out, done=done) if follows else None
    measured = accuracy_of(bundle, images_from_text(f"scenes:{EVALUATED}"), done=done)
    return Demonstration(
        bundle=bundle, reused=reused, showing=showing, measured=measured, tracking=tracking
    )


def check_pictures(out: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is built, to write into a bundle or over a user's file.

    Raises:
        OutputError: With what is in the way.
    """
    require_outside_bundles(out, "--out")
    pictures = [out / "demo.png", out / "track.png", *out.glob("overlays/scene-*-prompt-*.png")]
    for picture in pictures:
        require_outside_bundles(picture, "--out")
    require_own(pictures, overwrite=overwrite)


def finished_bundle(path: Path, recipe: Recipe) -> tuple[Bundle | None, str]:
    """Find the bundle of an earlier run.

    Returns:
        The bundle if it is intact and what a build would make now, and otherwise None with why it
        is not; the reason is empty when nothing is there.
    """
    if not path.exists():
        return None, ""
    try:
        bundle = open_bundle(path)
    except SamforgeError as error:
        return None, str(error)
    manifest = bundle.manifest
    if manifest.samforge != __version__:
        return None, f"It was built by samforge {manifest.samforge}, this is {__version__}."
    if dict(manifest.recipe) != recipe.to_dict():
        return None, "It was built from another recipe."
    weights = tiny.weights_digest(tracker=recipe.tracker)
    if not recipe.random_weights and manifest.parents.get("weights") != weights:
        return None, "It was built from other weights."
    text = manifest.text
    if text is None or manifest.files[text.tokenizer].sha256 != sha256_of(tiny.TOKENIZER_PATH):
        return None, "It was built with another tokenizer."
    return bundle, ""


def show_scenes(segmenter: Segmenter, out: Path, *, done: Callable[[], None]) -> Showing:
    """Segment the demo scenes, each by phrases and by a box, and write the pictures.

    Args:
        segmenter: Of the tiny model.
        out: Folder for ``demo.png`` and ``overlays/``.
        done: Called after each scene.

    Raises:
        OutputError: The pictures cannot be written.
    """
    folder = writable_folder(out / "overlays")
    timings = Timings()
    columns: list[list[tuple[RgbImage, str]]] = []
    overlays: list[Path] = []
    count = 0
    for number in range(SCENES):
        scene = tiny.draw_scene(number, split="demo", size=SCENE_PX)
        encoded = segmenter.encode(scene.image, timings=timings)
        column = []
        for index, prompt in enumerate(prompts_of(scene, absent=number % 3 == 2)):
            found = segmenter.predict(
                encoded, text=prompt.text, boxes_xyxy=prompt.boxes_xyxy or None, timings=timings
            )
            count += len(found)
            labels = (1,) * len(prompt.boxes_xyxy)
            with timings.stage("save"):
                tile, picture = (
                    overlay_of(
                        *(scene.image, found, prompt.boxes_xyxy, labels),
                        opacity=_OPACITY,
                        min_side=min_side,
                    )
                    for min_side in (0, READABLE_PX)
                )
                path = folder / f"scene-{number + 1}-prompt-{index + 1}.png"
                overlays.append(write_png(path, picture))
            column.append((tile, prompt.title))
        columns.append(column)
        done()
    # One scene a column, one kind of prompt a row.
    tiles = [tile for row in zip(*columns, strict=True) for tile in row]
    sheet = grid([t[0] for t in tiles], [t[1] for t in tiles], columns=SCENES, cell=SCENE_PX)
    return Showing(
        picture=write_png(out / "demo.png", sheet),
        overlays=tuple(overlays),
        found=count,
        scenes=SCENES,
        stages=timings.stages(),
    )


def prompts_of(scene: tiny.Scene, *, absent: bool) -> tuple[DemoPrompt, ...]:
    """Ask four things about a scene: a concept, a shape, a colour or what is not there, a box.

    Args:
        scene: The scene.
        absent: Whether the third phrase matches nothing.
    """
    largest = max(range(len(scene.shapes)), key=lambda i: (len(scene.alike(i)), -i))
    other = max(
        range(len(scene.shapes)),
        key=lambda i: (len(scene.matching(scene.shapes[i])) - len(scene.alike(i)), -i),
    )
    concept = f"{scene.colours[largest]} {scene.shapes[largest]}"
    third = f"{scene.colours[other]} object"
    if absent:
        # The nearest miss: a colour and a shape that are both here, but never together.
        near = [
            f"{colour} {shape}"
            for colour in dict.fromkeys(scene.colours)
            for shape in dict.fromkeys(scene.shapes)
        ]
        missing = scene.absent_phrases()
        third = next((phrase for phrase in near if phrase in missing), missing[0])
    phrases = (concept, scene.shapes[other], third)
    left, top, right, bottom = scene.boxes_xyxy[largest].tolist()
    return (
        *(DemoPrompt(title=_titled(scene, phrase), text=phrase) for phrase in phrases),
        DemoPrompt(title="box: all like this", text=None, boxes_xyxy=((left, top, right, bottom),)),
    )


def require_accuracy(accuracy: SegmenterAccuracy) -> None:
    """Make sure that the model finds what is there.

    Raises:
        FidelityError: Its F1 by text lies below.
    """
    f1 = accuracy.text.f1 if accuracy.text is not None else 0.0
    if f1 < LOWEST_F1:
        raise FidelityError(
            f"The bundle was built and runs, but does not find what is there: F1 by text is "
            f"{f1:.3f} on {accuracy.images} held-out scenes, and at least {LOWEST_F1:g} is "
            "expected of the trained model. Its weights or this machine's runtime are at fault: "
            "please report it with the output of samforge doctor."
        )


def _titled(scene: tiny.Scene, phrase: str) -> str:
    return phrase if len(scene.matching(phrase)) else f"{phrase} (not there)"
