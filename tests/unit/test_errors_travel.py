"""Errors go to other processes and come back as they were: workers and clusters pickle them."""

from __future__ import annotations

import copy
import pickle

import pytest

import samforge.labelling  # noqa: F401  it has errors of its own
from samforge.core.errors import MissingExtra, Overloaded, SamforgeError
from samforge.core.native import error_of_item
from samforge.serving.admission import Refusal


def kinds() -> list[type[SamforgeError]]:
    """Every error of the tree, those of packages that are imported included."""
    found, waiting = [], [SamforgeError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return sorted(set(found), key=lambda kind: (kind.__module__, kind.__name__))


def made(kind: type[SamforgeError]) -> SamforgeError:
    if issubclass(kind, MissingExtra):
        return kind("Ray", "ray")
    if issubclass(kind, Refusal):
        return kind("Too much is asked.", "client", 2.5)
    if issubclass(kind, Overloaded):
        return kind("Too much is asked.", retry_after_s=2.5, of_client=True)
    return kind("What came, what is allowed, what to do.")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_travels(kind: type[SamforgeError], protocol: int) -> None:
    error = made(kind)
    error.add_note("and a note")
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error) != ""
        assert (again.args, vars(again)) == (error.args, vars(error))
        assert again.exit_code == error.exit_code


def test_what_they_carry_travels() -> None:
    extra = pickle.loads(pickle.dumps(MissingExtra("Ray", "ray")))
    assert (extra.extra, extra.msg) == ("ray", str(MissingExtra("Ray", "ray")))
    busy = pickle.loads(pickle.dumps(made(Overloaded)))
    assert (busy.retry_after_s, busy.of_client) == (2.5, True)
    refused = pickle.loads(pickle.dumps(made(Refusal)))
    assert (refused.retry_after_s, refused.of_client, refused.reason) == (2.5, True, "client")


def test_an_error_of_a_library_travels_as_what_is_told_of_it() -> None:
    class Strange(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    told = pickle.loads(pickle.dumps(error_of_item(Strange(1, 2))))
    assert str(told) == "Strange: 1 and 2"
