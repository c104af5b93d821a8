"""Each fusion on graphs written by hand: where it fires, where it must not, what it computes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from samforge.core.targets import TARGET_NAMES as TARGETS
from samforge.transform.fuse import FUSIONS, fuse
from samforge.transform.fuse.cut import NEVER, minimum_cut

aten = torch.ops.aten
EXACT = {fusion.name for fusion in FUSIONS if fusion.exact}


@pytest.fixture(autouse=True)
def _fixed(one_thread: None) -> None:
    torch.manual_seed(0)


def exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    """Trace with a dynamic first axis, minimum 1."""
    batch = Dim("batch", min=1)
    shapes: tuple[Any, ...] = tuple({0: batch} for _ in inputs)
    if isinstance(module, Function):
        shapes = (shapes,)  # its inputs are one argument with a star
    with torch.no_grad():
        return export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)


def counts(program: ExportedProgram) -> Counter[Any]:
    return Counter(node.target for node in program.graph.nodes if node.op == "call_function")


def fused(module: nn.Module, *inputs: Tensor, target: str = "inductor") -> tuple[Any, ...]:
    """Fuse; check that outputs are equal at batch 1, 2 and 3, and that a second time is idle.

    Returns:
        Operators before, operators after, fired by name, left by name, the fused program.
    """
    program = exported(module, *inputs)
    result = fuse(program, target=target)
    limit = 0.0 if result.exact else 1e-5
    for batch in (1, 2, 3):
        given = [torch.randn(batch, *tensor.shape[1:]) for tensor in inputs]
        wanted = _results(program, given)
        found = _results(result.program, given)
        for one, other in zip(wanted, found, strict=True):
            assert one.shape == other.shape
            assert (one - other).abs().max() <= limit * max(1.0, float(one.abs().max()))
    assert program.graph_signature.user_outputs == result.program.graph_signature.user_outputs
    assert [r.fired for r in fuse(result.program, target=target).results] == [0] * len(
        result.results
    )
    fired = {r.name: r.fired for r in result.results if r.fired}
    left = {r.name: r.left for r in result.results if r.left}
    return counts(program), counts(result.program), fired, left, result.program


def _results(program: ExportedProgram, inputs: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        results = program.module()(*inputs)
    return [results] if isinstance(results, Tensor) else list(results)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


# --- no-ops ---------------------------------------------------------------------------------------


def test_noops_go() -> None:
    def nothing(_: nn.Module, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, training=False).to(torch.float32).clone()
        x = x[:, 0:].expand(x.shape[0], -1, -1).permute(0, 1, 2) * 1 + 0
        x = F.pad(x, (0, 0, 0, 0)).transpose(1, 2).transpose(1, 2)
        return torch.relu(x.reshape(-1, 12).reshape(-1, 3, 4).detach())

    before, after, fired, left, _ = fused(Function(nothing), torch.randn(2, 3, 4))
    assert set(fired) == {"no-ops"}
    assert left == {}
    assert len(before) >= 10
    assert after == {aten.relu.default: 1}


def test_a_copy_in_front_of_a_reshape_goes() -> None:
    def heads(_: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(x.transpose(1, 2).contiguous().view(x.shape[0], 12))

    before, after, _, _, _ = fused(Function(heads), torch.randn(2, 3, 4))
    assert before[aten.contiguous.default] == before[aten.view.default] == 1
    assert not after[aten.contiguous.default]
    assert after[aten.reshape.default] == 1  # a view would fail


def test_what_changes_something_stays() -> None:
    module = Function(lambda _, x: x.to(torch.float16).to(torch.float32) + F.pad(x, (1, -1)))
    before, after, fired, _, _ = fused(module, torch.randn(2, 4))
    assert fired == {"no-ops": before[aten._assert_tensor_metadata.default]}
    assert after[aten.to.dtype] == 2
    assert after[aten.pad.default] == 1


def test_a_program_never_returns_its_input() -> None:
    module = Function(lambda _, x: (x.clone(), x * 1, x + 1))
    _, after, fired, _, _ = fused(module, torch.randn(2, 4))
    assert fired == {}
    assert sum(after.values()) == 3


def test_nothing_is_rewritten_where_tensors_change_in_place() -> None:
    def changing(module: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        first = module.q(y)
        y.add_(1)
        return first + module.k(y)

    _, after, fired, left, _ = fused(
        Function(changing, q=nn.Linear(4, 4), k=nn.Linear(4, 4)), torch.randn(2, 4)
    )
    assert fired == {}
    assert after[aten.linear.default] == 2
    assert set(left.values()) == {
        ("whole program: tensors are changed in place (aten.add_.Tensor)",)
    }


# --- static reshapes ------------------------------------------------------------------------------


def asked(program: ExportedProgram) -> list[list[Any]]:
    """The sizes that reshapes ask for; what is computed as its name."""
    places = {aten.view.default: 1, aten.reshape.default: 1, aten.unflatten.int: 2}
    return [
        [getattr(size, "name", size) for size in node.args[places[node.target]]]
        for node in program.graph.nodes
        if node.target in places
    ]


def test_reshapes_ask_for_numbers() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        batch = x.shape[0]
        heads = (x + 1).view(batch * 2, 3, -1).relu()
        return heads.reshape(batch, 2, -1, 4).tanh().transpose(1, 2).reshape(batch, 24)

    _, after, fired, left, program = fused(Function(forward), torch.randn(2, 6, 4))
    assert fired == {"static-reshapes": 3}
    assert left == {}
    assert asked(program) == [[-1, 3, 4], [-1, 2, 3, 4], [-1, 24]]
    assert not after[aten.sym_size.int]
    assert not after[operator.mul]


def test_of_two_dynamic_sizes_one_is_inferred() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            pairs = (x[:, None] + y[None]).view(x.shape[0] * y.shape[0], 4).relu()
            return pairs.unflatten(0, (x.shape[0], y.shape[0])), pairs

    dims = ({0: Dim("a", min=1)}, {0: Dim("b", min=1)})
    program = export(Pairs(), (torch.randn(2, 4), torch.randn(3, 4)), dynamic_shapes=dims)
    result = fuse(program, target="torch").program
    assert asked(result) == [[-1, 4], ["sym_size_int_2", -1]]
    for a, b in ((1, 1), (1, 3), (5, 1), (4, 4)):
        x, y = torch.randn(a, 4), torch.randn(b, 4)
        for found, wanted in zip(result.module()(x, y), Pairs()(x, y), strict=True):
            assert torch.equal(found, wanted)


# --- parallel linears -----------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention with the usual names."""

    def __init__(self, k_bias: bool = True) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 8, bias=k_bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (2, 4)).transpose(1, 2)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return attended.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Attention inside a module, so that the weights have a path."""

    def __init__(self, inputs: Callable[[Tensor, Tensor], tuple[Tensor, ...]], **options: Any):
        super().__init__()
        self.attn = Attention(**options)
        self.inputs = inputs

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attn(*self.inputs(x, y))


SHARED = {
    "self": (lambda x, y: (x + y, x + y, x + y), {"qkv_proj": [8, 8, 8]}),
    "detr": (lambda x, y: (x + y, x + y, x), {"qk_proj": [8, 8]}),
    "cross": (lambda x, y: (x, y, y), {"kv_proj": [8, 8]}),
    "none": (lambda x, y: (x, y, x + y), {}),
}


@pytest.mark.parametrize("kind", SHARED)
def test_linears_of_one_input_become_one(kind: str) -> None:
    inputs, merged = SHARED[kind]
    module = Layer(inputs)
    before, after, fired, left, program = fused(module, torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    sizes = [size for group in merged.values() for size in group]
    saved = len(sizes) - len(merged)
    assert fired.get("parallel-linears", 0) == len(merged)
    assert left == {}
    assert before[aten.linear.default] == 3
    assert after[aten.linear.default] == 3 - saved
    assert after[aten.split_with_sizes.default] == len(merged)
    names = {f"attn.{name}.{kind}" for name in merged for kind in ("weight", "bias")}
    assert names <= set(program.state_dict)
    assert len(program.state_dict) == 6 - 2 * saved
    for node in program.graph.nodes:
        if node.target is aten.split_with_sizes.default:
            assert node.args[1] == next(iter(merged.values()))
            paths = [path for path, _ in node.meta["nn_module_stack"].values()]
            assert paths == ["", "attn", f"attn.{next(iter(merged))}"]


def test_a_missing_bias_becomes_zeros() -> None:
    module = Layer(lambda x, _: (x, x, x), k_bias=False)
    _, _, fired, _, program = fused(module, torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    assert fired["parallel-linears"] == 1
    bias = program.state_dict["attn.qkv_proj.bias"]
    assert torch.equal(bias[:8], module.attn.q_proj.bias)
    assert torch.equal(bias[8:16], torch.zeros(8))
    assert torch.equal(bias[16:], module.attn.v_proj.bias)
    assert isinstance(bias, nn.Parameter)
    weight = program.state_dict["attn.qkv_proj.weight"]
    assert torch.equal(weight[8:16], module.attn.k_proj.weight)


def test_no_bias_at_all_stays_none() -> None:
    parts = {"gate_proj": nn.Linear(4, 6, bias=False), "up_proj": nn.Linear(4, 6, bias=False)}
    module = Function(lambda m, x: F.silu(m.gate_proj(x)) * m.up_proj(x), **parts)
    _, after, fired, _, program = fused(module, torch.randn(2, 4))
    assert fired == {"parallel-linears": 1}
    assert after[aten.linear.default] == 1
    assert list(program.state_dict) == ["gate_up_proj.weight"]
    assert program.state_dict["gate_up_proj.weight"].shape == (12, 4)


def test_shared_and_computed_weights_are_left() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.q(x) + module.k(x) + module.q(x * 2)

    parts = {"q": nn.Linear(4, 4), "k": nn.Linear(4, 4)}
    _, after, fired, left, _ = fused(Function(forward, **parts), torch.randn(2, 4))
    assert "parallel-linears" not in fired
    assert after[aten.linear.default] == 3
    assert left["parallel-linears"] == (
        "the part itself (q, k): a weight is used elsewhere too, and would be stored twice",
    )


# --- scales ---------------------------------------------------------------------------------------


def test_layer_scale_goes_into_the_linear() -> None:
    scale = torch.tensor([0.5, 2.0, 1e-5])
    module = Function(lambda m, x: x + m.down(x) * m.scale, down=nn.Linear(3, 3), scale=scale)
    weight, bias = module.down.weight.detach().clone(), module.down.bias.detach().clone()
    before, after, fired, _, program = fused(module, torch.randn(2, 3))
    assert fired == {"scales": 1}
    assert before[aten.mul.Tensor] == 1
    assert not after[aten.mul.Tensor]
    assert torch.allclose(program.state_dict["down.weight"], weight * scale[:, None])
    assert torch.allclose(program.state_dict["down.bias"], bias * scale)
    assert set(program.state_dict) == {"down.weight", "down.bias"}
    assert torch.equal(module.down.weight, weight)  # the module keeps its own


def test_a_scale_is_folded_where_the_weight_is_freed_at_once() -> None:
    """The weight is gone when the bias is made as long as it has rows."""
    scale = torch.tensor([0.5, 2.0, 3.0])
    module = Function(lambda m, x: m.down(x) * m.scale, down=nn.Linear(4, 3), scale=scale)
    x = torch.randn(2, 4)
    wanted = module(x).detach()
    result = fuse(exported(module, x), target="inductor", consume=True)
    (found,) = _results(result.program, [x])
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_shift_behind_a_linear_without_bias_becomes_its_bias() -> None:
    shift = torch.tensor([1.0, 2.0, 3.0])
    module = Function(
        lambda m, x: m.project(x) / 4 + m.shift, project=nn.Linear(3, 3, bias=False), shift=shift
    )
    _, after, fired, _, program = fused(module, torch.randn(2, 3))
    assert fired == {"scales": 2}
    assert sum(after.values()) == 1
    assert torch.equal(program.state_dict["project.bias"], shift)


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 2)],
    ids=["bare", "biased", "transposed"],
)
def test_batch_norm_goes_into_the_convolution(convolution: nn.Module) -> None:
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    before, after, fired, left, _ = fused(nn.Sequential(convolution, norm), torch.randn(2, 3, 5, 5))
    assert fired == {"scales": 1}
    assert left == {}
    assert before[aten.batch_norm.default] == 1
    assert sum(after.values()) == 1


def test_scales_that_cannot_move_are_left() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        read_twice = module.a(x)
        shared = module.b(x) * 2 + module.b(x + 1)
        return read_twice * 3 + read_twice + shared

    parts = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
    _, after, fired, left, _ = fused(Function(forward, **parts), torch.randn(2, 3))
    assert "scales" not in fired
    assert after[aten.mul.Tensor] == 2
    assert left["scales"] == (
        "a: its result is read elsewhere too, without the scale",
        "b: its weight is used elsewhere too, without the scale",
    )


def test_a_scale_a_token_is_no_scale_a_channel() -> None:
    module = Function(
        lambda m, x: m.project(x) * m.scale, project=nn.Linear(3, 3), scale=torch.rand(5, 1)
    )
    _, after, fired, left, _ = fused(module, torch.randn(2, 5, 3))
    assert fired == left == {}
    assert after[aten.mul.Tensor] == 1


# --- constants, duplicates, rotary tables ---------------------------------------------------------


def test_constant_subgraphs_become_buffers() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        table = torch.arange(4, dtype=torch.float32) / 4
        return x + (table * module.frequency).cos() + F.linear(x, module.kernel.flatten(1))

    parts = {"frequency": torch.rand(4), "kernel": torch.rand(4, 2, 2)}
    before, after, fired, _, program = fused(Function(forward, **parts), torch.randn(2, 4))
    assert fired["constants"] == 2
    assert before[aten.cos.default] == before[aten.flatten.using_ints] == 1
    assert after == {aten.add.Tensor: 2, aten.linear.default: 1}
    assert program.state_dict == {}
    assert len(program.constants) == 2
    table = next(t for t in program.constants.values() if t.ndim == 1)
    assert torch.equal(table, (torch.arange(4) / 4 * parts["frequency"]).cos())


def test_large_constants_stay_computed() -> None:
    module = Function(lambda m, x: x + m.row.expand(2048, 1024), row=torch.rand(1024))
    _, after, fired, left, _ = fused(module, torch.randn(2, 2048, 1024)[:, :1])
    assert fired == {}
    assert after[aten.expand.default] == 1
    assert left == {
        "constants": ("expand (expand): its 8.0 MiB would be stored in place of 0.0 MiB",)
    }


class _Tiled(nn.Module):
    """A position embedding of 64 KiB tiled to 8 MiB, a little less than 2 % of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.rand(16, 1024))
        # 420 MiB by its shape, 4 KiB in memory.
        self.weight = nn.Parameter(torch.zeros(1, 1024).expand(107_520, 1024))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.row.tile(128, 1) + F.linear(x[:, :1], self.weight)[..., :1]


