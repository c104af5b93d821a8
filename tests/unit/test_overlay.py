import numpy as np
import pytest
from PIL import Image

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.draw import draw_exemplars, grid, overlay
from samforge.draw.tags import PALETTE, Tag, _overlap, _place, draw_tags


def found(size_hw: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Detections:
    masks = np.zeros((len(boxes), *size_hw), np.bool_)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Detections(
        masks=masks,
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.97, 0.5, len(boxes), dtype=np.float32),
        labels=("red circle",) * len(boxes),
        size_hw=size_hw,
    )


def test_masks_blend_and_the_rest_stays() -> None:
    image = np.full((100, 100, 3), 100, np.uint8)
    drawn = overlay(image, found((100, 100), (20, 30, 60, 80)), boxes=False, labels=False)
    assert (image == 100).all()  # the caller's image is not drawn on
    expected = [round(50 + value / 2) for value in PALETTE[0]]
    assert np.abs(drawn[50, 40].astype(int) - expected).max() <= 1
    assert tuple(drawn[30, 20]) == PALETTE[0]  # contour, inside the mask
    outside = np.ones((100, 100), np.bool_)
    outside[30:80, 20:60] = False
    assert (drawn[outside] == 100).all()


def test_opacity() -> None:
    image, one = np.full((90, 90, 3), 10, np.uint8), found((90, 90), (10, 10, 80, 80))
    plain = overlay(image, one, opacity=0, boxes=False, labels=False)
    solid = overlay(image, one, opacity=1, boxes=False, labels=False)
    assert plain[45, 45].tolist() == [10, 10, 10]
    assert tuple(solid[45, 45]) == PALETTE[0]
    with pytest.raises(SettingError, match=r"opacity is 1\.5"):
        overlay(image, one, opacity=1.5)


def test_instances_differ_and_the_best_is_on_top() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    two = found((60, 60), (0, 0, 40, 40), (20, 20, 60, 60))
    drawn = overlay(image, two, opacity=1, boxes=False, labels=False)
    assert tuple(drawn[30, 30]) == PALETTE[0]
    assert tuple(drawn[50, 50]) == PALETTE[1]
    assert len(set(PALETTE)) == len(PALETTE)


def test_boxes_and_tags_are_drawn_in_the_colour_of_the_mask() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    one = found((200, 300), (50, 80, 150, 180))
    boxed = overlay(image, one, opacity=0, labels=False)
    assert tuple(boxed[80, 100]) == PALETTE[0]
    assert tuple(boxed[179, 149]) == PALETTE[0]
    tagged = overlay(image, one, opacity=0, boxes=False)
    above = tagged[60:80, 50:150].reshape(-1, 3)
    assert (above == PALETTE[0]).all(axis=1).mean() > 0.3
    assert (tagged[:50] == 0).all()


def test_nothing_found_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert np.array_equal(overlay(image, Detections.empty((30, 40))), image)


def test_small_pictures_are_enlarged_by_whole_factors() -> None:
    image = np.full((100, 224, 3), 60, np.uint8)
    drawn = overlay(image, found((100, 224), (20, 30, 60, 80)), min_side=640, boxes=False)
    assert drawn.shape == (300, 672, 3)
    assert np.abs(drawn[150, 120].astype(int) - [73, 120, 146]).max() <= 1
    assert overlay(image, Detections.empty((100, 224)), min_side=200).shape == image.shape


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 400), (400, 1), (3, 5)])
@pytest.mark.parametrize("min_side", [0, 64])
def test_tiny_pictures(size_hw: tuple[int, int], min_side: int) -> None:
    height, width = size_hw
    drawn = overlay(
        np.zeros((*size_hw, 3), np.uint8), found(size_hw, (0, 0, width, height)), min_side=min_side
    )
    assert drawn.shape[0] * width == drawn.shape[1] * height
    assert drawn.any()


