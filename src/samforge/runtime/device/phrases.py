"""Text features of phrases, kept on the device."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from samforge.core.session import DeviceSession
from samforge.runtime.device.session import placed, run
from samforge.runtime.tokenize import PhraseTokenizer

_KEPT_PHRASES = 1024


class PhraseFeatures:
    """Encodes each phrase once; of many, those used last are kept."""

    def __init__(
        self, session: DeviceSession, tokenizer: PhraseTokenizer, *, batch: int | None = None
    ) -> None:
        """Keep the text part and a tokenizer of its context length.

        Args:
            session: Runs the text part.
            tokenizer: Turns phrases into its ``input_ids``.
            batch: Most phrases in one call, or None for any number.
        """
        self._session, self._tokenizer, self._batch = session, tokenizer, batch
        self._known: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def forget(self) -> None:
        """Drop every remembered phrase."""
        self._known.clear()

    def __call__(self, phrases: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Features (P, L, D) and mask (P, L)."""
        missing = [phrase for phrase in phrases if phrase not in self._known]
        step = self._batch or max(1, len(missing))
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            ids = torch.from_numpy(self._tokenizer.encode(part))
            outputs = run(self._session, placed(self._session, {"input_ids": ids}))
            for index, phrase in enumerate(part):
                self._known[phrase] = (
                    outputs["text_features"][index].clone(),
                    outputs["text_mask"][index].clone(),
                )
        for phrase in phrases:
            self._known.move_to_end(phrase)
        features, mask = zip(*(self._known[phrase] for phrase in phrases), strict=True)
        while len(self._known) > _KEPT_PHRASES:
            self._known.popitem(last=False)
        return torch.stack(features), torch.stack(mask)