@pytest.mark.parametrize("target", TARGETS)
def test_a_tiled_embedding_is_stored_where_the_target_wants_it(target: str) -> None:
    program = exported(_Tiled(), torch.zeros(2, 2048, 1024))
    result = fuse(program, target=target)
    found = {one.name: (one.fired, one.left) for one in result.results}
    tables = [tuple(table.shape) for table in result.program.constants.values()]
    if target.startswith("tensorrt"):
        reason = "tile (tile): its 8.0 MiB would be stored in place of 0.1 MiB"
        assert "large-constants" not in found
        assert found["constants"] == (0, (reason,))
        assert (tables, counts(result.program)[aten.tile.default]) == ([], 1)
        assert tuple(result.program.state_dict["row"].shape) == (16, 1024)
    else:
        assert (found["large-constants"], found["constants"]) == ((1, ()), (0, ()))
        assert (tables, counts(result.program)[aten.tile.default]) == ([(2048, 1024)], 0)
        assert torch.equal(
            next(iter(result.program.constants.values())), program.state_dict["row"].tile(128, 1)
        )


def test_random_numbers_are_no_constants() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(4) * torch.rand(4)

    result = fuse(exported(Noisy(), torch.randn(2, 4)), target="torch")
    assert [r.fired for r in result.results] == [0] * len(result.results)
    assert counts(result.program)[aten.rand.default] == 2


