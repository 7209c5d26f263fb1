# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs tests in a copy of the repository, each run in a fork of this process, which has imported pytest and libraries.

Started in the copy. Reads a line of JSON from standard input for each run, ``{"tests": [files], "seconds":
limit}``, and answers with one,
 ``{"code": pytest's exit status or null for a run that did not end, "seconds": duration}``. Whatever a run
leaves behind, servers of tests included, is ended before the answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import select
import signal
import sys
import time
import typing as t

import psutil

_LIBRARIES = (
    "hypothesis",
    "psycopg2",
    "redis",
    "requests",
    "websocket",
    "xml.dom",
    "http.server",
    "unittest.mock",
    "pglast",
    # Of the tests' own what imports nothing of the library, which a mutant changes.
    "tests.support.answers",
    "tests.support.collection",
    "tests.support.servers",
    "tests.support.waiting",
)
#: Tests of minutes would be run once for every survivor.
_OPTIONS = (
    "-x",
    "-m",
    "not slow",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:testinfra",
    "--hypothesis-seed=0",
    "--tb=short",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
_SET_CHILD_SUBREAPER, _SET_PARENT_DEATH_SIGNAL = 36, 1
_libc = ctypes.CDLL(None)


def _end_children() -> None:
    """Everything that was started from here, also what has left its parent and its process group."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def _end(*_: object) -> None:
    _end_children()
    os._exit(128 + signal.SIGTERM)


def _run(request: t.Mapping[str, t.Any]) -> t.NoReturn:
    import pytest

    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    descriptor = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 3
    try:
        code = int(pytest.main([*_OPTIONS, f"--basetemp={os.path.abspath('../t')}", *request["tests"]]))
    finally:
        os._exit(code)


def _answer(request: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    started = time.monotonic()
    child = os.fork()
    if not child:
        _run(request)
    descriptor = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([descriptor], [], [], request["seconds"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if ended else None
    finally:
        os.close(descriptor)
        _end_children()
    return {"code": code, "seconds": time.monotonic() - started}


def main() -> None:
    _libc.prctl(_SET_CHILD_SUBREAPER, 1)
    # Where whoever started this is killed, nobody reads our answers any more.
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for entry in importlib.metadata.entry_points(group="pytest11"):
        with contextlib.suppress(ImportError):
            entry.load()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
