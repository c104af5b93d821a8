"""The report's two plots as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from samforge.core.markup import Child, Markup, joined, tag
from samforge.report.data import GroupRow, LayerRow

WIDTH = 880
"""Of a plot, in its own units: about pixels on a desktop."""
_ROW, _BAR = 24, 14
_NAME = 300
_GROUPS = 20
_NAMED, _LINE, _LETTER = 4, 17, 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Maps values to positions along one axis."""

    low: float
    """Value at ``start``."""
    high: float
    """Value at ``end``."""
    start: float
    """Position of ``low``."""
    end: float
    """Position of ``high``."""

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) from ``low`` to ``high`` at most.

    Args:
        low: Smallest value.
        high: Largest, above ``low``.
        count: About how many.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) + 0.0 for i in range(first, last + 1))


def sensitivity_plot(groups: Sequence[GroupRow]) -> Markup:
    """Bars of the damage that each group does alone, the worst first; kept ones are marked.

    Args:
        groups: At least one; the worst are drawn.
    """
    shown = sorted(groups, key=lambda row: -row.damage)[:_GROUPS]
    top = max((row.damage for row in shown if math.isfinite(row.damage)), default=0.0) or 1.0
    height = len(shown) * _ROW + 34
    across = Scale(low=0.0, high=top, start=_NAME, end=WIDTH - 215.0)
    grid = [
        (
            tag("line", x1=across(tick), x2=across(tick), y1=0, y2=height - 30.0, class_="grid"),
            _text(f"{tick:g}", across(tick), height - 12.0, anchor="middle", kind="tick"),
        )
        for tick in ticks(0.0, top)
    ]
    bars = [_group_bar(row, index * _ROW + 4.0, across, top) for index, row in enumerate(shown)]
    label = f"Damage of each group of layers when it alone is quantized, {len(shown)} worst"
    return _figure(height, label, grid, bars)


def _group_bar(row: GroupRow, y: float, across: Scale, top: float) -> Markup:
    end = across(min(row.damage, top))
    kind = "kept" if row.kept else "bar"
    note = f"{row.damage:.2g} · {row.share:.1%} of the work{' · kept' * row.kept}"
    return tag(
        "g",
        tag("title", f"{row.part}/{row.group}: {_decibel(row.sqnr_db)} alone. {row.reason}"),
        _text(_shortened(f"{row.part}/{row.group}", 42), _NAME - 10.0, y + 11, anchor="end"),
        tag("rect", x=float(_NAME), y=y, width=max(1.5, end - _NAME), height=_BAR, class_=kind),
        _text(note, end + 8, y + 11, kind="value"),
    )


def layers_plot(layers: Sequence[LayerRow]) -> Markup:
    """SQNR behind each layer of one part, in the order of the graph; the lowest are named.

    Args:
        layers: Of one part, at least one. Exact ones stand at the upper edge.
    """
    finite = [row.sqnr_db for row in layers if math.isfinite(row.sqnr_db)] or [0.0]
    low, high = 10 * math.floor(min(finite) / 10), 10 * math.ceil(max(finite) / 10)
    left, right, top, bottom = 46.0, WIDTH - 14.0, 24.0, 250.0
    up = Scale(low=low, high=max(high, low + 10), start=bottom, end=top)
    along = Scale(low=-0.5, high=len(layers) - 0.5, start=left, end=right)
    places = [(along(i), _height(row, up)) for i, row in enumerate(layers)]
    grid = [
        (
            tag("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"),
            _text(f"{tick:g}", left - 8, up(tick) + 4, anchor="end", kind="tick"),
        )
        for tick in ticks(up.low, up.high)
    ]
    names = list(_names(layers, places, bottom))
    foot = bottom + 18 + _LINE * len(names)
    return _figure(
        int(foot) + 14,
        f"Signal to noise ratio behind each of {len(layers)} layers, in dB",
        grid,
        names,
        tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), class_="curve"),
        [_dot(row, place, len(layers)) for row, place in zip(layers, places, strict=True)],
        _text("dB", left - 8, top - 13, anchor="end", kind="tick"),
        _text("input", left, foot + 6, kind="tick"),
        _text(f"{len(layers)} layers", (left + right) / 2, foot + 6, anchor="middle", kind="tick"),
        _text("output", right, foot + 6, anchor="end", kind="tick"),
    )


def _dot(row: LayerRow, place: tuple[float, float], count: int) -> Markup:
    title = f"{row.path}: {_decibel(row.sqnr_db)}{' (kept in half)' * row.kept}"
    radius = 3.2 if count <= 160 else 2.2
    kind = "kept" if row.kept else "dot"
    return tag("circle", tag("title", title), cx=place[0], cy=place[1], r=radius, class_=kind)


def _names(
    layers: Sequence[LayerRow], places: Sequence[tuple[float, float]], bottom: float
) -> Iterator[Markup]:
    """Name the lowest layers below the plot, each on a line of its own with a leader to its dot.

    Names end at their leaders where there is room, the leftmost on top, so that leaders pass by.
    """
    worst = sorted(range(len(layers)), key=lambda i: layers[i].sqnr_db)[:_NAMED]
    named = [(i, _shortened(layers[i].path, 48)) for i in worst if layers[i].sqnr_db < math.inf]
    fits = {i: places[i][0] - _LETTER * len(name) > 0 for i, name in named}
    named.sort(key=lambda one: (not fits[one[0]], places[one[0]][0] * (1 if fits[one[0]] else -1)))
    for line, (i, name) in enumerate(named):
        (x, y), low = places[i], bottom + 20 + _LINE * line
        label = f"{name} {_decibel(layers[i].sqnr_db)}"
        shift, anchor = (-6, "end") if fits[i] else (6, "start")
        yield joined(
            tag("line", x1=x, x2=x, y1=y, y2=low, class_="leader"),
            _text(label, x + shift, low, anchor=anchor, kind="name"),
        )


def _height(row: LayerRow, up: Scale) -> float:
    if math.isfinite(row.sqnr_db):
        return up(row.sqnr_db)
    return up.end if row.sqnr_db > 0 else up.start


def _decibel(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.1f} dB"
    return "exact" if value > 0 else "not finite"


def _shortened(name: str, length: int) -> str:
    """Long module paths lose their middle: both ends tell them apart."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _text(text: str, x: float, y: float, *, anchor: str = "start", kind: str = "label") -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=kind)


def _figure(height: int, label: str, *children: Child) -> Markup:
    picture = tag(
        "svg",
        children,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label=label,
        preserveAspectRatio="xMinYMin meet",
    )
    return tag("div", picture, class_="plot", tabindex="0", role="region", aria_label=label)
