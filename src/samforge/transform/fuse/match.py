"""Questions that fusions ask about nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def is_call(node: object, *targets: Callable[..., Any]) -> TypeGuard[fx.Node]:
    """Whether a node calls one of the operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_pure(target: Callable[..., Any] | str) -> bool:
    """Whether an operator gives the same for the same, and does nothing else."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__module__", "") == "_operator"
    tags = getattr(target, "tags", ())
    return not schema.is_mutable and torch.Tag.nondeterministic_seeded not in tags


def value_of(node: fx.Node) -> Any:
    """The recorded value of a node: a fake tensor, a tuple of them or a symbolic integer."""
    return node.meta["val"]


def result_of(node: fx.Node) -> Any:
    """Compute a node's value from the values of its inputs."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value_of)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def is_tensor(node: object) -> TypeGuard[fx.Node]:
    """Whether a node gives one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def expressions(shape: Any) -> tuple[Any, ...]:
    """A shape as integers and symbolic expressions, comparable without a guard."""
    return tuple(map(_expression, shape))


def same_size(first: Any, second: Any) -> bool:
    """Whether two sizes are equal for every size of the dynamic axes, told without a guard."""
    return bool(_expression(first) == _expression(second))


def same_sizes(first: Any, second: Any) -> bool:
    """Whether two shapes are equal for every size of the dynamic axes."""
    return len(first) == len(second) and all(map(same_size, first, second))


def same_tensor(first: Any, second: Any) -> bool:
    """Whether two values agree in shape, strides, type and device."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return (
            same_sizes(first.shape, second.shape)
            and first.dtype == second.dtype
            and first.device == second.device
            and same_sizes(first.stride(), second.stride())
        )
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(same_tensor, first, second))
    return type(first) is type(second) and same_size(first, second)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """What a node reads besides sizes."""
    return [n for n in node.all_input_nodes if not isinstance(value_of(n), int | torch.SymInt)]


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def module_path(node: fx.Node) -> str:
    """Dotted path of the module a node comes from; empty for the part itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def place(node: fx.Node) -> str:
    """Where a node stands, for reports."""
    return module_path(node) or node.name


def _expression(size: Any) -> Any:
    if not isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression
