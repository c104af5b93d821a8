"""Which of ONNX Runtime's providers runs each operator of a loaded session.

A provider that lacks an operator leaves it to the processor without a word, and the values travel
there and back. What only computes sizes belongs there: the graph's maker writes those down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samforge.backends.onnxruntime.session import Notes
from samforge.core.errors import EngineError

RECORD = "session.record_ep_graph_assignment_info"
"""Setting of a session under which it can tell; ONNX Runtime 1.31."""
SIZES_NOTE = "samforge.sizes"
"""Key in the file's notes: names of the nodes that compute nothing but sizes, with commas."""


def check_placement(session: Any, provider: str, path: Path, notes: Notes) -> None:
    """Make sure that a session computes where it should.

    Args:
        session: Loaded with ``RECORD``.
        provider: Name of the provider.
        path: The file, for the message.
        notes: Of the file.

    Raises:
        EngineError: The provider was not taken, or left operators to another.
    """
    used = list(session.get_providers())
    if provider not in used:
        raise EngineError(
            f"ONNX Runtime cannot run {path} on its {provider}: it took {', '.join(used)}. "
            "Look at what it printed, and at: samforge doctor."
        )
    sizes = set(notes.get(SIZES_NOTE, "").split(",")) - {""}  # what has no name is not listed
    left = strays(session.get_provider_graph_assignment_info(), provider, sizes)
    if left:
        listed = ", ".join(f"{count} x {name}" for name, count in left.most_common())
        raise EngineError(
            f"ONNX Runtime's {provider} leaves operators of {path} to the processor: {listed}. "
            "Install the version of onnxruntime-gpu that the bundle's manifest names, or build "
            "the bundle again."
        )


def strays(subgraphs: Iterable[Any], provider: str, sizes: set[str]) -> Counter[str]:
    """Operators that another provider runs, besides those that compute sizes."""
    return Counter(
        node.op_type
        for subgraph in subgraphs
        if subgraph.ep_name != provider
        for node in subgraph.get_nodes()
        if node.name not in sizes
    )
