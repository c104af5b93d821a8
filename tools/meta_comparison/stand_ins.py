"""Stand-ins for packages that Meta's code imports and its detector never calls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = ("decord", "pkg_resources", "psutil", "pycocotools", "scipy")
"""Training data, video and the path of the vocabulary, which the comparison names itself. Meta's
own installation does not ask for them (setuptools 82 took ``pkg_resources`` away), so they are
often not there."""


class StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for each of :data:`NAMES` that nothing else finds."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        """Packages that a stand-in was given for."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  importlib's interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Say that this finder has the module."""
        package = fullname.split(".", maxsplit=1)[0]
        if package not in NAMES:
            return None
        self.used.add(package)
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module every name that is asked of it."""

        def absent(name: str) -> Absent:
            if name.startswith("__"):
                raise AttributeError(name)
            return Absent(f"{module.__name__}.{name}")

        module.__dict__["__getattr__"] = absent


class Absent:
    """A name of a package that is not there: it can be imported, and no more."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Say what is missing after all."""
        raise ImportError(
            f"This checkout calls {self._name}, which is not installed in {sys.executable}. "
            f"Run: {sys.executable} -m pip install {self._name.split('.', maxsplit=1)[0]}"
        )


def provide() -> StandIns:
    """Ask the stand-ins last, after everything that is installed."""
    stand_ins = StandIns()
    sys.meta_path.append(stand_ins)
    return stand_ins
