"""Sections of the report that convince; each gives nothing where its data is missing."""

from __future__ import annotations

from itertools import groupby

from samforge.core.markup import Child, Markup, folded, key, section, tag
from samforge.measure.accuracy import Accuracy
from samforge.measure.segmentation import SegmenterAccuracy
from samforge.report.data import GateRow, LayerRow, ReportData
from samforge.report.plots import layers_plot, sensitivity_plot
from samforge.report.tables import Cell, decibel, figure, picture, table

_HALF = {"int8": "fp16", "fp8": "fp16"}


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
    return section("Side by side", "The same prompts, answered by both.", pairs)


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
    hint = (
        "A build publishes only when all of them hold, at the worse end of the interval: where the "
        "figure would lie on other pictures, in 95 of 100 draws of those that were asked."
    )
    return section("Gates", hint, table(("gate", "", "reached#", "limit#", "worst at"), rows))


def _reached(gate: GateRow) -> str:
    form = ".4f" if gate.at_least else ".3g"
    if gate.interval is None:
        return f"{gate.reached:{form}}"
    low, high = gate.interval
    return f"{gate.reached:{form}} ({low:{form}} to {high:{form}})"


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
        ("box IoU, mean over the objects that both find", figure(found.box_iou)),
        ("mask IoU, with 0 for objects that only one finds", figure(found.mask_iou_all)),
        ("questions answered with the same objects", f"{found.same_objects:.2%}"),
        ("questions where both say something, or both nothing", f"{found.presence_agreement:.2%}"),
        ("score shift of an object, mean", figure(found.score_shift_mean)),
        ("score shift of an object, largest", figure(found.score_shift_max)),
        ("shift of the best score of a question, mean", figure(found.best_score_shift_mean)),
        ("shift of the best score of a question, largest", figure(found.best_score_shift_max)),
        ("shift of the best score where fp32 finds nothing", figure(found.absent_score_shift)),
        ("questions without an answer of fp32's that are given one", str(found.made_up)),
    ]
    asked = data.fidelity_data or f"{found.questions} questions"
    hint = (
        f"{asked}. Two masks are the same object from an IoU of 0.5 on. The best score of a "
        "question counts also where nothing is found: it drifts before masks do."
    )
    return section("Fidelity to fp32", hint, table(("figure", "value#"), rows))


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
    return section("Accuracy", hint, table(columns, rows))


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
    return section(
        "Sensitivity",
        hint,
        sensitivity_plot(data.groups),
        key(("quantized", ""), (f"kept in {half}", "kept")),
        folded(f"All {len(rows)} groups", table(columns, rows)),
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
        plots.append(folded(f"The ten worst of {len(rows)} layers of {part}", _worst_layers(rows)))
    return section("Layer by layer", hint, plots)


def _worst_layers(rows: list[LayerRow]) -> Markup:
    worst = sorted(rows, key=lambda row: row.sqnr_db)[:10]
    return table(
        ("layer", "SQNR, dB#"),
        [(Cell(content=row.path, look="path"), decibel(row.sqnr_db)) for row in worst],
    )


def prompts(data: ReportData) -> Markup | None:
    """Phrases that were asked."""
    if not data.prompts:
        return None
    shown = [tag("li", prompt) for prompt in dict.fromkeys(data.prompts)]
    return section("Prompts", "", tag("ul", shown, class_="chips"))
