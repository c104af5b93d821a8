"""A part and its exported program are the same, at every size, before and after the disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samforge.core.errors import ExportError, OutputError
from samforge.core.session import PartSpec, TensorSpec
from samforge.measure.fidelity import compare_outputs
from samforge.models.part import Part
from samforge.models.sam3.parts import PARTS
from samforge.transform.export import (
    TRACED_SIZES,
    exported_from_file,
    exported_from_part,
    run_exported,
    save_exported,
)

Make = Callable[..., Any]
SIZES = ((1, 1), (1, 2), (3, 2), (2, 4))


@pytest.fixture(scope="module")
def reloaded(exported_file: Make) -> Make:
    """A part's program, read back from its file when it is first asked for."""
    return lru_cache(lambda name: exported_from_file(exported_file(name)))


@pytest.mark.parametrize(("batch", "prompts"), SIZES)
@pytest.mark.parametrize("name", PARTS)
def test_exported_equals_eager(
    part: Make, example: Make, reloaded: Make, name: str, batch: int, prompts: int
) -> None:
    sizes = {"batch": batch, "prompts": prompts, "boxes": batch}
    inputs = example(name, sizes, seed=batch + 10 * prompts)
    eager = part(name)(inputs)
    exported = run_exported(reloaded(name), part(name).spec, inputs)
    for tensor in part(name).spec.outputs:
        shape = tuple(sizes[a] if isinstance(a, str) else a for a in tensor.shape)
        assert exported[tensor.name].shape == shape
        assert str(exported[tensor.name].dtype) == f"torch.{tensor.dtype}"
    figures = compare_outputs(
        {key: value.numpy() for key, value in eager.items()},
        {key: value.numpy() for key, value in exported.items()},
    )
    assert [figure.max_abs for figure in figures] == [0.0] * len(figures)


@pytest.mark.parametrize("name", PARTS)
def test_axes_reach_down_to_one_and_have_no_end(part: Make, reloaded: Make, name: str) -> None:
    program = reloaded(name)
    axes: dict[str, set[str]] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for spec, key in zip(part(name).spec.inputs, program.graph_signature.user_inputs, strict=True):
        for wanted, found in zip(spec.shape, nodes[key].meta["val"].shape, strict=True):
            if isinstance(wanted, int):
                assert found == wanted
            else:
                axes.setdefault(wanted, set()).add(str(found))
    # One symbol for each name, another for another.
    assert all(len(symbols) == 1 for symbols in axes.values())
    symbols = [symbol for group in axes.values() for symbol in group]
    assert len(set(symbols)) == len(axes)
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    for symbol in symbols:
        assert ranges[symbol].lower == 1
        assert str(ranges[symbol].upper) == "int_oo"


@pytest.mark.parametrize("name", PARTS)
def test_no_file_tells_about_this_machine(exported_file: Make, name: str) -> None:
    places = {str(Path(__file__).parents[2]), str(Path.home()), str(exported_file(name).parent)}
    places |= {str(Path(torch.__file__).parents[1]), "site-packages", ".py"}
    with zipfile.ZipFile(exported_file(name)) as archive:
        for member in archive.namelist():
            if "/data/weights/" in member:  # four random bytes may well spell .py
                continue
            content = archive.read(member)
            assert [place for place in places if place.encode() in content] == [], member


def test_example_inputs_are_not_stored(example: Make, exported_file: Make, reloaded: Make) -> None:
    assert reloaded("vision").example_inputs is None
    inputs = example("vision", TRACED_SIZES)
    with zipfile.ZipFile(exported_file("vision")) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        content = b"".join(archive.read(member) for member in sizes)
    assert [size for member, size in sizes.items() if "sample_inputs" in member] == [0]
    assert inputs["images"].numpy().tobytes()[:64] not in content


def test_module_names_stay_for_reports(reloaded: Make) -> None:
    stacks = [node.meta.get("nn_module_stack") for node in reloaded("grounding").graph.nodes]
    paths = {path for stack in stacks if stack for path, _ in stack.values()}
    assert {"vision", "text", "detector"} <= paths


class Halves(nn.Module):
    """Takes its even and odd rows apart, so it wants an even number of them."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.view(rows.shape[0] // 2, 2, 4).sum(1)


class Constant(nn.Module):
    """Knows only the batch it was traced with."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + torch.ones(2, 4) if rows.shape[0] == 2 else rows


@pytest.mark.parametrize("module", [Halves(), Constant()], ids=["halves", "constant"])
def test_an_axis_that_became_special_is_an_error(module: nn.Module) -> None:
    spec = PartSpec(
        name="odd",
        inputs=(TensorSpec(name="rows", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="sums", dtype="float32", shape=("batch", 4)),),
    )
    odd = Part(spec=spec, module=module.eval(), axis_limits={"batch": (1, None)})
    with pytest.raises(ExportError, match="odd cannot be exported: "):
        exported_from_part(odd, {"rows": torch.zeros(2, 4)})


def test_a_damaged_file_is_an_error(exported_file: Make, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt2"
    path.write_bytes(exported_file("text").read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"cut\.pt2 cannot be read by torch"):
        exported_from_file(path)


def test_a_folder_that_is_not_there_is_an_error(reloaded: Make, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        save_exported(reloaded("text"), tmp_path / "nowhere" / "text.pt2")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error(reloaded: Make, tmp_path: Path) -> None:
    path = tmp_path / "text.pt2"
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space is left to write"):
        save_exported(reloaded("text"), path)
