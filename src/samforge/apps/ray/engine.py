"""An engine for ``samforge.label`` on Ray Data: a pool of actors, each with a segmenter."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from samforge.core.devices import AUTO, CUDA
from samforge.core.errors import ItemError, MissingExtra, SamforgeError, SettingError
from samforge.core.native import native_errors
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
        SettingError: The cluster has no such devices, or nobody says on which to run.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra("Ray", "ray") from error
    if not ray.is_initialized():
        with ray_declined():
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        stack.callback(ray.shutdown)
    opening = _of_actors(openings, ray)
    pool = _Pool(opening, ontology, actors=len(openings))
    where = "a GPU each" if _on_gpu(opening) else f"the processor, {opening.threads} threads each"
    return pool.outcomes, f"Ray {ray.__version__}, {len(openings)} actors on {where}"


def _of_actors(openings: Sequence[Opening], ray: Any) -> Opening:
    """What every actor opens, on a device that the cluster has for each of them."""
    first, count = openings[0], len(openings)
    if first.device == AUTO:
        raise SettingError(
            f"{first.bundle} is of a target that runs on processors and on GPUs, and Ray has to "
            "know what its actors need. Give --device cpu or --device cuda."
        )
    if count == 1 and first.device.startswith(f"{CUDA}:"):
        raise SettingError(
            f"Ray gives actors their GPUs, and --device {first.device} names one. Give --device "
            "cuda."
        )
    has = ray.cluster_resources()
    if _on_gpu(first):
        _require(count, int(has.get("GPU", 0)), "GPU")
        # An actor sees no other GPU than its own.
        return replace(first, device=CUDA)
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    threads = first.threads or max(1, min(cores, default=1))
    _require(count * threads, int(has.get("CPU", 0)), "processor core")
    return replace(first, threads=threads)


def _require(wanted: int, there: int, what: str) -> None:
    """Ray would wait without an end for what no node has."""
    if wanted > there:
        raise SettingError(
            f"The actors want {wanted} {what}s, and the Ray cluster has {there}. Give fewer "
            "--jobs or --threads, or start more nodes first."
        )


def _on_gpu(opening: Opening) -> bool:
    return opening.device.startswith(CUDA)


class _Pool:
    """Actors that label, by Ray Data."""

    def __init__(self, opening: Opening, ontology: Ontology, *, actors: int) -> None:
        self._opening, self._ontology, self._actors = opening, ontology, actors

    def outcomes(self, chunks: Sequence[Chunk]) -> Iterator[list[Outcome]]:
        """Label chunks; outcomes come as tasks end."""
        import ray

        rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
        tasks = max(1, min(_MOST_TASKS, -(-len(rows) // _CHUNKS_OF_A_TASK)))
        data = ray.data.from_items(rows, override_num_blocks=tasks)
        on_gpu = _on_gpu(self._opening)
        needs: dict[str, float] = {"num_gpus": 1} if on_gpu else {}
        labels = data.map_batches(
            Actor,
            fn_constructor_args=(self._opening, self._ontology),
            compute=ray.data.ActorPoolStrategy(size=self._actors),
            batch_size=1,
            num_cpus=0 if on_gpu else self._opening.threads,
            **needs,
        )
        with native_errors(_told):
            for row in labels.iter_rows():
                yield from pickle.loads(row["outcomes"])  # noqa: S301  # of our own actors


def _told(error: BaseException) -> SamforgeError:
    """What an actor said, out of what Ray makes of it."""
    said: BaseException | None = error
    while said is not None:
        cause = getattr(said, "cause", None)
        if isinstance(said, SamforgeError):
            return said
        said = cause if isinstance(cause, BaseException) else said.__cause__
    return ItemError(f"Ray ended the run: {error}. What was labelled is kept: run again.")


class Actor:
    """One segmenter of the pool."""

    def __init__(self, opening: Opening, ontology: Ontology) -> None:
        self._labeller = Labeller(opening.segmenter(), ontology)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Label the chunks of a batch."""
        chunks = [pickle.loads(one) for one in batch["chunk"]]  # noqa: S301  # of our own driver
        return {"outcomes": [pickle.dumps(list(labelled(self._labeller, chunks)))]}
