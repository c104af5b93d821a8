"""SAM 3 by ONNX Runtime on one GPU: the form of graph built for it against plain half graphs.

    python benchmarks/gpu/onnxruntime_cuda.py --out FILE [--kernels] [--limit-s 450]

Graphs are made on the processor from random weights, one process a part, and kept in ``--folder``.
Then each form is loaded, held to the float32 part as torch runs it on the same GPU, and timed:
every part alone, vision and detector one after the other on the device, and the whole span from a
picture on the host to masks. Figures are medians after a warm-up, of both forms in one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from _parts import family_checkpoint, family_inputs, family_part, family_spec
from _timing import Results, call_ms, kernels, synchronize, wall_ms

from samforge.runtime.device.session import run

PARTS = ("vision", "detector", "text")
FORMS = ("cuda", "half")
"""What is built for the target ``onnxruntime-cuda``, and the plain half form of ``onnxruntime``."""
SIZES = {"batch": 1, "prompts": 1}
AIMS_MS = {"vision": 25.0, "detector": 7.0, "whole": 35.0}
"""On an H100, in the form of this target."""
PICTURE = (1080, 1920)
OBJECTS = 4
"""Masks that come to the host: random weights find nothing, so a threshold admits these."""
NEEDED_S = 40.0
"""Below which no further form is loaded."""


def make(name: str, model: str, size: int | None, folder: Path) -> dict[str, float]:
    """Convert one part to a graph in every form, in a process of its own; gives seconds."""
    import onnx_ir as ir

    from samforge.transform.export import TRACED_SIZES, exported_from_part
    from samforge.transform.fuse import fuse
    from samforge.transform.onnx.convert import onnx_from_exported, save_onnx
    from samforge.transform.onnx.cuda_flavour import note_sizes, to_cuda
    from samforge.transform.onnx.half import cast_half

    begin = time.perf_counter()
    torch.set_num_threads(4)
    checkpoint = family_checkpoint("sam3", model, size)
    part = family_part("sam3", checkpoint, name)
    exported = exported_from_part(part, family_inputs(checkpoint, part.spec, dict(TRACED_SIZES), 0))
    exported = fuse(exported, target="onnxruntime-cuda").program
    seconds = {"export": round(time.perf_counter() - begin, 1)}
    base = folder / f"{name}.onnx"
    save_onnx(onnx_from_exported(exported, part.spec), base)
    seconds["onnx"] = round(time.perf_counter() - begin, 1)
    del part, exported
    gc.collect()
    for form in FORMS:
        graph = ir.load(base)
        graph = to_cuda(graph, "fp16") if form == "cuda" else cast_half(graph)
        note_sizes(graph)
        save_onnx(graph, folder / f"{name}.{form}.onnx")
    seconds["all"] = round(time.perf_counter() - begin, 1)
    (folder / f"{name}.done").touch()
    return seconds


def prepare(options: argparse.Namespace, results: Results) -> None:
    """Make what is not there yet."""
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in PARTS if not (options.folder / f"{name}.done").exists()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(PARTS), mp_context=spawn) as pool:
        made = {
            name: pool.submit(make, name, options.model, options.image_size, options.folder)
            for name in wanted
        }
        for name, future in made.items():
            results.add(f"{name} made s", future.result())
    for path in sorted(options.folder.glob("*.onnx*")):
        results.add(f"{path.name} MiB", round(path.stat().st_size / 2**20, 1))


class Bench:
    """One run: the reference's answers, and the figures of each form."""

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        self.options, self.results = options, results
        self.checkpoint = family_checkpoint("sam3", options.model, options.image_size)
        self.inputs: dict[str, list[dict[str, torch.Tensor]]] = {}
        self.reference: dict[str, dict[str, torch.Tensor]] = {}
        for name in PARTS:
            spec = family_spec("sam3", self.checkpoint, name)
            self.inputs[name] = [
                {
                    key: tensor.cuda()
                    for key, tensor in family_inputs(self.checkpoint, spec, SIZES, seed).items()
                }
                for seed in range(3)
            ]

    @torch.inference_mode()
    def ask_reference(self) -> None:
        """What torch computes of the float32 parts, on this GPU; TF32 is off by default."""
        for name in PARTS:
            part = family_part("sam3", self.checkpoint, name)
            part = dataclasses.replace(part, module=part.module.cuda())
            self.reference[name] = {
                key: tensor.clone() for key, tensor in part(self.inputs[name][0]).items()
            }
            words = f"{name}, torch fp32 eager, ms"
            self.results.add(
                words, call_ms(lambda part=part: part(self.inputs[part.spec.name][0]), 5)
            )
            part.module.cpu()
            del part
            gc.collect()
            torch.cuda.empty_cache()

    def form(self, form: str) -> None:
        """Load one form of every part and measure it."""
        from samforge.backends.onnxruntime.cuda import CudaSession

        sessions: dict[str, Any] = {}
        for name in PARTS:
            with self.results.section(f"{form}, {name}", NEEDED_S / 2) as go:
                if not go:
                    continue
                begin = time.perf_counter()
                spec = family_spec("sam3", self.checkpoint, name)
                session = CudaSession(self.options.folder / f"{name}.{form}.onnx", spec)
                sessions[name] = session
                self.results.add(f"{form}, {name}, load s", round(time.perf_counter() - begin, 2))
                self.part(form, name, sessions[name])
        with self.results.section(f"{form}, chain", 10) as go:
            if go:
                self.chain(form, sessions)
        with self.results.section(f"{form}, whole", 10) as go:
            if go:
                self.whole(form, sessions)
        for one in sessions.values():
            one.close()
        gc.collect()

    def part(self, form: str, name: str, session: Any) -> None:
        """Fidelity of one part, its time alone, and its time in a queue of many."""
        inputs, words = self.inputs[name], f"{form}, {name}"
        found = run(session, inputs[0])
        for key, wanted in self.reference.get(name, {}).items():
            self.results.add(f"{words}, {key} cosine", cosine(found[key], wanted))
        times = wall_ms(
            lambda index: run(session, inputs[index % len(inputs)]), self.options.rounds
        )
        self.results.add(f"{words}, ms", times)
        self.results.add(f"{words}, queued ms", queued_ms(lambda: run(session, inputs[0])))
        if self.options.kernels:
            seen = kernels(lambda: run(session, inputs[0]))
            self.results.add(f"{words}, kernels", seen)
            self.results.add(f"{words}, kernels sum ms", round(sum(row["ms"] for row in seen), 3))

    def chain(self, form: str, sessions: Mapping[str, Any]) -> None:
        """Vision and detector on the device, phrase features given."""
        text = run(sessions["text"], self.inputs["text"][0])
        wanted = [tensor.name for tensor in sessions["detector"].spec.inputs]

        def call(index: int) -> dict[str, torch.Tensor]:
            features = run(sessions["vision"], self.inputs["vision"][index % 3])
            given = {**features, **text}
            return run(sessions["detector"], {name: given[name] for name in wanted})

        self.results.add(f"{form}, vision and detector, ms", wall_ms(call, self.options.rounds))

    def whole(self, form: str, sessions: Mapping[str, Any]) -> None:
        """From pictures in pinned memory of the host to masks, through the device segmenter."""
        from _spans import PHRASE, pictures

        from samforge.media import read_image
        from samforge.models.sam3.byte_tokenizer import byte_tokenizer
        from samforge.runtime import PhraseTokenizer, segmenter_from_sessions

        file = self.checkpoint.tokenizer
        if file is None:
            file = self.options.folder / "tokenizer.json"
            byte_tokenizer(self.checkpoint.config.text_config.vocab_size).save(str(file))
        tokenizer = PhraseTokenizer(file, self.checkpoint.context, 0)
        segmenter = segmenter_from_sessions(sessions, self.checkpoint.image, tokenizer, read_image)
        self.results.add(f"{form}, way", segmenter.processor)
        images = [torch.from_numpy(one).pin_memory() for one in pictures(*PICTURE)]
        thresholds = []
        for image in images:
            scores = segmenter.predict(image, text=PHRASE, threshold=0.0).scores
            first, second = sorted(scores, reverse=True)[OBJECTS - 1 : OBJECTS + 1]
            thresholds.append(float(first + second) / 2)
        counts: list[int] = []

        def call(index: int) -> None:
            one = index % len(images)
            found = segmenter.predict(images[one], text=PHRASE, threshold=thresholds[one])
            counts.append(len(found))

        self.results.add(f"{form}, whole, ms", wall_ms(call, self.options.rounds))
        self.results.add(f"{form}, whole, masks", statistics.mean(counts))


