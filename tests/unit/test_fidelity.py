"""Fidelity figures, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samforge.core.errors import ShapeError
from samforge.measure.fidelity import (
    TensorFidelity,
    compare_outputs,
    compare_tensor,
    rows,
    worst,
)


def compare(reference: list[float], actual: list[float]) -> TensorFidelity:
    return compare_tensor("x", np.array(reference, np.float32), np.array(actual, np.float32))


def test_every_figure_by_hand() -> None:
    # Error (0, 0, 2): noise 4. Signal 1 + 4 + 4 = 9, found 1 + 4 + 16 = 21, product 1 + 4 + 8 = 13.
    figure = compare([1, -2, 2], [1, -2, 4])
    assert figure.tensor == "x"
    assert figure.max_abs == 2
    assert figure.scale == 2
    assert figure.gated == 1
    assert figure.cosine == pytest.approx(13 / math.sqrt(9 * 21))
    assert figure.sqnr_db == pytest.approx(10 * math.log10(9 / 4))
    # Mean of squares less the squared mean: 7 - 1 is left of 21 / 3, 3 - 1/9 of 9 / 3.
    assert figure.std_ratio == pytest.approx(math.sqrt((7 - 1) / (3 - 1 / 9)))


def test_large_values_are_gated_relatively() -> None:
    assert compare([100, 0], [100, 0.5]).gated == pytest.approx(0.005)
    assert compare([0.1, 0], [0.1, 0.5]).gated == 0.5
    # The reference decides what is large, not what is compared with it.
    assert compare([1, 0], [101, 0]).gated == 100


def test_equal_tensors() -> None:
    figure = compare([3, -4], [3, -4])
    assert (figure.max_abs, figure.gated, figure.cosine, figure.std_ratio) == (0, 0, 1, 1)
    assert figure.sqnr_db == math.inf


def test_ten_times_and_the_other_way_round() -> None:
    longer = compare([3, -4], [30, -40])
    assert longer.cosine == pytest.approx(1)
    assert longer.std_ratio == pytest.approx(10)
    assert longer.sqnr_db == pytest.approx(10 * math.log10(1 / 81))
    assert compare([3, -4], [-3, 4]).cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("reference", "actual", "cosine", "sqnr_db", "std_ratio"),
    [
        ([0, 0], [0, 0], 1, math.inf, 1),
        ([0, 0], [1, 0], 0, -math.inf, 0),
        ([1, 0], [0, 0], 0, 0, 0),
        ([2, 2], [2, 2], 1, math.inf, 1),
        ([2, 2], [1, 3], 8 / math.sqrt(80), 10 * math.log10(4), 0),
    ],
    ids=["zeros", "from zeros", "to zeros", "constants", "from a constant"],
)
def test_figures_without_a_denominator(
    reference: list[float],
    actual: list[float],
    cosine: float,
    sqnr_db: float,
    std_ratio: float,
) -> None:
    figure = compare(reference, actual)
    assert figure.cosine == pytest.approx(cosine)
    assert figure.sqnr_db == pytest.approx(sqnr_db)
    assert figure.std_ratio == pytest.approx(std_ratio)


@pytest.mark.parametrize(
    ("reference", "actual"),
    [
        ([1, 2], [1, math.nan]),
        ([1, 2], [1, math.inf]),
        ([1, math.nan], [1, 2]),
        ([1, math.nan], [1, math.nan]),
        ([1, math.inf], [1, 2]),
        ([1, math.inf], [1, math.inf]),
        ([1, -math.inf], [1, math.inf]),
    ],
)
def test_what_is_no_number_passes_no_gate(reference: list[float], actual: list[float]) -> None:
    figure = compare(reference, actual)
    assert figure.max_abs == math.inf
    assert figure.gated == math.inf
    assert figure.cosine == 0
    assert figure.sqnr_db == -math.inf
    assert not math.isnan(figure.scale)
    fine = compare([1], [1.5])
    assert worst((fine, figure)) is figure
    assert worst((figure, fine)) is figure


def test_masks_and_numbers_compare() -> None:
    flags = compare_tensor("m", np.array([True, False]), np.array([True, True]))
    assert (flags.max_abs, flags.scale) == (1, 1)
    ids = compare_tensor("i", np.array([2**40]), np.array([2**40 + 3]))
    assert ids.max_abs == 3
    nothing = compare_tensor("n", np.zeros((0, 4)), np.zeros((0, 4)))
    assert (nothing.max_abs, nothing.sqnr_db) == (0, math.inf)


def test_half_precision_is_compared_exactly() -> None:
    # Their product overflows in half precision itself.
    figure = compare_tensor("h", np.array([60000], np.float16), np.array([60032], np.float16))
    assert figure.max_abs == 32
    assert figure.cosine == pytest.approx(1)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(0.1, 10))
def test_figures_of_a_scaled_tensor(values: list[float], factor: float) -> None:
    reference = np.array(values)
    figure = compare_tensor("x", reference, reference * factor)
    assert figure.max_abs == pytest.approx(abs(factor - 1) * np.abs(reference).max())
    assert -1 - 1e-9 <= figure.cosine <= 1 + 1e-9
    assert figure.gated <= figure.max_abs


def test_shapes_and_names_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"masks has shape \(2, 1\), its reference \(2,\)"):
        compare_tensor("masks", np.zeros(2), np.zeros((2, 1)))
    with pytest.raises(ShapeError, match=r"\['a', 'c'\] are not the reference's \['a', 'b'\]"):
        compare_outputs({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros(1), "c": np.zeros(1)})


def test_outputs_are_compared_by_name() -> None:
    first, second = np.array([1.0]), np.array([5.0])
    figures = compare_outputs({"a": first, "b": second}, {"b": second, "a": first + 0.25})
    assert [(figure.tensor, figure.max_abs) for figure in figures] == [("a", 0.25), ("b", 0.0)]
    assert worst(figures).tensor == "a"


def test_rows_are_flat() -> None:
    figures = {"batch 1": (compare([1], [1]),), "batch 2": (compare([4], [2]),)}
    flat = rows(figures)
    assert [row["sizes"] for row in flat] == ["batch 1", "batch 2"]
    assert flat[1] == {
        "sizes": "batch 2",
        "tensor": "x",
        "max_abs": 2.0,
        "scale": 4.0,
        "cosine": 1.0,
        "sqnr_db": pytest.approx(10 * math.log10(4)),
        "std_ratio": 1.0,
        "gated": 0.5,
    }
