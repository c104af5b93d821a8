"""The vision part on a processor: every engine and precision, in turn, within one run.

    python benchmarks/cpu_engines.py --blocks 4    # four ViT blocks at 672 px: minutes
    python benchmarks/cpu_engines.py --full        # SAM 3's whole vision part at 1008 px

Weights and images are random: that tells speed, size and how exactly a graph computes what the
fp32 graph does, never how well it segments. Each engine runs in a process of its own, several
times, in turn with the others; what counts is the smallest time, and the ratios of those.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _conditions import write_result

from samforge.core.session import PartSpec, TensorSpec
from samforge.core.structure import json_from_value, value_from_json

ENGINES: dict[str, tuple[str, str, dict[str, str]]] = {
    "onnxruntime fp32": ("onnxruntime", "fp32.onnx", {}),
    "onnxruntime fp32, attention in blocks": ("onnxruntime", "fp32_blocks.onnx", {}),
    "onnxruntime fp32, its attention kernels": ("onnxruntime", "fp32_kernels.onnx", {}),
    "onnxruntime int8": ("onnxruntime", "int8_onnxruntime.onnx", {}),
    "onnxruntime int8 of quantize_static": ("onnxruntime", "int8_static.onnx", {}),
    "onnxruntime int8-weights": ("onnxruntime", "weights.onnx", {}),
    "openvino fp32": ("openvino", "fp32_openvino.onnx", {"precision": "fp32"}),
    "openvino bf16": ("openvino", "fp32_openvino.onnx", {"precision": "bf16"}),
    "openvino int8": ("openvino", "int8_openvino.onnx", {"precision": "int8"}),
    "openvino int8-bf16": ("openvino", "int8_openvino.onnx", {"precision": "int8-bf16"}),
    "openvino int8-weights": ("openvino", "weights.onnx", {"precision": "bf16"}),
}
"""Backend, graph and options of each row."""
BASE = "onnxruntime fp32"
LIMITS = {
    "int8_over_fp32": 2.5,
    "int8_over_quantize_static": 1.0,
    "best_over_fp32": 4.0,
}
"""Speed-ups that must hold at full size."""


def make_graphs(folder: Path, *, blocks: int, size: int, images: int) -> dict[str, Any]:
    """Export, fuse, quantize and convert; returns what was made and how long it took."""
    import onnx_ir as ir

    from samforge.core.recipe import Quantization
    from samforge.transform.export import exported_from_file, release, save_exported
    from samforge.transform.fuse import fuse
    from samforge.transform.onnx.attention_kernels import fuse_attention
    from samforge.transform.onnx.blocks import block_attention
    from samforge.transform.onnx.convert import onnx_from_exported, release_model, save_onnx
    from samforge.transform.onnx.openvino_flavour import to_openvino
    from samforge.transform.onnx.u8s8 import FLOAT_NOTE, INTEGER_NOTE, to_u8s8
    from samforge.transform.onnx.weight_only import weights_to_int8
    from samforge.transform.quantize import quantize

    start = time.perf_counter()
    exported, spec = _exported(blocks, size)
    (folder / "spec.json").write_text(json.dumps(json_from_value(spec)))
    program = fuse(exported, target="onnxruntime", consume=True).program
    model = onnx_from_exported(program, spec)
    save_onnx(model, folder / "fp32.onnx")
    release_model(model)
    quantized = quantize(
        program,
        lambda: iter(_samples(size, images)),
        part="vision",
        settings=Quantization(),
        precision="int8",
    )
    # The two programs share what stays float: only a copy read back outlives the release.
    save_exported(quantized.program, folder / "qdq.pt2")
    for one in (program, quantized.program):
        release([*one.state_dict.values(), *one.constants.values()])
    program = exported_from_file(folder / "qdq.pt2")
    model = onnx_from_exported(program, spec)
    save_onnx(model, folder / "qdq.onnx")
    release_model(model)
    release([*program.state_dict.values(), *program.constants.values()])
    notes = {}
    for source, target, passes in (
        ("fp32", "fp32_blocks", (block_attention,)),
        ("fp32", "fp32_kernels", (fuse_attention,)),
        ("fp32", "fp32_openvino", (to_openvino,)),
        ("fp32", "weights", (weights_to_int8,)),
        ("qdq", "int8_onnxruntime", (to_u8s8, fuse_attention)),
        ("qdq", "int8_openvino", (to_openvino,)),
    ):
        model = ir.load(folder / f"{source}.onnx")
        for one in passes:
            one(model)
        save_onnx(model, folder / f"{target}.onnx")
        notes[target] = {
            key: model.metadata_props[key]
            for key in (INTEGER_NOTE, FLOAT_NOTE)
            if key in model.metadata_props
        }
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": _peak_gib(),
        "notes": notes,
    }


def make_static(folder: Path, *, size: int, images: int) -> None:
    """ONNX Runtime's own quantization of the same graph, with the settings it is fastest with.

    Its calibration keeps every activation until the end, more than 24 GiB at the real size: there
    it gets the range -4 to 4 for each. What it computes is then of no use, and as fast.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self.left = iter(_samples(size, images))

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.left, None)
            return None if sample is None else {k: v.numpy() for k, v in sample.items()}

    large = (folder / "fp32.onnx.data").exists()
    ranges = folder / "ranges.json"
    if large:
        graph = onnx.load(folder / "fp32.onnx", load_external_data=False).graph
        names = [*(one.name for one in graph.input), *(n for one in graph.node for n in one.output)]
        bound = np.array(4, np.float32)
        tensors = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(names, (-bound, bound)))
        save_tensors_data(tensors, ranges)
    quantize_static(
        folder / "fp32.onnx",
        folder / "int8_static.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        use_external_data_format=large,
        calibration_cache_path=ranges if large else None,
        extra_options={"MatMulConstBOnly": True},
    )
    # Without this its products would run in float (ONNX Runtime 1.31): it would not be a contest.
    model = onnx.load(folder / "int8_static.onnx", load_external_data=False)
    entry = model.metadata_props.add()
    entry.key, entry.value = "samforge.onnxruntime.disabled", "MatMulAddFusion"
    onnx.save(model, folder / "int8_static.onnx")