def test_equal_calls_become_one() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return (x + module.p).sin() * (x + module.p).cos() + x.sum(1, keepdim=True) * (x + 1)

    before, after, fired, _, _ = fused(Function(forward, p=torch.rand(4)), torch.randn(2, 4))
    assert fired == {"duplicates": 1}
    assert before[aten.add.Tensor] - after[aten.add.Tensor] == 1


def test_numbers_of_another_type_are_not_equal() -> None:
    module = Function(lambda _, x: (x.to(torch.int64) * 2 + x, x.to(torch.int64) * 2.0 + x))
    before, after, fired, _, _ = fused(module, torch.randn(2, 4))
    assert fired["duplicates"] == 1
    assert before[aten.to.dtype] - after[aten.to.dtype] == 1
    assert after[aten.mul.Tensor] == 2


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def test_rotary_tables_become_buffers() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * module.frequency
        return rotate(x, angles.cos(), angles.sin())

    module = Function(forward, frequency=torch.rand(8))
    before, after, fired, _, program = fused(module, torch.randn(2, 5, 8))
    assert fired["rotary-tables"] == 2
    assert "constants" not in fired
    assert before[aten.cos.default] == 1
    assert not after[aten.cos.default]
    assert not after[aten.arange.default]
    tables = list(program.constants.values())
    assert [table.shape for table in tables] == [(5, 8), (5, 8)]
    assert [table.dtype for table in tables] == [torch.float32] * 2
    angles = torch.arange(5)[:, None] * module.frequency
    assert any(torch.equal(table, angles.cos()) for table in tables)


