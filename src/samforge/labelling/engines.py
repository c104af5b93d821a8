"""Which engine labels: this process, several of this machine, or one that the caller brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from samforge.labelling.engine import Engine, labelled
from samforge.labelling.labeller import Labeller
from samforge.labelling.ontology import Ontology
from samforge.labelling.opening import Opening
from samforge.labelling.workers import Workers

MakeEngine: TypeAlias = Callable[[Sequence[Opening], Ontology, ExitStack], tuple[Engine, str]]
"""Takes one opening for each process, the ontology, and a stack that frees what it starts; gives
the engine and where it runs."""


def local_engine(
    openings: Sequence[Opening], ontology: Ontology, stack: ExitStack
) -> tuple[Engine, str]:
    """Label in this process, or in as many as there are openings.

    Raises:
        BundleError: A bundle cannot be opened.
        PromptError: A phrase is not usable.
    """
    if len(openings) > 1:
        workers = stack.enter_context(Workers(openings, ontology))
        return workers, workers.processor
    segmenter = stack.enter_context(openings[0].segmenter())
    labeller = Labeller(segmenter, ontology)
    return lambda chunks: labelled(labeller, chunks), segmenter.processor
