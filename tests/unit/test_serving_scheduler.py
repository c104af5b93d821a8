"""The scheduler: one encode for everybody, turns, bounds, deadlines, and clients that leave."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from counting import Counting

from samforge.core.errors import DeadlineExceeded, ImageError, Overloaded
from samforge.core.images import RgbImage
from samforge.runtime import question_from
from samforge.serving import EncodingCache, Job, Limits, Picture, Scheduler, Spent, Ticket
from samforge.serving.admission import Refusal
from samforge.serving.cache import Key, bytes_of

Make = Callable[..., Scheduler]


def picture(number: int) -> Picture:
    return Picture.of(bytes([number]) * 4)


def read(one: Picture) -> RgbImage:
    if not isinstance(one.data, bytes) or one.data[0] == 255:
        raise ImageError("That is no picture.")
    return np.full((4, 6, 3), one.data[0], np.uint8)


def job(number: int, *phrases: str, client: str = "a", seconds: float = 10.0, **more: Any) -> Job:
    return Job(
        client=client,
        seconds=seconds,
        picture=picture(number),
        question=question_from(phrases or ("star",), **more),
    )


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lookups: list[bool] = []
        self.refusals: list[str] = []
        self.outcomes: list[str] = []
        self.pairs: list[tuple[int, int]] = []

    def encoded(self, images: int, milliseconds: float) -> None: ...

    def detected(self, jobs: int, pairs: int, milliseconds: float) -> None:
        self.pairs.append((jobs, pairs))

    def looked_up(self, *, known: bool) -> None:
        self.lookups.append(known)

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def ended(self, outcome: str, spent: Spent) -> None:
        self.outcomes.append(outcome)


@pytest.fixture(params=[False, True], ids=["host", "device"], autouse=True)
def overlaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Segmenters of both kinds: whose answers are there at once, and whose are waited for."""
    monkeypatch.setattr(Counting, "overlaps", request.param)
    return bool(request.param)


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Scheduler] = []
    gates: list[Counting] = []

    def scheduler(*segmenters: Counting, **settings: Any) -> Scheduler:
        gates.extend(segmenters)
        made.append(Scheduler(segmenters, settings.pop("read", read), **settings))  # type: ignore[arg-type]
        return made[-1]

    yield scheduler
    for one in gates:
        one.gate.set()
        one.detect_gate.set()
    for one in made:
        one.close()


def results(tickets: list[Ticket]) -> list[Any]:
    return [ticket.future.result(10) for ticket in tickets]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_64_clients_with_one_picture_are_one_encode(make: Make) -> None:
    segmenter, reads = Counting(), []
    segmenter.gate.clear()

    def counted(one: Picture) -> RgbImage:
        reads.append(one.key)
        return read(one)

    scheduler = make(segmenter, read=counted)
    tickets = [
        scheduler.submit(job(7, f"phrase {number % 4}", client=f"client {number}"))
        for number in range(64)
    ]
    segmenter.gate.set()
    for number, found in enumerate(results(tickets)):
        assert found.labels == (f"phrase {number % 4}",)
        assert found.scores.tolist() == [7 / 256]
    assert (segmenter.encodes, len(reads)) == ([[7]], 1)
    assert all(ticket.spent.encode > 0 for ticket in tickets)
    # All of their phrases in one call of the detector, each once.
    assert len(segmenter.asks) == 1
    assert sorted(segmenter.asks[0][1]) == [f"phrase {number}" for number in range(4)]


def test_a_known_picture_is_not_encoded_again(make: Make) -> None:
    segmenter, heard = Counting(), Heard()
    scheduler = make(segmenter, watcher=heard)
    for phrases in (("star",), ("circle", "star")):
        assert scheduler.submit(job(3, *phrases)).future.result(10).labels == phrases
    assert segmenter.encodes == [[3]]
    assert heard.lookups == [False, True]
    scheduler.forget(picture(3).key)
    assert len(scheduler.submit(job(3)).future.result(10)) == 1
    assert segmenter.encodes == [[3], [3]]
    until(lambda: heard.outcomes == ["answered"] * 3)


