"""Text features of phrases, kept on the device."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from samforge.runtime.device.session import DeviceSession
from samforge.runtime.tokenize import PhraseTokenizer

_KEPT_PHRASES = 1024


class PhraseFeatures:
    """Encodes each phrase once; of many, those used last are kept."""

    def __init__(self, session: DeviceSession, tokenizer: PhraseTokenizer) -> None:
        """Keep the text part and a tokenizer of its context length."""
        self._session, self._tokenizer = session, tokenizer
        self._known: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, phrases: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Features (P, L, D) and mask (P, L)."""
        missing = [phrase for phrase in phrases if phrase not in self._known]
        if missing:
            ids = torch.from_numpy(self._tokenizer.encode(missing))
            outputs = self._session.run_tensors(self._session.placed({"input_ids": ids}))
            for index, phrase in enumerate(missing):
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
