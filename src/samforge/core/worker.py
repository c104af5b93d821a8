"""How a worker process of a build begins; imports nothing heavy, so that it comes first."""

from __future__ import annotations

import signal

from samforge.core.quiet_loggers import quiet_third_parties


def begin() -> None:
    """Leave Ctrl-C to the parent, which ends its workers, and keep third parties quiet."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_third_parties()
