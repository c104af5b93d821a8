"""Pictures inside larger files: members of tars (WebDataset), cells of Parquet files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from samforge.core.native import native_errors
from samforge.formats.arrow import parquet
from samforge.labelling.items import (
    Item,
    Listing,
    ParquetCell,
    PartOfFile,
    SourceError,
)
from samforge.labelling.places import opened, stamp_of
from samforge.media.images import SUFFIXES

_BYTES_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "bytes", "content")
_NAME_COLUMNS = ("file_name", "filename", "path", "name", "image_path", "key", "__key__")


def tar_items(source: str) -> Listing:
    """Pictures of a tar, each by where its bytes lie: they are read without what is before them.

    Raises:
        SourceError: It is no tar, or is cut off.
    """
    stamp = stamp_of(source)
    with (
        opened(source) as file,
        native_errors(lambda error: _no_tar(source, error)),
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        items = [
            Item(
                name=member.name,
                place=PartOfFile(file=source, offset=member.offset_data, size=member.size),
                stamp=f"{stamp}@{member.offset_data}",
            )
            for member in tar
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES
        ]
    return Listing(root=source, items=items)


def _no_tar(source: str, error: BaseException) -> SourceError:
    return SourceError(f"{source} is no tar that can be read whole: {error}. Write it again.")


def parquet_items(source: str) -> Listing:
    """Pictures of a Parquet file: the column with their bytes, as data sets of Hugging Face have.

    Raises:
        SourceError: It is no Parquet file, or has no column of pictures.
        MissingExtra: pyarrow is not installed.
    """
    stamp = stamp_of(source)
    with opened(source) as file, native_errors(lambda error: _no_parquet(source, error)):
        table = parquet("reads")[1].ParquetFile(file)
        column, names = _columns(table.schema_arrow, source)
        items = list(_cells(table, source, stamp, column, names))
    return Listing(root=source, items=items)


def _columns(schema: Any, source: str) -> tuple[str, str | None]:
    """The column of the bytes, and the one of the names; ``image.path`` is one inside another."""
    pa, _ = parquet("reads")
    binary, names = [], None
    for field in schema:
        inner = field.type
        if pa.types.is_struct(inner):
            parts = [inner.field(i).name for i in range(inner.num_fields)]
            if "bytes" in parts:
                binary.append(field.name)
                if "path" in parts:
                    names = f"{field.name}.path"
        elif pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            binary.append(field.name)
    known = [name for name in _BYTES_NAMES if name in binary]
    if not known and len(binary) != 1:
        raise SourceError(
            f"{source} has no column that is known to hold pictures: its columns are "
            f"{', '.join(schema.names)}. Call the column of their bytes 'image'."
        )
    own = next((name for name in _NAME_COLUMNS if name in schema.names), None)
    return (known or binary)[0], own or names


def _cells(table: Any, source: str, stamp: str, column: str, names: str | None) -> Iterator[Item]:
    stem = PurePosixPath(source).stem
    count = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        given: Sequence[Any] = [None] * rows
        if names is not None:
            outer, _, inner = names.partition(".")
            # Only the leaf of the names is read: the bytes stay on the disk.
            leaf = f"{outer}.{inner}" if inner else outer
            given = table.read_row_group(group, columns=[leaf]).column(outer).to_pylist()
            if inner:
                given = [None if one is None else one.get(inner) for one in given]
        for row, name in enumerate(given):
            yield Item(
                name=str(name) if name else f"{stem}/{count:09d}",
                place=ParquetCell(file=source, group=group, row=row, column=column),
                stamp=f"{stamp}@{count}",
            )
            count += 1


def _no_parquet(source: str, error: BaseException) -> SourceError:
    return SourceError(f"{source} is no Parquet file that can be read: {error}.")
