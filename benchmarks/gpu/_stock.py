"""transformers' own Sam3Model over the same span, prepared as its processor would on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam3Config, Sam3Model


class Stock:
    """Autocast to bf16, resize and post-processing on the device, text encoded once."""

    def __init__(self, model: str, size: int | None, device: str) -> None:
        if model == "tiny":
            from samforge.models.sam3.loading import checkpoint_from_name

            config = checkpoint_from_name("tiny").config
        else:
            config = Sam3Config()
        if size is not None:
            config.image_size = size
        torch.manual_seed(0)
        with torch.device(device):
            self.model = Sam3Model(config).eval().requires_grad_(False)
        self.device, self.size = device, config.vision_config.image_size
        self.call: Any = self.model
        self.vision: Any = self.model.vision_encoder
        context = config.text_config.max_position_embeddings
        ids = torch.zeros(1, context, dtype=torch.int64, device=device)
        ids[0, :3] = torch.tensor([1, 2, 3])
        mask = torch.zeros(1, context, dtype=torch.int64, device=device)
        mask[0, :4] = 1
        self.text = {"input_ids": ids, "attention_mask": mask}

    def compile(self, mode: str) -> None:
        """Choose a mode of torch.compile, or ``eager``."""
        if mode == "eager":
            self.call, self.vision = self.model, self.model.vision_encoder
            return
        torch._dynamo.reset()  # noqa: SLF001
        self.call = torch.compile(self.model, mode=mode)
        self.vision = torch.compile(self.model.vision_encoder, mode=mode)

    def _prepared(self, picture: np.ndarray) -> torch.Tensor:
        rgb = torch.from_numpy(picture).to(self.device)
        values = rgb.permute(2, 0, 1)[None].float()
        square = F.interpolate(
            values, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        return (square.round() / 255 - 0.5) / 0.5

    def _forward(self, pixels: torch.Tensor, text: dict[str, Any]) -> Any:
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
            return self.call(pixel_values=pixels, **text)

    def spans(
        self, images: list[np.ndarray]
    ) -> tuple[Callable[[int], Any], dict[str, Callable[[], Any]]]:
        """The whole span by image number, and stages alone."""
        pixels = [self._prepared(image) for image in images[:3]]
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
            embeds = self.model.get_text_features(**self.text)
        known = {"text_embeds": embeds, "attention_mask": self.text["attention_mask"]}
        thresholds = []
        for image in images:
            scores = self._scores(self._forward(self._prepared(image), self.text))
            ordered = scores.flatten().sort(descending=True).values
            thresholds.append(float((ordered[3] + ordered[4]) / 2))
        try:
            self._forward(pixels[0], known)
            text = known
        except Exception:  # noqa: BLE001  # this transformers takes no text features
            text = self.text

        def whole(index: int) -> Any:
            one = index % len(images)
            outputs = self._forward(self._prepared(images[one]), text)
            keep = self._scores(outputs)[0] > thresholds[one]
            masks = outputs.pred_masks[0][keep].float().sigmoid()
            wide = F.interpolate(
                masks[:, None], images[one].shape[:2], mode="bilinear", align_corners=False
            )
            found = (wide[:, 0] > 0.5).cpu()
            return found, outputs.pred_boxes[0][keep].float().cpu()

        state = {"next": 0}

        def turn() -> torch.Tensor:
            state["next"] += 1
            return pixels[state["next"] % len(pixels)]

        def vision() -> Any:
            with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
                return self.vision(turn())

        stages = {
            "model with text": lambda: self._forward(turn(), self.text),
            "model, text known" if text is known else "model again": lambda: self._forward(
                turn(), text
            ),
            "vision": vision,
        }
        return whole, stages

    @staticmethod
    def _scores(outputs: Any) -> torch.Tensor:
        presence = outputs.presence_logits.float().sigmoid().reshape(-1, 1)
        return outputs.pred_logits.float().sigmoid().reshape(presence.shape[0], -1) * presence
