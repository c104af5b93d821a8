"""The folder a build works in: resumable step by step, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from samforge.core.closing import Closing
from samforge.core.errors import BuildError, OutputError, SamforgeWarning, SettingError
from samforge.core.file_state import FileState, hashed, state_of
from samforge.core.files import atomic_write_json, output_errors
from samforge.core.lock import BuildLock
from samforge.core.manifest import FileEntry, Manifest, StepResult, check_relative
from samforge.core.own_folder import LOCK_NAME, make_marked, work_folder, write_mark
from samforge.core.publish import (
    STEPS_NAME,
    assemble,
    changed_text,
    check_replaceable,
    put_in_place,
    recover,
)
from samforge.core.strict_json import StrictJsonError, strict_json
from samforge.core.structure import StructureError, json_from_value, value_from_json

_STEPS_VERSION = 2
_FOLDERS = ("parts", "work", "report", "verify", "tokenizer")
"""Folders in the staging folder that builds make."""


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
        for place in (path, *path.parents):
            if place == root:
                break
            if place.is_symlink():
                raise OutputError(
                    f"{place} is a link, and what is written through it would be somebody else's "
                    "file. Remove the link and run the build again."
                )
    return path


class Staging(Closing):
    """Works in ``.<name>.building`` next to the output and puts the bundle there when whole.

    Use it as a context manager. Leaving it releases the lock and keeps the folder, so a failed
    or killed build leaves its evidence and resumes; only ``publish`` removes it.
    """

    def __init__(self, out: Path, lock: BuildLock, steps: _Steps) -> None:
        self.out = out
        self.root = lock.path.parent
        self._lock = lock
        self._steps = dict(steps.steps)
        self._current: dict[str, dict[str, FileState]] = {}
        """Steps of this build, with the state of each of their files when it was hashed."""
        self._made = set(_FOLDERS)

    @classmethod
    def open(cls, out: str | Path) -> Staging:
        """Take the output for this process and find what an earlier build has finished.

        Args:
            out: Folder to publish to: absent, empty, or a bundle that will be replaced.

        Raises:
            OutputError: Something else is there, it cannot be written, or another build has it.
        """
        with output_errors(Path(out)):
            out = Path(out).resolve()
        check_replaceable(out)
        root = work_folder(out)
        lock = BuildLock(root / LOCK_NAME)
        while True:
            with output_errors(out):
                make_marked(root)
            try:
                lock.acquire()
                break
            except OutputError:
                if root.exists():  # else another build has published and removed it just now
                    raise
        try:
            with output_errors(root):
                write_mark(root)
            recover(out, root)
            steps = _read_steps(root / STEPS_NAME)
        except BaseException:
            lock.release()
            raise
        return cls(out, lock, steps)

    def close(self) -> None:
        """Let other builds have the output; the folder stays unless it was published."""
        self._lock.release()

    def path(self, relative: str) -> Path:
        """Absolute path of a file to write in the staging folder; its parents are made.

        Raises:
            SettingError: The path would not stay inside a bundle.
            OutputError: The folder cannot be made, or a link is in the way.
        """
        path = staged_path(self.root, relative)
        self._made.add(path.relative_to(self.root).parts[0])
        return path

    def step(self, name: str, key: str) -> StepRecord | None:
        """Find the finished step with this key, its result marked as resumed.

        Returns:
            The record, or None when the step has to run: it never finished, its key differs, or
            one of its files is gone or changed.
        """
        record = self._steps.get(name)
        if record is None or record.key != key:
            return None
        states = {}
        for relative, entry in record.outputs.items():
            state = _unchanged(self.root, relative, entry)
            if state is None:
                return None
            states[relative] = state
        self._current[name] = states
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
        entries, states = {}, {}
        for relative in outputs:
            path = self.path(relative)
            with output_errors(path):
                digest, state = hashed(path)
            entries[relative] = FileEntry(sha256=digest, bytes=state.bytes)
            states[relative] = state
        record = StepRecord(key=key, outputs=entries, result=result)
        self._steps[name], self._current[name] = record, states
        steps = _Steps(version=_STEPS_VERSION, steps=self._steps)
        atomic_write_json(self.root / STEPS_NAME, steps)
        return record

    def publish(self, manifest: Manifest, include: Iterable[str]) -> Path:
        """Make the bundle appear at the output, whole, and remove the staging folder.

        The files are hashed, compared with what their steps recorded, and the manifest is written
        last. If anything fails, the old output is in its place and the staging folder can be
        resumed.

        Args:
            manifest: All but ``files``, which is filled in here.
            include: Files and folders of the staging folder that belong in the bundle.

        Returns:
            The output folder.

        Raises:
            OutputError: It cannot be written, the disk is full, or something else is there now.
            BuildError: A file changed after its step was over: what was made of it, and proven, is
                another's.
        """
        check_replaceable(self.out)
        self._check_unchanged()
        included = tuple(include)
        recorded = {
            relative: entry
            for name in self._current
            for relative, entry in self._steps[name].outputs.items()
        }
        own = {path.partition("/")[0] for path in (*recorded, *included)}
        bundle = assemble(self.root, manifest, included, recorded)
        put_in_place(bundle, self.out, work=self.root, own=self._made | own)
        self.close()
        return self.out

    def _check_unchanged(self) -> None:
        """Make sure that every step's files, published or not, are what later steps read."""
        for name, states in self._current.items():
            for relative, state in states.items():
                path = self.root / relative
                with output_errors(path):
                    same = path.is_file() and state_of(path) == state
                if (
                    not same
                    and _unchanged(self.root, relative, self._steps[name].outputs[relative]) is None
                ):
                    raise BuildError(changed_text(path))


def _unchanged(root: Path, relative: str, entry: FileEntry) -> FileState | None:
    """State of a step's file that is what was recorded; None where it is gone or changed."""
    if check_relative(relative):
        return None  # somebody wrote into the records
    path = root / relative
    with output_errors(path):
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.bytes:
            return None
        digest, state = hashed(path)
        return state if digest == entry.sha256 else None


def _read_steps(path: Path) -> _Steps:
    empty = _Steps(version=_STEPS_VERSION)
    try:
        steps = value_from_json(_Steps, strict_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return empty
    except OSError as error:
        raise OutputError(
            f"{path} cannot be read: {error.strerror}. Delete {path.parent}."
        ) from error
    except (ValueError, StrictJsonError, StructureError) as error:
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
