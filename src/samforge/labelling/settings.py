"""What a run is told, what it is going to do, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from samforge.core.errors import SettingError
from samforge.formats import checked_formats
from samforge.labelling.engine import require_jobs
from samforge.labelling.outcome import ItemFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSettings:
    """How a data set is labelled and written.

    Raises:
        SettingError: A number or a format is not usable.
    """

    formats: tuple[str, ...] = ("coco",)
    """Names of ``samforge.formats.LABEL_FORMATS``."""
    device: str = "auto"
    """As ``samforge.load`` takes it; with several jobs on GPUs each takes the next one."""
    threads: int | None = None
    """Processor threads of each process; None shares the cores."""
    jobs: int = 1
    """Processes that label side by side."""
    batch: int | None = None
    """Pictures in one call; None: 1 on a processor, 8 on a GPU."""
    limit: int | None = None
    """Label the first pictures only, in the order of work."""
    shuffle: int | None = None
    """Seed of a random order of work, which ``limit`` cuts off; None takes the source's order."""
    pictures: Path | None = None
    """Folder of the pictures of a COCO file, where they are not beside it."""
    copy_pictures: bool = False
    """Whether formats that hold pictures copy them instead of linking to them."""
    restart: bool = False
    """Whether earlier labels in the output folder are given up."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", checked_formats(self.formats))
        require_jobs(self.jobs)
        for name, value in (("limit", self.limit), ("batch", self.batch)):
            if value is not None and value < 1:
                raise SettingError(f"{name} is at least 1, got {value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPlan:
    """What a run is going to do."""

    items: int
    """Pictures and videos of the source."""
    chosen: int
    """Those of this run."""
    done: int
    """Of these, labelled already."""
    phrases: tuple[str, ...]
    """What each picture is asked."""
    notes: tuple[str, ...]
    """What of the source is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelResult:
    """What came of a run."""

    out: Path
    """The output folder."""
    files: tuple[Path, ...]
    """The data sets, in the order of the formats."""
    pictures: int
    """Pictures and frames in them."""
    objects: dict[str, int]
    """Objects of each class in them."""
    labelled: int
    """Items that this run labelled."""
    resumed: int
    """Items that earlier runs had labelled."""
    failures: tuple[ItemFailure, ...]
    """Items without labels."""
    notes: tuple[str, ...]
    """What of the source was left out."""
    seconds: float
    """That labelling took, without loading and writing."""
    processor: str
    """Where the parts ran."""


Watch: TypeAlias = Callable[[int, int], None]
"""Told the items that are done and their number: at first, and after each chunk."""


def unwatched(done: int, total: int) -> None:
    """Nobody looks."""
    del done, total
