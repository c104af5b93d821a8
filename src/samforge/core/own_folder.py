"""Which folders are samforge's own, and what of them may be removed: only what samforge put there.

A build works in ``.NAME.building`` beside its output. The folder carries a mark; without it, or
where the name is a link, it is somebody else's and stays as it is.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import cast

from samforge.core.errors import OutputError
from samforge.core.manifest import MANIFEST_NAME, MOST_BYTES, check_relative, digest_of
from samforge.core.strict_json import StrictJsonError, strict_json

MARK_NAME = ".samforge-building"
"""The mark's file name in a work folder."""
MARK = "A work folder of samforge build. It can be deleted when no build is running.\n"
"""Its content."""
LOCK_NAME = "lock"
"""File in a work folder that its process has locked."""
WORK_SUFFIX = ".building"
REPLACED = "replaced"
"""In a work folder: the old bundle, where a system cannot exchange two folders at once."""

_KEYS = {"schema_version", "samforge", "recipe", "parts", "files", "steps"}
"""Keys of a manifest in every schema version."""


def work_folder(out: Path) -> Path:
    """Where a build of this output works."""
    return out.with_name(f".{out.name}{WORK_SUFFIX}")


def is_marked(folder: Path) -> bool:
    """Whether it is a work folder that samforge made: no link, with the mark in it."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        mark = folder / MARK_NAME
        found = mark.lstat()
        return (
            stat.S_ISREG(found.st_mode)
            and found.st_size == len(MARK)
            and mark.read_text(encoding="utf-8", errors="replace") == MARK
        )
    except OSError:
        return False


def make_marked(folder: Path) -> None:
    """Make a work folder, or take over an empty or marked one.

    Raises:
        OutputError: Something else is there.
        OSError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if is_marked(folder):
            return
        # A build that was killed at once has made the folder and not the mark.
        empty = not folder.is_symlink() and folder.is_dir() and not any(folder.iterdir())
        if not empty:
            raise OutputError(
                f"{folder} is where a build works, and samforge did not make it: it has no "
                f"{MARK_NAME}. It is left alone. Move it away, or choose another output folder."
            ) from None
    write_mark(folder)


def write_mark(folder: Path) -> None:
    """Mark a work folder as samforge's.

    Raises:
        OSError: It cannot be written, or a link is in the way.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(folder / MARK_NAME, flags, 0o666), "w", encoding="utf-8") as file:
        file.write(MARK)


def manifest_table(folder: Path) -> Mapping[str, object] | None:
    """What a folder's manifest holds if samforge wrote it, of any schema version; else None.

    From version 3 on its digest tells. Before, all of its keys and the form of its list of files
    do: two keys of ours can stand in anybody's ``manifest.json``.
    """
    try:
        file = folder / MANIFEST_NAME
        if file.stat().st_size > MOST_BYTES:
            return None
        table = strict_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, StrictJsonError):
        return None
    if not isinstance(table, dict) or not table.keys() >= _KEYS:
        return None
    version = table["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        return None
    if version >= 3 and table.get("digest") != digest_of(table):
        return None
    return table if _lists_files(table["files"]) else None


def _lists_files(files: object) -> bool:
    return isinstance(files, dict) and all(
        check_relative(path) is None
        and isinstance(entry, dict)
        and re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))) is not None
        for path, entry in files.items()
    )


def looks_like_bundle(folder: Path) -> bool:
    """Whether nothing may be written into a folder: it holds a manifest that could be ours."""
    if manifest_table(folder) is not None:
        return True
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            head = file.read(2**16)
    except OSError:
        return False
    # A damaged one has the words still.
    return all(f'"{key}"'.encode() in head for key in ("schema_version", "samforge", "recipe"))


def listed_in(folder: Path) -> Callable[[str], bool]:
    """Tells which files of a bundle its own manifest lists, and folders, which end in a slash."""
    table = manifest_table(folder)
    if table is None:
        return lambda _: False
    files = {MANIFEST_NAME, *cast("dict[str, object]", table["files"])}
    folders = {f"{parent}/" for path in files for parent in PurePosixPath(path).parents}
    return (files | folders).__contains__


def others_in(folder: Path, own: Callable[[str], bool]) -> Iterator[str]:
    """Files, links and empty folders below a folder that are not samforge's."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        inside = Path(place)
        links = [name for name in folders if (inside / name).is_symlink()]
        for name in (*files, *links):
            relative = (inside / name).relative_to(folder).as_posix()
            if not own(relative):
                yield relative
        empty = f"{inside.relative_to(folder).as_posix()}/"
        if not folders and not files and inside != folder and not own(empty):
            yield empty


def remove_own(folder: Path, own: Callable[[str], bool]) -> tuple[str, ...]:
    """Remove samforge's own files from a folder, and the folders that are empty then.

    Links are removed, never followed.

    Returns:
        What is left because it is somebody else's; nothing when the folder is gone.

    Raises:
        OSError: Something cannot be removed.
    """
    left = tuple(others_in(folder, own))
    for place, folders, files in os.walk(folder, topdown=False):
        inside = Path(place)
        for name in (*files, *(one for one in folders if (inside / one).is_symlink())):
            if own((inside / name).relative_to(folder).as_posix()):
                (inside / name).unlink()
        if not any(inside.iterdir()) and not _is_kept(inside, folder, left):
            inside.rmdir()
    return left


def _is_kept(inside: Path, folder: Path, left: tuple[str, ...]) -> bool:
    return inside != folder and f"{inside.relative_to(folder).as_posix()}/" in left


def require_outside_bundles(path: Path, what: str) -> None:
    """Refuse to write where a bundle is, opened or not, or where a build works.

    Args:
        path: A file or folder to be written; it need not exist.
        what: What names it, for the message: ``--out``.

    Raises:
        OutputError: It lies in one.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{what} {path!s} cannot be written: {error}.") from error
    for folder in (place, *place.parents):
        if looks_like_bundle(folder):
            raise OutputError(
                f"{what} {path} lies in the bundle {folder}: a file that its manifest does not "
                "list would damage it. Choose a folder outside."
            )
        if is_marked(folder):
            raise OutputError(
                f"{what} {path} lies in {folder}, where a build works and which it removes. "
                "Choose a folder outside."
            )
