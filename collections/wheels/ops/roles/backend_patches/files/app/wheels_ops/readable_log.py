# SPDX-License-Identifier: MIT
"""Lets the JSON log show pictographs and letters as they are, so that the incident report's ``grep`` commands find them.

The backend renders its log with ``json.dumps``, which writes everything outside of ASCII as ``\\uXXXX``. What would act
on a terminal, hide text or break lines stays escaped, as do lone surrogates; the lines remain valid JSON. Nothing is
changed on the disk: without the block in ``app/core/logging.py`` the log is as it was.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
import typing as t

#: Control characters, separators of lines and paragraphs, marks of direction, and lone surrogates.
_ESCAPED = re.compile("[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
#: Where structlog's renderer and python-json-logger's formatter keep their serialiser.
_SERIALISERS = ("_dumps", "json_serializer")


def dumps(value: t.Any, **options: t.Any) -> str:
    """``json.dumps`` with readable text."""
    text = json.dumps(value, **{**options, "ensure_ascii": False})
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def install(namespace: t.MutableMapping[str, t.Any]) -> None:
    """Does it for the logging that is set up now, and whenever ``setup_logging`` of the module sets it up anew."""
    apply()
    setup = namespace.get("setup_logging")
    if callable(setup) and not hasattr(setup, "__wrapped__"):

        @functools.wraps(setup)
        def setup_logging(*words: t.Any, **options: t.Any) -> t.Any:
            try:
                return setup(*words, **options)
            finally:
                apply()

        namespace["setup_logging"] = setup_logging


def apply() -> None:
    """Replaces ``json.dumps`` in every renderer and formatter; a serialiser of the application's own stays."""
    handlers = list(logging.getLogger().handlers)
    formatters = [handler.formatter for handler in handlers]
    renderers = [*_renderers(), *(each for one in formatters for each in getattr(one, "processors", None) or ())]
    found = False
    for renderer in (*renderers, *formatters):
        for name in _SERIALISERS:
            if getattr(renderer, name, None) is json.dumps:
                setattr(renderer, name, dumps)
                found = True
    if not found:
        return
    for handler in handlers:
        _tolerate(getattr(handler, "stream", None))
        if isinstance(handler, logging.FileHandler):
            handler.errors = "backslashreplace"  # also for the file that a rotation opens
    _tolerate(sys.stdout)


def _renderers() -> t.Iterable[t.Any]:
    structlog = sys.modules.get("structlog")
    if structlog is None:
        return ()
    return t.cast("t.Iterable[t.Any]", structlog.get_config().get("processors") or ())


def _tolerate(stream: t.Any) -> None:
    """A stream in an encoding that lacks a character gets its escape, and the line is not lost."""
    encoding = str(getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-")
    if encoding not in ("utf-8", "utf8"):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")
