"""The page that a test has open in a browser."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from drawn_service import DrawnService
from PIL import Image

SIZE = (300, 200)
"""Width and height of the tests' picture."""
GREY = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """A page that is open."""

    page: Any
    service: DrawnService
    requests: list[str]
    """Method and URL of each."""
    faults: list[str]
    """What the console and the page complained about."""

    def posts(self) -> list[str]:
        """Paths that were posted to, ids left out."""
        paths = [one.split(" ", 1)[1] for one in self.requests if one.startswith("POST")]
        return ["segment" if one.endswith("/segment") else "images" for one in paths]

    def open_picture(self) -> None:
        """Give the page the tests' picture, and wait until it is encoded."""
        file = {"name": "grey.png", "mimeType": "image/png", "buffer": picture()}
        with self.page.expect_response(lambda one: one.url.endswith("/v1/images") and one.ok):
            self.page.locator("#file").set_input_files(file)
        self.answered()  # of the phrases that it kept, too

    def find(self, phrases: str) -> None:
        """Ask for phrases, and wait for the answer."""
        self.page.locator("#phrase").fill(phrases)
        self.page.locator("#phrase").press("Enter")
        self.answered()

    def answered(self) -> None:
        """Wait until nothing is under way."""
        self.page.evaluate(
            """async () => {
                const frame = () => new Promise((done) => requestAnimationFrame(done));
                const waiting = () => !document.getElementById("busy").hidden;
                await frame();
                do await frame(); while (waiting());
            }"""
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the picture is in the window."""
        box = self.page.locator("#canvas").bounding_box()
        scale = min(box["width"] / SIZE[0], box["height"] / SIZE[1])
        left = box["x"] + (box["width"] - SIZE[0] * scale) / 2
        top = box["y"] + (box["height"] - SIZE[1] * scale) / 2
        return left + x * scale, top + y * scale

    def pixel(self, x: float, y: float) -> tuple[int, int, int]:
        """Colour of the canvas at a place of the picture."""
        box = self.page.locator("#canvas").bounding_box()
        place = self.at(x, y)
        found = self.page.evaluate(
            """([x, y]) => {
                const canvas = document.getElementById("canvas");
                const ratio = canvas.width / canvas.clientWidth;
                const data = canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data;
                return [...data.slice(0, 3)];
            }""",
            [place[0] - box["x"], place[1] - box["y"]],
        )
        return found[0], found[1], found[2]

    def saved(self, button: str) -> bytes:
        """What a button saves."""
        with self.page.expect_download() as waiting:
            self.page.locator(button).click()
        return Path(waiting.value.path()).read_bytes()


def picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), GREY, np.uint8)).save(stream, "PNG")
    return stream.getvalue()
