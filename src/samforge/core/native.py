"""What compiled libraries raise, as errors of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from samforge.core.errors import SamforgeError

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
