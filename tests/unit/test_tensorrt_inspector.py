"""What an engine computes, read from documents of the engine inspector.

The documents are written by hand in the forms that TensorRT prints: layers of the compiler
(``gemm``, ``kgen``) and kernel names as in NVIDIA/TensorRT#4397, older convolutions as in #4020 and
the developer guide, the fields of 11 as in its migration guide. None was printed by an engine of
ours: that needs a GPU.
"""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from samforge.backends.tensorrt.inspector import SOURCE, computation_from_inspector
from samforge.backends.tensorrt.session import EngineSession
from samforge.core.computation import Computation, lost_computation
from samforge.core.errors import ShapeError
from samforge.core.session import InspectableSession, PartSpec

HALF_GEMM = "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1"
INT8_GEMM = "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage4_warpsize2x2x1"
FP8_GEMM = "sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x64_stage4_warpsize2x2x1"
HALF_CONVOLUTION = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x32"
MHA = "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a"
NORM = "__myl_AddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_0xf2543c36ff9f104bbb1655b0183afb47"


def ten(name: str, kind: str, tactic: str, dtype: str, *more: str) -> dict[str, Any]:
    """A layer of 10.13: format and type of a tensor are one text."""

    def tensor(number: int, text: str) -> dict[str, Any]:
        return {"Name": f"t{number}", "Dimensions": [1, 576, 1024], "Format/Datatype": text}

    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(number, text) for number, text in enumerate((dtype, *more))],
        "Outputs": [tensor(9, "Half")],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "[ONNX Layer: /layer.0/attention/MatMul]\u001e[ONNX Layer: /layer.0/mlp]",
    }


def eleven(name: str, kind: str, tactic: str, dtype: str) -> dict[str, Any]:
    """A layer of 11: two fields."""
    layout = f"Row major linear {dtype} format (kLINEAR)"
    tensor = {"Name": "t", "Dimensions": [1, 576, 1024], "Format": layout, "Datatype": dtype}
    return {**ten(name, kind, tactic, dtype), "Inputs": [tensor], "Outputs": [tensor]}


def read(*layers: object) -> Computation | None:
    document = {"Layers": list(layers), "Bindings": ["images", "fpn_0"]}
    return computation_from_inspector(json.dumps(document))


ATTENTION = ten("_gemm_mha_v2_myl0_17", "kgen", MHA, "Half", "Half", "Half")
AROUND = (
    ten("Reformatting CopyNode for Input Tensor 0 to images", "Reformat", "", "Row major FP32"),
    ten("__myl_AddCastMeanSubMulMeanAdd_myl0_8", "kgen", NORM, "Float", "Half"),
)


def test_a_block_in_half_of_version_10() -> None:
    found = read(
        *AROUND,
        ten(
            "/layer.0/q/MatMul+/layer.0/k/MatMul+/layer.0/v/MatMul_myl0_9",
            "gemm",
            HALF_GEMM,
            "Half",
        ),
        ATTENTION,
        ten("/layer.0/attention/o_proj/MatMul_myl0_18", "gemm", HALF_GEMM, "Half", "Half"),
        ten(
            "/neck/Conv",
            "CaskConvolution",
            HALF_CONVOLUTION,
            "Channel major FP16 format where channel % 8 == 0",
        ),
        ten(
            "/neck/ConvTranspose",
            "CaskDeconvolutionV2",
            "sm80_xmma_dgrad",
            "Row major linear FP16 format",
        ),
    )
    assert found == Computation(
        source=SOURCE, gemms={"fp16": 2}, convolutions={"fp16": 2}, attentions=1
    )


def test_names_of_the_graph_are_no_fused_attention() -> None:
    found = read(
        ten("/encoder/layers_2/mha/attn/key/MatMul_myl0_16", "gemm", HALF_GEMM, "Half"),
        ten("/layer.0/attention/softmax_myl0_4", "kgen", "__myl_MaxSubExpSumDiv_0x1f", "Half"),
    )
    assert found is not None
    assert (found.gemms, found.attentions) == ({"fp16": 1}, 0)


