"""One training step of the tracker: prompts on the first frame, then frame after frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samforge.models.sam3.tracker.mask_decoder import FIXED_TOKENS, NO_OBJECT, draw
from samforge.models.sam3.tracker.prompts import PADDING, hiding
from samforge.models.sam3.tracker.tracking_decoder import EMPTY_POINTS
from samforge.models.tiny.crossing import LEAST_PIXELS
from samforge.models.tiny.scenes import MOST_INSTANCES
from tiny_training.tracker_losses import (
    Answer,
    answer_losses,
    click,
    correction,
    loose_boxes,
)
from tiny_training.tracker_model import Tracker

CLEARLY = 60
"""Pixels of an object that is prompted: more than count as visible."""
MASK_SHARE, BOX_SHARE = 0.35, 0.4
"""Of prompts: masks; of the others: boxes."""
ABSENT_SHARE = 0.15
"""Of points and boxes on single pictures: where nothing is, so that the score means something."""
CORRECTED = 0.35
"""Of clips in which a tracked frame is corrected."""
FORGET = 0.15
"""Of memories of ordinary frames: gaps, as where memories are selected."""
FED = 32.0
"""Logits of an earlier mask are fed within this."""
FAR = 1024.0
"""Logit of a mask that is given."""
MEMORIES = 6
"""Ordinary frames that a frame looks back at."""
POINTER_SPAN = 15.0
"""Distances of pointers are divided by it."""
_STREAM = 7  # first part of the random seed


class Maps(NamedTuple):
    """The tracker's maps of one frame, a row for each object."""

    high_res_0: Tensor
    high_res_1: Tensor
    features: Tensor

    def rows(self, chosen: slice) -> Maps:
        """Those of some objects."""
        return Maps(*(tensor[chosen] for tensor in self))


@dataclass(kw_only=True)
class Kept:
    """What is known of a frame, for all N objects."""

    logits: Tensor
    """(N, 1, 4s, 4s)."""
    score: Tensor
    """(N, 1), logit."""
    pointer: Tensor
    """(N, D)."""
    memory: Tensor
    """(N, L, C)."""
    prompted: bool


@dataclass(kw_only=True)
class Graded:
    """Losses of a step, summed, and what is worth knowing of them."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    answers: int = 0
    ious: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, losses: dict[str, Tensor], iou: Tensor, shown: Tensor) -> None:
        """Count one answer; ``shown`` (N,) says which rows have a mask."""
        for key, loss in losses.items():
            self.losses[key] = self.losses[key] + loss if key in self.losses else loss
        self.answers += 1
        mean = (iou * shown).sum() / shown.sum().clamp(min=1)
        self.ious.setdefault(name, []).append(mean.detach())

    def mean(self) -> dict[str, Tensor]:
        """Each loss per answer, and their total."""
        mean = {name: loss / self.answers for name, loss in self.losses.items()}
        return {"total": torch.stack(list(mean.values())).sum(), **mean}


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """What a step asks, the same for all clips of a batch."""

    first_corrections: int
    """Clicks after the first answer."""
    corrected: int
    """Frame that is corrected, 0 for none."""
    later_corrections: int
    """Clicks on it."""
    stride: float
    """Distances of pointers are so many frames a frame."""
    forgotten: frozenset[tuple[int, int]]
    """Pairs of frames, of which the first does not look back at the second."""


def make_script(index: int, frames: int) -> Script:
    """What step ``index`` asks: the same for the same arguments."""
    rng = np.random.default_rng([_STREAM, index, frames])
    pairs = [(now, frame) for now in range(1, frames) for frame in range(now)]
    dropped = rng.random(len(pairs)) < FORGET
    single = frames == 1
    corrects = frames > 2 and rng.random() < CORRECTED
    return Script(
        first_corrections=int(rng.integers(0, 4)) if single else int(rng.random() < 0.3),
        corrected=int(rng.integers(1, frames)) if corrects else 0,
        later_corrections=int(rng.integers(0, 3)),
        stride=float(rng.choice([1, 1, 2, 3, 4])),
        forgotten=frozenset(pair for pair, drop in zip(pairs, dropped, strict=True) if drop),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What all stages of a step share."""

    script: Script
    graded: Graded
    generator: torch.Generator


