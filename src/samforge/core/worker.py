"""How a worker process of a build begins; imports nothing heavy, so that it comes first."""

from __future__ import annotations

import gc
import signal

from samforge.core.quiet_loggers import quiet_third_parties

THRESHOLDS = (200_000, 50, 100)
"""New objects before a collection of the youngest, and collections before one of each older kind;
Python 3.11's own are 700, 10 and 10."""


def begin() -> None:
    """Leave Ctrl-C to the parent, which ends its workers, and keep third parties quiet.

    Tracing makes millions of small objects that stay: by default Python looks through all of them
    again and again. Steps of a large model end with a collection of their own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_third_parties()
    gc.set_threshold(*THRESHOLDS)
