"""Runs the steps of a build: resumed where they are done, side by side where asked for."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeAlias, cast

from samforge.core import worker
from samforge.core.errors import BuildError, SamforgeWarning
from samforge.core.manifest import StepResult
from samforge.core.recipe import Recipe
from samforge.core.staging import Staging, StepRecord, step_key
from samforge.models.loading import model_from_name
from samforge.steps.context import BuildContext, StepOutput, collect_garbage
from samforge.steps.plan import BundleStep, Chain, PartStep, Stage, Step, steps_of

_Answer: TypeAlias = tuple[StepOutput, StepResult, list[str]]
"""What a worker sends back; the last are its warnings."""


class Progress(Protocol):
    """Told about each step, so that a command line can show it."""

    def started(self, step: str, part: str, index: int, total: int) -> None:
        """A step begins; ``index`` counts from 0, ``part`` is empty for the whole bundle."""
        ...

    def finished(self, result: StepResult) -> None:
        """A step ended, or its earlier result was taken over."""
        ...


@dataclass(kw_only=True, slots=True)
class Run:
    """One build's steps while they run."""

    context: BuildContext
    """What the steps work with."""
    staging: Staging
    """Remembers finished steps."""
    origin: Mapping[str, Mapping[str, str]]
    """Hashes of the parents and versions of the packages: they decide every step's key."""
    progress: Progress | None = None
    """Told about each step."""
    records: dict[Step, StepRecord] = field(default_factory=dict)
    """Finished steps."""
    keys: dict[Step, str] = field(default_factory=dict)
    """Key of every step of the plan."""

    def all(self, planned: Sequence[Stage], *, jobs: int) -> dict[str, StepRecord]:
        """Run a plan.

        Args:
            planned: From :func:`samforge.steps.plan.stages`.
            jobs: Chains of one stage that run side by side, each in a process of its own; with 1
                everything runs in this process.

        Returns:
            The record of every step by its name, in the plan's order.
        """
        steps = steps_of(planned)
        self._set_keys(planned)
        places = {step: index for index, step in enumerate(steps)}
        for stage in planned:
            todo = [self._unfinished(chain, places) for chain in stage]
            todo = [chain for chain in todo if chain]
            if jobs > 1 and len(todo) > 1:
                self._side_by_side(todo, places, jobs)
                continue
            for chain in todo:
                for step in chain:
                    self._started(step, places)
                    self._record(step, *_made(self.context, step))
        return {str(step): self.records[step] for step in steps}

    def _set_keys(self, planned: Sequence[Stage]) -> None:
        before: list[str] = []
        for stage in planned:
            ends = []
            for chain in stage:
                previous = before
                for step in chain:
                    self.keys[step] = self._key(step, previous)
                    previous = [self.keys[step]]
                ends += previous
            before = ends

    def _key(self, step: Step, before: Sequence[str]) -> str:
        recipe = self.context.recipe
        return step_key(
            str(step),
            inputs=self.origin["parents"],
            settings={
                "model": self.context.model.settings(),
                "seed": recipe.seed,
                "gates": recipe.gates,
                "reference": recipe.reference,
                "before": list(before),
                **{name: getattr(recipe, name) for name in step.kind.settings},
                **({"runtime": self.context.runtime} if step.kind.stamped else {}),
            },
            versions=self.origin["versions"],
        )

    def _unfinished(self, chain: Chain, places: Mapping[Step, int]) -> Chain:
        """Take over what an earlier build finished; what is left of the chain."""
        for done, step in enumerate(chain):
            record = self.staging.step(str(step), self.keys[step])
            if record is None:
                return chain[done:]
            self._started(step, places)
            self._finished(step, record)
        return ()

    def _side_by_side(self, chains: Sequence[Chain], places: Mapping[Step, int], jobs: int) -> None:
        with _pool(min(jobs, len(chains))) as pool:
            running: dict[Future[_Answer], Chain] = {}
            # The last parts take longest: they begin.
            waiting = list(reversed(chains))
            while waiting or running:
                while waiting and len(running) < jobs:
                    self._submit(pool, running, waiting.pop(0), places)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    chain = running.pop(future)
                    self._record(chain[0], *_result(future, chain[0]))
                    if chain[1:]:
                        waiting.insert(0, chain[1:])

    def _submit(
        self,
        pool: ProcessPoolExecutor,
        running: dict[Future[_Answer], Chain],
        chain: Chain,
        places: Mapping[Step, int],
    ) -> None:
        self._started(chain[0], places)
        context = self.context
        future = pool.submit(
            _made_elsewhere, context.recipe, context.root, context.parts, context.until, chain[0]
        )
        running[future] = chain

    def _started(self, step: Step, places: Mapping[Step, int]) -> None:
        if self.progress:
            self.progress.started(step.kind.name, step.part or "", places[step], len(places))

    def _record(self, step: Step, made: StepOutput, result: StepResult) -> None:
        record = self.staging.record(str(step), self.keys[step], made.outputs, result)
        self._finished(step, record)

    def _finished(self, step: Step, record: StepRecord) -> None:
        self.records[step] = record
        if self.progress:
            self.progress.finished(record.result)


