"""Objects followed by the parts that run, on held-out clips: figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

from samforge.models.part import Part
from samforge.models.sam3.tracker.mask_decoder import NO_OBJECT
from samforge.models.tiny.crossing import FRAMES, draw_crossing
from samforge.models.tiny.scenes import SIZE, Scene

Masks = npt.NDArray[np.bool_]
Tensors = dict[str, Tensor]

SHOWN = 0.4
"""Visible share on the first frame of an object that is followed."""
MEMORIES, POINTERS = 6, 15
"""Frames before this one that are looked back at."""
MASK_SIDE = 256
FAR = 1024.0
VISION_BATCH = 16


def first_click(mask: Masks) -> tuple[float, float]:
    """The pixel farthest from a mask's edge, x and y."""
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    return float(column), float(row)


def next_click(found: Masks, truth: Masks) -> tuple[float, float, int]:
    """Where an answer is wrong at its thickest, x, y and label.

    Source: ``sample_one_point_from_error_center`` in SAM 2's training/utils or sam2_utils.py.
    """
    missed, added = truth & ~found, found & ~truth
    depths = [
        float(distance_transform_edt(np.pad(wrong, 1)).max()) if wrong.any() else 0.0
        for wrong in (missed, added)
    ]
    wrong = missed if depths[0] >= depths[1] else added
    if not wrong.any():
        wrong = truth
    x, y = first_click(wrong)
    return x, y, int(truth[int(y), int(x)])


def iou(found: Masks, truth: Masks) -> float:
    """Of two masks; 1 where both are empty."""
    union = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / union if union else 1.0


@dataclass
class Follower:
    """One clip and its objects; Meta's session of points and masks without corrections later on."""

    parts: Mapping[str, Part]
    device: torch.device
    scenes: Sequence[Scene]
    emptied: bool = False
    """Whether memories and pointers are zeros: the control."""
    maps: list[Tensors] = field(default_factory=list)
    kept: list[Tensors] = field(default_factory=list)

    def __post_init__(self) -> None:
        for start in range(0, len(self.scenes), VISION_BATCH):
            chunk = self.scenes[start : start + VISION_BATCH]
            images = torch.from_numpy(np.stack([scene.image for scene in chunk]))
            images = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found = self.parts["vision"]({"images": images})
            names = ("high_res_0", "high_res_1", "tracker_features")
            for row in range(len(chunk)):
                self.maps.append({name: found[name][row : row + 1] for name in names})

    def clicked(self, truth: Masks, clicks: int) -> tuple[Tensors, Masks]:
        """Ask the first frame by clicks, each where the answer before is most wrong.

        Args:
            truth: (N, H, W).
            clicks: How many.

        Returns:
            The answer, and its masks (N, H, W).
        """
        points = [[first_click(mask)] for mask in truth]
        labels = [[1] for _ in truth]
        answer: Tensors = {}
        for number in range(clicks):
            answer = self._asked(points, labels, answer.get("mask"), single=number > 0)
            masks = self._enlarged(answer["mask"])
            if number + 1 < clicks:
                for row, (found, wanted) in enumerate(zip(masks, truth, strict=True)):
                    x, y, label = next_click(found, wanted)
                    points[row].append((x, y))
                    labels[row].append(label)
        return answer, masks

    def _asked(
        self,
        points: list[list[tuple[float, float]]],
        labels: list[list[int]],
        earlier: Tensor | None,
        *,
        single: bool,
    ) -> Tensors:
        count, side = len(points), self.maps[0]["high_res_0"].shape[-1]
        mask = torch.zeros(count, 1, side, side) if earlier is None else earlier.clamp(-32, 32)
        own = {
            "points": torch.tensor(points),
            "point_labels": torch.tensor(labels),
            "mask_input": mask,
            "has_mask": torch.full((count,), earlier is not None),
        }
        own = {name: tensor.to(self.device) for name, tensor in own.items()}
        found = self.parts["point_decoder"](self.maps[0] | own)
        ious = found["iou"]
        best = torch.zeros_like(ious[:, 0], dtype=torch.int64)
        if not single:
            best = 1 + ious[:, 1:].argmax(1)
        rows = torch.arange(count, device=self.device)
        present = (found["object_score"] > 0)[..., None, None]
        return {
            "mask": torch.where(present, found["mask_logits"][rows, best][:, None], NO_OBJECT),
            "pointer": found["object_pointers"][rows, best],
            "object_score": found["object_score"],
        }

    def given(self, truth: Masks) -> Tensors:
        """Take masks (N, H, W) of the first frame as they are."""
        whole = torch.from_numpy(truth).to(self.device)[:, None].float()
        mask = interpolate(whole, size=(MASK_SIDE, MASK_SIDE), mode="bilinear")
        found = self.parts["mask_prompt"](self.maps[0] | {"mask": mask})
        side = self.maps[0]["high_res_0"].shape[-1]
        low = torch.where(whole > 0.5, FAR, -FAR)
        return {
            "mask": interpolate(low, size=(side, side), mode="bilinear", antialias=True),
            "pointer": found["object_pointer"],
            "object_score": found["object_score"],
        }

    def follow(self, answer: Tensors) -> Masks:
        """Keep an answer to the first frame and follow it: masks (T - 1, N, H, W)."""
        self.kept = []
        self._keep(answer, from_prompt=True)
        masks = []
        for frame in range(1, len(self.scenes)):
            near = range(max(1, frame - MEMORIES), frame)
            past = range(frame - 1, max(0, frame - 1 - POINTERS), -1)
            offsets = [0, *(frame - other for other in near)]
            times = [frame / POINTERS, *((frame - other) / POINTERS for other in past)]
            count = len(answer["pointer"])
            conditioned = self.parts["memory_attention"](
                {
                    "tracker_features": self.maps[frame]["tracker_features"],
                    "memory": torch.stack([self.kept[i]["memory"] for i in (0, *near)], 1),
                    "memory_offsets": self._spread(torch.tensor(offsets), count),
                    "pointers": torch.stack([self.kept[i]["pointer"] for i in (0, *past)], 1),
                    "pointer_times": self._spread(torch.tensor(times), count),
                }
            )
            found = self.parts["tracking_decoder"](self.maps[frame] | conditioned)
            self._keep(
                {
                    "mask": found["mask_logits"],
                    "pointer": found["object_pointer"],
                    "object_score": found["object_score"],
                },
                from_prompt=False,
            )
            masks.append(self._enlarged(found["mask_logits"]))
        return np.stack(masks)

    def _spread(self, values: Tensor, count: int) -> Tensor:
        return values.to(self.device).expand(count, -1).contiguous()

    def _keep(self, answer: Tensors, *, from_prompt: bool) -> None:
        frame, count = len(self.kept), len(answer["pointer"])
        memory = self.parts["memory_encoder"](
            {
                "tracker_features": self.maps[frame]["tracker_features"],
                "mask_logits": answer["mask"],
                "object_score": answer["object_score"],
                "from_prompt": torch.full((count,), from_prompt, device=self.device),
            }
        )["memory"].to(torch.bfloat16)
        pointer = answer["pointer"]
        if self.emptied:
            memory, pointer = torch.zeros_like(memory), torch.zeros_like(pointer)
        self.kept.append({"memory": memory.float(), "pointer": pointer})

    @staticmethod
    def _enlarged(logits: Tensor) -> Masks:
        whole = interpolate(logits, size=(SIZE, SIZE), mode="bilinear")[:, 0]
        masks: Masks = (whole > 0).cpu().numpy()
        return masks


