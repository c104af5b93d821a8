"""One bundle of a server: proven on this machine, then loaded, then asked."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from samforge.assembly import load, tokenizer_from_bundle
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import TEXT
from samforge.core.devices import AUTO
from samforge.core.errors import DamagedBundle, Overloaded, SamforgeError, SettingError
from samforge.core.native import error_of_item
from samforge.runtime import Segmenter
from samforge.serving.cache import EncodingCache
from samforge.serving.limits import Limits
from samforge.serving.scheduler import Read, Scheduler
from samforge.serving.warming import warmed
from samforge.serving.watching import Watcher
from samforge.workflows.verify import Verification, verify

_PATH = re.compile(r"(?<![\w/.:])(?:~|\.{1,2})?(?:/[^\s/:;,'\"()]+)*/([^\s/:;,'\"()]+)")
"""A path in a message; its last part is kept."""
_LOG = logging.getLogger("samforge.serving")
_PHRASES = 1024
"""Whose remarks are remembered."""


class State(StrEnum):
    """How far a bundle has come."""

    VERIFYING = "verifying"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A bundle to serve."""

    name: str
    """What clients call it."""
    path: Path
    """Its folder."""
    devices: tuple[str, ...] = (AUTO,)
    """Where to run it, as ``samforge.load`` takes it; each gets a copy of its own."""
    threads: int | None = None
    """Processor threads of each session; None for the runtime's own choice."""
    digests: tuple[str, ...] = ()
    """Where there are some, a bundle of any other digest is refused."""


@dataclass(kw_only=True, slots=True)
class Proof:
    """What verification on this machine gave."""

    verifications: tuple[Verification, ...] = ()
    """One for each device."""
    error: SamforgeError | None = None
    """Why the bundle is not served."""
    seconds: float = 0.0
    """What verifying and loading took."""


class Model:
    """A bundle, its state and, once it is ready, what answers for it."""

    def __init__(
        self,
        served: Served,
        read: Read,
        *,
        limits: Limits,
        cache: EncodingCache,
        watcher: Watcher | None = None,
    ) -> None:
        """Open a bundle; :meth:`start` makes it ready.

        Raises:
            BundleError: It is none, damaged, or another than the one of the digest.
            SettingError: It lacks a part without which nothing is found.
        """
        self.name = served.name
        self.served = served
        self.bundle: Bundle = _opened(served)
        # The same phrases come again and again.
        self._remarks = lru_cache(_PHRASES)(tokenizer_from_bundle(self.bundle).remarks)
        self.state = State.VERIFYING
        self.proof = Proof()
        self.processors: tuple[str, ...] = ()
        self.scheduler: Scheduler | None = None
        self._read, self._limits, self._cache, self._watcher = read, limits, cache, watcher
        self._thread = threading.Thread(
            target=self._make_ready, name=f"verify {self.name}", daemon=True
        )
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """Of the bundle: it names every answer."""
        return self.bundle.digest

    @property
    def parts(self) -> tuple[str, ...]:
        """What it can run."""
        return tuple(self.bundle.manifest.parts)

    def start(self) -> None:
        """Verify and load in a thread of its own, unless it was closed before."""
        self._thread.start()

    def wait(self) -> State:
        """Wait until it is ready, or failed."""
        self._thread.join()
        return self.state

    def trouble(self) -> str | None:
        """Why it is not served, for clients: without the places of files, which are the log's."""
        if self.proof.error is None:
            return None
        return _PATH.sub(r"…/\1", str(self.proof.error))

    def require(self) -> Scheduler:
        """What answers.

        Raises:
            Overloaded: The bundle is not proven on this machine, yet or at all.
        """
        scheduler = self.scheduler  # another thread may close it meanwhile
        if scheduler is None or self.state is not State.READY:
            trouble = self.trouble()
            why = "." if trouble is None else f": {trouble}"
            raise Overloaded(
                f"The bundle {self.name} is {self.state}, and answers once it has held its proof "
                f"on this machine{why}",
                retry_after_s=30.0 if self.state is State.FAILED else 5.0,
            )
        return scheduler

    def verdict(self) -> dict[str, Any]:
        """What answers say of the proof."""
        found = self.proof.verifications
        return {
            "held": self.state is State.READY,
            "gates": {
                gate: {"figure": value, "limit": limit}
                for one in found
                for gate, (value, limit) in one.gates.items()
            },
            "processor": ", ".join(dict.fromkeys(one.processor for one in found)),
        }

    def remarks(self, phrases: Iterable[str]) -> list[str]:
        """What the model does not read of phrases, or not know."""
        return [remark for one in phrases for remark in self._remarks(one)]

    def close(self) -> None:
        """Stop, and free the parts."""
        with self._lock:
            scheduler, self.scheduler = self.scheduler, None
            self.state = State.CLOSED
        if scheduler is not None:
            scheduler.close()

    def _make_ready(self) -> None:
        start = time.monotonic()
        try:
            self._verify_and_load()
        except Exception as error:  # noqa: BLE001  # told by /health/ready, and in the log
            self.proof.error = error_of_item(error)
            self._become(State.FAILED)
            _LOG.exception("bundle %s is not served", self.name)
        self.proof.seconds = time.monotonic() - start

    def _verify_and_load(self) -> None:
        served, found = self.served, []
        for device in dict.fromkeys(served.devices):
            if not self._become(State.VERIFYING):
                return
            found.append(verify(served.path, device=device, digest=self.digest, record=False))
        self.proof.verifications = tuple(found)
        with ExitStack() as loaded:  # what is not handed on is freed
            segmenters = []
            # What was opened is what was verified, file by file: both have one digest.
            for device in served.devices:
                if not self._become(State.LOADING):
                    return
                one = load(self.bundle, device=device, threads=served.threads, digest=self.digest)
                loaded.callback(one.close)
                segmenters.append(one)
                for _ in warmed(one):
                    if not self._become(State.LOADING):
                        return
            self.processors = tuple(one.processor for one in segmenters)
            if self._answer_with(segmenters):
                loaded.pop_all()
                _LOG.info("bundle %s is ready", self.name)

    def _become(self, state: State) -> bool:
        """Go on to a state, unless the bundle was closed meanwhile: then it stays so."""
        with self._lock:
            if self.state is State.CLOSED:
                return False
            self.state = state
            return True

    def _answer_with(self, segmenters: Sequence[Segmenter]) -> bool:
        """Become ready, unless the bundle was closed meanwhile."""
        with self._lock:
            if self.state is State.CLOSED:
                return False
            self.scheduler = Scheduler(
                segmenters,
                self._read,
                digest=self.digest,
                limits=self._limits,
                cache=self._cache,
                watcher=self._watcher,
            )
            self.state = State.READY
            return True


def _opened(served: Served) -> Bundle:
    bundle = open_bundle(served.path)
    if served.digests and bundle.digest not in served.digests:
        raise DamagedBundle(
            f"{bundle.root} is none of the bundles that were asked for: its digest is "
            f"{bundle.digest}. Review it, and pin that."
        )
    if missing := TEXT.missing(bundle.manifest.parts):
        raise SettingError(
            f"{bundle.root} cannot segment: it has no {', '.join(missing)}. Build it again with "
            "all parts."
        )
    return bundle
