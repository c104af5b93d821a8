"""Phrases as Meta's code reads them: mended, unescaped, with single spaces, in lower case.

Telephones and word processors write “man’s hat”; CLIP's vocabulary was learned from text in which
that had become "man's hat". Source: ``_clean_lower`` in Meta's sam3/model/tokenizer_ve.py.
"""

from __future__ import annotations

import html

import ftfy


def cleaned(phrase: str) -> str:
    """Clean a phrase.

    Args:
        phrase: Any text; half of a surrogate pair, which is no character, is dropped.

    Returns:
        What is tokenized; empty when nothing of the phrase is left.
    """
    readable = phrase.encode("utf-8", "ignore").decode("utf-8")
    # Twice, as there: "&amp;amp;" is an ampersand that was escaped on two pages.
    mended = html.unescape(html.unescape(ftfy.fix_text(readable)))
    return " ".join(mended.split()).lower()
