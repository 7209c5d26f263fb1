# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP load without a retry: ``python -m tests.support.load --port 8000 --seconds 20 [--keep-alive]``, prints what came
of it as JSON.

Raw connections, so that nothing (a pool, a retry of a library) hides a failure. A request fails when it gets no whole
answer with 200. A keep-alive connection that the server has closed, or has announced to close, before the request is
sent is not a failure: a client sees that and opens another.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sys
import time
import typing as t


class Load:
    """Counts of all clients: ``ok``, ``failed`` by kind, ``pids`` that answered, ``longest`` answer in seconds."""

    def __init__(self, host: str, port: int, *, keep_alive: bool, pace: float = 0.0) -> None:
        self.host, self.port, self.keep_alive, self.pace = host, port, keep_alive, pace
        self.ok = 0
        self.failed: t.Counter[str] = collections.Counter()
        self.pids: t.Set[int] = set()
        self.longest = 0.0
        self.stop = False

    async def client(self, path: str) -> None:
        connection: t.Optional[t.Tuple[asyncio.StreamReader, asyncio.StreamWriter]] = None
        while not self.stop:
            started = time.monotonic()
            try:
                if connection is None or connection[0].at_eof() or connection[1].is_closing():
                    connection = await asyncio.open_connection(self.host, self.port)
                closing = await asyncio.wait_for(self.request(*connection, path), 60)
                self.ok += 1
                self.longest = max(self.longest, time.monotonic() - started)
                if closing or not self.keep_alive:
                    connection[1].close()
                    connection = None
            except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
                self.failed[type(error).__name__] += 1
                if connection:
                    connection[1].close()
                connection = None
                await asyncio.sleep(0.01)
            if self.pace:
                await asyncio.sleep(self.pace)
        if connection:
            connection[1].close()

    async def request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bool:
        """One exchange; True where the server closes the connection afterwards."""
        wanted = "keep-alive" if self.keep_alive else "close"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: {wanted}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if not head.startswith("http/1.1 200"):
            raise ValueError(head.split("\r\n", 1)[0])
        length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
        body = json.loads(await reader.readexactly(length))
        if isinstance(body, dict) and "pid" in body:
            self.pids.add(int(body["pid"]))
        return "connection: close" in head

    async def run(self, paths: t.Sequence[str], seconds: float) -> t.Dict[str, t.Any]:
        clients = [asyncio.ensure_future(self.client(path)) for path in paths]
        await asyncio.sleep(seconds)
        self.stop = True
        await asyncio.gather(*clients)
        return {
            "ok": self.ok,
            "failed": sum(self.failed.values()),
            "errors": dict(self.failed),
            "processes": len(self.pids),
            "longest_s": round(self.longest, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--path", default="/")
    parser.add_argument("--slow-path", default="/slow", help="three of the clients ask for this one; empty for none")
    parser.add_argument("--pace", type=float, default=0.002, help="seconds between two requests of a client")
    parser.add_argument("--keep-alive", action="store_true")
    words = parser.parse_args()
    slow = 3 if words.slow_path else 0
    paths = [words.slow_path] * slow + [words.path] * (words.clients - slow)
    load = Load(words.host, words.port, keep_alive=words.keep_alive, pace=words.pace)
    json.dump(asyncio.run(load.run(paths, words.seconds)), sys.stdout)


if __name__ == "__main__":
    main()
