"""Fused programs of whole parts: equal, of the same interface, smaller, and fused only once."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from samforge.core.errors import SettingError
from samforge.core.targets import TARGET_NAMES as TARGETS
from samforge.measure.fidelity import compare_outputs
from samforge.models.part import Part, example_inputs
from samforge.models.sam3.parts import PARTS
from samforge.transform.export import (
    TRACED_SIZES,
    exported_from_file,
    exported_from_part,
    run_exported,
    save_exported,
)
from samforge.transform.fuse import FUSIONS, FusedProgram, fuse

Make = Callable[..., Any]
aten = torch.ops.aten

COMMON = {"no-ops", "static-reshapes", "attention-scale", "parallel-linears"}
FIRED = {
    # Windows are padded in the small model, as they are at 924 pixels.
    # The last two are the class token's.
    "vision": COMMON | {"constants", "duplicates", "scales"},
    "text": COMMON,
    "detector": COMMON | {"constants", "duplicates"},
    "detector_boxes": COMMON | {"constants", "duplicates"},
    "grounding": COMMON | {"constants", "duplicates"},
}
CHOSEN = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in {"detector", "grounding"} else ())
        for name in PARTS
    ],
)
"""Every part; the two that are made of others, or are another without boxes, only when asked."""
SIZES = ({"batch": 1, "prompts": 1, "boxes": 1}, {"batch": 3, "prompts": 2, "boxes": 5})


@pytest.fixture(scope="module")
def before(exported_file: Make) -> Make:
    """A part's program as it was exported."""
    return lru_cache(lambda name: exported_from_file(exported_file(name)))


@pytest.fixture(scope="module")
def after(before: Make) -> Make:
    """The same, fused for ONNX Runtime."""
    return lru_cache(lambda name: fuse(before(name), target="onnxruntime"))


