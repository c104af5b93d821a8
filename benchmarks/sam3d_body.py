"""SAM 3D Body's backbone at its real size: INT8 on a processor, engines of TensorRT for RTX.

    python benchmarks/sam3d_body.py                    # every step, some ten minutes on two cores
    python benchmarks/sam3d_body.py --keep DIR         # leave the graphs there, and reuse them
    python benchmarks/sam3d_body.py --only processor   # or: engines

DINOv3 ViT-H+/16 with random weights, one crop of 512 pixels: size, speed and kernels mean
something, features do not. On the processor both precisions are timed in turn in one process.
Engines are built for SM89 (an L4) without a GPU; they are read, not run. Each step has a process of
its own. The command fails where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "facebook/sam-3d-body-dinov3"
PART = "backbone"
ENGINES = ("fp16", "int8", "fp8")
LIMITS = {
    "int8_speed_up": 2.5,
    "int8_size_share": 0.30,
    "engine_fp16_mib": 1606.0,
    "engine_int8_mib": 968.0,
    "fused_attentions": 32,
}
"""Sizes are those of the reference's engines on an L4 (TensorRT 10.16)."""


def program(target: str, precision: str, folder: Path) -> Path:
    """Write the fused, for 8 bits also quantized program of a target, unless it is there.

    FP8 graphs are made of the int8 program: the flavour of the graph changes its number format.
    """
    from samforge.core.recipe import Quantization
    from samforge.models.dinov3.loading import checkpoint_from_name
    from samforge.transform.export import (
        TRACED_SIZES,
        exported_from_file,
        exported_from_part,
        release,
        save_exported,
    )
    from samforge.transform.fuse import fuse
    from samforge.transform.quantize import quantize

    checkpoint = checkpoint_from_name(MODEL, random_weights=True)
    plain = folder / "exported.pt2"
    if not plain.exists():
        part = checkpoint.part(PART)
        exported = exported_from_part(part, checkpoint.inputs(PART, TRACED_SIZES))
        save_exported(exported, plain)
        # At full size there is no room for two copies of the weights.
        release([*part.module.parameters(), *part.module.buffers(), *exported.state_dict.values()])
        del part, exported
    fused = folder / f"{target}.pt2"
    if not fused.exists():
        save_exported(fuse(exported_from_file(plain), target=target).program, fused)
    if precision in ("fp32", "fp16"):
        return fused
    int8 = folder / f"{target}.int8.pt2"
    if not int8.exists():
        sample = [checkpoint.inputs(PART, {"batch": 1}, seed=1)]
        quantized = quantize(
            exported_from_file(fused),
            lambda: sample,
            part=PART,
            settings=Quantization(mixed=False),
            precision="int8",
        )
        save_exported(quantized.program, int8)
    return int8


def graph(target: str, precision: str, folder: Path) -> Path:
    """Write the ONNX graph of a target in a precision, unless it is there."""
    from samforge.core.recipe import Recipe
    from samforge.models.dinov3.loading import checkpoint_from_name
    from samforge.steps.flavours import flavoured
    from samforge.transform.export import exported_from_file
    from samforge.transform.onnx.convert import onnx_from_exported, save_onnx

    path = folder / f"{target}-{precision}" / "backbone.onnx"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = checkpoint_from_name(MODEL, random_weights=True).spec(PART)
    exported = exported_from_file(program(target, precision, folder))
    recipe = Recipe(model=MODEL, target=target, precision=precision, random_weights=True)
    save_onnx(flavoured(onnx_from_exported(exported, spec), recipe), path)
    return path


