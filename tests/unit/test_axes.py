"""The table of dynamic axes: what it refuses, and who asks it."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from samforge.backends.tensorrt.settings import DEFAULT_AXES
from samforge.core.axes import (
    AXES,
    BATCH,
    BOXES,
    LARGE_SIZES,
    ONE_OF_EACH,
    PROMPTS,
    TRACED_SIZES,
    Axis,
    axes_of,
    axis_from_name,
    axis_table,
    sized,
)
from samforge.core.errors import SettingError
from samforge.core.recipe import Engine
from samforge.core.session import PartSpec, TensorSpec
from samforge.models.part import Part
from samforge.transform import export
from samforge.transform.export import exported_from_part
from samforge.transform.lower import Lowering, lower


def spec_of(*shape: int | str) -> PartSpec:
    tensor = TensorSpec(name="rows", dtype="float32", shape=shape)
    return PartSpec(name="odd", inputs=(tensor,), outputs=(replace(tensor, name="twice"),))


def test_the_table() -> None:
    video = {"objects": 5, "memories": 6, "pointers": 7, "points": 8}
    assert {"batch": 2, "prompts": 3, "boxes": 4, **video} == TRACED_SIZES
    assert export.TRACED_SIZES is TRACED_SIZES
    assert dict.fromkeys(("batch", "prompts", "boxes", *video), 1) == ONE_OF_EACH
    images = [[sizes[name] for name in ("batch", "prompts", "boxes")] for sizes in LARGE_SIZES]
    assert images == [[1, 2, 1], [2, 1, 2], [1, 5, 3]]
    largest = {"objects": 64, "memories": 10, "pointers": 20, "points": 16}
    assert Engine().largest() == {"batch": 4, "prompts": 8, "boxes": 16, **largest}
    assert Engine(boxes=3).largest() == {"batch": 4, "prompts": 8, "boxes": 3, **largest}
    assert {name: (one.min, one.opt, one.max) for name, one in DEFAULT_AXES.items()} == {
        "batch": (1, 1, 4),
        "prompts": (1, 1, 8),
        "boxes": (1, 1, 16),
        **{name: (1, 1, size) for name, size in largest.items()},
    }
    assert [name for name, axis in AXES.items() if axis.multiplies] == ["batch", "prompts"]


def test_sizes_of_an_axis() -> None:
    assert BOXES.sizes(16) == [1, 2, 3, 5, 8, 16]
    assert BOXES.sizes(4) == [1, 2, 3, 4]
    assert BOXES.sizes(1) == [1]


def test_another_axis_is_one_entry() -> None:
    lines = Axis(name="lines", traced=11, largest=16, large=(1, 2, 3), engine=16)
    assert axis_table(*AXES.values(), lines)["lines"].sizes(6) == [1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(BOXES, name="points"), "boxes 4, points 4. Give each a name and a size of its"),
        (replace(BOXES, traced=9), "boxes 4, boxes 9. Give each a name and a size of its own"),
        (replace(BOXES, name="points", traced=5, large=(1,)), "boxes 3, points 1. Give every axis"),
    ],
)
def test_axes_that_would_be_mistaken_for_each_other(other: Axis, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        axis_table(BATCH, PROMPTS, BOXES, other)


def test_an_axis_is_not_traced_as_a_constant() -> None:
    with pytest.raises(SettingError, match="axis points is traced at 1, which tracing takes for"):
        Axis(name="points", traced=1, largest=4, large=(1, 1, 1), engine=4)


def test_axes_of_a_part_are_in_the_order_of_the_table() -> None:
    for names in permutations(("batch", "prompts", "boxes")):
        assert axes_of(spec_of(*names, 4)) == (BATCH, PROMPTS, BOXES)
    assert axes_of(spec_of(3, 4)) == ()


def test_an_unknown_axis_is_named() -> None:
    with pytest.raises(SettingError, match=r"axis is unknown: 'promts' \(did you mean 'prompts'"):
        axis_from_name("promts")
    with pytest.raises(SettingError, match="An axis of part odd is unknown: 'rows'; allowed are"):
        axes_of(spec_of("batch", "rows"))
    with pytest.raises(
        SettingError, match="boxes has the axis 'prompts', and sizes are known of b"
    ):
        sized(("batch", "prompts", 4), {"batch": 1}, "boxes")
    assert sized(("batch", "prompts", 4), TRACED_SIZES, "boxes") == (2, 3, 4)


class Twice(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return 2 * rows


def test_nothing_is_traced_along_an_unknown_axis() -> None:
    odd = Part(spec=spec_of("rows", 4), module=Twice().eval(), axis_limits={"rows": (1, None)})
    with pytest.raises(SettingError, match="An axis of part odd is unknown: 'rows'"):
        exported_from_part(odd, {"rows": torch.zeros(2, 4)})
    known = Part(spec=spec_of("batch", 4), module=odd.module, axis_limits={"batch": (1, None)})
    program = exported_from_part(known, {"rows": torch.zeros(2, 4)})
    with pytest.raises(SettingError, match="An axis of part odd is unknown: 'rows'"):
        lower(program, odd.spec, settings=Lowering(precision="fp32"))
    traced = lower(program, known.spec, settings=Lowering(precision="fp32")).program
    assert traced.example_inputs is not None
    assert traced.example_inputs[0][0].shape == (TRACED_SIZES["batch"], 4)
