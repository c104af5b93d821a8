"""Shadow requests: a share goes to a reference as well, and how far it is off is a metric."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import png

from samforge.apps.serve.app import app_from_settings
from samforge.apps.serve.metrics import Metrics
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.masks import Masks
from samforge.models import tiny
from samforge.serving import Ask, Drift, Picture, Served, Service, Settings, drift_between
from samforge.serving.shadow import Shadowing

SCENE = tiny.draw_scene(11, split="demo").image


def detections(*boxes: tuple[int, int, int, int], label: str = "star") -> Detections:
    dense = np.zeros((len(boxes), 20, 20), np.bool_)
    for mask, (left, top, right, bottom) in zip(dense, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Detections(
        masks=Masks.from_dense(dense),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.full(len(boxes), 0.9, np.float32),
        labels=(label,) * len(boxes),
        size_hw=(20, 20),
        best_scores={label: 0.9},
    )


def test_drift_is_counted_by_pairs_of_masks() -> None:
    one = detections((0, 0, 10, 10), (10, 10, 20, 20))
    assert drift_between(one, one) == Drift(agreement=1.0, mask_iou=1.0, score_shift=0.0)
    shifted = detections((0, 0, 10, 8), (0, 10, 5, 15))
    assert drift_between(one, shifted) == Drift(
        agreement=0.5, mask_iou=pytest.approx(0.8), score_shift=0.0
    )
    nothing = Detections.empty((20, 20), {"star": 0.4})
    assert drift_between(nothing, nothing).agreement == 1.0
    drift = drift_between(one, nothing)
    assert (drift.agreement, drift.mask_iou) == (0.0, None)
    assert drift.score_shift == pytest.approx(0.5)
    # The same pixels under another phrase are another object.
    assert drift_between(one, detections((0, 0, 10, 10), label="dot")).agreement == 0.0


def test_settings_that_are_none() -> None:
    for share in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(SettingError, match="0 to 1"):
            Shadowing(reference="a", share=share)
    bundles = (Served(name="a", path=Path()),)
    with pytest.raises(SettingError, match="none of the bundles"):
        Settings(bundles=bundles, shadowing=Shadowing(reference="b", share=0.5))


def test_every_second_question_is_asked_again(proven_bundle: Callable[..., Path]) -> None:
    bundles = tuple(
        Served(name=name, path=proven_bundle(f"shadow {name}", precision=name), threads=1)
        for name in ("fp16", "fp32")
    )
    settings = Settings(bundles=bundles, shadowing=Shadowing(reference="fp32", share=0.5))
    app = app_from_settings(settings)
    service: Service = app.state.service
    metrics: Metrics = app.state.metrics
    service.start()
    assert service.wait()

    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(metrics.text().decode())
        return sum(
            one.value
            for family in families
            for one in family.samples
            if one.name == name and labels.items() <= one.labels.items()
        )

    try:
        picture, ask = Picture.of(png(SCENE)), Ask(text=("star",))
        for model in (["fp16"] * 6) + (["fp32"] * 3):
            ticket = service.segment(service.model(model), picture, ask, client="a")
            assert isinstance(ticket.future, Future)
            assert len(ticket.future.result(10).best_scores) == 1
        end = time.monotonic() + 10
        while value("samforge_shadowed_total") < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        # Both run the same graph: they agree.
        assert value("samforge_shadow_drift_sum", model="fp16", measure="agreement") == 3
        assert value("samforge_shadow_drift_sum", measure="score_shift") == pytest.approx(0)
        assert value("samforge_shadowed_total", model="fp32") == 0
    finally:
        service.close()
