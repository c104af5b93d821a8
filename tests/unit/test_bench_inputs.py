"""What bundles are asked and timed on: chosen by the words that a model reads, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import reseal

import samforge
from samforge.apps.cli.build import next_command
from samforge.assembly import tokenizer_from_bundle
from samforge.core.errors import SettingError
from samforge.models import tiny
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.workflows.bench_inputs import images_for, input_words, phrases_for
from samforge.workflows.vocabulary import knows_scenes

Make = Callable[..., samforge.Bundle]


@pytest.mark.parametrize("name", ["tiny", "tiny-stressed", "a/copy"])
def test_a_model_that_knows_scenes_gets_scenes_and_words_it_knows(
    name: str, fake_bundle: Make
) -> None:
    made = fake_bundle()
    reseal(made.root, replace(made.manifest, model=name))
    bundle = samforge.open_bundle(made.root)
    taught = knows_scenes(bundle)
    assert bundle.manifest.model == name
    assert taught
    known = set(tokenizer_from_bundle(bundle).known_words)
    assert all(known.issuperset(phrase.split()) for phrase in phrases_for(63, taught=taught))
    (image,) = images_for(1, None, taught=taught)
    assert np.array_equal(image, tiny.draw_scene(0, split="demo").image)


def test_a_model_of_any_words_gets_noise(fake_bundle: Make) -> None:
    made = fake_bundle()
    byte_tokenizer(300).save(str(made.path("tokenizer/tokenizer.json")))
    reseal(made.root, made.manifest)
    bundle = samforge.open_bundle(made.root)
    assert bundle.manifest.model == "tiny"
    assert not knows_scenes(bundle)
    assert not knows_scenes(fake_bundle("features", text=False))


@pytest.mark.parametrize("name", ["tiny", "tiny-stressed"])
def test_the_next_command_asks_for_what_the_model_knows(name: str, fake_bundle: Make) -> None:
    made = fake_bundle()
    reseal(made.root, replace(made.manifest, model=name))
    assert "--text 'red circle'" in next_command(samforge.open_bundle(made.root))
    byte_tokenizer(300).save(str(made.path("tokenizer/tokenizer.json")))
    reseal(made.root, replace(made.manifest, model=name))
    assert "--text 'person'" in next_command(samforge.open_bundle(made.root))


def test_what_is_run_on() -> None:
    first, second = images_for(2, None, taught=True)
    assert not np.array_equal(first, second)
    assert images_for(1, None, taught=False)[0].shape == (720, 1280, 3)
    picture = np.zeros((4, 4, 3), np.uint8)
    assert images_for(2, picture, taught=True) == [picture, picture]
    assert input_words([True, False], None) == (
        "drawn scenes of 224 x 224 (tiny), noise of 1280 x 720 (others)"
    )
    assert input_words([True, True], None) == "drawn scenes of 224 x 224"
    assert input_words([False], None) == "noise of 1280 x 720"
    assert input_words([False], Path("folder/dog.jpg")) == "dog.jpg"
    assert set(phrases_for(63, taught=True)) == set(tiny.vocabulary())
    assert len(set(phrases_for(40, taught=False))) == 40
    with pytest.raises(SettingError, match=r"knows 63 phrases, 64 were asked for\."):
        phrases_for(64, taught=True)
