# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP relay that a test can turn into a black hole: connections are accepted, nothing is ever answered."""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t


class Gate:
    def __init__(self, target: int) -> None:
        self.target = target
        self.swallow = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: t.Set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.swallow.is_set():
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def gate(target: int) -> t.Iterator[Gate]:
    """Relays a port of its own to ``target`` (a port of 127.0.0.1); ``swallow.set()`` makes it a black hole."""
    made = Gate(target)
    try:
        yield made
    finally:
        made.close()
