"""Labels chunks of items in this process: the next pictures are read while one is segmented."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from samforge.core.devices import CPU, checked_device
from samforge.core.errors import SettingError
from samforge.labelling.items import Item
from samforge.labelling.labeller import Labeller, Loaded, Staged, decoded, fetched
from samforge.labelling.outcome import Outcome
from samforge.labelling.reader import ItemReader
from samforge.runtime.batches import decoding_threads
from samforge.runtime.prefetch import Prefetcher

Chunk: TypeAlias = tuple[tuple[int, Item], ...]
"""Pictures that are labelled in one call, or one video; each with its place in the source."""
Engine: TypeAlias = Callable[[Sequence[Chunk]], Iterator[list[Outcome]]]
"""Labels chunks, in any order: what it gives at once goes into the ledger at once."""

AHEAD = 2
"""Chunks that are read before they are needed."""
_GPU_BATCH = 8
"""Pictures in a call on a GPU; on a processor they follow one another (runtime/host.py)."""


def batch_for(device: str) -> int:
    """Pictures that go in one call on a device, as ``samforge.load`` takes it.

    Raises:
        SettingError: There is no such device.
    """
    # A bundle that may run on either is asked as on a GPU: so it finds the same on both.
    return 1 if checked_device(device) == CPU else _GPU_BATCH


def chunks_from_items(
    items: Sequence[Item], order: Sequence[int], batch: int, done: Collection[int]
) -> list[Chunk]:
    """Fall into calls, then leave out what is done.

    Which pictures share a call depends on the order alone: on a GPU the last bits of a result may
    depend on its neighbours, and a run that resumes has to come to the same bits.
    """
    chunks: list[list[tuple[int, Item]]] = []
    room = 0
    for number in order:
        item = items[number]
        if item.kind == "video":
            chunks.append([(number, item)])
            room = 0
            continue
        if room == 0:
            chunks.append([])
            room = batch
        chunks[-1].append((number, item))
        room -= 1
    left = (tuple(one for one in chunk if one[0] not in done) for chunk in chunks)
    return [chunk for chunk in left if chunk]


def labelled(labeller: Labeller, chunks: Iterable[Chunk]) -> Iterator[list[Outcome]]:
    """Label chunks one after the other, reading ahead."""
    with (
        ItemReader() as reader,
        ThreadPoolExecutor(decoding_threads(), thread_name_prefix="samforge-decode") as decoders,
        Prefetcher(
            _read(reader, decoders, labeller.staged, chunks), ahead=AHEAD, name="read"
        ) as read,
    ):
        for chunk, pictures in read:
            number, item = chunk[0]
            if item.kind == "video":
                for outcome in labeller.video(number, item):
                    yield [outcome]
            else:
                yield labeller.pictures(pictures)


def _read(
    reader: ItemReader, decoders: ThreadPoolExecutor, staged: Staged, chunks: Iterable[Chunk]
) -> Iterator[tuple[Chunk, list[Loaded]]]:
    """The pictures of each chunk: files are read one after the other, and decoded together."""
    decode = partial(decoded, staged)
    for chunk in chunks:
        if chunk[0][1].kind == "video":
            yield chunk, []
        else:
            contents = [fetched(reader, item) for _, item in chunk]
            yield chunk, list(decoders.map(decode, *zip(*chunk, strict=True), contents))


def require_jobs(jobs: int) -> None:
    """Make sure that a number of processes is one.

    Raises:
        SettingError: It is not.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise SettingError(f"jobs is {jobs!r:.40}. Give at least 1.")