def test_rotary_tables_of_the_input_are_left() -> None:
    module = Function(lambda _, x: rotate(x, x.sum(1, True).cos(), x.sum(1, True).sin()))
    _, _, fired, left, _ = fused(module, torch.randn(2, 5, 8))
    assert "rotary-tables" not in fired
    assert left["rotary-tables"] == (
        "cos (cos): it depends on the program's inputs",
        "sin (sin): it depends on the program's inputs",
    )


# --- attention ------------------------------------------------------------------------------------

HEADS = (torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4))


@pytest.mark.parametrize(
    "scores",
    [
        lambda m, q, k: q @ k.transpose(2, 3),
        lambda m, q, k: q @ k.transpose(-1, -2) * 0.5,
        lambda m, q, k: q @ k.permute(0, 1, 3, 2) / 2 + m.mask,
        lambda m, q, k: m.mask + q @ k.mT,
    ],
    ids=["plain", "scaled", "masked", "mask-first"],
)
def test_attention_written_out_becomes_one_operator(scores: Callable[..., Tensor]) -> None:
    def forward(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(scores(module, q, k).softmax(-1), 0.1, False) @ v

    before, after, fired, left, _ = fused(Function(forward, mask=torch.randn(3, 5)), *HEADS)
    assert fired["attention"] == 1
    assert left == {}
    assert before[aten.softmax.int] == 1
    assert after == {aten.scaled_dot_product_attention.default: 1}


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda _, q, k, v: _both((q @ k.mT).softmax(-1), v), "its weights are read elsewhere too"),
        (
            lambda _, q, k, v: (q @ k.mT).softmax(-2) @ v,
            "its softmax does not run over the last axis",
        ),
        (
            lambda _, q, k, v: (q @ k.mT).clamp(max=1).softmax(-1) @ v,
            "its scores come from clamp.default",
        ),
        (
            lambda _, q, k, v: (q @ k.reshape(-1, 2, 4, 5)).softmax(-1) @ v,
            "its keys are not transposed (batch, heads, tokens, head size)",
        ),
        (
            lambda _, q, k, v: (q.half() @ k.mT.half()).softmax(-1).float() @ v,
            None,
        ),
    ],
    ids=["read", "axis", "clamped", "keys", "half"],
)
def test_what_is_not_attention_is_left(forward: Callable[..., Any], reason: str | None) -> None:
    _, after, fired, left, _ = fused(Function(forward), *HEADS)
    assert "attention" not in fired
    assert after[aten.softmax.int] == 1
    assert left.get("attention", ()) == (() if reason is None else (f"matmul_1: {reason}",))


