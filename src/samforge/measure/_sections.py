"""The sections of the report, top to bottom; each gives nothing where its data is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby

from samforge.core.structure import json_from_value
from samforge.measure._markup import Child, Markup, tag
from samforge.measure._plots import layers_plot, sensitivity_plot
from samforge.measure._tables import Cell, decibel, figure, mebibytes, picture, small, table
from samforge.measure.accuracy import Accuracy
from samforge.measure.report_data import GateRow, LayerRow, ReportData
from samforge.measure.segmentation import SegmenterAccuracy

_HALF = {"int8": "fp16", "fp8": "fp16"}


def header(data: ReportData) -> Markup:
    """What it is, whether it holds, and the figures that matter most."""
    held = len([gate for gate in data.gates if gate.holds])
    verdict = "Every gate held" if data.holds else "A gate failed: nothing was published"
    notes = list(data.notes)
    if data.random_weights:
        notes.insert(0, "The weights are random: size and speed mean something, masks do not.")
    return tag(
        "header",
        tag("p", "samforge report", class_="eyebrow"),
        tag("h1", f"{data.model}, {data.precision} for {data.target}"),
        tag(
            "p",
            f"{data.family} at {data.image_size} px, built {_date(data.created)}",
            class_="lead",
        ),
        tag(
            "p",
            f"{'✓' if data.holds else '✗'} {verdict} ({held} of {len(data.gates)})",
            class_=f"verdict {'good' if data.holds else 'bad'}",
        )
        if data.gates
        else None,
        [tag("p", note, class_="note") for note in notes],
        _tiles(data),
    )


def _date(created: str) -> str:
    """A manifest's date without seconds; another text as it is."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def _tiles(data: ReportData) -> Markup:
    size = sum(part.bytes for part in data.parts)
    before = [part.reference_bytes for part in data.parts]
    known = sum(one for one in before if one is not None) if None not in before else 0
    tiles = [
        _tile("Size", f"{mebibytes(size)} MiB", f"{size / known:.2f} of fp32" if known else "")
    ]
    if data.fidelity is not None and data.fidelity.mask_iou is not None:
        same, objects = data.fidelity.pairs, data.fidelity.reference_objects
        hint = f"{same} of {objects} objects of fp32 found"
        tiles.append(_tile("Mask IoU with fp32", f"{data.fidelity.mask_iou:.4f}", hint))
    mine, theirs = data.accuracy, data.reference_accuracy
    if mine is not None and mine.cgf1 is not None:
        drop = "" if theirs is None or theirs.cgf1 is None else f"fp32 {theirs.cgf1.cgf1:.4f}"
        tiles.append(_tile("cgF1", f"{mine.cgf1.cgf1:.4f}", drop))
    if mine is not None:
        hint = ""
        if theirs is not None:
            hint = f"{data.reference_name} in the same run: {theirs.image_ms:.0f} ms"
        tiles.append(_tile("Time an image", f"{mine.image_ms:.0f} ms", hint))
    return tag("dl", tiles, class_="tiles")


def _tile(name: str, value: str, hint: str) -> Markup:
    return tag(
        "div",
        tag("dt", name),
        tag("dd", value, tag("small", hint) if hint else None),
        class_="tile",
    )


def overlays(data: ReportData) -> Markup | None:
    """The same prompts answered by fp32 and by this bundle."""
    if not data.overlays:
        return None
    ours = f"{data.precision}, this bundle"
    pairs = [
        tag(
            "figure",
            tag(
                "figcaption",
                tag("span", f"“{pair.prompt}”", class_="prompt"),
                tag("span", pair.note, class_="figures") if pair.note else None,
            ),
            tag(
                "div",
                tag(
                    "div",
                    tag("span", "fp32"),
                    picture(pair.reference_rgb, f"{pair.prompt}: fp32's answer"),
                ),
                tag("div", tag("span", ours), picture(pair.rgb, f"{pair.prompt}: this answer")),
                class_="sides",
            ),
            class_="pair",
            style="margin-inline:0",
        )
        for pair in data.overlays
    ]
    return _section("Side by side", "The same prompts, answered by both.", pairs)


def gates(data: ReportData) -> Markup | None:
    """Every gate with its limit and what was reached."""
    if not data.gates:
        return None
    rows = [
        (
            gate.name,
            Cell(content="✓ held" if gate.holds else "✗ failed", look=_look(gate)),
            _reached(gate),
            f"{'at least' if gate.at_least else 'at most'} {gate.limit:g}",
            gate.where or None,
        )
        for gate in data.gates
    ]
    hint = "A build publishes only when all of them hold."
    return _section("Gates", hint, table(("gate", "", "reached#", "limit#", "worst at"), rows))


def _reached(gate: GateRow) -> str:
    return f"{gate.reached:.4f}" if gate.at_least else f"{gate.reached:.3g}"


def _look(gate: GateRow) -> str:
    return "good" if gate.holds else "bad"


