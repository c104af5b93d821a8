"""What torch does again for every program it reads, exports or converts, done once a process.

No number, graph or file depends on it: tests/unit/test_quick_torch.py holds exported programs and
ONNX files byte for byte. Tests that start processes of their own run torch as it is.
"""

from __future__ import annotations

import typing
from types import ModuleType
from typing import Any

FLAG = "do_not_emit_stack_traces"
"""In ``torch.fx.config``: lines of source on every node, which samforge drops before it saves."""


def quicken() -> None:
    """Spare torch what repeats: about a third of an export, of its conversion and of reading it."""
    import torch.fx
    from torch._export.serde import serialize
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    setattr(torch.fx.config, FLAG, True)
    if not isinstance(serialize.typing, _Typing):
        serialize.typing = _Typing(typing.__name__)
        ONNXRegistry.from_torchlib = classmethod(_from_torchlib(ONNXRegistry.from_torchlib))


class _Typing(ModuleType):
    """``typing``, but hints of a class are found once: each node of a graph asks for them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(typing, name)

    @staticmethod
    def get_type_hints(kind: Any, globalns: dict[str, Any] | None = None) -> dict[str, Any]:
        """Of torch's schema, the one module whose names are ever given."""
        hints: dict[str, Any] | None = _KNOWN.get(kind)
        if hints is None:
            hints = _KNOWN[kind] = typing.get_type_hints(kind, globalns=globalns)
        return hints


_KNOWN: dict[Any, dict[str, Any]] = {}


def _from_torchlib(original: Any) -> Any:
    """Read the library of translations once; callers add to lists of their own."""
    kept: dict[tuple[Any, ...], Any] = {}

    def from_torchlib(cls: type, *args: Any, **options: Any) -> Any:
        key = (cls, args, tuple(sorted(options.items())))
        if key not in kept:
            kept[key] = original(*args, **options)
        registry = cls()
        registry.__dict__.update(kept[key].__dict__)
        registry.functions = {name: list(those) for name, those in kept[key].functions.items()}
        return registry

    return from_torchlib
