"""Thresholds of single phrases, as command lines and plans give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samforge.core.errors import PromptError, SettingError


def threshold_from_text(text: str) -> tuple[str, float]:
    """Read a threshold as the command line takes it: ``red circle=0.4``.

    The last ``=`` counts: a phrase may hold others.

    Raises:
        SettingError: It is no phrase with a number from 0 to 1.
    """
    phrase, _, number = text.rpartition("=")
    try:
        score = float(number)
    except ValueError:
        score = -1.0
    # Written so that NaN fails too.
    if not phrase.strip() or not 0.0 <= score <= 1.0:
        raise SettingError(
            f"A threshold of one phrase is PHRASE=NUMBER, a number from 0 to 1, got {text!r:.80}. "
            "Write it like --threshold-for 'red circle=0.4'."
        )
    return phrase, score


def thresholds_from_texts(texts: Iterable[str], phrases: Iterable[str]) -> dict[str, float]:
    """Read thresholds of single phrases, each once and of phrases that are looked for.

    Raises:
        SettingError: One cannot be read, or a phrase has two.
        PromptError: Nobody looks for the phrase.
    """
    known = tuple(phrases)
    found: dict[str, float] = {}
    for phrase, score in map(threshold_from_text, texts):
        if phrase not in known:
            listed = ", ".join(map(repr, known)) or "none"
            raise PromptError(
                f"--threshold-for names {phrase!r}, which is not looked for. The phrases are: "
                f"{listed}. Add --text {phrase!r}, or name one of them."
            )
        if phrase in found:
            raise SettingError(
                f"--threshold-for names {phrase!r} twice: {found[phrase]:g} and {score:g}. Which "
                "of the two is meant?"
            )
        found[phrase] = score
    return found


def scores_of(phrases: Iterable[str], own: Mapping[str, float], others: float) -> tuple[float, ...]:
    """Threshold of each phrase: its own, or that of all others."""
    return tuple(own.get(phrase, others) for phrase in phrases)
