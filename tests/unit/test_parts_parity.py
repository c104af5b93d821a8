"""Held to transformers, every part computes what its own ``Sam3Model`` does with the same weights.

Held to Meta's code, a phrase is what the stock model computes for one box that is padding: its
geometry encoder then gives the class token. What Meta's code itself computes stands in
``tests/golden/meta``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.models.sam3.modeling_sam3 as modeling

from samforge.measure.fidelity import compare_outputs
from samforge.models.part import example_inputs
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint

Parts = Callable[..., Any]
Tensors = dict[str, Any]

LIMIT = 1e-5
MODELS = ("small", "tiny")
SIZES = ((1, 1), (1, 2), (3, 2), (2, 4))


@pytest.fixture(autouse=True)
def stock_boxes(monkeypatch: pytest.MonkeyPatch, roi_align_by_definition: Any) -> None:
    """The one thing of torchvision that the stock model uses; it is not installed here."""
    shim = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align_by_definition))
    monkeypatch.setattr(modeling, "torchvision", shim, raising=False)


@dataclass(frozen=True)
class Subject:
    """One set of weights, in samforge's parts and in the stock model."""

    part: Parts
    example: Parts
    stock: Any
    eos_id: int


@pytest.fixture(params=MODELS)
def subject(
    request: pytest.FixtureRequest,
    part: Parts,
    example: Parts,
    stock_model: Parts,
    checkpoint: Parts,
) -> Subject:
    """``small`` or ``tiny``."""
    name = request.param
    return Subject(
        partial(part, model=name, reference="transformers"),
        partial(example, model=name, reference="transformers"),
        stock_model(name),
        checkpoint(name).eos_id,
    )


@pytest.fixture(params=SIZES, ids=lambda sizes: f"{sizes[0]}x{sizes[1]}")
def sizes(request: pytest.FixtureRequest) -> dict[str, int]:
    """Images and prompts."""
    return dict(zip(("batch", "prompts"), request.param, strict=True))


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    """Within :data:`LIMIT`: absolute, but for logits, which reach 7 (scores) and 150 (masks)."""
    figures = compare_outputs(
        {name: tensor.numpy() for name, tensor in wanted.items()},
        {name: found[name].numpy() for name in wanted},
    )
    for figure in figures:
        large = figure.tensor in {"pred_masks", "presence_logit", "pred_logits"}
        assert (figure.gated if large else figure.max_abs) <= LIMIT, figure
        assert figure.scale > 1e-2, f"{figure.tensor} is nearly zero, and all such agree"


def token_mask(input_ids: Any, eos_id: int) -> Any:
    """Tokens up to and with the first end of text."""
    before = (input_ids == eos_id).long().cumsum(1) - (input_ids == eos_id).long()
    return before == 0


def pairs(tensor: Any, batch: int, prompts: int, *, per: str) -> Any:
    """Spread what is per image or per prompt over all pairs, the prompts of an image together."""
    if per == "image":
        return tensor.repeat_interleave(prompts, 0)
    return tensor.repeat(batch, *[1] * (tensor.ndim - 1))


def stock_results(
    subject: Subject, images: Any, input_ids: Any, boxes: Any = None, labels: Any = None
) -> Tensors:
    """The stock model's answer to every pair of image and prompt, named and shaped as parts do."""
    batch, prompts = len(images), len(input_ids)
    exemplars = {}
    if boxes is not None:
        exemplars = {"input_boxes": boxes.flatten(0, 1), "input_boxes_labels": labels.flatten(0, 1)}
    mask = token_mask(input_ids, subject.eos_id)
    with torch.inference_mode():
        output = subject.stock(
            pixel_values=images.repeat_interleave(prompts, 0),
            input_ids=input_ids.repeat(batch, 1),
            attention_mask=mask.repeat(batch, 1),
            **exemplars,
        )
    return {
        "pred_logits": output.pred_logits.unflatten(0, (batch, prompts)),
        "pred_boxes": output.pred_boxes.unflatten(0, (batch, prompts)),
        "pred_masks": output.pred_masks.unflatten(0, (batch, prompts)),
        "presence_logit": output.presence_logits.view(batch, prompts),
    }


def stock_features(subject: Subject, images: Any, input_ids: Any) -> Tensors:
    """Inputs of the detector parts from the stock model itself."""
    mask = token_mask(input_ids, subject.eos_id)
    with torch.inference_mode():
        maps = subject.stock.get_vision_features(images).fpn_hidden_states[:-1]
        text = subject.stock.get_text_features(input_ids=input_ids, attention_mask=mask)
    features: Tensors = dict(zip(("fpn_0", "fpn_1", "fpn_2"), maps, strict=True))
    return features | {"text_features": text.pooler_output, "text_mask": mask}