def run_engine(folder: Path, name: str, runs: int, threads: int | None) -> dict[str, Any]:
    """Load one engine, warm it up and time it: in a process of its own."""
    from samforge.backends import backend_from_name

    backend, file, options = ENGINES[name]
    spec = value_from_json(PartSpec, json.loads((folder / "spec.json").read_text()))
    start = time.perf_counter()
    session = backend_from_name(backend).session_from_artifact(
        folder / file, spec, threads=threads, options=options
    )
    loaded = time.perf_counter() - start
    image = {"images": np.load(folder / "image.npy")}
    outputs = session.run(image)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(image)
        times.append((time.perf_counter() - start) * 1e3)
    reference = folder / "reference.npz"
    if name == BASE and not reference.exists():
        np.savez(reference, **outputs)
    with np.load(reference) as wanted:
        sqnr = min(_sqnr_db(wanted[key], value) for key, value in outputs.items())
    return {
        "milliseconds": times,
        "load_seconds": loaded,
        "sqnr_db": sqnr,
        "peak_gib": _peak_gib(),
        "processor": session.processor,
    }


def measure(folder: Path, *, rounds: int, runs: int, threads: int | None) -> dict[str, Any]:
    """Run every engine in turn, round by round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    for index in range(rounds):
        for name in ENGINES:
            command = [sys.executable, __file__, "--engine", name, "--folder", str(folder)]
            command += ["--runs", str(runs)] + (["--threads", str(threads)] if threads else [])
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {index + 1}: {name}: {min(found[name][-1]['milliseconds']):.0f} ms")
    return {name: _row(folder, name, results) for name, results in found.items()}


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Speed-ups over fp32 in ONNX Runtime, from the smallest times of this run."""
    fastest = {name: row["min_ms"] for name, row in rows.items()}
    best = min(fastest, key=lambda name: fastest[name])
    return {
        "int8_over_fp32": round(fastest[BASE] / fastest["onnxruntime int8"], 3),
        "int8_over_quantize_static": round(
            fastest["onnxruntime int8 of quantize_static"] / fastest["onnxruntime int8"], 3
        ),
        "best_over_fp32": round(fastest[BASE] / fastest[best], 3),
        "best": best,
    }


