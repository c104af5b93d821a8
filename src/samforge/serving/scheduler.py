"""Two stages over any number of segmenters: a picture is encoded once, then asked by everybody.

decode threads -> encode (batches of distinct pictures) -> detect (pairs of picture and phrase, of
any jobs). Before each stage, jobs that are late or whose clients left are taken out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from samforge.core.errors import DeadlineExceeded, Overloaded
from samforge.core.images import RgbImage
from samforge.runtime import Segmenter
from samforge.runtime.batches import decoding_threads
from samforge.runtime.pending import Pending
from samforge.serving.admission import Admission, Pace, Refusal
from samforge.serving.cache import EncodingCache
from samforge.serving.encoding import Encoding, Stage
from samforge.serving.groups import Group
from samforge.serving.jobs import Job, Picture, Ticket
from samforge.serving.limits import Limits
from samforge.serving.lines import Lines
from samforge.serving.watching import Load, Unwatched, Watcher

Read = Callable[[Picture], RgbImage]


class Scheduler:
    """Accepts jobs from any thread and answers them through futures."""

    def __init__(
        self,
        segmenters: Sequence[Segmenter],
        read: Read,
        *,
        digest: str = "",
        limits: Limits | None = None,
        cache: EncodingCache | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """Start the threads.

        Args:
            segmenters: Of one bundle, one for each device.
            read: Decodes a picture.
            digest: Of the bundle: encodings are kept under it.
            limits: What is accepted.
            cache: Keeps encodings, for several schedulers together.
            watcher: Hears of what happens.
        """
        self._limits = limits or Limits()
        self._segmenters = tuple(segmenters)
        self._read = read
        # Pinned memory is the same for every GPU, and like any other for a processor.
        self._staged = next((one for one in segmenters if one.overlaps), segmenters[0]).staged
        cache = EncodingCache(self._limits.cache_bytes) if cache is None else cache
        self._lines = Lines([one.device for one in self._segmenters], cache, digest)
        self._watcher = watcher or Unwatched()
        # One lock, and a bell for each kind of thread: one for all would have every thread ask for
        # the interpreter several times a request, for nothing.
        self._lock = threading.RLock()
        self._decoders_wait = threading.Condition(self._lock)
        self._segmenters_wait = threading.Condition(self._lock)
        self._drain_waits = threading.Condition(self._lock)
        self._admission = Admission(self._limits)
        self._encode_pace, self._detect_pace = Pace(), Pace()
        self._closing = self._stopped = False
        # By their futures, which call back: one that held its ticket would keep its picture's bytes
        # until the garbage is collected.
        self._open: dict[Future[Any], Ticket] = {}
        # Decoded pictures that wait: enough that no segmenter does, and no more than that.
        self._most_decoded = sum(2 * one.most_images for one in self._segmenters)
        self._threads = [
            threading.Thread(target=self._decode, name="decode", daemon=True)
            for _ in range(decoding_threads(self.workers))
        ]
        self._threads += [
            threading.Thread(target=self._work, args=(index,), name=f"segment {index}", daemon=True)
            for index in range(len(self._segmenters))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> int:
        """How many segmenters there are."""
        return len(self._segmenters)

    def submit(self, job: Job) -> Ticket:
        """Accept a job.

        Returns:
            What its client waits with: ``future`` has the answer, and cancelling it is leaving.

        Raises:
            Overloaded: It cannot be answered in time, or too much waits already.
        """
        with self._lock:
            try:
                self._check(job)
            except Refusal as refusal:
                self._watcher.refused(refusal.reason)
                raise
            ticket = Ticket(job=job)
            self._admission.add(job)
            self._open[ticket.future] = ticket
            known = self._lines.place(ticket)
            if known is False:
                self._decoders_wait.notify()
            else:
                self._segmenters_wait.notify_all()  # not all of them may have its picture
        if known is not None:
            self._watcher.looked_up(known=known)
        # Outside the lock: the future calls it at once where it is done already.
        ticket.future.add_done_callback(self._ended)
        return ticket

    def load(self) -> Load:
        """How much there is to do."""
        with self._lock:
            return Load(
                waiting=self._admission.waiting,
                to_decode=self._lines.waiting(Stage.WAITS),
                to_encode=self._lines.waiting(Stage.DECODED),
                to_detect=sum(map(len, self._lines.to_detect.values())),
                expected_s=self._expected_s(),
                closing=self._closing,
            )

    def forget(self, picture: str) -> None:
        """Drop the encoding of a picture."""
        self._lines.forget(picture)

    def is_alive(self) -> bool:
        """Whether every thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    def drain(self, seconds: float) -> bool:
        """Accept nothing more, and wait for what was accepted.

        Returns:
            Whether all of it was answered in time.
        """
        end = time.monotonic() + seconds
        with self._lock:
            self._closing = True
            while self._open:
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._drain_waits.wait(left)
        return True

    def close(self) -> None:
        """Stop at once: what waits is refused, and the segmenters are closed."""
        with self._lock:
            self._closing = self._stopped = True
            left = list(self._open.values())
            self._decoders_wait.notify_all()
            self._segmenters_wait.notify_all()
        for thread in self._threads:
            thread.join()
        for ticket in left:
            ticket.fail(Overloaded("The server has ended. Ask it again later.", retry_after_s=5.0))
        for segmenter in self._segmenters:
            segmenter.close()

    # --- acceptance, under the lock

    def _check(self, job: Job) -> None:
        if self._closing:
            raise Refusal("The server is ending. Ask it again later.", "closing", 5.0)
        is_new = job.picture is not None and not self._lines.is_known(job.picture)
        # Nothing of its kind is under way, so no pace is measured anew: it is tried, whatever the
        # last one took. What waits before it still counts.
        tried = not self._lines.encodings if is_new else not self._admission.waiting
        own = 0.0 if tried else self._detect_pace.seconds + is_new * self._encode_pace.seconds
        self._admission.check(job, self._expected_s() + own / len(self._segmenters))

    def _expected_s(self) -> float:
        """Seconds until everything that waits is done."""
        pictures, asked = len(self._lines.encodings), self._admission.waiting
        total = pictures * self._encode_pace.seconds + asked * self._detect_pace.seconds
        return total / len(self._segmenters)

    def _ended(self, future: Future[Any]) -> None:
        """A job was answered, failed, or its client left: what it took is free."""
        with self._lock:
            ticket = self._open.pop(future)
            self._admission.remove(ticket.job)
            self._lines.leave(ticket)
            if self._lines.to_decode:  # a picture that nobody wants any more made room for another
                self._decoders_wait.notify()
            if not self._open:
                self._drain_waits.notify_all()
        self._watcher.ended(_outcome(future), ticket.spent)

    # --- the threads

    def _decode(self) -> None:
        while True:
            with self._lock:
                while (encoding := self._next_to_decode()) is None:
                    if self._stopped:
                        return
                    self._decoders_wait.wait()
            self._decoded(encoding)
            del encoding  # its pixels are not this thread's to keep while it waits

    def _next_to_decode(self) -> Encoding | None:
        if self._stopped or self._lines.waiting(Stage.DECODED) >= self._most_decoded:
            return None
        return self._lines.next_to_decode()

    def _decoded(self, encoding: Encoding) -> None:
        start = time.monotonic()
        try:
            rgb = self._staged(self._read(encoding.picture))
        except Exception as error:  # noqa: BLE001  # told to those who sent it
            self._failed(encoding, error)
            return
        with self._lock:
            self._lines.decoded(encoding, rgb, (time.monotonic() - start) * 1e3)
            self._segmenters_wait.notify()

    def _failed(self, encoding: Encoding, error: Exception) -> None:
        with self._lock:
            tickets = self._lines.failed(encoding)
        for ticket in tickets:
            ticket.fail(error)

    def _work(self, index: int) -> None:
        turn: _Turn | None = _Turn()
        while turn is not None:
            turn = self._step(index, turn)

    def _step(self, index: int, turn: _Turn) -> _Turn | None:
        """Do the next thing: what it is of is free when this returns, and not when the next comes.

        A device has its next work before the last answers are waited for, where it runs beside.

        Returns:
            What comes after it; None at the end.
        """
        segmenter = self._segmenters[index]
        with self._lock:
            while (batch := self._next(index, asks=turn.asks)) is None and turn.begun is None:
                if self._stopped:
                    return None
                self._segmenters_wait.wait()
        if isinstance(batch, Group):
            return _Turn(asks=False, begun=self._asked(segmenter, batch, turn.begun))
        if batch is not None:
            self._encode(segmenter, batch)
        if turn.begun is not None:
            self._finish(segmenter, turn.begun)
        return _Turn()

    def _asked(self, segmenter: Segmenter, group: Group, before: _Begun | None) -> _Begun | None:
        """Ask a group, and finish the one before it.

        Returns:
            What runs beside this thread, to be finished; None where the answers were given.
        """
        beside = segmenter.overlaps and not group.is_work
        if before is not None and not beside:  # its answers do not wait for what is done at once
            self._finish(segmenter, before)
        begun = self._begin(segmenter, group)
        if before is not None and beside:
            self._finish(segmenter, before)
        if begun is None or beside:
            return begun
        self._finish(segmenter, begun)
        return None

    def _next(self, index: int, *, asks: bool) -> Group | list[Encoding] | None:
        if self._stopped:
            return None
        if asks:
            return self._next_group(index) or self._next_pictures(index)
        return self._next_pictures(index) or self._next_group(index)

    def _next_pictures(self, index: int) -> list[Encoding] | None:
        before = self._lines.waiting(Stage.DECODED)
        batch = self._lines.next_pictures(self._segmenters[index].most_images)
        if self._lines.waiting(Stage.DECODED) < before:  # late ones may be all that was taken out
            self._decoders_wait.notify_all()  # there is room for decoded ones
        return batch

    def _next_group(self, index: int) -> Group | None:
        one = self._segmenters[index]
        return self._lines.next_group(
            index, one.device, images=one.most_images, rows=self._limits.phrases
        )

    def _encode(self, segmenter: Segmenter, batch: Sequence[Encoding]) -> None:
        start = time.monotonic()
        try:
            encoded = segmenter.encode_images([one.pixels() for one in batch])
        except Exception as error:  # noqa: BLE001  # told to those who asked
            if len(batch) == 1:
                self._failed(batch[0], error)
            else:  # one of them may be at fault, or all together too large
                for one in batch:
                    self._encode(segmenter, [one])
            return
        seconds = time.monotonic() - start
        self._watcher.encoded(len(batch), seconds * 1e3)
        with self._lock:
            self._encode_pace.took(seconds, len(batch))
            for one, features in zip(batch, encoded, strict=True):
                self._lines.encoded(one, features, seconds * 1e3)
            self._segmenters_wait.notify_all()

    def _begin(self, segmenter: Segmenter, group: Group) -> _Begun | None:
        """Begin with a group.

        Returns:
            What is to be finished; None where it failed, and all of it was told.
        """
        start = time.monotonic()
        try:
            pending = group.begin(segmenter)
        except Exception as error:  # noqa: BLE001  # told to those who asked
            self._ask_apart(segmenter, group, error)
            return None
        return _Begun(group=group, pending=pending, start=start, spent=time.monotonic() - start)

    def _finish(self, segmenter: Segmenter, begun: _Begun) -> None:
        """Wait for the answers of a group, and give them."""
        group, start = begun.group, time.monotonic()
        try:
            results = begun.pending.result()
        except Exception as error:  # noqa: BLE001  # told to those who asked
            self._ask_apart(segmenter, group, error)
            return
        end = time.monotonic()
        detect_ms = (end - begun.start) * 1e3
        self._watcher.detected(len(group.tickets), group.pairs, detect_ms)
        with self._lock:
            # What was done between the two is of others, and counted there.
            self._detect_pace.took(begun.spent + end - start, len(group.tickets))
        for ticket, result in zip(group.tickets, results, strict=True):
            ticket.spent.detect = detect_ms
            ticket.encoded = None
            ticket.answer(result)

    def _ask_apart(self, segmenter: Segmenter, group: Group, error: Exception) -> None:
        """Ask again each by itself, after a failure: a fault of one is not the others'."""
        if len(group.tickets) == 1:
            group.tickets[0].fail(error)
            return
        for ticket in group.tickets:
            if ticket.is_live():
                begun = self._begin(segmenter, Group.of(ticket))
                if begun is not None:
                    self._finish(segmenter, begun)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Begun:
    """A group that a device works on."""

    group: Group
    pending: Pending[list[Any]]
    start: float
    spent: float
    """Seconds in which its thread did nothing else so far."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Turn:
    """Where a segmenter's thread stands."""

    asks: bool = True
    """Whether the detector's turn is next, where both stages have work."""
    begun: _Begun | None = None
    """To be finished."""


def _outcome(future: Future[Any]) -> str:
    if future.cancelled():
        return "left"
    error = future.exception()
    if error is None:
        return "answered"
    return "late" if isinstance(error, DeadlineExceeded) else "failed"
