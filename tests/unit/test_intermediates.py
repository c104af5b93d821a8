"""What layers give in two programs of one part, side by side, and the noise behind each."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from samforge.core.errors import SettingError, ShapeError
from samforge.core.recipe import Quantization
from samforge.measure.layers import layer_sqnr, worst_layers
from samforge.transform.export import exported_from_file, save_exported
from samforge.transform.intermediates import layer_names, paired_layers
from samforge.transform.quantize import quantize

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """A LayerNorm, two linears of which the first runs twice, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 16)
        self.fc2 = nn.Linear(16, 16)
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.fc2(nn.functional.gelu(self.fc1(self.fc1(self.norm(tokens)))))
        return self.conv(hidden[:, None]), hidden + tokens


def tokens(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"tokens": torch.randn(2, 8, 16, generator=generator)}


@pytest.fixture(scope="module")
def block() -> Block:
    module = Block().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def exported(module: nn.Module) -> ExportedProgram:
    shapes = ({0: Dim("batch", min=1)},)
    return torch.export.export(module, (tokens(0)["tokens"],), dynamic_shapes=shapes, strict=False)


@pytest.fixture(scope="module")
def program(block: Block) -> ExportedProgram:
    return exported(block)


@pytest.fixture(scope="module")
def quantized(program: ExportedProgram) -> ExportedProgram:
    samples = [tokens(seed) for seed in (0, 1, 2, 3, 0)]  # the last one widens no range
    return quantize(
        program, lambda: samples, part="block", settings=Quantization(), precision="int8"
    ).program


def test_layers_are_named_after_their_weights(
    program: ExportedProgram, quantized: ExportedProgram
) -> None:
    names = ("fc1", "fc1 (2)", "fc2", "conv")
    assert layer_names(program) == names
    assert layer_names(quantized) == names


def test_layers_give_what_the_module_gives(block: Block, program: ExportedProgram) -> None:
    inputs = tokens(7)
    once = block.fc1(block.norm(inputs["tokens"]))
    twice = block.fc1(once)
    last = block.fc2(nn.functional.gelu(twice))
    expected = {"fc1": once, "fc1 (2)": twice, "fc2": last, "conv": block.conv(last[:, None])}
    pairs = list(paired_layers(program, program, inputs))
    assert [name for name, *_ in pairs] == list(expected)
    for name, wanted, found in pairs:
        assert np.array_equal(wanted, expected[name].detach().numpy())
        assert np.array_equal(wanted, found)
    assert set(layer_sqnr(pairs).values()) == {math.inf}


def test_noise_grows_through_a_quantized_program(
    program: ExportedProgram, quantized: ExportedProgram, tmp_path: Path
) -> None:
    figures = layer_sqnr(
        pair for seed in range(3) for pair in paired_layers(program, quantized, tokens(seed))
    )
    assert list(figures) == ["fc1", "fc1 (2)", "fc2", "conv"]
    assert all(20 < value < 60 for value in figures.values())
    assert figures["fc1"] > figures["conv"]
    # By hand: of one sample, from the tensors themselves.
    (name, wanted, found), *_ = paired_layers(program, quantized, tokens(0))
    noise = ((found - wanted) ** 2).sum() / (wanted**2).sum()
    assert layer_sqnr([(name, wanted, found)])[name] == pytest.approx(-10 * np.log10(noise))
    # The same from the files, and a second time: a run leaves the program as it was.
    save_exported(quantized, tmp_path / "q.pt2")
    back = exported_from_file(tmp_path / "q.pt2")
    for _ in range(2):
        again = list(paired_layers(program, back, tokens(0)))
        assert all(
            np.array_equal(one[2], other[2])
            for one, other in zip(again, paired_layers(program, quantized, tokens(0)), strict=True)
        )


class Other(Block):
    """The same layers in another order, and one with another name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        second = self.fc2(tokens)
        return self.head(second), self.fc1(tokens)


class Straight(Other):
    """The two layers the other way round."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc1(tokens), self.fc2(tokens)


def test_layers_in_another_order_find_each_other() -> None:
    one, other = Straight().eval(), Other().eval()
    other.load_state_dict(one.state_dict())
    figures = layer_sqnr(paired_layers(exported(one), exported(other), tokens(1)))
    assert figures == {"fc1": math.inf, "fc2": math.inf}


def test_programs_of_two_parts_are_refused(program: ExportedProgram) -> None:
    stranger = exported(nn.Sequential(nn.Linear(16, 4)))
    with pytest.raises(
        SettingError,
        match=r"no layer in common: one has fc1, fc1 \(2\), fc2 and 1 more, the other 0 and 0 more",
    ):
        next(paired_layers(program, stranger, tokens(0)))


def test_one_pair_is_in_memory_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []

    def pairs() -> Iterator[tuple[str, Any, Any]]:
        for i in range(20):
            wanted = np.full(10, i + 1.0)
            alive.append(weakref.ref(wanted))
            assert sum(ref() is not None for ref in alive) <= 2
            yield f"layer{i}", wanted, wanted * 1.1
            del wanted

    assert set(layer_sqnr(pairs())) == {f"layer{i}" for i in range(20)}


def test_ratios_by_hand() -> None:
    ones, zeros = np.ones(100, np.float32), np.zeros(100, np.float32)
    figures = layer_sqnr(
        [
            ("tenth", ones, ones * np.float32(1.1)),
            ("exact", ones, ones),
            ("from nothing", zeros, ones),
            ("not finite", ones, ones * np.float32(np.nan)),
            # Two samples: noise 1 and 3 over a signal of 200.
            ("two", ones, ones + np.float32(0.1)),
            ("two", ones, ones + np.float32(0.03**0.5)),
        ]
    )
    assert figures["tenth"] == pytest.approx(20.0, abs=1e-5)
    assert figures["two"] == pytest.approx(10 * np.log10(200 / 4), abs=1e-5)
    assert figures["exact"] == math.inf
    assert figures["from nothing"] == figures["not finite"] == -math.inf
    large = np.ones((3 << 20) + 5, np.float32)
    assert layer_sqnr([("large", large, large * 0)])["large"] == 0.0
    assert worst_layers({"a": 30.0, "b": 10.04, "c": 20.0}, 2) == "b (10.0 dB), c (20.0 dB)"


def test_bad_pairs_are_refused() -> None:
    with pytest.raises(SettingError, match="at least one pair of tensors, got none"):
        layer_sqnr([])
    with pytest.raises(ShapeError, match=r"fc1 gives \(3,\), its reference \(2,\)"):
        layer_sqnr([("fc1", np.zeros(2), np.zeros(3))])
