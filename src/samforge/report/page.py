"""The report of a bundle: one HTML page that says what was made, how faithful it is, and shows it.

The page is self-contained: no script, and nothing is loaded from anywhere, which its content
security policy makes sure of. It follows the reader's light or dark setting and fits a phone.
"""

from __future__ import annotations

import os
from pathlib import Path

from samforge.core.errors import OutputError
from samforge.core.markup import Markup, joined, tag
from samforge.core.placing import part_beside
from samforge.report import evidence, making
from samforge.report.data import ReportData
from samforge.report.header import header

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = Path(__file__).with_name("page.css")

_SECTIONS = (
    evidence.gates,
    evidence.overlays,
    evidence.fidelity,
    evidence.accuracy,
    evidence.sensitivity,
    evidence.layers,
    making.steps,
    making.parts,
    making.engines,
    making.fusions,
    making.accounts,
    evidence.prompts,
    making.origin,
)
"""In the order of the page: what convinces first, what explains later."""


def report_html(data: ReportData) -> str:
    """Lay out the page.

    Args:
        data: Sections without data are left out.

    Returns:
        A whole HTML document.
    """
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'),
        tag("meta", name="generator", content=f"samforge {data.samforge}"),
        tag("title", f"{data.model}, {data.precision} for {data.target} · samforge report"),
        tag("style", style),
    )
    body = tag(
        "main",
        header(data),
        [section(data) for section in _SECTIONS],
        tag("footer", f"Written by samforge {data.samforge}. This page loads nothing."),
    )
    return joined(Markup("<!doctype html>\n"), tag("html", head, tag("body", body), lang="en"))


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the page: the whole file appears at once, or nothing does.

    Args:
        data: What it shows.
        path: Where to; its folder must exist. An existing file is replaced.

    Returns:
        The path written.

    Raises:
        OutputError: The file cannot be written.
    """
    target = Path(path)
    temporary = part_beside(target)
    try:
        try:
            temporary.write_text(report_html(data), encoding="utf-8")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}. "
            "Check that the folder exists, may be written and has space left."
        ) from error
    return target
