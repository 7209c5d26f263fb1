# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a condition instead of for an amount of time."""

from __future__ import annotations

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
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def port_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((host, port)) == 0
