"""What the lowering does for SAM 3's detector: bias over a grid, ReLU behind linears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samforge.core.session import PartSpec, TensorSpec
from samforge.transform.export import exported_from_file
from samforge.transform.fuse import fuse
from samforge.transform.lower import Lowering, lower
from samforge.transform.lower.biased_attention import (
    DYNAMIC_SPLITS,
    MOST_SPLITS,
    BiasedAttention,
    attend_grid_reference,
    splits_for,
)
from samforge.transform.lower.few_keys import FewKeysAttention
from samforge.transform.lower.float_linear import FloatLinear
from samforge.transform.lower.grid_bias import (
    edges_from_bias,
    embed_edges_reference,
    grid_bias_from_mask,
)
from samforge.transform.lower.linear import TypedLinear
from samforge.transform.lower.relu import ReluLinear

F32, BF16 = torch.float32, torch.bfloat16
LINEARS = ("aten.linear", "samforge.float_linear")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative difference in the 2-norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def bias_of(down: torch.Tensor, across: torch.Tensor, plain: int) -> torch.Tensor:
    """As the model writes it."""
    return F.pad((down[..., None] + across[..., None, :]).flatten(3), (0, 0, plain, 0))


@pytest.mark.parametrize(("height", "width", "plain"), [(8, 8, 1), (9, 13, 2), (5, 16, 0)])
def test_attention_over_a_grid_is_attention_with_the_whole_bias(
    height: int, width: int, plain: int
) -> None:
    q = drawn(2, 3, 6 + plain, 16)
    k, v = (drawn(2, 3, height * width, 16, seed=seed) for seed in (1, 2))
    down, across = drawn(2, 3, 6, height, seed=3), drawn(2, 3, 6, width, seed=4)
    mask = bias_of(down, across, plain)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.2)
    edges = edges_from_bias(down, across, plain, F32)
    assert edges.shape[-1] % 8 == 0
    found = attend_grid_reference(q, k, v, edges, height, width, 0.2)
    assert error(found.transpose(1, 2), wanted) < 1e-6
    half = BiasedAttention(BF16, 0.2, plain)(q, k, v, down, across)
    assert half.dtype == BF16
    assert error(half, wanted) < 0.02


def test_embedded_edges_are_the_two_linears() -> None:
    rows, columns = drawn(2, 5, 6, 2), drawn(2, 5, 9, 2, seed=1)
    down, across = (
        [drawn(24, 2, seed=s), drawn(24, seed=s + 1), drawn(4, 24, seed=s + 2), drawn(4, seed=s)]
        for s in (2, 5)
    )
    parts = [
        F.linear(F.relu(F.linear(cells, *one[:2])), *one[2:]).permute(0, 3, 1, 2)
        for cells, one in ((rows, down), (columns, across))
    ]
    found = embed_edges_reference(rows, columns, *down, *across, 1)
    assert error(found, edges_from_bias(*parts, 1, F32)) < 1e-6
    assert not found[:, :, 0].any()
    assert not found[..., 6:8].any()
    linears = [(TypedLinear(*one[:2], BF16), TypedLinear(*one[2:], BF16)) for one in (down, across)]
    embeddings = tuple((ReluLinear(first), second) for first, second in linears)
    q, k, v = drawn(2, 4, 6, 8), drawn(2, 4, 54, 8, seed=8), drawn(2, 4, 54, 8, seed=9)
    apart = BiasedAttention(BF16, None, 1)(q, k, v, *parts)
    assert error(BiasedAttention(BF16, None, 1, embeddings)(q, k, v, rows, columns), apart) < 0.02  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("programs", "tiles", "splits"), [(16, 81, 16), (256, 81, 1), (1, 81, MOST_SPLITS), (2, 4, 4)]
)
def test_keys_are_split_where_programs_are_few(programs: int, tiles: int, splits: int) -> None:
    assert splits_for(programs, tiles) == splits


def test_a_dynamic_batch_has_a_fixed_number_of_splits() -> None:
    symbolic: Any = object()
    assert splits_for(symbolic, 81) == DYNAMIC_SPLITS
    assert splits_for(symbolic, 4) == 4


class Biased(torch.nn.Module):
    """Attention with one of several masks."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, q: torch.Tensor, k: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
        if self.kind == "grid":
            mask = F.pad((a[..., None] + b[..., None, :]).flatten(3), (0, 0, 1, 0))
        elif self.kind == "turned":
            mask = F.pad((b.unsqueeze(-2) + a.unsqueeze(-1)).reshape(2, 3, 4, 48), (0, 0, 1, 0))
        elif self.kind == "ones":
            mask = F.pad((a[..., None] + b[..., None, :]).flatten(3), (0, 0, 1, 0), value=1.0)
        elif self.kind == "product":
            mask = F.pad((a[..., None] * b[..., None, :]).flatten(3), (0, 0, 1, 0))
        elif self.kind == "both rows":
            mask = F.pad(
                (a[..., None] + a[..., None]).expand(2, 3, 4, 6, 8).flatten(3), (0, 0, 1, 0)
            )
        else:
            mask = F.pad((a[..., None] + b[..., None, :]).flatten(3), (0, 0, 0, 1))
        return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("grid", True),
        ("turned", True),
        ("ones", False),
        ("product", False),
        ("both rows", False),
        ("padded behind", False),
    ],
)
def test_only_a_sum_of_rows_and_columns_is_taken_for_one(kind: str, found: bool) -> None:
    inputs = (drawn(2, 3, 5, 8), drawn(2, 3, 48, 8), drawn(2, 3, 4, 6), drawn(2, 3, 4, 8))
    graph = torch.export.export(Biased(kind), inputs, strict=False).module().graph
    (node,) = [n for n in graph.nodes if "scaled_dot_product" in str(n.target)]
    read = grid_bias_from_mask(node.kwargs.get("attn_mask") or node.args[3])
    assert (read is not None) is found
    if read is not None:
        shapes = [tuple(one.meta["val"].shape) for one in read[:2]]
        assert (shapes, read[2]) == ([(2, 3, 4, 6), (2, 3, 4, 8)], 1)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_linear_with_relu_rounds_once(dtype: torch.dtype) -> None:
    x, weight, bias = drawn(2, 7, 32), drawn(48, 32, seed=1), drawn(48, seed=2)
    linear = TypedLinear(weight, bias, dtype)
    found = ReluLinear(linear)(x)
    assert found.shape == (2, 7, 48)
    assert found.dtype == dtype
    assert error(found, F.relu(linear(x))) < (1e-6 if dtype == F32 else 0.005)