def test_boxes_off_the_picture_are_clipped() -> None:
    one = found((50, 50), (0, 0, 50, 50))
    off = Detections(
        masks=one.masks,
        boxes_xyxy=np.array([[-30, -30, 500, 80]], np.float32),
        scores=one.scores,
        labels=one.labels,
        size_hw=(50, 50),
    )
    drawn = overlay(np.zeros((50, 50, 3), np.uint8), off, opacity=0, labels=False)
    assert tuple(drawn[49, 25]) == PALETTE[0]


def test_another_image_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 5\) \(H, W\), got one of \(5, 4\)"):
        overlay(np.zeros((5, 4, 3), np.uint8), Detections.empty((4, 5)))
    with pytest.raises(ShapeError, match="float64"):
        overlay(np.zeros((4, 5, 3)), Detections.empty((4, 5)))


def test_tags_stay_inside_and_apart() -> None:
    taken: list[tuple[int, int, int, int]] = []
    for anchor in [(0, 0, 40, 40), (0, 0, 40, 40), (0, 0, 38, 42), (180, 90, 200, 100)] * 2:
        place = _place(anchor, (60, 15), (200, 100), taken)
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= 200
        assert place[3] <= 100
        assert not any(_overlap(place, other) for other in taken)
        taken.append(place)


def test_long_tags_are_shortened_to_the_picture() -> None:
    picture = Image.new("RGB", (80, 40))
    draw_tags(picture, [Tag(text="word\n" * 40, color=(255, 0, 0), anchor=(0, 20, 80, 40))])
    red = (np.asarray(picture) == (255, 0, 0)).all(axis=2)
    assert red.any(axis=0).sum() > 60
    assert not red[25:].any()  # one line


def test_exemplars() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    boxes = [[20, 60, 80, 120], [120, 60, 180, 120]]
    drawn = draw_exemplars(image, boxes, [1, 0]).astype(int)
    assert drawn[90, 20, 1] > drawn[90, 20, 0]  # green: to find
    assert drawn[90, 120, 0] > drawn[90, 120, 1]  # red: to leave out
    half = draw_exemplars(image, np.array(boxes) / 2, [1, 0], size_hw=(100, 100))
    assert np.array_equal(half, drawn)
    with pytest.raises(ShapeError, match=r"got \(2, 4\), \(1,\)"):
        draw_exemplars(image, boxes, [1])


def test_grid() -> None:
    wide, high = np.full((50, 100, 3), 10, np.uint8), np.full((100, 50, 3), 200, np.uint8)
    sheet = grid([wide, high, wide], ["wide", "high", "a very long title " * 9], cell=120)
    assert sheet.shape[1] == 2 * 124 + 4
    assert (sheet == 10).all(axis=2).sum() == 2 * 120 * 60
    assert (sheet == 200).all(axis=2).sum() == 60 * 120
    assert grid([wide], ["one"], columns=5, cell=120).shape[1] == 124 + 4
    with pytest.raises(ShapeError, match="1 pictures and 0 titles"):
        grid([wide], [])


def test_colours_by_phrase_stay_when_the_order_changes() -> None:
    masks = np.zeros((2, 40, 60), np.bool_)
    masks[0, 5:15, 5:15] = masks[1, 20:35, 30:50] = True
    boxes = np.array([[5, 5, 15, 15], [30, 20, 50, 35]], np.float32)
    best = {"star": 0.9, "circle": 0.9, "ring": 0.1}
    found = Detections(
        masks=masks,
        boxes_xyxy=boxes,
        scores=np.array([0.9, 0.8], np.float32),
        labels=("circle", "star"),
        size_hw=(40, 60),
        best_scores=best,
    )
    image = np.full((40, 60, 3), 100, np.uint8)
    looks = [
        overlay(image, one, opacity=1.0, boxes=False, labels=False, color_by_phrase=True)
        for one in (found, found[[1, 0]], found[0])
    ]
    assert tuple(looks[0][10, 10]) == PALETTE[1], "circle is the second phrase asked for"
    assert tuple(looks[0][28, 40]) == PALETTE[0]
    assert np.array_equal(looks[0], looks[1])
    assert np.array_equal(looks[2][:18], looks[0][:18]), "also where the other is not found"
