"""The part ``backbone`` computes what transformers' own ``DINOv3ViTModel`` computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DINOv3ViTModel

from samforge.backends import backend_from_name
from samforge.core.errors import ExportError, SettingError, ShapeError
from samforge.core.recipe import Recipe
from samforge.core.targets import TARGETS
from samforge.measure.fidelity import compare_tensor
from samforge.models.dinov3.backbone import Backbone, rope_tables
from samforge.models.dinov3.checkpoint import Dinov3Checkpoint, state_shapes
from samforge.models.dinov3.config import (
    ARCHITECTURES,
    BODY,
    BODY_PX,
    REGISTERS,
    config_from_settings,
)
from samforge.models.dinov3.loading import RandomBackbone, checkpoint_from_name
from samforge.transform.export import TRACED_SIZES, exported_from_part, run_exported, save_exported
from samforge.transform.onnx.convert import onnx_from_exported, save_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 1e-5
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GATED = {**ARCHITECTURES["dinov3-tiny"], "num_register_tokens": REGISTERS}
CONFIGS = {
    "gated": GATED,
    "plain": {**GATED, "use_gated_mlp": False, "hidden_act": "gelu"},
    "no registers, biased keys": {**GATED, "num_register_tokens": 0, "key_bias": True},
    "wide rows of patches": {**GATED, "image_size": 128, "num_hidden_layers": 1},
}


def randomized(config: Any, seed: int = 0) -> dict[str, Any]:
    """Weights in which nothing is one or zero, so that a swapped or lost tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)
        for name, shape in state_shapes(config).items()
    }


