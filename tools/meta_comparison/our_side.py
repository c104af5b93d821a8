"""samforge's side: a bundle, or the eager parts of a checkpoint, behind the public segmenter."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Sam3Config

from meta_comparison.answers import (
    Answer,
    Features,
    answer_path,
    features_path,
    packed,
    read_answer,
    read_features,
    thinned,
    tokens_alone,
    write,
)
from meta_comparison.questions import Picture, Prompt, Questions
from meta_comparison.settings import SMALL, Settings
from samforge.assembly import session_from_bundle, tokenizer_from_bundle
from samforge.core.around import AroundSession
from samforge.core.bundle import open_bundle
from samforge.core.detections import Detections
from samforge.core.errors import FidelityError, PromptWarning, SettingError
from samforge.core.images import ImageSpec
from samforge.core.session import Array, PartSpec, Session, Tensors, checked_tensors
from samforge.media import read_image
from samforge.models.part import Part
from samforge.models.sam3.checkpoint import Sam3Checkpoint, with_image_size
from samforge.models.sam3.configuration import config_for_reference
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.meta_names import MetaSource
from samforge.models.sam3.parts import part_from_checkpoint
from samforge.models.sources import TorchFileSource
from samforge.runtime import (
    EncodedImage,
    PhraseTokenizer,
    Segmenter,
    image_bchw_from_rgb,
    segmenter_from_sessions,
)
from samforge.runtime.postprocess import sigmoid

SIZE = 1008
"""Pixels that Meta's builder fixes."""
PARTS = ("vision", "text", "detector", "detector_boxes")


class EagerSession:
    """Runs a part as it is, where its weights are, in fp32 or under bf16 autocast."""

    runtime = "torch, eager"

    def __init__(self, part: Part, device: torch.device, *, autocast: bool) -> None:
        """Take a part whose module is on the device."""
        self.spec: PartSpec = part.spec
        self.processor = str(device)
        self._module = part.module
        self._device = device
        self._autocast = autocast

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once; what comes out is float32 again."""
        inputs = checked_tensors(self.spec, tensors)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast),
        ):
            results = self._module(
                *(
                    torch.from_numpy(np.require(inputs[tensor.name], requirements=["C", "W"])).to(
                        self._device
                    )
                    for tensor in self.spec.inputs
                )
            )
        if isinstance(results, torch.Tensor):
            results = (results,)
        return {
            tensor.name: (result.float() if result.is_floating_point() else result).cpu().numpy()
            for tensor, result in zip(self.spec.outputs, results, strict=True)
        }

    def close(self) -> None:
        """Keep the weights: another session may run them."""


@dataclass(kw_only=True, slots=True)
class Noting(AroundSession):
    """A session that keeps what went in and came out last: the segmenter hands out detections."""

    session: Session
    """Does the work."""
    inputs: dict[str, Array] = field(default_factory=dict)
    """Of the last run."""
    outputs: dict[str, Array] = field(default_factory=dict)
    """Of the last run."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once."""
        self.inputs = dict(tensors)
        self.outputs = self.session.run(tensors)
        return self.outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """samforge, ready to be asked."""

    name: str
    """For people: ``samforge fp32``."""
    sessions: Mapping[str, Noting]
    """By part."""
    segmenter: Segmenter
    """Over these sessions."""
    tokenizer: PhraseTokenizer
    """Of the segmenter."""
    image: ImageSpec
    """How the network wants pictures."""
    end: int
    """Token that ends a phrase."""


def checkpoint_from_settings(settings: Settings, weights: Path, tokenizer: Path) -> Sam3Checkpoint:
    """The checkpoint by samforge's normal path; with ``--small``, of the clipped architecture."""
    if not settings.small:
        return checkpoint_from_name(str(weights), tokenizer=tokenizer, reference=settings.reference)
    config = Sam3Config()
    vit = config.vision_config.backbone_config
    vit.num_hidden_layers = SMALL["vision_layers"]
    vit.global_attn_indexes = [SMALL["vision_layers"] - 1]
    config.text_config.num_hidden_layers = SMALL["text_layers"]
    config = with_image_size(config_for_reference(config, settings.reference, "--small"), None)
    checkpoint = Sam3Checkpoint(
        name="--small",
        reference=settings.reference,
        config=config,
        source=MetaSource(TorchFileSource(weights)),
        tokenizer=tokenizer,
        eos_id=config.text_config.eos_token_id,
        license_text="",
    )
    checkpoint.check()
    return checkpoint


