"""Which weights are evened out against those that read them, and which stay as they are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from samforge.core.recipe import Quantization
from samforge.transform.quantize import (
    Calibrated,
    CalibrationWarning,
    calibrate,
    layer_fidelity,
    program_from_calibrated,
    quantized_from_calibrated,
    smoothed_program,
)
from samforge.transform.quantize.pairs import Smoothable, smoothable_pairs
from samforge.transform.quantize.placement import placement
from samforge.transform.quantize.simulate import Simulation

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEADS, TOKENS = 16, 2, 6
LOUD = 128.0


def _tokens(count: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randn(count, tokens, WIDTH, generator=torch.Generator().manual_seed(3))


def _pixels(count: int = 2) -> Tensor:
    return torch.randn(count, WIDTH, 6, 6, generator=torch.Generator().manual_seed(4))


def _heads(values: Tensor) -> Tensor:
    return values.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _together(values: Tensor) -> Tensor:
    return values.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Separate projections."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v", "out"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [(self.v, self.out, 1, slice(0, WIDTH // HEADS))]

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (_heads(one(tokens)) for one in (self.q, self.k, self.v))
        return self.out(_together(self.mix(query, key, value)))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class WrittenOut(Attention):
    """Attention of two matrix products."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-1, -2) * 0.3).softmax(-1) @ value


class Merged(nn.Module):
    """One projection for queries, keys and values, as fusing makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [(self.qkv, self.out, 1, slice(2 * WIDTH + WIDTH // HEADS, 3 * WIDTH))]

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (_heads(one) for one in self.qkv(tokens).split([WIDTH] * 3, -1))
        mask = torch.zeros(TOKENS, TOKENS).triu(1) - 1.0
        return self.out(_together(F.scaled_dot_product_attention(query, key, value, mask)))


class Stacked(Merged):
    """The same, turned and unbound as timm does it."""

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.qkv(tokens).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(_together(F.scaled_dot_product_attention(query, key, value)))


class Windows(Attention):
    """Values are moved to windows and back."""

    def forward(self, tokens: Tensor) -> Tensor:
        def cut(values: Tensor) -> Tensor:
            return values.view(-1, 2, TOKENS // 2, WIDTH).flatten(0, 1)

        query, key, value = (_heads(cut(one(tokens))) for one in (self.q, self.k, self.v))
        mixed = _together(F.scaled_dot_product_attention(query, key, value))
        return self.out(mixed.view(-1, 2, TOKENS // 2, WIDTH).reshape(-1, TOKENS, WIDTH))


class TwoOutputs(Attention):
    """What attention gives is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, 4)

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [(self.v, self.out, 1, slice(0, 8)), (nn.Linear(1, 1), self.other, 1, slice(0, 8))]

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        query, key, value = (_heads(one(tokens)) for one in (self.q, self.k, self.v))
        mixed = _together(self.mix(query, key, value))
        return self.out(mixed), self.other(mixed)


class Mlp(nn.Module):
    """Two linears and what is between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.between = between

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [(self.fc1, self.fc2, 1, slice(3, 5))]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(tokens)))


class Gated(nn.Module):
    """A SwiGLU MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [(self.up, self.down, 1, slice(1, 3))]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(tokens)) * self.up(tokens))


class Convolutions(nn.Module):
    """Convolutions of both kinds, with nothing, ReLU and pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(WIDTH, 8, 2, 2)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.last = nn.ConvTranspose2d(8, 4, 2, 2)

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [
            (self.up, self.first, 1, slice(2, 3)),
            (self.first, self.second, 1, slice(0, 2)),
            (self.second, self.last, 0, slice(7, 8)),
        ]

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.relu(self.first(self.up(pixels)))
        return self.last(F.max_pool2d(self.second(F.interpolate(hidden, scale_factor=2)), 2))


class Normed(nn.Module):
    """A GroupNorm before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, WIDTH), nn.Conv2d(WIDTH, 8, 3)

    def loud(self) -> list[tuple[nn.Module, nn.Module, int, slice]]:
        return [(self.norm, self.conv, 1, slice(5, 6))]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(pixels)))


def _plant(module: nn.Module) -> nn.Module:
    """Make channels stand out, without changing what is computed."""
    with torch.no_grad():
        for writer, reader, column_axis, rows in module.loud():  # type: ignore[operator]
            if writer.weight.numel() > 1:
                axis = int(isinstance(writer, nn.ConvTranspose2d))
                writer.weight.transpose(0, axis)[rows] *= LOUD
                writer.bias[rows] *= LOUD
            columns = rows
            if isinstance(module, Merged):  # its output projection counts values alone
                columns = slice(rows.start - 2 * WIDTH, rows.stop - 2 * WIDTH)
            reader.weight.transpose(0, column_axis)[columns] /= LOUD
    return module


def _exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    own = module.eval().requires_grad_(False)
    return torch.export.export(own, inputs, dynamic_shapes=shapes, strict=False)