def clip_figures(
    parts: Mapping[str, Part], device: torch.device, scenes: Sequence[Scene], *, control: bool
) -> dict[str, list[float]]:
    """Every figure of one clip as a list: one number an object, or an object and frame."""
    asked = np.flatnonzero(scenes[0].visible_shares >= SHOWN)
    truth = np.stack([scene.masks[asked] for scene in scenes])  # [T, N, H, W]
    follower = Follower(parts, device, scenes)
    figures: dict[str, list[float]] = {}
    for clicks in (3, 1):
        answer, masks = follower.clicked(truth[0], clicks)
        figures[f"iou_{clicks}_clicks"] = _each(masks[None], truth[:1])
    followed = follower.follow(answer)
    figures["j_click"] = _each(followed, truth[1:])
    there, seen = truth[1:].any((2, 3)), followed.any((2, 3))
    figures["right_about_presence"] = (there == seen).ravel().astype(float).tolist()
    figures["j_where_present"] = [
        value for value, present in zip(figures["j_click"], there.ravel(), strict=True) if present
    ]
    figures["j_mask"] = _each(follower.follow(follower.given(truth[0])), truth[1:])
    if control:
        follower.emptied = True
        figures["j_emptied"] = _each(follower.follow(answer), truth[1:])
    return figures


def _each(found: Masks, truth: Masks) -> list[float]:
    """IoU of each frame and object."""
    return [
        iou(one, other)
        for frame, wanted in zip(found, truth, strict=True)
        for one, other in zip(frame, wanted, strict=True)
    ]


def figures(
    parts: Mapping[str, Part],
    device: torch.device,
    clips: int,
    *,
    frames: int = FRAMES,
    first: int = 0,
    controls: int = 0,
) -> dict[str, float]:
    """Mean figures over held-out clips; the first ``controls`` of them with emptied memory, too."""
    sums: dict[str, list[float]] = {}
    for number in range(clips):
        scenes = list(draw_crossing(first + number, frames=frames))
        for name, values in clip_figures(parts, device, scenes, control=number < controls).items():
            sums.setdefault(name, []).extend(values)
    return {name: float(np.mean(values)) for name, values in sums.items()}
