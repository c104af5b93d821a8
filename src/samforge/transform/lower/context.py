"""What a rule of the lowering is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from samforge.transform.lower.settings import Lowering


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """What replaces an operator."""

    module: nn.Module
    """Holds the converted weights."""
    arguments: tuple[Node, ...]
    """Of the operator's arguments those that are computed."""
    format: str | None = None
    """Number format, for linears and convolutions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleContext:
    """What a rule may look at."""

    module: GraphModule
    """Owner of the constants."""
    settings: Lowering
    """What may change."""
    device: str
    """Where constants move."""

    def constant(self, node: Any) -> Tensor | None:
        """Value of a weight, on the device, or None where the argument is absent or computed."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return None
        value: Any = self.module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return cast(Tensor, value).detach().to(self.device)

    def lowered(self, node: Any) -> nn.Module | None:
        """The module that a node calls, where it has been lowered."""
        if not (isinstance(node, Node) and "lowered" in node.meta):
            return None
        return self.module.get_submodule(str(node.target))

    def path(self, node: Node) -> str:
        """Module path of an operator: that of its weight, or where it was traced."""
        for argument in node.args:
            if isinstance(argument, Node) and argument.op == "get_attr":
                return str(argument.target).rpartition(".")[0]
        stack = node.meta.get("nn_module_stack")
        return str(next(reversed(stack.values()))[0]) if stack else node.name


Rule = Callable[[Node, RuleContext], Replacement | None]


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """One argument of an operator, however it was passed."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def operator_name(node: Any) -> str:
    """Name of the operator that a node calls, without its overload; empty for other nodes."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", "")).split(".")[0]