def _row(folder: Path, name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    times = [time for result in results for time in result["milliseconds"]]
    file = folder / ENGINES[name][1]
    made_up = file.name == "int8_static.onnx" and (folder / "ranges.json").exists()
    return {
        "min_ms": round(min(times), 1),
        "median_ms": round(statistics.median(times), 1),
        "sqnr_db": None if made_up else round(results[0]["sqnr_db"], 1),
        "bytes": sum(one.stat().st_size for one in folder.glob(f"{file.name}*")),
        "load_seconds": round(min(result["load_seconds"] for result in results), 1),
        "peak_gib": max(result["peak_gib"] for result in results),
        "processor": results[0]["processor"],
    }


def _exported(blocks: int, size: int) -> tuple[Any, PartSpec]:
    """SAM 3's vision part with random weights of ordinary size, exported."""
    import torch
    from transformers import Sam3Config
    from transformers.models.sam3.modeling_sam3 import Sam3VisionModel

    from samforge.models.sam3.vision import Vision

    config = Sam3Config()
    vit = config.vision_config.backbone_config
    vit.image_size = size
    if blocks != vit.num_hidden_layers:
        vit.num_hidden_layers, vit.global_attn_indexes = blocks, [blocks - 1]
    encoder = Sam3VisionModel(config.vision_config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in encoder.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(generator=generator).mul_(scale)
        if "norm" in name and name.endswith(".weight"):
            parameter.add_(1)
    image = next(_samples(size, 1))["images"]
    module = Vision(encoder, config).eval()
    with torch.no_grad():
        exported = torch.export.export(module, (image,), strict=False)
    sides = [size // 14 * factor for factor in (4, 2, 1)]
    spec = PartSpec(
        name="vision",
        inputs=(TensorSpec(name="images", dtype="float32", shape=(1, 3, size, size)),),
        outputs=tuple(
            TensorSpec(name=f"fpn_{index}", dtype="float32", shape=(1, 256, side, side))
            for index, side in enumerate(sides)
        ),
    )
    return exported, spec


def _samples(size: int, count: int) -> Iterator[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield {"images": torch.randn(1, 3, size, size, generator=generator)}


def _sqnr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    noise = np.mean(np.square(wanted - found, dtype=np.float64))
    return float(10 * np.log10(np.mean(np.square(wanted, dtype=np.float64)) / max(noise, 1e-30)))


def _peak_gib() -> float:
    """Highest resident memory of this process; getrusage would count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)


def _parsed(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="32 blocks at 1008 px")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--size", type=int, default=672, help="image side without --full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="timed runs of an engine in a round")
    parser.add_argument("--threads", type=int, help="default: all that the process may use")
    parser.add_argument("--folder", type=Path, help="keep the graphs here, and use those there")
    parser.add_argument("--static", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Make the graphs, measure, write the result, and fail when a claim does not hold."""
    options = _parsed()
    if options.engine:
        result = run_engine(options.folder, options.engine, options.runs, options.threads)
        print(json.dumps(result))
        return 0
    if options.static:
        make_static(options.folder, size=options.size, images=1)
        return 0
    blocks, size = (32, 1008) if options.full else (options.blocks, options.size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        made: dict[str, Any] = {}
        if not (folder / "made.json").exists():
            made = make_graphs(folder, blocks=blocks, size=size, images=4 if options.full else 2)
            np.save(folder / "image.npy", next(_samples(size, 1))["images"].numpy())
            (folder / "made.json").write_text(json.dumps(made))
        made = json.loads((folder / "made.json").read_text())
        if not (folder / "int8_static.onnx").exists():
            # In a process of its own: it takes more memory than everything else together.
            command = [sys.executable, __file__, "--static", "--folder", str(folder)]
            subprocess.run([*command, "--size", str(size)], check=True)
        rows = measure(folder, rounds=options.rounds, runs=options.runs, threads=options.threads)
    found = ratios(rows)
    holds = {key: found[key] >= limit for key, limit in LIMITS.items()}
    path = write_result(
        "cpu_engines_full.py" if options.full else f"cpu_engines_{blocks}_blocks.py",
        {
            "claim": "INT8 and OpenVINO against fp32 in ONNX Runtime, smallest times",
            "blocks": blocks,
            "image_size": size,
            "made": made,
            "engines": rows,
            "ratios": found,
            "limits": LIMITS,
            "holds": holds,
        },
    )
    print(json.dumps({"ratios": found, "holds": holds}, indent=2))
    print(f"-> {path.name}")
    return int(options.full and not all(holds.values()))


if __name__ == "__main__":
    sys.exit(main())
