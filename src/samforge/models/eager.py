"""A part as it stands, behind the door of a session: no export, no runtime."""

from __future__ import annotations

import numpy as np
import torch

from samforge.core.errors import ShapeError
from samforge.core.session import Array, PartSpec, Tensors, checked_tensors
from samforge.models.part import Part


class EagerSession:
    """Runs a part as PyTorch runs its module; arrays of the host go in and come out."""

    runtime = "eager"

    def __init__(self, part: Part, device: str = "cpu") -> None:
        """Run this part, which is moved to the device."""
        self.spec: PartSpec = part.spec
        self._own: Part | None = part
        self._device = torch.device(device)
        self.processor = "CPU" if self._device.type == "cpu" else device
        part.module.to(self._device)

    @property
    def part(self) -> Part:
        """What it runs.

        Raises:
            ShapeError: The session is closed.
        """
        if self._own is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Make it again.")
        return self._own

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part on arrays of the host.

        An input that is not contiguous or not writable is copied: torch has no tensors like that.

        Raises:
            ShapeError: A name, type or shape differs from ``spec``, or the session is closed.
        """
        part, inputs = self.part, checked_tensors(self.spec, tensors)
        results = part(
            {
                name: torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)
                for name, array in inputs.items()
            }
        )
        return {name: result.cpu().numpy() for name, result in results.items()}

    def close(self) -> None:
        """Leave the part to whoever else holds it."""
        self._own = None
