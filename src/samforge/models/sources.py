"""Where tensors come from, by name, read one at a time so that no checkpoint is held twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from samforge.core.errors import CheckpointError
from samforge.core.native import native_errors


class WeightSource(Protocol):
    """Named tensors of a checkpoint."""

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, in the type it is stored in."""
        ...

    def digest(self) -> str:
        """What identifies the weights: ``sha256:…`` of the files, or how they are generated."""
        ...


class SafetensorsSource:
    """One or several safetensors files (the shards of one checkpoint)."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files
        self._file_of: dict[str, Path] = {}
        for file in files:
            with _readable(file), safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
            for name in names:
                if name in self._file_of:
                    raise CheckpointError(
                        f"{name} stands in {self._file_of[name].name} and in {file.name}: which of "
                        f"the two is meant? Keep one of them in {file.parent}."
                    )
                self._file_of[name] = file

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        file = self._file_of[name]
        with _readable(file), safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Hash over the files."""
        return _sha256(self._files)


class TorchFileSource:
    """A ``.pt`` file of tensors, memory-mapped, loaded with ``weights_only``: it runs no code."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with _readable(file):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        nested = content.get("model") if isinstance(content, dict) else None
        content = nested if isinstance(nested, dict) else content
        if not isinstance(content, dict) or not all(
            isinstance(tensor, Tensor) for tensor in content.values()
        ):
            raise CheckpointError(f"{file} holds no dictionary of tensors: it is no checkpoint.")
        self._tensors: dict[str, Tensor] = content

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        return self._tensors[name]

    def digest(self) -> str:
        """Hash over the file."""
        return _sha256((self._file,))


class RandomSource:
    """Weights drawn from the seed and each tensor's name: for trials of size, speed and plumbing.

    Norms are ones, biases zeros, everything else is normal with the configuration's standard
    deviation, so activations stay in a plausible range. They mean nothing: no accuracy figure may
    come from them.

    They pass the same check for NaN and infinity as those of a file when a part is loaded. The file
    that they stand in for is never opened, so what is wrong with it is not found.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int, deviation: float) -> None:
        self._shapes = shapes
        self._seed = seed
        self._deviation = deviation

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._shapes)

    def tensor(self, name: str) -> Tensor:
        """Draw one tensor; the same name and seed give the same values in any order."""
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return torch.zeros(shape)
        if "norm" in name and name.endswith(".weight"):
            return torch.ones(shape)
        key = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
        return torch.randn(shape, generator=generator).mul_(self._deviation)

    def digest(self) -> str:
        """How the weights are generated."""
        return f"random:seed={self._seed}"


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what a truncated or foreign file raises into one clear error."""
    with native_errors(lambda error: _unreadable(file, error)):
        yield


def _unreadable(file: Path, error: BaseException) -> CheckpointError:
    """Zip directories, pickles and JSON headers: anything in a file may be wrong."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{file} does not exist. Download the checkpoint again.")
    if isinstance(error, UnpicklingError):
        # torch's own message recommends to run it.
        return CheckpointError(
            f"{file} is no file of tensors alone: reading it would run code that it brings along, "
            "so it is refused. Get the checkpoint from its publisher, as safetensors if there is."
        )
    return CheckpointError(
        f"{file} cannot be read as weights ({error}). "
        "A download that stopped halfway looks like this: delete the file, download it again."
    )


def _sha256(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
