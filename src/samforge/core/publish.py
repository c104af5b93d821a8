"""Puts a finished bundle where it belongs: whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from samforge.core.bundle import is_bundle
from samforge.core.errors import OutputError, SamforgeWarning, SettingError
from samforge.core.files import atomic_write_json, output_errors, sha256_of
from samforge.core.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    check_relative,
    manifest_from_text,
)

# What os.link answers on file systems that have no hard links: exFAT, some network mounts.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_replaceable(out: Path) -> None:
    """Make sure that publishing to ``out`` destroys nothing but an older bundle.

    Raises:
        OutputError: It is a file, the root, or a folder of something else.
    """
    if not out.name:
        raise OutputError(f"{out} cannot be an output folder. Name a new folder.")
    with output_errors(out):
        if not out.exists():
            return
        if not out.is_dir():
            raise OutputError(
                f"{out} is a file. Name a new folder, or one with a bundle to replace."
            )
        if next(out.iterdir(), None) is not None and not is_bundle(out):
            raise OutputError(
                f"{out} holds files and is not a samforge bundle, so it is left alone. "
                "Name a new folder, or empty this one."
            )


def assemble(root: Path, manifest: Manifest, include: tuple[str, ...]) -> Path:
    """Put the included files into a folder of their own, with the manifest written last.

    They are hard links where the file system has them: no second copy, and the steps' files stay
    where a resumed build looks for them.

    Raises:
        OutputError: A file is missing, or the disk is full.
    """
    bundle = root / "bundle"
    with output_errors(bundle, needed_bytes=_total_bytes(root, include)):
        if bundle.exists():
            shutil.rmtree(bundle)
        bundle.mkdir()
        files = {}
        for source in _files_of(root, include):
            relative = source.relative_to(root).as_posix()
            target = bundle / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, target)
            files[relative] = FileEntry(sha256=sha256_of(target), bytes=target.stat().st_size)
    path = bundle / MANIFEST_NAME
    atomic_write_json(path, replace(manifest, files=dict(sorted(files.items()))))
    # Whoever opens the bundle will refuse what does not read back: find out before publishing.
    manifest_from_text(path.read_text(encoding="utf-8"), place=str(bundle))
    return bundle


def put_in_place(bundle: Path, out: Path, *, work: Path) -> None:
    """Rename a whole bundle to ``out``, then remove what it replaces and the work folder.

    Raises:
        OutputError: The rename failed; an older bundle is back in its place.
    """
    old = _aside(out)
    with output_errors(out):
        replaced = out.exists()
        if replaced:
            out.rename(old)
        try:
            bundle.rename(out)
        except OSError:
            if replaced:
                old.rename(out)
            raise
    for leftover in (old, work):
        _remove(leftover)


def recover(out: Path) -> None:
    """Undo or finish a replacement that was killed between its two renames.

    Raises:
        OutputError: The folders cannot be renamed or removed.
    """
    old = _aside(out)
    with output_errors(out):
        if not old.exists():
            return
        if out.exists():
            shutil.rmtree(old)
        else:
            old.rename(out)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _files_of(root: Path, include: tuple[str, ...]) -> Iterator[Path]:
    for relative in dict.fromkeys(include):
        if problem := check_relative(relative):
            raise SettingError(f"The bundle path {relative!r} {problem}.")
        source = root / relative
        if source.is_dir():
            yield from sorted(path for path in source.rglob("*") if not path.is_dir())
        elif source.is_file():
            yield source
        else:
            raise OutputError(f"{source} was to be published and is missing. Run the build again.")


def _total_bytes(root: Path, include: tuple[str, ...]) -> int:
    return sum(path.stat().st_size for path in _files_of(root, include))


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():  # named twice: once itself, once by its folder
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        shutil.copyfile(source, target)


def _remove(folder: Path) -> None:
    # The bundle is in place: what cannot be removed now is clutter, not a failed build.
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        warnings.warn(
            f"{folder} could not be removed: {error.strerror}. It can be deleted.",
            SamforgeWarning,
            stacklevel=4,
        )
