"""Which jobs are accepted: no more than can be held, and none that would be late."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

from samforge.core.errors import Overloaded
from samforge.serving.jobs import Job
from samforge.serving.limits import Limits

_WEIGHT = 0.2  # of the newest measurement
_SURE = 0.75
"""Of its time, that a job may be expected to take: what is expected is no promise, and a job that
was accepted should be answered."""


@dataclass(slots=True)
class Pace:
    """Seconds that one thing of a kind takes, as of late."""

    seconds: float = 0.0

    def took(self, seconds: float, count: int) -> None:
        """Learn from a batch of them."""
        each = seconds / max(1, count)
        self.seconds = each if self.seconds == 0 else self.seconds + _WEIGHT * (each - self.seconds)


class Admission:
    """Counts what is accepted. Not safe to use from several threads: its owner has a lock."""

    def __init__(self, limits: Limits) -> None:
        """Hold to these limits."""
        self._limits = limits
        self._of_client: Counter[str] = Counter()
        self.waiting = 0
        self.bytes = 0

    def check(self, job: Job, expected_s: float) -> None:
        """Make sure that a job may be accepted.

        Args:
            job: It.
            expected_s: Seconds until it would be answered.

        Raises:
            Overloaded: It may not; ``reason`` says why.
        """
        limits, wait = self._limits, max(1.0, math.ceil(expected_s))
        if self._of_client[job.client] >= limits.waiting_of_client:
            raise Refusal(
                f"{limits.waiting_of_client} of your requests are waiting already, the most that "
                "one client may have. Wait for some of them.",
                "client",
                wait,
            )
        if self.waiting >= limits.waiting:
            raise Refusal(
                f"{self.waiting} requests are waiting already, the most that this server holds. "
                "Ask again later.",
                "full",
                wait,
            )
        if self.bytes + job.nbytes > limits.waiting_bytes and self.waiting:
            raise Refusal(
                f"Pictures and masks of {self.bytes >> 20} MiB are waiting already. Ask again "
                "later.",
                "bytes",
                wait,
            )
        left = job.deadline - time.monotonic()
        if expected_s > _SURE * left:
            raise Refusal(
                f"The answer would take about {expected_s:.2g} s, too near to the "
                f"{max(left, 0.0):.2g} s that the request has. Ask again later, or give it more "
                "time.",
                "late",
                max(1.0, math.ceil(expected_s - _SURE * left)),
            )

    def add(self, job: Job) -> None:
        """Count a job that is accepted."""
        self.waiting += 1
        self.bytes += job.nbytes
        self._of_client[job.client] += 1

    def remove(self, job: Job) -> None:
        """Count it no more: it was answered, or its client left."""
        self.waiting -= 1
        self.bytes -= job.nbytes
        self._of_client[job.client] -= 1
        if not self._of_client[job.client]:
            del self._of_client[job.client]


class Refusal(Overloaded):
    """Why a job is not accepted."""

    def __init__(self, message: str, reason: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s, of_client=reason == "client")
        self.reason = reason
