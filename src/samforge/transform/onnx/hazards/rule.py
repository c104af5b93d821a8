"""What a rule and a finding are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

SEVERITIES = ("wrong", "refused", "slow")
"""Silently wrong results; does not build; builds and loses speed or accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing TensorRT miscompiles, refuses or runs slowly."""

    id: str
    """Short name: ``cumsum-axes``."""
    severity: str
    """One of ``SEVERITIES``."""
    explanation: str
    """What happens and what to do instead; a sentence or two."""
    reference: str
    """The issue or page it is known from."""
    find: Callable[[ir.Model], Iterable[str]]
    """Gives the places in a graph, in words; none when the graph is clean."""


def named(node: ir.Node) -> str:
    """A node in words: its name and operator."""
    return f"{node.name or 'a nameless node'} ({node.op_type})"
