"""Meta's side: runs in an environment that has what Meta's code needs, and needs no samforge.

    python -m meta_comparison.meta_side JOB.json

The job says which checkout, weights, pictures and prompts; the answers go to files beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import meta_weights
from meta_comparison import stand_ins
from meta_comparison.answers import (
    Answer,
    Features,
    answer_path,
    features_path,
    packed,
    read_answer,
    thinned,
    tokens_alone,
    write,
)
from meta_comparison.on_processor import fitting

PACKAGES = ("torch", "torchvision", "timm", "numpy", "ftfy", "regex", "iopath", "pillow")
NEEDED = "torch torchvision timm einops ftfy regex iopath huggingface_hub tqdm"
PREFIX = "detector."
"""In front of every name of the image model in sam3.pt."""
RESOLUTION = 1008
CLIPPED = "clipped to a few layers"
OUTPUTS = ("pred_logits", "pred_boxes_xyxy", "presence_logit_dec", "pred_masks")
Scores = npt.NDArray[np.floating]


class Refusal(Exception):
    """Something that a person can put right; its message goes to the other side."""


def main() -> int:
    """Run the job; a :class:`Refusal` is written where the other side looks for it."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        record = run(job)
    except Refusal as refusal:
        Path(job["folder"], "refusal.txt").write_text(str(refusal), encoding="utf-8")
        return 1
    Path(job["folder"], "meta.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return 0


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build Meta's model, answer everything in every precision asked for, and say how."""
    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise Refusal(
            f"--device cuda: torch {torch.__version__} of {sys.executable} sees no GPU. "
            "Use --device cpu, or an environment with CUDA."
        )
    provided = stand_ins.provide()
    with fitting(job["device"]), torch.inference_mode():
        started = time.monotonic()
        model = built(job)
        tell(f"Meta's model is ready after {time.monotonic() - started:.0f} s")
        tokens = model.backbone.language_backbone.tokenizer(job["tokenized"], context_length=32)
        np.save(Path(job["folder"], "tokens.npy"), tokens.numpy())
        seconds = {}
        for precision in job["precisions"]:
            with computing(precision, job["device"]):
                seconds[precision] = answered(model, job, precision)
    return {
        "versions": versions(),
        "stand_ins": sorted(provided.used),
        "device": device_name(job["device"]),
        "seconds": seconds,
    }


def built(job: dict[str, Any]) -> Any:
    """Build Meta's image model with the checkpoint's weights, or with drawn ones."""
    build = imported(job, "sam3.model_builder", "build_sam3_image_model")
    try:
        model = build(
            bpe_path=job["vocabulary"],
            device=job["device"],
            checkpoint_path=job["checkpoint"],
            load_from_HF=False,
        )
    except TypeError as error:
        refuse(job, f"its builder takes other arguments: {error}", error)
    if job["checkpoint"] is None:
        if job["small"] is not None:
            clip(model, job)
        draw(model, job)
    else:
        check_loaded(model, job["checkpoint"])
    return model.to(job["device"]).eval()


def imported(job: dict[str, Any], module: str, name: str) -> Any:
    """Take a name from the checkout, not from another sam3 that is installed."""
    if job["checkout"] not in sys.path:
        sys.path.insert(0, job["checkout"])
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing.split(".", maxsplit=1)[0] == "sam3":
            refuse(job, f"it has no {missing}", error)
        raise Refusal(
            f"Meta's code needs the package '{missing}', which {sys.executable} lacks. Install "
            f"what it needs ({NEEDED}), or name an interpreter that has it with --meta-python."
        ) from error
    except (ImportError, AttributeError) as error:
        refuse(job, str(error), error)
    return found


def refuse(job: dict[str, Any], what: str, error: Exception) -> NoReturn:
    """Say that the checkout is of a commit that this tool does not know."""
    raise Refusal(
        f"The checkout {job['checkout']} ({job['commit']}) does not fit: {what}. "
        f"Check out the commit this was tried with: git checkout {job['tried']}."
    ) from error


def check_loaded(model: torch.nn.Module, checkpoint: str) -> None:
    """Meta's loader prints what it misses and goes on: refuse instead."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    stored = stored["model"] if isinstance(stored.get("model"), dict) else stored
    missing = [name for name in model.state_dict() if PREFIX + name not in stored]
    if missing:
        raise Refusal(
            f"{checkpoint} lacks {len(missing)} tensors of Meta's image model, such as "
            f"{', '.join(PREFIX + name for name in missing[:3])}. Give Meta's sam3.pt."
        )


def clip(model: Any, job: dict[str, Any]) -> None:
    """Keep a few layers of the two large encoders; the rest of the network stays whole."""
    small = job["small"]
    try:
        trunk, text = model.backbone.vision_backbone.trunk, model.backbone.language_backbone.encoder
        # The last layers up to the first global one, so that windows and global attention stay.
        last = trunk.full_attn_ids[0] + 1
        trunk.blocks = trunk.blocks[last - small["vision_layers"] : last]
        trunk.full_attn_ids = [small["vision_layers"] - 1]
        text.transformer.resblocks = text.transformer.resblocks[: small["text_layers"]]
    except (AttributeError, IndexError) as error:
        refuse(job, f"--small cannot be {CLIPPED}: {error}", error)


def draw(model: torch.nn.Module, job: dict[str, Any]) -> None:
    """Fill the model with numbers drawn from names, and write them in the layout of sam3.pt."""
    state = {}
    for name, tensor in model.state_dict().items():
        if meta_weights.COMPUTED.search(name):
            state[name] = tensor.cpu().clone()
        else:
            drawn = meta_weights.tensor(PREFIX + name, tuple(tensor.shape), job["seed"])
            state[name] = torch.from_numpy(drawn)
    model.load_state_dict(state, assign=True)  # 3.4 GiB, once
    torch.save({PREFIX + name: tensor for name, tensor in state.items()}, job["weights"])


@contextlib.contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """fp32 is fp32; bf16 is what Meta's examples run: autocast, and TF32 elsewhere on a GPU.

    Importing Meta's code switches TF32 on, so for fp32 it is switched off again. On a processor the
    decoder's feed-forward layers run in bf16 too: Meta's code exempts them on "cuda" alone.
    """
    reduced = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = reduced
    torch.backends.cudnn.allow_tf32 = reduced
    with torch.autocast(device, dtype=torch.bfloat16, enabled=reduced):
        yield


class Noted:
    """Meta's model, which keeps its last raw outputs: the processor hands out what it admits."""

    def __init__(self, model: torch.nn.Module, threshold: Callable[[Scores], float]) -> None:
        self._model = model
        self.threshold = threshold
        self.outputs: dict[str, torch.Tensor] = {}
        self.processor: Any = None
        """Gets its threshold once the scores are known, and before it compares them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward_grounding(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """Answer one prompt."""
        self.outputs = self._model.forward_grounding(**inputs)  # type: ignore[operator]
        self.processor.confidence_threshold = self.threshold(self.scores().float().cpu().numpy())
        return self.outputs

    def scores(self) -> torch.Tensor:
        """(Q,), the very numbers that the processor compares with its threshold."""
        scores = self.outputs["pred_logits"].sigmoid()
        presence = self.outputs["presence_logit_dec"].sigmoid().unsqueeze(1)
        return (scores * presence).squeeze(-1)[0]


def fixed(threshold: float) -> Callable[[Scores], float]:
    """The same threshold whatever the scores."""
    return lambda _: threshold


def widest_gap(scores: Scores) -> float:
    """A threshold for drawn weights, for which 0.5 means nothing: it admits 10 to 60 queries.

    It lies in the widest gap, so that rounding alone does not move a query over it.
    """
    ranked = np.sort(scores.astype(np.float64))[::-1][9:61]
    rank = int(np.argmax(ranked[:-1] - ranked[1:]))
    return float(np.float32((ranked[rank] + ranked[rank + 1]) / 2))


def answered(model: torch.nn.Module, job: dict[str, Any], precision: str) -> dict[str, list[float]]:
    """Answer every prompt on every picture with Meta's processor; the seconds it took."""
    folder = Path(job["folder"], f"meta-{precision}")
    first = Path(job["folder"], f"meta-{job['precisions'][0]}")
    noted = Noted(model, widest_gap)
    processor = imported(job, "sam3.model.sam3_image_processor", "Sam3Processor")(
        noted, RESOLUTION, job["device"]
    )
    noted.processor = processor
    seconds: dict[str, list[float]] = {"picture": [], "prompt": []}
    for i, picture in enumerate(job["pictures"]):
        image = Image.open(picture["file"])
        with timed(seconds["picture"], job["device"]):
            state = processor.set_image(image)
        features = features_of(state["backbone_out"]["backbone_fpn"], processor, image, job)
        write(features_path(folder, i), features)
        for j, prompt in enumerate(job["prompts"]):
            processor.reset_all_prompts(state)
            if job["threshold"] is not None:
                noted.threshold = fixed(job["threshold"])
            elif precision != job["precisions"][0]:
                noted.threshold = fixed(float(read_answer(answer_path(first, i, j)).threshold))
            with timed(seconds["prompt"], job["device"]):
                state = asked(processor, state, prompt)
            write(answer_path(folder, i, j), answer_of(noted, state, prompt, job))
        tell(
            f"Meta {precision}: picture {i + 1} of {len(job['pictures'])}, "
            f"{seconds['picture'][-1]:.1f} s, and {seconds['prompt'][-1]:.1f} s for the last prompt"
        )
    return seconds


@contextlib.contextmanager
def timed(seconds: list[float], device: str) -> Iterator[None]:
    """Note how long something took."""
    started = time.monotonic()
    yield
    if device == "cuda":
        torch.cuda.synchronize()
    seconds.append(round(time.monotonic() - started, 4))


def asked(processor: Any, state: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
    """Put one prompt as Meta's processor wants it."""
    if prompt["text"] is not None:
        state = processor.set_text_prompt(prompt["text"], state)
    for *box, label in prompt["boxes"]:
        state = processor.add_geometric_prompt(box, bool(label), state)
    return state


def features_of(
    levels: list[torch.Tensor], processor: Any, image: Image.Image, job: dict[str, Any]
) -> Features:
    """What the network was fed, and what its vision made of it."""
    to_image = importlib.import_module("torchvision.transforms.v2.functional").to_image
    normalized = processor.transform(to_image(image).to(job["device"]))
    pixels = ((normalized * 0.5 + 0.5) * 255).round().to(torch.uint8)
    cells = levels[-1].shape[-1]
    named = {
        f"fpn_{i}": thinned(level[0].float().cpu().numpy(), cells) for i, level in enumerate(levels)
    }
    return Features(pixels=pixels.permute(1, 2, 0).contiguous().cpu().numpy(), **named)


def answer_of(
    noted: Noted, state: dict[str, Any], prompt: dict[str, Any], job: dict[str, Any]
) -> Answer:
    """Everything that is compared, from the raw outputs and from what the processor admitted."""
    raw = {name: noted.outputs[name][0].float().cpu().numpy() for name in OUTPUTS}
    tokenizer = noted.backbone.language_backbone.tokenizer
    ids = tokenizer([prompt["text"] or "visual"], context_length=32)[0].numpy()
    text = state["backbone_out"]["language_features"][:, 0].float().cpu().numpy()
    ids, text = tokens_alone(ids, text, tokenizer.eot_token_id)
    logits, presence = raw["pred_logits"][:, 0], raw["presence_logit_dec"].reshape(())
    step = job["mask_step"]
    threshold = noted.processor.confidence_threshold
    admitted = torch.nonzero(noted.scores() > threshold)[:, 0].cpu().numpy()
    if len(admitted) != len(state["scores"]):
        raise Refusal(
            f"Meta's processor admits {len(state['scores'])} objects and its scores say "
            f"{len(admitted)}: this checkout ({job['commit']}) scores in another way. "
            f"Check out the commit this was tried with: git checkout {job['tried']}."
        )
    return Answer(
        threshold=np.float32(threshold),
        input_ids=ids,
        text_features=text,
        logits=logits,
        boxes=raw["pred_boxes_xyxy"],
        presence_logit=presence,
        masks=np.ascontiguousarray(raw["pred_masks"][:, ::step, ::step]),
        signs=packed(raw["pred_masks"] > 0),
        admitted=admitted,
        found_scores=state["scores"].float().cpu().numpy(),
        found_boxes=state["boxes"].float().cpu().numpy(),
        found_masks=packed(state["masks"][:, 0].cpu().numpy()),
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def device_name(device: str) -> str:
    """Where it ran, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def tell(text: str) -> None:
    """Say how far the work is; standard output is for the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
