"""A segmenter whose parts are simple functions, and which keeps the calls of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from samforge.core.images import ImageSpec
from samforge.core.session import Array, PartSpec, TensorSpec, checked_tensors
from samforge.media import read_image
from samforge.runtime import PhraseTokenizer, segmenter_from_sessions

SIZE, CONTEXT, WIDTH, QUERIES, MASK = 16, 8, 4, 3, 8
WORDS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "red", "blue", "circle", "star", "visual")
PYRAMID = tuple(
    TensorSpec(name=f"fpn_{i}", dtype="float32", shape=("batch", WIDTH, side, side))
    for i, side in enumerate((8, 4, 2))
)
TEXT = (
    TensorSpec(name="text_features", dtype="float32", shape=("prompts", CONTEXT, WIDTH)),
    TensorSpec(name="text_mask", dtype="bool", shape=("prompts", CONTEXT)),
)
BOXES = (
    TensorSpec(name="boxes_cxcywh", dtype="float32", shape=("batch", "prompts", "boxes", 4)),
    TensorSpec(name="box_labels", dtype="int64", shape=("batch", "prompts", "boxes")),
)
PREDICTIONS = (
    TensorSpec(name="pred_logits", dtype="float32", shape=("batch", "prompts", QUERIES)),
    TensorSpec(name="pred_boxes", dtype="float32", shape=("batch", "prompts", QUERIES, 4)),
    TensorSpec(name="pred_masks", dtype="float32", shape=("batch", "prompts", QUERIES, MASK, MASK)),
    TensorSpec(name="presence_logit", dtype="float32", shape=("batch", "prompts")),
)


class Computed:
    """A session whose outputs are simple functions of its inputs, and which keeps its calls."""

    runtime = "computed"
    processor = "test processor"

    def __init__(
        self, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self.spec = PartSpec(name=name, inputs=inputs, outputs=outputs)
        self.calls: list[dict[str, Array]] = []

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append(checked_tensors(self.spec, tensors))
        return self.compute(**tensors)

    def compute(self, **tensors: Array) -> dict[str, Array]:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Vision(Computed):
    def __init__(self, size: int = SIZE) -> None:
        images = TensorSpec(name="images", dtype="float32", shape=("batch", 3, size, size))
        super().__init__("vision", (images,), PYRAMID)

    def compute(self, **tensors: Array) -> dict[str, Array]:
        mean = tensors["images"].mean((1, 2, 3), keepdims=True)
        return {
            tensor.name: np.broadcast_to(mean, (len(mean), *tensor.shape[1:])).copy()
            for tensor in PYRAMID
        }


class Text(Computed):
    def __init__(self) -> None:
        ids = TensorSpec(name="input_ids", dtype="int64", shape=("prompts", CONTEXT))
        super().__init__("text", (ids,), TEXT)

    def compute(self, **tensors: Array) -> dict[str, Array]:
        ids = tensors["input_ids"]
        features = np.repeat(ids[:, :, None], WIDTH, axis=2).astype(np.float32)
        return {"text_features": features, "text_mask": ids != 0}


class Detector(Computed):
    """Query 1 finds the phrase with a logit that grows with its first word's id."""

    def __init__(self, *, boxes: bool = False) -> None:
        extra = BOXES if boxes else ()
        name = "detector_boxes" if boxes else "detector"
        super().__init__(name, (*PYRAMID, *TEXT, *extra), PREDICTIONS)

    def compute(self, **tensors: Array) -> dict[str, Array]:
        word = tensors["text_features"][:, 1, 0]
        images, prompts = len(tensors["fpn_0"]), len(word)
        logits = np.full((images, prompts, QUERIES), -4, np.float32)
        logits[:, :, 1] = word - 4
        boxes = np.zeros((images, prompts, QUERIES, 4), np.float32)
        boxes[..., :] = (0.25, 0.5, 0.75, 1.0)
        masks = np.full((images, prompts, QUERIES, MASK, MASK), -8, np.float32)
        masks[..., 4:, 2:6] = 8
        presence = np.full((images, prompts), 10, np.float32)
        return {
            "pred_logits": logits,
            "pred_boxes": boxes,
            "pred_masks": masks,
            "presence_logit": presence,
        }


class Rig:
    """A segmenter and its sessions."""

    def __init__(self, folder: Path, *, boxes: bool = True, prompt_batch: int | None = None):
        vocabulary = {word: i for i, word in enumerate(WORDS)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        self.tokenizer = PhraseTokenizer(folder / "tokenizer.json", CONTEXT, 0)
        self.sessions: dict[str, Computed] = {
            "vision": Vision(),
            "text": Text(),
            "detector": Detector(),
        }
        if boxes:
            self.sessions["detector_boxes"] = Detector(boxes=True)
        spec = ImageSpec(size=SIZE)
        self.segmenter = segmenter_from_sessions(
            self.sessions, spec, self.tokenizer, read_image, prompt_batch=prompt_batch
        )

    def calls(self, part: str) -> list[dict[str, Array]]:
        return self.sessions[part].calls
