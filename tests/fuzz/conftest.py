"""Runs a target again and again until its share of the time is over."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

HERE = Path(__file__).parent
ADDRESSES = 12 << 30
"""Memory that a process may address: more is a failure, not a slow machine."""

settings.register_profile(
    "fuzz",
    database=DirectoryBasedExampleDatabase(HERE / "examples"),
    deadline=None,
    max_examples=200,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=10.0, help="For all targets together.")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("fuzz")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = 60 * config.getoption("--minutes") / max(1, len(items))
    for item in items:
        item.user_properties.append(("seconds", share))


@pytest.fixture
def repeat(request: pytest.FixtureRequest) -> Callable[[Callable[[], None]], None]:
    """Calls a hypothesis test, each time with new examples, until the target's time is over."""
    seconds: Any = dict(request.node.user_properties)["seconds"]

    def run(test: Callable[[], None]) -> None:
        end = time.monotonic() + seconds
        while True:
            test()
            if time.monotonic() >= end:
                return

    return run


@pytest.fixture
def remember(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Writes an example down before it is tried: a process that dies cannot tell it."""
    folder = HERE.parents[1] / "build" / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{request.node.name}.txt"

    def write(example: object) -> None:
        path.write_text(repr(example), encoding="utf-8", errors="backslashreplace")

    return write
