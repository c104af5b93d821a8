"""Which steps a recipe takes, in which order, and what reruns them."""

from __future__ import annotations

import pytest

from samforge.core.recipe import Recipe
from samforge.steps.plan import stages


def names(
    recipe: Recipe, until: str | None = None, parts: tuple[str, ...] = ("vision", "text")
) -> list[list[str]]:
    planned = stages(recipe, parts, until=until)
    return [[" ".join(step.kind.name for step in chain) for chain in stage] for stage in planned]


@pytest.mark.parametrize(
    ("target", "precision", "until", "expected"),
    [
        ("torch", "fp32", None, [["export", "export"], ["verify"]]),
        ("onnxruntime", "fp32", None, [["export fuse onnx"] * 2, ["verify"]]),
        ("onnxruntime", "fp32", "onnx", [["export fuse onnx"] * 2, ["verify"]]),
        ("onnxruntime", "fp32", "export", [["export", "export"]]),
        ("onnxruntime", "fp16", None, [["export fuse onnx"] * 2, ["verify"]]),
        (
            "onnxruntime",
            "int8",
            None,
            [["export fuse"] * 2, ["calibrate"], ["quantize onnx"] * 2, ["verify"]],
        ),
        ("torch", "fp8", None, [["export fuse"] * 2, ["calibrate"], ["quantize"] * 2, ["verify"]]),
        (
            "tensorrt-rtx",
            "int8",
            None,
            [["export fuse"] * 2, ["calibrate"], ["quantize onnx engine"] * 2, ["verify"]],
        ),
        (
            "inductor",
            "fp8",
            None,
            [["export fuse"] * 2, ["calibrate"], ["quantize compile", "compile"], ["verify"]],
        ),
        (
            "tensorrt-rtx",
            "fp8",
            "onnx",
            [["export fuse"] * 2, ["calibrate"], ["quantize onnx"] * 2, ["verify"]],
        ),
        ("tensorrt", "fp16", "onnx", [["export fuse onnx"] * 2, ["verify"]]),
        ("tensorrt-rtx", "int8", "export", [["export", "export"]]),
    ],
)
def test_steps_of_a_recipe(
    target: str, precision: str, until: str | None, expected: list[list[str]]
) -> None:
    assert names(Recipe(target=target, precision=precision), until) == expected


@pytest.mark.parametrize(
    ("target", "precision", "own"),
    [
        ("onnxruntime", "int8", "quantize onnx"),
        ("onnxruntime", "fp8", "quantize onnx"),
        ("openvino", "int8", "quantize onnx"),
        ("torch", "int8", "quantize"),
        ("torch", "fp8", "quantize"),
        ("tensorrt", "int8", "onnx engine"),
        ("tensorrt-rtx", "fp8", "onnx engine"),
        ("inductor", "fp8", "compile"),
    ],
)
def test_the_tracker_is_calibrated_where_it_is_quantized(
    target: str, precision: str, own: str
) -> None:
    parts = ("vision", "memory_attention")
    recipe = Recipe(target=target, precision=precision)
    before, calibrate, *moving, chains, _ = names(recipe, parts=parts)
    assert before == ["export fuse"] * 2
    assert calibrate == ["calibrate"]
    assert moving == ([["calibrate-tracker"]] if own.startswith("quantize") else [])
    assert chains[1] == own


def test_a_step_names_its_part() -> None:
    planned = stages(Recipe(precision="int8"), ("vision",))
    assert [str(step) for stage in planned for chain in stage for step in chain] == [
        "export/vision",
        "fuse/vision",
        "calibrate",
        "quantize/vision",
        "onnx/vision",
        "verify",
    ]
