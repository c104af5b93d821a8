"""A part behind the door of a session, as it stands."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from samforge.core.errors import ShapeError
from samforge.models import tiny
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name


@pytest.fixture
def text() -> EagerSession:
    return EagerSession(model_from_name(tiny.NAME).part("text"))


def test_arrays_that_torch_cannot_take_are_copied(text: EagerSession) -> None:
    ids = np.array([[1, 5, 6, 2] + [0] * 28], np.int64)
    wanted = text.run({"input_ids": ids})
    locked = np.asfortranarray(np.repeat(ids, 2, axis=0))[::2]
    locked.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = text.run({"input_ids": locked})
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_closed_session_holds_nothing_and_says_so(text: EagerSession) -> None:
    spec = text.spec
    text.close()
    assert text.spec == spec
    with pytest.raises(ShapeError, match="session of text is closed"):
        text.run({"input_ids": np.zeros((1, 32), np.int64)})