def test_pictures_are_encoded_in_batches_and_asked_together(make: Make) -> None:
    segmenter = Counting("cuda:0", most_images=4)
    scheduler = make(segmenter)
    segmenter.gate.clear()
    tickets = [scheduler.submit(job(0))]
    until(segmenter.waits.is_set)  # the first is on its way alone
    tickets += [scheduler.submit(job(number)) for number in range(1, 9)]
    until(lambda: scheduler.load().to_encode == 8)
    segmenter.gate.set()
    assert [found.scores[0] * 256 for found in results(tickets)] == list(range(9))
    assert [len(call) for call in segmenter.encodes] == [1, 4, 4]
    assert [pictures for pictures, _ in segmenter.asks] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_pictures_are_staged_by_whom_they_go_up_for(make: Make, overlaps: bool) -> None:
    first, second = Counting("cpu"), Counting("cuda:0")
    first.overlaps = False  # the second is of both kinds
    scheduler = make(first, second)
    results([scheduler.submit(job(number)) for number in range(3)])
    staging, other = (second, first) if overlaps else (first, second)
    assert sorted(staging.stagings) == [0, 1, 2]
    assert other.stagings == []


def test_questions_of_other_kinds_do_not_go_together(make: Make) -> None:
    """A call has one threshold for pixels; phrases with other thresholds are rows of their own."""
    segmenter = Counting()
    scheduler = make(segmenter)
    assert scheduler.submit(job(1)).future.result(10)
    segmenter.asks.clear()
    segmenter.detect_gate.clear()
    segmenter.waits.clear()
    first = scheduler.submit(job(1))
    until(segmenter.waits.is_set)
    asked = [
        scheduler.submit(job(1, "star", threshold=0.5)),
        scheduler.submit(job(1, "star", threshold=0.5, client="b")),
        scheduler.submit(job(1, "star", threshold=0.2)),
        scheduler.submit(job(1, "star", mask_threshold=0.3)),
    ]
    segmenter.detect_gate.set()
    assert len(results([first, *asked])) == 5
    assert [phrases for _, phrases in segmenter.asks] == [("star",), ("star", "star"), ("star",)]


def test_one_faulty_question_does_not_spoil_the_others(make: Make) -> None:
    segmenter = Counting()
    segmenter.broken = {"nothing"}
    segmenter.gate.clear()
    scheduler = make(segmenter)
    good, bad = (scheduler.submit(job(1, phrase)) for phrase in ("star", "nothing"))
    segmenter.gate.set()
    assert good.future.result(10).labels == ("star",)
    with pytest.raises(ValueError, match="nothing is broken"):
        bad.future.result(10)


def test_a_picture_that_is_none_fails_those_who_sent_it(make: Make) -> None:
    segmenter = Counting()
    scheduler = make(segmenter)
    bad = [scheduler.submit(job(255)) for _ in range(2)]
    good = scheduler.submit(job(1))
    assert len(good.future.result(10)) == 1
    for ticket in bad:
        with pytest.raises(ImageError, match="no picture"):
            ticket.future.result(10)
    assert segmenter.encodes == [[1]]


def test_what_is_late_is_taken_out_before_each_stage(make: Make) -> None:
    segmenter = Counting()
    segmenter.gate.clear()
    scheduler = make(segmenter)
    first = scheduler.submit(job(1))
    until(segmenter.waits.is_set)
    late = scheduler.submit(job(2, seconds=0.05))
    also = scheduler.submit(job(3))
    time.sleep(0.1)
    segmenter.gate.set()
    with pytest.raises(DeadlineExceeded, match=r"given 0\.05 s"):
        late.future.result(10)
    assert len(results([first, also])) == 2
    assert segmenter.encodes == [[1], [3]]


def test_whoever_leaves_frees_its_work(make: Make) -> None:
    segmenter, heard = Counting(), Heard()
    segmenter.gate.clear()
    scheduler = make(segmenter, watcher=heard, limits=Limits(waiting=3))
    first = scheduler.submit(job(1))
    until(segmenter.waits.is_set)
    left, shared = scheduler.submit(job(2)), scheduler.submit(job(3, client="b"))
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        scheduler.submit(job(4))
    assert left.future.cancel()
    stays = scheduler.submit(job(3, client="c"))  # there is room again
    assert shared.future.cancel()  # another waits for the same picture
    load = scheduler.load()
    assert (load.waiting, load.to_decode + load.to_encode) == (2, 1)
    segmenter.gate.set()
    assert len(results([first, stays])) == 2
    with pytest.raises(CancelledError):
        left.future.result(10)
    assert segmenter.encodes == [[1], [3]]
    until(lambda: sorted(heard.outcomes) == ["answered", "answered", "left", "left"])


