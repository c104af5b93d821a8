"""Draw what runs of ``run.py`` measured: cost by batch, by phrases, and of the whole span.

python benchmarks/gpu/plot.py RUN.json [RUN.json ...] --out docs/gpu.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
from claims import BATCHED, DETECTOR, PHRASES, PROMPTED, STREAMS, VISION, Figure, Figures, merged

OURS, OURS_LIGHT, THEIRS, DARK = "#2f7d5b", "#9fd0b8", "#a9adb5", "#2b2f36"
SPANS = (
    ("transformers\neager", "stock", "eager ", THEIRS),
    ("torch.compile\ndefault", "stock", "default ", THEIRS),
    ("torch.compile\nmax-autotune", "stock-max", "max-autotune ", THEIRS),
    ("samforge\nbf16", "bf16", "", OURS),
    ("samforge\nfp8", "fp8", "", OURS),
)
"""Label, contender, first words of its figures, colour."""
LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8,
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.14),
}
SPAN = "whole, {}, 1 masks a phrase ms"


def known(pairs: list[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    """Sizes and values of what was measured."""
    kept = [(size, value) for size, value in pairs if value is not None]
    return [size for size, _ in kept], [value for _, value in kept]


def draw_batches(axes: Any, figures: Figures) -> None:
    """Milliseconds an image: bars of the parts, points of a stream with everything."""
    for place, (vision, detector) in enumerate(zip(VISION, DETECTOR, strict=True)):
        parts = [vision.value(figures) or 0.0, detector.value(figures) or 0.0]
        labelled = place == 0
        for value, base, colour, words in (
            (parts[0], 0.0, OURS, "vision, fp8"),
            (parts[1], parts[0], OURS_LIGHT, "detector, one phrase"),
        ):
            axes.bar(place, value, 0.62, base, color=colour, label=words if labelled else None)
        if sum(parts):
            axes.text(place, sum(parts) / 2, f"{sum(parts):.1f}", ha="center", color="white")
    for name, mark in (("4K", "o"), ("model size", "D")):
        rates = [figure.value(figures) for figure in STREAMS[name]]
        places, costs = known([(i, 1e3 / rate if rate else None) for i, rate in enumerate(rates)])
        axes.plot(places, costs, mark, color=DARK, label=f"stream of {name}, to masks", ms=6)
    axes.set_xticks(range(len(BATCHED)), [str(batch) for batch in BATCHED])
    axes.set(title="cost of an image, by batch", xlabel="images in one call", ylabel="ms")
    axes.legend(**LEGEND, ncols=2)


def draw_prompts(axes: Any, figures: Figures) -> None:
    """Milliseconds a phrase on one encoded image."""
    values = [figure.value(figures) for figure in PHRASES]
    places, costs = known(list(enumerate(values)))
    axes.bar(places, costs, 0.62, color=OURS_LIGHT, label="detector, bf16")
    for place, cost in zip(places, costs, strict=True):
        axes.text(place, cost / 2, f"{cost:.2f}", ha="center", color=DARK)
    whole = [
        Figure(contender=who, name=f"{n} phrases on encoded 4K with masks ms", per=n).value(figures)
        for n, who in PROMPTED.items()
    ]
    places, costs = known(list(enumerate(whole)))
    axes.plot(places, costs, "o", color=DARK, label="with masks at 4K on the host", ms=6)
    axes.set_xticks(range(len(PROMPTED)), [str(count) for count in PROMPTED])
    axes.set(title="cost of a phrase, by phrases", xlabel="phrases on one image", ylabel="ms")
    axes.legend(**LEGEND)


def draw_spans(axes: Any, figures: Figures) -> None:
    """The whole span at batch 1, from pageable and from pinned memory."""
    rows = [
        row
        for row in SPANS
        if Figure(contender=row[1], name=row[2] + SPAN.format("4K pageable")).value(figures)
    ]
    for place, (_, contender, mode, colour) in enumerate(rows):
        for shift, source, light in ((-0.2, "4K pageable", 1.0), (0.2, "4K pinned", 0.55)):
            name = mode + SPAN.format(source)
            value = Figure(contender=contender, name=name).value(figures)
            if value is not None:
                axes.barh(place + shift, value, 0.36, color=colour, alpha=light)
                words = f" {value:.1f} {source.split()[1]}"
                axes.text(value, place + shift, words, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.28)
    axes.set(title="4K picture on the host to masks on the host", xlabel="ms, batch 1, one phrase")


def draw(figures: Figures, conditions: dict[str, Any], out: Path) -> None:
    """One picture of all three."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False})
    plt.rcParams["axes.spines.right"] = False
    widths = {"width_ratios": (1, 0.8, 1.4)}
    figure, (batches, prompts, spans) = plt.subplots(
        1, 3, figsize=(12, 4), layout="constrained", gridspec_kw=widths
    )
    draw_batches(batches, figures)
    draw_prompts(prompts, figures)
    draw_spans(spans, figures)
    versions = conditions["versions"]
    where = f"{conditions['gpu'] or 'a processor'}, torch {versions['torch']}, "
    where += f"transformers {versions['transformers']}, {conditions['date']}, random weights"
    figure.suptitle(f"SAM 3 · {where}", fontsize=9, color=DARK)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    """Read the runs and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figures, _ = merged(options.runs)
    draw(figures, json.loads(options.runs[0].read_text())["conditions"], options.out)


if __name__ == "__main__":
    main()