class Heads(nn.Module):
    """Keys of three layers from the same tokens, and heads as boxes are read off them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.k_proj = nn.ModuleList(nn.Linear(16, 8 + index) for index in range(3))
        self.box_head = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 4)])
        self.presence_head = nn.Linear(600, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.register_buffer("projection", torch.randn(16, 5))

    def forward(self, x: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        first, second = self.box_head
        parts = [project(x) for project in self.k_proj]
        parts += [second(F.relu(first(x))), torch.matmul(x, self.projection)]
        parts += [self.presence_head(wide)]
        parts += [F.relu(self.norm(x.transpose(1, 2)[..., None]))[..., 0].transpose(1, 2)]
        return torch.cat(parts, -1)


def test_linears_that_read_one_tensor_are_one_and_heads_stay_float32() -> None:
    x, wide = drawn(2, 7, 16), drawn(2, 7, 600, seed=1)
    sizes = {"x": 16, "wide": 600}
    inputs = tuple(
        TensorSpec(name=n, dtype="float32", shape=("batch", 7, s)) for n, s in sizes.items()
    )
    output = TensorSpec(name="all", dtype="float32", shape=("batch", 7, 8 + 9 + 10 + 4 + 5 + 17))
    spec = PartSpec(name="heads", inputs=inputs, outputs=(output,))
    module = Heads().eval().requires_grad_(False)
    axes = {0: torch.export.Dim.AUTO}
    program = torch.export.export(module, (x, wide), dynamic_shapes=(axes, axes))
    exact = lower(program, spec, settings=Lowering(precision="fp32")).program.module()
    assert error(exact(x, wide)[0], module(x, wide)) < 1e-6
    traced = lower(program, spec, settings=Lowering()).program
    names = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    # The three projections at once, the product with a constant, and three of heads.
    assert sum(names.count(f"{name}.default") for name in LINEARS) == 5
    (found,), wanted = traced.module()(x, wide), module(x, wide)
    assert error(found, wanted) < 0.01
    assert (found - wanted)[..., 27:31].abs().max() < 1e-5
    assert (found - wanted)[..., 36].abs().max() < 1e-5


def test_attention_to_few_keys_is_attention_with_their_bias() -> None:
    q, k, v = drawn(3, 2, 9, 16), drawn(3, 2, 5, 16, seed=1), drawn(3, 2, 5, 16, seed=2)
    bias = torch.where(drawn(3, 1, 1, 5, seed=3) > 0.5, -1e4, 0.0)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    assert error(FewKeysAttention(F32, 0.3)(q, k, v, bias), wanted) < 1e-6
    shared = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:1], scale=0.25)
    assert error(FewKeysAttention(F32, None)(q, k, v, bias[:1]), shared) < 1e-6
    assert error(FewKeysAttention(BF16, 0.3)(q, k, v, bias), wanted) < 0.02


def test_a_float_linear_takes_half_and_keeps_float32() -> None:
    x, weight, bias = drawn(2, 7, 32).to(BF16), drawn(48, 32, seed=1), drawn(48, seed=2)
    layer = FloatLinear(weight, bias)
    assert error(layer(x), F.linear(x.double(), weight.double(), bias.double())) < 1e-6
    layer.relu = True
    assert torch.equal(layer(x), F.linear(x.float(), weight, bias).relu())
    assert torch.equal(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))


@pytest.fixture(scope="module")
def detector(
    exported_file: Callable[[str], Path],
    part: Callable[..., Any],
    example: Callable[..., Any],
) -> Callable[..., Any]:
    """Runs the small detector before and after lowering; gives its operators too."""

    def run(settings: Lowering) -> Any:
        # Of other seeds a presence logit is nearly zero, and every relative error large.
        inputs = example("detector", {"batch": 2, "prompts": 2}, seed=5)
        program = fuse(exported_from_file(exported_file("detector")), target="inductor").program
        with torch.no_grad():
            wanted = program.module()(*inputs.values())
        lowered = lower(program, part("detector").spec, settings=settings).program
        with torch.no_grad():
            found = lowered.module(check_guards=False)(*inputs.values())
        worst = max(error(*pair) for pair in zip(found, wanted, strict=True))
        return worst, [str(node.target) for node in lowered.graph.nodes]

    return run


def test_the_detector_is_the_same_through_its_own_kernels(detector: Callable[..., Any]) -> None:
    worst, operators = detector(Lowering())
    assert worst < 0.05
    on_gpu, _ = detector(Lowering(attention="fastest", sums="joined"))
    assert on_gpu < worst * 1.5
    # At least the MLPs of two layers of the encoder and two of the decoder: ReLUs that stay follow
    # GroupNorm or a float32 linear, or are part of the reference of the bias without Triton.
    assert 4 <= operators.count("aten._addmm_activation.default") < 10


@pytest.mark.slow
def test_the_bias_over_a_grid_is_as_good_as_the_explicit_one(detector: Callable[..., Any]) -> None:
    worst, _ = detector(Lowering())
    explicit, _ = detector(Lowering(position_bias="explicit"))
    assert worst < explicit * 1.5


@pytest.mark.slow
def test_in_float32_the_detector_keeps_its_operators(detector: Callable[..., Any]) -> None:
    worst, operators = detector(Lowering(precision="fp32"))
    assert worst < 1e-4
    assert "aten._addmm_activation.default" not in operators
