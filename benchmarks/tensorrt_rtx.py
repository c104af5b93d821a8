"""Engines of SAM 3 at its real size with TensorRT for RTX, built without a GPU.

    python benchmarks/tensorrt_rtx.py                       # every row
    python benchmarks/tensorrt_rtx.py --graphs DIR          # keep the ONNX graphs there for reuse
    python benchmarks/tensorrt_rtx.py --row vision-fp16-89  # one row

Random weights: they tell size, time, memory and which kernels are chosen, never meaning. Engines
are built and read, not run. Every graph and every engine has a process of its own, whose peak
memory is the kernel's high-water mark. A row fails when its engine is larger or less fused than the
first experiment's, when a product is computed in another format than planned, or when the build
takes more than 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samforge.core.capabilities import TRACKER_PARTS, VISION

RESULT = Path(__file__).parent / "results" / "tensorrt_rtx.json"
PEAK_GIB = 4.0
MODEL = "facebook/sam3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One engine and what the first experiment measured for it."""

    part: str
    """Part of SAM 3."""
    precision: str
    """Number format of its products."""
    generations: tuple[str, ...]
    """GPU generations it is built for."""
    megabytes: float | None = None
    """Size that must not be exceeded by more than 2 %, in units of 1,000,000 bytes."""
    attentions: int | None = None
    """Fused attentions that must be there."""
    int8_products: int | None = None
    """Products that must be int8, as the graph has them; an engine merges some."""
    tracker: bool = False
    """Whether it is a part of the model with its tracker: ``vision`` has two necks there."""

    @property
    def name(self) -> str:
        """As ``--row`` takes it."""
        return f"{self.source}-{self.precision}-{'+'.join(self.generations)}"

    @property
    def source(self) -> str:
        """Its part, told apart from that of the model without a tracker."""
        return f"{self.part}+tracker" if self.tracker and self.part == VISION else self.part


ROWS = (
    Row(part="vision", precision="fp16", generations=("89",), megabytes=918, attentions=32),
    Row(
        part="vision",
        precision="int8",
        generations=("89",),
        megabytes=486,
        attentions=32,
        int8_products=128,
    ),
    Row(part="vision", precision="fp8", generations=("89",), megabytes=487, attentions=32),
    Row(part="text", precision="fp16", generations=("89",)),
    Row(part="detector", precision="fp16", generations=("89",)),
    Row(part="detector_boxes", precision="fp16", generations=("89",)),
    Row(part="vision", precision="fp16", generations=("86",), megabytes=918, attentions=32),
    Row(part="vision", precision="fp16", generations=("120",), megabytes=918, attentions=32),
    Row(part="vision", precision="fp16", generations=("86", "89", "120"), attentions=32),
    Row(part="vision", precision="fp16", generations=("89",), attentions=32, tracker=True),
    *(
        Row(part=part, precision="fp16", generations=("89",), tracker=True)
        for part in TRACKER_PARTS
    ),
)


def graph(row: Row, folder: Path) -> Path:
    """Write the ONNX graph of a part in a precision, unless it is there."""
    import onnx_ir as ir

    from samforge.models.loading import model_from_name
    from samforge.transform.export import exported_from_file
    from samforge.transform.onnx.convert import onnx_from_exported, save_onnx
    from samforge.transform.onnx.tensorrt_flavour import tensorrt_flavour

    path = folder / f"{row.source}.{row.precision}.onnx"
    if path.exists():
        return path
    made = model_from_name(MODEL, random_weights=True, tracker=row.tracker)
    program = exported_from_file(_program(made, row, folder))
    model: ir.Model = onnx_from_exported(program, made.spec(row.part))
    tensorrt_flavour(model, row.precision, name=row.part)
    save_onnx(model, path)
    return path


def _program(model: Any, row: Row, folder: Path) -> Path:
    """Write the fused program of a part, and its quantized form, unless they are there."""
    from samforge.core.axes import TRACED_SIZES
    from samforge.core.recipe import Quantization
    from samforge.transform.export import (
        exported_from_file,
        exported_from_part,
        release,
        save_exported,
    )
    from samforge.transform.fuse import fuse
    from samforge.transform.quantize import quantize

    plain = folder / f"{row.source}.pt2"
    if not plain.exists():
        part = model.part(row.part)
        exported = exported_from_part(part, model.inputs(row.part, TRACED_SIZES, 0))
        save_exported(exported, plain)
        # At full size there is no room for two copies of the weights.
        release([*part.module.parameters(), *part.module.buffers(), *exported.state_dict.values()])
        fused = fuse(exported_from_file(plain), target="tensorrt-rtx")
        save_exported(fused.program, plain)
    if row.precision in ("fp32", "fp16"):
        return plain
    int8 = folder / f"{row.source}.int8.pt2"
    if not int8.exists():
        one = [model.inputs(row.part, {"batch": 1, "prompts": 1, "boxes": 1}, 1)]
        quantized = quantize(
            exported_from_file(plain),
            lambda: one,
            part=row.part,
            settings=Quantization(mixed=False),
            precision="int8",
        )
        save_exported(quantized.program, int8)
    return int8


