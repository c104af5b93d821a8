"""Between torch and sessions that take tensors where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samforge.core.session import Array, DeviceSession


def placed(session: DeviceSession, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move and convert tensors to how a session wants them; what is right already stays."""
    return {name: _placed(session, name, tensor) for name, tensor in tensors.items()}


def run(session: DeviceSession, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a session on tensors in its formats; its outputs as torch's tensors, not copied."""
    outputs = session.run_on_device(tensors)
    return {name: _tensor(value, session.device) for name, value in outputs.items()}


def arrays_from(session: DeviceSession, outputs: Mapping[str, Any]) -> dict[str, Array]:
    """What a session gave, copied to the host in the types of its interface."""
    return {
        tensor.name: _tensor(outputs[tensor.name], session.device)
        .to("cpu", getattr(torch, tensor.dtype))
        .contiguous()
        .numpy()
        for tensor in session.spec.outputs
    }


def _placed(session: DeviceSession, name: str, tensor: Tensor) -> Tensor:
    wanted = session.formats[name]
    moved = tensor.to(session.device, getattr(torch, wanted.dtype))
    if wanted.channels_last:
        return moved.contiguous(memory_format=torch.channels_last)
    return moved.contiguous()


def _tensor(value: Any, device: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        return torch.utils.dlpack.from_dlpack(value)
    return torch.as_tensor(value, device=device)
