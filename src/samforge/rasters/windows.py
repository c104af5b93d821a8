"""Windows one by one: read, shown to the model, kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from samforge.core.detections import Detections
from samforge.core.images import RgbImage
from samforge.core.native import error_of_item
from samforge.core.timing import Timings
from samforge.rasters.coarse import LargeObject, large_objects
from samforge.rasters.grid import Grid, PixelBox, Place
from samforge.rasters.ledger import Ledger, WindowFound
from samforge.rasters.pieces import Piece, pieces_from_detections
from samforge.rasters.plan import RasterPlan
from samforge.rasters.result import PhraseTally, WindowFailure
from samforge.rasters.source import RasterSource
from samforge.rasters.stretch import Stretch, picture_of
from samforge.runtime import Segmenter

WHOLE = "whole"


@dataclass(kw_only=True, slots=True)
class Windows:
    """Finds what is in each window, and remembers those that fail."""

    source: RasterSource
    """The raster."""
    grid: Grid
    """Its windows."""
    plan: RasterPlan
    """What to find."""
    stretch: Stretch | None
    """Black and white."""
    segmenter: Segmenter
    """The model."""
    ledger: Ledger
    """What is done."""
    timings: Timings = field(default_factory=Timings)
    """Stages of all windows."""
    segmented: set[Place] = field(default_factory=set)
    """Windows that had their say."""
    without_data: int = 0
    """Windows that hold none."""
    resumed: int = 0
    """Windows that were done before."""
    failures: list[WindowFailure] = field(default_factory=list)
    """Those without a result."""
    phrases: dict[str, PhraseTally] = field(default_factory=dict)
    """Best scores."""

    def find(self, place: Place) -> list[Piece]:
        """What a window shows; nothing where it holds no data or fails, which is remembered.

        Raises:
            OutputError: The disk is full.
        """
        again = place in self.ledger
        if again:
            found: WindowFound | None = self.ledger.read(place, self.grid)
            self.resumed += 1
        else:
            found = None
            with self._isolated(f"{place[0]},{place[1]}", self.grid.box(place)):
                found = self._segmented(place)
        if found is None:
            return []
        if not again:
            self.ledger.write(place, found)
        self._tally(found)
        if found.empty:
            self.without_data += 1
        else:
            self.segmented.add(place)
        return found.pieces

    def large(self, image_size: int) -> list[LargeObject]:
        """What a small picture of the whole shows that is longer than windows overlap."""
        height, width = self.grid.size_hw
        with self._isolated(WHOLE, (0, 0, width, height)):
            with self.timings.stage("read"):
                excerpt = self.source.shrunk(image_size, smooth=True)
                small_hw = excerpt.bands.shape[1:]
                picture = picture_of(excerpt, self.stretch, self.source.palette, max(small_hw))
            found = self._predict(picture)
            return large_objects(found, (height, width), small_hw, self.grid.overlap)
        return []

    def _segmented(self, place: Place) -> WindowFound:
        with self.timings.stage("read"):
            excerpt = self.source.read(self.grid.box(place))
            if excerpt.valid is not None and not np.any(excerpt.valid):
                return WindowFound(pieces=[], best_scores={}, empty=True)
            picture = picture_of(excerpt, self.stretch, self.source.palette, self.grid.side)
        found = self._predict(picture)
        with self.timings.stage("stitch"):
            pieces = pieces_from_detections(found, self.grid, place, excerpt.valid)
        return WindowFound(pieces=pieces, best_scores=found.best_scores, empty=False)

    def _predict(self, picture: RgbImage) -> Detections:
        inner = Timings()
        found = self.segmenter.predict(
            picture,
            text=self.plan.text,
            threshold=self.plan.scores(),
            mask_threshold=self.plan.thresholds.mask,
            max_detections=self.plan.thresholds.max_detections,
            timings=inner,
        )
        for stage in inner.stages():
            self.timings.add(stage.stage, stage.milliseconds, stage.processor, stage.calls)
        return found

    def _tally(self, found: WindowFound) -> None:
        for phrase, score in found.best_scores.items():
            tally = self.phrases.setdefault(phrase, PhraseTally())
            tally.best_score = max(tally.best_score, score)

    @contextmanager
    def _isolated(self, window: str, box: PixelBox) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  named with its kind; the others go on
            told = error_of_item(error)
            self.failures.append(
                WindowFailure(
                    window=window,
                    box=box,
                    kind=type(told).__name__,
                    message=str(told),
                    exit_code=told.exit_code,
                )
            )
