"""A file of objects on a map that grows beside its place by many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samforge.core.errors import OutputError
from samforge.core.files import output_errors
from samforge.core.native import native_errors
from samforge.core.placing import part_beside
from samforge.core.words import json_text
from samforge.formats.geo_features import GeoFeature, GeoLayer


class GeoRows:
    """What writers of binary formats share: rows wait until there are enough of them."""

    def __init__(self, path: Path, layer: GeoLayer, *, batch: int) -> None:
        """Name a file beside its place; nothing is written yet.

        Args:
            path: Where it goes.
            layer: What it says of all objects.
            batch: Objects that are written at once.
        """
        self.part = part_beside(path)
        self._path, self._layer, self._batch = path, layer, batch
        self._waiting: list[GeoFeature] = []

    def add(self, features: Sequence[GeoFeature]) -> None:
        """Append objects."""
        self._waiting += features
        if len(self._waiting) >= self._batch:
            self._flush(self._write_rows)

    def _flush(self, write: Callable[[list[GeoFeature], list[tuple[Any, ...]]], None]) -> None:
        """Write what waits, by a function that takes objects and their columns."""
        columns = list(zip(*(one.values() for one in self._waiting), strict=True))
        with self._errors():
            write(self._waiting, columns)
        self._waiting = []

    def _write_rows(self, rows: list[GeoFeature], columns: list[tuple[Any, ...]]) -> None:
        raise NotImplementedError

    def _about(self, report: Mapping[str, Any]) -> str:
        """What the file says of where its objects are from, as JSON."""
        return json_text({**self._layer.about, "report": report}, indent=None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever the format's library raises, as an error that names the file."""

        def told(error: BaseException) -> OutputError:
            return OutputError(
                f"{self._path} cannot be written: {error}. Is there space left? What windows found "
                "is kept: run again once that is mended."
            )

        with native_errors(told), output_errors(self._path):
            yield