def test_clients_take_turns(make: Make) -> None:
    """One client floods the server; the other's pictures come second, fourth and sixth."""
    segmenter = Counting()
    segmenter.gate.clear()
    scheduler = make(segmenter)
    scheduler.submit(job(100))
    until(segmenter.waits.is_set)
    tickets = [scheduler.submit(job(number, client="greedy")) for number in range(10)]
    tickets += [scheduler.submit(job(50 + number, client="modest")) for number in range(3)]
    until(lambda: scheduler.load().to_encode == 2)  # decoded no further ahead than needed
    segmenter.gate.set()
    assert len(results(tickets)) == 13
    order = [number for (number,) in segmenter.encodes[1:]]
    assert max(order.index(50 + number) for number in range(3)) <= 7
    assert sorted(order[7:]) == sorted(set(order[7:]) & set(range(10)))


def test_a_shared_picture_is_in_the_line_of_each_client(make: Make) -> None:
    """Who asks for what another has at the end of a long line waits in a line of his own."""
    segmenter = Counting()
    segmenter.gate.clear()
    scheduler = make(segmenter)
    scheduler.submit(job(100))
    until(segmenter.waits.is_set)
    tickets = [scheduler.submit(job(number, client="greedy")) for number in range(20)]
    tickets.append(scheduler.submit(job(19, client="modest")))
    segmenter.gate.set()
    assert len(results(tickets)) == 21
    order = [number for (number,) in segmenter.encodes]
    assert order.index(19) < 8
    assert len(order) == 21


def test_both_stages_take_turns(make: Make) -> None:
    """A flood of questions about known pictures does not keep new ones from being encoded."""
    segmenter = Counting()
    scheduler = make(segmenter)
    assert len(scheduler.submit(job(1)).future.result(10)) == 1
    segmenter.detect_gate.clear()
    segmenter.waits.clear()
    blocked = scheduler.submit(job(1))
    until(segmenter.waits.is_set)
    flood = [scheduler.submit(job(1, mask_threshold=(1 + n) / 100)) for n in range(20)]
    new = scheduler.submit(job(2, client="b"))
    until(lambda: scheduler.load().to_encode == 1)
    segmenter.detect_gate.set()
    assert new.future.result(10).scores.tolist() == [2 / 256]
    assert len(results([blocked, *flood])) == 21


def test_a_device_has_its_next_work_before_answers_are_waited_for(
    make: Make, overlaps: bool
) -> None:
    segmenter = Counting(most_images=2)
    segmenter.gate.clear()
    scheduler = make(segmenter)
    tickets = [scheduler.submit(job(number, client=str(number))) for number in range(6)]
    until(lambda: scheduler.load().to_encode >= 2)
    segmenter.gate.set()
    assert [float(one.scores[0]) * 256 for one in results(tickets)] == list(range(6))
    pairs = list(pairwise(segmenter.order))
    assert ("begin", "finish") in pairs, "the last answers have nothing behind them"
    assert (("begin", "encode") in pairs) == overlaps
    assert ("begin", "begin") not in pairs, "pictures that wait come between"


def test_answers_do_not_wait_for_work_that_is_done_where_it_begins(make: Make) -> None:
    """A frame of a video, or boxes, take as long as they take: what is under way comes first."""
    segmenter = Counting()
    segmenter.gate.clear()
    scheduler = make(segmenter)
    asked = scheduler.submit(job(1))
    until(segmenter.waits.is_set)
    done: list[bool] = []
    work = scheduler.submit(
        Job(client="b", seconds=10.0, work=lambda *_: done.append(asked.future.done()))
    )
    segmenter.gate.set()
    segmenter.detect_gate.set()
    assert len(results([asked, work])) == 2
    assert done == [True]


def test_a_failure_that_is_told_late_is_of_the_one_at_fault(make: Make) -> None:
    segmenter = Counting(most_images=2)
    segmenter.broken = {"nothing"}
    segmenter.gate.clear()
    scheduler = make(segmenter)
    asked = [(1, "star"), (1, "nothing"), (2, "star"), (3, "star")]
    good, bad, *others = (scheduler.submit(job(*one)) for one in asked)
    segmenter.gate.set()
    assert [one.scores.tolist() for one in results([good, *others])] == [
        [number / 256] for number in (1, 2, 3)
    ]
    with pytest.raises(ValueError, match="nothing is broken"):
        bad.future.result(10)