def eager_parts(checkpoint: Sam3Checkpoint, device: str, *, boxes: bool) -> dict[str, Part]:
    """The parts on the device, each with weights of its own."""
    parts = {}
    for name in PARTS if boxes else PARTS[:3]:
        part = part_from_checkpoint(checkpoint, name)
        part.module.to(device)
        parts[name] = part
    return parts


def side_from_parts(
    parts: Mapping[str, Part], checkpoint: Sam3Checkpoint, device: str, precision: str
) -> Side:
    """Eager parts in one precision."""
    if checkpoint.tokenizer is None:
        raise SettingError("The checkpoint has no tokenizer. Name one with --tokenizer.")
    tokenizer = PhraseTokenizer(
        checkpoint.tokenizer,
        checkpoint.config.text_config.max_position_embeddings,
        checkpoint.eos_id,
        reference=checkpoint.reference,
    )
    autocast = precision != "fp32"
    sessions = {
        name: Noting(session=EagerSession(part, torch.device(device), autocast=autocast))
        for name, part in parts.items()
    }
    image = ImageSpec(size=checkpoint.config.vision_config.image_size)
    return Side(
        name=f"samforge {precision}",
        sessions=sessions,
        segmenter=segmenter_from_sessions(
            sessions, image, tokenizer, read_image, reference=checkpoint.reference
        ),
        tokenizer=tokenizer,
        image=image,
        end=checkpoint.eos_id,
    )


def side_from_bundle(path: Path, *, boxes: bool) -> Side:
    """A bundle, on the runtime it was built for.

    Raises:
        SettingError: It cannot be asked the same as Meta's code.
        BundleError: It is no bundle.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    wanted = PARTS if boxes else PARTS[:3]
    missing = [name for name in wanted if name not in manifest.parts]
    if missing or manifest.text is None:
        raise SettingError(
            f"--bundle {path} has no part {' and no part '.join(missing) or 'text'}. Build it with "
            f"the parts {', '.join(wanted)}, or leave out what needs them (--box)."
        )
    if manifest.image.size != SIZE:
        raise SettingError(
            f"--bundle {path} works at {manifest.image.size} pixels, Meta's code at {SIZE}. "
            f"Build it with --image-size {SIZE}."
        )
    sessions = {name: Noting(session=session_from_bundle(bundle, name)) for name in wanted}
    tokenizer = tokenizer_from_bundle(bundle)
    return Side(
        name=f"bundle ({manifest.target} {manifest.recipe.get('precision', 'fp32')})",
        sessions=sessions,
        segmenter=segmenter_from_sessions(
            sessions, manifest.image, tokenizer, read_image, reference=manifest.reference
        ),
        tokenizer=tokenizer,
        image=manifest.image,
        end=manifest.text.pad_id,
    )


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """fp32 is fp32: on a GPU, convolutions would be rounded to TF32 by torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How a side is asked."""

    questions: Questions
    """Pictures and prompts."""
    meta: Path
    """Folder of Meta's fp32 answers: its thresholds, and its pixels."""
    mask_step: int
    """Rows and columns of mask logits that are kept."""


def answered(side: Side, asking: Asking, folder: Path) -> Path:
    """Answer every prompt on the very pixels that Meta's network was fed.

    Returns:
        The folder, with one file an answer.
    """
    for i, picture in enumerate(asking.questions.pictures):
        started = time.monotonic()
        pixels = read_features(features_path(asking.meta, i)).pixels
        _answer_picture(side, asking, folder, (i, picture, pixels))
        tell(f"{side.name}: picture {i + 1}, {time.monotonic() - started:.1f} s with its prompts")
    return folder