@pytest.mark.parametrize("batch", [1, 3])
def test_vision(subject: Subject, batch: int) -> None:
    inputs = subject.example("vision", {"batch": batch})
    with torch.inference_mode():
        maps = subject.stock.get_vision_features(inputs["images"]).fpn_hidden_states[:-1]
    found = subject.part("vision")(inputs)
    assert_equal(found, dict(zip(("fpn_0", "fpn_1", "fpn_2"), maps, strict=True)))


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_text(subject: Subject, prompts: int) -> None:
    inputs = subject.example("text", {"prompts": prompts}, seed=prompts)
    found = subject.part("text")(inputs)
    mask = token_mask(inputs["input_ids"], subject.eos_id)
    assert torch.equal(found["text_mask"], mask)
    assert 0 < mask.sum() < mask.numel()
    with torch.inference_mode():
        stock = subject.stock.get_text_features(input_ids=inputs["input_ids"], attention_mask=mask)
    # What padding becomes is masked everywhere, and differs.
    assert_equal(
        {"text_features": found["text_features"][mask]},
        {"text_features": stock.pooler_output[mask]},
    )


def test_what_follows_the_end_does_not_matter(subject: Subject) -> None:
    inputs = subject.example("grounding", {"batch": 1, "prompts": 3})
    mask = token_mask(inputs["input_ids"], subject.eos_id)
    results, features = [], []
    for filler in (0, subject.eos_id, 7):
        input_ids = torch.where(mask, inputs["input_ids"], filler)
        text = subject.part("text")({"input_ids": input_ids})
        assert torch.equal(text["text_mask"], mask)
        features.append(text["text_features"][mask])
        results.append(subject.part("grounding")(inputs | {"input_ids": input_ids}))
    for other in (1, 2):
        assert (features[other] - features[0]).abs().max() <= 1e-6
        assert_equal(results[other], results[0])


def test_a_row_without_end_is_valid_to_its_end(part: Parts, checkpoint: Parts) -> None:
    input_ids = torch.arange(1, 13)[None]
    assert checkpoint("small").eos_id not in input_ids
    assert part("text")({"input_ids": input_ids})["text_mask"].all()


def test_detector(subject: Subject, sizes: dict[str, int]) -> None:
    inputs = subject.example("grounding", sizes, seed=1).values()
    found = subject.part("detector")(stock_features(subject, *inputs))
    assert_equal(found, stock_results(subject, *inputs))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_detector_boxes(subject: Subject, sizes: dict[str, int], count: int) -> None:
    sizes = sizes | {"boxes": count}
    inputs = subject.example("grounding", sizes, seed=2).values()
    exemplars = subject.example("detector_boxes", sizes, seed=count)
    boxes, labels = exemplars["boxes_cxcywh"], exemplars["box_labels"]
    # Every kind of row: like this, not like this, padded at the end, nothing but padding.
    rows = labels.view(-1, count)
    rows[-1] = 0
    if len(rows) > 3:
        rows[1] = -10
        rows[2, 1:] = -10
    found = subject.part("detector_boxes")(
        stock_features(subject, *inputs) | {"boxes_cxcywh": boxes, "box_labels": labels}
    )
    assert_equal(found, stock_results(subject, *inputs, boxes, labels))


def test_what_is_padded_does_not_matter(subject: Subject) -> None:
    inputs = subject.example("detector_boxes", {"batch": 2, "prompts": 2, "boxes": 3})
    labels = torch.tensor([1, -10, 0]).expand(2, 2, 3)
    first = subject.part("detector_boxes")(inputs | {"box_labels": labels})
    # Another box in the padded place, and that place at the end or gone.
    boxes = inputs["boxes_cxcywh"].clone()
    boxes[:, :, 1] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    for order in ([0, 2, 1], [0, 2]):
        other = {"boxes_cxcywh": boxes[:, :, order], "box_labels": labels[:, :, order]}
        assert_equal(subject.part("detector_boxes")(inputs | other), first)


def test_labels_matter(subject: Subject) -> None:
    inputs = subject.example("detector_boxes", {"batch": 1, "prompts": 1, "boxes": 1})
    like, unlike = (
        subject.part("detector_boxes")(inputs | {"box_labels": torch.full((1, 1, 1), label)})
        for label in (1, 0)
    )
    assert (like["pred_logits"] - unlike["pred_logits"]).abs().max() > 100 * LIMIT


def test_grounding(subject: Subject, sizes: dict[str, int]) -> None:
    inputs = subject.example("grounding", sizes, seed=3)
    found = subject.part("grounding")(inputs)
    assert_equal(found, stock_results(subject, *inputs.values()))


