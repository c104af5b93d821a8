"""Pictures and answers that clients speak of again by an id."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

from samforge.core.errors import NotHere

T = TypeVar("T")


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
        self._kept: OrderedDict[str, tuple[T, int]] = OrderedDict()
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
        with self._lock:
            self._drop(number)
            self._kept[number] = (thing, size)
            self._bytes += size
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))
        return number

    def get(self, number: str) -> T:
        """A thing by its id; it was used last now.

        Raises:
            NotHere: Nothing is kept under it.
        """
        with self._lock:
            found = self._kept.get(number)
            if found is None:
                raise self._unknown(number)
            self._kept.move_to_end(number)
            return found[0]

    def drop(self, number: str) -> T:
        """Forget a thing.

        Raises:
            NotHere: Nothing is kept under the id.
        """
        with self._lock:
            if number not in self._kept:
                raise self._unknown(number)
            thing = self._kept[number][0]
            self._drop(number)
            return thing

    def _drop(self, number: str) -> None:
        _, size = self._kept.pop(number, (None, 0))
        self._bytes -= size

    def _unknown(self, number: str) -> NotHere:
        return NotHere(
            f"No {self._what} is kept as {number[:64]!r}: the server began anew, or it was dropped "
            f"for others that were used since. Send the {self._what} again."
        )
