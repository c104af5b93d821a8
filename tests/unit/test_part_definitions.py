"""Definitions of parts: what they say, the examples they draw, and that nobody else spells them."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import samforge
from samforge.core.axes import AXES, ONE_OF_EACH, TRACED_SIZES, axes_of
from samforge.core.capabilities import (
    BOXES,
    CAPABILITIES,
    DETECTORS,
    IMAGE_ENCODERS,
    TEXT,
    TRACK,
    TRACKER_PARTS,
)
from samforge.core.errors import SettingError
from samforge.core.session import TensorSpec
from samforge.models import tiny
from samforge.models.drawing import TokenIds, normal, token_rows
from samforge.models.families import DEFINITIONS, FAMILIES, family_of, part_definition
from samforge.models.family import Model
from samforge.models.loading import model_from_name
from samforge.models.part import Input, example_inputs
from samforge.models.sam3.parts import DEFAULT_PARTS, PARTS
from samforge.models.sam3.parts import DEFINITIONS as OF_SAM3

SOURCE = Path(samforge.__file__).parent
EXAMPLES = {
    "meta vision": ("f39fbd2e09d4", "5cbf6f816382"),
    "meta text": ("2691ffd8618a", "5c8cb9633cad"),
    "meta detector": ("44797cce8f93", "5df2c58db47b"),
    "meta detector_boxes": ("067781524eb7", "6ac9da316ec0"),
    "meta grounding": ("f0936549833f", "9d8634f74411"),
    "transformers vision": ("f39fbd2e09d4", "5cbf6f816382"),
    "transformers text": ("2691ffd8618a", "5c8cb9633cad"),
    "transformers detector": ("ea1d5bb2aa70", "a263a792f57d"),
    "transformers detector_boxes": ("067781524eb7", "6ac9da316ec0"),
    "transformers grounding": ("f0936549833f", "9d8634f74411"),
}
"""Of the tiny model, by reference and part: at the sizes of a trace from seed 0, and one of each
from seed 7. Samples, and so the figures of every build, follow from them."""
NAMING = ("core/axes.py", "core/capabilities.py", "models/")
"""Where parts and axes have their names: the tables, and the families' own files."""
OF_OTHERS = (
    *("apps/serve/", "serving/asking.py", "formats/label_", "formats/tensors.py", "labelling/"),
    *("rasters/",),
    *("apps/cli/label_output.py", "apps/cli/raster.py", "apps/cli/tracking_tables.py"),
    *("measure/proof_tracks.py", "measure/video_accuracy.py"),
)
"""Fields of protocols and files, headings of tables: words that are also names of axes or parts."""
OTHER_THINGS = {
    'refuse_nan("boxes", ': "boxes that were found",
    'Recipe(model="tiny")': "the model that a demonstration builds",
    'getattr(model, "backbone"': "an attribute of SAM 3D Body's model",
    '("text", None if text is None': "a heading of samforge inspect",
    'CASE = ("bundle", "batch", "phrases")': "columns of a table",
    '"prompts", "presence_shift"': "a sum over prompts",
    '"prompts", _reading(': "a sum over prompts",
    'one["prompts"]': "a sum over prompts",
    'tag("text", ': "an element of SVG",
    '"memories", 2), ("pointers", 2)': "limits of a video's rules",
    '"objects", "present"': "figures that say what gates rest on",
    '"reference_objects", "objects"': "a sum over objects",
    'one["reference_objects"] + one["objects"]': "a sum over objects",
    '"objects": 60, ': "the least evidence",
    'for name in ("images", "objects")': "figures that say what gates rest on",
    '"objects": "objects that fp32 finds"': "a figure in words",
    'uses.append(("text", ': "an entry of a manifest",
    '"objects": result.ids': "objects that were followed",
    '"objects": len(self.objects)': "objects that were measured",
    '"text": self.named': "how objects were asked for",
    'for name in ("memory", "pointers")': "tensors that are emptied",
    '"objects": [': "objects of a frame, in a file",
    '"objects": {': "objects of a session, in a file",
    'head["objects"]': "objects of a session, in a file",
    'table["objects"]': "objects of a session, in a file",
    '"point_labels": labels': "a tensor that is called like its axis",
    '"points": points[None]': "a tensor that is called like its axis",
    '"pointers": np.stack': "a tensor that is called like its axis",
}
"""Lines with the same words for something else."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:12]


@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_examples_are_what_they_were(reference: str) -> None:
    model = model_from_name("tiny", reference=reference)
    for name in PARTS:
        found = (
            digest(model.inputs(name, TRACED_SIZES, 0)),
            digest(model.inputs(name, ONE_OF_EACH, 7)),
        )
        assert found == EXAMPLES[f"{reference} {name}"], name


@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_definitions_say_what_specs_say(reference: str) -> None:
    model = model_from_name("tiny", reference=reference)
    assert model.part_names == PARTS
    assert model.default_parts == DEFAULT_PARTS
    check_definitions(model, PARTS)


@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_so_do_those_of_the_tracker(reference: str) -> None:
    model = model_from_name("facebook/sam3", reference=reference, random_weights=True, tracker=True)
    assert model.part_names == (*PARTS, *TRACKER_PARTS)
    assert model.default_parts == (*DEFAULT_PARTS, *TRACKER_PARTS)
    assert TRACK.parts[3:] == TRACKER_PARTS
    check_definitions(model, ("vision", *TRACKER_PARTS), drawn=False)
    check_definitions(model, ("point_decoder",))


def test_inputs_are_named_like_the_modules_arguments() -> None:
    """Calibration feeds programs by these names, and programs have those of the arguments."""
    model = model_from_name("tiny", tracker=True)
    for name in (*DEFAULT_PARTS, *TRACKER_PARTS):
        arguments = inspect.signature(model.part(name).module.forward).parameters
        assert list(arguments) == [one.name for one in model.spec(name).inputs], name


def check_definitions(model: Model, names: Iterable[str], *, drawn: bool = True) -> None:
    for name in names:
        definition = OF_SAM3[name]
        spec = model.spec(name)
        assert spec.name == definition.name == name
        assert axes_of(spec) == definition.axes
        assert definition.limits() == {axis.name: (1, axis.most) for axis in axes_of(spec)}
        used = {axis for one in spec.outputs for axis in one.shape if isinstance(axis, str)}
        assert used <= {axis.name for axis in definition.axes}
        if not drawn:
            continue
        inputs = model.inputs(name, ONE_OF_EACH, 0)
        assert list(inputs) == [one.name for one in spec.inputs]
        for one in spec.inputs:
            assert str(inputs[one.name].dtype) == f"torch.{one.dtype}"


def test_what_fp8_leaves_in_half() -> None:
    assert [name for name, one in DEFINITIONS.items() if one.stays_half] == [
        *("text", "detector", "detector_boxes"),
        *TRACKER_PARTS,
    ]


def test_what_engines_leave_in_half() -> None:
    """Attention over memories is most of the tracker's work, and it stays half everywhere."""
    assert tuple(n for n, one in DEFINITIONS.items() if one.half_in_engines) == TRACKER_PARTS


