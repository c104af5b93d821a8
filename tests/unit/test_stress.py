"""The stressed tiny model: the same function, naive INT8 collapses, samforge's recipe holds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samforge.core.recipe import Quantization
from samforge.models.part import Part
from samforge.models.sam3.parts import part_from_checkpoint
from samforge.models.tiny import draw_scene
from samforge.models.tiny.stress import (
    FACTORS,
    SHARE,
    StressedSource,
    outlier_factors,
    stressed_norms,
)
from samforge.runtime.preprocess import image_bchw_from_rgb
from samforge.transform.export import TRACED_SIZES, exported_from_part
from samforge.transform.quantize import Calibrated, CalibrationWarning, calibrate
from samforge.transform.quantize.simulate import Simulation

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def stressed(checkpoint: Make) -> Any:
    own = checkpoint("tiny")
    return replace(own, source=StressedSource(own.source))


@pytest.fixture(scope="module")
def images(checkpoint: Make) -> Callable[[str, int], Iterator[dict[str, Tensor]]]:
    spec = checkpoint("tiny").image

    def draw(split: str, count: int) -> Iterator[dict[str, Tensor]]:
        for seed in range(count):
            image = draw_scene(seed, split=split).image
            yield {"images": torch.from_numpy(image_bchw_from_rgb(image, spec))}

    return draw


def _db(exact: Tensor, other: Tensor) -> float:
    noise = float((exact.double() - other.double()).square().sum())
    return 10 * math.log10(float(exact.double().square().sum()) / noise) if noise else math.inf


def test_factors_stand_out_and_follow_from_the_seed() -> None:
    factors = outlier_factors("vision_encoder.backbone.layers.0.layer_norm1", 256, seed=0)
    outliers = factors[factors != 1]
    assert len(outliers) == round(SHARE * 256) == 8
    assert FACTORS[0] <= float(outliers.min()) <= float(outliers.max()) <= FACTORS[1]
    assert torch.equal(
        factors, outlier_factors("vision_encoder.backbone.layers.0.layer_norm1", 256, seed=0)
    )
    other = outlier_factors("vision_encoder.backbone.layers.1.layer_norm1", 256, seed=0)
    assert not torch.equal(factors, other)
    assert int((outlier_factors("n", 64, seed=1) != 1).sum()) == 2


def test_every_layernorm_that_feeds_only_linears_is_stressed(checkpoint: Make) -> None:
    norms = stressed_norms(checkpoint("tiny").source.names())
    assert len(norms) == 2 * 7 + 2 * 2 + 2 * 2
    assert "vision_encoder.backbone.layers.6.layer_norm2" in norms
    assert "text_encoder.text_model.encoder.layers.1.layer_norm1" in norms
    assert "detr_encoder.layers.0.layer_norm3" in norms
    # These also feed additions.
    assert "detr_encoder.layers.0.layer_norm1" not in norms
    assert "vision_encoder.backbone.layer_norm" not in norms


def test_only_norms_and_their_readers_change(checkpoint: Make, stressed: Any) -> None:
    plain, hard = checkpoint("tiny").source, stressed.source
    assert hard.names() == plain.names()
    block = "vision_encoder.backbone.layers.2"
    factors = outlier_factors(f"{block}.layer_norm2", 256, seed=0)
    norm = f"{block}.layer_norm2.weight"
    assert torch.equal(hard.tensor(norm), plain.tensor(norm).float() * factors)
    fc1 = f"{block}.mlp.fc1.weight"
    assert torch.equal(hard.tensor(fc1), plain.tensor(fc1).float() / factors)
    for name in (
        f"{block}.mlp.fc1.bias",
        f"{block}.mlp.fc2.weight",
        f"{block}.attention.o_proj.weight",
    ):
        assert torch.equal(hard.tensor(name), plain.tensor(name))
    assert hard.digest() != plain.digest()
    assert hard.digest() != StressedSource(plain, seed=1).digest()
    assert hard.digest() == StressedSource(plain).digest()


def _close(plain: dict[str, Tensor], hard: dict[str, Tensor]) -> None:
    for name, tensor in plain.items():
        difference = float((tensor.float() - hard[name].float()).abs().max())
        assert difference <= 1e-4 * max(1.0, float(tensor.float().abs().max())), name


def test_the_function_is_unchanged(
    checkpoint: Make, stressed: Any, part: Make, example: Make, images: Make
) -> None:
    sample = next(images("held-out", 1))
    features = part("vision", "tiny")(sample)
    _close(features, part_from_checkpoint(stressed, "vision")(sample))
    ids = example("text", {"prompts": 3}, model="tiny")
    text = part("text", "tiny")(ids)
    _close(text, part_from_checkpoint(stressed, "text")(ids))
    inputs = {**features, **text}
    _close(part("detector", "tiny")(inputs), part_from_checkpoint(stressed, "detector")(inputs))


def test_half_precision_has_room(stressed: Any, images: Make) -> None:
    """The largest activation of the stressed model, of the 65,504 that float16 holds."""
    module = part_from_checkpoint(stressed, "vision").module
    largest: list[float] = []
    for name, child in module.named_modules():
        if name.endswith(("layer_norm1", "layer_norm2")):
            child.register_forward_hook(
                lambda _m, _i, output: largest.append(float(output.abs().max()))
            )
    with torch.no_grad():
        module(next(images("held-out", 1))["images"])
    assert 100 < max(largest) < 4000


@pytest.fixture(scope="module")
def hard_vision(stressed: Any, images: Make) -> Callable[..., Calibrated]:
    part: Part = part_from_checkpoint(stressed, "vision")
    traced = torch.from_numpy(np.zeros((TRACED_SIZES["batch"], 3, 224, 224), np.float32))
    program = exported_from_part(part, {"images": traced})

    def make(**settings: Any) -> Calibrated:
        with warnings.catch_warnings():  # two samples settle little
            warnings.simplefilter("ignore", CalibrationWarning)
            return calibrate(
                program,
                lambda: images("demo", 2),
                part="vision",
                settings=Quantization(**settings),
            )

    return make


def _worst_db(calibrated: Calibrated, precision: str, samples: Iterator[Any]) -> float:
    simulation = Simulation(calibrated, precision=precision)
    nodes = {site.node for site in calibrated.sites}
    exact, rounded = simulation.outputs(next(samples), nodes)
    return min(map(_db, exact, rounded))


def test_naive_int8_collapses_and_the_recipe_holds(hard_vision: Make, images: Make) -> None:
    naive, recipe = hard_vision(smooth=False), hard_vision()
    operators = [one.pair.operator for one in recipe.smoothings]
    assert {name: operators.count(name) for name in operators} == {
        "layer_norm": 14,
        "linear": 7,  # values
        "conv_transpose2d": 1,
        "conv2d": 3,
    }
    collapsed = _worst_db(naive, "int8", images("held-out", 1))
    held = _worst_db(recipe, "int8", images("held-out", 1))
    assert collapsed < 3
    assert held > 25
    # E4M3 spaces its steps by magnitude: outliers cost it nothing, smoothed or not.
    for calibrated in (naive, recipe):
        assert _worst_db(calibrated, "fp8", images("held-out", 1)) > 22
