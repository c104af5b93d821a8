"""The parts, in eager mode, compute what Meta's code computes; stages say where one would not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.golden.meta.arrays import (
    BOX_CASES,
    TEXT_CASES,
    Arrays,
    ask_case,
    beyond,
    beyond_case,
    ids_of,
    images_of,
    kept_features,
    pair,
    run,
    wanted,
)

Eager = Callable[..., Any]


@contextmanager
def outputs_of(**modules: Any) -> Iterator[dict[str, np.ndarray]]:
    """Keep what modules give: the first of several results."""
    found: dict[str, np.ndarray] = {}
    handles = []

    def keep(name: str, result: Any) -> None:
        found[name] = (result[0] if isinstance(result, tuple) else result).numpy()

    for name, module in modules.items():
        handles.append(
            module.register_forward_hook(lambda _, __, result, name=name: keep(name, result))
        )
    yield found
    for handle in handles:
        handle.remove()


def test_stages_of_the_vision_part(eager: Eager, arrays: Arrays) -> None:
    vision = eager("vision")
    with outputs_of(trunk=vision.part.module.layers[-1]) as found:
        features = run(vision, images_of(arrays["pictures"]))
    trunk = {"trunk": found["trunk"].transpose(0, 3, 1, 2)[:, ::4]}
    assert beyond(trunk, wanted(arrays, "vision", trunk)) == {}
    for case in TEXT_CASES:
        token = {"geometry_tokens": features["class_token"][int(arrays[f"{case}/picture"])]}
        assert beyond(token, wanted(arrays, case, token)) == {}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_stages_of_a_phrase(eager: Eager, arrays: Arrays, case: str) -> None:
    detector = eager("detector").part.module
    with outputs_of(encoder=detector.encoder, queries=detector.decoder) as found:
        answer = ask_case(eager, arrays, case)
    stages = {"encoder": found["encoder"][0, ::8], "queries": found["queries"][0]}
    assert beyond(stages, wanted(arrays, case, stages)) == {}
    assert beyond_case(answer, arrays, case) == {}


@pytest.mark.parametrize("case", BOX_CASES)
def test_stages_of_boxes(eager: Eager, arrays: Arrays, case: str) -> None:
    detector = eager("detector_boxes").part.module
    with outputs_of(
        tokens=detector.geometry, encoder=detector.encoder, queries=detector.decoder
    ) as found:
        answer = ask_case(eager, arrays, case)
    # There the class token stands behind the last valid box, and padding is anything.
    valid = int((~arrays[f"{case}/padding"]).sum())
    tokens = {"geometry_tokens": found["tokens"][0, [*range(valid), -1]]}
    reference = wanted(arrays, case, tokens)["geometry_tokens"][: valid + 1]
    assert beyond(tokens, {"geometry_tokens": reference}) == {}
    stages = {"encoder": found["encoder"][0, ::8], "queries": found["queries"][0]}
    assert beyond(stages, wanted(arrays, case, stages)) == {}
    assert beyond_case(answer, arrays, case) == {}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_a_phrase_is_a_phrase_with_padding_for_boxes(
    eager: Eager, arrays: Arrays, case: str
) -> None:
    nowhere = {
        f"{case}/boxes": np.full((2, 4), 0.5, np.float32),
        f"{case}/labels": np.array([1, 0]),
        f"{case}/padding": np.array([True, True]),
    }
    answer = ask_case(eager, {**arrays, **nowhere}, case)
    assert beyond_case(answer, arrays, case) == {}


def test_grounding(eager: Eager, arrays: Arrays) -> None:
    phrases = ("text_cat", "text_bus", "text_person")
    inputs = images_of(arrays["pictures"]) | {"input_ids": ids_of(arrays, phrases)}
    answer = run(eager("grounding"), inputs)
    for prompt, case in enumerate(phrases):
        assert beyond_case(pair(answer, 0, prompt), arrays, case) == {}
    assert beyond_case(pair(answer, 1, 0), arrays, "text_cat_picture1") == {}


@pytest.mark.parametrize("case", ["text_bus", "boxes_mixed"])
def test_another_image_size(eager: Eager, arrays: Arrays, case: str) -> None:
    """18 tokens a side: padded windows, position tiles that are cut, another rotary scale."""
    sessions = partial(eager, image_size=252)
    picture = arrays["at252/picture"]
    maps = kept_features(run(sessions("vision"), images_of(picture[None])))
    maps = {name: array[0] for name, array in maps.items()}
    assert beyond(maps, wanted(arrays, "at252", maps)) == {}
    detector = sessions("detector" if case == "text_bus" else "detector_boxes").part.module
    with outputs_of(encoder=detector.encoder, queries=detector.decoder) as found:
        answer = ask_case(sessions, arrays, f"at252/{case}", picture)
    stages = {"encoder": found["encoder"][0, ::8], "queries": found["queries"][0]}
    assert beyond(stages, wanted(arrays, f"at252/{case}", stages)) == {}
    assert beyond_case(answer, arrays, f"at252/{case}") == {}
