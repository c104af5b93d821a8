"""Images and phrases -> what every part is really fed: the samples that quantization measures."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samforge.core.around import AroundSession
from samforge.core.capabilities import BOXES, TEXT, TEXT_ENCODER, TRACKER_PARTS, VISION
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.files import atomic_write_json
from samforge.core.session import Array, PartSpec, Session, Tensors
from samforge.core.targets import TORCH
from samforge.core.timing import Timings
from samforge.measure.answers import detections_from_table, table_from_detections
from samforge.measure.asking import ask
from samforge.measure.witness import Witness, save_witness
from samforge.media import read_image
from samforge.models.eager import EagerSession
from samforge.runtime import Segmenter, image_bchw_from_rgb, segmenter_from_sessions
from samforge.steps.context import BuildContext, StepOutput
from samforge.steps.images import calibration_images, first_tried, trial_images
from samforge.steps.phrases import knows_scenes, tokenizer_of
from samforge.transform.export import exported_from_file
from samforge.transform.quantize import check_skips, names_from_program

FOLDER = "work/calibration"
"""Where what the parts are fed is kept."""
ANSWERS = f"{FOLDER}/answers.json"
"""What the float parts found in the images on which groups are chosen."""
WITNESS = f"{FOLDER}/witness.npz"
"""What the float parts gave meanwhile."""
SEEN = f"{FOLDER}/seen"
"""What the float vision part makes of these images: the other parts' trials need nothing else."""


def calibrate_parts(context: BuildContext) -> StepOutput:
    """Run the float parts on the calibration's images and keep what each was fed.

    The detector is fed what vision and text make of real images and phrases: random features would
    set other ranges. One sample is in memory at a time.
    """
    _check_skips(context)
    shutil.rmtree(context.root / FOLDER, ignore_errors=True)  # of a build with other settings
    made = _segmented(context) if TEXT_ENCODER in context.parts else _images_only(context)
    outputs = tuple(path for paths in made.values() for path in paths)
    counts = ({"part": part, "samples": len(paths)} for part, paths in made.items() if part)
    return StepOutput(outputs=outputs, figures=tuple(counts))


def _check_skips(context: BuildContext) -> None:
    """A pattern that matches nothing is a typing error: say so before an hour of work."""
    settings = context.recipe.quantization
    if settings.skip or settings.smooth_skip or settings.skip_operators:
        programs = {
            part: exported_from_file(context.path(context.fused(part))) for part in context.parts
        }
        names = {part: names_from_program(program) for part, program in programs.items()}
        check_skips(settings, names)


def calibration_samples(
    context: BuildContext, part: str
) -> Callable[[], Iterable[Mapping[str, Tensor]]]:
    """What a part was fed, a fresh run through it with every call."""
    paths = sorted(context.path(sample_folder(part)).glob("*.npz"))

    def run() -> Iterator[dict[str, Tensor]]:
        for path in paths:
            with np.load(path) as sample:
                yield {name: torch.from_numpy(sample[name]) for name in sample.files}

    return run


def calibration_answers(context: BuildContext) -> dict[tuple[int, int], Detections]:
    """What the float parts found in :func:`trial_images`, by image and question."""
    table = json.loads(context.path(ANSWERS).read_text(encoding="utf-8"))
    return {(one["key"][0], one["key"][1]): detections_from_table(one["answer"]) for one in table}


def float_sessions(context: BuildContext, parts: Iterable[str] | None = None) -> dict[str, Session]:
    """The checkpoint's parts, run by PyTorch: what everything is compared with.

    Steps before this one have shown that the exported program gives the same bits. It is not read
    here: of a small model, that takes torch longer than all the questions do.

    Args:
        context: Of the build.
        parts: Those to load; None loads all.
    """
    names = context.parts if parts is None else parts
    return {name: EagerSession(context.model.part(name)) for name in names}


def require_segmenting(context: BuildContext, parts: Collection[str]) -> None:
    """Make sure that parts are enough to ask real images something.

    Raises:
        SettingError: They are not.
    """
    missing = TEXT.missing(parts)
    if context.model.text is None or missing:
        raise SettingError(
            f"{context.recipe.precision} measures parts on what all of them make of real images: "
            f"{', '.join(missing)} must be built with them. Leave --part out."
        )


def segmenter_of(context: BuildContext, sessions: Mapping[str, Session]) -> Segmenter:
    """A segmenter over sessions of this build."""
    require_segmenting(context, sessions)
    # An engine takes no more phrases in one call than it was built for.
    return segmenter_from_sessions(
        sessions,
        context.model.image,
        tokenizer_of(context),
        read_image,
        prompt_batch=context.recipe.engine.prompts if context.target.engine else None,
        reference=context.recipe.reference,
    )


