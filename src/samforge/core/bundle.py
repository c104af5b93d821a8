"""Opens a bundle: the folder a build makes, checked before anything in it is used."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from samforge.core.errors import (
    BundleError,
    DamagedBundle,
    ForeignBundle,
    SamforgeWarning,
    SettingError,
)
from samforge.core.file_state import FileState, hashed, read_whole, state_of
from samforge.core.files import size_text
from samforge.core.manifest import (
    MANIFEST_NAME,
    MOST_BYTES,
    Manifest,
    check_relative,
    manifest_from_text,
    what_to_do,
)
from samforge.core.own_folder import manifest_table
from samforge.core.paths import checked_path
from samforge.core.replacing import Pin, settled
from samforge.core.strangers import is_harmless

_MOST_TRIES = 100
"""Openings that a replacement may disturb before it is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A folder with everything needed to run a model on one target."""

    root: Path
    """The folder, absolute."""
    manifest: Manifest
    """What it says about itself."""
    strangers: tuple[str, ...] = ()
    """Files that lie in it, are not its own and do no harm: ``README.md``, ``.DS_Store``."""
    linked_out: tuple[str, ...] = ()
    """Files of it that are links to somewhere outside, with the right content."""
    _states: dict[str, FileState] = field(default_factory=dict, repr=False, compare=False)
    """What each file was when it was checked."""

    @property
    def digest(self) -> str:
        """SHA-256 that covers the whole bundle: the manifest, and by its hashes every file."""
        return self.manifest.digest

    def path(self, relative: str) -> Path:
        """Absolute path of one of the bundle's files.

        Raises:
            DamagedBundle: The bundle lists no such file, or the file lies outside it.
        """
        self._check_listed(relative)
        _followed(self.root, self.root, relative)
        return self.root / relative

    def read(self, relative: str) -> bytes:
        """Content of one of the bundle's files; these very bytes are the ones that were hashed.

        Raises:
            DamagedBundle: The bundle lists no such file, or it is not the one that was built.
        """
        path = self.path(relative)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedBundle(_unread(self.root, relative, error)) from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[relative].sha256:
            raise DamagedBundle(_another(self.root, relative))
        return content

    def confirm(self, files: Iterable[str]) -> None:
        """Make sure that files are still what was checked; hash those that changed since.

        Raises:
            DamagedBundle: One is not the file that was built.
        """
        for relative in files:
            self._check_listed(relative)
            if not self.unchanged((relative,)):
                self._states[relative] = _checked(self.root, self.root, self.manifest, relative)

    def unchanged(self, files: Iterable[str]) -> bool:
        """Whether no file was written or replaced since it was checked; nothing is hashed."""
        try:
            return all(state_of(self.root / one) == self._states.get(one) for one in files)
        except OSError:
            return False

    def is_current(self) -> bool:
        """Whether the bundle still lies at its place: False after another was published there."""
        return self.unchanged((MANIFEST_NAME,))

    def _check_listed(self, relative: str) -> None:
        if relative not in self.manifest.files:
            raise DamagedBundle(
                f"{self.root} has no file {relative!r} in its manifest. {what_to_do()}"
            )


def open_bundle(path: str | Path, *, verify: bool = True, digest: str | None = None) -> Bundle:
    """Open a bundle and make sure that it is the one that was built.

    While a build replaces the bundle, you get the old one or the new one, never a mixture.

    Args:
        path: The folder.
        verify: Whether to hash every file. Without it, paths and sizes are still checked: enough
            when the same process opened the bundle just before.
        digest: The bundle's digest, as ``samforge build`` and ``inspect`` print it: any other
            bundle is refused, intact or not.

    Raises:
        ForeignBundle: There is no bundle, or one of another schema version.
        DamagedBundle: A file is missing, changed, not listed, or lies outside the bundle; or it is
            not the bundle of this digest.
        SettingError: ``digest`` is not 64 hexadecimal digits.
    """
    wanted = checked_digest(digest)
    try:
        root = checked_path(path, ForeignBundle).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ForeignBundle(f"{str(path)!a} leads nowhere: {error}.") from error
    for _ in range(_MOST_TRIES):
        settled(root)
        with Pin(root) as pin:
            problem: BundleError | None = None
            bundle = None
            try:
                bundle = _read(root, pin.folder, verify=verify)
            except BundleError as error:
                problem = error
            if pin.is_current():
                break
    else:
        raise DamagedBundle(f"{root} is replaced again and again. Open it when builds are done.")
    if problem is not None:
        raise problem
    assert bundle is not None  # noqa: S101  # one of the two is set
    require_digest(bundle, wanted)
    _name_guests(bundle)
    return bundle


def is_bundle(path: Path) -> bool:
    """Whether samforge made the folder, in any schema version, whatever else it holds now."""
    return manifest_table(path) is not None


def require_digest(bundle: Bundle, digest: str | None) -> None:
    """Make sure that a bundle is the one that was reviewed.

    Args:
        bundle: Opened and checked.
        digest: The reviewed one's; None takes any.

    Raises:
        DamagedBundle: It has another digest.
        SettingError: ``digest`` is not 64 hexadecimal digits.
    """
    wanted = checked_digest(digest)
    if wanted is not None and bundle.digest != wanted:
        raise DamagedBundle(
            f"{bundle.root} is not the bundle that was asked for: its digest is {bundle.digest}, "
            f"and {wanted} is pinned. Review it again, or copy the right one."
        )


def checked_digest(digest: str | None) -> str | None:
    """Check the form of a pinned digest.

    Raises:
        SettingError: It is not 64 hexadecimal digits.
    """
    if digest is None:
        return None
    plain = digest.strip().lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", plain):
        raise SettingError(
            f"A digest has 64 hexadecimal digits, got {digest!a:.80}. "
            "samforge inspect BUNDLE prints it."
        )
    return plain


def _read(root: Path, folder: Path, *, verify: bool) -> Bundle:
    """Read a bundle in a folder that cannot be exchanged meanwhile; messages name its root."""
    try:
        text, state = _manifest_text(root, folder)
        manifest = manifest_from_text(text, place=str(root))
        states, linked_out = {MANIFEST_NAME: state}, []
        for relative in manifest.files:
            if not _followed(root, folder, relative):
                linked_out.append(relative)
                states[relative] = _checked(root, folder, manifest, relative)  # its hash decides
            elif verify:
                states[relative] = _checked(root, folder, manifest, relative)
            else:
                states[relative] = _of_size(root, folder, manifest, relative)
        strangers = _strangers(root, folder, manifest)
    except OSError as error:
        place = str(error.filename or root).replace(str(folder), str(root), 1)
        raise BundleError(
            f"{place} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error
    return Bundle(
        root=root,
        manifest=manifest,
        strangers=strangers,
        linked_out=tuple(linked_out),
        _states=states,
    )


def _manifest_text(root: Path, folder: Path) -> tuple[str, FileState]:
    file = folder / MANIFEST_NAME
    try:
        content, state = read_whole(file, at_most=MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        found = "there is no such folder" if not root.exists() else f"it has no {MANIFEST_NAME}"
        raise ForeignBundle(
            f"{root} is not a samforge bundle: {found}. Name a folder that samforge build made."
        ) from error
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedBundle(_unread(root, MANIFEST_NAME, error)) from error
    try:
        return content.decode(), state
    except UnicodeDecodeError as error:
        raise DamagedBundle(
            f"{root}/{MANIFEST_NAME} is not UTF-8 text: {error.reason}. {what_to_do()}"
        ) from error


def _followed(root: Path, folder: Path, relative: str) -> bool:
    """Whether a file lies in the bundle, or in the Hugging Face cache that the bundle is part of.

    Raises:
        DamagedBundle: A folder on the way to it is a link: what lies there is not the bundle's.
    """
    if check_relative(relative):
        raise DamagedBundle(f"{relative!r} in {root} leads outside the bundle. {what_to_do()}")
    place = folder
    for part in PurePosixPath(relative).parts[:-1]:
        place = place / part
        if place.is_symlink():
            raise DamagedBundle(
                f"{relative!r} in {root} leads outside the bundle: {part} is a link to a folder. "
                f"{what_to_do()}"
            )
    file = folder / relative
    if not file.is_symlink():
        return True
    target, own = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    # models--OWNER--NAME/snapshots/REVISION holds links into models--OWNER--NAME/blobs.
    cached = own.parent.name == "snapshots" and target.parent == own.parent.parent / "blobs"
    return cached or target.is_relative_to(own)


def _of_size(root: Path, folder: Path, manifest: Manifest, relative: str) -> FileState:
    entry = manifest.files[relative]
    try:
        found = (folder / relative).stat()
        state = state_of(folder / relative)
    except FileNotFoundError as error:
        raise DamagedBundle(f"{relative} is missing in {root}. {what_to_do()}") from error
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedBundle(_unread(root, relative, error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise DamagedBundle(f"{relative} is missing in {root}: it is no file. {what_to_do()}")
    if found.st_size != entry.bytes:
        raise DamagedBundle(
            f"{relative} in {root} has {found.st_size} bytes ({size_text(found.st_size)}), and "
            f"{entry.bytes} ({size_text(entry.bytes)}) were built. {what_to_do()}"
        )
    return state


def _checked(root: Path, folder: Path, manifest: Manifest, relative: str) -> FileState:
    """Hash a file.

    Raises:
        DamagedBundle: It is not the one that was built.
    """
    _of_size(root, folder, manifest, relative)
    try:
        digest, state = hashed(folder / relative)
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedBundle(_unread(root, relative, error)) from error
    if digest != manifest.files[relative].sha256:
        raise DamagedBundle(_another(root, relative))
    return state


def _another(root: Path, relative: str) -> str:
    return f"{relative} in {root} is not the file that was built: its hash differs. {what_to_do()}"


def _unread(root: Path, relative: str, error: OSError) -> str:
    return f"{relative} in {root} cannot be read: {error.strerror or error}. {what_to_do()}"


def _strangers(root: Path, folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files that are not the bundle's and do no harm.

    Raises:
        DamagedBundle: One could: an artifact can name other files itself (ONNX external data), so
            a runtime could read what no hash covers.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        inside = Path(place)
        linked = [name for name in folders if (inside / name).is_symlink()]
        for name in [*files, *linked]:
            relative = (inside / name).relative_to(folder).as_posix()
            if relative in manifest.files or relative == MANIFEST_NAME:
                continue
            if not is_harmless(relative):
                raise DamagedBundle(
                    f"{relative} lies in {root} and not in its manifest. "
                    "Delete it if it is yours; otherwise copy the bundle again or rebuild it."
                )
            found.append(relative)
        for name in list(folders):
            relative = (inside / name).relative_to(folder).as_posix()
            if is_harmless(f"{relative}/x") and not _holds_own(relative, manifest):
                folders.remove(name)  # a clone's .git has thousands of files
                if name not in linked:
                    found.append(f"{relative}/")
    return tuple(sorted(found))


def _holds_own(relative: str, manifest: Manifest) -> bool:
    return any(path.startswith(f"{relative}/") for path in manifest.files)


def _name_guests(bundle: Bundle) -> None:
    if bundle.strangers:
        warnings.warn(
            f"{bundle.root} holds files that are not its own and are not used: "
            f"{_few(bundle.strangers)}.",
            SamforgeWarning,
            stacklevel=3,
        )
    if bundle.linked_out:
        warnings.warn(
            f"{bundle.root} has files that are links to somewhere else, with the right content: "
            f"{_few(bundle.linked_out)}.",
            SamforgeWarning,
            stacklevel=3,
        )


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:5]) + more
