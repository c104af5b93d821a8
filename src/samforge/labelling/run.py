"""Labels a whole source: the work behind ``samforge label``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from samforge.core.bundle import Bundle, open_bundle
from samforge.labelling.engines import MakeEngine, local_engine
from samforge.labelling.job import LabelJob
from samforge.labelling.ledger import NAME, Ledger
from samforge.labelling.ontology import Ontology
from samforge.labelling.outcome import Outcome
from samforge.labelling.settings import LabelPlan, LabelResult, LabelSettings, Watch, unwatched

Sources: TypeAlias = str | Path | Sequence[str | Path]


def plan_labels(
    bundle: str | Path | Bundle,
    sources: Sources,
    ontology: Ontology,
    out: str | Path,
    *,
    settings: LabelSettings = LabelSettings(),  # noqa: B008  it is frozen
) -> LabelPlan:
    """Say what :func:`label` would do; nothing is written and no model is loaded.

    Raises:
        As :func:`label`.
    """
    job = job_from(bundle, sources, ontology, out, settings)
    done: set[int] = set()
    if (job.out / NAME).exists() and not settings.restart:
        with Ledger(job.out / NAME) as ledger:
            ledger.identify(job.identity())
            done = ledger.done(job.items)
    return job.plan(done)


def label(  # noqa: PLR0913  the public call: every argument is one a user gives
    bundle: str | Path | Bundle,
    sources: Sources,
    ontology: Ontology,
    out: str | Path,
    *,
    settings: LabelSettings = LabelSettings(),  # noqa: B008  it is frozen
    watch: Watch = unwatched,
    engine: MakeEngine = local_engine,
) -> LabelResult:
    """Label everything that a source holds, and write it as data sets.

    A run that is killed goes on where it was when it is called again, and comes to the same files,
    to the byte. Items that cannot be labelled are listed, tried again by the next run, and stop
    nothing.

    Args:
        bundle: What finds the objects.
        sources: Folders, globs, lists, COCO files, Parquet, tars, videos, URLs: see
            docs/labelling.md.
        ontology: Classes and their phrases.
        out: Folder of the data sets and of the ledger: new, empty, or of an earlier run.
        settings: Formats, devices, and what part of the source.
        watch: Told of the progress.
        engine: What labels: this machine, or ``samforge.apps.ray.ray_engine``.

    Returns:
        The files, counts and failures.

    Raises:
        SourceError: A source cannot be listed, holds nothing, or vanishes meanwhile.
        OtherRun: The folder holds labels of another bundle, ontology, version or source.
        OutputError: The folder cannot be written, is somebody else's, or the disk is full.
        PromptError: A phrase or an exemplar is not usable.
        SettingError: A setting is not usable.
        BundleError: The bundle cannot be opened.
    """
    job = job_from(bundle, sources, ontology, out, settings)
    with ExitStack() as stack:
        ledger = stack.enter_context(job.ledger())
        chunks = job.chunks(ledger.done(job.items))
        resumed = len(job.chosen) - sum(map(len, chunks))
        watch(resumed, len(job.chosen))
        seconds, processor, labelled = 0.0, "", 0
        if chunks:
            work, processor = engine(job.openings(), job.ontology, stack)
            start = time.perf_counter()
            ended = resumed
            for outcomes in _of_living_source(work(chunks), job):
                ledger.add(outcomes, job.items)
                ended += sum(one.ended for one in outcomes)
                labelled += sum(one.ended and one.failure is None for one in outcomes)
                watch(ended, len(job.chosen))
            seconds = time.perf_counter() - start
        return job.written(
            ledger, labelled=labelled, resumed=resumed, seconds=seconds, processor=processor
        )


def job_from(
    bundle: str | Path | Bundle,
    sources: Sources,
    ontology: Ontology,
    out: str | Path,
    settings: LabelSettings,
) -> LabelJob:
    """What a run was asked for, with its source listed.

    Raises:
        As :func:`label`.
    """
    several = [sources] if isinstance(sources, str | Path) else list(sources)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    return LabelJob(opened, several, ontology, Path(out), settings)


def _of_living_source(outcomes: Iterator[list[Outcome]], job: LabelJob) -> Iterator[list[Outcome]]:
    """Outcomes, as long as the source is there: what is gone with it is no broken picture."""
    for several in outcomes:
        if any(one.failure is not None and one.failure.kind == "SourceError" for one in several):
            job.require_sources()
        yield several