def engine(row: Row, onnx: Path, folder: Path) -> dict[str, Any]:
    """Build one engine and read what it computes."""
    import onnx_ir as ir

    from samforge.backends.tensorrt.build import engine_from_onnx
    from samforge.backends.tensorrt.library import RTX
    from samforge.backends.tensorrt.settings import DEFAULT_AXES, AxisRange, EngineSettings
    from samforge.core.session import PartSpec
    from samforge.transform.onnx.hazards import lint
    from samforge.transform.onnx.inspect import summary_from_onnx
    from samforge.transform.onnx.planned import computation_from_onnx

    summary = summary_from_onnx(onnx)
    model = ir.load(onnx)
    planned, findings = computation_from_onnx(model), lint(model)
    del model
    report = engine_from_onnx(
        RTX,
        onnx,
        folder / f"{row.name}.engine",
        PartSpec(name=row.part, inputs=summary.inputs, outputs=summary.outputs),
        EngineSettings(
            precision=row.precision,
            compute_capabilities=row.generations,
            axes={**DEFAULT_AXES, "batch": AxisRange()},  # one image, as in the first experiment
        ),
        planned=planned,
    )
    found = report.computation
    assert found is not None
    size = report.bytes / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    holds = (
        not findings
        and peak <= PEAK_GIB
        and (row.megabytes is None or size <= 1.02 * row.megabytes)
        and (row.attentions is None or found.attentions >= row.attentions)
        and (row.int8_products is None or planned.gemms.get("int8", 0) >= row.int8_products)
    )
    return {
        "row": row.name,
        **{key: value for key, value in asdict(row).items() if key != "generations"},
        "generations": list(row.generations),
        "build_s": report.seconds,
        "engine_mb": round(size, 1),
        "peak_gib": round(peak, 2),
        "planned": asdict(planned),
        "found": asdict(found),
        "findings": [str(finding) for finding in findings],
        "command": report.command.replace(f"{onnx.parent}/", "").replace(f"{folder}/", ""),
        "holds": holds,
    }


def _in_process(*arguments: str) -> str:
    """Run one step in a process of its own: its peak memory is its own."""
    # -P: this file's own name must not hide the library's.
    command = [sys.executable, "-P", __file__, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{run.stderr[-3000:]}")
    return run.stdout


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{'engine':28}{'build':>8}{'size':>10}{'peak':>10}  {'products':32}{'fused':>6}  holds")
    for row in rows:
        products = ", ".join(f"{count} {name}" for name, count in row["found"]["gemms"].items())
        print(
            f"{row['row']:28}{row['build_s']:6.1f} s{row['engine_mb']:7.1f} MB"
            f"{row['peak_gib']:6.2f} GiB  {products:32}{row['found']['attentions']:6}  "
            f"{'yes' if row['holds'] else 'NO'}"
        )


def main() -> int:
    """Build the rows, write the result, and fail when a limit does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--graphs", type=Path, help="folder for the ONNX graphs")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS])
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        kind, name, folder = options.step
        row = next(row for row in ROWS if row.name == name)
        path = graph(row, Path(folder))
        if kind == "engine":
            with tempfile.TemporaryDirectory() as scratch:
                print(json.dumps(engine(row, path, Path(scratch))))
        return 0
    chosen = [row for row in ROWS if options.row is None or row.name in options.row]
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.graphs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for row in chosen:
            _in_process("--step", "graph", row.name, str(folder))
            results.append(json.loads(_in_process("--step", "engine", row.name, str(folder))))
            _print(results[-1:])
    _write(results)
    _print(results)
    return int(not all(row["holds"] for row in results))


def _write(results: list[dict[str, Any]]) -> None:
    """Write the rows; those of an earlier run that were not built again stay."""
    from _conditions import conditions

    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    new = {row["row"]: row for row in [*kept, *results]}
    rows = [new[row.name] for row in ROWS if row.name in new]
    measured = conditions()
    measured["versions"]["tensorrt-rtx-cu13"] = version("tensorrt-rtx-cu13")
    RESULT.parent.mkdir(exist_ok=True)
    limits = {"peak_gib": PEAK_GIB}
    RESULT.write_text(json.dumps({**measured, "limits": limits, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
