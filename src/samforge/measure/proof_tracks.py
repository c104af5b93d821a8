"""Clicks on a bundle's own pictures, a walk through one of them, and what fp32 answers.

The pictures are those of :mod:`samforge.measure.proof_pictures`, so that this file holds places and
masks alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from samforge.core.errors import DamagedBundle
from samforge.core.files import atomic_write_text
from samforge.core.strict_json import strict_json
from samforge.measure.answers import detections_from_table, table_from_detections
from samforge.measure.tracker_questions import (
    Questions,
    Said,
    TrackerFidelity,
    ask_tracker,
    check_tracker,
    compare_answers,
    panned,
)
from samforge.runtime.tracking import ObjectPrompt, PromptAt

if TYPE_CHECKING:
    from pathlib import Path

    from samforge.core.images import RgbImage
    from samforge.core.recipe import Gates
    from samforge.runtime import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProofTracks:
    """What a tracker is asked about a bundle's pictures, and what fp32 answers."""

    questions: Questions
    """Points alone; clips are pictures, the first ones, that are panned over."""
    said: Said
    """By fp32."""


def write_proof_tracks(path: Path, proof: ProofTracks) -> None:
    """Keep questions and answers, without pictures.

    Raises:
        OutputError: The file cannot be written.
    """
    asked, said = proof.questions, proof.said
    table = {
        "clicks": [
            {"points": _points(prompts), "answer": table_from_detections(answer)}
            for prompts, answer in zip(asked.clicks, said.clicked, strict=True)
        ],
        "clips": [
            {
                "frames": len(clip),
                "points": _points([one.prompt for one in shown]),
                "phrases": list(phrases),
                "by_phrase": [table_from_detections(one) for one in said.followed[2 * place]],
                "by_click": [table_from_detections(one) for one in said.followed[2 * place + 1]],
            }
            for place, (clip, shown, phrases) in enumerate(
                zip(asked.clips, asked.shown, asked.phrases, strict=True)
            )
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(table))


def proof_tracks_from_file(
    path: Path,
    pictures: Sequence[RgbImage],
    clips_shown: Sequence[tuple[RgbImage, ...]] | None = None,
) -> ProofTracks:
    """Read what :func:`write_proof_tracks` wrote.

    Args:
        path: The file.
        pictures: Those of the bundle.
        clips_shown: Frames of each clip; None where clips are pictures that are panned over.

    Raises:
        DamagedBundle: The file is none of these, or is of other pictures.
    """
    try:
        table = strict_json(path.read_text(encoding="utf-8"))
        clicks, clips = table["clicks"], table["clips"]
        questions = Questions(
            pictures=tuple(pictures),
            clicks=tuple(_prompts(one) for _, one in zip(pictures, clicks, strict=True)),
            clips=tuple(
                panned(picture, int(one["frames"]))
                for picture, one in zip(pictures[: len(clips)], clips, strict=True)
            )
            if clips_shown is None
            else tuple(clips_shown),
            shown=tuple(
                tuple(PromptAt(frame=0, prompt=prompt) for prompt in _prompts(one)) for one in clips
            ),
            phrases=tuple(tuple(map(str, one["phrases"])) for one in clips),
        )
        said = Said(
            clicked=[detections_from_table(one["answer"]) for one in clicks],
            followed=[
                [detections_from_table(frame) for frame in one[way]]
                for one in clips
                for way in ("by_phrase", "by_click")
            ],
        )
    except Exception as error:  # JSON, keys, values and OS errors alike
        raise DamagedBundle(f"{path} cannot be read as a proof: {error}. Build again.") from error
    return ProofTracks(questions=questions, said=said)


def check_proof_tracks(
    proof: ProofTracks, segmenter: Segmenter, *, precision: str, gates: Gates
) -> tuple[TrackerFidelity, Mapping[str, float]]:
    """Ask a segmenter what fp32 was asked, and hold the gates on clicks and tracks.

    Returns:
        How close it is, and the limits that it holds.

    Raises:
        FidelityError: A gate does not hold.
    """
    fidelity = compare_answers(proof.said, ask_tracker(segmenter, proof.questions))
    return fidelity, check_tracker(fidelity, precision, gates)


def _points(prompts: Sequence[ObjectPrompt]) -> Any:
    return [np.asarray(one.points, np.float64).tolist() for one in prompts]


def _prompts(table: Mapping[str, Any]) -> tuple[ObjectPrompt, ...]:
    return tuple(ObjectPrompt(points=points) for points in table["points"])
