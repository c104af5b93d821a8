"""What the page adds to the server's own time, from submitting a phrase to its masks."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from load import percentile
from servers import samforge_server

PHRASES = tuple(
    f"{colour} {shape}"
    for colour in ("red", "blue", "green", "yellow", "purple")
    for shape in ("circle", "square", "triangle", "star", "ring", "cross")
)
"""Each is asked once: the page remembers answers."""
WARM_UP = 6
CHROMIUM = "chromium"
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
MASKS_ARE_THERE = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const waiting = () => !document.getElementById("busy").hidden;
    const begin = performance.now();
    document.getElementById("find").requestSubmit();
    do await frame(); while (waiting());
    return performance.now() - begin;
}"""


def page(bundle: Path, picture: Path) -> dict[str, Any]:
    """Phrases of one picture, in a headless Chromium on this machine."""
    from playwright.sync_api import sync_playwright

    with samforge_server(bundle) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which(CHROMIUM), args=list(QUIET)
        )
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        told: list[float] = []

        def hear(response: Any) -> None:
            if response.url.endswith("/segment"):
                told.append(response.json()["timings_ms"]["total"])

        opened.on("response", hear)
        opened.goto(url)
        opened.locator(".bundle").first.wait_for()
        opened.locator("#file").set_input_files(picture)
        opened.locator("#timing", has_text="Encoded in").wait_for()
        over, whole = [], []
        for number, phrase in enumerate(PHRASES):
            opened.locator("#phrase").fill(phrase)
            before = len(told)
            took = opened.evaluate(MASKS_ARE_THERE)
            end = time.monotonic() + 10
            while len(told) == before and time.monotonic() < end:
                opened.wait_for_timeout(5)
            if len(told) == before:
                raise TimeoutError(f"the server has not answered {phrase}")
            opened.locator("#prompts button.remove").last.click()
            if number >= WARM_UP:
                whole.append(took / 1e3)
                over.append((took - told[-1]) / 1e3)
        browser.close()
    return {
        "asked": len(over),
        "prompt_to_masks_p50_ms": percentile(whole, 0.5),
        "over_the_server_p50_ms": percentile(over, 0.5),
        "over_the_server_p95_ms": percentile(over, 0.95),
        "over_the_server_mean_ms": round(1e3 * statistics.mean(over), 2),
    }
