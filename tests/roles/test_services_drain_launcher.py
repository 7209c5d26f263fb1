# SPDX-License-Identifier: GPL-3.0-or-later
"""The drain launcher under supervisord, which holds the socket: no request fails while the application restarts under
load.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest

from tests.support.backend_env import BACKEND_PYTHON, REPOSITORY
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, port_open, wait_until

WEB = "web:1"
LAUNCHER = REPOSITORY / "collections/wheels/ops/roles/services/files/drain.py"


@contextlib.contextmanager
def drained(
    *, start_seconds: float = 0.3, drain_seconds: float = 3.0, keep_alive: int = 5
) -> t.Iterator[t.Tuple[Supervisord, int]]:
    port = free_port()
    command = (
        f"{BACKEND_PYTHON} {LAUNCHER} restarting_app:app --fd 0 --app-dir {REPOSITORY}/tests/support --log-level info"
    )
    command += f" --timeout-keep-alive {keep_alive}"
    program = Program(
        # supervisord closes the socket with the last process of the group: number 0 keeps it and does nothing else.
        f"/bin/sh -c '[ %(process_num)d = 0 ] && exec sleep infinity; exec {command}'",
        environment={"START_SECONDS": str(start_seconds), "DRAIN_SECONDS": str(drain_seconds)},
        options={
            "stdout_logfile": "%(here)s/web-%(process_num)d.log",
            "socket": f"tcp://127.0.0.1:{port}",
            "stopwaitsecs": "90",
            "numprocs": "2",
            "process_name": "%(process_num)d",
        },
    )
    with supervisord({"web": program}, section="fcgi-program") as daemon:
        wait_until(lambda: port_open(port) and "Application startup complete" in daemon.ctl("tail", WEB))
        yield daemon, port


def exchange(sock: socket.socket) -> bytes:
    """One request on an open connection; the whole answer."""
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    data = b""
    while b"}" not in data:
        part = sock.recv(4096)
        if not part:
            break
        data += part
    return data


@pytest.mark.parametrize("keep_alive", [False, True], ids=["new", "keep-alive"])
def test_no_request_fails_over_restarts(keep_alive: bool) -> None:
    with drained() as (daemon, port):
        words = [
            sys.executable,
            "-m",
            "tests.support.load",
            "--port",
            str(port),
            "--seconds",
            "8",
            *(["--keep-alive"] if keep_alive else []),
        ]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=REPOSITORY)
        pids = {daemon.pid(WEB)}
        for _ in range(2):
            daemon.ctl("restart", WEB)
            pids.add(daemon.pid(WEB))
        out, _err = process.communicate(timeout=120)
    found = json.loads(out)
    print(found)
    assert len(pids) == 3
    assert found["processes"] >= 2
    assert found["failed"] == 0, found
    assert found["ok"] > 100


def test_an_open_connection_is_answered_and_told_to_leave() -> None:
    # Long enough for a busy machine to look at it meanwhile: the end comes when the answer was given, not with these
    # times.
    with (
        drained(drain_seconds=60, keep_alive=60) as (daemon, port),
        socket.create_connection(("127.0.0.1", port), 20) as sock,
    ):
        assert b"connection: close" not in exchange(sock).lower()
        old = daemon.pid(WEB)
        stopper = threading.Thread(target=daemon.ctl, args=("stop", WEB))
        stopper.start()
        # supervisord says STOPPING when it has sent the signal; the server sees that at its next look.
        wait_until(lambda: "Draining 1 connections" in daemon.ctl("tail", WEB))
        assert "STOPPING" in daemon.ctl("status", WEB)
        answer = exchange(sock)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert str(old).encode() in answer
        assert sock.recv(1) == b""
        stopper.join()


def test_a_silent_connection_does_not_hold_the_stop_up() -> None:
    with drained(drain_seconds=0.5) as (daemon, port), socket.create_connection(("127.0.0.1", port), 10) as sock:
        exchange(sock)
        daemon.ctl("stop", WEB)
        assert "STOPPED" in daemon.ctl("status", WEB)
        assert sock.recv(1) == b""
        assert "said nothing for 0.5 s" in daemon.ctl("tail", WEB)


def test_a_websocket_is_closed_with_1012_at_once() -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with drained(drain_seconds=15) as (daemon, port), connect(f"ws://127.0.0.1:{port}/ws") as client:
        stopper = threading.Thread(target=daemon.ctl, args=("stop", WEB))
        stopper.start()
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(timeout=10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
        stopper.join()


def test_more_than_one_process_is_refused() -> None:
    words = [str(BACKEND_PYTHON), str(LAUNCHER), "restarting_app:app", "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    assert done.returncode
    assert "one process" in done.stderr
