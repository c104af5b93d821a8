"""A real browser before the page, which asks a service that answers at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser_page import Visit
from drawn_service import DrawnService, drawn_server

CHROMIUM = shutil.which("chromium")

VIEWPORT = {"width": 1200, "height": 900}
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install 'samforge[dev]'"
    )
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield one
        one.close()


@pytest.fixture
def service() -> DrawnService:
    return DrawnService()


@pytest.fixture(scope="session")
def plain_page(browser: Any) -> Any:
    """One page for all tests that want no other: opening one takes longer than most of them."""
    return browser.new_context(viewport=VIEWPORT).new_page()


@pytest.fixture
def visit(browser: Any, plain_page: Any) -> Iterator[Callable[..., Visit]]:
    """Opens the page of a service; at the end nothing may have complained or left the machine."""
    with ExitStack() as closing:
        visits: list[Visit] = []

        def opened(service: DrawnService, **options: Any) -> Visit:
            url = closing.enter_context(drawn_server(service))
            page = plain_page
            if options:
                context = browser.new_context(viewport=VIEWPORT, **options)
                closing.callback(context.close)
                page = context.new_page()
            else:
                closing.callback(page.goto, "about:blank")  # it would ask a server that is gone
            page.set_default_timeout(30_000)
            one = Visit(page=page, service=service, requests=[], faults=[])
            hears = {
                "request": lambda request: one.requests.append(f"{request.method} {request.url}"),
                "pageerror": lambda error: one.faults.append(str(error)),
            }
            for event, hear in hears.items():
                page.on(event, hear)
                closing.callback(page.remove_listener, event, hear)
            page.goto(url)
            page.locator(".bundle").first.wait_for()
            visits.append(one)
            return one

        yield opened
    for one in visits:
        assert one.faults == []
        mine = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "about:blank")
        assert [r for r in one.requests if not r.split(" ", 1)[1].startswith(mine)] == []
