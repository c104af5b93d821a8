"""The page of a bundle's report: what was made, how faithful it is, and pictures of both."""

from samforge.report.data import (
    EngineRow,
    FusionRow,
    GateRow,
    GroupRow,
    LayerRow,
    OverlayPair,
    PartRow,
    ReportData,
    account_rows,
)
from samforge.report.page import report_html, write_report

__all__ = [
    "EngineRow",
    "FusionRow",
    "GateRow",
    "GroupRow",
    "LayerRow",
    "OverlayPair",
    "PartRow",
    "ReportData",
    "account_rows",
    "report_html",
    "write_report",
]