def fidelity(data: ReportData) -> Markup | None:
    """This bundle's answers against fp32's."""
    found = data.fidelity
    if found is None:
        return None
    rows = [
        (
            "objects of fp32 that this bundle finds too",
            f"{found.pairs} of {found.reference_objects}",
        ),
        ("objects that only this bundle finds", str(found.objects - found.pairs)),
        ("mask IoU, mean over the objects that both find", figure(found.mask_iou)),
        ("mask IoU, worst of them", figure(found.mask_iou_min)),
        ("mask IoU, with 0 for objects that only one finds", figure(found.mask_iou_all)),
        ("questions answered with the same objects", f"{found.same_objects:.2%}"),
        ("questions where both say something, or both nothing", f"{found.presence_agreement:.2%}"),
        ("score shift of an object, mean", figure(found.score_shift_mean)),
        ("score shift of an object, largest", figure(found.score_shift_max)),
        ("shift of the best score of a question, mean", figure(found.best_score_shift_mean)),
        ("shift of the best score of a question, largest", figure(found.best_score_shift_max)),
    ]
    asked = f"{found.questions} questions" + (
        f" on {data.fidelity_data}" if data.fidelity_data else ""
    )
    hint = (
        f"{asked}. Two masks are the same object from an IoU of 0.5 on. The best score of a "
        "question counts also where nothing is found: it drifts before masks do."
    )
    return _section("Fidelity to fp32", hint, table(("figure", "value#"), rows))


def accuracy(data: ReportData) -> Markup | None:
    """Both on labelled images."""
    measured = [
        (data.reference_name, data.reference_accuracy),
        (f"{data.precision} in {data.target}", data.accuracy),
    ]
    rows = [_accuracy_row(name, one) for name, one in measured if one is not None]
    if not rows or data.random_weights:
        return None
    columns = ("", "text F1#", "mask IoU#", "presence#", "boxes F1#", "cgF1#", "ms an image#")
    images = next(one.images for _, one in measured if one is not None)
    hint = (
        f"{images} labelled images. F1 and presence at mask IoU 0.5; cgF1 is SA-Co's metric, "
        "positive micro F1 over IoU 0.50 to 0.95 times Matthews' coefficient of presence. Times "
        "compare within this table only."
    )
    return _section("Accuracy", hint, table(columns, rows))


def _accuracy_row(name: str, one: SegmenterAccuracy) -> tuple[Child, ...]:
    def f1(accuracy: Accuracy | None) -> str | None:
        return None if accuracy is None else figure(accuracy.f1)

    text = one.text
    return (
        name,
        f1(text),
        None if text is None else figure(text.mean_iou),
        None if text is None else figure(text.presence),
        f1(one.boxes),
        None if one.cgf1 is None else figure(one.cgf1.cgf1),
        f"{one.image_ms:.1f}",
    )


def sensitivity(data: ReportData) -> Markup | None:
    """What quantizing each group alone costs, and which stay in half."""
    if not data.groups:
        return None
    half = _HALF.get(data.precision, "half")
    kept = [row for row in data.groups if row.kept]
    stay = "stays" if len(kept) == 1 else "stay"
    hint = (
        f"{len(kept)} of {len(data.groups)} groups {stay} in {half}."
        if kept
        else f"No group has to stay in {half}."
    ) + " Each bar is one group of layers quantized alone, and how much damage that does."
    rows = [
        (
            Cell(content=f"{row.part}/{row.group}", look="path"),
            f"{row.share:.2%}",
            decibel(row.sqnr_db),
            f"{row.damage:.3g}",
            Cell(content=f"kept in {half}" if row.kept else "quantized", look="word"),
            row.reason or None,
        )
        for row in sorted(data.groups, key=lambda row: -row.damage)
    ]
    columns = ("group", "share of work#", "SQNR alone, dB#", "damage#", "", "why")
    return _section(
        "Sensitivity",
        hint,
        sensitivity_plot(data.groups),
        _key(("quantized", ""), (f"kept in {half}", "kept")),
        _folded(f"All {len(rows)} groups", table(columns, rows)),
    )


def layers(data: ReportData) -> Markup | None:
    """Signal to noise behind every layer, one plot a part."""
    if not data.layers:
        return None
    hint = (
        "Signal to quantization noise behind each layer, with everything before it quantized too. "
        "At 20 dB the noise is a tenth of the signal, at 40 dB a hundredth. Point at a dot to see "
        "which layer it is."
    )
    plots = []
    for part, group in groupby(data.layers, key=lambda row: row.part):
        rows = list(group)
        plots.append(tag("h3", part))
        plots.append(layers_plot(rows))
        plots.append(_folded(f"The ten worst of {len(rows)} layers of {part}", _worst_layers(rows)))
    return _section("Layer by layer", hint, plots)


def _worst_layers(rows: list[LayerRow]) -> Markup:
    worst = sorted(rows, key=lambda row: row.sqnr_db)[:10]
    return table(
        ("layer", "SQNR, dB#"),
        [(Cell(content=row.path, look="path"), decibel(row.sqnr_db)) for row in worst],
    )


