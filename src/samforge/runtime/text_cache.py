"""Text features by phrase: a phrase is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from samforge.core.capabilities import TEXT_ENCODER
from samforge.core.session import Array, Session
from samforge.core.timing import Timings
from samforge.runtime.tokenize import PhraseTokenizer


class TextEncoder:
    """Runs the text part on phrases it has not seen lately. Safe to use from several threads."""

    def __init__(
        self, session: Session, tokenizer: PhraseTokenizer, *, batch: int | None, kept: int = 1024
    ) -> None:
        """Keep a session of the text part.

        Args:
            session: Runs the text part.
            tokenizer: Turns phrases into its ``input_ids``.
            batch: Most phrases in one call, or None for any number.
            kept: Phrases whose features are remembered; the least recently used goes first.
        """
        self._session = session
        self._tokenizer = tokenizer
        self._batch = batch
        self._kept = kept
        self._lock = Lock()
        self._known: OrderedDict[str, tuple[Array, Array]] = OrderedDict()

    def forget(self) -> None:
        """Drop every remembered phrase."""
        with self._lock:
            self._known.clear()

    def features(self, phrases: Sequence[str], timings: Timings) -> tuple[Array, Array]:
        """Encode phrases, all of them distinct.

        Returns:
            Features (P, context, D) and their mask (P, context).

        Raises:
            PromptError: A phrase is blank.
        """
        with self._lock:
            found = {phrase: self._known[phrase] for phrase in phrases if phrase in self._known}
        missing = [phrase for phrase in phrases if phrase not in found]
        timings.add(TEXT_ENCODER, 0.0, self._session.processor, calls=0)
        step = self._batch or max(1, len(missing))
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            with timings.stage(TEXT_ENCODER, self._session.processor):
                out = self._session.run({"input_ids": self._tokenizer.encode(part)})
            for i, phrase in enumerate(part):
                # Copies: a view would keep the features of the whole batch alive.
                found[phrase] = (out["text_features"][i].copy(), out["text_mask"][i].copy())
        with self._lock:
            for phrase in phrases:
                self._known[phrase] = found[phrase]
                self._known.move_to_end(phrase)
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        ordered = [found[phrase] for phrase in phrases]
        return np.stack([pair[0] for pair in ordered]), np.stack([pair[1] for pair in ordered])