def _made(make: Callable[[], nn.Module], *, planted: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
    return _plant(module) if planted else module


def _calibrated(module: nn.Module, *inputs: Tensor, **settings: Any) -> Calibrated:
    return _ranges(_exported(module, *inputs), *inputs, **settings)


def _ranges(program: ExportedProgram, *inputs: Tensor, **settings: Any) -> Calibrated:
    names = [str(name) for name in program.graph_signature.user_inputs]
    sample = dict(zip(names, inputs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(
            program, lambda: iter([sample] * 2), part="part", settings=Quantization(**settings)
        )


def _run(program: ExportedProgram, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = program.module()(*inputs)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _db(exact: Tensor, other: Tensor) -> float:
    noise = float((exact.double() - other.double()).square().sum())
    return 10 * math.log10(float(exact.double().square().sum()) / noise) if noise else math.inf


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, set[str]]]] = {
    "attention": (Attention, _tokens, {"v": {"out"}}),
    "written out": (WrittenOut, _tokens, {"v": {"out"}}),
    "merged": (Merged, _tokens, {"qkv": {"out"}}),
    "stacked": (Stacked, _tokens, {"qkv": {"out"}}),
    "windows": (Windows, _tokens, {"v": {"out"}}),
    "two readers": (TwoOutputs, _tokens, {"v": {"out", "other"}}),
    "relu": (Mlp, _tokens, {"fc1": {"fc2"}}),
    "nothing between": (lambda: Mlp(torch.clone), _tokens, {"fc1": {"fc2"}}),
    "leaky relu": (lambda: Mlp(F.leaky_relu), _tokens, {"fc1": {"fc2"}}),
    "gated": (Gated, _tokens, {"up": {"down"}}),
    "convolutions": (
        Convolutions,
        _pixels,
        {"up": {"first"}, "first": {"second"}, "second": {"last"}},
    ),
    "group norm": (Normed, _pixels, {"norm": {"conv"}}),
}


def _pairs(module: nn.Module, *inputs: Tensor) -> tuple[tuple[Smoothable, ...], dict[str, str]]:
    """What can be evened out, and the reasons of what cannot."""
    graph = _exported(module, *inputs).module()
    sites = placement(graph, "part", Quantization()).sites
    found, left = smoothable_pairs(graph, sites, "part", Quantization())
    return found, {one.writer: one.reason for one in left}


@pytest.mark.parametrize("kind", PAIRS)
def test_every_kind_of_pair_is_evened_out_and_no_bit_changes(kind: str) -> None:
    make, inputs, expected = PAIRS[kind]
    calibrated = _calibrated(_made(make, planted=True), inputs())
    found = {
        one.pair.writer: {reader.path for reader in one.pair.readers.values()}
        for one in calibrated.smoothings
    }
    assert found == expected
    for one in calibrated.smoothings:
        assert float(one.factors.max()) >= 32
        assert torch.equal(one.factors.log2(), one.factors.log2().round())
        assert bool((one.factors[~one.pair.free] == 1).all())
    more = torch.cat([inputs(), inputs() * 0.5 + 0.1])
    for one, other in zip(
        _run(calibrated.program, more), _run(smoothed_program(calibrated), more), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", PAIRS)
def test_planted_outliers_cost_nothing(kind: str) -> None:
    """Below 12 dB at the worst output without evening out, above 34 with it."""
    make, inputs, _ = PAIRS[kind]
    module = _made(make, planted=True)
    worst = {}
    for smooth in (False, True):
        calibrated = _calibrated(module, inputs(), smooth=smooth)
        sample = {str(calibrated.program.graph_signature.user_inputs[0]): inputs()}
        exact, rounded = Simulation(calibrated, precision="int8").outputs(
            sample, {site.node for site in calibrated.sites}
        )
        worst[smooth] = min(map(_db, exact, rounded))
        layers = layer_fidelity(calibrated, lambda sample=sample: iter([sample]), precision="int8")
        assert (min(layer.sqnr_db for layer in layers) > 34) is smooth
    assert worst[False] < 12
    assert worst[True] > 34
    # The simulation leaves rows alone; the program divides them, and their scales with them.
    quantized = _run(program_from_calibrated(calibrated), inputs())
    for one, other in zip(rounded, quantized, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_only_the_values_of_a_merged_projection_are_free() -> None:
    for make in (Merged, Stacked):
        ((pair,), left) = _pairs(_made(make), _tokens())
        assert pair.free.tolist() == [False] * 2 * WIDTH + [True] * WIDTH
        (reader,) = pair.readers.values()
        assert reader.channels.tolist() == list(range(2 * WIDTH, 3 * WIDTH))
        assert (pair.operator, left) == ("linear", {})


def test_a_part_of_the_channels_can_be_free() -> None:
    class Half(Mlp):
        def forward(self, tokens: Tensor) -> Tensor:
            hidden = self.fc1(tokens)
            return self.fc2(F.relu(hidden)) + hidden[..., 8:24].sigmoid()

    ((pair,), _) = _pairs(_made(Half), _tokens())
    assert pair.free.tolist() == [True] * 8 + [False] * 16 + [True] * 8


class Residual(Mlp):
    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(tokens))
        return self.fc2(hidden) + (hidden + 1.0)[..., :WIDTH]


class Output(Mlp):
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hidden = F.relu(self.fc1(tokens))
        return self.fc2(hidden), hidden


class SharedReader(Mlp):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(tokens))) + self.fc2(tokens.repeat(1, 1, 2))


