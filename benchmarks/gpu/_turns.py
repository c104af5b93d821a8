"""What the contenders of a run share: settings, deadlines, and turns on the GPU."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from _timing import Results


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Hold the GPU alone."""
    with (folder / "gpu.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One run, as every contender is told of it."""

    folder: Path
    """Where contenders leave results, logs and marks."""
    contenders: tuple[str, ...]
    """Names of all that take part."""
    compile_until: float
    """Time (``time.time``) after which nobody compiles any more."""
    until: float
    """Time at which the run ends."""
    model: str = "facebook/sam3"
    """SAM 3's checkpoint; its weights are random unless it is ``tiny``."""
    size: int | None = None
    """Image size, or None for the model's own."""
    small: int = 924
    """Image size of the contender ``small``."""
    source: tuple[int, int] = (2160, 3840)
    """Height and width of the pictures called 4K."""
    batch: int = 8
    """Larger batches shrink to this one."""
    many: int = 16
    """Larger numbers of phrases shrink to this one."""
    rounds: int = 50
    """Measurements of each figure."""
    residual: str = "half"
    """Type of residual sums."""
    backbone: str = "facebook/sam-3d-body-dinov3"
    """DINOv3 architecture; its weights are random."""
    backbone_size: int | None = None
    """Its image size, or None for the model's own."""
    eager: bool = False
    """Compile nothing: a dry run."""

    def save(self) -> None:
        """Write it to its folder for the contenders' processes."""
        values = {**asdict(self), "folder": str(self.folder)}
        (self.folder / "bench.json").write_text(json.dumps(values))

    @classmethod
    def load(cls, folder: Path) -> Bench:
        """Read what :meth:`save` wrote."""
        values = json.loads((folder / "bench.json").read_text())
        values["folder"] = Path(values["folder"])
        values |= {name: tuple(values[name]) for name in ("contenders", "source")}
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def results(self, name: str) -> Results:
        """Results of one contender."""
        return Results(self.folder / f"{name}.result.json", self.until - time.time())

    def ready(self, name: str) -> Path:
        """The mark of a contender that has compiled, or is gone."""
        return self.folder / f"{name}.ready"

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Wait until no contender compiles any more, then hold the GPU alone.

        Compiling tries kernels on the GPU and takes every processor: nothing is measured beside it.
        """
        self.ready(name).touch()
        while not all(self.ready(other).exists() for other in self.contenders):
            time.sleep(0.2)
        with turn(self.folder):
            yield
