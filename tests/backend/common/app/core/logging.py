# SPDX-License-Identifier: MIT
"""Structured logging, one JSON document a line, in which what is not ASCII is escaped.

It goes to standard error and, when ``LOG_DIR`` is set, to ``LOG_DIR/app.log`` (appended).
"""

from __future__ import annotations

import logging
import os
import sys
import typing as t
from pathlib import Path

import structlog

_FORMAT = "%(message)s"


def setup_logging() -> None:
    """Configures the root logger from nothing, whatever it was before."""
    handlers: t.List[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    directory = os.environ.get("LOG_DIR")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(directory) / "app.log", mode="a", encoding="utf-8"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
    root.setLevel(os.environ.get("LOG_LEVEL", "INFO"))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get_logger(name: t.Optional[str] = None) -> t.Any:
    """A structlog ``BoundLogger``: an event with keyword arguments, or ``%`` style arguments as in the standard
    library.
    """
    return structlog.get_logger(name) if name else structlog.get_logger()


setup_logging()
