"""``samforge bench``: rows, stages, memory and Markdown of bundles that run at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from made_up import reseal
from PIL import Image

import samforge
from samforge.apps import cli
from samforge.apps.cli.bench_tables import (
    Conditions,
    bundle_rows,
    markdown_from_rows,
    speed_rows,
    stage_rows,
)
from samforge.core.errors import SettingError
from samforge.core.session import PartSpec, TensorSpec
from samforge.core.timing import Timings
from samforge.measure.batches import made_up_inputs
from samforge.measure.latency import StageLatency, latency_from_samples
from samforge.workflows.bench import BenchRow, baseline_among, size_of_parts
from samforge.workflows.bench_subjects import (
    Case,
    subjects_from_bundle,
)
from samforge.workflows.memory import Weight, gpu_bytes_from_csv, weigh

Capture = pytest.CaptureFixture[str]
Make = Callable[..., samforge.Bundle]
QUICK = ("--iterations", "4", "--warm-up", "1", "--no-memory")
STAGES = ["preprocess", "vision", "detector", "post-process", "text"]


def _bench(*words: object) -> int:
    return cli.main(["bench", *map(str, words)])


def test_bundles_are_compared(fake_bundle: Make, capsys: Capture) -> None:
    small, exact = fake_bundle("small", precision="int8"), fake_bundle("exact")
    words = ("--batch", 1, "--batch", 3, "--prompts", 2, *QUICK[:-1], "--json")
    assert _bench(small.root, exact.root, *words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert (report["command"], report["ok"], report["baseline"]) == ("bench", True, "exact")
    rows = report["rows"]
    assert [(row["bundle"], row["batch"], row["prompts"]) for row in rows] == [
        *(("small", 1, 2), ("exact", 1, 2)),
        *(("small", 3, 2), ("exact", 3, 2)),
    ]
    for row in rows:
        base = next(r for r in rows if r["bundle"] == "exact" and r["batch"] == row["batch"])
        total = row["total"]
        assert row["speed_up"] == base["total"]["median_ms"] / total["median_ms"]
        assert row["images_per_second"] == row["batch"] * 1000 / total["mean_ms"]
        assert (total["samples"], row["size_bytes"]) == (4, 3 << 20)
        assert total["min_ms"] <= total["median_ms"] <= total["p95_ms"] <= total["p99_ms"]
        assert [stage["stage"] for stage in row["stages"]] == STAGES
        parts = sum(stage["latency"]["mean_ms"] for stage in row["stages"][:4])
        assert 0.5 * total["mean_ms"] < parts <= total["mean_ms"]
        assert (row["target"], row["runtime"], row["model"]) == (
            "onnxruntime",
            version("onnxruntime"),
            "tiny",
        )
        # An interpreter with numpy, Pillow and ONNX Runtime, and no torch.
        assert 20 << 20 < row["weight"]["resident_bytes"] < 500 << 20
    conditions = report["conditions"]
    assert conditions["versions"]["onnxruntime"] == version("onnxruntime")
    assert (conditions["rounds"], conditions["warm_up"]) == (4, 1)
    assert conditions["input"] == "drawn scenes of 224 x 224"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", conditions["date"])


def test_people_get_tables(fake_bundle: Make, capsys: Capture) -> None:
    assert _bench(fake_bundle().root, "--seconds", 0.05, *QUICK[2:]) == 0
    printed = capsys.readouterr().out
    for word in ("From images to masks", "p99 ms", "post-process", "peak MiB", "1.00x", "numpy"):
        assert word in printed


def test_another_baseline_and_an_image(fake_bundle: Make, tmp_path: Path, capsys: Capture) -> None:
    image = tmp_path / "scene.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(image)
    one, other = fake_bundle("one"), fake_bundle("other", precision="fp16")
    words = ("--baseline", other.root, "--image", image, *QUICK)
    assert _bench(one.root, *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["baseline"] == "other"
    assert [row["bundle"] for row in report["rows"]] == ["other", "one"]
    assert report["rows"][0]["speed_up"] == 1
    assert report["conditions"]["input"] == "scene.png"


def test_markdown_is_a_table(fake_bundle: Make, capsys: Capture) -> None:
    assert _bench(fake_bundle().root, *QUICK, "--markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| bundle | batch | phrases | median ms |")
    assert lines[2].startswith("| fake | 1 | 1 | ")
    assert {line.count("|") for line in lines[:3]} == {lines[0].count("|")}
    assert "| bundle | batch | phrases | preprocess | vision | detector |" in "\n".join(lines)
    assert lines[-1].startswith("`samforge bench`, 2")


def _row(name: str, milliseconds: float, weight: Weight | None) -> BenchRow:
    latency = latency_from_samples([milliseconds])
    return BenchRow(
        bundle=name,
        model="tiny",
        target="onnxruntime",
        runtime="1.31.1",
        precision="int8",
        batch=2,
        prompts=1,
        total=latency,
        images_per_second=2e3 / milliseconds,
        speed_up=2.345,
        stages=(StageLatency(stage="vision", processor="CPU", latency=latency),),
        size_bytes=3 << 19,
        weight=weight,
    )


def test_worked_rows() -> None:
    rows = [
        _row("a|b", 8.765, Weight(resident_bytes=300 << 20, gpu_bytes=None)),
        _row("c", 123.45, None),
    ]
    times = ("8.77", "8.77", "8.77", "8.77")
    assert speed_rows(rows)[0] == ("a|b", 2, 1, *times, "228.18", "2.35x")
    assert bundle_rows([*rows, rows[0]]) == [
        ("a|b", "onnxruntime", "int8", "1.5", "300", None),
        ("c", "onnxruntime", "int8", "1.5", None, None),
    ]
    assert stage_rows(rows) == [("a|b", 2, 1, "8.77"), ("c", 2, 1, "123.5")]
    conditions = Conditions(
        date="2026-01-31",
        processor="AMD EPYC, 2 cores, 24.0 GiB",
        gpus=("NVIDIA L4, driver 580.1",),
        versions={"samforge": "0.2.0", "onnxruntime": "1.31.1"},
        input="drawn scenes of 224 x 224",
        warm_up=3,
        rounds=30,
    )
    assert (
        markdown_from_rows(rows, conditions)
        == """\
