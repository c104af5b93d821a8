"""What the device runtime asks of a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from samforge.core.session import PartSpec


class DeviceSession(Protocol):
    """A session that also takes tensors where they are, as the inductor backend's does."""

    @property
    def spec(self) -> PartSpec:
        """Interface of the part."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        ...

    def run_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the part on tensors of this device."""
        ...

    def placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move and convert tensors to how ``run_tensors`` wants them."""
        ...
