"""What builds compare with: the checkpoint's parts themselves, which no step's file can change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samforge.backends import backend_from_name
from samforge.core.errors import ShapeError
from samforge.steps.calibrate import float_sessions


@pytest.fixture
def context(part: Callable[..., Any]) -> Any:
    """A build without a folder: whatever were read of one would fail."""
    return SimpleNamespace(parts=("text", "detector"), model=SimpleNamespace(part=part))


def test_they_are_of_the_checkpoint_and_give_the_exported_program_s_bits(
    context: Any,
    example: Callable[..., Any],
    exported_file: Callable[[str], Path],
) -> None:
    sessions = float_sessions(context)
    assert list(sessions) == ["text", "detector"]
    floating = sessions["detector"]
    program = backend_from_name("torch").session_from_artifact(
        exported_file("detector"), floating.spec
    )
    for prompts in (1, 3):
        tensors = example("detector", {"batch": prompts, "images": 1, "prompts": prompts}, seed=1)
        inputs = {name: tensor.numpy() for name, tensor in tensors.items()}
        wanted, found = program.run(inputs), floating.run(inputs)
        assert set(found) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_those_asked_for_alone_are_loaded_and_closed_ones_are_gone(context: Any) -> None:
    sessions = float_sessions(context, ["text"])
    assert list(sessions) == ["text"]
    sessions["text"].close()
    with pytest.raises(ShapeError, match="closed"):
        sessions["text"].run({})
