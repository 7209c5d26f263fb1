# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake at the network boundary: between a client and a real Redis, it answers, holds or cuts single commands."""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t

#: What to do with a command: pass it on, give no answer, cut the connection before or after Redis gets it, or answer
#: these bytes.
Verdict = t.Union[t.Literal["pass", "silence", "cut", "cut after"], bytes]


class RedisProxy:
    """``judge`` is asked for each command (its words); ``target`` is where new connections go, as a name would lead."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.judge: t.Callable[[t.List[bytes]], Verdict] = lambda words: "pass"
        self.held: t.List[t.Tuple[socket.socket, bytes]] = []  # what was met with silence, to be executed late
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._open: t.Set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self._open |= {client, server}
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        requests, replies = client.makefile("rb"), server.makefile("rb")
        with contextlib.suppress(OSError, ValueError), client, requests, replies:
            while raw := _element(requests):
                verdict = self.judge(raw.split(b"\r\n")[2::2])
                if isinstance(verdict, bytes):
                    client.sendall(verdict)
                    continue
                if verdict == "silence":
                    self.held.append((server, raw))
                    continue
                if verdict == "cut":
                    return
                server.sendall(raw)
                reply = _element(replies)
                if verdict == "cut after" or not reply:
                    return
                client.sendall(reply)

    def release(self) -> None:
        """What was held reaches Redis now, long after its client gave up."""
        held, self.held = self.held, []
        for server, raw in held:
            server.sendall(raw)

    def close(self) -> None:
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _element(stream: t.BinaryIO) -> bytes:
    """One element of the Redis protocol, as it came; empty at the end."""
    line = stream.readline()
    if line[:1] == b"$" and int(line[1:]) >= 0:
        return line + stream.read(int(line[1:]) + 2)
    if line[:1] == b"*":
        return line + b"".join(_element(stream) for _ in range(max(0, int(line[1:]))))
    return line


@contextlib.contextmanager
def redis_proxy(target: int) -> t.Iterator[RedisProxy]:
    """Before the Redis on port ``target`` of 127.0.0.1."""
    proxy = RedisProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
