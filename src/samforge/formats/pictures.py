"""Pictures inside data sets: linked to where they are, or written there."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from samforge.core.files import output_errors
from samforge.formats.labels import DataSet

_BEGINNINGS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def place_picture(name: str, stem: Path, data: DataSet) -> Path:
    """Put a picture into a data set: a link to its file, or the file itself.

    Args:
        name: Of the picture in the source.
        stem: Where it goes, without its ending; the folder exists.
        data: Gives it.

    Returns:
        Where it is now.

    Raises:
        OutputError: It cannot be written.
    """
    picture = data.picture(name)
    suffix = PurePosixPath(name).suffix.lower()
    if isinstance(picture, bytes) and not suffix:
        suffix = _suffix_of(picture)
    place = stem.with_name(stem.name + suffix)
    with output_errors(place):
        if isinstance(picture, bytes):
            place.write_bytes(picture)
        elif data.copy_pictures:
            shutil.copyfile(picture, place)
        else:
            place.symlink_to(picture.absolute())
    return place


def _suffix_of(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for begin, suffix in _BEGINNINGS if content.startswith(begin)), ".img")
