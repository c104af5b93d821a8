"""What compiled libraries and the system raise, as errors of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from samforge.core.errors import ItemError, OutOfMemory, PathError, SamforgeError

Report: TypeAlias = Callable[[str, Exception], None]
"""Takes the name of an item and what went wrong with it."""

_PANIC = "PanicException"  # of pyo3: no subclass of Exception, and importable from nowhere


@contextmanager
def native_errors(error_of: Callable[[BaseException], SamforgeError]) -> Iterator[None]:
    """Turn whatever a compiled library raises in the body into one error, panics of Rust included.

    A panic arrives as a ``BaseException``, which ``except Exception`` lets through: a regular
    expression in a ``tokenizer.json`` is enough for one (tokenizers 0.23). Ctrl-C, the end of the
    interpreter and errors of ours pass unchanged.

    Args:
        error_of: Makes the error from what was raised.
    """
    try:
        yield
    except SamforgeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise error_of(error) from error


def error_from_system(error: OSError | MemoryError) -> SamforgeError:
    """What the system said, as an error of ours with its place."""
    if isinstance(error, MemoryError):
        what = f" ({error})" if str(error) else ""
        return OutOfMemory(f"There is no memory left{what}. Give smaller or fewer images at once.")
    place = f"{error.filename}: " if error.filename is not None else ""
    return PathError(f"{place}{error.strerror or error}.")


def error_of_item(error: Exception) -> SamforgeError:
    """What went wrong with one of several items: it is told, and the others go on."""
    if isinstance(error, SamforgeError):
        return error
    if isinstance(error, OSError | MemoryError):
        return error_from_system(error)
    return ItemError(f"{type(error).__name__}: {error}")


@contextmanager
def isolated(report: Report | None, item: str) -> Iterator[None]:
    """Keep what goes wrong with one item from ending the others.

    Args:
        report: Takes it; None lets it through.
        item: Names what the body is about.
    """
    try:
        yield
    except Exception as error:
        if report is None:
            raise
        report(item, error)
