"""The pages agree with the code: generated text is fresh, tables are complete, links lead on."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import samforge
from samforge.core.manifest import Manifest
from samforge.models import tiny

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "src/samforge/models/tiny/MODEL_CARD.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    CARD,
]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
MACHINE = re.compile(r"/(?:work|tmp|home|root)/|localhost|127\.0\.0\.1")


def _named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose heading starts with ``first``."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    body = lines[start + 2 :]
    end = next((i for i, line in enumerate(body) if not line.startswith("|")), len(body))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body[:end]]


def test_the_command_line_page_is_fresh() -> None:
    program = "import sys; sys.path.insert(0, 'tools'); import write_cli_docs as w; print(w.page())"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert run.stdout == page + "\n", "stale: run .venv/bin/python tools/write_cli_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_pages_speak_of_the_project_alone(page: Path) -> None:
    assert MACHINE.findall(page.read_text(encoding="utf-8")) == []


def test_the_layers_are_those_the_layer_test_guards() -> None:
    source = (ROOT / "tests/unit/test_layers.py").read_text(encoding="utf-8")
    guarded: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            if name in ("LIBRARY", "MAY_IMPORT"):
                exec(ast.unparse(node), guarded)
    words = {package: {package} for package in guarded["MAY_IMPORT"]}
    words["the packages above"] = guarded["LIBRARY"]
    rows = _rows((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "package")
    names = [package for package, *_ in rows]
    assert len(set(names)) == len(names)
    table = {
        package.strip("`"): set[str]().union(*(words[word] for word in allowed.split(", ")))
        for package, _, allowed in rows
        if package != "`apps`"
    }
    assert table == guarded["MAY_IMPORT"]


def test_every_key_of_a_manifest_is_described() -> None:
    rows = _rows((ROOT / "docs/bundle.md").read_text(encoding="utf-8"), "key")
    assert [row[0].strip("`") for row in rows] == [field.name for field in fields(Manifest)]


def test_the_parts_are_those_of_the_bundle(tiny_bundle: samforge.Bundle) -> None:
    text = (ROOT / "docs/parts.md").read_text(encoding="utf-8")
    described = {row[0].strip("`"): (row[1], row[2]) for row in _rows(text, "part")}
    from samforge.models.sam3.parts import DEFAULT_PARTS, PARTS

    assert tuple(described) == PARTS
    assert tuple(tiny_bundle.manifest.parts) == DEFAULT_PARTS
    vision, text_part = (tiny_bundle.manifest.parts[name].spec for name in ("vision", "text"))
    detector = tiny_bundle.manifest.parts["detector_boxes"].spec
    mentioned = " ".join(" ".join(cells) for cells in described.values())
    for spec in (vision, text_part, detector):
        for tensor in (*spec.inputs, *spec.outputs):
            assert f"`{tensor.name}`" in mentioned
    sizes = {row[0]: row[1:] for row in _rows(text, "model")}
    assert sizes["tiny"] == [
        str(vision.inputs[0].shape[-1]),
        str(vision.outputs[2].shape[-1]),
        str(vision.outputs[2].shape[1]),
        str(text_part.inputs[0].shape[-1]),
        str(detector.outputs[0].shape[-1]),
    ]


def test_the_card_carries_the_measured_figures() -> None:
    path = ROOT / "benchmarks/tiny_model/compare-1000.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert MACHINE.findall(path.read_text(encoding="utf-8")) == []
    assert result["about"]["weights"] == tiny.weights_digest(), "measured on other weights"
    accuracy = result["bundles"][0]["accuracy"]
    assert (result["data"], accuracy["images"]) == ("scenes:1000", 1000)
    text = CARD.read_text(encoding="utf-8").replace("**", "")
    for prompts in ("text", "boxes"):
        figures = [accuracy[prompts][key] for key in ("f1", "mean_iou", "presence")]
        assert " | ".join(f"{figure:.4f}" for figure in figures) in text


def test_the_tiny_model_keeps_its_floors() -> None:
    path = ROOT / "benchmarks/tiny_model/compare-1000.json"
    accuracy = json.loads(path.read_text(encoding="utf-8"))["bundles"][0]["accuracy"]
    assert accuracy["text"]["f1"] >= 0.995
    assert accuracy["text"]["mean_iou"] >= 0.955
    assert accuracy["text"]["presence"] >= 0.997
    assert accuracy["boxes"]["f1"] >= 0.99


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/demo.png").stat().st_size <= 400_000


def test_the_table_of_engines_is_the_measured_one() -> None:
    page = (ROOT / "docs/tensorrt.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks/results/tensorrt_rtx.json").read_text())
    assert _rows(page, "part | precision | compute capability") == [
        [
            f"`{row['row'].partition('-')[0]}`",
            row["precision"],
            ", ".join(f"{number[:-1]}.{number[-1]}" for number in row["generations"]),
            f"{row['build_s']:.1f}",
            f"{row['engine_mb']:.1f}" + ("" if row["holds"] else " **missed**"),
            ", ".join(f"{count} {name}" for name, count in row["found"]["gemms"].items()),
            str(row["found"]["attentions"]),
            f"{row['peak_gib']:.2f}",
        ]
        for row in results["rows"]
    ]
    for row in results["rows"]:
        limit = row["megabytes"]
        too_large = limit is not None and row["engine_mb"] > 1.02 * limit
        assert row["holds"] != too_large  # the page says it; everything else holds
        assert row["findings"] == []
        assert row["peak_gib"] <= results["limits"]["peak_gib"]
        assert row["found"]["attentions"] >= (row["attentions"] or 0)


def test_the_table_of_processors_is_the_measured_one() -> None:
    page = (ROOT / "docs/precisions.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks/results/cpu_engines_full.json").read_text())
    engines = result["engines"]
    base = engines["onnxruntime fp32"]["min_ms"]

    def decibels(value: float | None) -> str:
        return "–" if value is None else "equal" if value > 200 else f"{value:.1f}"

    assert _rows(page, "engine | seconds") == [
        [
            name,
            f"{row['min_ms'] / 1000:.1f}",
            f"{base / row['min_ms']:.2f}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['peak_gib']:.1f}",
            decibels(row["sqnr_db"]),
        ]
        for name, row in engines.items()
    ]
    for ratio in ("int8_over_fp32", "int8_over_quantize_static", "best_over_fp32"):
        assert f"{result['ratios'][ratio]:.2f} times as fast" in " ".join(page.split())


def test_the_figures_of_the_first_page_are_measured() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = " ".join(" ".join(row) for row in _rows(page, "what | measured | on"))
    results = ROOT / "benchmarks/results"
    floors = json.loads((results / "floors.json").read_text())["rows"]
    references = json.loads((results / "references.json").read_text())["rows"]
    bench = json.loads((results / "tiny_bench.json").read_text())["rows"]
    own = floors["tiny"]["int8"]
    assert f"{own['pairs']:,} of {own['reference_objects']:,}" in cells
    outliers = floors["tiny-stressed"]
    assert f"{outliers['int8']['pairs']:,}; min-max" in cells
    assert f"steps: {outliers['naive int8']['pairs']}" in cells
    wrong, right = references["transformers"]["cgf1"], references["meta"]["cgf1"]
    assert f"{wrong:.3f} instead of {right:.3f}" in cells
    (quicker,) = (row["speed_up"] for row in bench if row["bundle"] == "tiny-int8")
    assert f"{quicker:.2f} times" in cells


def test_the_table_of_references_is_the_measured_one() -> None:
    page = (ROOT / "docs/what-equals-what.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks/results/references.json").read_text())["rows"]
    figures = ("text_f1", "mask_iou_with_the_truth", "presence", "boxes_f1", "cgf1")
    meta, stock = (
        [f"{rows[one][figure]:.4f}" for figure in figures] for one in ("meta", "transformers")
    )
    own = rows["transformers"]
    assert _rows(page, "computed as") == [
        ["Meta's code does", *meta, f"all {own['reference_objects']:,}"],
        ["transformers does", *stock, f"{own['pairs']:,} of {own['objects']:,} found"],
    ]


def test_the_table_of_floors_is_the_measured_one() -> None:
    page = (ROOT / "docs/quantization.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks/results/floors.json").read_text())
    wanted = []
    for model, rows in result["rows"].items():
        for name, row in rows.items():
            kept = f"{row['pairs']:,} of {row['reference_objects']:,}" if "pairs" in row else "all"
            iou = f"{row['mask_iou']:.4f}" if row.get("mask_iou") is not None else "–"
            wanted.append([f"`{model}`", name, kept, iou, f"{row['cgf1']:.4f}"])
    assert _rows(page, "checkpoint | bundle") == wanted
    assert f"On {result['scenes']:,} held-out scenes" in page
    assert all(result["holds"].values())
