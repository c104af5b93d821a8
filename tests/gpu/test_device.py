"""The device runtime's kernels on a GPU, against the processor's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samforge.core.images import ImageSpec
from samforge.runtime.device import Resizer
from samforge.runtime.device.masks import above_reference, masks_above
from samforge.runtime.device.transfer import host_tensor

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


@pytest.mark.parametrize(
    ("shape", "size_hw"), [((2, 5, 288, 288), (2160, 3840)), ((1, 3, 64, 48), (37, 1001))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_those_of_torchs_resize(
    shape: tuple[int, ...], size_hw: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    # Smooth, as masks are; the strides of a detector whose channels are last.
    logits = torch.nn.functional.interpolate(torch.randn(*shape[:2], 8, 8), shape[-2:]) * 4
    logits = logits.to("cuda", dtype).contiguous(memory_format=torch.channels_last)
    wanted = [(0, 2), (shape[0] - 1, 0), (0, 1)]
    out = host_tensor((3, *size_hw), torch.bool, torch.device("cuda"))
    masks_above(logits, wanted, size_hw, 0.4, out, torch.cuda.Stream())
    torch.cuda.synchronize()
    expected = above_reference(logits.cpu().float(), torch.tensor(wanted), size_hw, 0.4)
    assert expected.any()
    assert not expected.all()
    assert (out != expected).float().mean() < 1e-5
