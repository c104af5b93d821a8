"""Which groups are named as the worst, and which are kept, on graphs with a known culprit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from samforge.core.errors import FidelityError
from samforge.core.recipe import Quantization
from samforge.transform.quantize import (
    Calibrated,
    CalibrationWarning,
    GroupDamage,
    calibrate,
    choose_kept,
    layer_fidelity,
    quantized_from_calibrated,
    sensitivity,
)
from samforge.transform.quantize.sensitivity import decibel, noise_share

pytestmark = pytest.mark.usefixtures("one_thread")

Outputs = tuple[Tensor, ...]


class Block(nn.Module):
    """Two linears; ``spoiled`` gives one input channel of the first a hundred times the rest."""

    def __init__(self, width: int, *, spoiled: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, width), nn.Linear(width, 8)
        self.register_buffer("gain", torch.ones(8))
        if spoiled:
            with torch.no_grad():
                self.gain[0] = 200.0
                self.fc1.weight[:, 0] /= 200.0

    def forward(self, values: Tensor) -> Tensor:
        return values + self.fc2(torch.relu(self.fc1(values * self.gain)))


class Chain(nn.Module):
    """Three blocks of different work, the second one spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [Block(64, spoiled=False), Block(16, spoiled=True), Block(32, spoiled=False)]
        )

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.layers:
            values = layer(values)
        return values


def _samples() -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        yield {"values": torch.randn(16, 8, generator=generator).clamp(-2, 2)}


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Chain().eval().requires_grad_(False)
    program = torch.export.export(module, (torch.zeros(16, 8),), strict=False)
    with warnings.catch_warnings():  # two samples settle nothing
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(program, _samples, part="chain", settings=Quantization())


def test_the_spoiled_group_is_the_worst(calibrated: Calibrated) -> None:
    told: list[int] = []
    table = sensitivity(
        calibrated, _samples, precision="int8", progress=lambda stage, done: told.append(done)
    )
    assert table[0].group == "layers.1"
    assert told == [1, 2, 3, 4, 5, 6]
    shares = {row.group: row.share for row in table}
    assert shares == pytest.approx({"layers.0": 4 / 7, "layers.1": 1 / 7, "layers.2": 2 / 7})
    by_group = {row.group: row.sqnr_db for row in table}
    assert by_group["layers.1"] < min(by_group["layers.0"], by_group["layers.2"]) - 10
    for row in table:
        assert row.damage == pytest.approx(10 ** (-row.sqnr_db / 10))
        assert not row.kept


def test_fp8_does_not_mind_the_outlier(calibrated: Calibrated) -> None:
    found = {
        precision: {
            row.group: row.sqnr_db for row in sensitivity(calibrated, _samples, precision=precision)
        }
        for precision in ("int8", "fp8")
    }
    assert found["fp8"]["layers.1"] > found["int8"]["layers.1"] + 6
    assert found["fp8"]["layers.0"] < found["int8"]["layers.0"]


def test_a_score_can_be_handed_in(calibrated: Calibrated) -> None:
    seen: list[Mapping[str, Tensor]] = []

    def largest(sample: Mapping[str, Tensor], exact: Outputs, rounded: Outputs) -> float:
        seen.append(sample)
        return float((exact[0] - rounded[0]).abs().max())

    table = sensitivity(calibrated, _samples, precision="int8", score=largest)
    assert len(seen) == 6
    assert table[0].group == "layers.1"
    assert table[0].damage != pytest.approx(10 ** (-table[0].sqnr_db / 10))


def test_layer_fidelity_falls_where_the_damage_is(calibrated: Calibrated) -> None:
    rows = layer_fidelity(calibrated, _samples, precision="int8")
    by_path = {row.path: row.sqnr_db for row in rows}
    assert [row.path for row in rows][:2] == ["layers.0.fc1", "layers.0.fc2"]
    assert by_path["layers.1.fc1"] < by_path["layers.0.fc2"] - 6
    kept = layer_fidelity(calibrated, _samples, precision="int8", kept=("layers.0", "layers.1"))
    assert {row.path: row.sqnr_db for row in kept}["layers.1.fc2"] == math.inf
    assert {row.path: row.sqnr_db for row in kept}["layers.2.fc1"] < math.inf


def _rows(*shares: float) -> tuple[GroupDamage, ...]:
    return tuple(
        GroupDamage(group=f"g{i}", share=share, sqnr_db=20.0 + i, damage=1.0 / (i + 1))
        for i, share in enumerate(shares)
    )


@pytest.mark.parametrize(("needed", "calls"), [(0, 1), (1, 2), (3, 5), (5, 7)])
def test_as_few_as_the_gate_allows_are_kept(needed: int, calls: int) -> None:
    asked: list[int] = []

    def gate(kept: tuple[str, ...]) -> bool:
        asked.append(len(kept))
        assert kept == tuple(f"g{i}" for i in range(len(kept)))
        return len(kept) >= needed

    table = choose_kept(_rows(*[0.01] * 10), gate, max_kept=0.25)
    assert [row.group for row in table if row.kept] == [f"g{i}" for i in range(needed)]
    assert len(asked) == len(set(asked))
    assert len(asked) == calls
    if needed:
        assert table[0].reason == "number 1 by damage per multiplication"


def test_more_than_max_kept_is_a_failure_with_the_table() -> None:
    asked: list[int] = []

    def gate(kept: tuple[str, ...]) -> bool:
        asked.append(len(kept))
        return len(kept) >= 4

    with pytest.raises(FidelityError) as error:
        choose_kept(_rows(0.1, 0.1, 0.1, 0.1), gate, max_kept=0.25)
    assert max(asked) == 2
    first, second, *_ = str(error.value).splitlines()
    assert first == (
        "The gate does not hold with the 2 worst of 4 groups in half (20.0% of the "
        "multiplications; max_kept is 25.0%). Raise quantization.max_kept, calibrate on more "
        "samples, or build fp8 or fp16. The worst groups:"
    )
    assert second == "  g0: 10.00% of the multiplications, 20.0 dB alone, damage 1"


def test_nothing_may_be_kept() -> None:
    table = choose_kept(_rows(0.1), lambda kept: not kept, max_kept=0.0)
    assert not table[0].kept
    with pytest.raises(FidelityError, match="the 0 worst of 1 groups"):
        choose_kept(_rows(0.1), lambda kept: False, max_kept=0.0)


def test_what_is_kept_is_in_the_report(calibrated: Calibrated) -> None:
    table = choose_kept(
        sensitivity(calibrated, _samples, precision="int8"),
        lambda kept: "layers.1" in kept,
        max_kept=0.25,
    )
    found = quantized_from_calibrated(calibrated, precision="int8", table=table)
    assert found.report.kept_share == pytest.approx(1 / 7)
    reasons = {one.path: one.reason for one in found.report.left}
    assert reasons["layers.1.fc1"] == (
        "kept in half for fidelity: number 1 by damage per multiplication"
    )
    assert "layers.1.fc1" not in found.scales
    assert found.program.state_dict["layers.1.fc1.weight"].dtype == torch.float32
    assert "layers.0.fc1.weight_int8" in found.program.state_dict


def test_noise_and_decibel() -> None:
    exact = (torch.tensor([3.0, 4.0]), torch.tensor([True, False]))
    rounded = (torch.tensor([3.0, 4.5]), torch.tensor([True, False]))
    assert noise_share(exact, rounded) == pytest.approx(0.01)
    assert decibel(0.01) == pytest.approx(20.0)
    assert decibel(0.0) == math.inf
    assert noise_share(exact, exact) == 0.0