def _segmented(context: BuildContext) -> dict[str, list[str]]:
    # What the tracker's parts are fed is seen in moving pictures: calibrate_tracker.py.
    own = [part for part in context.parts if part not in TRACKER_PARTS]
    require_segmenting(context, own)
    floating: dict[str, Session] = dict(float_sessions(context, own))
    vision = floating[VISION]
    floating[VISION] = Remembering(
        spec=vision.spec, context=context, load=lambda: vision, most=first_tried(context)
    )
    sessions = {
        part: Recording(session=session, context=context) for part, session in floating.items()
    }
    found: dict[str, int] = {}
    boxes = BOXES.among(sessions)
    asking = ask(
        segmenter_of(context, sessions), calibration_images(context), timings=Timings(), boxes=boxes
    )
    for asked in asking:
        if asked.question.boxes_xyxy is None and asked.question.text is not None:
            phrase = asked.question.text
            found[phrase] = found.get(phrase, 0) + len(asked.found)
    _require_found(context, found)
    if not context.recipe.random_weights and context.recipe.quantization.mixed:
        _ask_for_trials(context, floating, boxes=boxes)
    for session in sessions.values():
        session.close()
    return {part: session.written for part, session in sessions.items()} | {"": _kept(context)}


def _ask_for_trials(context: BuildContext, sessions: Mapping[str, Session], *, boxes: bool) -> None:
    """Keep what fp32 says of the images on which groups of layers are chosen."""
    witness = Witness()
    segmenter = segmenter_of(context, witness.sessions(sessions))
    images = trial_images(context, 0, first_tried(context))
    answers = [
        {"key": asked.key, "answer": table_from_detections(asked.found)}
        for asked in ask(segmenter, images, timings=Timings(), boxes=boxes)
    ]
    atomic_write_json(context.path(ANSWERS), answers)
    save_witness(context.path(WITNESS), witness)


def _kept(context: BuildContext) -> list[str]:
    files = (context.root / SEEN).glob("*.npz")
    own = [context.root / name for name in (ANSWERS, WITNESS)]
    return [
        path.relative_to(context.root).as_posix()
        for path in (*own, *sorted(files))
        if path.is_file()
    ]


def _images_only(context: BuildContext) -> dict[str, list[str]]:
    """Of parts that take images and nothing else."""
    unknown = [part for part in context.parts if len(context.spec(part).inputs) > 1]
    if unknown:
        raise SettingError(
            f"{', '.join(unknown)} cannot be calibrated without the part {TEXT_ENCODER}. "
            "Leave --part out."
        )
    written: dict[str, list[str]] = {part: [] for part in context.parts}
    for index, labelled in enumerate(calibration_images(context)):
        tensors = {"images": image_bchw_from_rgb(labelled.image_rgb, context.model.image)}
        for part in context.parts:
            written[part].append(write_sample(context, part, index, tensors))
    return written


def _require_found(context: BuildContext, found: Mapping[str, int]) -> None:
    """Ranges of the detector mean little where it has nothing to find."""
    if context.recipe.random_weights or knows_scenes(context):
        return
    absent = [phrase for phrase, count in found.items() if not count]
    if absent:
        raise SettingError(
            f"No calibration image holds {' or '.join(map(repr, absent))}, as far as the model "
            f"sees: nothing scores above 0.5. Give phrases that occur in "
            f"{context.recipe.calibration.source}, or images with them."
        )


@dataclass(kw_only=True, slots=True)
class Remembering:
    """A float session that runs once for an input, whichever process asks: the encoder is slow."""

    spec: PartSpec
    """Interface of the part."""
    context: BuildContext
    """Where results are kept."""
    load: Callable[[], Session]
    """Loads what does the work, where there is any to do."""
    most: int | None = None
    """Results to keep; those of a large model take 100 MiB each. None keeps all."""
    runtime: str = TORCH.name
    """Name of the backend."""
    processor: str = "CPU"
    """Where it runs."""
    written: int = 0
    """Results that were kept."""
    session: Session | None = None
    """What was loaded."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Give what the part gives."""
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(np.ascontiguousarray(tensors[name]).tobytes())
        path = self.context.path(f"{SEEN}/{digest.hexdigest()}.npz")
        if path.is_file():
            with np.load(path) as kept:
                return {name: kept[name] for name in kept.files}
        if self.session is None:
            self.session = self.load()
        outputs = self.session.run(tensors)
        self.written += 1
        if self.most is not None and self.written > self.most:
            return outputs
        named: dict[str, Any] = dict(outputs)
        temporary = path.with_name(f"{secrets.token_hex(8)}.part.npz")
        np.savez(temporary, **named)
        temporary.replace(path)  # parts are quantized side by side: whole, or not there
        return outputs

    def close(self) -> None:
        """Free the weights."""
        if self.session is not None:
            self.session.close()


@dataclass(kw_only=True, slots=True)
class Recording(AroundSession):
    """A session that writes down what it is fed."""

    session: Session
    """Does the work."""
    context: BuildContext
    """Where to write."""
    written: list[str] = field(default_factory=list)
    """Files so far."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part, and keep its inputs."""
        part = self.spec.name
        self.written.append(write_sample(self.context, part, len(self.written), tensors))
        return self.session.run(tensors)


def write_sample(context: BuildContext, part: str, index: int, tensors: Tensors) -> str:
    """Keep what a part was fed; returns the file, relative to the staging folder."""
    relative = f"{sample_folder(part)}/{index:04d}.npz"
    named: dict[str, Any] = dict(tensors)
    np.savez(context.path(relative), **named)
    return relative


def sample_folder(part: str) -> str:
    """Where what a part was fed is kept."""
    return f"{FOLDER}/{part}"
