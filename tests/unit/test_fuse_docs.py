"""The table of fusions in the documentation is the one in the code."""

from __future__ import annotations

from pathlib import Path

from samforge.core.targets import TARGET_NAMES as TARGETS
from samforge.transform.fuse import FUSIONS

PAGE = Path(__file__).parents[2] / "docs" / "fusions.md"


def test_the_page_lists_every_fusion_in_order() -> None:
    rows = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    assert rows == [
        f"| `{fusion.name}` | {fusion.summary.replace('->', '→')} "
        f"| {'yes' if fusion.exact else 'no'} "
        f"| {'all' if fusion.targets == TARGETS else ', '.join(fusion.targets)} |"
        for fusion in FUSIONS
    ]
