"""Measures bundles against each other: the work behind ``samforge bench``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samforge.backends import backend_from_name
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.devices import AUTO
from samforge.core.errors import SettingError
from samforge.core.images import RgbImage
from samforge.measure import (
    Budget,
    Latency,
    StageLatency,
    Subject,
    latency_from_samples,
    measure_in_turn,
)
from samforge.measure.latency import Samples
from samforge.workflows.bench_subjects import TEXT, WHOLE, Case, subjects_from_bundle
from samforge.workflows.memory import Weight, weigh
from samforge.workflows.watching import Done, Note, unread, unseen


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRow:
    """One bundle at one size."""

    bundle: str
    """Its folder's name, longer where two are alike."""
    model: str
    """What it was built from."""
    target: str
    """Runtime."""
    runtime: str
    """Version of the runtime."""
    precision: str
    """As in the recipe."""
    batch: int
    """Images in a call."""
    prompts: int
    """Phrases asked of each."""
    total: Latency
    """From the images to the masks, phrases known; without ``text``."""
    images_per_second: float
    """Batch size through the mean."""
    speed_up: float
    """Median of the baseline through its own."""
    stages: tuple[StageLatency, ...]
    """Pre-processing, each part, post-processing."""
    size_bytes: int
    """Files of its parts."""
    weight: Weight | None
    """Memory, at the largest of the sizes; None where it was not measured."""


DEFAULT_BUDGET = Budget(warm_up=3, iterations=30)
"""How long, where nobody says."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BenchPlan:
    """What to measure."""

    bundles: tuple[Bundle, ...]
    """All of them are loaded at once, to run in turn."""
    cases: tuple[Case, ...]
    """Sizes of input."""
    budget: Budget
    """How long."""
    baseline: int
    """Which of the bundles has a speed-up of 1."""
    image: RgbImage | None = None
    """Input, or None for drawn scenes (tiny) or noise (others)."""
    device: str = AUTO
    """Where to run, as ``samforge.load`` takes it."""
    threads: int | None = None
    """Processor threads, or None for each runtime's own choice."""
    memory: bool = True
    """Whether to measure memory too, for which each bundle is loaded once more."""


def bench(  # noqa: PLR0913  every size and limit has a default
    bundles: Sequence[str | Path | Bundle],
    *,
    batch: Sequence[int] = (1,),
    prompts: Sequence[int] = (1,),
    budget: Budget = DEFAULT_BUDGET,
    image: RgbImage | None = None,
    device: str = AUTO,
    threads: int | None = None,
    memory: bool = True,
    done: Done = unseen,
    note: Note = unread,
) -> tuple[BenchRow, ...]:
    """Measure bundles in turn: latency, throughput, memory, size and speed-up.

    Args:
        bundles: Folders, or bundles that are open. Speed-ups are measured against the first in
            fp32, or against the first where none is fp32.
        batch: Images in a call; each size is measured.
        prompts: Phrases asked of an image; each number is measured.
        budget: How many rounds, or how many seconds, to measure.
        image: Input, or None for drawn scenes (tiny) or noise (others).
        device: Where to run, as ``samforge.load`` takes it.
        threads: Processor threads, or None for each runtime's own choice.
        memory: Whether to measure memory too, for which each bundle is loaded once more.
        done: Called after each round.
        note: Told what could not be measured.

    Returns:
        For each size, a row for each bundle.

    Raises:
        BundleError: A folder is no bundle, or is damaged.
        ShapeError: A bundle was built for other sizes.
    """
    opened = tuple(one if isinstance(one, Bundle) else open_bundle(one) for one in bundles)
    if not opened:
        raise SettingError("bench got no bundle. Name at least one.")
    cases = tuple(Case(batch=one, prompts=other) for one in batch for other in prompts)
    plan = BenchPlan(
        bundles=opened,
        cases=cases,
        budget=budget,
        baseline=baseline_among(opened),
        image=image,
        device=device,
        threads=threads,
        memory=memory,
    )
    return rows_of(plan, done=done, note=note)


