"""A linear or convolution takes over the scale, shift or normalization behind it.

Matches: ``linear``, ``conv2d`` or ``conv_transpose2d`` whose only reader multiplies or divides by
a number or by one constant a channel (DINOv3's layer scale), adds a constant a channel, or is a
batch normalization outside training.

Becomes: the same operator with the constant in its weight and bias.

Why: one pass over the result less. A layer scale of 1e-5 in front of a quantized linear would leave
it two different scales to represent; folded, the weight's own scale a channel carries it.

Reorders arithmetic: a weight is rounded once more.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import argument, aten, is_call, place, value_of
from samforge.transform.fuse.result import Fusion, FusionCount

PRODUCERS = (
    aten.linear.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv_transpose2d.input,
)
MULTIPLY = (aten.mul.Tensor, aten.mul.Scalar)
DIVIDE = (aten.div.Tensor, aten.div.Scalar)
ADD = (aten.add.Tensor, aten.add.Scalar)
NORMALIZE = aten.batch_norm.default


def fold_scales(editor: GraphEditor) -> FusionCount:
    """Fold until the next reader is something else."""
    tally = FusionCount()
    for producer in editor.calls(*PRODUCERS):
        while (found := _reader(editor, producer)) is not None:
            reader, factor, shift = found
            if reason := _obstacle(editor, producer):
                tally.left.append(f"{place(producer)}: {reason}")
                break
            _scale(editor, producer, factor, shift)
            editor.replace(reader, producer)
            tally.fired += 1
            editor.sweep()
    return tally


def _reader(editor: GraphEditor, producer: fx.Node) -> tuple[fx.Node, Tensor, Tensor] | None:
    """A reader that multiplies and shifts each channel by constants, with both constants."""
    for user in producer.users:
        if is_call(user, NORMALIZE):
            affine = _normalization(editor, user)
        elif is_call(user, *MULTIPLY, *DIVIDE, *ADD) and len(user.args) == 2 and not user.kwargs:
            affine = _arithmetic(editor, producer, user)
        else:
            affine = None
        if affine is not None and value_of(user).dtype == value_of(producer).dtype:
            return (user, *affine)
    return None


def _arithmetic(
    editor: GraphEditor, producer: fx.Node, user: fx.Node
) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of ``result * c``, ``result / c`` or ``result + c``."""
    left, right = user.args
    if left is not producer and (right is not producer or is_call(user, *DIVIDE)):
        return None
    operand = _per_channel(editor, producer, right if left is producer else left)
    if operand is None:
        return None
    one, zero = torch.ones_like(operand), torch.zeros_like(operand)
    if is_call(user, *ADD):
        return one, operand
    return (1 / operand if is_call(user, *DIVIDE) else operand), zero


def _per_channel(editor: GraphEditor, producer: fx.Node, operand: object) -> Tensor | None:
    """A constant operand as one number a channel (or one for all)."""
    if isinstance(operand, int | float):
        return torch.tensor(float(operand), dtype=torch.float64)
    tensor = editor.tensor(operand)
    rank = value_of(producer).ndim
    if tensor is None or tensor.ndim > rank:
        return None
    shape = [1] * (rank - tensor.ndim) + list(tensor.shape)
    axis = rank - 1 if is_call(producer, aten.linear.default) else rank - 3
    if any(size != 1 for index, size in enumerate(shape) if index != axis):
        return None
    return tensor.detach().flatten().double()


def _normalization(editor: GraphEditor, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of a batch normalization that uses its running statistics."""
    _, weight, bias, mean, variance, training, _, epsilon = node.args[:8]
    mean_tensor, variance_tensor = editor.tensor(mean), editor.tensor(variance)
    if training or mean_tensor is None or variance_tensor is None:
        return None
    factor = (variance_tensor.double() + float(epsilon)).rsqrt()  # type: ignore[arg-type]
    if (scale := editor.tensor(weight)) is not None:
        factor = factor * scale.detach().double()
    shift = -mean_tensor.double() * factor
    if (offset := editor.tensor(bias)) is not None:
        shift = shift + offset.detach().double()
    return factor, shift


def _obstacle(editor: GraphEditor, producer: fx.Node) -> str | None:
    constants = [node for node in producer.args[1:3] if isinstance(node, fx.Node)]
    if len(producer.users) > 1:
        return "its result is read elsewhere too, without the scale"
    if any(editor.tensor(node) is None for node in constants):
        return "its weight is computed in the graph"
    if any(len(node.users) > 1 for node in constants):
        return "its weight is used elsewhere too, without the scale"
    if is_call(producer, aten.conv_transpose2d.input) and argument(producer, 6, "groups", 1) != 1:
        return "a transposed convolution in groups"
    return None


def _scale(editor: GraphEditor, producer: fx.Node, factor: Tensor, shift: Tensor) -> None:
    """Put factor and shift into the constants; rounded once, from float64."""
    weight_node, bias_node = producer.all_input_nodes[1], argument(producer, 2, "bias")
    weight, bias = editor.tensor(weight_node), editor.tensor(bias_node)
    assert weight is not None  # noqa: S101  # checked by _obstacle
    axis = 1 if is_call(producer, aten.conv_transpose2d.input) else 0
    channels = weight.shape[axis]  # the editor may free what it replaces
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    if not bool((factor == 1).all()):
        scaled = weight.detach().double() * factor.view(shape if factor.ndim else [])
        editor.set_tensor(weight_node, scaled.to(weight.dtype))
    if bias is None and not bool(shift.any()):
        return
    offset = shift if bias is None else bias.detach().double() * factor + shift
    offset = offset.expand(channels).to(weight.dtype).contiguous()
    if bias_node is None:
        name = f"{editor.name(weight_node).rpartition('.')[0]}.bias".removeprefix(".")
        producer.args = (
            *producer.args[:2],
            editor.constant(name, offset, like=weight_node),
            *producer.args[3:],
        )
    else:
        editor.set_tensor(bias_node, offset)


SCALES = Fusion(
    name="scales",
    summary="layer scale, batch normalization or a constant factor behind a linear -> its weight",
    exact=False,
    apply=fold_scales,
)
