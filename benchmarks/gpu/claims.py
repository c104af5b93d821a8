"""What is promised of speed, as data, and whether a run keeps it.

python benchmarks/gpu/claims.py RUN.json [RUN.json ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

Figures = Mapping[str, Mapping[str, Any]]
"""By contender and name, as ``run.json`` has them."""
QUIET = ("kernels", "compile s", "not finite", "found", "build")
"""Ends of the names of figures that no table shows."""
STEP = 1.05
"""A cost that is flat or falling grows by at most this factor from one size to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Where a figure stands in a run."""

    contender: str
    """Who measured it."""
    name: str
    """As it calls it."""
    per: int = 1
    """Images or phrases in one call."""

    def value(self, figures: Figures) -> float | None:
        """The figure of one image or phrase, or None where there is none."""
        found = figures.get(self.contender, {}).get(self.name)
        if isinstance(found, Mapping):
            found = found.get("median", found.get("mean_ms"))
        return None if found is None else float(found) / self.per


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A limit on one figure, on a quotient of two, or on each step of a row."""

    words: str
    """What is claimed."""
    figures: tuple[Figure, ...]
    """One; dividend and divisor; or a row of sizes."""
    limit: float
    """What the value may be."""
    least: bool = False
    """Whether the limit is the least value, not the greatest."""
    steps: bool = False
    """Whether the value is the worst growth from one figure to the next."""

    def value(self, figures: Figures) -> float | None:
        """The value that the limit is about, or None where a figure is missing."""
        found = [figure.value(figures) for figure in self.figures]
        values = [value for value in found if value is not None]
        if len(values) < len(found):
            return None
        if self.steps:
            return max(after / before for before, after in pairwise(values))
        return values[0] if len(values) == 1 else values[0] / values[1]

    def asked(self, contenders: set[str]) -> bool:
        """Whether all who measure it took part."""
        return {figure.contender for figure in self.figures} <= contenders

    def judged(self, figures: Figures) -> dict[str, Any]:
        """The claim with its value; a figure that is missing keeps no promise."""
        value = self.value(figures)
        holds = value is not None and (value >= self.limit if self.least else value <= self.limit)
        return {
            "claim": self.words,
            "value": None if value is None else round(value, 3),
            "limit": self.limit,
            "least": self.least,
            "holds": holds,
        }


def _one(contender: str, name: str, per: int = 1) -> Figure:
    return Figure(contender=contender, name=name, per=per)


def _whole(source: str, mode: str = "") -> str:
    return f"{mode}whole, {source}, 1 masks a phrase ms"


BATCHED = {1: "fp8", 2: "batch2", 4: "batch4", 8: "batch8"}
"""Contenders by batch."""
PROMPTED = {1: "bf16", 4: "prompts4", 16: "prompts16"}
"""Contenders by number of phrases."""
VISION = tuple(_one(who, f"vision batch {n} ms", n) for n, who in BATCHED.items())
DETECTOR = tuple(_one(who, f"detector batch {n} prompts 1 ms", n) for n, who in BATCHED.items())
PHRASES = tuple(_one(who, f"detector batch 1 prompts {n} ms", n) for n, who in PROMPTED.items())
STREAMS = {
    name: tuple(
        _one(who, f"stream of {name}, batch {n}, images a second") for n, who in BATCHED.items()
    )
    for name in ("4K", "model size")
}
CLAIMS = (
    Claim(words="vision, fp8, ms", figures=VISION[:1], limit=9.5),
    Claim(words="vision, bf16, ms", figures=(_one("bf16", "vision batch 1 ms"),), limit=12.5),
    Claim(words="detector, 1 phrase, ms", figures=DETECTOR[:1], limit=2.5),
    Claim(
        words="detector, 16 phrases, ms",
        figures=(_one("prompts16", "detector batch 1 prompts 16 ms"),),
        limit=20,
    ),
    *(
        Claim(words=f"whole, {source}, ms", figures=(_one("fp8", _whole(source)),), limit=13)
        for source in ("4K pageable", "4K pinned")
    ),
    *(
        Claim(
            words=f"whole, {source}, over torch.compile {mode}, times",
            figures=(_one(who, _whole(source, f"{mode} ")), _one("fp8", _whole(source))),
            limit=3,
            least=True,
        )
        for who, mode in (("stock", "default"), ("stock-max", "max-autotune"))
        for source in ("4K pageable", "4K pinned")
    ),
    *(
        Claim(
            words=f"stream of {name}, batch 8, images a second",
            figures=row[-1:],
            limit=85,
            least=True,
        )
        for name, row in STREAMS.items()
    ),
    *(
        Claim(words=f"{words}, growth by size, times", figures=row, limit=STEP, steps=True)
        for words, row in (
            ("vision, ms an image", VISION),
            ("detector, ms an image", DETECTOR),
            ("detector, ms a phrase", PHRASES),
        )
    ),
    *(
        Claim(
            words=f"{words}, with the class token over without it, times",
            figures=(_one(who, name), _one(f"{who}-transformers", name)),
            limit=1.01,
        )
        for words, who, name in (
            ("whole, 4K pinned", "fp8", _whole("4K pinned")),
            ("detector, 16 phrases", "prompts16", "detector batch 1 prompts 16 ms"),
        )
    ),
    Claim(words="peak memory, batch 1, fp8, GB", figures=(_one("fp8", "peak GB"),), limit=3),
    Claim(words="package loads, s", figures=(_one("package", "load s"),), limit=10),
    Claim(
        words="DINOv3, batch 4, fp8 over torch.compile, times",
        figures=(_one("dinov3-stock", "compile bf16 batch 4"), _one("dinov3-fp8", "fp8 batch 4")),
        limit=1.5,
        least=True,
    ),
)
"""Everything that a run can tell."""


