"""Programs that the ONNX exporter is given as they are, and translations that make it possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from samforge.transform.export import exported_from_file
from samforge.transform.fuse import fuse
from samforge.transform.onnx.convert import onnx_from_exported
from samforge.transform.onnx.translations import TRANSLATIONS
from samforge.transform.onnx.untraced import untraced

aten = torch.ops.aten
unflatten: Callable[..., Tensor] = torch.unflatten


class Operators(nn.Module):
    """One of each operator that has a translation or another form here."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)

    def forward(self, images: Tensor, rows: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
        inside = (rows > 0.25) & (rows < 0.75)
        merged = (1 - rows).flatten(0, 1)
        return (
            self.up(images),
            inside.to(torch.float32),
            rows.flatten(2, 3) + 0.5,
            merged * 2,
            unflatten(images.flatten(0, 1), 0, (images.shape[0], -1)),
            grid.flatten(0, 1),
        )


NAMES = ["images", "rows", "grid"]


def inputs(batch: int, count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    shapes = ((batch, 4, 5, 7), (batch, count, 3, 2), (2, 3, batch, count))
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


@pytest.fixture(scope="module")
def module() -> Operators:
    torch.manual_seed(0)
    return Operators().eval()


@pytest.fixture(scope="module")
def program(module: Operators) -> ExportedProgram:
    batch, count = Dim("batch", min=1, max=16), Dim("count", min=1, max=16)
    shapes = ({0: batch}, {0: batch, 1: count}, {2: batch, 3: count})
    with torch.no_grad():
        return torch.export.export(module, inputs(2, 3), dynamic_shapes=shapes, strict=False)


@pytest.fixture
def never_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own decomposition is an error."""

    def traced(self: ExportedProgram, *_: object, **__: object) -> ExportedProgram:
        raise AssertionError("the program was traced again")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", traced)


def test_translations_compute_what_torch_computes(
    never_traced: None, module: Operators, program: ExportedProgram, tmp_path: Any
) -> None:
    targets = {node.target for node in program.graph.nodes}
    assert {*TRANSLATIONS} - {aten.scaled_dot_product_attention.default} <= targets
    assert aten.unflatten.int in targets
    converted = torch.onnx.export(
        untraced(program),
        dynamo=True,
        input_names=NAMES,
        optimize=False,
        verbose=False,
        custom_translation_table=dict(TRANSLATIONS),
    )
    assert converted is not None
    converted.save(tmp_path / "operators.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "operators.onnx")
    for batch, count in ((2, 3), (1, 1), (5, 4)):
        given = inputs(batch, count)
        found = session.run(
            None, {name: one.numpy() for name, one in zip(NAMES, given, strict=True)}
        )
        with torch.no_grad():
            wanted = module(*given)
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == tuple(other.shape)
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["text", "detector"])
def test_parts_are_not_traced_again(
    name: str,
    never_traced: None,
    part: Callable[..., Any],
    exported_file: Callable[[str], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fused = fuse(exported_from_file(exported_file(name)), target="onnxruntime").program
    model = onnx_from_exported(fused, part(name).spec)
    assert len(model.graph) > 10
    told = [one for one in caplog.records if one.name == "torch.onnx._internal.exporter._core"]
    assert [one.message for one in told if one.levelno >= logging.WARNING] == []


def test_what_has_to_be_decomposed_is(program: ExportedProgram) -> None:
    """An operator of the exporter's table, and one that changes its argument."""
    table = {aten.mul.Tensor: lambda first, second: aten.div.Tensor(first, 1 / second)}
    own = untraced(program)
    decomposed = own.run_decompositions(table)
    targets = {node.target for node in decomposed.graph.nodes}
    assert decomposed is not own
    assert aten.mul.Tensor not in targets
    assert aten.div.Tensor in targets
    assert own.run_decompositions({aten.relu.default: table[aten.mul.Tensor]}) is own

    class Changes(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.clone().add_(1)

    changes = untraced(torch.export.export(Changes(), (torch.rand(3),)))
    without = changes.run_decompositions({})
    assert without is not changes
    assert aten.add_.Tensor not in {node.target for node in without.graph.nodes}


def test_the_program_itself_stays(program: ExportedProgram) -> None:
    before = str(program.graph)
    own = untraced(program)
    assert str(program.graph) == before
    assert str(own.graph) != before
    assert own.state_dict.keys() == program.state_dict.keys()
    for name, tensor in own.state_dict.items():
        assert tensor is program.state_dict[name]