def test_a_client_may_have_so_many_and_all_together_so_many(make: Make) -> None:
    segmenter, heard = Counting(), Heard()
    segmenter.gate.clear()
    limits = Limits(waiting=3, waiting_of_client=2, waiting_bytes=10)
    scheduler = make(segmenter, limits=limits, watcher=heard)
    tickets = [scheduler.submit(job(number)) for number in range(2)]
    with pytest.raises(Refusal) as caught:
        scheduler.submit(job(2))
    assert (caught.value.of_client, caught.value.retry_after_s) == (True, 1)
    with pytest.raises(Refusal, match="MiB are waiting"):  # a third picture of 4 bytes
        scheduler.submit(job(2, client="b"))
    work = Job(client="c", seconds=9.0, work=lambda one, _: one.device)
    tickets.append(scheduler.submit(work))
    with pytest.raises(Refusal, match="3 requests") as caught:
        scheduler.submit(job(2, client="d"))
    assert not caught.value.of_client
    assert heard.refusals == ["client", "bytes", "full"]
    segmenter.gate.set()
    assert results(tickets)[2] == "cpu"
    assert scheduler.submit(job(2, client="d")).future.result(10)
    until(lambda: scheduler.load().waiting == 0)
    assert not scheduler._admission._of_client
    assert scheduler._admission.bytes == 0


def test_what_would_be_late_is_not_accepted(make: Make) -> None:
    """It is told at once, and when to come again; what is accepted is answered in time."""
    segmenter, heard = Counting(), Heard()
    scheduler = make(segmenter, watcher=heard)
    scheduler._encode_pace.seconds = 2.0  # as if measured
    segmenter.gate.clear()
    tickets = [scheduler.submit(job(number, seconds=12)) for number in range(4)]
    assert scheduler.load().expected_s == pytest.approx(8.0)
    # Four pictures before it and its own: 10 s, and three quarters of 12 are 9.
    with pytest.raises(Refusal, match=r"about 10 s, too near to the 12 s") as caught:
        scheduler.submit(job(9, seconds=12))
    assert caught.value.retry_after_s == 2
    assert heard.refusals == ["late"]
    tickets.append(scheduler.submit(job(3, seconds=12)))  # it is under way already
    tickets.append(scheduler.submit(job(9, seconds=14)))
    segmenter.gate.set()
    assert len(results(tickets)) == 6


def test_several_devices_share_one_line(make: Make) -> None:
    devices = [Counting(f"cuda:{number}") for number in range(3)]
    for one in devices:
        one.gate.clear()
    scheduler = make(*devices)
    tickets = [scheduler.submit(job(number)) for number in range(3)]
    until(lambda: all(one.waits.is_set() for one in devices))  # each has one picture
    for one in devices:
        one.gate.set()
    assert [found.scores[0] * 256 for found in results(tickets)] == [0, 1, 2]
    assert sorted(one.encodes[0][0] for one in devices) == [0, 1, 2]
    # Who has the picture is asked about it.
    again = [scheduler.submit(job(number, "circle")) for number in range(3)]
    assert [found.labels for found in results(again)] == [("circle",)] * 3
    assert sum(len(one.encodes) for one in devices) == 3
    for one in devices:
        assert {number for numbers, _ in one.asks for number in numbers} == set(one.encodes[0])


def test_work_can_be_tied_to_a_worker(make: Make) -> None:
    devices = [Counting("cpu") for _ in range(3)]
    scheduler = make(*devices)
    for number in (2, 0, 1, 2):
        work = Job(client="a", seconds=9.0, worker=number, work=lambda one, _: one)
        assert scheduler.submit(work).future.result(10) is devices[number]


def test_the_cache_is_bounded_in_bytes() -> None:
    segmenter = Counting()
    encoded = [segmenter.encode_images([read(picture(number))])[0] for number in range(4)]
    assert bytes_of(encoded[0]) == 256
    cache = EncodingCache(700)
    keys = [Key("bundle", str(number)) for number in range(4)]
    for key, one in zip(keys[:2], encoded, strict=False):
        cache.put(key, one)
    assert cache.get(keys[0]) is encoded[0]  # used last now
    cache.put(keys[2], encoded[2])
    assert [cache.get(key) is not None for key in keys] == [True, False, True, False]
    cache.put(keys[2], encoded[3])
    assert (len(cache), cache.nbytes, cache.get(keys[2])) == (2, 512, encoded[3])
    assert cache.get(Key("another", "2")) is None
    cache.drop(keys)
    assert (len(cache), cache.nbytes) == (0, 0)
    small = EncodingCache(200)
    small.put(keys[0], encoded[0])
    assert (len(small), small.nbytes) == (0, 0)


