"""The files of the embedded model fit each other and the architecture they claim."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import samforge
from samforge.core.errors import PromptWarning
from samforge.models.tiny import CONFIG_PATH, TOKENIZER_PATH, TRACKER_WEIGHTS_PATH
from samforge.models.tiny.scenes import COLOURS, SHAPES, vocabulary
from samforge.runtime import PhraseTokenizer

SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "object", "visual")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER_PATH))


def test_config_loads_and_the_model_has_about_seven_million_parameters() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.Sam3Config(**json.loads(CONFIG_PATH.read_text()))
    with torch.device("meta"):
        model = transformers.Sam3Model(config)
    assert 6.0e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 7.9e6
    assert config.image_size == 224
    assert config.text_config.max_position_embeddings == 32
    assert config.detr_decoder_config.num_queries == 24


def test_the_package_stays_small_enough_for_its_wheel() -> None:
    """24 MB in all; weights do not deflate, and text does, to a quarter or less."""
    files = [path for path in Path(samforge.__file__).parent.rglob("*") if path.is_file()]
    weights = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    others = [path for path in files if path.suffix not in {".safetensors", ".pyc"}]
    assert TRACKER_WEIGHTS_PATH.stat().st_size <= 2.5e6
    assert weights + sum(path.stat().st_size for path in others) / 4 < 24e6


def test_detector_map_is_at_a_third_level_of_whole_cells() -> None:
    vision = json.loads(CONFIG_PATH.read_text())["vision_config"]
    backbone = vision["backbone_config"]
    cells = backbone["image_size"] // backbone["patch_size"]
    sizes = [[int(cells * scale)] * 2 for scale in vision["scale_factors"][:3]]
    assert sizes == vision["backbone_feature_sizes"]
    assert cells % backbone["window_size"] == 0
    assert backbone["hidden_size"] // backbone["num_attention_heads"] % 4 == 0


def test_config_says_nothing_that_one_transformers_release_would_read_otherwise() -> None:
    # 5.17 has rope_theta, 5.23 rope_parameters: both default to 10000, so neither is written.
    text = CONFIG_PATH.read_text()
    assert "rope" not in text
    assert "transformers_version" not in text


def test_special_tokens_have_their_ids(tokenizer: Tokenizer) -> None:
    words = (*SPECIAL, *SHAPES, *COLOURS)
    assert tokenizer.get_vocab() == {word: index for index, word in enumerate(words)}
    text = json.loads(CONFIG_PATH.read_text())["text_config"]
    assert (text["pad_token_id"], text["bos_token_id"], text["eos_token_id"]) == (0, 1, 2)
    assert tokenizer.get_vocab_size() <= text["vocab_size"]


@pytest.mark.parametrize(
    ("phrase", "ids"),
    [
        ("red circle", [1, 12, 6, 2]),
        ("  RED   Circle ", [1, 12, 6, 2]),
        ("star", [1, 11, 2]),
        ("blue object", [1, 14, 4, 2]),
        ("visual", [1, 5, 2]),
        ("red zebra", [1, 12, 3, 2]),
        ("a red circle", [1, 12, 6, 2]),
        ("The  star", [1, 11, 2]),
        ("an orange\tring", [1, 17, 9, 2]),
        ("the the star", [1, 11, 2]),
        # Only whole words in front of another word are articles.
        ("theatre star", [1, 3, 11, 2]),
        ("a", [1, 3, 2]),
        ("star the", [1, 11, 3, 2]),
    ],
)
def test_phrases_become_ids_between_beginning_and_end(
    tokenizer: Tokenizer, phrase: str, ids: list[int]
) -> None:
    assert tokenizer.encode(phrase).ids == ids


def test_every_phrase_of_the_vocabulary_is_known(tokenizer: Tokenizer) -> None:
    for phrase in vocabulary():
        assert 3 not in tokenizer.encode(phrase).ids


def test_an_article_changes_no_phrase_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    words = {word: index for index, word in enumerate((*SPECIAL, *SHAPES, *COLOURS))}
    for phrase in vocabulary():
        trained = [1, *(words[word] for word in phrase.split()), 2]
        for article in ("", "a ", "an ", "the "):
            assert tokenizer.encode(article + phrase).ids == trained


def test_no_warning_speaks_of_an_article() -> None:
    reader = PhraseTokenizer(TOKENIZER_PATH, 32, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.encode(["a red circle", "the star"])
    with pytest.warns(PromptWarning, match=r"does not know 'zebra' of the phrase 'The Zebra'"):
        reader.encode(["The Zebra"])


def test_the_card_says_what_was_measured_of_the_tracker() -> None:
    root = Path(__file__).resolve().parents[2]
    result = json.loads((root / "benchmarks/results/tracking.json").read_text())
    card = (Path(samforge.__file__).parent / "models/tiny/MODEL_CARD.md").read_text()
    digest = hashlib.sha256(TRACKER_WEIGHTS_PATH.read_bytes()).hexdigest()
    assert result["digest"] == digest, "figures are of these weights"
    assert f"{result['clips']} held-out clips" in card
    assert all(result["holds"].values())
    for name, row in (
        ("clicks", "one click on the first frame"),
        ("clicks, no memory", "the same with memories of zeros"),
        ("text", "the phrase `object`"),
    ):
        one = result["figures"][name]
        scores = " | ".join(
            f"{one[key]:.3f}" for key in ("j_and_f", "j", "f", "j_where_present", "idf1")
        )
        assert f"| {row} | {one['objects']} | {scores} | {one['switches']} |" in card
    for name, row in (
        ("iou_after_clicks", "holes of up to 13 of 64 x 64 cells filled, the default"),
        ("iou_after_clicks, holes kept", "holes kept (`hole_area=0`)"),
    ):
        means = " | ".join(f"{value:.3f}" for value in result["figures"][name])
        assert f"| {row} | {means} |" in card
