"""One transformer block as a graph, to find out what a processor is fast at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from samforge.core.axes import BATCH
from samforge.core.session import PartSpec, TensorSpec

TOKENS, WIDTH, HEADS, HIDDEN = 576, 1024, 16, 4736
"""Those of one attention window in SAM 3's image encoder."""
SPEC = PartSpec(
    name="block",
    inputs=(TensorSpec(name="tokens", dtype="float32", shape=(BATCH.name, TOKENS, WIDTH)),),
    outputs=(TensorSpec(name="result", dtype="float32", shape=(BATCH.name, TOKENS, WIDTH)),),
)
RANGE = 6.0
"""Largest magnitude of what linears read here: normalized values, attention, GELU."""


def probe_block(*, quantized: bool) -> ir.Model:
    """Make the block with random weights.

    Args:
        quantized: With symmetric int8 Q/DQ in front of its four linears.

    Returns:
        tokens (batch, 576, 1024) -> result of the same shape, opset 20.
    """
    return ir.from_proto(_Block(quantized=quantized).model())


class _Block:
    """Nodes and weights while the graph grows."""

    def __init__(self, *, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def model(self) -> onnx.ModelProto:
        normed = self._norm("tokens", "norm1")
        heads = [self._split(self._linear(normed, name, WIDTH, WIDTH), name) for name in "qkv"]
        attended = self._attention(*heads)
        first = self._add(
            "Add", ["tokens", self._linear(attended, "out", WIDTH, WIDTH)], "residual"
        )
        hidden = self._linear(self._norm(first, "norm2"), "fc1", WIDTH, HIDDEN)
        hidden = self._add("Gelu", [hidden], "gelu")
        self._add("Add", [first, self._linear(hidden, "fc2", HIDDEN, WIDTH)], "result")
        tensors = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH.name, TOKENS, WIDTH])
            for name in ("tokens", "result")
        ]
        graph = helper.make_graph(self.nodes, "block", tensors[:1], tensors[1:], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)

    def _add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        node = helper.make_node(operator, inputs, [name], name=f"node_{name}", **attributes)
        self.nodes.append(node)
        return name

    def _constant(self, name: str, values: npt.ArrayLike) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _norm(self, value: str, name: str) -> str:
        scale = self._constant(f"{name}.weight", np.ones(WIDTH, np.float32))
        bias = self._constant(f"{name}.bias", np.zeros(WIDTH, np.float32))
        return self._add("LayerNormalization", [value, scale, bias], name, axis=-1)

    def _linear(self, value: str, name: str, inputs: int, outputs: int) -> str:
        weight = self._rng.standard_normal((inputs, outputs), np.float32) * np.float32(inputs**-0.5)
        bias = self._constant(f"{name}.bias", np.zeros(outputs, np.float32))
        if self.quantized:
            scales = np.abs(weight).max(0) / np.float32(127)
            integers = np.rint(weight / scales).astype(np.int8)
            value = self._rounded(value, name)
            weight_name = self._dequantized(
                [
                    self._constant(f"{name}.weight_int8", integers),
                    self._constant(f"{name}.weight_scale", scales),
                    self._constant(f"{name}.weight_zero_point", np.zeros(outputs, np.int8)),
                ],
                f"{name}.weight",
                axis=1,
            )
        else:
            weight_name = self._constant(f"{name}.weight", weight)
        product = self._add("MatMul", [value, weight_name], f"{name}_product")
        return self._add("Add", [product, bias], name)

    def _rounded(self, value: str, name: str) -> str:
        scale = self._constant(f"{name}.scale", np.float32(RANGE / 127.5))
        zero = self._constant(f"{name}.zero_point", np.int8(0))
        steps = self._add("QuantizeLinear", [value, scale, zero], f"{name}_quantized")
        return self._dequantized([steps, scale, zero], f"{name}_dequantized")

    def _dequantized(self, inputs: list[str], name: str, **attributes: Any) -> str:
        return self._add("DequantizeLinear", inputs, name, **attributes)

    def _split(self, value: str, name: str) -> str:
        shape = self._constant(f"{name}.heads", np.array([0, TOKENS, HEADS, WIDTH // HEADS]))
        heads = self._add("Reshape", [value, shape], f"{name}_split")
        return self._add("Transpose", [heads], f"{name}_heads", perm=[0, 2, 1, 3])

    def _attention(self, query: str, key: str, value: str) -> str:
        scale = self._constant("scale", np.float32((WIDTH // HEADS) ** -0.5))
        query = self._add("Mul", [query, scale], "scaled")
        key = self._add("Transpose", [key], "key_transposed", perm=[0, 1, 3, 2])
        scores = self._add("MatMul", [query, key], "scores")
        weights = self._add("Softmax", [scores], "probabilities", axis=-1)
        context = self._add("MatMul", [weights, value], "context")
        context = self._add("Transpose", [context], "context_tokens", perm=[0, 2, 1, 3])
        shape = self._constant("merged_shape", np.array([0, TOKENS, WIDTH]))
        return self._add("Reshape", [context, shape], "attended")