def test_prompts_and_images_do_not_mix(subject: Subject) -> None:
    inputs = subject.example("grounding", {"batch": 2, "prompts": 3})
    together = subject.part("grounding")(inputs)
    for image in range(2):
        for prompt in range(3):
            one = {
                "images": inputs["images"][image : image + 1],
                "input_ids": inputs["input_ids"][prompt : prompt + 1],
            }
            pair = {name: tensor[image, prompt][None, None] for name, tensor in together.items()}
            assert_equal(pair, subject.part("grounding")(one))


@pytest.mark.parametrize(("name", "size"), [("small", 84), ("tiny", 308), ("tiny", 112)])
def test_another_image_size(small_folder: Any, name: str, size: int) -> None:
    place = str(small_folder) if name == "small" else name
    own = checkpoint_from_name(place, reference="transformers", image_size=size)
    stock = modeling.Sam3Model(own.config).eval()
    stock.load_state_dict({key: own.source.tensor(key).float() for key in own.source.names()})
    subject = Subject(partial(part_from_checkpoint, own), example_inputs, stock, own.eos_id)
    grounding = subject.part("grounding")
    inputs = example_inputs(
        grounding.inputs,
        {"batch": 1, "prompts": 2},
        vocabulary=own.config.text_config.vocab_size,
        eos_id=own.eos_id,
    )
    assert inputs["images"].shape == (1, 3, size, size)
    found = grounding(inputs)
    assert found["pred_masks"].shape[-2:] == (size // 14 * 4, size // 14 * 4)
    assert_equal(found, stock_results(subject, *inputs.values()))


@pytest.fixture(params=MODELS)
def meta_parts(request: pytest.FixtureRequest, part: Parts, example: Parts) -> tuple[Parts, Parts]:
    """Parts of ``small`` or ``tiny`` held to Meta's code, and what makes their inputs."""
    return partial(part, model=request.param), partial(example, model=request.param)


def test_a_phrase_is_one_box_of_padding(
    meta_parts: tuple[Parts, Parts], sizes: dict[str, int]
) -> None:
    """The class token of part ``vision`` is what the geometry encoder makes of padding."""
    part, example = meta_parts
    features = part("vision")(example("vision", sizes, seed=4))
    text = part("text")(example("text", sizes, seed=5))
    found = part("detector")(features | text)
    pairs = (sizes["batch"], sizes["prompts"])
    exemplars = {
        "boxes_cxcywh": torch.full((*pairs, 1, 4), 0.5),
        "box_labels": torch.full((*pairs, 1), -10),
    }
    del features["class_token"]
    assert_equal(found, part("detector_boxes")(features | text | exemplars))


def test_the_class_token_depends_on_the_image(meta_parts: tuple[Parts, Parts]) -> None:
    part, example = meta_parts
    first, second = part("vision")(example("vision", {"batch": 2}))["class_token"]
    assert first.shape[0] == 1
    assert (first - second).abs().max() > 100 * LIMIT


def test_grounding_has_the_class_token(
    meta_parts: tuple[Parts, Parts], sizes: dict[str, int]
) -> None:
    part, example = meta_parts
    inputs = example("grounding", sizes, seed=6)
    apart = part("vision")({"images": inputs["images"]})
    apart |= part("text")({"input_ids": inputs["input_ids"]})
    assert_equal(part("grounding")(inputs), part("detector")(apart))


def test_token_zero_is_masked_at_metas(part: Parts) -> None:
    """Meta's padding is 0, and so is the exclamation mark: both are masked."""
    input_ids = torch.tensor([[298, 5, 0, 7, 299, 0, 0, 0, 0, 0, 0, 0]])
    mask = part("text")({"input_ids": input_ids})["text_mask"][0].tolist()
    assert mask == [True, True, False, True, True, *[False] * 7]
    stock = part("text", reference="transformers")({"input_ids": input_ids})["text_mask"]
    assert stock[0].tolist() == [True] * 5 + [False] * 7


def test_presence_is_clamped_by_transformers_only(part: Parts, example: Parts) -> None:
    found = {}
    for reference in ("meta", "transformers"):
        own = part("detector_boxes", reference=reference)
        head = own.module.decoder.decoder.presence_head.layer3
        before = head.bias.clone()
        head.bias += 30.0
        try:
            inputs = example("detector_boxes", {"batch": 1, "prompts": 1, "boxes": 1})
            found[reference] = own(inputs)["presence_logit"].item()
        finally:
            head.bias.copy_(before)
    assert found["transformers"] == 10.0
    assert found["meta"] > 20.0