def cosine(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of two tensors as vectors; -1 where one is not finite."""
    one, other = found.double().flatten(), wanted.double().flatten()
    if not (one.isfinite().all() and other.isfinite().all()):
        return -1.0
    return round(float(torch.nn.functional.cosine_similarity(one, other, dim=0)), 8)


def queued_ms(call: Callable[[], Any], calls: int = 10) -> float:
    """Time of one call among many that are queued without waiting: launches overlap kernels."""
    call()
    synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return round((time.perf_counter() - begin) * 1e3 / calls, 3)


def judged(figures: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether the aims are met; None where there is no figure."""
    rows = {name: figures.get(f"cuda, {name}, ms") for name in AIMS_MS}
    return {name: row and row["median"] <= AIMS_MS[name] for name, row in rows.items()}


def main() -> int:
    """Make the graphs, ask torch, measure both forms; 1 where the form for CUDA has no figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/onnxruntime-cuda"))
    parser.add_argument("--model", default="facebook/sam3")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit-s", type=float, default=450)
    parser.add_argument("--forms", default=",".join(FORMS), help="in this order")
    parser.add_argument("--kernels", action="store_true", help="also the kernels of each part")
    parser.add_argument("--only-make", action="store_true", help="stop when the graphs are made")
    options = parser.parse_args()
    results = Results(options.out, options.limit_s)
    prepare(options, results)
    if options.only_make:
        return 0
    import onnxruntime

    results.values["conditions"]["onnxruntime"] = onnxruntime.__version__
    results.values["conditions"]["providers"] = onnxruntime.get_available_providers()
    bench = Bench(options, results)
    with results.section("reference", 2 * NEEDED_S) as go:
        if go:
            bench.ask_reference()
    for form in options.forms.split(","):
        with results.section(form, NEEDED_S) as go:
            if go:
                bench.form(form)
    results.add("aims met", judged(results.values["figures"]))
    return int("cuda, vision, ms" not in results.values["figures"])


if __name__ == "__main__":
    sys.exit(main())
