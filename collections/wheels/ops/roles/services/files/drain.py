# SPDX-License-Identifier: MIT
"""Runs uvicorn so that a restart fails no request: ``python drain.py app.main:app --port 8000 [any option of
uvicorn]``.

The listening socket belongs to whoever outlives us: systemd (a ``.socket`` unit), or supervisord (``[fcgi-program]``
with ``socket=``, then ``--fd 0``; the README of the role names the process that has to hold it). While nobody accepts,
the kernel queues new connections for the next process. What plain uvicorn loses even then are requests on connections
that exist already: it closes an idle keep-alive connection just as the next request arrives, and drops one that it has
accepted and not read. So at SIGTERM we

1. stop accepting, close WebSockets with 1012 (clients come back by themselves),
2. answer what comes on open connections for at most DRAIN_SECONDS (3) with ``Connection: close``, so that each client
   leaves by itself,
3. shut down as uvicorn does, as soon as no connection is left.

Under systemd with ``Type=notify`` the service counts as started when the application has started, not when the process
exists. Runs under the backend's interpreter; imports uvicorn (0.23 to 0.35 and newer) and nothing of the application
itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from typing import Any, List, Optional

import uvicorn
import uvicorn.server

logger = logging.getLogger("uvicorn.error")
#: The first file descriptor that systemd passes (sd_listen_fds(3)).
FIRST_FD = 3
#: How long open connections may be used to say goodbye.
DRAIN_SECONDS = float(os.environ.get("DRAIN_SECONDS", "3"))
#: How long requests under way may take after that; uvicorn itself would wait for ever.
GRACEFUL_SECONDS = int(os.environ.get("GRACEFUL_SECONDS", "30"))


def inherited(fd: Optional[int]) -> Optional[List[socket.socket]]:
    """The listening sockets that our parent opened for us; None where there are none.

    uvicorn's own ``--fd`` calls every socket AF_UNIX, so that asyncio does not turn Nagle's algorithm off on TCP.
    """
    if fd is not None:
        return [socket.socket(fileno=os.dup(fd))]
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # they are not for our children
    found = [socket.socket(fileno=number) for number in range(FIRST_FD, FIRST_FD + count)]
    for sock in found:
        os.set_inheritable(sock.fileno(), False)
    return found or None


def notify(state: str) -> None:
    """Tells systemd; does nothing where nobody listens (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        logger.warning("systemd was not told %s: %s", state, error)


class DrainServer(uvicorn.server.Server):
    """uvicorn's server with an inherited socket and a goodbye."""

    def run(self, sockets: Optional[List[socket.socket]] = None) -> None:
        taken = sockets or inherited(self.config.fd)
        if taken:
            logger.info("Uvicorn accepts on %s", ", ".join(str(sock.getsockname()) for sock in taken))
        super().run(sockets=taken)

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            notify("READY=1")

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        notify("STOPPING=1")
        await self.drain()
        await super().shutdown(sockets=sockets)

    async def drain(self) -> None:
        """Lets the clients go first."""
        for server in self.servers:
            server.close()
        # In place: what is being answered at this moment holds the same list.
        self.server_state.default_headers.append((b"connection", b"close"))
        logger.info("Draining %d connections for at most %g s", len(self.server_state.connections), DRAIN_SECONDS)
        # One turn of the loop is not enough: what was accepted just now becomes a connection in the next ones.
        until = time.monotonic() + DRAIN_SECONDS
        turns = 0
        while not self.force_exit and time.monotonic() < until and (self.server_state.connections or turns < 5):
            turns += 1
            for connection in list(self.server_state.connections):
                if isinstance(connection, self.websocket_classes()):
                    connection.shutdown()
            await asyncio.sleep(0.02)
        left = len(self.server_state.connections)
        if left:
            logger.info("%d connections said nothing for %g s and are closed", left, DRAIN_SECONDS)

    def websocket_classes(self) -> Any:
        found = getattr(self.config, "ws_protocol_class", None)
        return (found,) if isinstance(found, type) else ()


def main() -> None:
    # uvicorn.run() has no other way to be given a server. (The attribute uvicorn.main is the command, not its module.)
    sys.modules["uvicorn.main"].Server = DrainServer  # type: ignore[attr-defined]
    words = sys.argv[1:]
    if "--timeout-graceful-shutdown" not in words:
        words += ["--timeout-graceful-shutdown", str(GRACEFUL_SECONDS)]
    if (
        any(word.split("=")[0] in ("--workers", "--reload") for word in words)
        or os.environ.get("WEB_CONCURRENCY", "1") != "1"
    ):
        sys.exit("drain.py runs one process: for more, start more instances on the same socket.")
    # uvicorn puts --app-dir on the path, by default the directory it is called in; ours is where this file lies.
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        sys.path.pop(0)
    uvicorn.main(args=words, prog_name="drain.py")


if __name__ == "__main__":
    main()