@pytest.fixture(scope="module")
def reloaded(after: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The fused program, read back from its file."""
    folder = tmp_path_factory.mktemp("fused")

    @lru_cache
    def make(name: str) -> ExportedProgram:
        path = folder / f"{name}.pt2"
        save_exported(after(name).program, path)
        return exported_from_file(path)

    return make


def operators(program: ExportedProgram) -> Counter[Any]:
    return Counter(node.target for node in program.graph.nodes if node.op == "call_function")


def difference(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Largest difference, relative where values are above 1."""
    figures = compare_outputs(
        {name: tensor.numpy() for name, tensor in wanted.items()},
        {name: tensor.numpy() for name, tensor in found.items()},
    )
    return max(figure.max_abs / max(1.0, figure.scale) for figure in figures)


@CHOSEN
def test_a_fused_part_is_equal_at_every_size(
    part: Make, example: Make, before: Make, reloaded: Make, name: str
) -> None:
    for seed, sizes in enumerate(SIZES):
        inputs = example(name, sizes, seed=seed)
        wanted = run_exported(before(name), part(name).spec, inputs)
        found = run_exported(reloaded(name), part(name).spec, inputs)
        assert difference(wanted, found) <= 1e-5


@CHOSEN
def test_what_fires_in_which_part(before: Make, after: Make, name: str) -> None:
    results = {result.name: result for result in after(name).results}
    assert {key for key, result in results.items() if result.fired} == FIRED[name]
    had, has = operators(before(name)), operators(after(name).program)
    assert not has[aten.dropout.default]
    assert not has[aten._assert_tensor_metadata.default]
    assert has[aten.linear.default] < had[aten.linear.default]
    assert has[aten.split_with_sizes.default] == results["parallel-linears"].fired
    del has[operator.getitem], had[operator.getitem]  # the pieces of a split, for free
    assert sum(has.values()) < sum(had.values())


def test_padded_windows_are_left(after: Make) -> None:
    left = {result.name: result.left for result in after("vision").results if result.left}
    reason = "windows are padded (8 to 9 and 8 to 9 tokens), and padding has to be zero again"
    assert left == {"window-order": (f"layers.0: {reason} in each layer",)}


@CHOSEN
def test_the_interface_stays(before: Make, reloaded: Make, name: str) -> None:
    old, new = before(name), reloaded(name)
    assert new.graph_signature.user_inputs == old.graph_signature.user_inputs
    assert new.graph_signature.user_outputs == old.graph_signature.user_outputs
    assert new.range_constraints == old.range_constraints
    assert all(limits.lower == 1 for limits in new.range_constraints.values())
    values = [{node.name: node.meta.get("val") for node in p.graph.nodes} for p in (old, new)]
    for key in (*old.graph_signature.user_inputs, *old.graph_signature.user_outputs):
        was, now = (value[key] for value in values)
        assert str(was.shape) == str(now.shape)
        assert was.dtype == now.dtype


@CHOSEN
def test_fusing_again_does_nothing(reloaded: Make, name: str) -> None:
    again = fuse(reloaded(name), target="onnxruntime")
    assert [result.fired for result in again.results] == [0] * len(again.results)
    assert operators(again.program) == operators(reloaded(name))


@CHOSEN
def test_layers_can_be_named(before: Make, after: Make, name: str) -> None:
    program = after(name).program
    for node in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        paths = [path for path, _ in node.meta["nn_module_stack"].values()]
        weight = node.args[1].name
        assert paths
        assert node.meta["val"].dtype == torch.float32
        if weight.endswith("_proj_weight"):
            assert weight == "p_" + f"{paths[-1]}.weight".replace(".", "_")


def test_merged_layers_have_the_path_of_their_weight(after: Make) -> None:
    nodes = after("vision").program.graph.find_nodes(
        op="call_function", target=aten.split_with_sizes.default
    )
    paths = [list(node.meta["nn_module_stack"].values())[-1][0] for node in nodes]
    assert paths == ["layers.0.attention.qkv_proj", "layers.1.attention.qkv_proj"]
    state = after("vision").program.state_dict
    assert {f"{path}.weight" for path in paths} <= set(state)
    assert not [name for name in state if name.endswith("q_proj.weight")]


@CHOSEN
def test_no_weight_is_stored_twice(before: Make, after: Make, name: str) -> None:
    def held(program: ExportedProgram) -> int:
        return sum(t.nbytes for t in (*program.state_dict.values(), *program.constants.values()))

    tables = sum(t.nbytes for t in after(name).program.constants.values())
    assert held(after(name).program) <= held(before(name)) + tables
    placeholders = {spec.target for spec in after(name).program.graph_signature.input_specs}
    assert set(after(name).program.state_dict) <= placeholders


def test_the_given_program_stays_as_it_was(before: Make, example: Make, part: Make) -> None:
    program = before("text")
    names, nodes = list(program.state_dict), len(program.graph.nodes)
    inputs = example("text", {"prompts": 2})
    wanted = run_exported(program, part("text").spec, inputs)
    shared = fuse(program, target="torch").program.state_dict
    assert list(program.state_dict) == names
    assert len(program.graph.nodes) == nodes
    found = run_exported(program, part("text").spec, inputs)
    assert difference(wanted, found) == 0
    untouched = program.state_dict["token_embedding.weight"]
    assert shared["token_embedding.weight"] is untouched


def test_a_consumed_program_frees_what_was_replaced(
    exported_file: Make, example: Make, part: Make
) -> None:
    program = exported_from_file(exported_file("text"))
    inputs = example("text", {"prompts": 2})
    wanted = run_exported(program, part("text").spec, inputs)
    replaced = [t for name, t in program.state_dict.items() if "q_proj" in name or "k_proj" in name]
    kept = program.state_dict["token_embedding.weight"]
    assert all(tensor.numel() for tensor in replaced)
    result = fuse(program, target="torch", consume=True)
    assert len(replaced) == 8
    assert all(tensor.numel() == 0 for tensor in replaced)
    assert kept.numel() > 0
    assert difference(wanted, run_exported(result.program, part("text").spec, inputs)) <= 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_gets_the_fusions_that_say_so(before: Make, target: str) -> None:
    result = fuse(before("text"), target=target)
    wanted = [fusion.name for fusion in FUSIONS if target in fusion.targets]
    assert [one.name for one in result.results] == wanted
    explicit = target not in {"inductor", "torch"}
    assert ("attention-scale" in wanted) == explicit
    scales = {
        node.kwargs["scale"]
        for node in result.program.graph.find_nodes(
            op="call_function", target=aten.scaled_dot_product_attention.default
        )
    }
    assert scales == ({1.0} if explicit else {12**-0.5})


def test_an_unknown_target_is_an_error(before: Make) -> None:
    with pytest.raises(SettingError) as raised:
        fuse(before("text"), target="onnx")
    assert str(raised.value) == (
        "target is unknown: 'onnx'; allowed are inductor, onnxruntime, onnxruntime-cuda, "
        "openvino, tensorrt, tensorrt-rtx, torch."
    )


def test_rows_of_the_report(after: Make) -> None:
    rows = after("vision").rows()
    assert [row["fusion"] for row in rows] == [fusion.name for fusion in FUSIONS]
    row = next(row for row in rows if row["fusion"] == "parallel-linears")
    assert row == {"fusion": "parallel-linears", "fired": 2, "exact": False, "left": []}
    assert not after("vision").exact
    assert FusedProgram(program=after("vision").program, results=()).exact


# --- the order of tokens --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windowed(small_config: Make) -> tuple[Part, ExportedProgram]:
    """A small vision part whose windows are not padded: layers w w g, as in facebook/sam3."""
    from transformers.models.sam3.modeling_sam3 import Sam3VisionModel

    from samforge.models.sam3.checkpoint import with_image_size
    from samforge.models.sam3.parts import part_inputs, part_spec
    from samforge.models.sam3.vision import Vision

    config = with_image_size(small_config(84), 84)
    vit = config.vision_config.backbone_config
    vit.num_hidden_layers, vit.global_attn_indexes = 3, [2]
    torch.manual_seed(0)
    encoder = Sam3VisionModel(config.vision_config)
    module = Vision(encoder, config).eval().requires_grad_(False)
    spec = part_spec(config, "vision", "transformers")
    drawn = part_inputs(config, "vision", "transformers")
    part = Part(spec=spec, inputs=drawn, module=module, axis_limits={"batch": (1, None)})
    inputs = example_inputs(part.inputs, TRACED_SIZES, vocabulary=300, eos_id=299)
    return part, exported_from_part(part, inputs)


def test_windows_are_made_once_between_global_layers(
    windowed: tuple[Part, ExportedProgram],
) -> None:
    part, program = windowed
    results = fuse(program, target="inductor")
    fired = {result.name: result.fired for result in results.results}
    # Two windowed layers had two reorderings each; two are left.
    assert fired["window-order"] == 2
    permutes = [operators(p)[aten.permute.default] for p in (program, results.program)]
    assert permutes[0] - permutes[1] == 2 + 2  # two more in position embeddings, now constants
    for batch in (1, 3):
        inputs = example_inputs(part.inputs, {"batch": batch}, vocabulary=300, eos_id=299)
        wanted = run_exported(program, part.spec, inputs)
        assert difference(wanted, run_exported(results.program, part.spec, inputs)) <= 1e-5


def test_window_order_alone_is_exact(windowed: tuple[Part, ExportedProgram]) -> None:
    from samforge.transform.fuse.editor import GraphEditor

    part, program = windowed
    editor = GraphEditor(program)
    for fusion in FUSIONS:
        if fusion.exact:
            fusion.apply(editor)
    exact = editor.program()
    assert operators(exact)[aten.permute.default] < operators(program)[aten.permute.default]
    for batch in (1, 2, 3):
        inputs = example_inputs(
            part.inputs, {"batch": batch}, vocabulary=300, eos_id=299, seed=batch
        )
        wanted = run_exported(program, part.spec, inputs)
        assert difference(wanted, run_exported(exact, part.spec, inputs)) == 0


def test_fused_onnx(windowed: tuple[Part, ExportedProgram], tmp_path: Path) -> None:
    from samforge.backends.onnxruntime import BACKEND
    from samforge.transform.onnx.convert import onnx_from_exported, save_onnx
    from samforge.transform.onnx.operators import operator_counts

    part, program = windowed
    model = onnx_from_exported(fuse(program, target="onnxruntime").program, part.spec)
    found = operator_counts(model)
    assert not found["Shape"]
    assert found["MatMul"] == 3 * 6  # qkv, two of attention, o, fc1, fc2
    assert found["Split"] == 3
    assert found["Softmax"] == 3
    save_onnx(model, tmp_path / "vision.onnx")
    session = BACKEND.session_from_artifact(tmp_path / "vision.onnx", part.spec)
    for batch in (1, 3):
        inputs = example_inputs(part.inputs, {"batch": batch}, vocabulary=300, eos_id=299)
        wanted = run_exported(program, part.spec, inputs)
        results = session.run({name: tensor.numpy() for name, tensor in inputs.items()})
        found_tensors = {name: torch.from_numpy(array) for name, array in results.items()}
        assert difference(wanted, found_tensors) <= 1e-4
    session.close()


@pytest.mark.slow
def test_tiny_vision(part: Make, example: Make) -> None:
    own = part("vision", "tiny")
    program = exported_from_part(own, example("vision", TRACED_SIZES, model="tiny"))
    result = fuse(program, target="inductor")
    fired = {one.name: one.fired for one in result.results}
    assert fired["window-order"] == 6  # of 10: w w w g w w g
    assert fired["parallel-linears"] == 7
    assert [one.left for one in result.results if one.left] == []
    inputs = example("vision", {"batch": 1}, model="tiny", seed=1)
    wanted = run_exported(program, own.spec, inputs)
    assert difference(wanted, run_exported(result.program, own.spec, inputs)) <= 1e-5
