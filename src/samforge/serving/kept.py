"""Pictures and answers that clients speak of again by an id."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from samforge.core.detections import Detections
from samforge.core.errors import NotHere

T = TypeVar("T")
_ENTRY_BYTES = 1024
"""What an entry takes beside its thing: ids, names, a place in a table."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptAnswer:
    """An answer that clicks may correct."""

    picture: str
    """Hash of the picture that it is about."""
    found: Detections
    """With the model's own masks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Entry(Generic[T]):
    owner: str
    name: str
    thing: T
    size: int


class Kept(Generic[T]):
    """Things by an id that nobody can make up: those used last, within so many bytes."""

    def __init__(self, most_bytes: int, what: str) -> None:
        """Keep at most so many bytes.

        Args:
            most_bytes: Of all things together.
            what: Messages call a thing that.
        """
        self._most_bytes, self._what = most_bytes, what
        self._secret = secrets.token_bytes(32)
        self._lock = Lock()
        self._kept: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._bytes

    def put(self, owner: str, name: str, thing: T, size: int) -> str:
        """Keep a thing, in place of those used longest ago.

        Args:
            owner: Whose it is: nobody else can speak of it.
            name: The same name and owner give the same id.
            thing: It.
            size: Its bytes.

        Returns:
            Its id.
        """
        key = f"{owner}\0{name}".encode()
        number = hmac.new(self._secret, key, hashlib.sha256).hexdigest()[:32]
        size += _ENTRY_BYTES
        with self._lock:
            self._drop(number)
            self._kept[number] = _Entry(owner=owner, name=name, thing=thing, size=size)
            self._bytes += size
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))
        return number

    def get(self, owner: str, number: str) -> T:
        """A thing by its id; it was used last now.

        Args:
            owner: Who asks.
            number: The id that :meth:`put` gave the same owner.

        Raises:
            NotHere: Nothing of this owner is kept under it.
        """
        with self._lock:
            thing = self._of(owner, number).thing
            self._kept.move_to_end(number)
            return thing

    def drop(self, owner: str, number: str) -> T:
        """Forget a thing of an owner.

        Raises:
            NotHere: Nothing of this owner is kept under the id.
        """
        with self._lock:
            thing = self._of(owner, number).thing
            self._drop(number)
            return thing

    def holds(self, name: str) -> bool:
        """Whether something is kept by this name, whoever owns it."""
        with self._lock:
            return any(one.name == name for one in self._kept.values())

    def _of(self, owner: str, number: str) -> _Entry[T]:
        found = self._kept.get(number)
        if found is None or found.owner != owner:  # no word of what belongs to others
            raise self._unknown(number)
        return found

    def _drop(self, number: str) -> None:
        dropped = self._kept.pop(number, None)
        self._bytes -= 0 if dropped is None else dropped.size

    def _unknown(self, number: str) -> NotHere:
        return NotHere(
            f"No {self._what} is kept as {number[:64]!r}: the server began anew, or it was dropped "
            f"for others that were used since. Send the {self._what} again."
        )
