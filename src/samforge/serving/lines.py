"""Where accepted jobs wait for their next stage: lines of pictures, and lines of questions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from samforge.core.images import RgbImage
from samforge.runtime import EncodedImage
from samforge.serving.cache import EncodingCache, Key
from samforge.serving.encoding import Encoding, Stage
from samforge.serving.fair import FairQueue
from samforge.serving.groups import Group, group_from
from samforge.serving.jobs import Picture, Ticket

_ANY = "any"


class Lines:
    """What waits for what. Not safe to use from several threads: its owner has a lock."""

    def __init__(self, devices: Sequence[str], cache: EncodingCache, digest: str) -> None:
        """Begin with nothing.

        Args:
            devices: Where segmenters keep their features.
            cache: Encodings that are kept.
            digest: Of the bundle: encodings are kept under it.
        """
        self._devices = tuple(dict.fromkeys(devices))
        self._cache, self._digest = cache, digest
        self.encodings: dict[str, Encoding] = {}
        """Pictures on their way, by their hash."""
        self.to_decode: FairQueue[Encoding] = FairQueue()
        self.to_encode: FairQueue[Encoding] = FairQueue()
        self.to_detect: dict[str, FairQueue[Ticket]] = {}
        """By the device that has the picture, by worker, or anywhere."""
        self._turns: dict[int, deque[str]] = {}

    def is_known(self, picture: Picture) -> bool:
        """Whether a picture's encoding is there, or under way."""
        return picture.key in self.encodings or any(
            self._cache.get(self._key(device, picture.key)) is not None for device in self._devices
        )

    def forget(self, picture: str) -> None:
        """Drop the encoding of a picture."""
        self._cache.drop(self._key(device, picture) for device in self._devices)

    def place(self, ticket: Ticket) -> bool | None:
        """Put an accepted job where it waits for its next stage.

        Returns:
            Whether its picture is known already; None where it has none.
        """
        job = ticket.job
        if job.picture is None:
            self._to_ask(ticket, _ANY if job.worker is None else f"worker {job.worker}")
            return None
        for device in self._devices:
            ticket.encoded = self._cache.get(self._key(device, job.picture.key))
            if ticket.encoded is not None:
                self._to_ask(ticket, device)
                return True
        ticket.spent.known = False
        encoding = self.encodings.get(job.picture.key)
        if encoding is None:
            encoding = self.encodings[job.picture.key] = Encoding(picture=job.picture)
            encoding.tickets.append(ticket)
            self._line_up(encoding, job.client)
            return False
        encoding.tickets.append(ticket)
        self._line_up(encoding, job.client)  # it waits in this client's line as well
        return True

    def leave(self, ticket: Ticket) -> None:
        """Take a job out of whatever line it is in; a picture nobody waits for is forgotten."""
        client, picture = ticket.job.client, ticket.job.picture
        for queue in self.to_detect.values():
            if queue.remove(client, ticket):
                return
        encoding = self.encodings.get(picture.key) if picture is not None else None
        if encoding is None or ticket not in encoding.tickets:
            return
        encoding.tickets.remove(ticket)
        if client in encoding.lines and all(one.job.client != client for one in encoding.tickets):
            encoding.lines.remove(client)
            for line in (self.to_decode, self.to_encode):
                line.remove(client, encoding)
        if not encoding.tickets and encoding.stage in (Stage.WAITS, Stage.DECODED):
            encoding.stage = Stage.DONE
            del self.encodings[encoding.picture.key]

    def waiting(self, stage: Stage) -> int:
        """How many pictures wait at a stage, each once, whoever asks for it."""
        return sum(one.stage is stage for one in self.encodings.values())

    def next_to_decode(self) -> Encoding | None:
        """The picture whose turn it is."""
        while (encoding := self.to_decode.pop()) is not None:
            self._take_out(encoding, self.to_decode)
            if encoding.stage is Stage.WAITS and _wanted(encoding):
                encoding.stage = Stage.DECODES
                return encoding
        return None

    def decoded(self, encoding: Encoding, rgb: RgbImage, milliseconds: float) -> None:
        """Put a decoded picture into the line of each client who waits for it."""
        encoding.rgb, encoding.decode_ms = rgb, milliseconds
        encoding.stage = Stage.DECODED
        for ticket in encoding.tickets:
            self._line_up(encoding, ticket.job.client)
        if not encoding.tickets:
            encoding.stage = Stage.DONE
            del self.encodings[encoding.picture.key]

    def failed(self, encoding: Encoding) -> list[Ticket]:
        """Give a picture up.

        Returns:
            Jobs that wait for it.
        """
        encoding.stage = Stage.DONE
        self.encodings.pop(encoding.picture.key, None)
        tickets, encoding.tickets = encoding.tickets, []
        return tickets

    def next_pictures(self, most: int) -> list[Encoding] | None:
        """Decoded pictures whose turn it is, at most so many."""
        batch: list[Encoding] = []
        while len(batch) < most and (encoding := self.to_encode.pop()) is not None:
            self._take_out(encoding, self.to_encode)
            if encoding.stage is Stage.DECODED and _wanted(encoding):
                encoding.stage = Stage.ENCODES
                batch.append(encoding)
        return batch or None

    def encoded(self, encoding: Encoding, features: EncodedImage, milliseconds: float) -> None:
        """Keep an encoding, and let everybody who waited for it ask."""
        self._cache.put(self._key(features.device, encoding.picture.key), features)
        encoding.stage, encoding.rgb = Stage.DONE, None
        del self.encodings[encoding.picture.key]
        tickets, encoding.tickets = encoding.tickets, []
        for ticket in tickets:
            ticket.encoded = features
            ticket.spent.decode, ticket.spent.encode = encoding.decode_ms, milliseconds
            self._to_ask(ticket, features.device)

    def next_group(self, worker: int, device: str, *, images: int, rows: int) -> Group | None:
        """Jobs of one call whose turn it is.

        Args:
            worker: Who would do it.
            device: Where its features are.
            images: Most pictures in a call.
            rows: Most phrases in a call.
        """
        # By turns: a line that never ends, of two videos say, would be the only one asked.
        turns = self._turns.setdefault(worker, deque((f"worker {worker}", device, _ANY)))
        for where in list(turns):
            queue = self.to_detect.get(where)
            while queue is not None and (ticket := queue.pop()) is not None:
                if ticket.is_live():
                    turns.remove(where)
                    turns.append(where)
                    return group_from(ticket, queue, images=images, rows=rows)
        return None

    def _line_up(self, encoding: Encoding, client: str) -> None:
        """Let a picture wait in a client's line, where it waits for a stage."""
        line = {Stage.WAITS: self.to_decode, Stage.DECODED: self.to_encode}.get(encoding.stage)
        if line is not None and client not in encoding.lines:
            encoding.lines.add(client)
            line.push(client, encoding)

    def _take_out(self, encoding: Encoding, line: FairQueue[Encoding]) -> None:
        """It was taken out of one client's line: it stands in none of the others' any more."""
        for client in encoding.lines:
            line.remove(client, encoding)  # one of them had it first, and has it no more
        encoding.lines.clear()

    def _to_ask(self, ticket: Ticket, where: str) -> None:
        self.to_detect.setdefault(where, FairQueue()).push(ticket.job.client, ticket)

    def _key(self, device: str, picture: str) -> Key:
        return Key(self._digest, f"{device} {picture}")


def _wanted(encoding: Encoding) -> bool:
    """Whether somebody waits for a picture; late ones are told so."""
    # A late one takes itself off the list: its future's callback finds the lock held by its own
    # thread. And every one is asked, so that all late ones are told.
    live = [ticket for ticket in list(encoding.tickets) if ticket.is_live()]
    return bool(live)
