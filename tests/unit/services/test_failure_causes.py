# SPDX-License-Identifier: GPL-3.0-or-later
"""The cause of a failed start in the words of real programs: Python's own tracebacks, sockets, and lines that servers
write.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from wheels_ops.services import failure_causes


def python(tmp_path: Path, text: str, *, helper: str = "") -> t.List[str]:
    """What Python writes when it runs a file; ``helper`` is a module beside it."""
    (tmp_path / "main.py").write_text(text)
    (tmp_path / "helper.py").write_text(helper)
    done = subprocess.run([sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, check=False)
    assert done.returncode
    return done.stderr.splitlines()


def test_syntax_error_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    lines = python(tmp_path, "import helper\n", helper="x = 1\ndef broken(:\n")
    cause = failure_causes.explain(lines)
    assert cause.startswith(f"{tmp_path}/helper.py, line 2: SyntaxError: invalid syntax")


def test_module_that_is_missing_is_named(tmp_path: Path) -> None:
    lines = python(tmp_path, "import app.core.cors_config\n")
    assert failure_causes.explain(lines) == "The Python module app is missing."


def test_name_that_a_module_lacks_is_named_with_its_place(tmp_path: Path) -> None:
    lines = python(tmp_path, "from helper import router\n")
    cause = failure_causes.explain(lines)
    assert cause.startswith(f"{tmp_path}/main.py, line 1: ImportError: cannot import name 'router' from 'helper'")


def test_port_that_is_taken_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        text = f"import socket\nsocket.create_server(('127.0.0.1', {port}))\n"
        lines = python(tmp_path, text)
        cause = failure_causes.explain(lines, port=port)
    assert f"Its port {port} is taken by " in cause
    assert f"(process {os.getpid()})" in cause


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            'asyncpg.exceptions.InvalidPasswordError: password authentication failed for user "pam"',
            "The database refuses its password.",
        ),
        ("OSError: [Errno 28] No space left on device: '/x'", "Its disk is full."),
        ("OSError: [Errno 30] Read-only file system: '/x'", "Its file system is read-only."),
        ("MemoryError", "It gets no memory."),
        ("PermissionError: [Errno 13] Permission denied: '/var/log/pam.log'", "It may not open a file or a port"),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/production/.env'",
            "/production/.env is missing.",
        ),
        (
            "Fatal error, can't open config file '/etc/redis/redis.conf': No such file or directory",
            "A file is missing.",
        ),
        ("[Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use", "8000"),
        ("# Warning: Could not create server TCP listening socket *:6379: bind: Address already in use", "6379"),
        ("FATAL: sorry, too many clients already", "The database takes no more connections."),
        ("INFO: Application startup complete.", ""),
        ("", ""),
    ],
)
def test_line_of_a_server_is_understood(line: str, cause: str) -> None:
    explained = failure_causes.explain([line])
    assert cause in explained if cause else explained == ""


def test_newest_cause_counts() -> None:
    lines = ["OSError: [Errno 28] No space left on device", "INFO: started", "MemoryError", "exiting"]
    assert failure_causes.explain(lines) == "It gets no memory."
    assert failure_causes.explain([]) == ""


def test_last_lines_are_short_and_on_one_line() -> None:
    text = failure_causes.last_lines(["a", "", "b\tc", "d" * 999, "  "])
    assert text.startswith("Its last lines: a / b c / ddd")
    assert len(text) < 250
    assert failure_causes.last_lines([]) == "It wrote nothing."