def _both(weights: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return weights @ value, weights


# --- attention scale ------------------------------------------------------------------------------


def test_the_scale_of_attention_goes_into_the_queries_weights() -> None:
    module = Layer(lambda x, y: (x, y, x + y))
    program = exported(module, torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    result = fuse(program, target="tensorrt")
    assert {r.name: r.fired for r in result.results if r.fired} == {"attention-scale": 1}
    state = result.program.state_dict
    assert torch.equal(state["attn.q_proj.weight"], module.attn.q_proj.weight * 0.5)
    assert torch.equal(state["attn.q_proj.bias"], module.attn.q_proj.bias * 0.5)
    assert torch.equal(state["attn.k_proj.weight"], module.attn.k_proj.weight)
    (attention,) = result.program.graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    )
    assert attention.kwargs["scale"] == 1.0
    fused(module, torch.randn(2, 3, 8), torch.randn(2, 3, 8), target="tensorrt")


def test_the_scale_passes_rotary_encoding() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        q = rotate(module.q_proj(x), module.cos, module.sin)
        k = rotate(module.k_proj(x), module.cos, module.sin)
        v = module.v_proj(x)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=0.3)

    parts: dict[str, Any] = {name: nn.Linear(8, 8) for name in ("q_proj", "k_proj", "v_proj")}
    module = Function(forward, **parts, cos=torch.rand(3, 8), sin=torch.rand(3, 8))
    _, _, fired, left, _ = fused(module, torch.randn(2, 3, 8), target="onnxruntime")
    assert fired["attention-scale"] == 1
    assert fired["parallel-linears"] == 1
    assert left == {}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (lambda m, x: m.q_proj(x).tanh(), "its queries come through tanh.default"),
        (
            lambda m, x: m.q_proj(x) * x,
            "its queries are multiplied by what is computed in the graph",
        ),
        (lambda m, x: m.k_proj(x), "its queries are read elsewhere too, without the scale"),
    ],
    ids=["bent", "multiplied", "shared"],
)
def test_scales_of_attention_that_stay(query: Callable[..., Tensor], reason: str) -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        q, k, v = query(module, x), module.k_proj(x), module.v_proj(x)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=0.5)

    parts = {name: nn.Linear(8, 8) for name in ("q_proj", "k_proj", "v_proj")}
    _, _, fired, left, _ = fused(
        Function(forward, **parts), torch.randn(2, 3, 8), target="openvino"
    )
    assert "attention-scale" not in fired
    assert left["attention-scale"] == (f"scaled_dot_product_attention: {reason}",)


