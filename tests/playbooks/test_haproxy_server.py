# SPDX-License-Identifier: GPL-3.0-or-later
"""What drains and restores a server of HAProxy, on a stats socket that answers as HAProxy's does; ``make test-fleet``
has the real one.
"""

from __future__ import annotations

import contextlib
import socketserver
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY

PROGRAM = REPOSITORY / "collections/wheels/ops/playbooks/files/haproxy_server.py"


class Stats(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One server, ``pam/one``. ``sessions`` are those of each further ``show stat``; the last is said again and again."""

    daemon_threads = True

    def __init__(self, path: Path, sessions: t.List[int], up: bool) -> None:
        self.sessions, self.up, self.commands = sessions, up, t.cast("t.List[str]", [])
        super().__init__(str(path), Answer)

    def answer(self, command: str) -> str:
        self.commands.append(command)
        if command != "show stat":
            return "\n"
        sessions = self.sessions.pop(0) if len(self.sessions) > 1 else self.sessions[0]
        status = "UP" if self.up else "DOWN"
        return f"# pxname,svname,qcur,scur,status,\npam,two,0,7,UP,\npam,one,0,{sessions},{status},\n\n"


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = t.cast(Stats, self.server)
        self.wfile.write(server.answer(self.rfile.readline().decode().strip()).encode())


@contextlib.contextmanager
def stats(path: Path, sessions: t.Sequence[int] = (0,), *, up: bool = True) -> t.Iterator[Stats]:
    with Stats(path, list(sessions), up) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def run(path: Path, *words: str) -> t.Tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words, f"--socket={path}"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_drain_ends_when_the_last_session_has(tmp_path: Path) -> None:
    with stats(tmp_path / "s", [2, 2, 1, 0]) as server:
        assert run(tmp_path / "s", "drain", "pam/one") == (0, "")
    assert server.commands[1] == "set server pam/one state drain"
    assert server.commands.count("show stat") == 4


def test_sessions_that_stay_hold_no_drain_up(tmp_path: Path) -> None:
    with stats(tmp_path / "s", [3]):
        status, text = run(tmp_path / "s", "drain", "pam/one", "--seconds=0")
    assert (status, text) == (0, "pam/one is drained; 3 sessions are still open.\n")


@pytest.mark.parametrize("up", [True, False])
def test_a_restore_waits_for_the_check_of_the_proxy(tmp_path: Path, up: bool) -> None:
    with stats(tmp_path / "s", up=up) as server:
        status, text = run(tmp_path / "s", "restore", "pam/one", "--seconds=0.3")
    assert server.commands[1] == "set server pam/one state ready"
    assert (status == 0) == up
    assert ("pam/one is DOWN after 0.3 seconds, not UP." in text) == (not up)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    status, text = run(tmp_path / "none", "drain", "pam/one")
    assert status == 1 and f"HAProxy does not answer at {tmp_path / 'none'}" in text
    with stats(tmp_path / "s") as server:
        status, text = run(tmp_path / "s", "drain", "pam/three")
    assert status == 1 and "HAProxy has no server pam/three." in text
    assert server.commands == ["show stat"]