def test_capabilities_are_those_that_parts_serve() -> None:
    assert TEXT.parts == ("vision", "text", "detector")
    assert BOXES.parts == DEFAULT_PARTS == ("vision", "text", "detector", "detector_boxes")
    assert DETECTORS == ("detector", "detector_boxes")
    for capability in CAPABILITIES:
        served = {name for name, one in DEFINITIONS.items() if one.serves is capability}
        assert served <= set(capability.parts)
        assert capability.detector in served
        assert set(TEXT.parts) <= set(capability.parts)
    every = {name for name, one in DEFINITIONS.items() if one.serves is not None}
    assert every == {part for capability in CAPABILITIES for part in capability.parts}
    for name in IMAGE_ENCODERS:
        assert [axis.name for axis in part_definition(name).axes] == ["batch"]


def test_what_is_missing_for_a_capability() -> None:
    held = ("text", "detector_boxes", "vision")
    assert TEXT.missing(held) == ("detector",)
    assert BOXES.missing(()) == BOXES.parts
    assert not BOXES.among(held)
    assert TEXT.among((*held, "detector"))


def test_families_share_no_part_and_no_name(small_folder: Path) -> None:
    assert [family.name for family in FAMILIES] == ["dinov3", "sam3"]
    assert len(DEFINITIONS) == sum(len(family.parts) for family in FAMILIES)
    claims = {
        "tiny": "sam3",
        "tiny-stressed": "sam3",
        str(small_folder): "sam3",
        "facebook/sam3": "sam3",
        "facebook/dinov3-vitl16-pretrain-lvd1689m": "dinov3",
    }
    assert {name: family_of(name).name for name in claims} == claims


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(SettingError, match=r"part is unknown: 'visoin' \(did you mean 'vision'"):
        part_definition("visoin")
    model = model_from_name("tiny")
    for asked in (model.spec, model.part, lambda name: model.inputs(name, {}, 0)):
        with pytest.raises(
            SettingError, match=r"sam3 has no part 'backbone'\. Its parts: vision, "
        ):
            asked("backbone")


