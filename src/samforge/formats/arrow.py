"""Arrow's Parquet, an optional dependency, imported where it is needed."""

from __future__ import annotations

from typing import Any

from samforge.core.errors import MissingExtra


def parquet(what: str) -> tuple[Any, Any]:
    """pyarrow, and its module for Parquet.

    Args:
        what: It does, for the message: ``reads``.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet as module
    except ModuleNotFoundError as error:
        raise MissingExtra(f"pyarrow, which {what} Parquet,", "label") from error
    return pa, module
