"""Image -> map of features, from whatever runs the image encoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import FidelityError, SettingError
from samforge.core.images import ImageSource, ImageSpec, RgbImage
from samforge.core.session import Session
from samforge.core.timing import Timings
from samforge.runtime.preprocess import image_bchw_from_rgb

FeatureMap = npt.NDArray[np.float32]
"""(D, h, w): one vector for each cell of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureStatistics:
    """What tells a live backbone from a broken one at a glance."""

    mean: float
    """Over all values."""
    std: float
    """Over all values."""
    norm: float
    """Length of a cell's vector, averaged over the cells."""
    min: float
    """Smallest value."""
    max: float
    """Largest value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Features of one image."""

    map_dhw: FeatureMap
    """(D, h, w), float32."""
    output: str
    """Output of the part they are: ``features``, ``fpn_2``."""
    rgb: RgbImage
    """The image they are of, (H, W, 3)."""

    @property
    def statistics(self) -> FeatureStatistics:
        """Figures over the map, computed in float64."""
        values = self.map_dhw.astype(np.float64)
        return FeatureStatistics(
            mean=float(values.mean()),
            std=float(values.std()),
            norm=float(np.sqrt((values**2).sum(axis=0)).mean()),
            min=float(values.min()),
            max=float(values.max()),
        )


class FeatureExtractor:
    """Runs the image encoder of a model for its features alone."""

    def __init__(
        self,
        session: Session,
        image: ImageSpec,
        read_image: Callable[[ImageSource], RgbImage],
        output: str | None = None,
    ) -> None:
        """Keep what runs the encoder.

        Args:
            session: Of a part with one input ``images``: ``backbone`` of dinov3, ``vision`` of
                sam3.
            image: How the model wants its images.
            read_image: Gives any source as uint8 (H, W, 3): ``samforge.media.read_image``.
            output: Which feature map; None takes the last, the coarsest of a pyramid.

        Raises:
            SettingError: The part takes something else, or has no such output.
        """
        spec = session.spec
        maps = [tensor.name for tensor in spec.outputs if len(tensor.shape) == 4]
        if [tensor.name for tensor in spec.inputs] != ["images"] or not maps:
            raise SettingError(
                f"Features come from a part that turns images into maps; {spec.name} takes "
                f"{', '.join(tensor.name for tensor in spec.inputs)}. Give the session of the part "
                "backbone (dinov3) or vision (sam3)."
            )
        if output is not None and output not in maps:
            raise SettingError(
                f"{spec.name} has no feature map '{output}'. It has {', '.join(maps)}."
            )
        self._session = session
        self._image = image
        self._read_image = read_image
        self.output = output or maps[-1]

    def extract(self, image: ImageSource, *, timings: Timings | None = None) -> Features:
        """Compute the features of one image.

        Args:
            image: A path, the bytes of an image file, a Pillow image or an RGB array. It is
                squashed to the model's square.
            timings: Collects the stages ``decode``, ``preprocess`` and the part's name.

        Raises:
            ImageError: The image cannot be read.
            FidelityError: A feature is no finite number.
        """
        timings = Timings() if timings is None else timings
        with timings.stage("decode"):
            rgb = self._read_image(image)
        with timings.stage("preprocess"):
            image_bchw = image_bchw_from_rgb(rgb, self._image)
        with timings.stage(self._session.spec.name, self._session.processor):
            out = self._session.run({"images": image_bchw})
        found = out[self.output][0].astype(np.float32, copy=False)
        check_finite(found, f"{self._session.spec.name}'s {self.output}", self._session.runtime)
        return Features(map_dhw=found, output=self.output, rgb=rgb)

    def latency_ms(self, rgb: RgbImage, runs: int) -> tuple[float, ...]:
        """Time the part alone on one image, some times in a row, without a warm-up.

        Args:
            rgb: (H, W, 3), uint8.
            runs: How often.

        Returns:
            Milliseconds of each run.
        """
        tensors = {"images": image_bchw_from_rgb(rgb, self._image)}
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            self._session.run(tensors)
            times.append((time.perf_counter() - start) * 1e3)
        return tuple(times)


def check_finite(values: npt.NDArray[np.floating], what: str, runtime: str) -> None:
    """Stop at NaN and infinity, which pictures and means would hide or spread.

    Raises:
        FidelityError: With how many there are.
    """
    broken = int(np.size(values) - np.isfinite(values).sum())
    if broken:
        raise FidelityError(
            f"{broken} of {values.size} values of {what} are NaN or infinite on {runtime}: this "
            "artifact does not compute what the model does. Half precision overflows above 65504; "
            "build in fp32 or bf16 to see whether that is it."
        )
