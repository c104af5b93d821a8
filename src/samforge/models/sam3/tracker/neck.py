"""Part ``vision`` with a tracker: one pass of the ViT for both."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from samforge.models.sam3.vision import Vision


class Neck(nn.Module):
    """The tracker's own feature pyramid over the detector's ViT.

    The two finest maps are narrowed here, once for each image, as the mask decoder wants them; the
    coarsest level is left out, as Meta's tracker drops it.
    """

    def __init__(self, neck: Sam3VisionNeck, conv_s0: nn.Conv2d, conv_s1: nn.Conv2d) -> None:
        super().__init__()
        self.levels = nn.ModuleList(neck.fpn_layers[:-1])
        self.conv_s0 = conv_s0
        self.conv_s1 = conv_s1

    def forward(self, spatial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make the tracker's maps.

        Args:
            spatial: (B, E, s, s), the ViT's tokens.

        Returns:
            (B, D / 8, 4s, 4s) and (B, D / 4, 2s, 2s) for masks, (B, D, s, s) for everything else.
        """
        fine, middle, coarse = (level(spatial) for level in self.levels)
        return self.conv_s0(fine), self.conv_s1(middle), coarse


class VisionWithTracker(nn.Module):
    """What part ``vision`` gives of a detector alone, with the tracker's maps behind it."""

    def __init__(self, vision: Vision, neck: Neck) -> None:
        super().__init__()
        self.vision = vision
        self.neck = neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            images: (B, 3, S, S), normalized.

        Returns:
            What :class:`Vision` gives, then the three maps of :class:`Neck`.
        """
        spatial = self.vision.trunk(images)
        return (*self.vision.features(spatial), *self.neck(spatial))
