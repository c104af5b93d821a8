"""What a failed verification says: where to look."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from samforge.steps.verify import noisiest_layers


def context_of(root: Path, parts: tuple[str, ...]) -> Any:
    return SimpleNamespace(parts=parts, path=lambda relative: root / relative)


def test_the_noisiest_layers_of_all_parts_are_named(tmp_path: Path) -> None:
    for part, values in (("vision", (30.0, 12.25, 18.0)), ("detector", ("inf", 9.0, 40.0, 25.0))):
        folder = tmp_path / "report" / part
        folder.mkdir(parents=True)
        rows = [{"path": f"layer.{i}", "sqnr_db": value} for i, value in enumerate(values)]
        (folder / "quantization.json").write_text(json.dumps({"layers": rows}))
    assert noisiest_layers(context_of(tmp_path, ("vision", "text", "detector"))) == (
        " The noisiest layers, by signal to noise behind each: detector/layer.1 (9.0 dB), "
        "vision/layer.1 (12.2 dB), vision/layer.2 (18.0 dB), detector/layer.3 (25.0 dB), "
        "vision/layer.0 (30.0 dB)."
    )


def test_other_precisions_name_none(tmp_path: Path) -> None:
    assert noisiest_layers(context_of(tmp_path, cast(tuple[str, ...], ("vision",)))) == ""
