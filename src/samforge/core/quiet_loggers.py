"""Quiets loggers of other packages for the command line; the library leaves them as they are."""

from __future__ import annotations

import logging
import os

_QUIET = (
    "torchao",  # "Failed to load …": its CUDA kernels, which a CPU build has no use for
    "torch.utils._pytree",  # a deprecation inside torchao 0.18, printed on every import
    "torch.onnx._internal.exporter._registration",  # "torchvision is not installed": on purpose
)


class _ErrorsOnly(logging.Filter):
    """Lets errors through and nothing below."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


_ERRORS_ONLY = _ErrorsOnly()


def quiet_third_parties() -> None:
    """Let the named packages log errors only, in this process."""
    for name in _QUIET:
        # A filter and not a level: torch sets the levels of its loggers again when it is imported.
        # Adding the same filter twice does nothing.
        logging.getLogger(name).addFilter(_ERRORS_ONLY)
    # transformers, too, sets its level on import, and reads this for it. The user's value wins.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
