"""Outliers of every kind that the tiny model can be given: there, and without effect in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from samforge.models.sam3.parts import part_from_checkpoint
from samforge.models.tiny import draw_scene
from samforge.models.tiny.planted import KINDS, LOUD_HEAD, PlantedSource
from samforge.runtime.preprocess import image_bchw_from_rgb

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., Any]
VALUES = "vision_encoder.backbone.layers.3.attention"


@pytest.fixture(scope="module")
def answers(checkpoint: Make, example: Make) -> Callable[[Any], dict[str, Tensor]]:
    """What a checkpoint makes of one scene and three phrases, part by part."""
    image = draw_scene(0, split="held-out").image
    images = torch.from_numpy(image_bchw_from_rgb(image, checkpoint("tiny").image))
    ids = example("text", {"prompts": 3}, model="tiny")

    def run(own: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in ("vision", "text", "detector"):
            inputs = {"vision": {"images": images}, "text": ids}.get(name, found)
            found = {**found, **part_from_checkpoint(own, name)(inputs)}
        return found

    return run


@pytest.fixture(scope="module")
def plain(checkpoint: Make, answers: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    return answers(checkpoint("tiny"))


def _planted(checkpoint: Make, *kinds: str) -> Any:
    own = checkpoint("tiny")
    return replace(own, source=PlantedSource(own.source, kinds))


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), ("values", "norm-biases")])
def test_the_function_is_unchanged(
    kinds: tuple[str, ...],
    checkpoint: Make,
    answers: Callable[[Any], dict[str, Tensor]],
    plain: dict[str, Tensor],
) -> None:
    found = answers(_planted(checkpoint, *kinds))
    # The finest map is read by one convolution alone, which may take it in another scale.
    for name in plain.keys() - ({"fpn_0"} if "mask-norm" in kinds else set()):
        exact = plain[name].double()
        difference = float((found[name].double() - exact).abs().max())
        assert difference <= 1e-3 * max(1.0, float(exact.abs().max())), name


def test_one_head_is_loud_and_its_columns_are_quiet(checkpoint: Make) -> None:
    plain, loud = checkpoint("tiny").source, _planted(checkpoint, "one-layer").source
    changed = {n for n in plain.names() if not torch.equal(plain.tensor(n), loud.tensor(n))}
    assert changed == {
        f"{VALUES}.{name}" for name in ("v_proj.weight", "v_proj.bias", "o_proj.weight")
    }
    factors = loud.tensor(f"{VALUES}.v_proj.weight") / plain.tensor(f"{VALUES}.v_proj.weight")
    rows = factors.nan_to_num(1.0).amax(1).view(4, 64)
    assert sorted(rows.amax(1).tolist()) == [1.0, 1.0, 1.0, LOUD_HEAD]


def test_every_kind_has_its_own_digest(checkpoint: Make) -> None:
    digests = {_planted(checkpoint, kind).source.digest() for kind in KINDS}
    assert len(digests) == len(KINDS)
    assert _planted(checkpoint).source.digest() not in digests