def test_int8_and_fp8_products_around_half_attention() -> None:
    int8 = read(
        ten("/layer.0/mlp/fc1/MatMul_myl0_3", "gemm", INT8_GEMM, "Int8"),
        ten("/layer.0/mlp/fc2/MatMul_myl0_4", "gemm", INT8_GEMM, "Int8", "Half"),
        ATTENTION,
        ten(
            "conv",
            "CaskConvolution",
            "sm80_xmma_fprop",
            "Thirty-two wide channel vectorized row major Int8 format.",
        ),
    )
    assert int8 is not None
    assert (int8.gemms, int8.convolutions, int8.attentions) == ({"int8": 2}, {"int8": 1}, 1)
    fp8 = read(ten("fc1_myl0_3", "gemm", FP8_GEMM, "FP8"), ATTENTION)
    assert fp8 is not None
    assert (fp8.gemms, fp8.convolutions, fp8.attentions) == ({"fp8": 1}, {}, 1)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("Half", "fp16"), ("Int8", "int8"), ("FP8", "fp8"), ("BFloat16", "bf16"), ("Float", "fp32")],
)
def test_version_11_splits_the_field(dtype: str, expected: str) -> None:
    found = read(eleven("fc1_myl0_3", "gemm", "", dtype), eleven("mha", "kgen", MHA, "Half"))
    assert found is not None
    assert (found.gemms, found.attentions) == ({expected: 1}, 1)
    typed = eleven("fc1_myl0_3", "gemm", "", dtype)
    del typed["Inputs"][0]["Datatype"]
    found = read(typed)
    assert found is not None
    assert found.gemms == {expected: 1}


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        (HALF_GEMM, "fp16"),
        (INT8_GEMM, "int8"),
        (FP8_GEMM, "fp8"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "bf16"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x16", "fp32"),
        ("sm80_xmma_gemm_indexed_wo_smem_f16f16_f16f16_f16", "fp16"),
        ("gemm_of_another_kind", "unknown"),
    ],
)
def test_dynamic_shapes_hide_the_type_and_the_kernel_tells_it(tactic: str, expected: str) -> None:
    found = read(ten("fc1", "gemm", tactic, "N/A due to dynamic shapes"))
    assert found is not None
    assert found.gemms == {expected: 1}


@pytest.mark.parametrize(
    ("tactic", "products"),
    [
        ("__myl_FcAddMul_0x5f", 1),
        ("__myl_CastFcAdd_0x5f", 1),
        ("__myl_Fc_0x5f", 1),
        ("__myl_SlicConcAdd_0x5f", 0),
    ],
)
def test_products_inside_kernels_of_the_compiler(tactic: str, products: int) -> None:
    found = read(ATTENTION, ten("x", "kgen", tactic, "Half"))
    assert found is not None
    assert found.gemms == ({"fp16": 1} if products else {})


@pytest.mark.parametrize(
    "layers",
    [
        ["/layer.0/q/MatMul_myl0_9", "_gemm_mha_v2_myl0_17"],
        [],
        AROUND,
        [{"Name": "only a name"}],
        [{"Name": "x", "LayerType": "Reformat", "Inputs": []}],
    ],
)
def test_what_cannot_be_recognized_is_not_counted_as_nothing(layers: list[object]) -> None:
    assert read(*layers) is None
    assert computation_from_inspector("{}") is None


def test_an_engine_that_fell_back_is_told_from_one_that_did_not() -> None:
    planned = Computation(source="the graph", gemms={"int8": 2}, convolutions={}, attentions=1)
    products = [ten(f"fc{number}", "gemm", INT8_GEMM, "Int8") for number in (1, 2)]
    kept = read(*products, ATTENTION)
    assert kept is not None
    assert lost_computation(planned, kept) == ()
    lost = read(products[0], ten("fc2", "gemm", HALF_GEMM, "Half"))
    assert lost is not None
    fusion, product = lost_computation(planned, lost)
    assert fusion.startswith("1 attentions should be fused, 0 are")
    assert product == "1 products run in fp16, 0 should."


class Inspector:
    """As ``ICudaEngine.create_engine_inspector`` gives it: types are known with a context."""

    execution_context: object = None

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        dtype = "N/A due to dynamic shapes" if self.execution_context is None else "Int8"
        return json.dumps({"Layers": [ten("fc1", "gemm", "", dtype), ATTENTION]})


def test_a_session_asks_with_the_context_that_ran() -> None:
    session = EngineSession.__new__(EngineSession)  # loading an engine needs a GPU
    session.spec = PartSpec(name="vision", inputs=(), outputs=())
    session.runtime, session.processor = "tensorrt", "a GPU that is not there"
    session._closed, session._lock = False, threading.Lock()
    session._engine = SimpleNamespace(create_engine_inspector=Inspector)
    session._lib = cast(
        "Any",
        SimpleNamespace(trt=SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json"))),
    )
    worker = cast("Any", SimpleNamespace(context="after a call", close=lambda: None))
    session._idle = [worker]
    assert isinstance(session, InspectableSession)
    found = session.computation()
    assert found is not None
    assert (found.gemms, found.attentions) == ({"int8": 1}, 1)
    assert session._idle == [worker]
    session.close()
    with pytest.raises(ShapeError, match="The session of vision is closed"):
        session.computation()