class Given:
    """Tensors of a test as a checkpoint's source."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def tensor(self, name: str) -> Any:
        return self.tensors[name]

    def digest(self) -> str:
        return "given"


@cache
def subject(name: str) -> tuple[Dinov3Checkpoint, Any]:
    """A checkpoint of one configuration, and the stock model with the same weights."""
    config = config_from_settings(CONFIGS[name], place=name)
    state = randomized(config)
    checkpoint = Dinov3Checkpoint(name=name, config=config, source=Given(state), license_text="")
    stock = DINOv3ViTModel(config).eval().requires_grad_(False)
    mask = {"embeddings.mask_token": torch.ones(1, 1, config.hidden_size)}
    stock.load_state_dict(state | mask)
    return checkpoint, stock


def stock_features(stock: Any, images: Any) -> Any:
    """Patch features as a map, by the stock model."""
    with torch.inference_mode():
        tokens = stock(images).last_hidden_state
    side = images.shape[-1] // 16
    patches = tokens[:, -side * side :]
    return patches.transpose(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_parity(name: str, batch: int) -> None:
    checkpoint, stock = subject(name)
    inputs = checkpoint.inputs("backbone", {"batch": batch}, seed=batch)
    found = checkpoint.part("backbone")(inputs)["features"]
    wanted = stock_features(stock, inputs["images"])
    assert found.shape == (batch, 64, *[checkpoint.config.image_size // 16] * 2)
    assert (found - wanted).abs().max() <= LIMIT
    assert wanted.std() > 0.5


def test_rows_are_not_columns() -> None:
    checkpoint, _ = subject("gated")
    images = checkpoint.inputs("backbone", {"batch": 1})["images"]
    part = checkpoint.part("backbone")
    turned = part({"images": images.transpose(2, 3).contiguous()})["features"]
    assert (part({"images": images})["features"] - turned).abs().max() > 0.1


def test_prefix_tokens_are_not_turned() -> None:
    checkpoint, _ = subject("gated")
    cos, sin = rope_tables(checkpoint.config, 5)
    assert cos.shape == sin.shape == (5 + 16, 32)
    assert torch.equal(cos[:5], torch.ones(5, 32))
    assert torch.equal(sin[:5], torch.zeros(5, 32))
    # First patch of four by four: its centre is at 1/8 of the way, -0.75 on the scale from -1 to 1;
    # the first period is 1, so the angle is 2 pi times that.
    assert cos[5, 0].item() == pytest.approx(np.cos(2 * np.pi * -0.75), abs=1e-6)
    assert sin[5, 0].item() == pytest.approx(np.sin(2 * np.pi * -0.75), abs=1e-6)


def test_own_periods_replace_the_computed_ones() -> None:
    config = subject("gated")[0].config
    exact = 100.0 ** torch.arange(0, 1, 4 / 32)
    for table, own in zip(rope_tables(config, 5), rope_tables(config, 5, exact), strict=True):
        assert (table - own).abs().max() <= 1e-6
    rounded = rope_tables(config, 5, exact.to(torch.bfloat16))
    assert 1e-3 < (rounded[0] - rope_tables(config, 5)[0]).abs().max() < 5e-2


def test_exported_equals_eager(tmp_path: Path) -> None:
    checkpoint, _ = subject("gated")
    part = checkpoint.part("backbone")
    exported = exported_from_part(part, checkpoint.inputs("backbone", TRACED_SIZES))
    save_exported(exported, tmp_path / "backbone.pt2")
    reloaded = torch.export.load(tmp_path / "backbone.pt2")
    for batch in (1, 2, 3):
        inputs = checkpoint.inputs("backbone", {"batch": batch}, seed=7)
        wanted = part(inputs)["features"]
        for program in (exported, reloaded):
            assert torch.equal(run_exported(program, part.spec, inputs)["features"], wanted)
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in operators
    # Tables are constants: nothing is left of how they are made.
    assert not operators & {"aten.arange.default", "aten.cos.default", "aten.split.Tensor"}


@pytest.mark.parametrize("name", ["gated", "plain"])
def test_onnx_equals_eager(name: str, tmp_path: Path) -> None:
    checkpoint, _ = subject(name)
    part = checkpoint.part("backbone")
    exported = exported_from_part(part, checkpoint.inputs("backbone", TRACED_SIZES))
    model = onnx_from_exported(exported, part.spec)
    save_onnx(model, tmp_path / "backbone.onnx")
    session = backend_from_name("onnxruntime").session_from_artifact(
        tmp_path / "backbone.onnx", part.spec, threads=1
    )
    for batch in (1, 2, 3):
        inputs = checkpoint.inputs("backbone", {"batch": batch}, seed=3)
        out = session.run({"images": inputs["images"].numpy()})
        figure = compare_tensor("features", part(inputs)["features"].numpy(), out["features"])
        assert figure.max_abs <= 1e-4, figure
    with pytest.raises(ShapeError, match=r"backbone wants images of shape \(1, 3, 64, 64\)"):
        session.run({"images": np.zeros((1, 3, 72, 72), np.float32)})


@pytest.mark.parametrize("size", [504, 72, 8, 0, -16])
def test_sizes_between_patches_are_refused(size: int) -> None:
    with pytest.raises(SettingError, match=f"image size {size} is no multiple of 16 pixels"):
        checkpoint_from_name("dinov3-tiny", random_weights=True, image_size=size)


def test_the_nearest_sizes_are_named() -> None:
    with pytest.raises(SettingError, match=r"The nearest sizes are 496 and 512\."):
        checkpoint_from_name("dinov3-tiny", random_weights=True, image_size=504)


def test_another_size() -> None:
    checkpoint = checkpoint_from_name("dinov3-tiny", random_weights=True, image_size=96)
    assert checkpoint.image.size == 96
    assert checkpoint.spec("backbone").outputs[0].shape == ("batch", 64, 6, 6)
    inputs = checkpoint.inputs("backbone", {"batch": 1})
    assert checkpoint.part("backbone")(inputs)["features"].shape == (1, 64, 6, 6)


def test_the_published_architecture() -> None:
    checkpoint = checkpoint_from_name("facebook/sam-3d-body-dinov3", random_weights=True)
    # 32 layers: four projections and three of the MLP, their biases, norms and scales.
    layer = 4 * 1280**2 + 3 * 1280 + 3 * 1280 * 5120 + 2 * 5120 + 1280 + 6 * 1280
    assert checkpoint.weight_count() == 32 * layer + 1280 * (3 * 16**2 + 1) + (1 + 4 + 2) * 1280
    assert checkpoint.weight_count() == 840_591_360
    spec = checkpoint.spec("backbone")
    assert spec.inputs[0].shape == ("batch", 3, 512, 512)
    assert spec.outputs[0].shape == ("batch", 1280, 32, 32)
    assert checkpoint.image.mean == (0.485, 0.456, 0.406)
    assert checkpoint.image.std == (0.229, 0.224, 0.225)
    assert (checkpoint.family, checkpoint.part_names) == ("dinov3", ("backbone",))
    assert checkpoint.default_parts == ("backbone",)
    assert checkpoint.text is None
    assert checkpoint.settings()["num_hidden_layers"] == 32
    assert checkpoint.source.digest() == "random:seed=0"
    assert checkpoint.license_text.startswith("The weights in this bundle are random numbers")


def test_random_weights_keep_every_layer_visible() -> None:
    config = checkpoint_from_name("dinov3-tiny", random_weights=True).config
    source = RandomBackbone(config, seed=0)
    assert torch.equal(source.tensor("model.layer.0.layer_scale1.lambda1"), torch.ones(64))
    assert torch.equal(source.tensor("model.layer.0.norm1.weight"), torch.ones(64))
    weight = source.tensor("model.layer.0.mlp.up_proj.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(weight, RandomBackbone(config, 0).tensor("model.layer.0.mlp.up_proj.weight"))


def test_no_other_part() -> None:
    checkpoint, _ = subject("gated")
    for call in (checkpoint.part, checkpoint.spec):
        with pytest.raises(SettingError, match=r"no part 'vision'\. Its part: backbone\."):
            call("vision")


def test_the_part_is_ready_for_deployment() -> None:
    module = subject("gated")[0].part("backbone").module
    assert isinstance(module, Backbone)
    assert not module.training
    assert not [name for name, tensor in module.named_parameters() if tensor.requires_grad]
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    assert "prefix_tokens" in module.state_dict()
    assert not [name for name in module.state_dict() if "mask" in name]


def test_export_errors_name_the_part() -> None:
    checkpoint, _ = subject("gated")
    part = checkpoint.part("backbone")
    with pytest.raises(ExportError, match="backbone cannot be exported"):
        exported_from_part(part, {"images": torch.zeros(2, 3, 64)})


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_the_recipes(precision: str) -> None:
    recipe = Recipe.from_toml(RECIPES / f"sam3d-body-{precision}.toml")
    assert (recipe.model, recipe.precision) == (BODY, precision)
    assert recipe.image_size == BODY_PX
    assert precision in TARGETS[recipe.target].forms
    assert not recipe.quantization.patch_embedding
    assert recipe.calibration.samples == (16 if precision == "fp16" else 64)
