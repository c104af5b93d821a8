"""What is compared, checked before anything starts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from samforge.core.errors import PromptError, SettingError
from samforge.core.reference import META, REFERENCES

DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
PHRASES = ("red circle", "a star", "something blue and round", "man’s hat")
"""Asked when none is named; the curly apostrophe of the last is one that phones write."""
SMALL = {"vision_layers": 4, "text_layers": 2}
"""What ``--small`` keeps of 32 and 24 layers. Nothing else is smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One comparison.

    Raises:
        SettingError: A value is not among the allowed, or two contradict each other.
        PromptError: A phrase is empty, or a box is not inside the picture.
    """

    checkout: Path
    """Folder of Meta's repository."""
    checkpoint: Path | None = None
    """Meta's sam3.pt; None draws weights."""
    bundle: Path | None = None
    """A bundle built from the same checkpoint; None runs samforge's parts eagerly."""
    images: Path | None = None
    """Folder of pictures, or one; None draws scenes."""
    scenes: int = 2
    """How many to draw: every other one is not square."""
    phrases: tuple[str, ...] = PHRASES
    """Asked of every picture, one by one."""
    boxes: tuple[tuple[float, float, float, float, int], ...] = ()
    """Left, top, right, bottom as fractions, and 1 or 0: together one more question, if any."""
    device: str = "cpu"
    """Where both sides compute: ``cpu`` or ``cuda``."""
    precision: str = "fp32"
    """``fp32``; or ``bf16``, which runs Meta's code under autocast too, as Meta's examples do."""
    reference: str = META
    """Whose computation the eager parts follow: ``meta`` or ``transformers``."""
    threshold: float | None = None
    """Objects score above it; None is 0.5, and for drawn weights a gap in each case's scores."""
    seed: int = 0
    """Of drawn weights."""
    small: bool = False
    """Whether to draw weights of a network with few layers in its two large encoders."""
    weights: Path | None = None
    """Where to keep drawn weights, in the layout of sam3.pt."""
    tokenizer: Path | None = None
    """A tokenizer.json; None makes one from the checkout's vocabulary."""
    meta_python: str = sys.executable
    """Interpreter of an environment that has what Meta's code needs."""

    def __post_init__(self) -> None:
        _one_of("--device", self.device, DEVICES)
        _one_of("--precision", self.precision, PRECISIONS)
        _one_of("--reference", self.reference, REFERENCES)
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise SettingError(f"--threshold is {self.threshold}. Give a number from 0 to 1.")
        if self.scenes < 1:
            raise SettingError(f"--scenes is {self.scenes}. Give at least 1.")
        if self.seed < 0:
            raise SettingError(f"--seed is {self.seed}. Give 0 or more.")
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise SettingError(
                f"--checkpoint {self.checkpoint} is no file. Give Meta's sam3.pt (from "
                "https://huggingface.co/facebook/sam3), or leave it out to draw weights."
            )
        self._check_weights()
        if not self.phrases and not self.boxes:
            raise PromptError("There is nothing to ask: give --phrases, --phrases-file or --box.")
        for phrase in self.phrases:
            if not phrase.strip():
                raise PromptError(f"A phrase is text such as 'red circle', got {phrase!r}.")
        for box in self.boxes:
            _check_box(box)

    def _check_weights(self) -> None:
        """Refuse what does not go together."""
        if self.checkpoint is None and self.bundle is not None:
            raise SettingError(
                "--bundle came without --checkpoint: both sides must have the same weights. Name "
                "the sam3.pt that the bundle was built from (or keep drawn weights with "
                "--keep-weights, and build from these)."
            )
        drawing = {"--small": self.small, "--keep-weights": self.weights, "--seed": self.seed}
        given = [name for name, value in drawing.items() if value]
        if self.checkpoint is not None and given:
            raise SettingError(
                f"{', '.join(given)} belongs to drawn weights, and --checkpoint names real ones. "
                "Leave one of the two out."
            )
        if self.bundle is not None and self.reference != META:
            raise SettingError(
                "--reference says what the eager parts compute; a bundle's manifest says what it "
                "does. Leave --reference or --bundle out."
            )


def phrases_from_file(path: Path) -> tuple[str, ...]:
    """Read phrases, one a line; blank lines are skipped.

    Raises:
        SettingError: The file is missing, no UTF-8 text, or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"--phrases-file {path} cannot be read as UTF-8 text ({error}). Give a file with one "
            "phrase a line, or --phrases."
        ) from error
    phrases = tuple(line.strip() for line in lines if line.strip())
    if not phrases:
        raise SettingError(f"--phrases-file {path} holds no phrase. Write one a line.")
    return phrases


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"{name} is {' or '.join(allowed)}, got '{value}'.")


def _check_box(box: tuple[float, float, float, float, int]) -> None:
    left, top, right, bottom, label = box
    if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0) or label not in (0, 1):
        raise PromptError(
            f"The box {box[:4]} is not inside the picture. Give left, top, right and bottom as "
            "fractions from 0 to 1, with left < right and top < bottom."
        )
