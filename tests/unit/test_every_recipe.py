"""What every target does in every precision, held to a table: nothing changes by accident.

SAMFORGE_WRITE_TABLE=1 pytest tests/unit/test_every_recipe.py   # after a change that is meant
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import samforge
from samforge.backends import backend_from_name, openvino
from samforge.core.errors import SettingError
from samforge.core.recipe import Recipe
from samforge.core.targets import PRECISIONS, STOPS, TARGETS, Target, stop_of
from samforge.models.loading import model_from_name
from samforge.steps import convert, flavours
from samforge.steps.context import BuildContext
from samforge.steps.options import options_of
from samforge.steps.plan import AFTER, stages, steps_of
from samforge.steps.run import Run
from samforge.transform.fuse import FUSIONS

ROOT = Path(__file__).parents[2]
SOURCE = Path(samforge.__file__).parent
TABLE = Path(__file__).with_name("every_recipe.json")
UNTIL = (None, *STOPS)
FORMS = (
    *("fuse_attention", "block_attention", "to_e4m3", "embeddings_to_int8", "cast_half"),
    *("to_openvino", "tensorrt_flavour", "to_u8s8", "weights_to_int8", "to_cuda"),
)
"""What gives a graph the number formats of a recipe."""
VERSIONS = {"python": "3.11.7", "samforge": "0", "torch": "2.13.0"}
"""Keys of steps hold versions: here always the same."""


def recipes() -> Iterator[tuple[str, Recipe]]:
    for target in TARGETS:
        for precision in PRECISIONS:
            try:
                yield f"{target} {precision}", Recipe(target=target, precision=precision)
            except SettingError:
                continue


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tells everything that a recipe decides."""
    called: list[str] = []
    for name in FORMS:
        monkeypatch.setattr(
            flavours, name, lambda model, *_, name=name: called.append(name) or model
        )
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    model = model_from_name("tiny")
    graph = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)

    def describe(recipe: Recipe, until: str | None) -> dict[str, Any]:
        parts = ("vision", "detector")
        context = BuildContext(recipe=recipe, model=model, root=Path(), parts=parts, until=until)
        runs_on = context.runs_on  # refuses what no build passes
        planned = stages(recipe, parts, until=until)
        origin = {"parents": {"weights": "0" * 64}, "versions": VERSIONS}
        run = Run(context=context, staging=None, origin=origin)  # type: ignore[arg-type]
        run._set_keys(planned)
        called.clear()
        if any("onnx/" in str(step) for step in steps_of(planned)):
            flavours.flavoured(graph, recipe)
        return {
            "steps": {str(step): run.keys[step][:12] for step in steps_of(planned)},
            "runs on": runs_on.name,
            "artifact": context.artifact("vision"),
            "options": options_of(recipe, runs_on),
            "checked by": convert.checker_of(context).name,
            "proof for other machines": runs_on.elsewhere,
            "form of the graph": list(called),
            "samples": len(context.sample_sizes("detector")),
        }

    return describe


def test_nothing_that_a_recipe_decides_has_changed(described: Any) -> None:
    found = {}
    for name, recipe in recipes():
        for until in UNTIL:
            try:
                row = described(recipe, until)
            except SettingError as error:
                row = {"refused": str(error)}
            found[f"{name}, until {until}" if until else name] = row
    if os.environ.get("SAMFORGE_WRITE_TABLE"):
        lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    wanted = json.loads(TABLE.read_text())
    assert found.keys() == wanted.keys()
    for name, row in found.items():
        assert row == wanted[name], name


def test_fusions_of_every_target() -> None:
    assert {
        fusion.name: [target for target in TARGETS if target in fusion.targets]
        for fusion in FUSIONS
        if set(TARGETS) - set(fusion.targets)
    } == {
        "large-constants": ["onnxruntime", "openvino", "onnxruntime-cuda", "inductor", "torch"],
        "attention-scale": [
            *("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda"),
        ],
        "parallel-linears": ["onnxruntime", "openvino", "onnxruntime-cuda", "inductor", "torch"],
    }


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_an_entry_names_what_there_is(target: Target) -> None:
    assert backend_from_name(target.name).name == target.name
    assert set(target.steps) <= set(AFTER)
    assert TARGETS[target.checked_by].steps or not target.steps
    assert set(target.forms) <= set(PRECISIONS)
    assert set(target.tried) <= set(target.forms)
    assert not target.through_onnx or set(target.forms.values()) <= set(flavours.FORMS)
    assert target.kernels is None or target.kernels in convert.KERNELS
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert target.extra is None or target.extra in extras


@pytest.mark.parametrize(
    ("target", "precision", "until", "words"),
    [
        ("torch", "int8", "onnx", r"target torch can stop at: export\."),
        ("inductor", "fp32", "onnx", r"target inductor can stop at: export\."),
        ("tensorrt", "fp16", "engine!", r"target tensorrt can stop at: export, onnx\."),
    ],
)
def test_a_stop_that_no_build_passes(target: str, precision: str, until: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        stop_of(TARGETS[target], precision, until)


def test_names_of_targets_stand_in_their_table_alone() -> None:
    """A comparison with a name is a place that a new target does not reach."""
    names = [re.escape(f'"{name}"') for name in TARGETS]
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in ("backends", "core")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search("|".join(names), line)
    ]
    assert found == []
