"""Features of image files as one picture: the work behind ``samforge features``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samforge.assembly import session_from_bundle
from samforge.core.bundle import Bundle
from samforge.core.capabilities import IMAGE_ENCODERS
from samforge.core.errors import ForeignBundle, SettingError
from samforge.core.files import writable_folder
from samforge.core.images import RgbImage
from samforge.draw import grid, pca_pictures
from samforge.measure import Latency, latency_from_samples
from samforge.media import read_image, write_png
from samforge.runtime import FeatureExtractor, FeatureStatistics

CELL_PX = 480
"""Side of each picture on the sheet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSettings:
    """How features become a picture."""

    shared: bool = False
    """One PCA for all images."""
    threshold: float | None = None
    """Share of the first component above which a cell is foreground; None finds it."""
    output: str | None = None
    """Which feature map; None takes the coarsest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """Figures of one image."""

    image: Path
    """The file."""
    size_hw: tuple[int, int]
    """Of the image, pixels."""
    cells_hw: tuple[int, int]
    """Of the feature map."""
    statistics: FeatureStatistics
    """Mean, deviation, norm and range."""
    foreground: float
    """Share of the cells."""
    explained: tuple[float, float, float]
    """Share of the foreground's variance in each colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureReport:
    """What ``samforge features`` found."""

    part: str
    """``backbone`` or ``vision``."""
    output: str
    """Name of the feature map."""
    runtime: str
    """Backend that ran it."""
    processor: str
    """Where."""
    images: tuple[ImageFeatures, ...]
    """In the order given."""
    latency: Latency
    """Of the part alone, on the first image."""
    out: Path
    """The picture."""


def feature_pictures(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    settings: PictureSettings | None = None,
    *,
    runs: int = 5,
    threads: int | None = None,
) -> FeatureReport:
    """Run the image encoder of a bundle on files, draw the picture and time it.

    Args:
        bundle: An opened bundle with an image encoder.
        files: Image files.
        out: PNG file to write.
        settings: How to draw; None takes the defaults.
        runs: Runs to time.
        threads: Processor threads, or None for the runtime's own choice.

    Returns:
        Figures of the features of each image, and the latency of the part.

    Raises:
        ForeignBundle: The bundle has no image encoder.
        SettingError: The picture's name does not end in ``.png``.
        FidelityError: A feature is no finite number.
        OutputError: The picture cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise SettingError(f"The picture is a PNG file, and {out.name} does not end in .png.")
    part = next((name for name in IMAGE_ENCODERS if name in bundle.manifest.parts), None)
    if part is None:
        raise ForeignBundle(
            f"{bundle.root} has no part {' or '.join(IMAGE_ENCODERS)}, which give features. It "
            f"holds {', '.join(bundle.manifest.parts)}."
        )
    settings = settings or PictureSettings()
    out = writable_folder(out.parent) / out.name
    session = session_from_bundle(bundle, part, threads=threads)
    try:
        extractor = FeatureExtractor(session, bundle.manifest.image, read_image, settings.output)
        found = [extractor.extract(file) for file in files]
        milliseconds = extractor.latency_ms(found[0].rgb, runs)
    finally:
        session.close()
    pictures = pca_pictures(
        [one.map_dhw for one in found], shared=settings.shared, threshold=settings.threshold
    )
    sheet: list[RgbImage] = []
    titles: list[str] = []
    for file, one, picture in zip(files, found, pictures, strict=True):
        sheet += [one.rgb, picture.enlarged(_shown_size(one.rgb))]
        titles += [file.name, f"{extractor.output}, {sum(picture.explained):.0%} of the variance"]
    write_png(out, grid(sheet, titles, columns=2, cell=CELL_PX))
    return FeatureReport(
        part=part,
        output=extractor.output,
        runtime=session.runtime,
        processor=session.processor,
        images=tuple(
            ImageFeatures(
                image=file,
                size_hw=one.rgb.shape[:2],
                cells_hw=one.map_dhw.shape[1:],
                statistics=one.statistics,
                foreground=float(picture.foreground.mean()),
                explained=picture.explained,
            )
            for file, one, picture in zip(files, found, pictures, strict=True)
        ),
        latency=latency_from_samples(milliseconds),
        out=out,
    )


def _shown_size(rgb: RgbImage) -> tuple[int, int]:
    """Of the picture on the sheet, (H, W): cells drawn at this size keep sharp edges."""
    scale = CELL_PX / max(rgb.shape[:2])
    return max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale))
