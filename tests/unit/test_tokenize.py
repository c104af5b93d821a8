import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from samforge.core.errors import DamagedBundle, PromptError, PromptWarning, SettingError
from samforge.runtime import PhraseTokenizer
from samforge.runtime.cleaning import cleaned

WORDS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "blue", "circle", "red", "star")


def word_level(words: tuple[str, ...] = WORDS) -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return tokenizer


def clip() -> Tokenizer:
    """CLIP's kind: byte-level BPE with ``</w>``, and the end token stands for the unknown."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    pieces = ["<|startoftext|>", "<|endoftext|>", *sorted(letters)]
    pieces += [f"{letter}</w>" for letter in sorted(letters)] + ["re", "red</w>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("r", "e"), ("re", "d</w>")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    )
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end, start = ("<|endoftext|>", 1), ("<|startoftext|>", 0)
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    return tokenizer


@pytest.fixture
def tiny(tmp_path: Path) -> PhraseTokenizer:
    word_level().save(str(tmp_path / "tokenizer.json"))
    return PhraseTokenizer(tmp_path / "tokenizer.json", 6, 0)


def test_rows(tiny: PhraseTokenizer) -> None:
    ids = tiny.encode(["Red  circle", "star"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, 6, 5, 2, 0, 0], [1, 7, 2, 0, 0, 0]]
    assert tiny.known_words == ("blue", "circle", "red", "star")


def test_truncation_keeps_the_end_token(tiny: PhraseTokenizer) -> None:
    with pytest.warns(PromptWarning, match=r"6 tokens: only 'red blue red blue' is used"):
        ids = tiny.encode(["red blue red blue star circle"])
    assert ids.tolist() == [[1, 6, 4, 6, 4, 2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.encode(["red blue red blue"])  # fits exactly


def test_unknown_words_are_named_with_the_known_ones(tiny: PhraseTokenizer) -> None:
    expected = r"not know 'moon', 'sun' of the phrase 'red Moon sun'.*blue, circle, red, star"
    with pytest.warns(PromptWarning, match=expected):
        ids = tiny.encode(["red Moon sun"])
    assert ids.tolist() == [[1, 6, 3, 3, 2, 0]]


def test_a_long_vocabulary_is_not_listed(tmp_path: Path) -> None:
    word_level((*WORDS, *(f"w{i}" for i in range(300)))).save(str(tmp_path / "t.json"))
    with pytest.warns(PromptWarning) as caught:
        PhraseTokenizer(tmp_path / "t.json", 6, 0).encode(["moon"])
    assert "It knows" not in str(caught[0].message)


def test_saved_padding_and_truncation_are_ignored(tmp_path: Path) -> None:
    tokenizer = word_level()
    tokenizer.enable_padding(length=20, pad_id=3)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "t.json"))
    assert json.loads((tmp_path / "t.json").read_text())["padding"] is not None
    ids = PhraseTokenizer(tmp_path / "t.json", 6, 0).encode(["red circle"])
    assert ids.tolist() == [[1, 6, 5, 2, 0, 0]]


@pytest.mark.parametrize("phrases", [[""], ["red", " \t\n"], [], "red", [None]])
def test_blank_phrases(tiny: PhraseTokenizer, phrases: list[str]) -> None:
    with pytest.raises(PromptError, match=r"phrase"):
        tiny.encode(phrases)


def test_clip_like(tmp_path: Path) -> None:
    clip().save(str(tmp_path / "t.json"))
    tokenizer = PhraseTokenizer(tmp_path / "t.json", 12, 1)
    row = tokenizer.encode(["Red cat"])[0]
    plain = clip().encode("Red cat").ids
    assert plain[0] == 0
    assert plain[-1] == 1
    assert row.tolist() == plain + [1] * (12 - len(plain))
    assert tokenizer.known_words == ()
    with pytest.warns(PromptWarning, match=r"12 tokens: only 'red circle red' is used") as caught:
        long = tokenizer.encode(["red circle " * 9])[0]
    assert len(caught) == 1  # the end token is the unknown token, yet no word is unknown
    assert long[0] == 0
    assert long[-1] == 1
    assert 1 not in long[1:-1]


def test_special_tokens_in_a_phrase_are_text(tmp_path: Path) -> None:
    clip().save(str(tmp_path / "t.json"))
    row = PhraseTokenizer(tmp_path / "t.json", 32, 0).encode(["red <|endoftext|> circle"])[0]
    assert row.tolist().count(1) == 1


@pytest.mark.parametrize(
    ("phrase", "read"),
    [
        ("man’s hat", "man's hat"),  # telephones and word processors
        ("“red” circle", '"red" circle'),
        ("caf\u0065\u0301", "café"),  # NFC
        ("cafÃ©", "café"),  # UTF-8 that was read as Latin-1
        ("ﬁre truck", "fire truck"),  # a ligature
        ("Ｒｅｄ　circle", "red circle"),  # full width, ideographic space
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("&lt;red&gt;", "<red>"),
        ("red\u00a0circle\u200b", "red circle\u200b"),
        (" Red \n\t CIRCLE ", "red circle"),
        ("\x1b[31mred\x00 circle\x07", "red circle"),  # terminal colours, control characters
        ("red \ud83d circle", "red circle"),  # half of a surrogate pair
        ("STRASSE ẞ", "strasse ß"),
        ("ein Hut 🎩", "ein hut 🎩"),
    ],
)
def test_phrases_are_cleaned_as_meta_does(phrase: str, read: str) -> None:
    assert cleaned(phrase) == read


def test_transformers_reads_phrases_as_they_are(tmp_path: Path) -> None:
    word_level().save(str(tmp_path / "t.json"))
    meta, stock = (
        PhraseTokenizer(tmp_path / "t.json", 9, 0, reference=reference)
        for reference in ("meta", "transformers")
    )
    assert meta.encode(["red&#32;circle"])[0, :4].tolist() == [1, 6, 5, 2]
    with pytest.warns(PromptWarning, match="not know"):
        assert stock.encode(["red&#32;circle"])[0, :3].tolist() == [1, 6, 3]


@pytest.mark.parametrize("phrase", ["\x00\x01", "\x1b[0m", "&nbsp;&#32;", "\ud83d", "\ufeff"])
def test_a_phrase_of_which_nothing_is_left(tiny: PhraseTokenizer, phrase: str) -> None:
    with pytest.raises(PromptError, match="A phrase is text such as 'red circle', got"):
        tiny.encode(["red", phrase])


def test_settings_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(DamagedBundle, match="missing"):
        PhraseTokenizer(path, 6, 0)
    path.write_text("{}")
    with pytest.raises(DamagedBundle, match="is no tokenizer"):
        PhraseTokenizer(path, 6, 0)
    word_level().save(str(path))
    with pytest.raises(SettingError, match="2 tokens has no room"):
        PhraseTokenizer(path, 2, 0)
    with pytest.raises(SettingError, match="ids 0 to 7"):
        PhraseTokenizer(path, 6, 8)
