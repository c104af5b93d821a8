"""Which words a bundle's model knows."""

from __future__ import annotations

from samforge.assembly import tokenizer_from_bundle
from samforge.core.bundle import Bundle
from samforge.models import tiny


def known_words(bundle: Bundle) -> tuple[str, ...]:
    """List the words of a model with a small vocabulary; empty for one that reads any word.

    Raises:
        DamagedBundle: Its tokenizer cannot be read.
    """
    if bundle.manifest.text is None:
        return ()
    return tokenizer_from_bundle(bundle).known_words


def knows_scenes(bundle: Bundle) -> bool:
    """Whether the model of a bundle was taught drawn scenes: by its words, not by its name.

    Raises:
        DamagedBundle: Its tokenizer cannot be read.
    """
    return tiny.knows_scenes(known_words(bundle))