def test_an_example_has_the_type_that_its_definition_declares() -> None:
    ids = TensorSpec(name="ids", dtype="int64", shape=("prompts", 6))
    sizes = {"prompts": 3}
    drawn = example_inputs(
        [Input(spec=ids, draw=token_rows)], sizes, vocabulary=9, eos_id=8, seed=3
    )["ids"]
    assert drawn.shape == (3, 6)
    assert (drawn[:, -1] == 8).all()
    with pytest.raises(SettingError, match="ids is int64, and its example is drawn as float32"):
        example_inputs([Input(spec=ids, draw=normal)], sizes)
    with pytest.raises(SettingError, match="ids has the axis 'prompts', and sizes are known of ba"):
        example_inputs([Input(spec=ids, draw=token_rows)], {"batch": 1})


def test_a_model_without_words_has_no_ids_above_zero() -> None:
    rng = np.random.default_rng(0)
    assert not token_rows(rng, (2, 5), TokenIds()).any()


def test_only_words_of_scenes_make_a_model_one_that_knows_them() -> None:
    words = {word for phrase in tiny.vocabulary() for word in phrase.split()}
    assert tiny.knows_scenes(words | {"lorry"})
    assert not tiny.knows_scenes(words - {"star"})
    assert not tiny.knows_scenes(())


def _lines(pattern: str, exempt: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(SOURCE).as_posix()}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not path.relative_to(SOURCE).as_posix().startswith(exempt)
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line) and not any(words in line for words in OTHER_THINGS)
    ]


def test_names_of_parts_and_axes_stand_in_their_tables_alone() -> None:
    """A comparison with a name is a place that a new part or axis does not reach."""
    names = "|".join(re.escape(f'"{name}"') for name in (*AXES, *DEFINITIONS))
    assert _lines(names, NAMING + OF_OTHERS) == []


def test_nobody_asks_for_a_model_by_its_name() -> None:
    """What a model was taught, its words say."""
    names = "|".join(re.escape(f'"{name}"') for name in tiny.NAMES)
    defaults = ("core/recipe.py", "pipeline.py")  # what is built where nobody names a model
    assert _lines(names, ("models/", *defaults)) == []


def test_another_family_may_not_claim_the_same_name() -> None:
    greedy = replace(FAMILIES[0], name="greedy", claims=lambda name: True)
    with pytest.raises(SettingError, match=r"tiny may be a model of sam3, greedy\. Name a folder"):
        family_of("tiny", (*FAMILIES, greedy))
    with pytest.raises(SettingError, match="tiny is no model of the known families: dinov3"):
        family_of("tiny", FAMILIES[:1])
