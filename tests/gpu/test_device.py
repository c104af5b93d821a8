"""The device runtime's kernels on a GPU, against the processor's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samforge.core.images import ImageSpec
from samforge.runtime.device import Resizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(
    ("height", "width"), [(2160, 3840), (37, 501), (1008, 400), (5, 3), (1008, 1008)]
)
def test_the_resize_is_the_processors_to_one_grey_level(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    spec = ImageSpec(size=1008)
    wanted = Resizer(spec, torch.device("cpu"))(rgb)
    found = Resizer(spec, torch.device("cuda"))(rgb.cuda()).cpu()
    grey = (found - wanted).abs() / (2 / 255)
    assert grey.max() < 1.01
    assert (grey > 0.5).float().mean() < 0.03
