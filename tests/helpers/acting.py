"""Sessions that play a model which knows its scenes: right answers at once, faults on request."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from samforge.core.images import ImageSpec
from samforge.core.labelled import LabelledImage
from samforge.core.session import Array, PartSpec, Tensors, TensorSpec
from samforge.models import tiny
from samforge.runtime import PhraseTokenizer, image_bchw_from_rgb

QUERIES, WIDTH, SIDE, CONTEXT = 8, 16, 56, 32
MAPS = (TensorSpec(name="fpn_0", dtype="float32", shape=("batch", WIDTH, 8, 8)),)
TEXT = (
    TensorSpec(name="text_features", dtype="float32", shape=("prompts", CONTEXT, 4)),
    TensorSpec(name="text_mask", dtype="bool", shape=("prompts", CONTEXT)),
)
SPECS = {
    "vision": PartSpec(
        name="vision",
        inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", 3, 224, 224)),),
        outputs=MAPS,
    ),
    "text": PartSpec(
        name="text",
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("prompts", CONTEXT)),),
        outputs=TEXT,
    ),
    "detector": PartSpec(
        name="detector",
        inputs=(*MAPS, *TEXT),
        outputs=(
            TensorSpec(name="pred_logits", dtype="float32", shape=("batch", "prompts", QUERIES)),
            TensorSpec(name="pred_boxes", dtype="float32", shape=("batch", "prompts", QUERIES, 4)),
            TensorSpec(
                name="pred_masks", dtype="float32", shape=("batch", "prompts", QUERIES, SIDE, SIDE)
            ),
            TensorSpec(name="presence_logit", dtype="float32", shape=("batch", "prompts")),
        ),
    ),
}
Outputs = dict[str, Array]
Fault = Callable[[str, Outputs, str, np.random.Generator], Outputs]
"""Part, what it gives, the picture's name and a stream of numbers: what it gives instead."""


@dataclass(kw_only=True)
class World:
    """Everything that can be seen, by the picture."""

    images: Iterable[LabelledImage]
    known: dict[str, tuple[Array, tiny.Scene | None]] = field(default_factory=dict)
    """Features and what is there, by the picture's name."""
    names: dict[int, str] = field(default_factory=dict)
    """Names by the checksum of what the vision part is fed."""

    answers: dict[tuple[str, str], Outputs] = field(default_factory=dict)
    """What was worked out before."""

    def __post_init__(self) -> None:
        for one in self.images:
            rng = np.random.default_rng(zlib.crc32(one.image_rgb.tobytes()))
            # Bright pictures have large features, as in a real backbone.
            scale = 3.0 if one.name in ("white", "saturated") else 1.0
            features = scale * rng.standard_normal((1, WIDTH, 8, 8)).astype(np.float32)
            number = one.name.removeprefix("scene ")
            drawn = tiny.draw_scene(int(number)) if number.isdigit() else None
            self.known[one.name] = (features, drawn)
            fed = image_bchw_from_rgb(one.image_rgb, ImageSpec(size=224))
            self.names[checksum(fed)] = one.name

    def answer(self, name: str, phrase: str) -> Outputs:
        """What a detector says of a picture that is right; worked out once."""
        if (name, phrase) not in self.answers:
            self.answers[name, phrase] = detected(self.known[name][1], phrase)
        return self.answers[name, phrase]

    def named(self, features: Array) -> str:
        """The picture whose features these are, as far as they can be told."""
        flat = features.ravel()
        flat = np.nan_to_num(flat) / (np.linalg.norm(np.nan_to_num(flat)) + 1e-9)
        return max(
            self.known,
            key=lambda name: (
                float(flat @ self.known[name][0].ravel())
                / float(np.linalg.norm(self.known[name][0]))
            ),
        )


def checksum(array: Array) -> int:
    """Of an array's numbers."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


@dataclass(kw_only=True)
class Actor:
    """One part of a model that knows its scenes."""

    spec: PartSpec
    world: World
    fault: Fault | None
    noise: float
    """How coarse its numbers are, of int8's own coarseness."""
    runtime: str = "actor"
    processor: str = "CPU"

    def run(self, tensors: Tensors) -> Outputs:
        if self.spec.name == "vision":
            what = self.world.names[checksum(tensors["images"])]
            out = {"fpn_0": self.world.known[what][0].copy()}
        elif self.spec.name == "text":
            ids, what = tensors["input_ids"], ""
            features = np.repeat(ids[:, :, None], 4, 2).astype(np.float32)
            out = {"text_features": features, "text_mask": ids != 0}
        else:
            what = self.world.named(tensors["fpn_0"])
            phrases = [phrase_of(row[:, 0]) for row in tensors["text_features"]]
            rows = [self.world.answer(what, phrase) for phrase in phrases]
            out = {name: np.stack([row[name] for row in rows])[None] for name in rows[0]}
        rng = np.random.default_rng(zlib.crc32(f"{self.spec.name} {what}".encode()))
        out = {name: self._coarse(name, array, rng) for name, array in out.items()}
        return out if self.fault is None else self.fault(self.spec.name, out, what, rng)

    def _coarse(self, name: str, array: Array, rng: np.random.Generator) -> Array:
        size = {"fpn_0": 0.03, "pred_logits": 0.15, "pred_boxes": 0.001, "presence_logit": 0.3}
        noise = rng.standard_normal(array.shape).astype(np.float32)
        return array if name not in size else array + np.float32(self.noise * size[name]) * noise

    def close(self) -> None:
        pass


_WORDS: dict[int, str] = {}


def phrase_of(ids: Array) -> str:
    """Read a phrase back from its token ids."""
    if not _WORDS:
        tokenizer = PhraseTokenizer(tiny.TOKENIZER_PATH, CONTEXT, 0)
        _WORDS.update({int(tokenizer.encode([w])[0, 1]): w for w in tokenizer.known_words})
    return " ".join(_WORDS[int(one)] for one in ids if int(one) in _WORDS)


def detected(scene: tiny.Scene | None, phrase: str) -> Outputs:
    """What a detector says that is right."""
    hits = [] if scene is None else scene.matching(phrase).tolist()[:QUERIES]
    logits = np.full(QUERIES, -6.0, np.float32)
    boxes = np.tile(np.float32([0.4, 0.4, 0.6, 0.6]), (QUERIES, 1))
    masks = np.full((QUERIES, SIDE, SIDE), -8.0, np.float32)
    for query, index in enumerate(hits):
        logits[query] = 4.0
        boxes[query] = scene.boxes_xyxy[index] / 224
        covered = scene.masks[index].reshape(SIDE, 4, SIDE, 4).mean((1, 3))
        masks[query] = 16 * covered - 8
    presence = np.float32(12.0 if hits else -11.0)
    return {
        "pred_logits": logits,
        "pred_boxes": boxes,
        "pred_masks": masks,
        "presence_logit": presence,
    }


def actors(
    world: World, *, fault: Fault | None = None, noise: float = 0.0
) -> Callable[[], dict[str, Actor]]:
    """Load such a model; called again and again, it gives the same."""
    return lambda: {
        name: Actor(spec=part, world=world, fault=fault, noise=noise)
        for name, part in SPECS.items()
    }
