"""Optimization profiles: the shapes an engine takes, from a part's interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samforge.backends.tensorrt.settings import AxisRange
from samforge.core.errors import SettingError, ShapeError
from samforge.core.session import PartSpec, TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputShapes:
    """Shapes of one input."""

    min: Shape
    """Smallest."""
    opt: Shape
    """Tuned for."""
    max: Shape
    """Largest."""


def shapes_from_spec(spec: PartSpec, axes: Mapping[str, AxisRange]) -> dict[str, InputShapes]:
    """Shapes of every input that has a dynamic axis, by name.

    Raises:
        SettingError: An axis of the part has no range.
    """
    return {
        tensor.name: InputShapes(
            min=_shape(spec, tensor, {name: axis.min for name, axis in axes.items()}),
            opt=_shape(spec, tensor, {name: axis.opt for name, axis in axes.items()}),
            max=_shape(spec, tensor, {name: axis.max for name, axis in axes.items()}),
        )
        for tensor in spec.inputs
        if any(isinstance(axis, str) for axis in tensor.shape)
    }


def check_sizes(spec: PartSpec, axes: Mapping[str, AxisRange], sizes: Mapping[str, int]) -> None:
    """Make sure that an engine takes the sizes of a call.

    Raises:
        ShapeError: One lies outside the range that the engine was built for.
    """
    for name, size in sizes.items():
        allowed = axes.get(name)
        if allowed is not None and not allowed.min <= size <= allowed.max:
            raise ShapeError(
                f"The engine of {spec.name} takes {allowed} for {name}, got {size}. "
                f"Build it with a wider range, or split the call."
            )


def _shape(spec: PartSpec, tensor: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    missing = [axis for axis in tensor.shape if isinstance(axis, str) and axis not in sizes]
    if missing:
        raise SettingError(
            f"{spec.name} has the dynamic axis {missing[0]} and the settings give no range for it. "
            f"They have {', '.join(sizes) or 'none'}."
        )
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
