"""Prompts whose answer is known, sampled from a drawn scene: phrases, exemplar boxes, and both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.models.tiny.scenes import ANY, COLOURS, SHAPES, SPLITS, Indices, Scene

VISUAL = "visual"
"""Text of a prompt that consists of boxes alone, as in SAM 3."""
MOST_BOXES = 4
"""No prompt has more exemplar boxes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScenePrompt:
    """One question about a scene and its answer."""

    text: str
    """A phrase, or ``visual`` when boxes alone ask."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(K, 4), pixels; K is 0 for a prompt of text alone."""
    box_labels: npt.NDArray[np.int64]
    """(K,), 1 for *like this* and 0 for *not like this*."""
    targets: Indices
    """(M,) instances asked for, ascending; empty when the concept is absent."""

    @property
    def has_boxes(self) -> bool:
        """Whether exemplar boxes are part of the question."""
        return len(self.box_labels) > 0


def prompt_rng(seed: int, *, split: str = "held-out") -> np.random.Generator:
    """The random stream of a scene's prompts: apart from the scene's own, so neither moves both."""
    return np.random.default_rng([SPLITS[split], seed, 1])


def text_prompt(
    scene: Scene, rng: np.random.Generator, *, absent_share: float = 0.25
) -> ScenePrompt:
    """A phrase alone: colour and shape, shape, colour or everything; sometimes absent."""
    if rng.random() < absent_share:
        return _phrase_prompt(scene, _absent_phrase(scene, rng))
    index = int(rng.integers(len(scene.shapes)))
    return _phrase_prompt(scene, _phrase_of(scene, index, rng))


def box_prompt(scene: Scene, rng: np.random.Generator, *, jitter_px: float = 0.0) -> ScenePrompt:
    """Boxes alone: up to three exemplars of one or two concepts, sometimes one *not like this*.

    The answer is every instance of the same shape and colour as any positive exemplar.
    """
    first = int(rng.integers(len(scene.shapes)))
    targets = scene.alike(first)
    others = np.setdiff1d(np.arange(len(scene.shapes)), targets)
    second = -1
    if len(others) and rng.random() < 0.25:
        second = int(rng.choice(others))
        targets = np.union1d(targets, scene.alike(second))
        others = np.setdiff1d(others, targets)
    chosen = [first] if second < 0 else [first, second]
    rest = np.setdiff1d(targets, chosen)
    more = min(len(rest), int(rng.integers(0, 4 - len(chosen))))
    chosen += rng.permutation(rest)[:more].tolist()
    exemplars = [(index, 1) for index in chosen]
    if len(others) and rng.random() < 0.3:
        exemplars.append((int(rng.choice(others)), 0))
    return _prompt(scene, VISUAL, exemplars, targets, rng, jitter_px)


def mixed_prompt(scene: Scene, rng: np.random.Generator, *, jitter_px: float = 0.0) -> ScenePrompt:
    """A phrase with a box: *circles, but not those*, or a phrase and one of its matches.

    A negative box takes away everything of its exemplar's shape and colour.
    """
    index = int(rng.integers(len(scene.shapes)))
    broad = (scene.shapes[index], f"{scene.colours[index]} {ANY}", ANY)
    wide = [phrase for phrase in broad if len(scene.matching(phrase)) > len(scene.alike(index))]
    if wide and rng.random() < 0.7:
        phrase = wide[0] if rng.random() < 0.5 else wide[int(rng.integers(len(wide)))]
        targets = np.setdiff1d(scene.matching(phrase), scene.alike(index))
        label = 0
    else:
        phrase = _phrase_of(scene, index, rng)
        targets, label = scene.matching(phrase), 1
    return _prompt(scene, phrase, [(index, label)], targets, rng, jitter_px)


def _phrase_of(scene: Scene, index: int, rng: np.random.Generator) -> str:
    """A phrase that names one instance, the precise kind half of the time."""
    kind = rng.random()
    if kind < 0.5:
        return f"{scene.colours[index]} {scene.shapes[index]}"
    if kind < 0.72:
        return scene.shapes[index]
    return f"{scene.colours[index]} {ANY}" if kind < 0.94 else ANY


def _absent_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """A phrase without a match, mostly a near miss: a colour and a shape that are here, apart."""
    for _ in range(16):
        kind = rng.random()
        colour = str(rng.choice(scene.colours if kind < 0.4 else COLOURS))
        shape = str(rng.choice(scene.shapes if 0.2 < kind < 0.6 else SHAPES))
        phrase = f"{colour} {shape}"
        if kind >= 0.8:
            phrase = shape if kind < 0.9 else f"{colour} {ANY}"
        if not len(scene.matching(phrase)):
            return phrase
    return str(rng.choice(scene.absent_phrases()))


def _phrase_prompt(scene: Scene, text: str) -> ScenePrompt:
    """A phrase without boxes."""
    return ScenePrompt(
        text=text,
        boxes_xyxy=np.zeros((0, 4), np.float32),
        box_labels=np.zeros(0, np.int64),
        targets=scene.matching(text),
    )


def _prompt(
    scene: Scene,
    text: str,
    exemplars: list[tuple[int, int]],
    targets: Indices,
    rng: np.random.Generator,
    jitter_px: float,
) -> ScenePrompt:
    """A prompt with boxes around (instance, label) exemplars, each side shaken by the jitter."""
    boxes_xyxy = scene.boxes_xyxy[[index for index, _ in exemplars]]
    shaken = boxes_xyxy + rng.uniform(-jitter_px, jitter_px, boxes_xyxy.shape)
    return ScenePrompt(
        text=text,
        boxes_xyxy=shaken.clip(0, scene.image.shape[0]).astype(np.float32),
        box_labels=np.array([label for _, label in exemplars], np.int64),
        targets=targets,
    )
