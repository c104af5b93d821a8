"""The graph that an engine is built from: number formats, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from samforge.core.errors import ExportError, SettingError
from samforge.transform.onnx.attention_forms import FORMS
from samforge.transform.onnx.planned import computation_from_onnx
from samforge.transform.onnx.tensorrt_flavour import tensorrt_flavour

QUANTIZED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[1,4,4,4] x) => (float[1,4,8,8] y)
<float s = {0.5}, int8 z = {0},
int8[4,4,1,1] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
int8[4,4,1,1] uq = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(wq, s, z)
    c = Conv(xd, wd)
    cq = QuantizeLinear(c, s, z)
    cd = DequantizeLinear(cq, s, z)
    ud = DequantizeLinear(uq, s, z)
    y = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (cd, ud)
}"""


def _graph(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_transposed_convolutions_stay_half_beside_quantized_ones(precision: str) -> None:
    planned = computation_from_onnx(tensorrt_flavour(_graph(QUANTIZED), precision))
    assert dict(planned.convolutions) == {precision: 1, "fp16": 1}


@pytest.mark.parametrize("name", ["text", "detector_boxes"])
def test_our_parts_have_half_products_and_fused_attention(
    name: str, onnx_file: Callable[[str], Path]
) -> None:
    path = onnx_file(name)
    plain = computation_from_onnx(tensorrt_flavour(ir.load(path), "fp32"))
    half = computation_from_onnx(tensorrt_flavour(ir.load(path), "fp16"))
    safest = computation_from_onnx(tensorrt_flavour(ir.load(path), "fp16", form=FORMS[-1]))
    assert (plain.attentions, set(plain.gemms)) == (0, {"fp32"})
    # The detector's heads are too small to be fused at this size.
    assert (half.attentions > 0) == (name == "text")
    assert half.gemms["fp16"] > half.gemms.get("fp32", 0)
    assert sum(half.gemms.values()) + 2 * half.attentions == plain.gemms["fp32"]
    assert safest.attentions == 0
    assert safest.gemms.get("fp32", 0) == half.gemms.get("fp32", 0) + 2 * half.attentions


def test_hazards_are_refused() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[1,1,4,4] x, float[1,4,4,2] at)
    => (float[1,1,4,4] y) { y = GridSample(x, at) }"""
    with pytest.raises(ExportError, match=r"must not build neck: \[grid-sample\] wrong: .*#4813"):
        tensorrt_flavour(_graph(text), "fp16", name="neck")


@pytest.mark.parametrize("precision", ["bf16", "int8-weights"])
def test_precisions_that_engines_do_not_have(precision: str) -> None:
    with pytest.raises(SettingError, match=f"built in fp32, fp16, int8, fp8, not in {precision}"):
        tensorrt_flavour(_graph(QUANTIZED), precision)
