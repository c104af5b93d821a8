"""The report page: what it says, and that nothing in it can be mistaken for markup."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samforge.core.errors import OutputError
from samforge.core.manifest import StepResult
from samforge.core.markup import Markup, joined, tag
from samforge.measure.accuracy import Accuracy
from samforge.measure.cgf1 import cgf1_from_outcomes, outcome_from_iou
from samforge.measure.predictions import AnswerFidelity, fidelity_from_answers
from samforge.measure.segmentation import SegmenterAccuracy
from samforge.report import (
    EngineRow,
    FusionRow,
    GateRow,
    GroupRow,
    LayerRow,
    OverlayPair,
    PartRow,
    ReportData,
    report_html,
    write_report,
)
from samforge.report.plots import Scale, layers_plot, sensitivity_plot, ticks
from samforge.report.tables import picture
from samforge.steps.report import gate_rows

VOID = {"meta", "img", "line", "rect", "circle", "path"}
HOSTILE = "</title></style><script>alert(1)</script>\"><img src=x onerror='alert(2)'>&lt;"


class Page(HTMLParser):
    """Reads a page as a browser does: elements, attributes and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        if name not in VOID:
            assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def picture_of(value: int) -> np.ndarray:
    return np.full((40, 60, 3), value, np.uint8)


def accuracy(f1: float) -> SegmenterAccuracy:
    counts = Accuracy(
        f1=f1,
        mean_iou=0.9,
        presence=0.95,
        true_positives=9,
        false_positives=1,
        false_negatives=1,
        prompts=10,
        iou_threshold=0.5,
    )
    pairs = [outcome_from_iou(np.eye(1)), outcome_from_iou(np.zeros((0, 0)))]
    return SegmenterAccuracy(
        images=7,
        text=counts,
        boxes=None,
        cgf1=cgf1_from_outcomes(pairs),
        image_ms=12.5,
        stages=(),
    )


def report(name: str = "tiny") -> ReportData:
    """Every section, with one name in every place that a user or a checkpoint can fill."""
    answer = AnswerFidelity(
        ious=(0.99, 0.97),
        score_shifts=(0.01, -0.03),
        reference_objects=3,
        objects=2,
        best_score_shift=-0.02,
    )
    return ReportData(
        model=name,
        family=name,
        target=name,
        precision="int8",
        reference="meta",
        image_size=224,
        created="2026-01-31T12:00:00+00:00",
        samforge="0.1.0",
        steps=(
            StepResult(
                name=name,
                part=name,
                seconds=12.34,
                bytes=3 << 20,
                peak_gib=1.5,
                resumed=False,
                fidelity=(
                    {"tensor": name, "gated": 1.5e-6, "sqnr_db": 120.5},
                    {"tensor": name, "gated": 0.0, "sqnr_db": "inf"},
                ),
            ),
        ),
        gates=(
            GateRow(name=name, limit=1e-4, reached=1.5e-6, at_least=False, where=name),
            GateRow(
                name="mask IoU",
                limit=0.98,
                reached=0.9876,
                at_least=True,
                interval=(0.9812, 0.9934),
            ),
        ),
        parts=(
            PartRow(
                name=name,
                artifact=name,
                bytes=2 << 20,
                reference_bytes=8 << 20,
                precisions={name: 3},
            ),
        ),
        versions={name: name},
        weights_license=name,
        license_text=name,
        fidelity=fidelity_from_answers([answer]),
        fidelity_data=name,
        accuracy=accuracy(0.9),
        reference_accuracy=accuracy(0.91),
        reference_name="fp32 in PyTorch",
        layers=tuple(
            LayerRow(part=name, path=f"{name}.{i}", sqnr_db=value, kept=i == 1)
            for i, value in enumerate((math.inf, 43.21, 20.5, -math.inf))
        ),
        groups=(
            GroupRow(part=name, group=name, share=0.1, sqnr_db=30.0, damage=0.02, kept=True),
            GroupRow(part=name, group=name, share=0.9, sqnr_db=50.0, damage=0.001, reason=name),
        ),
        fusions=(FusionRow(part=name, name=name, fired=12, left=(name,)),),
        engines=(
            EngineRow(
                part=name,
                form="fused",
                build_s=12.34,
                bytes=3 << 20,
                products={"int8": 128},
                convolutions={"int8": 6, "fp16": 4},
                attentions=32,
                source=name,
                version="1.7.1",
            ),
            EngineRow(
                part=name,
                form="unfused",
                build_s=1,
                bytes=1,
                products={},
                convolutions={},
                attentions=None,
            ),
        ),
        overlays=(
            OverlayPair(prompt=name, reference_rgb=picture_of(0), rgb=picture_of(255), note=name),
        ),
        prompts=(name, "object"),
        recipe={name: [name]},
        notes=(name,),
    )


