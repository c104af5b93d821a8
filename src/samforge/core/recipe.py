"""What to build: the model, its size, the target, the precision and the gates that must hold."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.core.structure import (
    Json,
    StructureError,
    json_from_value,
    unknown_names,
    value_from_json,
)

TARGETS = ("onnxruntime", "torch")
"""Where a bundle can be built to run."""

PRECISIONS = ("fp32",)
"""Number formats a bundle can be built in."""

PATCH_PX = 14
"""Side of a patch of SAM 3's image encoder: image sizes are multiples of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """How far each step may stray from what it was made from before the build stops."""

    export_max_abs: float = 0.0
    """Largest difference allowed between the exported part and the part in eager mode."""
    onnx_max_abs: float = 1e-4
    """Largest difference allowed between the fp32 ONNX graph and the exported part."""

    def __post_init__(self) -> None:
        for gate in fields(self):
            value = getattr(self, gate.name)
            if not _is_number(value) or not value >= 0:
                raise SettingError(f"gates.{gate.name} wants a number from 0 up, got {value!r}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what a build makes."""

    model: str = "tiny"
    """A built-in model, a local checkpoint folder or a Hugging Face id."""
    image_size: int | None = None
    """Side of the square image in pixels, a multiple of 14; None takes the model's own."""
    parts: tuple[str, ...] | None = None
    """Parts to build; None builds those that text and box prompts need."""
    target: str = "onnxruntime"
    """Runtime the bundle is for, one of ``TARGETS``."""
    precision: str = "fp32"
    """Number format of weights and activations, one of ``PRECISIONS``."""
    random_weights: bool = False
    """Draw the weights instead of loading them: tells size and speed, never meaning."""
    seed: int = 0
    """Seed of random weights and of example inputs."""
    tokenizer: Path | None = None
    """A tokenizer.json to use in place of the checkpoint's."""
    gates: Gates = field(default_factory=Gates)
    """What must hold for the build to publish."""

    def __post_init__(self) -> None:
        _check_choice("target", self.target, TARGETS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_image_size(self.image_size)
        if not self.model:
            raise SettingError(
                "model is empty. Name a built-in model, a folder or a Hugging Face id."
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise SettingError(f"seed wants a whole number from 0 up, got {self.seed!r}.")
        if isinstance(self.parts, str) or (self.parts is not None and not self.parts):
            raise SettingError(f"parts wants at least one name in a tuple, got {self.parts!r}.")
        if self.parts is not None and len(set(self.parts)) != len(self.parts):
            raise SettingError(f"parts names one more than once: {', '.join(self.parts)}.")

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file: one key a field, gates in a ``[gates]`` table.

        A relative ``tokenizer`` is looked for next to the file.

        Raises:
            SettingError: The file cannot be read, or a key or value is not allowed.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(f"The recipe {path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"The recipe {path} is not valid TOML: {error}.") from error
        try:
            recipe = cls.from_dict(table)
        except SettingError as error:
            raise SettingError(f"The recipe {path} is not usable: {error}") from error
        if recipe.tokenizer is None:
            return recipe
        return replace(recipe, tokenizer=path.parent / recipe.tokenizer)

    @classmethod
    def from_dict(cls, table: Mapping[str, object]) -> Recipe:
        """Read a recipe from plain values, as ``to_dict`` or TOML give them.

        Raises:
            SettingError: A key or value is not allowed.
        """
        try:
            return value_from_json(cls, dict(table), complete=False)
        except StructureError as error:
            raise SettingError(str(error)) from error

    def to_dict(self) -> dict[str, Json]:
        """Every field as plain JSON values; ``from_dict`` gives back an equal recipe."""
        table = json_from_value(self)
        assert isinstance(table, dict)  # noqa: S101  # a dataclass always becomes a table
        return table


def _check_choice(setting: str, value: str, allowed: tuple[str, ...]) -> None:
    if problem := unknown_names([value], allowed):
        raise SettingError(f"{setting} is {problem}.")


def _check_image_size(size: int | None) -> None:
    if size is None:
        return
    if not isinstance(size, int) or isinstance(size, bool):
        raise SettingError(f"image_size wants a whole number of pixels, got {size!r}.")
    if size > 0 and size % PATCH_PX == 0:
        return
    below = size // PATCH_PX * PATCH_PX
    near = (PATCH_PX,) if below <= 0 else (below, below + PATCH_PX)
    raise SettingError(
        f"image_size wants a positive multiple of {PATCH_PX}, got {size}. "
        f"Nearest: {' or '.join(str(allowed) for allowed in near)}."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
