"""Whether a folder is a checkout of facebookresearch/sam3, and which."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from samforge.core.errors import SettingError

REPOSITORY = "https://github.com/facebookresearch/sam3"
TRIED = "99d02f28c8d34610ab35559b72642b01f10fdb1e"
"""The commit this tool was written and run with, of 27 January 2026."""
TRIED_SOURCES = "a90b8ea16e8ba9a77c7d9bfc201eb6effab2fa7192b32555ecb336dec671b01d"
"""SHA-256 over its Python sources: tells it where there is no git, and tells local changes."""
NEEDED = ("sam3/model_builder.py", "sam3/model/sam3_image.py", "sam3/model/sam3_image_processor.py")
VOCABULARY = "assets/bpe_simple_vocab_16e6.txt.gz"
"""CLIP's byte pairs, below ``sam3`` or, at first, beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkout:
    """A folder that holds Meta's code."""

    path: Path
    """The folder above ``sam3``, absolute."""
    vocabulary: Path
    """CLIP's byte pairs in it."""
    commit: str | None
    """As git says; None where it does not."""
    sources: str
    """SHA-256 over its Python sources."""

    @property
    def as_tried(self) -> bool:
        """Whether its sources are those this tool was tried with."""
        return self.sources == TRIED_SOURCES

    def describe(self) -> str:
        """Which code it is, in words, and whether this tool knows it."""
        if self.as_tried:
            return f"commit {TRIED}, the one this was tried with"
        known = f"This was tried with commit {TRIED}: what differs may be Meta's change."
        if self.commit == TRIED:
            return f"commit {TRIED} with local changes. {known}"
        return f"{f'commit {self.commit}' if self.commit else 'a commit unknown to git'}. {known}"


def checkout_from_folder(folder: Path) -> Checkout:
    """Look at a folder.

    Raises:
        SettingError: It is no checkout of Meta's repository, or not a whole one.
    """
    path = folder.resolve()
    advice = f"Get it with: git clone {REPOSITORY} (this was tried with commit {TRIED[:12]})."
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise SettingError(
            f"--checkout {folder} {what}. It wants the folder of a checkout of "
            f"facebookresearch/sam3. {advice}"
        )
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if len(missing) == len(NEEDED):
        inside = sorted(entry.name for entry in path.iterdir())[:5]
        raise SettingError(
            f"--checkout {folder} is no checkout of facebookresearch/sam3: it has no {missing[0]} "
            f"(it holds {', '.join(inside) or 'nothing'}). Name the folder that has the folder "
            f"'sam3' in it. {advice}"
        )
    found = [file for root in ("sam3", ".") if (file := path / root / VOCABULARY).is_file()]
    if missing or not found:
        raise SettingError(
            f"--checkout {folder} is not whole, or of a commit that this tool does not know: "
            f"{', '.join(missing) or f'sam3/{VOCABULARY}'} is missing. {advice}"
        )
    return Checkout(
        path=path, vocabulary=found[0].resolve(), commit=commit_of(path), sources=sources_of(path)
    )


def commit_of(path: Path) -> str | None:
    """The checked-out commit, or None where git cannot tell."""
    command = ["git", "-c", f"safe.directory={path}", "-C", str(path), "rev-parse"]
    try:
        told = subprocess.run(
            [*command, "--show-toplevel", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    top, commit = told.stdout.splitlines()
    # A copy without .git inside another repository: its commit would be the other one's.
    return commit if Path(top).resolve() == path else None


def sources_of(path: Path) -> str:
    """SHA-256 over the names and contents of all Python files below ``sam3``."""
    digest = hashlib.sha256()
    files = {file.relative_to(path).as_posix(): file for file in (path / "sam3").rglob("*.py")}
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
