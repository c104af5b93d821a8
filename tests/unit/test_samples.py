"""What steps compare parts on: sizes that sweep every axis, and pictures of every kind."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from samforge.core.axes import LARGE_SIZES, SWEPT
from samforge.core.errors import FidelityError, SettingError
from samforge.core.recipe import Engine, Recipe
from samforge.core.session import PartSpec, TensorSpec
from samforge.core.targets import TARGETS
from samforge.models.loading import model_from_name
from samforge.steps.context import BuildContext, check_gate
from samforge.steps.convert import compared_with_samples
from samforge.steps.samples import (
    MOST_PAIRS,
    PICTURES,
    sample_inputs,
    sweep_of,
    told_apart,
)

BOXES = PartSpec(
    name="detector_boxes",
    inputs=(TensorSpec(name="b", dtype="float32", shape=("batch", "prompts", "boxes", 4)),),
    outputs=(),
)


@pytest.mark.parametrize("target", TARGETS)
def test_every_axis_takes_every_size(target: str) -> None:
    recipe = Recipe(target=target, precision="fp32", engine=Engine(batch=4, prompts=8, boxes=16))
    sizes = sweep_of(recipe, BOXES)
    largest = {"batch": 8, "prompts": 8, "boxes": 16}
    if target.startswith("tensorrt"):
        largest = {"batch": 4, "prompts": 8, "boxes": 16}
    for axis, most in largest.items():
        wanted = {size for size in SWEPT if size < most} | {most}
        assert {one[axis] for one in sizes} == wanted, axis
    assert all(one["batch"] * one["prompts"] <= MOST_PAIRS for one in sizes)
    assert sizes[0] == {"batch": 1, "prompts": 1, "boxes": 1}


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20])
def test_an_engine_is_asked_no_more_than_its_profile(most: int) -> None:
    engine = Engine(batch=most, prompts=most, boxes=most)
    sizes = sweep_of(Recipe(target="tensorrt", precision="fp16", engine=engine), BOXES)
    assert max(max(one.values()) for one in sizes) <= most
    assert {one["boxes"] for one in sizes} >= {1, most}


def test_sizes_that_a_part_cannot_tell_apart_are_one() -> None:
    vision = PartSpec(
        name="vision",
        inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", 3, 8, 8)),),
        outputs=(),
    )
    assert sweep_of(Recipe(target="onnxruntime"), vision) == tuple(
        {"batch": size} for size in (1, 2, 3, 5, 8)
    )
    assert told_apart(LARGE_SIZES, vision) == ({"batch": 1}, {"batch": 2})
    assert {one["prompts"] for one in LARGE_SIZES} >= {1, 2, 5}


def test_sizes_of_a_part_keep_their_order() -> None:
    """Samples are drawn by their number: another order would give other samples."""
    text = PartSpec(
        name="text",
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("prompts", 12)),),
        outputs=(),
    )
    assert [one["prompts"] for one in sweep_of(Recipe(target="onnxruntime"), text)] == [
        *(1, 8, 3, 2, 5)
    ]
    assert [tuple(one.values()) for one in sweep_of(Recipe(target="onnxruntime"), BOXES)] == [
        *((1, 1, 1), (1, 8, 2), (2, 3, 3), (3, 2, 5), (5, 1, 8), (8, 1, 16), (8, 1, 1), (1, 5, 1))
    ]


def test_an_axis_that_nobody_knows_has_no_sizes() -> None:
    odd = PartSpec(
        name="odd",
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "clicks", 2)),),
        outputs=(),
    )
    with pytest.raises(SettingError, match=r"An axis of part odd is unknown: 'clicks'; allowed"):
        sweep_of(Recipe(target="onnxruntime"), odd)


def test_pictures_are_of_every_kind() -> None:
    model = model_from_name("tiny")
    images = sample_inputs(model, "vision", {"batch": len(PICTURES)}, 0)["images"].numpy()
    by_kind = dict(zip(PICTURES, images, strict=True))
    low, high = -0.5 / 0.5, 0.5 / 0.5  # of 0 and 255 with SAM 3's mean and std of 0.5
    assert (by_kind["black"] == low).all()
    assert (by_kind["white"] == high).all()
    colour = by_kind["one colour"]
    assert (colour == colour[:, :1, :1]).all()
    assert len(np.unique(colour)) > 1
    assert set(np.unique(by_kind["saturated"])) == {low, high}
    assert 0.4 < (by_kind["saturated"] == high).mean() < 0.6
    assert by_kind["noise"].max() > 3
    photograph = by_kind["photograph"]
    assert photograph.min() == low
    assert photograph.max() == pytest.approx(high, abs=1e-2)
    # Neighbours are alike in a photograph, and not in noise.
    steps = {
        k: np.abs(np.diff(by_kind[k])).mean() / by_kind[k].std() for k in ("photograph", "noise")
    }
    assert 2 * steps["photograph"] < steps["noise"]


def test_the_same_seed_gives_the_same_samples() -> None:
    model = model_from_name("tiny")
    first, again, other = (
        sample_inputs(model, "vision", {"batch": 3}, seed)["images"] for seed in (4, 4, 5)
    )
    assert first.equal(again)
    assert not first.equal(other)


@pytest.fixture
def context(tmp_path: Path, small_folder: Path) -> BuildContext:
    return BuildContext(
        recipe=Recipe(model=str(small_folder), target="onnxruntime", precision="fp32"),
        model=model_from_name(str(small_folder)),
        root=tmp_path,
        parts=("text",),
    )


def clip_text(model: ir.Model) -> None:
    """Cut what the first output gives, a little below what two samples reach."""
    value = model.graph.outputs[0]
    name = value.name
    value.name = f"{name}_inner"
    low = ir.val("low", const_value=ir.Tensor(np.float32(-2.0), name="low"))
    high = ir.val("high", const_value=ir.Tensor(np.float32(2.0), name="high"))
    for one in (low, high):
        model.graph.register_initializer(one)
    clip = ir.node("Clip", [value, low, high])
    clip.outputs[0].name, clip.outputs[0].dtype = name, value.dtype
    clip.outputs[0].shape = value.shape
    model.graph.append(clip)
    model.graph.outputs[0] = clip.outputs[0]


def first_for_late_ones(model: ir.Model, start: int) -> None:
    """Answer every phrase from ``start`` on like the first: a where on the number of the row."""
    value = model.graph.outputs[0]
    name = value.name
    value.name = f"{name}_inner"
    nodes = []

    def constant(label: str, array: Any) -> ir.Value:
        one = ir.val(label, const_value=ir.Tensor(np.asarray(array), name=label))
        model.graph.register_initializer(one)
        return one

    def call(op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op, list(inputs), attributes)
        nodes.append(node)
        return node.outputs[0]

    zero, one = constant("p_zero", np.int64(0)), constant("p_one", np.int64(1))
    count = call("Gather", call("Shape", value), zero)
    rows = call("Range", zero, count, one)
    late = call("Less", rows, constant("p_start", np.int64(start)))
    chosen = call("Where", late, rows, zero)
    answer = call("Gather", value, chosen, axis=0)
    answer.name, answer.dtype, answer.shape = name, value.dtype, value.shape
    model.graph.extend(nodes)
    model.graph.outputs[0] = answer


@pytest.mark.parametrize("start", [1, 2, 3, 4, 7])
def test_phrases_answered_like_the_first(
    start: int, context: BuildContext, part: Any, onnx_file: Any
) -> None:
    own = part("text")
    for path, sizes in zip(context.samples("text"), context.sample_sizes("text"), strict=True):
        inputs = sample_inputs(context.model, "text", sizes, sum(sizes.values()))
        arrays = {k: v.numpy() for k, v in {**inputs, **own(inputs)}.items()}
        np.savez(context.path(path), **arrays)
    model = ir.load(onnx_file("text"))
    first_for_late_ones(model, start)
    ir.save(model, context.path("text.onnx"))
    figures = compared_with_samples(context, "text", context.path("text.onnx"))
    with pytest.raises(FidelityError, match=r"onnx of text at prompts \d+: text_features differs"):
        check_gate("onnx", "text", figures, "onnx_max_abs", 1e-4)


def test_activations_that_are_clipped(context: BuildContext, part: Any, onnx_file: Any) -> None:
    own = part("text")
    for path, sizes in zip(context.samples("text"), context.sample_sizes("text"), strict=True):
        inputs = sample_inputs(context.model, "text", sizes, 3)
        np.savez(context.path(path), **{k: v.numpy() for k, v in {**inputs, **own(inputs)}.items()})
    model = ir.load(onnx_file("text"))
    clip_text(model)
    ir.save(model, context.path("text.onnx"))
    figures = compared_with_samples(context, "text", context.path("text.onnx"))
    with pytest.raises(FidelityError, match="text_features differs"):
        check_gate("onnx", "text", figures, "onnx_max_abs", 1e-4)
    assert prod(len(group) for group in figures.values()) >= 1
