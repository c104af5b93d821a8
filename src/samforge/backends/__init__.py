"""Runtimes: artifact -> session.

Adding a backend is adding a file here that passes the conformance suite.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from samforge.core.errors import SettingError
from samforge.core.session import Backend
from samforge.core.targets import TARGETS

BACKENDS = {
    **{name: target.backend for name, target in TARGETS.items()},
    "fake": "samforge.backends.fake",  # of tests: no bundle is for it
}
"""Module of each backend by target name. Nothing is imported until it is asked for."""


def backend_from_name(name: str) -> Backend:
    """Find the backend of a target.

    Raises:
        SettingError: There is none of this name.
    """
    if name not in BACKENDS:
        raise SettingError(f"There is no target '{name}'. Targets: {', '.join(BACKENDS)}.")
    return cast(Backend, import_module(BACKENDS[name]).BACKEND)
