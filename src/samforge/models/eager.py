"""A part as it stands, behind the door of a session: no export, no runtime."""

from __future__ import annotations

import torch

from samforge.core.session import Array, PartSpec, Tensors, checked_tensors
from samforge.models.part import Part


class EagerSession:
    """Runs a part as PyTorch runs its module; arrays of the host go in and come out."""

    runtime = "eager"

    def __init__(self, part: Part, device: str = "cpu") -> None:
        """Run this part, which is moved to the device."""
        self.part = part
        self._device = torch.device(device)
        self.processor = "CPU" if self._device.type == "cpu" else device
        part.module.to(self._device)

    @property
    def spec(self) -> PartSpec:
        """What goes in and comes out."""
        return self.part.spec

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part on arrays of the host.

        Raises:
            ShapeError: A name, type or shape differs from ``spec``.
        """
        inputs = checked_tensors(self.spec, tensors)
        results = self.part(
            {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        )
        return {name: result.cpu().numpy() for name, result in results.items()}

    def close(self) -> None:
        """Nothing is held."""