# --- window order ---------------------------------------------------------------------------------


def into(x: Tensor, size: int) -> Tensor:
    batch, height, width, channels = x.shape
    grid = x.view(batch, height // size, size, width // size, size, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, channels)


def back(x: Tensor, size: int, height: int, width: int) -> Tensor:
    grid = x.view(-1, height // size, width // size, size, size, x.shape[-1])
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, x.shape[-1])


class Block(nn.Module):
    """A layer whose mixing of tokens depends on their order, in windows or everywhere."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        y = self.norm1(x)
        if self.window:
            y = into(y, self.window)
        y = self.inner(y)
        y = self.outer(y.flatten(1, 2).cumsum(1).tanh().unflatten(1, y.shape[1:3]))
        if self.window:
            y = back(y, self.window, height, width)
        x = x + y
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@pytest.mark.parametrize(
    ("windows", "before", "after"),
    [
        ((2,), 2, 2),
        ((2, 2, 2), 6, 2),
        ((2, 2, 0), 4, 2),
        ((2, 2, 0, 2, 2), 8, 4),
        ((0, 2, 2, 0), 4, 2),
        ((2, 2, 4, 4), 8, 4),
        ((2, 4, 2, 4), 8, 8),
        ((0, 0), 0, 0),
    ],
    ids=str,
)
def test_windows_stay_between_global_layers(
    windows: tuple[int, ...], before: int, after: int
) -> None:
    module = nn.Sequential(*(Block(window) for window in windows))
    had, has, fired, left, _ = fused(module, torch.randn(2, 4, 8, 8))
    assert had[aten.permute.default] == before
    assert has[aten.permute.default] == after
    assert fired.get("window-order", 0) == before - after
    assert left == {}


def test_other_widths_and_channel_constants_do_not_matter() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        x = x * module.scale + module.first(x)
        return module.second(x) - module.shift

    parts = {"first": Block(2), "second": Block(2)}
    parts |= {"scale": torch.rand(1, 1, 1, 8), "shift": torch.rand(8)}
    had, has, fired, _, _ = fused(Function(forward, **parts), torch.randn(2, 4, 4, 8))
    assert had[aten.permute.default] - has[aten.permute.default] == fired["window-order"] == 2


def test_a_constant_a_place_keeps_the_windows_apart() -> None:
    module = Function(
        lambda m, x: m.second(m.first(x) + m.position),
        first=Block(2),
        second=Block(2),
        position=torch.rand(4, 4, 8),
    )
    had, has, fired, _, _ = fused(module, torch.randn(2, 4, 4, 8))
    assert had[aten.permute.default] == has[aten.permute.default] == 4
    assert "window-order" not in fired


def test_padded_windows_are_left_with_the_reason() -> None:
    class Padded(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = into(F.pad(self.norm1(x), (0, 0, 0, 1, 0, 1)), 2)
            y = back(self.outer(y.cumsum(1)), 2, 4, 4)[:, :3, :3]
            return x + y

    module = nn.Sequential(Padded(2), Padded(2))
    had, has, fired, left, _ = fused(module, torch.randn(2, 3, 3, 8))
    assert had[aten.permute.default] == has[aten.permute.default] == 4
    assert "window-order" not in fired
    assert left["window-order"][0] == (
        "0 and 1 more: windows are padded (3 to 4 and 3 to 4 tokens), and padding has to be zero "
        "again in each layer"
    )


# --- minimum cut ----------------------------------------------------------------------------------


def test_minimum_cut_worked_by_hand() -> None:
    edges = {("s", "a"): 3, ("s", "b"): 2, ("a", "b"): 5, ("a", "t"): 2, ("b", "t"): 3}
    assert minimum_cut(edges, "s", "t") == (5, {"s"})
    edges |= {("s", "a"): NEVER, ("s", "b"): NEVER}
    assert minimum_cut(edges, "s", "t") == (5, {"s", "a", "b"})
    assert minimum_cut({("s", "a"): 1, ("t", "a"): 1}, "s", "t") == (0, {"s", "a"})


def test_every_fusion_is_tested_here() -> None:
    assert [fusion.name for fusion in FUSIONS] == [
        "no-ops",
        "static-reshapes",
        "rotary-tables",
        "large-constants",
        "constants",
        "duplicates",
        "attention",
        "window-order",
        "scales",
        "attention-scale",
        "parallel-linears",
    ]
    moving = {"no-ops", "static-reshapes", "window-order"}
    assert moving | {"rotary-tables", "large-constants", "constants", "duplicates"} == EXACT