def steps(data: ReportData) -> Markup | None:
    """What was done, what it took, and how faithful each result is."""
    if not data.steps:
        return None
    rows = [
        (
            Cell(content=step.name, look="word"),
            step.part,
            f"{step.seconds:.1f}",
            mebibytes(step.bytes),
            _worst(step.fidelity, "gated", largest=True),
            _worst(step.fidelity, "sqnr_db", largest=False),
            None if step.peak_gib is None else f"{step.peak_gib:.1f}",
            "yes" if step.resumed else "no",
        )
        for step in data.steps
    ]
    columns = (
        *("step", "part", "time, s#", "size, MiB#", "largest difference#", "SQNR, dB#"),
        *("peak, GiB#", "resumed"),
    )
    total = sum(step.seconds for step in data.steps)
    hint = (
        f"{len(rows)} steps in {total:.0f} s. Differences are the worst over outputs and sizes, "
        "relative where values exceed 1, as the gates take them."
    )
    return _section("Steps", hint, table(columns, rows))


def _worst(rows: Iterable[Mapping[str, object]], key: str, *, largest: bool) -> str | None:
    # A manifest keeps infinity as a string.
    values = [float(str(row[key])) for row in rows if row.get(key) is not None]
    if not values:
        return None
    return small(max(values)) if largest else decibel(min(values))


def parts(data: ReportData) -> Markup | None:
    """The files and what they take."""
    if not data.parts:
        return None
    rows = [
        (
            part.name,
            Cell(content=part.artifact, look="path"),
            mebibytes(part.bytes),
            None if part.reference_bytes is None else mebibytes(part.reference_bytes),
            f"{part.bytes / part.reference_bytes:.2f}" if part.reference_bytes else None,
            _counts(part.precisions or {}),
        )
        for part in data.parts
    ]
    columns = ("part", "file", "size, MiB#", "fp32, MiB#", "ratio#", "operators")
    return _section("Parts", "", table(columns, rows))


def engines(data: ReportData) -> Markup | None:
    """What each engine computes, and where that was read."""
    if not data.engines:
        return None
    rows = [
        (
            row.part,
            Cell(content=row.form, look="word"),
            _counts(row.products),
            _counts(row.convolutions),
            None if row.attentions is None else str(row.attentions),
            mebibytes(row.bytes),
            f"{row.build_s:.1f}",
        )
        for row in data.engines
    ]
    columns = ("part", "attention", "products", "convolutions", "fused#", "size, MiB#", "build, s#")
    sources = dict.fromkeys(row.source for row in data.engines if row.source)
    versions = dict.fromkeys(row.version for row in data.engines if row.version)
    hint = f"Built by {data.target} {', '.join(versions)}."
    if sources:
        hint += f" Counts are held against the graph's plan; read from {' and '.join(sources)}."
    return _section("Engines", hint, table(columns, rows))


def _counts(formats: Mapping[str, int]) -> str | None:
    return ", ".join(f"{count} {name}" for name, count in formats.items()) or None


def fusions(data: ReportData) -> Markup | None:
    """What the fusions did, and what they left."""
    if not data.fusions:
        return None
    rows = [
        (row.part, Cell(content=row.name, look="word"), str(row.fired), str(len(row.left)))
        for row in data.fusions
    ]
    left = [
        tag("li", tag("code", f"{row.part}, {row.name}: {why}"))
        for row in data.fusions
        for why in row.left
    ]
    return _section(
        "Fusions",
        "Places of the graph that were rewritten, each proven equal.",
        table(("part", "fusion", "fired#", "left#"), rows),
        _folded(f"{len(left)} candidates left, and why", tag("ul", left)) if left else None,
    )


def prompts(data: ReportData) -> Markup | None:
    """Phrases that were asked."""
    if not data.prompts:
        return None
    shown = [tag("li", prompt) for prompt in dict.fromkeys(data.prompts)]
    return _section("Prompts", "", tag("ul", shown, class_="chips"))


def origin(data: ReportData) -> Markup:
    """Versions, the recipe and the licence."""
    versions = [(name, Cell(content=number, look="path")) for name, number in data.versions.items()]
    recipe = None
    if data.recipe is not None:
        text = json.dumps(json_from_value(data.recipe), indent=2, ensure_ascii=False)
        recipe = _folded("Recipe", tag("pre", text))
    license_ = (
        f"The weights are under their own licence: {data.weights_license}. Read it before use."
    )
    return _section(
        "Origin",
        "",
        table(("made with", "version"), versions),
        recipe,
        tag("h3", "Licence of the weights"),
        tag("p", license_),
        _folded("Text of the licence", tag("pre", data.license_text))
        if data.license_text
        else None,
    )


def _section(title: str, hint: str, *children: Child) -> Markup:
    return tag(
        "section", tag("h2", title), tag("p", hint, class_="hint") if hint else None, children
    )


def _folded(title: str, content: Child) -> Markup:
    return tag("details", tag("summary", title), content)


def _key(*entries: tuple[str, str]) -> Markup:
    return tag("ul", [tag("li", name, class_=kind or None) for name, kind in entries], class_="key")
