"""Jobs that go through the detector in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from samforge.core.detections import Detections
from samforge.runtime import EncodedImage, Question, Segmenter, Thresholds, joined
from samforge.runtime.pending import Pending
from samforge.serving.fair import FairQueue
from samforge.serving.jobs import Ticket

Row: TypeAlias = tuple[str, Thresholds]
"""A phrase, and what counts as found."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Jobs of one call: about one picture, or the same question about several."""

    tickets: tuple[Ticket, ...]
    """At least one."""

    @classmethod
    def of(cls, *tickets: Ticket) -> Group:
        """Put jobs together."""
        return cls(tickets=tickets)

    @property
    def pairs(self) -> int:
        """Pairs of a picture and a phrase that are computed."""
        return max(1, len(self._pictures()) * len(self._rows()))

    @property
    def is_work(self) -> bool:
        """Whether it is work of its own kind, which is done where it begins."""
        return self.tickets[0].job.work is not None

    def begin(self, segmenter: Segmenter) -> Pending[list[Any]]:
        """Begin to answer the jobs, in their order; work of its own kind is done at once."""
        first = self.tickets[0]
        if first.job.work is not None:
            return Pending.of([first.job.work(segmenter, first.encoded)])
        pictures, rows = self._pictures(), self._rows()
        phrases, thresholds = zip(*rows, strict=True)
        question = Question(phrases=phrases, thresholds=thresholds)
        places = {id(one): number for number, one in enumerate(pictures)}
        places_of = [places[id(ticket.encoded)] for ticket in self.tickets]
        columns = {row: number for number, row in enumerate(rows)}

        def shared(answers: list[list[Detections]]) -> list[Any]:
            return [
                _answer(ticket, answers[place], columns)
                for ticket, place in zip(self.tickets, places_of, strict=True)
            ]

        return segmenter.begin_answers(pictures, question).then(shared)

    def _pictures(self) -> list[EncodedImage]:
        found = {id(one.encoded): one.encoded for one in self.tickets if one.encoded is not None}
        return list(found.values())

    def _rows(self) -> list[Row]:
        """What is asked of every picture, each once."""
        return list(dict.fromkeys(row for one in self.tickets for row in rows_of(one)))


def group_from(ticket: Ticket, queue: FairQueue[Ticket], *, images: int, rows: int) -> Group:
    """Find what goes with a job: questions about its picture, then its question of other pictures.

    Args:
        ticket: The job whose turn it is.
        queue: Where the others wait; those that go with it are taken out.
        images: Most pictures in a call.
        rows: Most phrases in a call.
    """
    if ticket.job.question is None:
        return Group.of(ticket)
    asked = dict.fromkeys(rows_of(ticket))
    pictures = {id(ticket.encoded)}

    def same_picture(other: Ticket) -> bool:
        if not _mergeable(ticket, other) or other.encoded is not ticket.encoded:
            return False
        more = [row for row in rows_of(other) if row not in asked]
        if len(asked) + len(more) > rows:
            return False
        asked.update(dict.fromkeys(more))
        return True

    def same_question(other: Ticket) -> bool:
        theirs, known = set(rows_of(other)), id(other.encoded) in pictures
        # Every row is asked of every picture: a new one has to want all of them.
        if not (theirs <= set(asked) if known else theirs == set(asked)):
            return False
        if not _mergeable(ticket, other) or (not known and len(pictures) >= images):
            return False
        pictures.add(id(other.encoded))
        return True

    others = queue.take(same_picture, len(queue))
    others += queue.take(same_question, len(queue)) if images > 1 else []
    return Group.of(ticket, *(one for one in others if one.is_live()))


def rows_of(ticket: Ticket) -> Sequence[Row]:
    """The phrases of a job with their thresholds."""
    question = ticket.job.question
    if question is None:
        return ()
    return list(zip(question.phrases, question.thresholds, strict=True))


def _mergeable(one: Ticket, other: Ticket) -> bool:
    """Whether two jobs may be of one call: it has one threshold for the pixels of its masks."""
    mine, theirs = one.job.question, other.job.question
    return mine is not None and theirs is not None and mine.mask == theirs.mask


def _answer(ticket: Ticket, answers: Sequence[Detections], columns: dict[Row, int]) -> Detections:
    question = ticket.job.question
    most = None if question is None else question.most
    return joined([answers[columns[row]] for row in rows_of(ticket)], most)
