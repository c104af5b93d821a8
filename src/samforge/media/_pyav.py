"""PyAV, when it is asked for."""

from __future__ import annotations

from typing import Any

from samforge.core.errors import MissingExtra

_OLDEST = 17


def pyav() -> Any:
    """Import PyAV.

    Raises:
        MissingExtra: It is not installed, or older than the first one that converts colours as it
            is told: before 17, BT.709 came out as BT.601 (seen with 14.2, 15.1 and 16.1).
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtra("PyAV", "video") from error
    if int(av.__version__.split(".")[0]) < _OLDEST:
        raise MissingExtra(f"PyAV {_OLDEST} or newer (here is {av.__version__})", "video")
    return av
