"""The page in a real browser: what is asked, what is seen, what is said."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from browser_page import Visit, picture
from drawn_service import DrawnService
from PIL import Image

from samforge.core.rle import mask_from_segmentation
from samforge.draw.tags import PALETTE
from samforge.serving import State

pytestmark = pytest.mark.slow
GREY = (128, 128, 128)
Open = Callable[..., Visit]


def test_a_click_gives_a_mask_at_the_clicked_point(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.page.mouse.click(*one.at(150, 100))
    one.answered()
    # Beside the mark of the click itself, inside its disc of 20 pixels; and outside.
    assert one.pixel(163, 100) != GREY
    assert one.pixel(190, 100) == GREY
    coco = json.loads(one.saved("#coco"))
    (row,) = coco["annotations"]
    mask = mask_from_segmentation(row["segmentation"], (200, 300))
    assert mask[100, 150]
    assert not mask[100, 190]
    png = np.asarray(Image.open(io.BytesIO(one.saved("#png"))).convert("RGB"))
    assert png.shape == (200, 300, 3)
    mixed = np.round(0.55 * 128 + 0.45 * np.array(PALETTE[0]))
    assert np.abs(png[100, 150] - mixed).max() <= 1
    assert tuple(png[100, 190]) == GREY


def test_a_right_click_or_alt_takes_away(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.page.mouse.click(*one.at(150, 100))
    one.answered()
    one.page.mouse.click(*one.at(168, 100), button="right")
    one.page.locator("#prompts .marks", has_text="2 clicks").wait_for()
    one.answered()
    one.page.keyboard.down("Alt")
    one.page.mouse.click(*one.at(132, 100))
    one.page.keyboard.up("Alt")
    one.page.locator("#prompts .marks", has_text="3 clicks").wait_for()
    one.answered()
    labels = [ask.objects[0].labels for _, ask in service.asks]
    assert labels == [[1], [1, 0], [1, 0, 0]]
    # Each click corrects the mask of those before it.
    assert [ask.earlier is None for _, ask in service.asks] == [True, False, False]


def test_the_picture_is_uploaded_once(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.find("star, red circle")
    one.find("cat")
    one.page.mouse.click(*one.at(150, 100))
    one.answered()
    assert one.posts() == ["images", "segment", "segment", "segment"]
    assert len(service.encoded) == 1
    assert [ask.text for _, ask in service.asks] == [("star", "red circle"), ("cat",), None]


def test_the_threshold_moves_without_a_request(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.find("star")
    rows = one.page.locator("#found li")
    assert rows.count() == 2
    before = len(one.requests)
    slider = one.page.locator("#threshold")
    slider.fill("0.7")
    one.page.locator("#count", has_text="1").wait_for()
    assert rows.count() == 1
    assert one.pixel(150, 60) == GREY  # the second star, 0.6, is gone
    assert one.pixel(50, 50) != GREY
    slider.fill("0.95")
    one.page.locator("#missed li").wait_for()
    assert one.page.locator("#missed .score").inner_text() == "0.90"
    slider.fill("0.05")
    one.page.locator("#count", has_text="2").wait_for()
    assert one.requests[before:] == []


def test_what_was_not_found_has_its_best_score(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.find("star, cat, dragon")
    summary = "2 objects. star: 2; cat: none, best 0.21; dragon: none, best 0.01"
    assert one.page.locator("#summary").inner_text() == summary
    assert one.page.locator("#missed .score").all_inner_texts() == ["0.21", "0.01"]
    remarks = one.page.locator("#prompts .why").all_text_contents()
    assert remarks == ["", "", "The model knows nothing of the phrase 'dragon'."]


def test_boxes_are_dragged(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    for button, (left, top) in (("left", (20, 30)), ("right", (120, 40))):
        one.page.mouse.move(*one.at(left, top))
        one.page.mouse.down(button=button)
        one.page.mouse.move(*one.at(left + 20, top + 20))
        one.page.mouse.move(*one.at(left + 40, top + 50))
        one.page.mouse.up(button=button)
        one.page.wait_for_timeout(50)
        one.answered()
    _, ask = service.asks[-1]
    assert ask.box_labels == [1, 0]
    assert np.abs(np.array(ask.boxes_xyxy) - [[20, 30, 60, 80], [120, 40, 160, 90]]).max() < 1
    one.page.locator("label", has_text="one object").click()
    one.page.mouse.move(*one.at(200, 100))
    one.page.mouse.down()
    one.page.mouse.move(*one.at(240, 150), steps=3)
    one.page.mouse.up()
    one.page.locator("#prompts .marks", has_text="a box").wait_for()
    one.answered()
    box = np.array(service.asks[-1][1].objects[0].box_xyxy)
    assert np.abs(box - [200, 100, 240, 150]).max() < 1


def test_everything_works_by_keys(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    page = one.page
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.id") == "sample":
            break
    page.keyboard.press("Enter")
    page.locator("#missed li").wait_for()  # the drawn scene, and its phrase
    one.open_picture()
    page.locator("#phrase").focus()
    page.keyboard.type("red circle")
    page.keyboard.press("Enter")
    one.answered()
    page.locator("#canvas").focus()
    page.keyboard.press("Shift+ArrowLeft")  # from the middle by a tenth of 300
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.press("Enter")
    page.locator("#prompts .marks", has_text="1 click").wait_for()
    one.answered()
    assert service.asks[-1][1].objects[0].points == [[120, 95]]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Backspace")
    page.locator("#prompts .marks", has_text="2 clicks").wait_for()
    one.answered()
    assert service.asks[-1][1].objects[0].points == [[120, 95], [124, 95]]
    assert service.asks[-1][1].objects[0].labels == [1, 0]
    page.keyboard.press("b")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#prompts .marks", has_text="1 box").wait_for()
    one.answered()
    assert service.asks[-1][1].boxes_xyxy == [[124, 95, 154, 125]]
    page.keyboard.press("Control+z")
    page.locator("#prompts .marks", has_text="1 box").wait_for(state="detached")
    page.keyboard.press("Control+z")
    page.locator("#prompts .marks", has_text="1 click").wait_for()


def test_what_looks_the_same_is_not_drawn_again(visit: Open, service: DrawnService) -> None:
    """A canvas that is drawn on is rasterized and shown anew: some ten ms without a GPU."""
    one = visit(service)
    one.open_picture()
    one.page.evaluate(
        """() => {
            window.drawn = 0;
            const clear = CanvasRenderingContext2D.prototype.clearRect;
            CanvasRenderingContext2D.prototype.clearRect = function (...box) {
                window.drawn += 1;
                return clear.apply(this, box);
            };
        }"""
    )
    one.find("red circle")
    assert one.page.evaluate("window.drawn") == 1  # with the answer, and not with the question
    one.page.locator("#masks").click()
    one.answered()
    assert one.page.evaluate("window.drawn") == 2
    one.page.locator("#new-object").focus()
    one.page.set_viewport_size({"width": 1000, "height": 800})
    one.answered()
    assert one.page.evaluate("window.drawn") >= 3


def test_undo_asks_nothing(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.page.mouse.click(*one.at(150, 100))
    one.answered()
    one.page.mouse.click(*one.at(60, 100))
    one.page.locator("#prompts .marks", has_text="2 clicks").wait_for()
    one.answered()
    assert one.pixel(73, 100) != GREY
    before = len(one.requests)
    one.page.locator("#undo").click()
    one.page.locator("#prompts .marks", has_text="1 click").wait_for()
    assert one.pixel(73, 100) == GREY
    assert one.pixel(163, 100) != GREY
    one.page.locator("#redo").click()
    one.page.locator("#prompts .marks", has_text="2 clicks").wait_for()
    assert one.pixel(73, 100) != GREY
    assert one.requests[before:] == []


def test_two_bundles_stand_side_by_side(visit: Open) -> None:
    one = visit(DrawnService(("fp32", "int8")))
    one.open_picture()
    one.find("star")
    one.page.locator("#right-ms", has_text="1.0 ms").wait_for()
    assert one.page.locator("#left-ms").inner_text() == "1.0 ms"
    assert sorted(name for name, _ in one.service.asks) == ["fp32", "int8"]
    before = len(one.requests)
    seam = one.page.locator("#seam")
    middle = seam.bounding_box()["x"]
    one.page.locator("#split").fill("80")
    one.page.wait_for_timeout(100)
    assert abs(seam.bounding_box()["x"] - middle - 0.3 * (one.at(300, 0)[0] - one.at(0, 0)[0])) < 3
    handle = seam.locator("span").bounding_box()
    one.page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + 8)
    one.page.mouse.down()
    one.page.mouse.move(one.at(75, 0)[0], handle["y"] + 8, steps=4)
    one.page.mouse.up()
    one.page.wait_for_timeout(100)
    assert abs(float(one.page.locator("#split").input_value()) - 25) < 2
    assert one.requests[before:] == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(visit: Open, service: DrawnService, way: str) -> None:
    one = visit(service)
    one.page.evaluate(
        """async (way) => {
            const blob = await (await fetch("page/scene.png")).blob();
            const data = new DataTransfer();
            data.items.add(new File([blob], "scene.png", {type: "image/png"}));
            const event = way === "drop"
                ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
                : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
            document.getElementById("stage").dispatchEvent(event);
        }""",
        way,
    )
    one.page.locator("#timing", has_text="Encoded in").wait_for()
    label = one.page.locator("#canvas").get_attribute("aria-label")
    assert label == "scene.png, 224 by 224 pixels"


def test_a_file_that_is_no_picture_is_refused_in_words(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    file = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    one.page.locator("#file").set_input_files(file)
    words = one.page.locator("#error-text").inner_text()
    assert words.startswith("This browser cannot show letter.txt (text/plain).")
    assert one.page.locator("#empty").is_visible()


def test_a_server_that_ends_says_so(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.find("star")
    service.draining = True
    one.page.locator("#phrase").fill("cat")
    one.page.locator("#phrase").press("Enter")
    one.page.locator("#error").wait_for()
    assert one.page.locator("#error-text").inner_text() == "The server is ending. Ask another one."
    one.page.locator("#server", has_text="The server is ending").wait_for()
    assert one.page.locator("#found li").count() == 2  # what was found stays
    service.draining = False
    one.page.locator("#again").click()
    one.page.locator("#missed li").wait_for()
    assert one.page.locator("#error").is_hidden()


def test_a_server_that_is_not_ready_is_waited_for(visit: Open, service: DrawnService) -> None:
    service.model().state = State.VERIFYING
    one = visit(service)
    one.page.locator("#server", has_text="drawn is being proven on this machine").wait_for()
    file = {"name": "grey.png", "mimeType": "image/png", "buffer": picture()}
    one.page.locator("#file").set_input_files(file)
    one.page.locator("#error-text", has_text="The bundle drawn is verifying.").wait_for()
    service.model().state = State.READY
    one.page.locator("#timing", has_text="Encoded in").wait_for()  # by itself
    assert one.page.locator("#server").is_hidden()
    assert one.page.locator("#error").is_hidden()


def test_a_bundle_without_clicks_says_so(visit: Open) -> None:
    one = visit(DrawnService(able=("text", "boxes")))
    one.open_picture()
    one.page.mouse.click(*one.at(150, 100))
    one.page.locator("#error-text", has_text="takes no clicks").wait_for()
    assert one.service.asks == []
    assert one.page.locator("#new-object").is_hidden()


def test_a_phrase_that_cannot_be_asked_says_why(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.page.mouse.move(*one.at(20, 20))
    one.page.mouse.down(button="right")
    one.page.mouse.move(*one.at(60, 60), steps=3)
    one.page.mouse.up(button="right")
    one.answered()
    assert one.page.locator("#found li").count() == 0


def test_the_verdict_and_the_digest_are_shown(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    summary = one.page.locator(".bundle summary")
    assert summary.inner_text() == "drawn proven here"
    summary.click()
    sheet = one.page.locator(".sheet")
    assert sheet.locator("code").inner_text() == service.model().digest
    assert "mask iou\t1\t0.995" in sheet.inner_text()
    one.page.keyboard.press("Escape")
    assert sheet.is_hidden()


def test_a_forgotten_picture_is_sent_again(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    for number in list(service.pictures._kept):
        service.pictures.drop("127.0.0.1", number)
    one.find("star")
    assert one.page.locator("#found li").count() == 2
    assert one.posts() == ["images", "segment", "images", "segment"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit: Open, service: DrawnService, scheme: str) -> None:
    one = visit(service, color_scheme=scheme)
    one.open_picture()
    one.find("star, cat")
    low = one.page.evaluate(CONTRAST)
    assert low == []


CONTRAST = """() => {
    const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
    const linear = (v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const colour = numbers(getComputedStyle(one).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const low = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!own || !element.checkVisibility() || element.matches(":disabled")) continue;
        if (element.closest(".away, canvas, .over")) continue;
        const pair = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (ratio < 4.5) low.push(`${element.tagName} ${element.textContent}: ${ratio.toFixed(2)}`);
    }
    return low;
}"""


def test_every_control_has_a_name(visit: Open, service: DrawnService) -> None:
    one = visit(service)
    one.open_picture()
    one.find("star, cat")
    snapshot: Any = one.page.locator("body").aria_snapshot()
    for line in snapshot.splitlines():
        role = line.strip().removeprefix("- ").split(" ")[0].rstrip(":")
        if role in ("button", "slider", "textbox", "combobox", "radio"):
            assert '"' in line, line


def test_a_token_is_asked_for(visit: Open, service: DrawnService) -> None:
    one = visit(service, extra_http_headers={})
    one.page.route("**/v1/**", _only_with_a_token)
    one.page.route("**/health/**", _only_with_a_token)
    one.page.reload()
    one.page.locator("#token").wait_for()
    one.page.locator("#token").fill("secret")
    one.page.locator("#token").press("Enter")
    one.page.locator(".bundle").wait_for()
    assert one.page.locator("#token-form").is_hidden()
    one.open_picture()
    one.find("star")
    assert one.page.locator("#found li").count() == 2


def _only_with_a_token(route: Any) -> None:
    if route.request.headers.get("authorization") == "Bearer secret":
        route.continue_()
    else:
        route.fulfill(status=401, json={"detail": "no token"})
