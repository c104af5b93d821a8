"""The GPU benchmark judges its figures: limits, quotients, growth, and what is missing."""

from __future__ import annotations

import json
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks/gpu"
WHOLE = "whole, 4K pageable, 1 masks a phrase ms"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GPU))
    return import_module("claims")


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GPU))
    return import_module("_timing")


def _figures() -> dict[str, Any]:
    return {
        "fp8": {
            "vision batch 1 ms": 9.4,
            "detector batch 1 prompts 1 ms": 2.6,
            WHOLE: {"median": 13.0, "p95": 14.0},
        },
        "stock": {f"default {WHOLE}": {"median": 45.5, "p95": 50.0}},
    }


def _by_claim(claims: ModuleType, figures: dict[str, Any]) -> dict[str, Any]:
    return {row["claim"]: row for row in claims.judged(figures, set(figures))}


def test_limits_are_kept_or_not(claims: ModuleType) -> None:
    rows = _by_claim(claims, _figures())
    assert rows["vision, fp8, ms"]["holds"]
    assert rows["detector, 1 phrase, ms"] == {
        "claim": "detector, 1 phrase, ms",
        "value": 2.6,
        "limit": 2.5,
        "least": False,
        "holds": False,
    }
    assert rows["whole, 4K pageable, ms"]["holds"]


def test_a_quotient_of_medians_has_a_least_value(claims: ModuleType) -> None:
    row = _by_claim(claims, _figures())["whole, 4K pageable, over torch.compile default, times"]
    assert (row["value"], row["limit"], row["least"], row["holds"]) == (3.5, 3, True, True)


def test_only_contenders_that_took_part_are_asked_and_what_they_lack_counts(
    claims: ModuleType,
) -> None:
    rows = _by_claim(claims, {**_figures(), "package": {}})
    assert "vision, bf16, ms" not in rows
    assert rows["package loads, s"]["value"] is None
    assert not rows["package loads, s"]["holds"]


@pytest.mark.parametrize(("last", "worst", "holds"), [(64.0, 1.0, True), (80.0, 1.111, False)])
def test_cost_by_batch_may_not_grow(
    claims: ModuleType, last: float, worst: float, holds: bool
) -> None:
    costs = {1: 10.0, 2: 20.0, 4: 36.0, 8: last}
    figures = {who: {f"vision batch {n} ms": costs[n]} for n, who in claims.BATCHED.items()}
    row = _by_claim(claims, figures)["vision, ms an image, growth by size, times"]
    assert (row["value"], row["holds"]) == (worst, holds)


def test_backbone_table_has_the_speed_up_over_eager_float32(claims: ModuleType) -> None:
    def row(ms: float) -> dict[str, float]:
        return {
            "mean_ms": ms,
            "median_ms": ms,
            "p95_ms": ms,
            "images_s": 4e3 / ms,
            "weights_mib": 1.0,
        }

    figures = {
        "dinov3-stock": {
            "batch 4 compile s": 30.0,
            "eager fp32 batch 4": row(60.0),
            "compile bf16 batch 4": row(24.0),
        },
        "dinov3-fp8": {"fp8 batch 4": row(15.0)},
    }
    rows = {r["model"]: r["speed_up"] for r in claims.backbone_rows(figures)}
    assert rows == {
        "transformers eager fp32": 1.0,
        "transformers compile bf16": 2.5,
        "samforge fp8": 4.0,
    }
    claim = _by_claim(claims, figures)["DINOv3, batch 4, fp8 over torch.compile, times"]
    assert (claim["value"], claim["holds"]) == (1.6, True)


def test_table_is_short_and_names_what_does_not_hold(claims: ModuleType) -> None:
    figures = _figures()
    figures["fp8"]["vision batch 1 kernels"] = [{"kernel": "gemm", "ms": 1.0}]
    text = claims.table(figures, claims.judged(figures, set(figures)))
    assert "kernels" not in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["detector, 1 phrase, ms"][-4:] == ["2.6", "<=", "2.5", "NO"]
    assert lines[f"fp8: {WHOLE}"][-1] == "13.0"


def test_of_two_runs_the_first_counts(claims: ModuleType, tmp_path: Path) -> None:
    for name, ms in (("a", 9.0), ("b", 9.2)):
        run = {"contenders": ["fp8", name], "figures": {"fp8": {"x ms": ms}, name: {"y ms": ms}}}
        (tmp_path / name).write_text(json.dumps(run))
    figures, contenders = claims.merged([tmp_path / "a", tmp_path / "b"])
    assert figures == {"fp8": {"x ms": 9.0}, "a": {"y ms": 9.0}, "b": {"y ms": 9.2}}
    assert contenders == {"fp8", "a", "b"}


def test_a_section_is_stopped_at_its_time_and_says_so(timing: ModuleType, tmp_path: Path) -> None:
    results = timing.Results(tmp_path / "r.json", 60)
    with results.section("slow", until=time.time() + 0.05) as go:
        assert go
        try:
            time.sleep(5)
        except Exception:  # noqa: BLE001  # as kernel tuning does
            pytest.fail("the alarm was taken for a kernel's failure")
    with results.section("late", until=time.time() - 1) as go:
        assert not go
    kept = json.loads((tmp_path / "r.json").read_text())
    assert set(kept["failed"]) == {"slow", "late"}
    assert kept["failed"]["slow"].startswith("OutOfTime")
    assert kept["failed"]["late"].startswith("skipped")


def test_contenders_read_what_the_run_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    turns = import_module("_turns")
    settings = {"contenders": ("fp8", "stock"), "compile_until": 1.0, "until": 2.0}
    bench = turns.Bench(folder=tmp_path, **settings, source=(216, 384), small=168)
    bench.save()
    assert turns.Bench.load(tmp_path) == bench