def test_draining_ends_what_was_accepted_and_refuses_the_rest(make: Make) -> None:
    segmenter = Counting()
    segmenter.gate.clear()
    scheduler = make(segmenter)
    tickets = [scheduler.submit(job(number)) for number in range(5)]
    assert not scheduler.drain(0.01)
    with pytest.raises(Refusal, match="is ending"):
        scheduler.submit(job(6))
    threading.Timer(0.05, segmenter.gate.set).start()
    begin = time.monotonic()
    assert scheduler.drain(10)
    assert time.monotonic() - begin < 5  # as soon as the last has ended
    assert all(ticket.future.done() for ticket in tickets)
    assert len(results(tickets)) == 5


def test_closing_refuses_what_waits(make: Make) -> None:
    segmenter = Counting()
    segmenter.gate.clear()
    scheduler = make(segmenter)
    running = scheduler.submit(job(1))
    until(segmenter.waits.is_set)
    waiting = scheduler.submit(job(2))
    threading.Timer(0.05, segmenter.gate.set).start()
    scheduler.close()
    for ticket in (running, waiting):
        with pytest.raises(Overloaded, match="has ended"):
            ticket.future.result(10)
    assert segmenter.closed
    assert not scheduler.is_alive()


def test_nothing_is_kept_of_what_was_answered(make: Make) -> None:
    """Ten thousand jobs leave no trace but the cache."""
    segmenter = Counting()
    scheduler = make(segmenter, limits=Limits(cache_bytes=256 * 3))
    for number in range(2000):
        assert scheduler.submit(job(number % 200)).future.result(10)
    until(lambda: scheduler.load().waiting == 0)
    assert (scheduler._lines.encodings, scheduler._open) == ({}, {})
    assert len(scheduler._lines._cache) == 3
    assert not any(map(len, scheduler._lines.to_detect.values()))


class Slow(Heard):
    """Keeps a worker at the end of a job: whatever is asleep meanwhile stays so."""

    def ended(self, outcome: str, spent: Spent) -> None:
        time.sleep(0.005)
        super().ended(outcome, spent)


def test_a_shared_picture_leaves_nobody_asleep(make: Make) -> None:
    """Its places in other clients' lines are no pictures that wait: decoders have room."""
    for _ in range(3):
        segmenter = Counting()
        segmenter.gate.clear()
        scheduler = make(segmenter, watcher=Slow())
        shared = [scheduler.submit(job(1, client=f"client {number}")) for number in range(4)]
        until(segmenter.waits.is_set)
        other = scheduler.submit(job(2, client="other"))
        time.sleep(0.02)
        segmenter.gate.set()
        assert len(results(shared)) == 4
        assert other.future.result(2).scores.tolist() == [2 / 256]
        assert not any((len(scheduler._lines.to_decode), len(scheduler._lines.to_encode)))


def test_a_shared_picture_is_one_that_waits(make: Make) -> None:
    segmenter = Counting()
    segmenter.gate.clear()
    reading = threading.Event()

    def slow(one: Picture) -> RgbImage:
        assert reading.wait(10)
        return read(one)

    scheduler = make(segmenter, read=slow)
    first = [scheduler.submit(job(number, client="first")) for number in (100, 101)]
    until(lambda: scheduler.load().to_decode == 0)  # both decoders have one
    tickets = [scheduler.submit(job(1, client=f"client {number}")) for number in range(5)]
    assert scheduler.load().to_decode == 1
    reading.set()
    until(segmenter.waits.is_set)
    until(lambda: scheduler.load().to_encode == 2)  # there is room to decode it
    assert scheduler.load().to_decode == 0
    segmenter.gate.set()
    assert len(results([*first, *tickets])) == 7


def test_a_slow_beginning_is_forgotten(make: Make) -> None:
    """One encode that took longer than requests have: the next one is tried, and so measured."""
    segmenter, heard = Counting(), Heard()
    scheduler = make(segmenter, watcher=heard)
    scheduler._encode_pace.seconds = 600.0  # as if measured
    for number in range(30):
        assert scheduler.submit(job(number)).future.result(10)
        until(lambda: scheduler.load().waiting == 0)
    assert heard.refusals == []
    assert scheduler._encode_pace.seconds < 1.0
    segmenter.gate.clear()
    scheduler._encode_pace.seconds = 600.0
    probe = scheduler.submit(job(50))
    with pytest.raises(Refusal, match="too near"):  # one is tried, not all
        scheduler.submit(job(51))
    segmenter.gate.set()
    assert probe.future.result(10)


