"""What verification asks beyond the recipe's phrases: mostly of what is not in the picture.

Ranges are measured on the phrases that a user gave. A bundle is asked others as well, and most
phrases of the world are absent from most pictures: what is made up there is what users complain of.
No labels are needed, for fp32 says what is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from samforge.core.errors import SettingError
from samforge.models import tiny
from samforge.runtime import PhraseTokenizer
from samforge.steps.assets import TOKENIZER_NAME, write_tokenizer_and_license
from samforge.steps.context import BuildContext

MORE = 6
"""Phrases asked of every picture beyond the recipe's; other ones of the next picture."""
COMMON = (
    *("person", "car", "tree", "window", "chair", "dog", "bottle", "sign", "wheel", "building"),
    *("face", "bird", "table", "cup", "book", "shoe", "flower", "boat", "red car", "traffic light"),
    *("hand", "plate", "screen", "bag", "giraffe", "airplane", "banana", "umbrella", "clock"),
)
"""Frequent in pictures of all kinds, and some that are rare in most."""


def more_phrases(context: BuildContext) -> tuple[str, ...]:
    """All phrases to choose from beyond the recipe's: those that the model can read whole."""
    if context.model.text is None:
        return ()
    tokenizer = tokenizer_of(context)
    known = frozenset(tokenizer.known_words)
    own = context.recipe.calibration.prompts
    drawn = context.recipe.calibration.source is None or bool(known)
    return tuple(
        phrase
        for phrase in (tiny.vocabulary() if drawn else COMMON)
        if phrase not in own
        and (not known or known.issuperset(phrase.split()))
        and tokenizer.fits(phrase)
    )


def knows_scenes(context: BuildContext) -> bool:
    """Whether the model was taught drawn scenes, so that no images of the user's are needed."""
    return context.model.text is not None and tiny.knows_scenes(tokenizer_of(context).known_words)


def phrases_of_picture(phrases: Sequence[str], picture: int, count: int = MORE) -> tuple[str, ...]:
    """The phrases that one picture is asked: every picture the next ones.

    Args:
        phrases: From :func:`more_phrases`.
        picture: Number of the picture.
        count: How many.
    """
    every = len(phrases)
    start = picture * count
    return tuple(phrases[(start + index) % every] for index in range(min(count, every)))


def tokenizer_of(context: BuildContext) -> PhraseTokenizer:
    """What turns phrases into tokens in this build.

    Raises:
        SettingError: The model reads no text.
    """
    text = context.model.text
    if text is None:
        raise SettingError(f"{context.model.family} reads no phrases.")
    if not context.path(TOKENIZER_NAME).is_file():
        write_tokenizer_and_license(context)
    return PhraseTokenizer(
        context.path(TOKENIZER_NAME), text.context, text.eos_id, reference=context.recipe.reference
    )
