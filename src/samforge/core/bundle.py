"""Opens a bundle: the folder a build makes, checked before anything in it is used."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from samforge.core.errors import BundleError, DamagedBundle, ForeignBundle
from samforge.core.files import sha256_of, size_text
from samforge.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_relative,
    manifest_from_text,
    what_to_do,
)
from samforge.core.paths import checked_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A folder with everything needed to run a model on one target."""

    root: Path
    """The folder, absolute."""
    manifest: Manifest
    """What it says about itself."""

    def path(self, relative: str) -> Path:
        """Absolute path of one of the bundle's files.

        Raises:
            DamagedBundle: The bundle lists no such file, or the file lies outside it.
        """
        if relative not in self.manifest.files:
            raise DamagedBundle(
                f"{self.root} has no file {relative!r} in its manifest. {what_to_do()}"
            )
        return _inside(self.root, relative)


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open a bundle and make sure that it is the one that was built.

    Args:
        path: The folder.
        verify: Whether to hash every file. Without it, paths and sizes are still checked: enough
            when the same process opened the bundle just before.

    Raises:
        ForeignBundle: There is no bundle, or one of another schema version.
        DamagedBundle: A file is missing, changed, not listed, or lies outside the bundle.
    """
    root = checked_path(path, ForeignBundle).resolve()
    try:
        manifest = manifest_from_text(_manifest_text(root), place=str(root))
        for relative, entry in manifest.files.items():
            file = _inside(root, relative)
            _check_size(root, file, relative, entry.bytes)
            if verify and sha256_of(file) != entry.sha256:
                raise DamagedBundle(
                    f"{relative} in {root} is not the file that was built: its hash differs. "
                    f"{what_to_do()}"
                )
        _check_no_others(root, manifest)
    except OSError as error:
        raise BundleError(
            f"{error.filename or root} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    return Bundle(root=root, manifest=manifest)


def is_bundle(path: Path) -> bool:
    """Whether the folder was made by samforge, of any schema version and in any condition."""
    try:
        table = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and {"schema_version", "samforge"} <= table.keys()


def _manifest_text(root: Path) -> str:
    file = root / MANIFEST_NAME
    if not file.is_file():
        found = "there is no such folder" if not root.exists() else f"it has no {MANIFEST_NAME}"
        raise ForeignBundle(
            f"{root} is not a samforge bundle: {found}. Name a folder that samforge build made."
        )
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedBundle(f"{file} is not UTF-8 text: {error.reason}. {what_to_do()}") from error


def _inside(root: Path, relative: str) -> Path:
    file = root / relative
    if check_relative(relative) or not file.resolve().is_relative_to(root.resolve()):
        raise DamagedBundle(f"{relative!r} in {root} leads outside the bundle. {what_to_do()}")
    return file


def _check_size(root: Path, file: Path, relative: str, expected: int) -> None:
    if not file.is_file():
        raise DamagedBundle(f"{relative} is missing in {root}. {what_to_do()}")
    size = file.stat().st_size
    if size != expected:
        raise DamagedBundle(
            f"{relative} in {root} has {size} bytes ({size_text(size)}), and {expected} "
            f"({size_text(expected)}) were built. {what_to_do()}"
        )


def _check_no_others(root: Path, manifest: Manifest) -> None:
    # An artifact can name other files itself (ONNX external data), so a file that no hash covers
    # could be read by a runtime.
    for folder, folders, files in os.walk(root):
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in [*files, *linked]:
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if relative not in manifest.files and relative != MANIFEST_NAME:
                raise DamagedBundle(
                    f"{relative} lies in {root} and not in its manifest. "
                    "Delete it if it is yours; otherwise copy the bundle again or rebuild it."
                )
