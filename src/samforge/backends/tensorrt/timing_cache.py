"""A file that remembers timings of kernels across builds; ignored when it is another library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samforge.core.errors import OutputError
from samforge.core.files import atomic_write_bytes, writable_folder


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
        except (OSError, OutputError) as error:
            raise OutputError(
                f"The timing cache {path} cannot be used: {error} Name a file that can be "
                "written, or leave it out."
            ) from error

    def attach(self, config: Any) -> str:
        """Hand the timings to a build.

        Returns:
            What became of them: ``none``, ``new``, ``used`` or ``ignored: …``.
        """
        if self.path is None:
            return "none"
        cache = config.create_timing_cache(self._found) if self._found else None
        if cache is not None and config.set_timing_cache(cache, False):
            return "used"
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
            atomic_write_bytes(self.path, bytes(memoryview(cache.serialize())))
