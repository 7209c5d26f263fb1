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
from pathlib import Path

T = t.TypeVar("T")


def slowness() -> float:
    """How many times longer everything takes now, as more processes want to run than there are cores: from 1 to 10."""
    load = Path("/proc/loadavg").read_text().split()
    # The average lags behind by a minute; how many want to run at this moment does not.
    wanting = max(float(load[0]), float(load[3].split("/")[0]))
    return min(10.0, max(1.0, wanting / (os.cpu_count() or 1)))


def wait_until(condition: t.Callable[[], T], *, timeout: float = 20.0, every: float = 0.05, what: str = "") -> T:
    """Calls ``condition`` until it gives something true, and gives that; exceptions count as "not yet".

    Raises ``AssertionError`` with the last thing seen after ``timeout`` seconds, which are those of a machine with
    nothing else to do.
    """
    started = time.monotonic()
    last: object = None
    while True:
        try:
            found = condition()
            if found:
                return found
            last = found
        except Exception as error:  # a server that is not up yet refuses in many ways
            last = error
        waited = time.monotonic() - started
        if waited > timeout and waited > timeout * slowness():
            raise AssertionError(f"not within {waited:.0f} s: {what or condition}; last seen: {last!r}")
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