class TrackerForward(nn.Module):
    """Losses of a batch of clips.

    Args:
        tracker: The weights.
        objects: Followed in each clip.
    """

    def __init__(self, tracker: Tracker, objects: int) -> None:
        super().__init__()
        self.tracker = tracker
        self.objects = objects

    def forward(
        self, tokens: Tensor, instances: Tensor, script: Script, generator: torch.Generator
    ) -> Graded:
        """Run a batch.

        Args:
            tokens: (B * T, E, s', s'), of the frozen ViT.
            instances: (B, T, H, W) uint8, from ``clips.draw``.
            script: What is asked.
            generator: Of their device.
        """
        tracker, batch, frames = self.tracker, *instances.shape[:2]
        tracker.renew()
        maps = [
            level.float().unflatten(0, (batch, frames)).repeat_interleave(self.objects, 0)
            for level in tracker.neck(tokens)
        ]  # [N, T, C, h, w]
        truth, weight, ground = chosen_objects(instances, self.objects, generator)
        step = Step(script=script, graded=Graded(), generator=generator)
        kept: list[Kept] = []
        for frame in range(frames):
            seen = Maps(*(level[:, frame] for level in maps))
            if frame == 0:
                wanted, weight = _some_absent(truth[:, 0], weight, batch, frames == 1, generator)
                areas = torch.where((wanted.flatten(1).amax(1) > 0)[:, None, None], wanted, ground)
                kept.append(self._prompted(seen, wanted, areas, weight, step))
                continue
            found = self._tracked(seen, kept, truth[:, frame], weight, step)
            if frame == script.corrected:
                found = self._corrected(seen, found, truth[:, frame], weight, step)
            kept.append(found)
        return step.graded

    def _prompted(
        self, maps: Maps, truth: Tensor, areas: Tensor, weight: Tensor, step: Step
    ) -> Kept:
        """The first frame: masks for the objects of the first clips, points or boxes for others."""
        count = len(truth)
        given = int(MASK_SHARE * count / self.objects) * self.objects
        rest = slice(given, count)
        parts = []
        if given:
            own = maps.rows(slice(0, given))
            parts.append(self._from_mask(own, truth[:given], weight[:given], step))
        prompt = self._first_prompt(areas[rest], step.generator)
        wanted = (truth[rest], weight[rest])
        parts.append(self._from_points(maps.rows(rest), wanted, prompt, None, step))
        logits, score, pointer = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return self._keep(maps, logits, score, pointer, prompted=True)

    def _first_prompt(
        self, areas: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A click or a box for each object: points (N, 2, 2), labels (N, 2), allowed masks."""
        count, device = len(areas), areas.device
        boxed = torch.rand(count, generator=generator, device=device) < BOX_SHARE
        one = click(areas > 0.5, generator, thick=0.5)
        clicked = torch.stack([one, torch.zeros_like(one)], 1)
        corners = loose_boxes(areas, generator, looseness=0.08)
        points = torch.where(boxed[:, None, None], corners, clicked)
        labels = torch.where(
            boxed[:, None],
            torch.tensor([2, 3], device=device),
            torch.tensor([1, PADDING], device=device),
        )
        return points, labels, _allowed(boxed)

    def _from_mask(
        self, maps: Maps, truth: Tensor, weight: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As part ``mask_prompt``: logits, score and pointer of masks that are given."""
        tracker = self.tracker
        side = tracker.memory_encoder.sizes["memory"]
        whole = truth[:, None]
        mask = F.interpolate(whole, size=(side, side), mode="bilinear")
        cells = maps.features.flatten(2).transpose(1, 2)
        there = torch.ones(len(truth), dtype=torch.bool, device=truth.device)
        cells = cells + tracker.mask_input(tracker.mask_downsample(mask), there)
        prompts = tracker.not_a_point.weight.expand(len(truth), EMPTY_POINTS, -1)
        decoded = tracker.decoder(prompts, cells, maps.high_res_0, maps.high_res_1)
        masks = draw(tracker.decoder.brushes(decoded.tokens), decoded.canvas)
        answer = Answer(masks.float(), decoded.ious.float(), decoded.object_score.float())
        allowed = _allowed(torch.ones_like(there))
        self._grade("mask", answer, truth, allowed, weight, step)
        pointer = tracker.pointer(decoded.tokens[:, :1], answer.score > 0).squeeze(1)
        logits = torch.where(whole > 0.5, FAR, -FAR)
        small = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", antialias=True)
        return small, torch.full_like(answer.score, 10.0), pointer.float()

    def _from_points(
        self,
        maps: Maps,
        wanted: tuple[Tensor, Tensor],
        prompt: tuple[Tensor, Tensor, Tensor],
        earlier: Tensor | None,
        step: Step,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As part ``point_decoder``, answer after answer: logits, score and pointer of the last."""
        truth, weight = wanted
        points, labels, allowed = prompt
        first, script = earlier is None, step.script
        name = "click" if first else "correction"
        corrections = script.first_corrections if first else script.later_corrections
        for number in range(corrections + 1):
            answer, tokens = self._decode_points(maps, points, labels, earlier)
            self._grade(f"{name}_{number}", answer, truth, allowed, weight, step)
            chosen = answer.ious.masked_fill(~allowed, -1.0).argmax(1)
            rows = torch.arange(len(chosen), device=chosen.device)
            logits = answer.masks[rows, chosen][:, None]
            if number == corrections:
                break
            earlier = logits.detach().clamp(-FED, FED)
            point, label = correction(earlier, truth, step.generator)
            points = torch.cat([points, point[:, None]], 1)
            labels = torch.cat([labels, label[:, None]], 1)
            allowed = _allowed(torch.ones_like(allowed[:, 0]))
        present = answer.score > 0
        pointer = self.tracker.pointer(tokens[rows, chosen][:, None], present).squeeze(1)
        logits = torch.where(present[..., None, None], logits, NO_OBJECT)
        return logits, answer.score, pointer.float()

    def _decode_points(
        self, maps: Maps, points: Tensor, labels: Tensor, earlier: Tensor | None
    ) -> tuple[Answer, Tensor]:
        tracker = self.tracker
        cells = maps.features.flatten(2).transpose(1, 2) + tracker.model.no_memory_embedding
        has_mask = torch.full((len(points),), earlier is not None, device=points.device)
        if earlier is None:
            earlier = torch.zeros_like(maps.high_res_0[:, :1])
        cells = cells + tracker.mask_input(earlier, has_mask)
        prompts, counts = tracker.points(points, labels)
        decoder = tracker.decoder
        own = FIXED_TOKENS + decoder.mask_tokens.num_embeddings
        bias = hiding(counts, own)
        decoded = decoder(prompts, cells, maps.high_res_0, maps.high_res_1, bias)
        masks = draw(decoder.brushes(decoded.tokens), decoded.canvas)
        answer = Answer(masks.float(), decoded.ious.float(), decoded.object_score.float())
        return answer, decoded.tokens

    def _tracked(
        self, maps: Maps, kept: list[Kept], truth: Tensor, weight: Tensor, step: Step
    ) -> Kept:
        """As parts ``memory_attention`` and ``tracking_decoder``."""
        tracker, count = self.tracker, len(truth)
        conditioned = tracker.memory_attention(maps.features, *_look_back(kept, step.script))
        cells = conditioned.flatten(2).transpose(1, 2) + tracker.no_mask.weight
        prompts = tracker.not_a_point.weight.expand(count, EMPTY_POINTS, -1)
        decoded = tracker.decoder(prompts, cells, maps.high_res_0, maps.high_res_1)
        masks = draw(tracker.decoder.brushes(decoded.tokens), decoded.canvas)
        answer = Answer(masks.float(), decoded.ious.float(), decoded.object_score.float())
        allowed = ~_allowed(torch.ones(count, dtype=torch.bool, device=truth.device))
        self._grade("tracked", answer, truth, allowed, weight, step)
        best = 1 + answer.ious[:, 1:].argmax(1)
        rows = torch.arange(count, device=best.device)
        present = answer.score > 0
        pointer = tracker.pointer(decoded.tokens[rows, best][:, None], present).squeeze(1).float()
        logits = torch.where(present[..., None, None], answer.masks[rows, best][:, None], NO_OBJECT)
        return self._keep(maps, logits, answer.score, pointer, prompted=False)

    def _corrected(
        self, maps: Maps, found: Kept, truth: Tensor, weight: Tensor, step: Step
    ) -> Kept:
        """Clicks where the tracked mask is wrong; the frame is one of prompts from then on."""
        earlier = found.logits.detach().clamp(-FED, FED)
        point, label = correction(earlier, truth, step.generator)
        single = torch.zeros(len(point), dtype=torch.bool, device=point.device)
        prompt = (point[:, None], label[:, None], _allowed(single))
        logits, score, pointer = self._from_points(maps, (truth, weight), prompt, earlier, step)
        return self._keep(maps, logits, score, pointer, prompted=True)

    def _keep(
        self, maps: Maps, logits: Tensor, score: Tensor, pointer: Tensor, *, prompted: bool
    ) -> Kept:
        """As part ``memory_encoder``; objects of a clip that are prompted share no pixel."""
        encoder = self.tracker.memory_encoder
        sizes = encoder.sizes
        mask = F.interpolate(logits, size=(sizes["image"],) * 2, mode="bilinear")
        if prompted:
            clips = mask.unflatten(0, (-1, self.objects))
            highest = clips == clips.amax(1, keepdim=True)
            share = ((clips > 0) & highest).flatten(0, 1).float()
        else:
            share = mask.sigmoid()
        share = share * encoder.scale + encoder.bias
        share = F.interpolate(share, size=(sizes["memory"],) * 2, mode="bilinear")
        features = encoder.feature_projection(maps.features) + encoder.mask_downsampler(share)
        memory = encoder.projection(encoder.memory_fuser(features)).flatten(2).transpose(1, 2)
        absent = (score <= 0)[..., None]
        memory = memory.float() + torch.where(absent, encoder.occluded, 0.0)
        return Kept(logits=logits, score=score, pointer=pointer, memory=memory, prompted=prompted)

    @staticmethod
    def _grade(
        name: str, answer: Answer, truth: Tensor, allowed: Tensor, weight: Tensor, step: Step
    ) -> None:
        with torch.autocast(truth.device.type, enabled=False):
            losses, iou = answer_losses(answer, truth, allowed, weight)
        step.graded.add(name, losses, iou, weight * truth.flatten(1).amax(1))


def _allowed(single: Tensor) -> Tensor:
    """(N, 4), the first mask where ``single``, else the other three."""
    others = ~single[:, None].expand(-1, 3)
    return torch.cat([single[:, None], others], 1)


@torch.no_grad()
def chosen_objects(
    instances: Tensor, objects: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose objects that are clear on the first frame, rather those that are hidden later.

    Args:
        instances: (B, T, H, W) uint8.
        objects: O, of each clip.
        generator: Of its device.

    Returns:
        Masks (B * O, T, H, W), 0 or 1; weights (B * O,), 0 where a clip has fewer objects; ground
        of the first frame, (B * O, H, W).
    """
    frames = instances.shape[1]
    areas = torch.stack(
        [(instances == index + 1).sum((2, 3)) for index in range(MOST_INSTANCES)], 2
    )  # [B, T, S]
    clear = areas[:, 0] >= CLEARLY
    hidden = (areas < LEAST_PIXELS).any(1)
    draws = torch.rand(clear.shape, generator=generator, device=instances.device)
    rank = draws + 1.0 * hidden + 2.0 * clear
    index = rank.topk(objects, 1).indices  # [B, O]
    weight = clear.gather(1, index).float().flatten()
    numbers = (index + 1).to(torch.uint8)[:, :, None, None, None]
    seen = areas.gather(2, index[:, None].expand(-1, frames, -1)) >= LEAST_PIXELS  # [B, T, O]
    masks = (instances[:, None] == numbers) & seen.transpose(1, 2)[..., None, None]
    ground = (instances[:, 0] == 0).float().repeat_interleave(objects, 0)
    return masks.flatten(0, 1).float(), weight, ground


def _some_absent(
    truth: Tensor, weight: Tensor, batch: int, alone: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """On single pictures some prompts ask where nothing is; the answer is: nothing.

    Those of the first clips are masks, which are never of nothing.
    """
    if not alone:
        return truth, weight
    count = len(truth)
    objects = count // batch
    draws = torch.rand(count, generator=generator, device=truth.device)
    given = int(MASK_SHARE * count / objects) * objects
    absent = (draws < ABSENT_SHARE) | (weight == 0)
    absent[:given] = False
    truth = torch.where(absent[:, None, None], 0.0, truth)
    return truth, torch.where(absent, 1.0, weight)


def _look_back(kept: list[Kept], script: Script) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memories, offsets, pointers and their times of the frame behind those that are kept."""
    now, count = len(kept), len(kept[0].pointer)
    device = kept[0].pointer.device
    prompted = [frame for frame, one in enumerate(kept) if one.prompted]
    ordinary = [frame for frame in range(now) if frame not in prompted]
    near = [frame for frame in ordinary if now - frame <= MEMORIES]
    near = [frame for frame in near if (now, frame) not in script.forgotten]
    memories = [(0, frame) for frame in prompted] + [(now - frame, frame) for frame in near]
    pointers = prompted + ordinary[::-1]
    offsets = torch.tensor([offset for offset, _ in memories], device=device)
    times = torch.tensor(
        [script.stride * (now - frame) / POINTER_SPAN for frame in pointers], device=device
    )
    return (
        torch.stack([kept[frame].memory for _, frame in memories], 1),
        offsets.expand(count, -1),
        torch.stack([kept[frame].pointer for frame in pointers], 1),
        times.expand(count, -1),
    )
