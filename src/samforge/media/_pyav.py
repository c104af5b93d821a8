"""PyAV, when it is asked for."""

from __future__ import annotations

from typing import Any

from samforge.core.errors import MissingExtra


def pyav() -> Any:
    """Import PyAV.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtra("PyAV", "video") from error
    return av
