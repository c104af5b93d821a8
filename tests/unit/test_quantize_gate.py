"""What a quantized part is held to while its layers are chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from samforge.steps import quantize


@pytest.mark.parametrize("text", [None, object()])
def test_a_part_built_without_text_is_held_to_its_features(
    text: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was asked when it was calibrated, whatever its model could answer."""
    asked: list[tuple[str, ...]] = []

    def features(*_: Any) -> Any:
        def holds(kept: tuple[str, ...]) -> bool:
            asked.append(kept)
            return kept == ("neck",)

        return holds

    monkeypatch.setattr(quantize, "_feature_gate", features)
    context: Any = SimpleNamespace(parts=("vision",), model=SimpleNamespace(text=text))
    programs: Any = SimpleNamespace(calibrated=SimpleNamespace(part="vision"))
    gate = quantize._gate(context, programs)
    assert [gate.holds(()), gate.holds(("neck",)), gate.likely(("neck",))] == [False, True, True]
    assert asked == [(), ("neck",)]
