"""What the exporter leaves in a graph and no runtime needs: constants to fold, pairs that undo.

The passes and rules are onnxscript's. Its own sequence of them takes a rule along that compares
every node with every other (``slice_split_rule``, onnxscript 0.7.2): 9 of 12 seconds on the tiny
detector, and nothing that our parts have.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

ROUNDS = 2
"""Folding shows pairs to rewrite, and rewriting shows constants to fold."""
RULES = (
    rules.cast_cast_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.flatten_to_reshape_rule,
    rules.materialize_reshape_shape_rule,
    rules.max_max_rule,
    rules.max_min_rule,
    rules.min_max_rule,
    rules.min_min_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
)
"""What is rewritten."""


def simplify(model: ir.Model) -> None:
    """Fold constants, rewrite what undoes itself and drop what nobody reads, in place."""
    common.InlinePass()(model)
    for _ in range(ROUNDS):
        # Types and shapes of what lies between: later passes read them.
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        rewriter.rewrite(model, RULES)
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