class SharedWriter(Mlp):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(tokens))) + self.fc1(tokens)[..., :WIDTH]


class ComputedReader(Mlp):
    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(tokens))
        return self.fc2(hidden) + F.linear(hidden, self.fc2.weight.detach() * 2)


class KeyAndValue(Attention):
    def forward(self, tokens: Tensor) -> Tensor:
        value = _heads(self.v(tokens))
        return self.out(_together(self.mix(_heads(self.q(tokens)), value, value)))


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, groups=4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.second(F.relu(self.first(pixels)))


class TwoWriters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.one(tokens) * self.two(tokens))


LEFT: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, str]]] = {
    "residual": (Residual, _tokens, {"fc1": "its output is also read by add"}),
    "output": (Output, _tokens, {"fc1": "its output is also read by the part's caller"}),
    "shared reader": (SharedReader, _tokens, {"fc1": "fc2.weight is used more than once"}),
    "shared writer": (SharedWriter, _tokens, {"fc1": "fc1.weight is used more than once"}),
    "key and value": (
        KeyAndValue,
        _tokens,
        {"v": "its output is also read by scaled_dot_product_attention"},
    ),
    "groups": (Groups, _pixels, {"first": "its output is also read by a conv2d in groups"}),
}
"""Pairs that are none, and what is said of them."""


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_no_pair_is_left_with_its_reason(kind: str) -> None:
    make, inputs, expected = LEFT[kind]
    found, left = _pairs(_made(make), inputs())
    assert (found, left) == ((), expected)


def _square(values: Tensor) -> Tensor:
    return values * values


def _reciprocal(values: Tensor) -> Tensor:
    return 1.0 / (values.abs() + 1.0)


@pytest.mark.parametrize("between", [F.gelu, F.silu, torch.sigmoid, _square, _reciprocal])
def test_what_does_not_commute_ends_a_pair(between: Callable[[Tensor], Tensor]) -> None:
    """GELU of twice as much is not twice GELU."""
    assert _pairs(_made(lambda: Mlp(between)), _tokens()) == ((), {})


def test_a_reader_with_a_computed_weight_keeps_its_channels() -> None:
    found, left = _pairs(_made(ComputedReader), _tokens())
    assert found == ()
    assert list(left) == ["fc1"]


def test_one_reader_follows_one_writer() -> None:
    ((pair,), left) = _pairs(_made(TwoWriters), _tokens())
    assert pair.writer == "one"
    assert left == {"two": "last.weight is evened out with one"}


def test_pairs_can_be_left_out() -> None:
    for pattern in ("fc1", "fc2", "part/fc2"):
        calibrated = _calibrated(_made(Mlp), _tokens(), smooth_skip=(pattern,))
        assert calibrated.smoothings == ()
        (left,) = calibrated.not_smoothed
        assert (left.writer, left.reason) == ("fc1", f"left alone by '{pattern}'")


@pytest.mark.parametrize("observer", ["histogram", "percentile"])
def test_observers_see_convolutions_evened_out(observer: str) -> None:
    """Channels of images are counted along another axis than those of tokens."""
    module = _made(Convolutions, planted=True)
    calibrated = _calibrated(module, _pixels(), observer=observer)
    again = _ranges(smoothed_program(calibrated), _pixels(), observer=observer, smooth=False)
    scales = {site.path: calibrated.input_scale[site.input] for site in calibrated.sites}
    other = {site.path: again.input_scale[site.input] for site in again.sites}
    assert scales == pytest.approx(other, rel=0.05)


def test_scales_follow_the_rows_that_were_divided() -> None:
    module = _made(Mlp, planted=True)
    calibrated = _calibrated(module, _tokens())
    (smoothing,) = calibrated.smoothings
    scales = quantized_from_calibrated(calibrated, precision="int8").scales["fc1"].weight
    rows = module.fc1.weight.abs().amax(1)  # type: ignore[union-attr, operator]
    assert torch.allclose(scales, rows / 127 / smoothing.factors)
    state = program_from_calibrated(calibrated).state_dict
    assert torch.allclose(state["fc1.weight_scale"], scales)
    # Powers of two: the same int8 numbers as without.
    plain = program_from_calibrated(_calibrated(module, _tokens(), smooth=False)).state_dict
    assert torch.equal(state["fc1.weight_int8"], plain["fc1.weight_int8"])