def test_the_page_says_what_was_measured() -> None:
    page = Page(report_html(report()))
    for words in (
        "tiny, int8 for tiny",
        "built 2026-01-31 12:00 UTC",
        "✓ Every gate held (2 of 2)",
        "0.25 of fp32",
        "at least 0.98",
        "0.9876",
        "2 of 3",
        "0.9800",  # mean of 0.99 and 0.97
        "43.2 dB",
        "1 of 2 groups stays in fp16",
        "1.5e-06",
        "120.5",
        "1 candidates left",
        "128 int8",
        "6 int8, 4 fp16",
        "Built by tiny 1.7.1. Counts are held against the graph's plan; read from tiny.",
        "fp32 in PyTorch in the same run: 12 ms",
    ):
        assert words in page.text, words
    headings = re.findall(r"<h2>(.*?)</h2>", report_html(report()))
    assert headings == [
        *("Gates", "Side by side", "Fidelity to fp32", "Accuracy", "Sensitivity"),
        *("Layer by layer", "Steps", "Parts", "Engines", "Fusions", "Prompts", "Origin"),
    ]


def test_a_failed_gate_is_said_first() -> None:
    failed = GateRow(name="cgF1 drop", limit=0.01, reached=0.25, at_least=False)
    text = Page(report_html(replace(report(), gates=(*report().gates, failed)))).text
    assert "✗ A gate failed: nothing was published (2 of 3)" in text
    assert "✗ failed" in text
    assert "Every gate held" not in text


@pytest.mark.parametrize("reached", [0.5, math.nan])
def test_what_is_no_number_never_holds(reached: float) -> None:
    assert not GateRow(name="g", limit=0.9, reached=reached, at_least=True).holds
    assert not GateRow(name="g", limit=0.1, reached=reached, at_least=False).holds


def test_sections_without_data_are_left_out() -> None:
    bare = ReportData(
        model="m",
        family="sam3",
        target="torch",
        precision="fp32",
        reference="meta",
        image_size=14,
        created="some day",
        samforge="0.1.0",
        steps=(),
        gates=(),
        parts=(),
        versions={},
        weights_license="Apache-2.0",
        random_weights=True,
    )
    html = report_html(bare)
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Origin"]
    assert "The weights are random" in html
    assert "built some day" in html
    assert "Accuracy" not in report_html(replace(report(), random_weights=True))


def test_nothing_is_loaded_from_anywhere() -> None:
    html = report_html(report("https://example.org/x.png"))
    for name, attributes in Page(html).elements:
        assert name not in ("script", "link", "iframe", "object", "embed", "form", "a")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith("data:image/")
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    assert "default-src 'none'" in html


def test_hostile_names_are_text() -> None:
    tame, wild = Page(report_html(report())), Page(report_html(report(HOSTILE)))
    assert [name for name, _ in wild.elements] == [name for name, _ in tame.elements]
    assert wild.text.count(HOSTILE) >= 20
    images = [attributes for name, attributes in wild.elements if name == "img"]
    assert [image["alt"] for image in images] == [
        f"{HOSTILE}: fp32's answer",
        f"{HOSTILE}: this answer",
    ]


@given(st.text(max_size=30))
def test_any_text_stays_text(text: str) -> None:
    page = Page(tag("p", text, title=text))
    ((name, attributes),) = page.elements
    assert name == "p"
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    assert page.text == shown
    assert attributes == {"title": shown}


