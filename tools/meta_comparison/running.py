"""Both sides, one after the other: Meta's in a process of its own, then samforge's here."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import samforge
from meta_comparison import our_side
from meta_comparison.checkout import TRIED, Checkout, checkout_from_folder, commit_of
from meta_comparison.differences import Comparison, compare_runs
from meta_comparison.our_side import Asking, Side
from meta_comparison.questions import (
    Questions,
    pictures_from_settings,
    prompts_from_settings,
)
from meta_comparison.settings import SMALL, Settings
from meta_comparison.tokens import differing, probes, token_rows, tokenizer_from_vocabulary
from samforge.core.errors import CheckpointError, SamforgeError, SettingError
from samforge.models.sources import TorchFileSource

TOOLS = Path(__file__).resolve().parents[1]
SAME, OWN = "the same pixels", "its own resize"
MASK_BYTES = 200 * 288 * 288 * 4
"""Of one answer's mask logits in fp32."""
ROOM = 8 << 30
"""Bytes of mask logits that one run may keep; of more questions every second row and column, …"""
PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "pillow")


class MetaSideFailed(SamforgeError):
    """Meta's side stopped with an error that it does not explain itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Everything that a comparison found."""

    checkout: Checkout
    """Meta's code."""
    comparisons: tuple[Comparison, ...]
    """Each pair of runs."""
    phrases: tuple[str, ...]
    """What was tokenized by both."""
    other_tokens: tuple[str, ...]
    """Of these, what the two sides read as different tokens."""
    record: dict[str, Any]
    """How it was run: versions, hardware, settings, weights."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "command": "compare_with_meta",
            "schema": 1,
            **self.record,
            "tokens": {
                "phrases": len(self.phrases),
                "phrases_that_tokenize_differently": list(self.other_tokens),
            },
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


def compare(settings: Settings, folder: Path) -> Outcome:
    """Run both sides, and compare what they answered.

    Args:
        settings: What to run.
        folder: For weights and answers; some GiB.

    Raises:
        SettingError: The checkout or something else of the settings is not usable.
        CheckpointError: The weights do not fit.
        MetaSideFailed: Meta's code stopped.
    """
    checkout = checkout_from_folder(settings.checkout)
    # First what takes no time: a damaged vocabulary would stop Meta's side after minutes.
    tokenizer = settings.tokenizer or tokenizer_from_vocabulary(
        checkout.vocabulary, folder / "tokenizer.json"
    )
    questions = Questions(
        pictures=pictures_from_settings(settings, folder / "pictures"),
        prompts=prompts_from_settings(settings),
    )
    phrases = tuple(dict.fromkeys([*settings.phrases, *probes()]))
    job = job_of(settings, checkout, questions, folder) | {"tokenized": phrases}
    meta = run_meta_side(job, settings.meta_python)
    weights = settings.checkpoint or Path(job["weights"])
    sides = sides_from_settings(settings, weights, tokenizer)
    asking = Asking(questions=questions, meta=folder / "meta-fp32", mask_step=int(job["mask_step"]))
    rows = token_rows(sides[0].tokenizer, phrases, sides[0].end)
    with our_side.without_tf32():
        comparisons = compare_sides(sides, asking, folder, meta=job["precisions"])
    return Outcome(
        checkout=checkout,
        comparisons=comparisons,
        phrases=phrases,
        other_tokens=differing(phrases, np.load(folder / "tokens.npy"), rows),
        record={
            **record_of(settings, checkout, questions),
            "weights": weights_record(settings, weights),
            "meta": meta,
        },
    )


def job_of(
    settings: Settings, checkout: Checkout, questions: Questions, folder: Path
) -> dict[str, Any]:
    """What Meta's side is to do, as plain values."""
    real = settings.checkpoint is not None
    return {
        "folder": str(folder),
        "checkout": str(checkout.path),
        "commit": checkout.commit or "of an unknown commit",
        "tried": TRIED,
        "vocabulary": str(checkout.vocabulary),
        "checkpoint": str(settings.checkpoint.resolve()) if settings.checkpoint else None,
        "weights": str((settings.weights or folder / "sam3.pt").resolve()),
        "small": SMALL if settings.small else None,
        "seed": settings.seed,
        "device": settings.device,
        "precisions": ["fp32"] if settings.precision == "fp32" else ["fp32", "bf16"],
        "threshold": 0.5 if real and settings.threshold is None else settings.threshold,
        "mask_step": mask_step(len(questions.pictures) * len(questions.prompts)),
        "pictures": [{"file": picture.file} for picture in questions.pictures],
        "prompts": [prompt.for_meta() for prompt in questions.prompts],
    }


