"""Dynamic axes of parts: all that differs between them, one entry each.

A new axis is an entry here. Whoever traces, compares or builds along an axis asks its entry; nobody
spells names, and an unknown name is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samforge.core.errors import SettingError
from samforge.core.structure import unknown_names

if TYPE_CHECKING:
    # Recipes ask this table, and reading one loads no numpy.
    from samforge.core.session import PartSpec

MOST_OBJECTS = 64
"""Objects that the tracker's parts take in one call."""
SWEPT = (1, 2, 3, 5, 8)
"""Sizes that every axis takes where parts are compared, besides its largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis whose size a call decides."""

    name: str
    """As in the shape of a :class:`~samforge.core.session.TensorSpec`."""
    traced: int
    """Size while a program is traced: above 1 and no other axis's, so that it is taken neither for
    a constant nor for another axis."""
    largest: int
    """Largest size at which parts are compared where a target sets no limit."""
    large: tuple[int, ...]
    """Its size in each of the few calls on which parts for large images are compared."""
    engine: int
    """Largest size that an engine is built for, unless a recipe says otherwise."""
    multiplies: bool = False
    """Whether the work of a call is a product with it, as that of images and phrases is: where one
    such axis is long the others are kept short. Other axes take turns through their sizes."""
    swept: tuple[int, ...] = SWEPT
    """Sizes at which parts are compared, as far as they are below the largest."""
    most: int | None = None
    """Largest size that a part can have at all, whatever runs it; None where there is none."""

    def __post_init__(self) -> None:
        if self.traced < 2:
            raise SettingError(
                f"axis {self.name} is traced at {self.traced}, which tracing takes for a constant. "
                "Give 2 or more."
            )

    def sizes(self, largest: int) -> list[int]:
        """Sizes at which parts are compared, ascending, with the largest allowed one."""
        return sorted({size for size in self.swept if size < largest} | {largest})


def axis_table(*axes: Axis) -> dict[str, Axis]:
    """Axes by name.

    Raises:
        SettingError: Two have one name, are traced at one size, or differ in their number of calls
            on large images.
    """
    table = {axis.name: axis for axis in axes}
    if len(table) < len(axes) or len({axis.traced for axis in axes}) < len(axes):
        told = ", ".join(f"{axis.name} {axis.traced}" for axis in axes)
        raise SettingError(
            f"Axes and the sizes they are traced at: {told}. Give each a name and a size of its "
            "own: tracing takes axes of one size for one axis."
        )
    if len({len(axis.large) for axis in axes}) > 1:
        told = ", ".join(f"{axis.name} {len(axis.large)}" for axis in axes)
        raise SettingError(
            f"Axes and their calls on large images: {told}. Give every axis a size in each call."
        )
    return table


BATCH = Axis(name="batch", traced=2, largest=8, large=(1, 2, 1), engine=4, multiplies=True)
"""Images."""
PROMPTS = Axis(name="prompts", traced=3, largest=8, large=(2, 1, 5), engine=8, multiplies=True)
"""Phrases, asked of every image."""
BOXES = Axis(name="boxes", traced=4, largest=16, large=(1, 2, 3), engine=16)
"""Exemplar boxes of a phrase in an image."""

OBJECTS = Axis(
    name="objects", traced=5, largest=32, large=(1, 2, 7), engine=MOST_OBJECTS, most=MOST_OBJECTS
)
"""Objects that are followed through a video, or prompted in a picture."""
MEMORIES = Axis(name="memories", traced=6, largest=10, large=(1, 7, 10), engine=10, most=10)
"""Frames that an object remembers: four that were prompted, and the six before this one."""
POINTERS = Axis(name="pointers", traced=7, largest=20, large=(1, 16, 20), engine=20, most=20)
"""Pointers of an object: of four prompted frames and of sixteen others."""
POINTS = Axis(name="points", traced=8, largest=16, large=(1, 2, 3), engine=16, most=16)
"""Clicks and box corners of an object."""

AXES: Mapping[str, Axis] = axis_table(BATCH, PROMPTS, BOXES, OBJECTS, MEMORIES, POINTERS, POINTS)
"""Every axis by name; axes that multiply are kept short in this order."""
TRACED_SIZES: Mapping[str, int] = {axis.name: axis.traced for axis in AXES.values()}
"""Sizes of all axes while a program is traced."""
ONE_OF_EACH: Mapping[str, int] = dict.fromkeys(AXES, 1)
"""The smallest call."""
LARGE_SIZES: tuple[Mapping[str, int], ...] = tuple(
    {axis.name: axis.large[call] for axis in AXES.values()} for call in range(len(BATCH.large))
)
"""Sizes at which parts for large images are compared: attention over 5184 tokens takes 1.6 GiB an
image where it is explicit."""


def axis_from_name(name: str) -> Axis:
    """Find an axis.

    Raises:
        SettingError: There is none of this name.
    """
    if problem := unknown_names([name], AXES):
        raise SettingError(f"axis is {problem}.")
    return AXES[name]


def axes_of(spec: PartSpec) -> tuple[Axis, ...]:
    """The dynamic axes of a part's inputs, each once, in the order of the table.

    Raises:
        SettingError: The part has an axis that is not in the table.
    """
    names = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    if problem := unknown_names(names, AXES):
        raise SettingError(f"An axis of part {spec.name} is {problem}.")
    return tuple(axis for axis in AXES.values() if axis.name in names)


def sized(shape: Sequence[int | str], sizes: Mapping[str, int], whose: str) -> tuple[int, ...]:
    """The shape of a call.

    Args:
        shape: Of a tensor, with names of dynamic axes.
        sizes: Size of each of them, by name.
        whose: The tensor, for the message.

    Raises:
        SettingError: An axis has no size.
    """
    unknown = [axis for axis in shape if isinstance(axis, str) and axis not in sizes]
    if unknown:
        raise SettingError(
            f"{whose} has the axis {unknown[0]!r}, and sizes are known of "
            f"{', '.join(sizes) or 'none'}. Give one for it."
        )
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in shape)
