"""CLIP's tokenizer from the checkout's vocabulary, and phrases that show whether it is Meta's."""

from __future__ import annotations

import gzip
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from meta_comparison.answers import tokens_alone
from samforge.core.errors import PromptError, PromptWarning, SettingError
from samforge.runtime import PhraseTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2
"""CLIP's vocabulary: 256 bytes, the same with an end of word, merges, begin and end."""
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

COLOURS = ("red", "Dark-Green", "light blue", "yellow", "striped", "worn-out", "ripe", "2nd")
NOUNS = (
    "car",
    "school bus",
    "person's hat",
    "T-shirts",
    "bicycles",
    "traffic light",
    "potted plant",
)
QUALIFIERS = ("", " on the left", ", closest to the camera", " (broken)", " wearing a helmet")
LONG = (
    "a very long phrase that goes on and on about a large brown dog with a red collar and a blue "
    "leash standing beside an old wooden fence near the house at the end of the road"
)
WRITTEN = (
    LONG,
    "man’s hat", "the “big” one", "rock ’n’ roll poster", "dog – not cat", "wait…",
    "Müller's café", "CRÈME BRÛLÉE", "naïve jalapeño", "naïve façade", "İstanbul kedisi",
    "straße", "ﬁsh and ﬂour", "ﬀ ligature", "Ⅷ sign", "½ pizza", "H₂O bottle", "x² plot", "№ 5",
    "™ mark", "№½", "１２３ ＡＢＣ", "猫", "赤い車", "красная машина", "κόκκινο αυτοκίνητο",
    "سيارة حمراء", "लाल गाड़ी", "빨간 자동차", "🐶", "a 🐈‍⬛ on a mat", "👨‍👩‍👧 family",
    "flag 🇩🇪", "AT&amp;T logo", "&lt;b&gt; tag", "&amp;lt; sign", "caf&eacute;",
    "&#39;quoted&#39;", "mojibake: â€™s hat", "schÃ¶n", "cafÃ© au lait", "a\u00a0car",
    "two  spaces", "tab\tbetween", "line\nbreak", "zero\u200bwidth", "soft\u00adhyphen",
    " padded ", "don't", "it's", "they're", "I'VE", "we'll", "O'Neill's", "'s", "''", "!", "!?",
    "wow!!!", "!important", "100%", "3.14", "12:30", "$5", "#1", "@home", "a/b", "a\\b", "C++",
    "e-mail", "snake_case", "---", "<start_of_text>", "<|endoftext|> cat", "<|startoftext|>",
    "<end_of_text>", "visual", "a", "I", "0", "\u001b[31mred\u001b[0m car", "﻿marked",
    "left \u202eright", "ｶﾀｶﾅ", "ǆ", "ŉ", "\u0041\u030angström",
    "supercalifragilisticexpialidocious", "pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
)  # fmt: skip
"""As telephones, word processors, web pages and other languages write; each differed somewhere."""


def probes() -> tuple[str, ...]:
    """Some hundred phrases, plain and odd."""
    plain = (f"{c} {n}{q}" for c, n, q in itertools.product(COLOURS, NOUNS, QUALIFIERS))
    return (*plain, *WRITTEN)


def tokenizer_from_vocabulary(vocabulary: Path, out: Path) -> Path:
    """Write the ``tokenizer.json`` of CLIP, as facebook/sam3 has it on Hugging Face.

    Args:
        vocabulary: ``bpe_simple_vocab_16e6.txt.gz``.
        out: File to write.

    Raises:
        SettingError: The vocabulary is not CLIP's.
    """
    try:
        lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SettingError(
            f"{vocabulary} cannot be read ({error}). Check the checkout out again."
        ) from error
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    if len(merges) != MERGES or any(len(merge) != 2 for merge in merges):
        raise SettingError(
            f"{vocabulary} holds {len(merges)} merges, CLIP's vocabulary has {MERGES}. "
            "Check the checkout out again."
        )
    pairs = [(first, second) for first, second in merges]
    alphabet = _byte_letters()
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, pairs), BEGIN, END]
    ids = {word: index for index, word in enumerate(words)}
    _clip(ids, pairs).save(str(out))
    return out


def _clip(ids: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Put CLIP's tokenizer together."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, ids[END]), (BEGIN, ids[BEGIN]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END])
    return tokenizer


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: printable ones for themselves, then the others.

    The order is that of the ids. Source: ``bytes_to_unicode`` of OpenAI's GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]


def token_rows(
    tokenizer: PhraseTokenizer, phrases: Sequence[str], end: int
) -> npt.NDArray[np.int64]:
    """Tokens of phrases as samforge reads them, 0 behind the end; -1 where it refuses a phrase."""
    rows = np.full((len(phrases), tokenizer.context), -1, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # probes are too long on purpose
        for row, phrase in zip(rows, phrases, strict=True):
            try:
                ids = tokenizer.encode([phrase])[0]
            except PromptError:
                continue
            row[:] = tokens_alone(ids, np.zeros((len(ids), 1)), end)[0]
    return rows


def differing(
    phrases: Sequence[str], meta: npt.NDArray[np.int64], ours: npt.NDArray[np.int64]
) -> tuple[str, ...]:
    """Phrases that the two sides read as different tokens."""
    return tuple(
        phrase
        for phrase, wanted, found in zip(phrases, meta, ours, strict=True)
        if not np.array_equal(wanted, found)
    )