def _made(context: BuildContext, step: Step) -> tuple[StepOutput, StepResult]:
    start = time.perf_counter()
    with _told() as told:
        if step.part is None:
            made = cast(BundleStep, step.kind.make)(context)
        else:
            made = cast(PartStep, step.kind.make)(context, step.part)
    collect_garbage(context)
    result = StepResult(
        name=step.kind.name,
        part=step.part,
        seconds=round(time.perf_counter() - start, 3),
        bytes=sum(
            context.path(path).stat().st_size
            for path in made.outputs
            if path.startswith("parts/")  # what only later steps read is not counted
        ),
        peak_gib=_peak_gib(),
        resumed=False,
        fidelity=made.figures,
        gates=made.gates,
        notes=tuple(dict.fromkeys((*made.notes, *told))),
    )
    return made, result


@contextmanager
def _told() -> Iterator[list[str]]:
    """Keep what a step warns of, once each, and warn of it when the step ends.

    A warning is gone once it is shown: the bundle, ``--json`` and a build that resumes say it too.
    """
    told: list[str] = []
    others: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SamforgeWarning)
            yield told
    finally:
        for one in caught:
            if issubclass(one.category, SamforgeWarning):
                told.append(str(one.message))
            else:
                others.append(one)
        told[:] = dict.fromkeys(told)
        for one in others:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        for message in told:
            warnings.warn(message, SamforgeWarning, stacklevel=2)


@lru_cache(maxsize=1)
def _context(recipe: Recipe, root: Path, parts: tuple[str, ...], until: str | None) -> BuildContext:
    """The context of a worker process; the model is found once, not once a step."""
    model = model_from_name(
        recipe.model,
        reference=recipe.reference,
        image_size=recipe.image_size,
        random_weights=recipe.random_weights,
        seed=recipe.seed,
        tokenizer=recipe.tokenizer,
        tracker=recipe.tracker,
    )
    return BuildContext(recipe=recipe, model=model, root=root, parts=parts, until=until)


def _made_elsewhere(
    recipe: Recipe, root: Path, parts: tuple[str, ...], until: str | None, step: Step
) -> _Answer:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SamforgeWarning)
        made, result = _made(_context(recipe, root, parts, until), step)
    ours = [str(one.message) for one in caught if issubclass(one.category, SamforgeWarning)]
    return made, result, ours


def _result(future: Future[_Answer], step: Step) -> tuple[StepOutput, StepResult]:
    try:
        made, result, messages = future.result()
    except BrokenProcessPool as error:
        raise BuildError(
            f"The process of {step} was ended from outside, as a system does that runs out of "
            "memory. Run the build again with --jobs 1: finished steps are kept."
        ) from error
    for message in messages:
        warnings.warn(message, SamforgeWarning, stacklevel=2)
    return made, result


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes; whatever ends this one ends them, running steps included."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=worker.begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _peak_gib() -> float:
    """Highest memory use of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (30 if sys.platform == "darwin" else 20), 2)