def test_elements() -> None:
    assert tag("p", 1, None, ["a", ("<", Markup("<b>"))]) == "<p>1a&lt;<b></p>"
    assert tag("img", src="x", alt="", width=0.5) == '<img src="x" alt="" width="0.5"/>'
    assert tag("td", class_="a", aria_label="b", hidden=True, title=None, role=False) == (
        '<td class="a" aria-label="b" hidden></td>'
    )
    assert joined("a&b", tag("i")) == "a&amp;b<i></i>"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 0.029, (0, 0.01, 0.02)),
        (20, 70, (20, 30, 40, 50, 60, 70)),
        (-10, 60, (0, 20, 40, 60)),
        (0, 0.0125, (0, 0.0025, 0.005, 0.0075, 0.01, 0.0125)),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_within_and_are_even(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    assert 1 <= len(marks) <= 7
    assert all(low - 1e-6 * width <= mark <= low + width * (1 + 1e-6) for mark in marks)
    steps = np.diff(marks)
    assert np.allclose(steps, steps[:1], rtol=1e-3)


def test_a_scale_goes_from_end_to_end() -> None:
    up = Scale(low=10, high=20, start=100, end=0)
    assert (up(10), up(15), up(20)) == (100, 50, 0)


def test_bars_are_as_long_as_the_damage_and_the_worst_comes_first() -> None:
    rows = [
        GroupRow(part="v", group=f"g{i}", share=0.1, sqnr_db=30, damage=damage, kept=i == 2)
        for i, damage in enumerate((0.01, 0.0, 0.04, 0.02))
    ]
    plot = sensitivity_plot(rows)
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', plot)]
    assert widths == pytest.approx([365, 182.5, 91.25, 1.5])
    assert re.findall(r">v/(g\d)</text>", plot) == ["g2", "g3", "g0", "g1"]
    assert plot.count('class="kept"') == 1
    many = [replace(rows[0], group=f"g{i}") for i in range(50)]
    assert sensitivity_plot(many).count("<rect") == 20
    assert "nan" not in sensitivity_plot([replace(rows[1])]), "no damage at all"
    endless = sensitivity_plot([replace(rows[1], damage=math.inf)])
    assert not re.search(r"=\"-?(inf|nan)", endless)


def test_layers_stand_where_their_ratio_is_and_the_lowest_are_named() -> None:
    values = (60.0, 40.0, 20.0, math.inf, 50.0, 30.0, 45.0)
    rows = [
        LayerRow(part="v", path=f"layer{i}", sqnr_db=value, kept=i == 4)
        for i, value in enumerate(values)
    ]
    plot = layers_plot(rows)
    heights = [float(y) for y in re.findall(r'<circle [^>]*cy="([\d.]+)"', plot)]
    # 20 dB at 250, 60 dB at 24; what is exact stands at the top.
    assert heights == pytest.approx([24, 137, 250, 24, 80.5, 193.5, 108.75])
    named = re.findall(r'class="name">(layer\d) ([\d.]+ dB)<', plot)
    assert sorted(named) == [
        ("layer1", "40.0 dB"),
        ("layer2", "20.0 dB"),
        ("layer5", "30.0 dB"),
        ("layer6", "45.0 dB"),
    ]
    assert "layer3: exact" in plot
    assert "layer4: 50.0 dB (kept in half)" in plot
    alone = layers_plot([LayerRow(part="v", path="x", sqnr_db=math.inf)])
    assert "inf" not in re.sub("input", "", alone)
    assert "nan" not in alone


def test_pictures_hold_their_own_bytes() -> None:
    def decoded(html: str) -> Image.Image:
        (kind, content) = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', html)[0]
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (image.format or "").lower() == kind
        return image

    rgb = picture_of(7)
    small = decoded(picture(rgb, "seven"))
    assert small.format == "PNG"
    assert np.array_equal(np.asarray(small), rgb)
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    large = decoded(picture(noise, "noise"))
    assert (large.format, large.size) == ("JPEG", (640, 480))


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    path = write_report(report(), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == report_html(report())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match=r"Cannot write .*missing/report.html: No such file"):
        write_report(report(), tmp_path / "missing" / "report.html")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_shows_hostile_names_as_text(tmp_path: Path) -> None:
    path = write_report(report(HOSTILE), tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    run = subprocess.run(
        ["chromium", *options, f"--user-data-dir={tmp_path}/user", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    page = Page(run.stdout.strip())
    assert "script" not in {name for name, _ in page.elements}
    assert page.text.count(HOSTILE) >= 20


def test_gates_say_the_interval_of_their_figures() -> None:
    text = Page(report_html(report())).text
    assert "0.9876 (0.9812 to 0.9934)" in text
    assert "at the worse end of the interval" in text


def test_rows_of_gates_follow_from_what_the_step_kept() -> None:
    step = StepResult(
        name="verify",
        part=None,
        seconds=1.0,
        bytes=0,
        peak_gib=None,
        resumed=False,
        fidelity=(
            {
                "box_iou": 0.988,
                "channel_gain": 1.03,
                "weak_evidence": False,
                "intervals": {"box_iou": [0.986, 0.99], "channel_gain": [1.03, 1.03]},
            },
            {"name": "black", "odd_cosine": 0.995},
            {"name": "white", "odd_cosine": 0.991},
        ),
        gates={"box_iou": 0.96, "channel_gain": 1.5, "odd_cosine": 0.97},
    )
    rows = {row.name: row for row in gate_rows((step,))}
    box = rows["mean IoU of the boxes that both find"]
    assert (box.reached, box.limit, box.interval) == (0.988, 0.96, (0.986, 0.99))
    gain = rows["factor by which a channel of the features changed"]
    assert (gain.reached, gain.at_least, gain.interval) == (1.03, False, None)
    assert min(row.reached for row in rows.values() if row.at_least) == 0.988
    assert all(row.holds for row in rows.values())