def sides_from_settings(settings: Settings, weights: Path, tokenizer: Path) -> tuple[Side, ...]:
    """A bundle, or the eager parts: in fp32, and under autocast too where that is asked for."""
    boxes = bool(settings.boxes)
    if settings.bundle is not None:
        return (our_side.side_from_bundle(settings.bundle, boxes=boxes),)
    checkpoint = our_side.checkpoint_from_settings(settings, weights, tokenizer)
    parts = our_side.eager_parts(checkpoint, settings.device, boxes=boxes)
    precisions = ("fp32",) if settings.precision == "fp32" else ("fp32", "bf16")
    return tuple(
        our_side.side_from_parts(parts, checkpoint, settings.device, precision)
        for precision in precisions
    )


def compare_sides(
    sides: Sequence[Side], asking: Asking, folder: Path, *, meta: Sequence[str]
) -> tuple[Comparison, ...]:
    """Every side against Meta's fp32, and where Meta's code ran in bf16, against that too."""
    meta_runs = [(f"Meta {precision}", folder / f"meta-{precision}") for precision in meta]
    reference, *reduced = meta_runs
    found = [compare_runs(asking.questions, reference, run, SAME) for run in reduced]
    for number, side in enumerate(sides):
        same = our_side.answered(side, asking, folder / f"samforge-{number}")
        found += [compare_runs(asking.questions, run, (side.name, same), SAME) for run in meta_runs]
        if number == 0:
            own = our_side.answered_own_pixels(side, asking, same, folder / "samforge-own")
            found.append(compare_runs(asking.questions, reference, (side.name, own), OWN))
            shutil.rmtree(own)
        shutil.rmtree(same)
    return tuple(found)


def mask_step(answers: int) -> int:
    """Rows and columns of mask logits that are kept: all of them while they fit."""
    step = 1
    while answers * MASK_BYTES / step**2 > ROOM:
        step *= 2
    return step


def run_meta_side(job: dict[str, Any], python: str) -> dict[str, Any]:
    """Start Meta's side and wait for it; what it says goes to standard error.

    Raises:
        SettingError: The interpreter cannot be started.
        CheckpointError: Meta's side refuses, and says why.
        MetaSideFailed: It stopped otherwise.
    """
    folder = Path(job["folder"])
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    # The checkout is added there, and samforge is not needed. Packages that stand beside another
    # interpreter are no use to it.
    beside = [os.environ.get("PYTHONPATH", "")] if python == sys.executable else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOOLS), *filter(None, beside)])}
    command = [python, "-m", "meta_comparison.meta_side", str(path)]
    try:
        status = subprocess.run(command, env=environment, stdout=2, check=False).returncode
    except OSError as error:
        raise SettingError(
            f"--meta-python {python} cannot be started ({error.strerror}). Name the interpreter of "
            "an environment that has what Meta's code needs: path/to/env/bin/python."
        ) from error
    refusal = folder / "refusal.txt"
    if refusal.is_file():
        raise CheckpointError(refusal.read_text(encoding="utf-8"))
    if status != 0:
        why = (
            "it was killed, as a rule for want of memory: fp32 at real size takes about 10 GiB"
            if status < 0
            else "its own words stand above"
        )
        known = "" if job["commit"] == TRIED else f" (this tool was tried with commit {TRIED})"
        raise MetaSideFailed(f"Meta's side stopped with status {status}: {why}{known}.")
    record: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return record


def record_of(settings: Settings, checkout: Checkout, questions: Questions) -> dict[str, Any]:
    """What decides the figures; nothing that names the machine or a folder."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(settings.device),
        "checkout": {
            "commit": checkout.commit,
            "sources": checkout.sources,
            "as_tried": checkout.as_tried,
        },
        "settings": {
            name: getattr(settings, name)
            for name in ("device", "precision", "reference", "threshold", "boxes")
        },
        "pictures": {picture.name: picture.size_hw for picture in questions.pictures},
        "samforge": {
            "version": samforge.__version__,
            "commit": commit_of(TOOLS.parent),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            **{package: version(package) for package in PACKAGES},
        },
    }


def weights_record(settings: Settings, weights: Path) -> dict[str, Any]:
    """Which weights both sides have, and whether a bundle names the same file as its origin."""
    digest = TorchFileSource(weights).digest()
    drawn = f"drawn from names, seed {settings.seed}" + (", few layers" if settings.small else "")
    record: dict[str, Any] = {"from": drawn if settings.checkpoint is None else "a checkpoint"}
    if settings.bundle is not None:
        record["bundle_of_this_file"] = digest == parent_of(settings.bundle)
    return record | {"digest": digest}


def parent_of(bundle: Path) -> str | None:
    """Digest of the weights that a bundle was built from."""
    return samforge.open_bundle(bundle).manifest.parents.get("weights")


def machine(device: str) -> dict[str, Any]:
    """The class of the hardware."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }
