"""Meta's code on a processor, with the checkout as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OnProcessor(TorchFunctionMode):
    """Make tensors on the processor where code names "cuda", and pin no memory.

    Three places of Meta's detector do so whatever device was asked for: the position tables and the
    decoder's coordinate cache are made on "cuda", and the scale of boxes is pinned. torch's own
    interception of calls is used, so that neither torch nor the checkout is changed; it holds
    inside the ``with`` alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, with the processor for a GPU."""
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            return args[0]
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


def fitting(device: str) -> contextlib.AbstractContextManager[Any]:
    """What Meta's code must run in on this device."""
    return OnProcessor() if device == "cpu" else contextlib.nullcontext()
