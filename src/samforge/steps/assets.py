"""What comes along with the parts: the tokenizer and the licence of the weights."""

from __future__ import annotations

import shutil

from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.steps.context import BuildContext

LICENSE_NAME = "LICENSE-weights.txt"
"""Licence of the weights, in every bundle."""
TOKENIZER_NAME = "tokenizer/tokenizer.json"
"""How phrases become tokens, in every bundle of a model that reads them."""


def write_tokenizer_and_license(context: BuildContext) -> tuple[str, ...]:
    """Put the tokenizer, if the model reads text, and the licence into the staging folder.

    Returns:
        The files.
    """
    context.path(LICENSE_NAME).write_text(context.model.license_text, encoding="utf-8")
    text = context.model.text
    if text is None:
        return (LICENSE_NAME,)
    if text.tokenizer is None:
        byte_tokenizer(text.vocabulary).save(str(context.path(TOKENIZER_NAME)))
    else:
        shutil.copyfile(text.tokenizer, context.path(TOKENIZER_NAME))
    return (LICENSE_NAME, TOKENIZER_NAME)