def test_a_slow_beginning_is_forgotten_among_questions_about_known_pictures(make: Make) -> None:
    """They never end where a server is busy; a new picture waits for them, not for another one."""
    segmenter = Counting()
    scheduler = make(segmenter)
    assert scheduler.submit(job(1)).future.result(10)
    segmenter.detect_gate.clear()
    asked = scheduler.submit(job(1, "circle"))
    scheduler._encode_pace.seconds = 600.0
    new = scheduler.submit(job(2, client="b"))
    segmenter.detect_gate.set()
    assert len(results([asked, new])) == 2
    scheduler._detect_pace.seconds = 600.0
    assert scheduler.submit(job(1, "square")).future.result(10)


def test_pictures_are_not_asked_what_nobody_wants_to_know(make: Make) -> None:
    """A call asks every phrase of every picture: those of fewer phrases are calls of their own."""
    segmenter, heard = Counting("cuda:0", most_images=8), Heard()
    scheduler = make(segmenter, watcher=heard)
    known = [scheduler.submit(job(number)) for number in range(8)]
    assert len(results(known)) == 8
    segmenter.asks.clear()
    heard.pairs.clear()
    segmenter.detect_gate.clear()
    segmenter.waits.clear()
    blocked = scheduler.submit(job(0, "first"))
    until(segmenter.waits.is_set)
    wide = scheduler.submit(job(0, *[f"phrase {number}" for number in range(8)]))
    narrow = [scheduler.submit(job(number, "phrase 0")) for number in range(1, 8)]
    segmenter.detect_gate.set()
    assert len(results([blocked, wide, *narrow])) == 9
    until(lambda: len(heard.pairs) == 3)
    assert heard.pairs == [(1, 1), (1, 8), (7, 7)]


def test_work_without_an_end_leaves_questions_their_turn(make: Make) -> None:
    scheduler, left = make(Counting()), threading.Event()
    done: list[str] = []

    def video(name: str) -> None:
        while not left.is_set():
            job = Job(client=name, seconds=30, worker=0, work=lambda *_: time.sleep(0.02))
            scheduler.submit(job).future.result(10)
            done.append(name)

    videos = [threading.Thread(target=video, args=(name,)) for name in "ab"]
    for one in videos:
        one.start()
    until(lambda: len(done) > 3)
    before = len(done)
    try:
        scheduler.submit(job(1, client="c")).future.result(5)
        assert len(done) - before < 8
    finally:
        left.set()
        for one in videos:
            one.join()


def test_an_answered_job_leaves_its_picture_without_the_collector(make: Make) -> None:
    scheduler, pixels = make(Counting()), []
    gc.disable()
    try:
        for number in range(5):
            one = Picture.of(np.full((4, 6, 3), number, np.uint8))
            pixels.append(weakref.ref(one.data))
            asked = Job(client="a", seconds=10, picture=one, question=question_from("star"))
            ticket = scheduler.submit(asked)
            with suppress(ImageError):  # whatever comes of it
                ticket.future.result(10)
            del one, asked, ticket
        until(lambda: sum(ref() is not None for ref in pixels) <= 1)
    finally:
        gc.enable()


def test_no_thread_sleeps_while_there_is_work(make: Make) -> None:
    """Jobs of all kinds from several threads, some left, some late: each of them ends."""
    limits = Limits(waiting=10_000, waiting_of_client=10_000)
    scheduler = make(Counting("one"), Counting("two"), limits=limits)
    tickets: list[Ticket] = []

    def submits(client: int) -> None:
        rng = np.random.default_rng(client)
        for _ in range(150):
            kind = rng.integers(6)
            seconds = 0.001 if kind == 0 else 60.0
            asked = job(int(rng.integers(40)), client=f"client {client}", seconds=seconds)
            if kind == 1:
                asked = Job(client="worker", seconds=60.0, work=lambda *_: None, worker=client % 2)
            with suppress(Overloaded):
                ticket = scheduler.submit(asked)
                tickets.append(ticket)
                if kind == 2:
                    ticket.future.cancel()
            if kind == 3:
                time.sleep(0.001)

    threads = [threading.Thread(target=submits, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tickets) > 600
    for ticket in tickets:
        with suppress(CancelledError, DeadlineExceeded):
            ticket.future.result(20)
    assert scheduler.drain(20)
