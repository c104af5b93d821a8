"""The folder a build works in: resumable step by step, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from samforge.core.errors import OutputError, SamforgeWarning, SettingError
from samforge.core.files import atomic_write_json, output_errors, sha256_of
from samforge.core.lock import BuildLock
from samforge.core.manifest import FileEntry, Manifest, StepResult, check_relative
from samforge.core.publish import assemble, check_replaceable, put_in_place, recover
from samforge.core.structure import StructureError, json_from_value, value_from_json

STEPS_NAME = "steps.json"
"""Records of the finished steps, in the staging folder."""

_STEPS_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """A finished step, as the staging folder remembers it."""

    key: str
    """Hash of all that decides the step's result; see ``step_key``."""
    outputs: Mapping[str, FileEntry]
    """The files it made, by path relative to the staging folder."""
    result: StepResult
    """What it took and how faithful it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """Content of ``steps.json``."""

    version: int
    """Structure of the file."""
    steps: Mapping[str, StepRecord] = field(default_factory=dict)
    """Records by step name."""


def step_key(
    name: str,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, object],
    versions: Mapping[str, str],
) -> str:
    """Hash all that decides a step's result: the same key means that its files can be reused.

    Args:
        name: The step, with its part if it has one: ``export/vision``.
        inputs: SHA-256 of each file or tensor set it reads, by name.
        settings: What it was asked to do, as plain values or dataclasses.
        versions: Versions of the packages that do it.
    """
    content = json_from_value([name, inputs, settings, versions])
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def staged_path(root: Path, relative: str) -> Path:
    """Absolute path of a file to write below ``root``; its parents are made.

    Raises:
        SettingError: The path would not stay inside a bundle.
        OutputError: The folder cannot be made.
    """
    if problem := check_relative(relative):
        raise SettingError(
            f"The bundle path {relative!r} {problem}. Use one like parts/vision.onnx."
        )
    path = root / relative
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Staging:
    """Works in ``.<name>.building`` next to the output and renames it there when whole.

    Use it as a context manager. Leaving it releases the lock and keeps the folder, so a failed
    or killed build leaves its evidence and resumes; only ``publish`` removes it.
    """

    def __init__(self, out: Path, lock: BuildLock, steps: _Steps) -> None:
        self.out = out
        self.root = lock.path.parent
        self._lock = lock
        self._steps = dict(steps.steps)

    @classmethod
    def open(cls, out: str | Path) -> Staging:
        """Take the output for this process and find what an earlier build has finished.

        Args:
            out: Folder to publish to: absent, empty, or a bundle that will be replaced.

        Raises:
            OutputError: Something else is there, it cannot be written, or another build has it.
        """
        out = Path(out).resolve()
        check_replaceable(out)
        root = out.with_name(f".{out.name}.building")
        with output_errors(out):
            root.mkdir(parents=True, exist_ok=True)
        lock = BuildLock(root / "lock")
        lock.acquire()
        try:
            recover(out)
            steps = _read_steps(root / STEPS_NAME)
        except BaseException:
            lock.release()
            raise
        return cls(out, lock, steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other builds have the output; the folder stays unless it was published."""
        self._lock.release()

    def path(self, relative: str) -> Path:
        """Absolute path of a file to write in the staging folder; its parents are made.

        Raises:
            SettingError: The path would not stay inside a bundle.
            OutputError: The folder cannot be made.
        """
        return staged_path(self.root, relative)

    def step(self, name: str, key: str) -> StepRecord | None:
        """Find the finished step with this key, its result marked as resumed.

        Returns:
            The record, or None when the step has to run: it never finished, its key differs, or
            one of its files is gone or changed.
        """
        record = self._steps.get(name)
        if record is None or record.key != key:
            return None
        if any(_changed(self.root / path, entry) for path, entry in record.outputs.items()):
            return None
        return replace(record, result=replace(record.result, resumed=True))

    def record(self, name: str, key: str, outputs: Iterable[str], result: StepResult) -> StepRecord:
        """Remember a finished step; from here on a rerun takes its files over.

        Args:
            name: The step, unique in the build: ``export/vision``.
            key: Its ``step_key``.
            outputs: Files it made, relative to the staging folder.
            result: What it took.

        Raises:
            OutputError: A file is missing, or the record cannot be written.
        """
        entries = {}
        for relative in outputs:
            path = self.path(relative)
            with output_errors(path):
                entries[relative] = FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        record = StepRecord(key=key, outputs=entries, result=result)
        self._steps[name] = record
        steps = _Steps(version=_STEPS_VERSION, steps=self._steps)
        atomic_write_json(self.root / STEPS_NAME, steps)
        return record

    def publish(self, manifest: Manifest, include: Iterable[str]) -> Path:
        """Make the bundle appear at the output, whole, and remove the staging folder.

        The files are hashed and the manifest is written last. If anything fails, the old output is
        back in its place and the staging folder can be resumed.

        Args:
            manifest: All but ``files``, which is filled in here.
            include: Files and folders of the staging folder that belong in the bundle.

        Returns:
            The output folder.

        Raises:
            OutputError: It cannot be written, the disk is full, or something else is there now.
        """
        check_replaceable(self.out)
        bundle = assemble(self.root, manifest, tuple(include))
        put_in_place(bundle, self.out, work=self.root)
        self.close()
        return self.out


def _changed(path: Path, entry: FileEntry) -> bool:
    with output_errors(path):
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return True
        return sha256_of(path) != entry.sha256


def _read_steps(path: Path) -> _Steps:
    empty = _Steps(version=_STEPS_VERSION)
    try:
        steps = value_from_json(_Steps, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return empty
    except OSError as error:
        raise OutputError(
            f"{path} cannot be read: {error.strerror}. Delete {path.parent}."
        ) from error
    except (ValueError, StructureError) as error:
        _warn_afresh(path, str(error))
        return empty
    if steps.version != _STEPS_VERSION:
        _warn_afresh(path, f"its version is {steps.version}, not {_STEPS_VERSION}")
        return empty
    return steps


def _warn_afresh(path: Path, why: str) -> None:
    warnings.warn(
        f"{path} cannot be used, so the build starts from its first step: {why}",
        SamforgeWarning,
        stacklevel=4,
    )
