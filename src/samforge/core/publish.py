"""Puts a finished bundle where it belongs: whole, or not at all, and nothing of others' is lost."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from samforge.core.errors import BuildError, OutputError, SamforgeWarning, SettingError
from samforge.core.files import atomic_write_text, output_errors, sha256_of
from samforge.core.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    check_relative,
    manifest_from_text,
    manifest_text,
)
from samforge.core.own_folder import (
    LOCK_NAME,
    MARK_NAME,
    REPLACED,
    listed_in,
    manifest_table,
    others_in,
    remove_own,
    require_outside_bundles,
)
from samforge.core.placing import place_folder
from samforge.core.replacing import put_back

STEPS_NAME = "steps.json"
"""Records of the finished steps, in the work folder."""
ASSEMBLED = "bundle"
"""The bundle while it is put together, in the work folder; later the one that it replaced."""

# What os.link answers on file systems that have no hard links: exFAT, some network mounts.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_replaceable(out: Path) -> None:
    """Make sure that publishing to ``out`` destroys nothing but an older bundle's own files.

    Raises:
        OutputError: It is a file, the root, a folder of something else, a bundle with other files
            in it, or lies in a bundle.
    """
    if not out.name:
        raise OutputError(f"{out} cannot be an output folder. Name a new folder.")
    require_outside_bundles(out.parent, "the output")
    with output_errors(out):
        if not out.exists():
            return
        if not out.is_dir():
            raise OutputError(
                f"{out} is a file. Name a new folder, or one with a bundle to replace."
            )
        if next(out.iterdir(), None) is None:
            return
        if manifest_table(out) is None:
            raise OutputError(
                f"{out} holds files and is not a samforge bundle, so it is left alone. "
                "Name a new folder, or empty this one."
            )
        _check_no_others(out)


def assemble(
    root: Path, manifest: Manifest, include: tuple[str, ...], recorded: Mapping[str, FileEntry]
) -> Path:
    """Put the included files into a folder of their own, with the manifest written last.

    They are hard links where the file system has them: no second copy, and the steps' files stay
    where a resumed build looks for them.

    Args:
        root: The work folder.
        manifest: All but ``files`` and ``digest``.
        include: Files and folders of the work folder.
        recorded: What each file was when the step that made it was over.

    Raises:
        OutputError: A file is missing, or the disk is full.
        BuildError: A file is not what its step recorded.
    """
    bundle = root / ASSEMBLED
    with output_errors(bundle, needed_bytes=_total_bytes(root, include)):
        clear_assembled(root)
        bundle.mkdir()
        files = {}
        for source in _files_of(root, include):
            relative = source.relative_to(root).as_posix()
            target = bundle / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, target)
            entry = FileEntry(sha256=sha256_of(target), bytes=target.stat().st_size)
            if recorded.get(relative, entry) != entry:
                raise BuildError(changed_text(source))
            files[relative] = entry
    path = bundle / MANIFEST_NAME
    text = manifest_text(replace(manifest, files=dict(sorted(files.items()))))
    atomic_write_text(path, text)
    # Whoever opens the bundle will refuse what does not read back: find out before publishing.
    manifest_from_text(text, place=str(bundle))
    return bundle


def changed_text(path: Path) -> str:
    """Message about a file that is not what its step recorded."""
    return (
        f"{path} changed after its step was over, so what was proven of it may not hold. Nothing "
        "was published. Run the build again: the step is repeated."
    )


def put_in_place(bundle: Path, out: Path, *, work: Path, own: Iterable[str]) -> None:
    """Let a whole bundle take its place in one step, then remove what it replaces.

    Args:
        bundle: The assembled bundle, in the work folder.
        out: Where it goes.
        work: The work folder, which is removed.
        own: Names in the work folder that the build made.

    Raises:
        OutputError: It failed, or other files lie in what would be replaced; that is in its place.
    """
    with output_errors(out):
        place_folder(
            bundle,
            out,
            aside=work / REPLACED,  # readers wait meanwhile, and a kill is undone later
            check=lambda old: _check_no_others(old, where=out),  # a file came at the last moment
            remove=lambda _: None,  # with the work folder
        )
    _remove_work(work, {*own, STEPS_NAME})


def recover(out: Path, work: Path) -> None:
    """Undo or finish a replacement that was killed, under the lock of the work folder.

    Raises:
        OutputError: The folders cannot be renamed or removed, or hold files of others.
    """
    with output_errors(out):
        put_back(out)
        old = work / REPLACED
        if old.is_dir() and out.exists():
            _drop(old, listed_in(old))


def clear_assembled(root: Path) -> None:
    """Remove what an earlier build put together, or the bundle that it replaced.

    Raises:
        OutputError: Somebody else's files lie there.
        OSError: It cannot be removed.
    """
    bundle = root / ASSEMBLED
    if bundle.is_symlink() or bundle.exists():
        listed = listed_in(bundle)
        _drop(bundle, lambda one: listed(one) or _is_temporary(one) or (root / one).exists())


def _drop(folder: Path, own: object) -> None:
    assert callable(own)  # noqa: S101
    if folder.is_symlink() or not folder.is_dir():
        raise OutputError(f"{folder} is not a folder that samforge made. Move it away.")
    if left := remove_own(folder, own):
        raise OutputError(
            f"{folder} holds files that samforge did not put there: {', '.join(left[:3])}. "
            "They are left alone. Move them away, then run the build again."
        )


def _is_temporary(relative: str) -> bool:
    name = relative.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".part")


def _check_no_others(out: Path, *, where: Path | None = None) -> None:
    """Make sure that a bundle holds its own files only.

    Raises:
        OutputError: With what else there is.
    """
    others = list(others_in(out, listed_in(out)))
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise OutputError(
            f"{where or out} is an older bundle and holds files that are not its own: "
            f"{', '.join(others[:3])}{more}. They would be lost. Move them away, or name a new "
            "folder."
        )


def _remove_work(work: Path, own: set[str]) -> None:
    """Remove the work folder: what the build made in it, and nothing else."""
    # The bundle is in place: what cannot be removed now is clutter, not a failed build.
    try:
        for name in (ASSEMBLED, REPLACED):
            if (work / name).is_dir():
                remove_own(work / name, listed_in(work / name))
        for name in sorted(own):
            _remove(work / name)
        for path in list(work.iterdir()):
            if _is_temporary(path.name):
                path.unlink()
        left = sorted(path.name for path in work.iterdir() if path.name not in _LAST)
        if left:
            warnings.warn(
                f"{work} holds files that the build did not make: {', '.join(left[:3])}. It is "
                "left there and can be deleted.",
                SamforgeWarning,
                stacklevel=4,
            )
            return
        for name in _LAST:
            (work / name).unlink(missing_ok=True)
        work.rmdir()
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENOTEMPTY:
            return  # another build has begun there
        warnings.warn(
            f"{work} could not be removed: {error.strerror}. It can be deleted.",
            SamforgeWarning,
            stacklevel=4,
        )


_LAST = (LOCK_NAME, MARK_NAME)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


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
