"""From phrases to token ids."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from samforge.core.errors import DamagedBundle, PromptError, PromptWarning, SettingError
from samforge.core.native import native_errors
from samforge.core.paths import is_file
from samforge.core.reference import META
from samforge.runtime.cleaning import cleaned

_LISTED_WORDS = 200  # a longer list of known words would bury the message


class PhraseTokenizer:
    """Turns phrases into rows of token ids of one length.

    It reads a ``tokenizer.json`` of the tokenizers library: SAM 3's CLIP vocabulary, or the few
    words of a small trained model. Safe to use from several threads.

    Attributes:
        context: Tokens in a row, those for begin and end included.
        known_words: The words that a word-level tokenizer knows, sorted; empty when it builds any
            word from pieces.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int,
        pad_id: int,
        *,
        reference: str = META,
    ) -> None:
        """Read the tokenizer; the padding and truncation saved in the file are ignored.

        Args:
            path: The ``tokenizer.json``.
            context: Tokens in a row, as the text part was built for.
            pad_id: Fills the row after the end token.
            reference: Whose phrases: Meta's code cleans them first, transformers does not.

        Raises:
            DamagedBundle: The file is missing or no tokenizer.
            SettingError: ``context`` has no room for a word, or ``pad_id`` is no token.
        """
        self._path = Path(path)
        self._tokenizer = _tokenizer_from_file(self._path)
        self._unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.context = context
        self.pad_id = pad_id
        self._cleans = reference == META
        frame = self._tokenizer.num_special_tokens_to_add(False)
        if context <= frame:
            raise SettingError(
                f"A context of {context} tokens has no room for a word: begin and end take {frame}."
            )
        size = self._tokenizer.get_vocab_size()
        if not 0 <= pad_id < size:
            raise SettingError(
                f"pad_id is {pad_id}, the vocabulary of {path} has ids 0 to {size - 1}."
            )
        self._vocabulary = size
        with native_errors(lambda error: _no_tokenizer(self._path, error)):
            self._tokenizer.enable_truncation(context)  # counts begin and end, so both are kept
            self.known_words = self._words()

    def encode(self, phrases: Sequence[str]) -> npt.NDArray[np.int64]:
        """Turn phrases into token ids.

        Args:
            phrases: One or more noun phrases.

        Returns:
            (P, context): begin, words, end, then ``pad_id``.

        Raises:
            PromptError: There is no phrase, one is blank, or is no text that can be encoded.
            DamagedBundle: The tokenizer fails on a phrase, or gives ids that the model has not.

        Warns:
            PromptWarning: A phrase is too long, or has words the model does not know.
        """
        if isinstance(phrases, str) or not phrases:
            raise PromptError(f"Give a list of at least one phrase, got {phrases!r}.")
        ids = np.full((len(phrases), self.context), self.pad_id, np.int64)
        for row, phrase in zip(ids, phrases, strict=True):
            text = self._text(phrase)
            if not text:
                raise PromptError(
                    f"A phrase is text such as 'red circle', got {phrase!r}. "
                    f"All phrases: {list(phrases)!r}."
                )
            encoding = self._encoded(text)
            row[: len(encoding.ids)] = encoding.ids
            for remark in self._remarks(phrase, text, encoding):
                warnings.warn(remark, PromptWarning, stacklevel=2)
        return ids

    def _text(self, phrase: object) -> str:
        """What of a phrase is tokenized; empty where there is nothing to read."""
        if not isinstance(phrase, str):
            return ""
        if self._cleans:
            return cleaned(phrase)
        return phrase if phrase.strip() else ""

    def _encoded(self, phrase: str) -> Encoding:
        try:
            phrase.encode("utf-8")
        except UnicodeEncodeError as error:  # half a character, as undecodable arguments hold
            raise PromptError(f"The phrase {phrase!r} is no text: {error.reason}.") from error
        with native_errors(lambda error: _unusable(phrase, self._path, error)):
            encoding = self._tokenizer.encode(phrase)
        lists = (encoding.tokens, encoding.offsets, encoding.special_tokens_mask)
        if any(len(one) != len(encoding.ids) for one in lists):
            raise DamagedBundle(
                f"{self._path} gives {len(encoding.ids)} ids for {phrase!r} and another number of "
                "tokens. Build or download the bundle again."
            )
        if len(encoding.ids) > self.context or max(encoding.ids, default=0) >= self._vocabulary:
            raise DamagedBundle(
                f"{self._path} turns {phrase!r} into {len(encoding.ids)} ids up to "
                f"{max(encoding.ids)}; the model takes {self.context} ids below "
                f"{self._vocabulary}. Build or download the bundle again."
            )
        return encoding

    def _words(self) -> tuple[str, ...]:
        """Read the vocabulary, without what is no word: padding, begin, end, unknown."""
        if type(self._tokenizer.model).__name__ != "WordLevel":
            return ()
        frame = self._tokenizer.encode("")
        marks = {self.pad_id, *frame.ids, *self._tokenizer.get_added_tokens_decoder()}
        return tuple(
            sorted(
                word
                for word, token in self._tokenizer.get_vocab().items()
                if token not in marks and word != self._unknown
            )
        )

    def fits(self, phrase: str) -> bool:
        """Whether a phrase is read whole, and not cut off at the model's number of tokens.

        Raises:
            DamagedBundle: The tokenizer fails on it.
        """
        return not self._encoded(self._text(phrase)).overflowing

    def remarks(self, phrase: str) -> tuple[str, ...]:
        """What :meth:`encode` warns of: words that the model does not read, or not know.

        Raises:
            PromptError: It is no text that can be encoded.
            DamagedBundle: The tokenizer fails on it.
        """
        text = self._text(phrase)
        return tuple(self._remarks(phrase, text, self._encoded(text))) if text else ()

    def _remarks(self, phrase: str, text: str, encoding: Encoding) -> Iterator[str]:
        if encoding.overflowing:
            kept = text[: max(end for _, end in encoding.offsets)].strip()
            yield (
                f"The phrase {phrase!r} is longer than the model's {self.context} tokens: only "
                f"{kept!r} is used. Shorten it."
            )
        words = [
            text[start:end].strip()
            for token, (start, end), mark in zip(
                encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
            )
            # CLIP's unknown token is also its end token: the mask tells them apart.
            if token == self._unknown and not mark
        ]
        if words:
            known = ""
            if 0 < len(self.known_words) <= _LISTED_WORDS:
                known = f" It knows: {', '.join(self.known_words)}."
            yield (
                f"The model does not know {', '.join(map(repr, dict.fromkeys(words)))} of the "
                f"phrase {phrase!r}, and reads an unknown word instead.{known}"
            )


def _unusable(phrase: str, path: Path, error: BaseException) -> DamagedBundle:
    return DamagedBundle(
        f"{path} cannot read the phrase {phrase!r}: {error}. Build or download the bundle again."
    )


def _tokenizer_from_file(path: Path) -> Tokenizer:
    if not is_file(path):
        raise DamagedBundle(f"The tokenizer {path} is missing. Build or download the bundle again.")
    with native_errors(lambda error: _no_tokenizer(path, error)):
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # "<|endoftext|>" typed by a user is text, not the end of the phrase.
        tokenizer.encode_special_tokens = True
        size = tokenizer.get_vocab_size()
        ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids]
    if highest := max((one for one in ids if one >= size), default=0):
        raise DamagedBundle(
            f"{path} gives the token id {highest}, and its vocabulary has ids 0 to {size - 1}: the "
            "model has no such token. Build or download the bundle again."
        )
    return tokenizer


def _no_tokenizer(path: Path, error: BaseException) -> DamagedBundle:
    return DamagedBundle(
        f"{path} is no tokenizer of the tokenizers library: {error}. "
        "Build or download the bundle again."
    )
