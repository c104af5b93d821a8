"""SAM 3D Body's backbone, small: the steps of its benchmark up to an engine, in 8 bits.

pytest -m rtx
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.rtx, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/sam3d_body.py"
LAYERS, LINEARS = 2, 7
"""Of dinov3-tiny, and in each layer: q, k, v, o, gate, up and down."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a backbone of the same structure, a thousandth of its size."""
    place = importlib.util.spec_from_file_location("sam3d_body_benchmark", SCRIPT)
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    monkeypatch.setattr(module, "MODEL", "dinov3-tiny")
    return module


@pytest.mark.parametrize("precision", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_every_linear_of_the_backbone_is_quantized_in_the_engine(
    precision: str, benchmark: Any, tmp_path: Path
) -> None:
    found = benchmark.engine(precision, tmp_path)
    assert found["findings"] == []
    assert set(found["products"]) == {precision}
    # q, k and v, and often gate and up, become one product each.
    assert 4 * LAYERS <= found["products"][precision] <= LINEARS * LAYERS
    assert found["fused_attentions"] == LAYERS
