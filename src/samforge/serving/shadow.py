"""A share of the questions goes to a reference bundle as well: how far do the answers drift?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeAlias

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import Overloaded, SettingError
from samforge.serving.jobs import Job, Ticket
from samforge.serving.scheduler import Scheduler

_LOG = logging.getLogger("samforge.serving")
_CLIENT = "shadow"
_SAME = 0.5  # IoU from which two masks are of one object, as in COCO


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadowing:
    """What is asked again, and how often."""

    reference: str
    """Name of the bundle that is asked again: fp32, for one."""
    share: float
    """Of the questions to the other bundles, above 0 and at most 1."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError(f"The share of shadow requests is {self.share!r:.40}. Give 0 to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How two answers to one question differ."""

    agreement: float
    """Detections that both have, of all: ``2 * both / (one + other)``; 1 where both are empty."""
    mask_iou: float | None
    """Mean over those that both have; None where there are none."""
    score_shift: float
    """Largest difference of a phrase's best scores."""


class DriftWatcher(Protocol):
    """Hears of compared answers."""

    def drifted(self, model: str, drift: Drift) -> None:
        """A question was asked of the reference as well."""
        ...


def drift_between(one: Detections, other: Detections) -> Drift:
    """Compare two answers to one question about one picture.

    Detections of one phrase are matched by the IoU of their masks, the best pair first.
    """
    overlaps: list[float] = []
    for label in dict.fromkeys([*one.labels, *other.labels]):
        mine, theirs = (part.filter(label=label).masks for part in (one, other))
        iou = mine.iou(theirs)
        while iou.size and iou.max() >= _SAME:
            row, column = np.unravel_index(int(iou.argmax()), iou.shape)
            overlaps.append(float(iou[row, column]))
            iou[row, :] = iou[:, column] = 0.0
    total = len(one) + len(other)
    shifts = [
        abs(score - other.best_scores[phrase])
        for phrase, score in one.best_scores.items()
        if phrase in other.best_scores
    ]
    return Drift(
        agreement=2 * len(overlaps) / total if total else 1.0,
        mask_iou=float(np.mean(overlaps)) if overlaps else None,
        score_shift=max(shifts, default=0.0),
    )


Reference: TypeAlias = Callable[[], Scheduler]
"""What answers for the reference; raises Overloaded while it is not ready."""


class Shadow:
    """Asks the reference after its clients were answered, and only what it has time for."""

    def __init__(self, shadowing: Shadowing, reference: Reference, watcher: DriftWatcher) -> None:
        """Keep what is asked.

        Args:
            shadowing: How often.
            reference: What answers.
            watcher: Hears of the drift.
        """
        self._share, self._reference, self._watcher = shadowing.share, reference, watcher
        self._owed, self._lock = 0.0, Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")

    def follow(self, model: str, ticket: Ticket, seconds: float) -> None:
        """Ask the reference once a job is answered, where it is this one's turn."""
        with self._lock:
            self._owed += self._share
            if self._owed < 1.0:
                return
            self._owed -= 1.0
        ticket.future.add_done_callback(
            lambda done: self._answered(model, ticket.job, done, seconds)
        )

    def close(self) -> None:
        """Compare nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _answered(self, model: str, job: Job, done: Future[Any], seconds: float) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        again = Job(
            client=_CLIENT,
            seconds=seconds,
            picture=job.picture,
            question=job.question,
            work=job.work,
        )
        try:
            ticket = self._reference().submit(again)
            ticket.future.add_done_callback(
                lambda other: self._pool.submit(self._compare, model, done.result(), other)
            )
        except (Overloaded, RuntimeError):
            return  # it has no time for it: clients come first

    def _compare(self, model: str, found: Detections, other: Future[Any]) -> None:
        if other.cancelled():
            return
        error = other.exception()
        if error is not None:
            _LOG.warning("a shadow request failed: %s", error)
            return
        self._watcher.drifted(model, drift_between(found, other.result()))