def rows_of(plan: BenchPlan, *, done: Done, note: Note) -> tuple[BenchRow, ...]:
    """Measure bundles in turn, in one process, and their memory in processes of their own.

    Args:
        plan: What to measure.
        done: Called after each round.
        note: Told what could not be measured.

    Returns:
        For each case, a row for each bundle.

    Raises:
        ShapeError: A bundle was built for other sizes.
    """
    subjects: dict[tuple[int, Case, str], Subject] = {}
    weights = [_weight(bundle, plan, note) for bundle in plan.bundles]
    for number, bundle in enumerate(plan.bundles):
        own = subjects_from_bundle(
            bundle, plan.cases, plan.image, device=plan.device, threads=plan.threads
        )
        subjects |= {(number, *key): subject for key, subject in own.items()}
    samples = measure_in_turn(subjects, plan.budget, done=done)
    rows = []
    for case in plan.cases:
        base = latency_from_samples(samples[plan.baseline, case, WHOLE].total_ms)
        for number, bundle in enumerate(plan.bundles):
            whole = samples[number, case, WHOLE]
            text = samples.get((number, case, TEXT))
            total = latency_from_samples(whole.total_ms)
            rows.append(
                BenchRow(
                    **_described(bundle),
                    bundle=_names(plan.bundles)[number],
                    batch=case.batch,
                    prompts=case.prompts,
                    total=total,
                    images_per_second=case.batch * 1e3 / total.mean_ms,
                    speed_up=base.median_ms / total.median_ms,
                    stages=_stages(whole, text),
                    size_bytes=size_of_parts(bundle),
                    weight=weights[number],
                )
            )
    return tuple(rows)


def _stages(whole: Samples, text: Samples | None) -> tuple[StageLatency, ...]:
    """Stages of the way to the masks, then the text that is known there.

    Nothing is decoded: the images are in memory.
    """
    stages = tuple(one for one in whole.stages() if one.stage not in ("decode", TEXT))
    return stages if text is None else (*stages, *text.stages())


def _weight(bundle: Bundle, plan: BenchPlan, note: Callable[[str], None]) -> Weight | None:
    if not plan.memory:
        return None
    largest = max(plan.cases, key=lambda case: (case.batch * case.prompts, case.batch))
    weight = weigh(
        bundle.root,
        batch=largest.batch,
        prompts=largest.prompts,
        device=plan.device,
        threads=plan.threads,
        digest=bundle.digest,
    )
    if isinstance(weight, str):
        note(f"The memory of {bundle.root.name} is not known: {weight}")
        return None
    return weight


def size_of_parts(bundle: Bundle) -> int:
    """Bytes of the files that run a bundle's parts."""
    manifest = bundle.manifest
    files = {path for part in manifest.parts.values() for path in (part.artifact, *part.side_files)}
    return sum(manifest.files[path].bytes for path in files)


def baseline_among(bundles: Sequence[Bundle]) -> int:
    """The first bundle of full precision, or the first."""
    precisions = [bundle.manifest.recipe.get("precision") for bundle in bundles]
    return precisions.index("fp32") if "fp32" in precisions else 0


def _described(bundle: Bundle) -> Mapping[str, str]:
    manifest = bundle.manifest
    return {
        "model": manifest.model,
        "target": manifest.target,
        "runtime": backend_from_name(manifest.target).version() or "?",
        "precision": str(manifest.recipe.get("precision", "?")),
    }


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """The shortest ends of their paths that tell them apart."""
    for depth in range(1, max(len(bundle.root.parts) for bundle in bundles) + 1):
        names = ["/".join(bundle.root.parts[-depth:]) for bundle in bundles]
        if len(set(names)) == len(names):
            return names
    return [bundle.root.name for bundle in bundles]
