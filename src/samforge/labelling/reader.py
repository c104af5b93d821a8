"""The bytes of items, read one after the other; what many items share is opened once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, BinaryIO

from samforge.core.closing import Closing
from samforge.core.native import native_errors
from samforge.formats.arrow import parquet
from samforge.labelling.items import Item, ParquetCell, PartOfFile, SourceError, WholeFile
from samforge.labelling.places import opened, read_file, require_size


class ItemReader(Closing):
    """Reads pictures wherever they are. One thread uses it at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._file: tuple[str, BinaryIO] | None = None
        self._group: tuple[str, int, str, Any] | None = None

    def read(self, item: Item) -> bytes:
        """The bytes of a picture's file.

        Raises:
            SourceError: It is gone, or cannot be read.
        """
        place = item.place
        if isinstance(place, WholeFile):
            return read_file(place.file)
        if isinstance(place, PartOfFile):
            return self._part(place)
        return self._cell(place)

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()
        self._file = self._group = None

    def _part(self, place: PartOfFile) -> bytes:
        require_size(f"A member of {place.file}", place.size)
        file = self._opened(place.file)
        with native_errors(lambda error: SourceError(f"{place.file} cannot be read: {error}.")):
            file.seek(place.offset)
            content = file.read(place.size)
        if len(content) != place.size:
            raise SourceError(
                f"{place.file} ends after {len(content)} of {place.size} bytes of a member. "
                "Was it cut off meanwhile?"
            )
        return content

    def _cell(self, place: ParquetCell) -> bytes:
        key = (place.file, place.group, place.column)
        if self._group is None or self._group[:3] != key:
            file = self._opened(place.file)
            with native_errors(lambda error: SourceError(f"{place.file}: {error}.")):
                table = parquet("reads")[1].ParquetFile(file)
                column = table.read_row_group(place.group, columns=[place.column])
            self._group = (*key, column.column(place.column))
        value = self._group[3][place.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise SourceError(f"{place.file} has no bytes in row {place.row} of {place.column}.")
        return content

    def _opened(self, name: str) -> BinaryIO:
        if self._file is None or self._file[0] != name:
            self.close()
            self._file = name, self._stack.enter_context(opened(name))
        return self._file[1]