def answered_own_pixels(side: Side, asking: Asking, same_pixels: Path, folder: Path) -> Path:
    """Answer every prompt on the picture as samforge resizes it: by Pillow, not by torch.

    Where that gives the same pixels, the answers are those on the same pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(asking.questions.pictures):
        own = _squashed(side, picture)
        known = features_path(same_pixels, i)
        if np.array_equal(own, read_features(known).pixels):
            paths = [answer_path(same_pixels, i, j) for j in range(len(asking.questions.prompts))]
            for path in (known, *paths):
                shutil.copyfile(path, folder / path.name)
            continue
        started = time.monotonic()
        _answer_picture(side, asking, folder, (i, picture, None))
        tell(
            f"{side.name}, own resize: picture {i + 1}, {time.monotonic() - started:.1f} s with "
            "its prompts"
        )
    return folder


def _squashed(side: Side, picture: Picture) -> npt.NDArray[np.uint8]:
    """The picture as samforge feeds it to the network, before it is normalized."""
    return _pixels(side, image_bchw_from_rgb(read_image(picture.file), side.image))


def _pixels(side: Side, image_bchw: Array) -> npt.NDArray[np.uint8]:
    mean, std = (np.array(values)[:, None, None] for values in (side.image.mean, side.image.std))
    levels = np.rint((image_bchw[0] * std + mean) * 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _answer_picture(
    side: Side,
    asking: Asking,
    folder: Path,
    task: tuple[int, Picture, npt.NDArray[np.uint8] | None],
) -> None:
    """Answer every prompt on one picture; without pixels, on what samforge makes of its file."""
    i, picture, pixels = task
    encoded = side.segmenter.encode(picture.file if pixels is None else pixels)
    encoded = dataclasses.replace(encoded, size_hw=picture.size_hw)
    write(features_path(folder, i), _features(side, encoded))
    for j, prompt in enumerate(asking.questions.prompts):
        threshold = float(read_answer(answer_path(asking.meta, i, j)).threshold)
        found = _ask(side, encoded, prompt, threshold)
        answer = _answer(side, prompt, found, (threshold, asking.mask_step))
        write(answer_path(folder, i, j), answer)


def _features(side: Side, encoded: EncodedImage) -> Features:
    levels = {name: encoded.features[name][0] for name in ("fpn_0", "fpn_1", "fpn_2")}
    cells = levels["fpn_2"].shape[-1]
    return Features(
        pixels=_pixels(side, side.sessions["vision"].inputs["images"]),
        **{name: thinned(level, cells) for name, level in levels.items()},
    )


def _ask(side: Side, encoded: EncodedImage, prompt: Prompt, threshold: float) -> Detections:
    """One prompt, in a call of its own: its raw outputs are those of the detector's last run."""
    height, width = encoded.size_hw
    boxes: dict[str, Any] = {}
    if prompt.boxes:
        corners = np.array([box[:4] for box in prompt.boxes])
        boxes["boxes_xyxy"] = corners * np.array([width, height, width, height])
        boxes["box_labels"] = [box[4] for box in prompt.boxes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)
        return side.segmenter.predict(encoded, text=prompt.text, threshold=threshold, **boxes)


def _answer(side: Side, prompt: Prompt, found: Detections, how: tuple[float, int]) -> Answer:
    """Everything that is compared, admitted objects in the order of the queries."""
    threshold, step = how
    detector = side.sessions["detector_boxes" if prompt.boxes else "detector"]
    raw = {name: array[0, 0] for name, array in detector.outputs.items()}
    scores = sigmoid(raw["pred_logits"]) * sigmoid(raw["presence_logit"])
    best_first = np.argsort(-scores, kind="stable")
    admitted = best_first[scores[best_first] > np.float32(threshold)]
    if not np.array_equal(scores[admitted], found.scores):
        raise FidelityError(
            f"The segmenter's scores for {prompt.name!r} are not those of its detector's outputs. "
            "This is a fault of the tool: please report it."
        )
    order = np.argsort(admitted)
    found = found[order]
    ids = side.tokenizer.encode([prompt.text or "visual"])[0]
    ids, text = tokens_alone(ids, detector.inputs["text_features"][0], side.end)
    return Answer(
        threshold=np.float32(threshold),
        input_ids=ids,
        text_features=text,
        logits=raw["pred_logits"],
        boxes=raw["pred_boxes"],
        presence_logit=raw["presence_logit"],
        masks=np.ascontiguousarray(raw["pred_masks"][:, ::step, ::step]),
        signs=packed(raw["pred_masks"] > 0),
        admitted=admitted[order],
        found_scores=found.scores,
        found_boxes=found.boxes_xyxy,
        found_masks=packed(found.masks.dense()),
    )


def tell(text: str) -> None:
    """Say how far the work is; standard output is for the table."""
    print(text, file=sys.stderr, flush=True)
