"""Where the time went, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from samforge.apps.cli.output import print_table
from samforge.core.timing import StageTime


def print_stages(stages: Sequence[StageTime], *, images: int) -> None:
    """Print the time of each stage, for one image and, if there were more, for all."""
    total = sum(stage.milliseconds for stage in stages)
    rows: list[tuple[object, ...]] = [
        (stage.stage, *_times(stage.milliseconds, images), _place(stage)) for stage in stages
    ]
    rows.append(("total", *_times(total, images), None))
    times = ("ms",) if images <= 1 else ("ms per image", f"ms for {images}")
    print_table("Time", ("stage", *times, "ran on"), rows, numbers=times)


def _times(milliseconds: float, images: int) -> tuple[str, ...]:
    if images <= 1:
        return (f"{milliseconds:.1f}",)
    return (f"{milliseconds / images:.1f}", f"{milliseconds:.0f}")


def _place(stage: StageTime) -> str:
    # 0 calls of decode mean that the image came as an array, of text that the cache knew it all.
    return stage.processor if stage.calls else f"{stage.processor} (cached)"
