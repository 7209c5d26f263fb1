# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a condition instead of for an amount of time."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import time
import typing as t

T = t.TypeVar("T")


def wait_until(condition: t.Callable[[], T], *, timeout: float = 20.0, every: float = 0.05, what: str = "") -> T:
    """Calls ``condition`` until it gives something true, and gives that; exceptions count as "not yet".

    Raises ``AssertionError`` with the last thing seen after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            found = condition()
            if found:
                return found
            last = found
        except Exception as error:  # a server that is not up yet refuses in many ways
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}; last seen: {last!r}")
        time.sleep(every)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now, given once.

    It lies below the range from which Linux takes ports for outgoing connections, and each of several pytest processes
    has a share of its own: nobody else takes the port between this call and the moment that a server listens on it.
    """
    for port in _PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no TCP port is free")


def _ports(first: int = 12_000, last: int = 32_000) -> t.Iterator[int]:
    """Endlessly the ports of this process's share, from a random one on."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = (last - first) // workers
    first += share * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    start = random.randrange(share)
    return itertools.cycle([first + (start + number) % share for number in range(share)])


_PORTS = _ports()


def port_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((host, port)) == 0
