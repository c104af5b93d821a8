"""The same fusions on transformers' DINOv3, the backbone of SAM 3D Body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from samforge.transform.export import exported_from_file, save_exported
from samforge.transform.fuse import fuse

aten = torch.ops.aten
LAYERS = 2
COUNTED = {
    "rotary-tables",
    "constants",
    "duplicates",
    "attention",
    "window-order",
    "scales",
    "attention-scale",
    "parallel-linears",
}
VARIANTS = [(False, "eager"), (True, "sdpa")]


class Backbone(nn.Module):
    """transformers' model with one result."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).last_hidden_state


@pytest.fixture(scope="module")
def program(one_thread: None) -> Callable[..., ExportedProgram]:
    """Exports a backbone of the real structure, a thousandth of its size."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    @lru_cache
    def make(gated: bool, attention: str) -> ExportedProgram:
        config = DINOv3ViTConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            image_size=64,
            num_register_tokens=4,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
            attn_implementation=attention,
        )
        torch.manual_seed(0)
        model = DINOv3ViTModel(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.normal_(std=scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
        batch = ({0: Dim("batch", min=1)},)
        images = (torch.randn(2, 3, 64, 64),)
        return torch.export.export(
            Backbone(model).eval(), images, dynamic_shapes=batch, strict=False
        )

    return make


def operators(exported: ExportedProgram) -> Counter[Any]:
    return Counter(node.target for node in exported.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize(("gated", "attention"), VARIANTS)
def test_dinov3(
    program: Callable[..., ExportedProgram], tmp_path: Path, gated: bool, attention: str
) -> None:
    exported = program(gated, attention)
    result = fuse(exported, target="onnxruntime")
    assert {r.name: r.fired for r in result.results if r.name in COUNTED} == {
        "rotary-tables": 2,
        "constants": 0,
        "duplicates": 0,
        "attention": LAYERS if attention == "eager" else 0,
        "window-order": 0,
        "scales": 2 * LAYERS,
        "attention-scale": LAYERS,
        "parallel-linears": (2 if gated else 1) * LAYERS,
    }
    assert [r.left for r in result.results if r.left] == []
    found = operators(result.program)
    # qkv, o and two of the MLP; rotary encoding of q and k is all that still multiplies,
    # besides the gate.
    assert found[aten.linear.default] == 4 * LAYERS
    assert found[aten.mul.Tensor] == (4 + gated) * LAYERS
    assert found[aten.scaled_dot_product_attention.default] == LAYERS
    # Only class and register tokens, repeated for each image, still ask for a size.
    assert found[aten.sym_size.int] == 1
    for gone in (aten.cos.default, aten.arange.start, aten.softmax.int, aten.dropout.default):
        assert not found[gone]
    save_exported(result.program, tmp_path / "backbone.pt2")
    reloaded = exported_from_file(tmp_path / "backbone.pt2")
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 64)
        wanted, fused = exported.module()(images), reloaded.module()(images)
        assert float((wanted - fused).abs().max() / wanted.abs().max()) <= 1e-5
    again = fuse(reloaded, target="onnxruntime")
    assert [r.fired for r in again.results] == [0] * len(again.results)


def test_rotary_tables_are_those_of_the_model(program: Callable[..., ExportedProgram]) -> None:
    exported = program(True, "sdpa")
    fused = fuse(exported, target="inductor").program
    tables = {name: tensor for name, tensor in fused.constants.items() if "rotary" in name}
    assert sorted(name.rpartition(".")[0] for name in tables) == ["model.rope_embeddings"] * 2
    # transformers, modeling_dinov3_vit: angles 2 pi * coordinate / base ** (i / (head / 4)).
    centres = (torch.arange(0.5, 4) / 4) * 2 - 1
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).flatten(0, 1)
    frequencies = 1 / 100 ** torch.arange(0, 1, 4 / 16)
    angles = (2 * torch.pi * grid[:, :, None] * frequencies).flatten(1).tile(2)
    for expected in (angles.cos(), angles.sin()):
        assert any((table - expected).abs().max() <= 1e-5 for table in tables.values())
    assert all(table.dtype == torch.float32 for table in tables.values())


def test_the_key_bias_that_is_missing_is_zero(program: Callable[..., ExportedProgram]) -> None:
    state = fuse(program(False, "eager"), target="torch").program.state_dict
    bias = state["model.model.layer.0.attention.qkv_proj.bias"]
    assert bias.shape == (192,)
    assert not bias[64:128].any()
    assert bias[:64].any()
    assert not [name for name in state if "lambda1" in name or "mask_token" in name]
