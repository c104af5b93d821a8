"""Logs as one JSON object a line."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import warnings

from samforge.core.errors import PromptWarning


class JsonLines(logging.Formatter):
    """A record as JSON: ``time``, ``level``, ``event``, and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Write what this process logs to standard error. For applications alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    warnings.simplefilter("ignore", PromptWarning)  # it quotes phrases; answers bring it to clients
    for name in ("samforge", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
