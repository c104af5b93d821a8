"""A file that remembers timings of kernels across builds; ignored when it is another library's.

``trtexec`` and samforge share such files, so nothing of ours can stand in them: a mark beside the
file says what samforge wrote last. A file that is neither this nor timings that TensorRT reads is
somebody's own, named by mistake.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from samforge.core.errors import OutputError
from samforge.core.files import atomic_write_bytes, writable_folder

MARK_SUFFIX = ".samforge"
"""Ending of the mark's name, behind the whole name of the file."""
MARK = "samforge wrote the timing cache beside this file, of SHA-256 {}.\n"
"""What the mark holds."""


class TimingCache:
    """One cache file, or none."""

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            OutputError: It cannot be read, or could not be written after the build.
        """
        self.path = path
        self._found = b""
        if path is None:
            return
        if path.exists() and not path.is_file():
            raise OutputError(f"The timing cache {path} is no file. Name one, or leave it out.")
        try:
            writable_folder(path.parent)
            self._found = path.read_bytes() if path.exists() else b""
            mark = _mark_of(path)
            own = mark.read_bytes() if mark.is_file() else b""
        except (OSError, OutputError) as error:
            raise OutputError(
                f"The timing cache {path} cannot be used: {error} Name a file that can be "
                "written, or leave it out."
            ) from error
        if mark.exists() and not _is_mark(own):
            raise OutputError(
                f"{mark} is where samforge marks the timing cache {path.name} as its own, and it "
                "holds something else. It is left alone. Move it away, or name another cache."
            )
        self._ours = own == _mark(self._found)

    def attach(self, config: Any) -> str:
        """Hand the timings to a build.

        Returns:
            What became of them: ``none``, ``new``, ``used`` or ``ignored: …``.

        Raises:
            OutputError: The file holds no timings that TensorRT reads here, and samforge did not
                write it.
        """
        if self.path is None:
            return "none"
        cache = config.create_timing_cache(self._found) if self._found else None
        if cache is not None and config.set_timing_cache(cache, False):
            return "used"
        if self._found and not self._ours:
            raise OutputError(
                f"The timing cache {self.path} holds no timings of this GPU and TensorRT, and "
                "samforge did not write it: it may be a file of yours. It is left alone. Name "
                "another file, or move this one away."
            )
        config.set_timing_cache(config.create_timing_cache(b""), False)
        if not self._found:
            return "new"
        return f"ignored: {self.path.name} is of another GPU or version, and was begun anew"

    def save(self, config: Any) -> None:
        """Write what the build learned.

        Raises:
            OutputError: The file cannot be written.
        """
        cache = config.get_timing_cache() if self.path is not None else None
        if self.path is not None and cache is not None:
            content = bytes(memoryview(cache.serialize()))
            # A build that is killed in between leaves timings that this GPU still reads.
            atomic_write_bytes(_mark_of(self.path), _mark(content))
            atomic_write_bytes(self.path, content)


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + MARK_SUFFIX)


def _mark(content: bytes) -> bytes:
    return MARK.format(hashlib.sha256(content).hexdigest()).encode()


def _is_mark(content: bytes) -> bool:
    before, _, after = MARK.partition("{}")
    return content.startswith(before.encode()) and content.endswith(after.encode())
