"""Parts by themselves, on made-up inputs: what a benchmark repeats where there is no segmenter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samforge.core.axes import BATCH, BOXES, PROMPTS, sized
from samforge.core.session import Array, PartSpec, Session
from samforge.core.timing import Timings


class PartsAlone:
    """Parts on made-up inputs, for bundles that are no whole segmenter."""

    def __init__(
        self, sessions: Mapping[str, Session], *, batch: int, prompts: int, boxes: int = 1
    ) -> None:
        """Make the inputs.

        Args:
            sessions: By part.
            batch: Size of the axis ``batch``.
            prompts: Size of the axis ``prompts``.
            boxes: Size of the axis ``boxes``.
        """
        self._sessions = sessions
        sizes = {BATCH.name: batch, PROMPTS.name: prompts, BOXES.name: boxes}
        self._inputs = {
            name: made_up_inputs(session.spec, sizes) for name, session in sessions.items()
        }

    def run(self, timings: Timings) -> None:
        """Run every part; each is a stage."""
        for name, session in self._sessions.items():
            with timings.stage(name, session.processor):
                session.run(self._inputs[name])


def made_up_inputs(spec: PartSpec, sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, Array]:
    """Make inputs of a part that are good for timing: normal numbers, ones, and all true.

    Raises:
        SettingError: An axis has no size.
    """
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = sized(tensor.shape, sizes, spec.name)
        if np.issubdtype(np.dtype(tensor.dtype), np.floating):
            inputs[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
        else:
            inputs[tensor.name] = np.ones(shape, tensor.dtype)
    return inputs
