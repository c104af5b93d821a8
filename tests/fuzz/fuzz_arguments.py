"""Arguments of the command line and of the public functions: used, or refused in our words."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samforge.apps import cli
from samforge.core.errors import SamforgeError
from samforge.core.session import checked_threads
from samforge.runtime import Thresholds
from samforge.runtime.prompts import exemplars_from_boxes, phrases_from_text

Repeat = Callable[[Callable[[], None]], None]
Remember = Callable[[object], None]

WORDS = st.one_of(
    st.sampled_from(
        [
            *("predict", "video", "compare", "inspect", "features", "bench", "verify", "--json"),
            *("--text", "--box", "--negative-box", "--threshold", "--out", "--data", "--limit"),
            *("--recursive", "--help", "--version", "--every", "--coco", "--images", "--seed"),
            *(
                "in",
                "in/x.png",
                "none",
                "out",
                "scenes:3",
                "coco:in/l.json",
                "0,0,5,5",
                "nan",
                "-1",
            ),
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)


def test_command_lines(
    repeat: Repeat, remember: Remember, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("in/x.png")
    Path("in/l.json").write_text("{}")

    @given(st.lists(WORDS, max_size=9))
    def run(words: list[str]) -> None:
        remember(words)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            status = cli.main(words)
        assert isinstance(status, int)
        if "--json" in words and "--help" not in words and out.getvalue().startswith("{"):
            assert json.loads(out.getvalue())["ok"] == (status == 0)

    repeat(run)


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


def test_prompts(repeat: Repeat, remember: Remember) -> None:
    boxes = st.lists(st.lists(st.floats(-50, 700), min_size=4, max_size=4), max_size=4)

    @given(st.one_of(boxes, ANYTHING), st.one_of(st.none(), ANYTHING))
    def run(boxes: Any, labels: Any) -> None:
        remember((boxes, labels))
        with contextlib.suppress(SamforgeError):
            exemplars = exemplars_from_boxes(boxes, labels, (480, 640))
            found = exemplars.tensors(None)["boxes_cxcywh"]
            assert np.isfinite(found).all()
            assert (found[..., 2:] > 0).all()
        for value in (boxes, labels):
            with contextlib.suppress(SamforgeError):
                checked_threads(value)
            with contextlib.suppress(SamforgeError):
                phrases_from_text(value, has_boxes=False)
            with contextlib.suppress(SamforgeError):
                Thresholds(score=value, mask=value)

    repeat(run)