def judged(figures: Figures, contenders: set[str]) -> list[dict[str, Any]]:
    """Every claim that these contenders are asked about."""
    return [claim.judged(figures) for claim in CLAIMS if claim.asked(contenders)]


def backbone_rows(figures: Figures) -> list[dict[str, Any]]:
    """The table of the DINOv3 backbone, with the speed-up over eager fp32 of the same batch."""
    rows = []
    for name, contender in figures.items():
        if not name.startswith("dinov3-"):
            continue
        for words, value in contender.items():
            if not isinstance(value, Mapping):  # seconds of compiling
                continue
            variant, _, batch = words.rpartition(" batch ")
            base = _one("dinov3-stock", f"eager fp32 batch {batch}").value(figures)
            speed_up = None if base is None else round(base / value["mean_ms"], 2)
            owner = "transformers" if name == "dinov3-stock" else "samforge"
            row = {"model": f"{owner} {variant}", "batch": int(batch), **value}
            rows.append({**row, "speed_up": speed_up})
    return sorted(rows, key=lambda row: row["batch"])


def merged(runs: list[Path]) -> tuple[dict[str, Any], set[str]]:
    """Figures and contenders of several runs; where two have the same contender, the first."""
    figures: dict[str, Any] = {}
    contenders: set[str] = set()
    for path in runs:
        run = json.loads(path.read_text())
        figures = {**run["figures"], **figures}
        contenders |= set(run["contenders"])
    return figures, contenders


def table(figures: Figures, holds: list[dict[str, Any]]) -> str:
    """Figures, then claims with their limits: what a run prints last."""
    lines = [f"{'figure':70} {'value':>10}"]
    for contender, values in figures.items():
        for name, value in values.items():
            if name.endswith(QUIET) or contender.startswith("dinov3-"):
                continue
            shown = value.get("median") if isinstance(value, Mapping) else value
            lines.append(f"{f'{contender}: {name}':70} {shown!s:>10}")
    rows = backbone_rows(figures)
    if rows:
        columns = ("mean_ms", "p95_ms", "images_s", "weights_mib", "speed_up")
        lines += ["", f"{'DINOv3':42} {'batch':>5} " + " ".join(f"{c:>11}" for c in columns)]
        lines += [
            f"{row['model']:42} {row['batch']:5} " + " ".join(f"{row[c]!s:>11}" for c in columns)
            for row in rows
        ]
    lines += ["", f"{'claim':60} {'value':>9}    {'limit':>6} holds"]
    for row in holds:
        sign = ">=" if row["least"] else "<="
        value = "missing" if row["value"] is None else row["value"]
        answer = "yes" if row["holds"] else "NO"
        lines.append(f"{row['claim']:60} {value!s:>9} {sign} {row['limit']:>6} {answer}")
    return "\n".join(lines)


def main() -> int:
    """Judge runs that were made; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    figures, contenders = merged(parser.parse_args().runs)
    holds = judged(figures, contenders)
    print(table(figures, holds))
    return int(not all(row["holds"] for row in holds))


if __name__ == "__main__":
    sys.exit(main())
