"""Forks: a child has the memory of its parent and none of its threads.

Runtimes wait for their threads when a session is freed, so a child that frees its parent's
sessions, at the latest when it ends, waits for ever or aborts (``gunicorn --preload`` does it).
Here the child lets go of them without freeing anything, refuses to run them, and may load its own.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any

from samforge.core.errors import ForkedSession

_HELD: weakref.WeakSet[OfOneProcess] = weakref.WeakSet()
_KEPT: list[Any] = []


class OfOneProcess:
    """Base of what only the process that made it can use."""

    _process: int = 0

    def hold(self) -> None:
        """Remember the process: the last thing that a constructor does."""
        self._process = os.getpid()
        _HELD.add(self)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made it."""
        return self._process not in (0, os.getpid())

    def require_own(self, name: str) -> None:
        """Make sure that this process made it.

        Args:
            name: What the message calls it.

        Raises:
            ForkedSession: It was made before a fork.
        """
        if self.is_inherited:
            raise ForkedSession(
                f"{name} was loaded in process {self._process}, and this is a fork of it "
                f"({os.getpid()}), without its threads. Load the bundle here, after the fork."
            )


def keep_in_children(thing: Any) -> None:
    """Have children of this process never free a thing that lives as long as the process."""
    _KEPT.append(thing)


def after_fork(action: Callable[[], None]) -> None:
    """Do something in every child of this process, at once after the fork."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
        os.register_at_fork(after_in_child=action)


def _let_go() -> None:
    """Count one more reference to everything held, which nobody ever gives back."""
    for held in list(_HELD):
        for value in (held, *vars(held).values()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    for thing in _KEPT:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _HELD.clear()
    _KEPT.clear()


after_fork(_let_go)