| bundle | batch | phrases | median ms | mean ms | p95 ms | p99 ms | images/s | speed-up | target \
| precision | size MiB | peak MiB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|---|--:|--:|
| a\\|b | 2 | 1 | 8.77 | 8.77 | 8.77 | 8.77 | 228.18 | 2.35x | onnxruntime | int8 | 1.5 | 300 |
| c | 2 | 1 | 123.5 | 123.5 | 123.5 | 123.5 | 16.20 | 2.35x | onnxruntime | int8 | 1.5 | – |

Median milliseconds by stage; `text` runs once for a phrase and is not in the total:

| bundle | batch | phrases | vision |
|---|--:|--:|--:|
| a\\|b | 2 | 1 | 8.77 |
| c | 2 | 1 | 123.5 |

`samforge bench`, 2026-01-31: NVIDIA L4, driver 580.1; AMD EPYC, 2 cores, 24.0 GiB; \
samforge 0.2.0, onnxruntime 1.31.1. Input: drawn scenes of 224 x 224. 30 rounds after 3 of \
warm-up, bundles in turn."""
    )


def test_parts_that_are_no_segmenter(fake_bundle: Make, capsys: Capture) -> None:
    backbone = PartSpec(
        name="backbone",
        inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", 3, 32, 32)),),
        outputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 8, 2, 2)),),
    )
    bundle = fake_bundle(parts=(backbone,), text=False)
    assert _bench(bundle.root, "--batch", 2, *QUICK, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert [stage["stage"] for stage in row["stages"]] == ["backbone"]
    assert row["weight"] is None, "nobody asked"


def test_inputs_are_made_up_by_type() -> None:
    spec = PartSpec(
        name="detector",
        inputs=(
            TensorSpec(name="a", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="b", dtype="int64", shape=("prompts", 2)),
            TensorSpec(name="c", dtype="bool", shape=("prompts",)),
        ),
        outputs=(),
    )
    inputs = made_up_inputs(spec, {"batch": 2, "prompts": 3})
    assert {name: (a.dtype.name, a.shape) for name, a in inputs.items()} == {
        "a": ("float32", (2, 4)),
        "b": ("int64", (3, 2)),
        "c": ("bool", (3,)),
    }
    assert np.array_equal(inputs["a"], made_up_inputs(spec, {"batch": 2, "prompts": 3})["a"])
    assert inputs["c"].all()
    with pytest.raises(
        SettingError, match=r"detector has the axis 'prompts', and sizes are known of batch"
    ):
        made_up_inputs(spec, {"batch": 2})


def test_a_batch_that_the_bundle_was_not_built_for(fake_bundle: Make, capsys: Capture) -> None:
    fixed = PartSpec(
        name="backbone",
        inputs=(TensorSpec(name="images", dtype="float32", shape=(1, 3, 32, 32)),),
        outputs=(TensorSpec(name="features", dtype="float32", shape=(1, 8, 2, 2)),),
    )
    bundle = fake_bundle(parts=(fixed,), text=False)
    subjects = subjects_from_bundle(bundle, [Case(batch=2, prompts=1)], None)
    subjects[Case(batch=2, prompts=1), "whole"](Timings())  # a fixed axis stays as it is
    whole = fake_bundle("whole")
    (segment, text) = subjects_from_bundle(whole, [Case(batch=2, prompts=3)], None).values()
    timings = Timings()
    segment(timings)
    text(timings)
    assert {stage.stage for stage in timings.stages()} == {"decode", *STAGES}


def test_the_stressed_model_is_timed_on_scenes_with_words_it_knows(
    fake_bundle: Make, capsys: Capture
) -> None:
    made = fake_bundle()
    reseal(made.root, replace(made.manifest, model="tiny-stressed"))
    # A word that the model does not know would warn, and warnings are errors.
    assert _bench(made.root, "--prompts", 3, *QUICK, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["conditions"]["input"] == "drawn scenes of 224 x 224"
    assert report["rows"][0]["model"] == "tiny-stressed"


def test_sizes_and_the_baseline(fake_bundle: Make) -> None:
    half, exact = fake_bundle("half", precision="fp16"), fake_bundle("exact")
    assert size_of_parts(half) == 3 << 20
    assert baseline_among([half, exact]) == 1
    assert baseline_among([half, half]) == 0


def test_memory_is_that_of_a_process(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    light = weigh(bundle.root, batch=1, prompts=1, threads=None)
    heavy = weigh(bundle.root, batch=400, prompts=1, threads=1)
    assert isinstance(light, Weight)
    assert isinstance(heavy, Weight)
    # 400 scenes of 224 x 224 x 3 bytes are 57 MiB; the tensors come on top.
    assert heavy.resident_bytes - light.resident_bytes > 50 << 20
    missing = weigh(bundle.root / "no", batch=1, prompts=1, threads=None)
    assert isinstance(missing, str)
    assert "ForeignBundle" in missing


def test_memory_of_a_gpu_by_process() -> None:
    assert gpu_bytes_from_csv("12, 1024\n34, 2048\n12, 1\n", 12) == 1025 << 20
    assert gpu_bytes_from_csv("34, 2048\n", 12) is None
    assert gpu_bytes_from_csv("", 12) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--markdown", "--json"), "--markdown and --json are two forms of one result."),
        (("--seconds", "0"), "seconds is 0.0. Give a number above 0."),
        (
            ("--prompts", "64", "--no-memory"),
            "The tiny model knows 63 phrases, 64 were asked for. Give fewer.",
        ),
        (("--image", "no.png"), "no.png does not exist"),
    ],
)
def test_refused(words: tuple[str, ...], message: str, fake_bundle: Make, capsys: Capture) -> None:
    assert _bench(fake_bundle().root, *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


def test_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    assert _bench(tmp_path) == 5
    assert "ForeignBundle" in capsys.readouterr().err
