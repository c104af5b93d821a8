"""The scale of attention scores moves into the weights that make the queries.

Matches: ``scaled_dot_product_attention`` whose queries come from a linear through operators that
keep a factor: reshapes, permutes, rotary encoding by tables.

Becomes: attention of scale 1, and a linear with scaled weight and bias.

Why: in explicit form the scale is an operator of its own over all queries. Kernels of fused
attention scale for nothing, so this is for targets of the explicit form.

Reorders arithmetic; a head of 64 has the scale 1/8, and then it is exact.
"""

from __future__ import annotations

from torch import fx

from samforge.core.targets import TARGETS
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import aten, is_call, place, tensor_inputs
from samforge.transform.fuse.noops import PERMUTES, RESHAPES
from samforge.transform.fuse.result import Fusion, FusionCount
from samforge.transform.fuse.rotary import PARTS

EXPLICIT = tuple(name for name, target in TARGETS.items() if target.through_onnx)
"""Targets whose graph holds attention written out."""
KEEPS_FACTOR = (
    *RESHAPES,
    *PERMUTES,
    *PARTS,
    aten.neg.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.stack.default,
    aten.cat.default,
)
"""Operators that give s * y for s * x, if every tensor they read is scaled."""


def fold_attention_scale(editor: GraphEditor) -> FusionCount:
    """Fold wherever the queries' linears serve nothing else."""
    tally = FusionCount()
    for attention in editor.calls(aten.scaled_dot_product_attention.default):
        scale = attention.kwargs.get("scale")
        if not isinstance(scale, float) or scale == 1:
            continue
        found = _linears(editor, attention)
        if isinstance(found, str):
            tally.left.append(f"{place(attention)}: {found}")
            continue
        for linear in found:
            for constant in linear.all_input_nodes[1:]:
                tensor = editor.tensor(constant)
                assert tensor is not None  # noqa: S101  # checked by _linears
                editor.set_tensor(constant, tensor.detach() * scale)
        attention.update_kwarg("scale", 1.0)
        tally.fired += 1
    return tally


def _linears(editor: GraphEditor, attention: fx.Node) -> list[fx.Node] | str:
    """The linears whose weights can take the factor, or why there are none."""
    seen, linears, stack = {attention}, [], [attention.all_input_nodes[0]]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_call(node, aten.linear.default):
            linears.append(node)
        elif is_call(node, aten.mul.Tensor):
            varying = [n for n in node.all_input_nodes if editor.tensor(n) is None]
            if len(varying) != 1:
                return "its queries are multiplied by what is computed in the graph"
            stack.extend(varying)
        elif is_call(node, *KEEPS_FACTOR) or _adds_tensors(node):
            stack.extend(tensor_inputs(node))
        else:
            return f"its queries come through {getattr(node.target, '__name__', node.target)}"
    constants = [n for linear in linears for n in linear.all_input_nodes[1:]]
    if any(editor.tensor(n) is None or len(n.users) > 1 for n in constants):
        return "the weight of its queries is shared, or computed in the graph"
    scaled = seen - {attention}
    elsewhere = {user for node in scaled for user in node.users} - seen
    if elsewhere or any(operand in scaled for operand in attention.args[1:]):
        return "its queries are read elsewhere too, without the scale"
    return linears


def _adds_tensors(node: fx.Node) -> bool:
    added = is_call(node, aten.add.Tensor, aten.sub.Tensor)
    return added and all(isinstance(operand, fx.Node) for operand in node.args[:2])


ATTENTION_SCALE = Fusion(
    name="attention-scale",
    summary="the scale of attention scores -> the weights that make the queries",
    exact=False,
    apply=fold_attention_scale,
    targets=EXPLICIT,
)
