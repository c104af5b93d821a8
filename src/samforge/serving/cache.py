"""Encoded pictures that are kept: those used last, within so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import NamedTuple

from samforge.runtime import EncodedImage


class Key(NamedTuple):
    """What an encoding is of."""

    bundle: str
    """Digest of the bundle that made it."""
    picture: str
    """Hash of the picture's content."""


class EncodingCache:
    """Encodings by content, for all bundles of a server. Safe to use from several threads."""

    def __init__(self, most_bytes: int) -> None:
        """Keep at most so many bytes of features."""
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._kept: OrderedDict[Key, EncodedImage] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the features that are kept."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> EncodedImage | None:
        """What is kept of a picture; it was used last now."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Key, encoded: EncodedImage) -> None:
        """Keep an encoding, in place of those used longest ago; one that alone is too large is not.

        Whoever has an encoding may use it on: what is dropped here is freed when they are done.
        """
        size = bytes_of(encoded)
        with self._lock:
            self._drop(key)
            if size > self._most_bytes:
                return
            self._kept[key] = encoded
            self._bytes += size
            while self._bytes > self._most_bytes:
                self._drop(next(iter(self._kept)))

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget encodings, where they are kept."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self._bytes -= bytes_of(dropped)


def bytes_of(encoded: EncodedImage) -> int:
    """Bytes of its features, on the host or on a device."""
    return sum(int(one.nbytes) for one in encoded.features.values())
