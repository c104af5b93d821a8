"""An engine for ``samforge.label`` on Ray Data: a pool of actors, each with a segmenter."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from samforge.core.errors import MissingExtra
from samforge.core.telemetry import ray_declined
from samforge.labelling import Chunk, Engine, Labeller, Ontology, Opening, Outcome, labelled

_CHUNKS_OF_A_TASK = 8
"""What a task gives back at once: so much is labelled again after a kill."""
_MOST_TASKS = 20_000


def ray_engine(
    openings: Sequence[Opening], ontology: Ontology, stack: ExitStack
) -> tuple[Engine, str]:
    """Label on the cluster that this process belongs to, or on a local one that is started for it.

    The ledger stays with this process: what an actor has labelled is in it before the next is asked
    for, and a run that is killed goes on where it was. Bundle and source are read by every node
    under the same paths or URLs.

    Args:
        openings: One for each actor; those of GPUs have one each, which Ray assigns.
        ontology: What is labelled.
        stack: Ends the local cluster.

    Raises:
        MissingExtra: Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra("Ray", "ray") from error
    if not ray.is_initialized():
        with ray_declined():
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        stack.callback(ray.shutdown)
    first = openings[0]
    on_gpu = first.device.startswith("cuda")
    # An actor sees no other GPU than its own.
    opening = replace(first, device="cuda") if on_gpu else first
    pool = _Pool(opening, ontology, actors=len(openings), on_gpu=on_gpu)
    where = "a GPU each" if on_gpu else f"{opening.threads or 1} threads each"
    return pool.outcomes, f"Ray {ray.__version__}, {len(openings)} actors, {where}"


class _Pool:
    """Actors that label, by Ray Data."""

    def __init__(self, opening: Opening, ontology: Ontology, *, actors: int, on_gpu: bool) -> None:
        self._opening, self._ontology = opening, ontology
        self._actors, self._on_gpu = actors, on_gpu

    def outcomes(self, chunks: Sequence[Chunk]) -> Iterator[list[Outcome]]:
        """Label chunks; outcomes come as tasks end."""
        import ray

        rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
        tasks = max(1, min(_MOST_TASKS, -(-len(rows) // _CHUNKS_OF_A_TASK)))
        data = ray.data.from_items(rows, override_num_blocks=tasks)
        needs: dict[str, float] = {"num_gpus": 1} if self._on_gpu else {}
        labels = data.map_batches(
            Actor,
            fn_constructor_args=(self._opening, self._ontology),
            compute=ray.data.ActorPoolStrategy(size=self._actors),
            batch_size=1,
            num_cpus=0 if self._on_gpu else (self._opening.threads or 1),
            **needs,
        )
        for row in labels.iter_rows():
            yield from pickle.loads(row["outcomes"])  # noqa: S301  # of our own actors


class Actor:
    """One segmenter of the pool."""

    def __init__(self, opening: Opening, ontology: Ontology) -> None:
        self._labeller = Labeller(opening.segmenter(), ontology)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Label the chunks of a batch."""
        chunks = [pickle.loads(one) for one in batch["chunk"]]  # noqa: S301  # of our own driver
        return {"outcomes": [pickle.dumps(list(labelled(self._labeller, chunks)))]}
