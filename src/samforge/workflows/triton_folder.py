"""The folder of a model in a Triton repository: put there whole, and nothing of others' is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import OutputError
from samforge.core.files import atomic_write_json, atomic_write_text, output_errors, sha256_of
from samforge.core.manifest import MANIFEST_NAME
from samforge.core.own_folder import others_in, remove_own
from samforge.core.placing import part_beside, place_folder
from samforge.core.strict_json import StrictJsonError, strict_json
from samforge.core.version import __version__

VERSION = "1"
"""The folder of a model's only version."""
BUNDLE = "bundle"
"""The folder of the bundle's copy, in that of the version."""
NOTE = "samforge.json"
"""What was written, in the model's folder: by it the next export knows its own files."""
_COPY = f"{VERSION}/{BUNDLE}/"
_COMPILED = f"{VERSION}/__pycache__/"
"""Where Python leaves what it made of ``model.py``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a model's folder holds."""

    bundle: Bundle
    """What the model loads."""
    copied: bool
    """Whether the folder holds a copy of it."""
    config: str
    """Of ``config.pbtxt``."""
    model: str
    """Of ``model.py``."""


def check_replaceable(model: Path) -> None:
    """Make sure that nothing is at a place but an earlier export, as it was written.

    Raises:
        OutputError: With what else there is.
    """
    with output_errors(model):
        if model.exists() or model.is_symlink():
            _check_own(model, model)


def publish(contents: Contents, model: Path) -> tuple[Path, ...]:
    """Write a model's folder beside its place, then let it take that in one step.

    Returns:
        The files, in their place.

    Raises:
        OutputError: Something of others came into the folder that is replaced, or nothing can be
            written.
        DamagedBundle: The bundle changed while it was copied.
    """
    with output_errors(model):
        model.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(model.parent) / model.name
        staged = part_beside(beside)
        staged.mkdir()
        try:
            _write(contents, staged)
            files = tuple(sorted(one for one in staged.rglob("*") if one.is_file()))
            place_folder(
                staged,
                model,
                aside=part_beside(beside),
                check=lambda old: _check_own(old, model),  # a file came at the last moment
                remove=lambda old: remove_own(old, _own_of(old)),
            )
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return tuple(model / one.relative_to(staged) for one in files)


def _beside(repository: Path) -> Path:
    """Where a model is put together: beside the repository, on its file system.

    Triton takes every folder in a repository for a model, hidden ones too (2.51). Inside it is
    written only where the repository is a mount of its own, or the folder around it is closed.
    """
    around = repository.parent
    same = around.stat().st_dev == repository.stat().st_dev
    return around if same and os.access(around, os.W_OK | os.X_OK) else repository


def _write(contents: Contents, staged: Path) -> None:
    bundle = contents.bundle
    licence = bundle.manifest.weights_license
    if licence in bundle.manifest.files:
        shutil.copyfile(bundle.path(licence), staged / Path(licence).name)
    atomic_write_text(staged / VERSION / "model.py", contents.model)
    atomic_write_text(staged / "config.pbtxt", contents.config)
    small = sorted(path for path in staged.rglob("*") if path.is_file())
    files = {path.relative_to(staged).as_posix(): sha256_of(path) for path in small}
    if contents.copied:
        _copy(bundle, staged / VERSION / BUNDLE)
        files |= {_COPY + name: entry.sha256 for name, entry in bundle.manifest.files.items()}
        files[_COPY + MANIFEST_NAME] = sha256_of(staged / VERSION / BUNDLE / MANIFEST_NAME)
    note = {"export": "triton", "samforge": __version__, "digest": bundle.digest, "files": files}
    atomic_write_json(staged / NOTE, note)


def _copy(bundle: Bundle, copy: Path) -> None:
    for relative in (*bundle.manifest.files, MANIFEST_NAME):
        source = bundle.root / relative if relative == MANIFEST_NAME else bundle.path(relative)
        target = copy / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    open_bundle(copy, digest=bundle.digest)  # every byte of the copy is the bundle's


def _check_own(folder: Path, model: Path) -> None:
    """Make sure that a folder holds an export and nothing else, and that nobody changed it.

    Raises:
        OutputError: It does not; ``model`` is what it is called.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise OutputError(f"{model} is no folder of a model. Move it away, or give --name.")
    files = _noted(folder)
    if files is None:
        if next(folder.iterdir(), None) is None:
            return
        raise OutputError(
            f"{model} holds files and no {NOTE} of an earlier export, so it is left alone. Give "
            "another --name, or move it away."
        )
    others = list(others_in(folder, _own_of(folder)))
    others += [
        name
        for name, digest in files.items()
        if not name.startswith(_COPY)
        and (folder / name).is_file()
        and sha256_of(folder / name) != digest
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise OutputError(
            f"{model} is an earlier export, and holds files that are not its own, or were changed "
            f"since: {', '.join(others[:3])}{more}. They would be lost. Move them away, or give "
            "another --name."
        )


def _own_of(folder: Path) -> Callable[[str], bool]:
    known = {NOTE, *(_noted(folder) or ())}
    return lambda name: name in known or name.startswith(_COMPILED)


def _noted(folder: Path) -> Mapping[str, str] | None:
    """Hashes of the files that an export wrote, by their names; None where it is none."""
    try:
        table = strict_json((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, StrictJsonError):
        return None
    if not isinstance(table, dict) or table.get("export") != "triton":
        return None
    files = table.get("files")
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in files.values()):
        return None
    return files