def timed(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Time fp32 and int8 in turn on ONNX Runtime, and compare their features."""
    from samforge.backends import backend_from_name
    from samforge.measure.fidelity import compare_tensor
    from samforge.measure.latency import latency_from_samples
    from samforge.models.dinov3.loading import checkpoint_from_name

    checkpoint = checkpoint_from_name(MODEL, random_weights=True)
    spec = checkpoint.spec(PART)
    images = {"images": checkpoint.inputs(PART, {"batch": 1}, seed=2)["images"].numpy()}
    backend = backend_from_name("onnxruntime")
    paths = {name: graph("onnxruntime", name, folder) for name in ("fp32", "int8")}
    sessions = {
        name: backend.session_from_artifact(path, spec, threads=threads)
        for name, path in paths.items()
    }
    features = {name: session.run(images)["features"] for name, session in sessions.items()}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(images)
            samples[name].append((time.perf_counter() - start) * 1e3)
    latency = {name: latency_from_samples(values) for name, values in samples.items()}
    size = {name: _bytes_below(path.parent) for name, path in paths.items()}
    figure = compare_tensor("features", features["fp32"], features["int8"])
    return {
        "threads": threads,
        "rounds": rounds,
        "latency_ms": {
            name: {
                "median": round(one.median_ms, 1),
                "mean": round(one.mean_ms, 1),
                "p95": round(one.p95_ms, 1),
                "min": round(one.min_ms, 1),
            }
            for name, one in latency.items()
        },
        "size_mib": {name: round(count / 2**20, 1) for name, count in size.items()},
        "int8_speed_up": round(latency["fp32"].median_ms / latency["int8"].median_ms, 2),
        "int8_size_share": round(size["int8"] / size["fp32"], 3),
        "int8_cosine": round(figure.cosine, 5),
        "int8_sqnr_db": round(figure.sqnr_db, 1),
    }


def engine(precision: str, folder: Path) -> dict[str, Any]:
    """Build one engine of TensorRT for RTX and read what it computes."""
    import onnx_ir as ir

    from samforge.backends.tensorrt.build import engine_from_onnx
    from samforge.backends.tensorrt.library import RTX
    from samforge.backends.tensorrt.settings import EngineSettings
    from samforge.models.dinov3.loading import checkpoint_from_name
    from samforge.transform.onnx.hazards import lint
    from samforge.transform.onnx.planned import computation_from_onnx

    path = graph("tensorrt-rtx", precision, folder)
    model = ir.load(path)
    planned, findings = computation_from_onnx(model), lint(model)
    del model
    report = engine_from_onnx(
        RTX,
        path,
        folder / f"{precision}.engine",
        checkpoint_from_name(MODEL, random_weights=True).spec(PART),
        EngineSettings(precision=precision, compute_capabilities=("89",)),
        planned=planned,
    )
    found = report.computation
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "precision": precision,
        "engine_mib": round(report.bytes / 2**20, 1),
        "build_s": report.seconds,
        "peak_gib": round(peak, 2),
        "products": dict(found.gemms) if found is not None else None,
        "fused_attentions": found.attentions if found is not None else None,
        "findings": [str(finding) for finding in findings],
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Claims that do not hold."""
    found = []
    processor = result.get("processor")
    if processor is not None:
        if processor["int8_speed_up"] < LIMITS["int8_speed_up"]:
            found.append(f"INT8 is only {processor['int8_speed_up']} times as fast as fp32")
        if processor["int8_size_share"] > LIMITS["int8_size_share"]:
            found.append(f"INT8 has {processor['int8_size_share']:.0%} of fp32's size")
    for one in result.get("engines", ()):
        limit = LIMITS.get(f"engine_{one['precision']}_mib")
        if limit is not None and one["engine_mib"] > limit:
            found.append(f"the {one['precision']} engine has {one['engine_mib']} MiB")
        if (one["fused_attentions"] or 0) < LIMITS["fused_attentions"]:
            found.append(
                f"the {one['precision']} engine fuses {one['fused_attentions']} attentions"
            )
    return found


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _in_process(*arguments: str) -> dict[str, Any]:
    """Run one step in a process of its own: torch keeps the memory of the last one."""
    # -P: the file beside this one that is named after a library must not hide it.
    command = [sys.executable, "-P", __file__, *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(arguments)} failed with status {run.returncode}.")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def _step(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    kind, target, precision = words
    folder = options.keep
    if kind == "program":
        return {"path": str(program(target, precision, folder))}
    if kind == "graph":
        return {"path": str(graph(target, precision, folder))}
    if kind == "engine":
        return engine(precision, folder)
    return timed(folder, options.rounds, options.threads)


def main() -> int:
    """Run the steps, write the result, and fail when a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for programs and graphs")
    parser.add_argument("--only", choices=("processor", "engines"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(_step(options.step, options)))
        return 0
    result: dict[str, Any] = {"model": MODEL, "image_size": 512, "limits": LIMITS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        common = ["--keep", str(folder), "--rounds", str(options.rounds)]
        common += ["--threads", str(options.threads)]

        def step(*words: str) -> dict[str, Any]:
            return _in_process("--step", *words, *common)

        if options.only != "engines":
            for precision in ("fp32", "int8"):
                step("program", "onnxruntime", precision)
                step("graph", "onnxruntime", precision)
            result["processor"] = step("time", "onnxruntime", "both")
            print(result["processor"])
        if options.only != "processor":
            result["engines"] = []
            for precision in ENGINES:
                step("program", "tensorrt-rtx", precision)
                step("graph", "tensorrt-rtx", precision)
                result["engines"].append(step("engine", "tensorrt-rtx", precision))
                print(result["engines"][-1])
    from _conditions import write_result  # the steps run without this folder in their path

    problems = failures(result)
    name = f"sam3d_body_{options.only}" if options.only else "sam3d_body"
    path = write_result(name, {**result, "holds": not problems})
    print(f"{path.name}: {'; '.join(problems) or 'every claim holds'}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
