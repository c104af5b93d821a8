"""Which words a bundle's model knows."""

from __future__ import annotations

from samforge import Bundle
from samforge.runtime import PhraseTokenizer


def known_words(bundle: Bundle) -> tuple[str, ...]:
    """List the words of a model with a small vocabulary; empty for one that reads any word.

    Raises:
        DamagedBundle: Its tokenizer cannot be read.
    """
    text = bundle.manifest.text
    if text is None:
        return ()
    return PhraseTokenizer(bundle.path(text.tokenizer), text.context, text.pad_id).known_words
