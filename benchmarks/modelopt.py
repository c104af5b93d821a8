"""INT8 of samforge and of NVIDIA's ModelOpt, on the same graph with the same calibration images.

    python benchmarks/modelopt.py --fp32 BUNDLE --int8 BUNDLE --python ENVIRONMENT/bin/python

Both bundles are samforge's, built for onnxruntime. ModelOpt lives in an environment of its own
(it pins other versions of onnx): without it the comparison is skipped with a word. The vision part
is swapped and everything else stays fp32, so the answers tell what the image encoder lost. ModelOpt
takes its own defaults, and then without the residual stream and the softmax too, so that
what is compared is how values are rounded and not only which.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _conditions import write_result

import samforge
from samforge.assembly import session_from_bundle, tokenizer_from_bundle
from samforge.backends import backend_from_name
from samforge.core.bundle import Bundle
from samforge.core.session import Array, Session, Tensors
from samforge.measure import compare_predictions
from samforge.media import read_image
from samforge.models.tiny import draw_scene, labelled_scenes
from samforge.runtime import Segmenter, segmenter_from_sessions

PRESENT = "import importlib.metadata as m; print(m.version('nvidia-modelopt'))"
QUANTIZE = """
import json, sys
import numpy as np
from modelopt.onnx.quantization import quantize
settings = json.loads(sys.argv[1])
quantize(
    settings["source"],
    quantize_mode="int8",
    calibration_data={"images": np.load(settings["images"])},
    calibration_eps=["cpu"],
    high_precision_dtype="fp32",
    output_path=settings["output"],
    **settings["options"],
)
"""
VARIANTS: dict[str, dict[str, Any]] = {
    "modelopt": {},
    "modelopt, products only": {"op_types_to_quantize": ["MatMul", "Gemm", "Conv"]},
}
"""Options of ModelOpt's ``quantize`` by row."""


class Recording:
    """A session that keeps its inputs: what a part really sees is what it is calibrated on."""

    def __init__(self, session: Session) -> None:
        self.session, self.seen = session, list[dict[str, Array]]()
        self.spec, self.runtime, self.processor = session.spec, session.runtime, session.processor

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once."""
        self.seen.append(dict(tensors))
        return self.session.run(tensors)

    def close(self) -> None:
        """Free the weights."""
        self.session.close()


def segmenter(bundle: Bundle, vision: Session | None = None) -> Segmenter:
    """A bundle's segmenter, perhaps with another vision part."""
    manifest = bundle.manifest
    assert manifest.text is not None
    sessions = {name: session_from_bundle(bundle, name) for name in manifest.parts}
    if vision is not None:
        sessions["vision"] = vision
    tokenizer = tokenizer_from_bundle(bundle)
    return segmenter_from_sessions(
        sessions, manifest.image, tokenizer, read_image, reference=manifest.reference
    )


def calibration_images(bundle: Bundle, count: int) -> Array:
    """What the vision part sees of drawn scenes, (N, 3, S, S)."""
    recording = Recording(session_from_bundle(bundle, "vision"))
    encoder = segmenter(bundle, recording)
    for index in range(count):
        encoder.encode(draw_scene(index, split="train").image)
    return np.concatenate([seen["images"] for seen in recording.seen])


def quantized_by_modelopt(
    python: str, bundle: Bundle, images: Path, folder: Path, variant: str
) -> Path:
    """Quantize the fp32 vision graph in ModelOpt's environment."""
    output = folder / f"modelopt-{list(VARIANTS).index(variant)}.onnx"
    settings = {
        "source": str(bundle.path(bundle.manifest.parts["vision"].artifact)),
        "images": str(images),
        "output": str(output),
        "options": VARIANTS[variant],
    }
    command = [python, "-c", QUANTIZE, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode or not output.exists():
        raise SystemExit(f"ModelOpt failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return output


def main() -> int:
    """Compare, write the result, and fail when ours is worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fp32", required=True, help="bundle that says what is right")
    parser.add_argument("--int8", required=True, help="samforge's int8 bundle of the same model")
    parser.add_argument("--python", default=sys.executable, help="interpreter with ModelOpt")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--images", type=int, default=16, help="calibration images")
    parser.add_argument("--name", default="modelopt", help="of the result, e.g. modelopt_stressed")
    options = parser.parse_args()
    found = subprocess.run(
        [options.python, "-c", PRESENT], capture_output=True, text=True, check=False
    )
    if found.returncode:
        print(f"Skipped: ModelOpt is not installed for {options.python}.")
        return 0
    fp32, int8 = samforge.open_bundle(options.fp32), samforge.open_bundle(options.int8)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "images.npy", calibration_images(fp32, options.images))
        visions = {"samforge": session_from_bundle(int8, "vision")}
        for variant in VARIANTS:
            path = quantized_by_modelopt(
                options.python, fp32, folder / "images.npy", folder, variant
            )
            spec = fp32.manifest.parts["vision"].spec
            visions[variant] = backend_from_name("onnxruntime").session_from_artifact(path, spec)
        rows = {
            name: compare_predictions(
                segmenter(fp32), segmenter(fp32, vision), labelled_scenes(options.scenes)
            ).to_dict()
            for name, vision in visions.items()
        }
    ours, theirs = rows["samforge"]["mask_iou_all"], rows["modelopt"]["mask_iou_all"]
    holds = ours is not None and theirs is not None and ours >= theirs
    result = {
        "claim": "samforge's int8 vision part loses no more than ModelOpt's",
        "model": fp32.manifest.model,
        "modelopt": found.stdout.strip(),
        "scenes": options.scenes,
        "calibration_images": options.images,
        "rows": rows,
        "holds": holds,
    }
    path = write_result(f"{options.name}.py", result)
    for name, row in rows.items():
        print(f"{name}: mask IoU {row['mask_iou_all']}, agreement {row['agreement']}")
    print(f"-> {path.name}")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
