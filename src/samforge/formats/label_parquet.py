"""Labels as Parquet: a row an object, and a row a picture beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from samforge.core.files import output_errors
from samforge.core.words import json_text
from samforge.formats._growing_folder import GrowingFolder
from samforge.formats.arrow import parquet
from samforge.formats.labels import DataSet, LabelledPicture

_ROWS = 10_000  # of one row group: a few megabytes wait in memory


class ParquetLabels:
    """Writes ``objects.parquet`` and ``pictures.parquet``, row group by row group.

    ``rle_counts`` is COCO's compressed RLE of the whole picture. The key ``samforge`` of both files
    holds the provenance as JSON.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
            MissingExtra: pyarrow is not installed.
        """
        pa, module = parquet("writes")
        self._pa, self._data = pa, data
        self._folder = GrowingFolder(path)
        self._bundle = str(data.provenance.get("bundle", ""))
        notes = {"samforge": json_text(dict(data.provenance), indent=None)}
        self._schemas = {name: schema.with_metadata(notes) for name, schema in _schemas(pa).items()}
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self._schemas}
        self._writers = {}
        with output_errors(path):
            try:
                for name, schema in self._schemas.items():
                    file = self._folder.inside / f"{name}.parquet"
                    self._writers[name] = module.ParquetWriter(file, schema, compression="zstd")
            except OSError:
                self.discard()
                raise

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        height, width = picture.size_hw
        shared = {
            "image_id": picture.id,
            "name": picture.name,
            "uri": picture.uri,
            "sha256": picture.sha256,
            "width": width,
            "height": height,
            "video_id": None if picture.frame is None else picture.frame.video_id,
            "frame_index": None if picture.frame is None else picture.frame.index,
            "bundle_id": self._bundle,
        }
        best = list(picture.best_scores.items())
        self._row("pictures", shared | {"objects": len(picture.objects), "best_scores": best})
        for row, one in enumerate(picture.objects):
            own = {
                "object_id": picture.object_id(row),
                "class": self._data.categories[one.category],
                "class_id": one.category,
                "phrase": one.phrase,
                "score": one.score,
                "bbox": list(one.bbox),
                "area": one.area,
                "rle_counts": one.counts.encode("ascii"),
                "track_id": one.track_id,
            }
            self._row("objects", shared | own)

    def finish(self) -> Path:
        """Put the folder under its name."""
        with output_errors(self._folder.path):
            for name, writer in self._writers.items():
                self._flush(name)
                writer.close()
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        for writer in self._writers.values():
            with suppress(OSError):  # what could not be written is given up
                writer.close()
        self._folder.discard()

    def _row(self, name: str, row: dict[str, Any]) -> None:
        self._rows[name].append(row)
        if len(self._rows[name]) == _ROWS:
            with output_errors(self._folder.path):
                self._flush(name)

    def _flush(self, name: str) -> None:
        rows, schema = self._rows[name], self._schemas[name]
        if rows:
            self._writers[name].write_table(self._pa.Table.from_pylist(rows, schema=schema))
            rows.clear()


def _schemas(pa: Any) -> dict[str, Any]:
    picture = [
        ("image_id", pa.int64()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("video_id", pa.int64()),
        ("frame_index", pa.int64()),
    ]
    own = [
        ("object_id", pa.int64()),
        ("class", pa.string()),
        ("class_id", pa.int32()),
        ("phrase", pa.string()),
        ("score", pa.float32()),
        ("bbox", pa.list_(pa.int32(), 4)),
        ("area", pa.int64()),
        ("rle_counts", pa.binary()),
        ("track_id", pa.int64()),
    ]
    bundle = [("bundle_id", pa.string())]
    best = [("objects", pa.int32()), ("best_scores", pa.map_(pa.string(), pa.float32()))]
    return {
        "objects": pa.schema([*picture, *own, *bundle]),
        "pictures": pa.schema([*picture, *best, *bundle]),
    }
