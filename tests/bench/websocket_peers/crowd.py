# SPDX-License-Identifier: GPL-3.0-or-later
"""Thousands of cheap WebSocket clients in one process: they answer pings and note when what arrived. No compression is
offered.

As a program it obeys JSON lines on standard input and answers each with one. ``Crowd`` is its handle.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import typing as t
from pathlib import Path


class Crowd:
    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.bench.websocket_peers.crowd"]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[3]
        )

    def ask(self, command: str, **arguments: t.Any) -> t.Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the crowd has died")
        return json.loads(line)

    def open(
        self, port: int, count: int, path: str = "/api/v1/pam/ws/u{n}?token=token-of-u{n}", seconds: float = 120
    ) -> None:
        """Opens so many connections and waits until all are accepted."""
        opened = self.ask("open", port=port, count=count, path=path, seconds=seconds)
        if opened != count:
            raise AssertionError(f"{opened} of {count} connections were accepted")

    def delivered(self, number: int, count: int, seconds: float = 60) -> t.List[float]:
        """When (epoch) each client got the news of this number; fewer than ``count`` when the time was over."""
        return t.cast(t.List[float], self.ask("delivered", number=number, count=count, seconds=seconds))

    def closed(self, count: int, seconds: float = 30) -> t.List[t.List[t.Any]]:
        """``[epoch, code, after_ms]`` of each connection that ended."""
        return t.cast(t.List[t.List[t.Any]], self.ask("closed", count=count, seconds=seconds))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


ARRIVALS: t.Dict[int, t.List[float]] = {}
ENDED: t.List[t.List[t.Any]] = []
NUMBER = re.compile(rb'"number": ?(\d+)')
AFTER = re.compile(rb'"after_ms": ?(\d+)')
PING_SEQ = re.compile(rb'"seq": ?(\d+)')


class Client(asyncio.Protocol):
    def __init__(self, path: str, ready: t.Callable[[], None]) -> None:
        self.path, self.ready = path, ready
        self.buffer = b""
        self.accepted = False
        self.code: t.Optional[int] = None
        self.after: t.Optional[int] = None

    def connection_made(self, transport: t.Any) -> None:
        self.transport = transport
        transport.write(
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection:"
            " Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.accepted:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self.buffer = rest
            if not head.startswith(b"HTTP/1.1 101"):
                self.transport.close()
                return
            self.accepted = True
            self.ready()
        while len(self.buffer) >= 2:
            length, start = self.buffer[1] & 127, 2
            if length == 126:
                length, start = int.from_bytes(self.buffer[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(self.buffer[2:10], "big"), 10
            if len(self.buffer) < start + length:
                return
            self.frame(self.buffer[0] & 15, self.buffer[start : start + length])
            self.buffer = self.buffer[start + length :]

    def frame(self, opcode: int, body: bytes) -> None:
        if opcode == 8:
            self.code = int.from_bytes(body[:2], "big")
            self.write(8, body[:2])
            self.transport.close()
        elif opcode == 9:
            self.write(10, body)
        elif opcode == 1:
            head = body[:200]
            if b'"news"' in head:
                found = NUMBER.search(head)
                if found:
                    ARRIVALS.setdefault(int(found[1]), []).append(time.time())
            elif b'"ping"' in head:
                seq = PING_SEQ.search(head)
                self.write(1, b'{"type":"pong","seq":%s}' % seq[1] if seq else b'{"type":"pong"}')
            elif b'"reconnect"' in head:
                after = AFTER.search(head)
                self.after = int(after[1]) if after else None

    def write(self, opcode: int, body: bytes) -> None:
        mask = os.urandom(4)
        self.transport.write(
            bytes([0x80 | opcode, 0x80 | len(body)])
            + mask
            + bytes(byte ^ mask[index & 3] for index, byte in enumerate(body))
        )

    def connection_lost(self, error: t.Optional[Exception]) -> None:
        if self.accepted:
            ENDED.append([time.time(), self.code, self.after])


async def wait_for(seconds: float, condition: t.Callable[[], bool]) -> None:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        await asyncio.sleep(0.01)


async def main() -> None:
    loop = asyncio.get_running_loop()
    clients: t.List[t.Any] = []
    opened = 0

    def ready() -> None:
        nonlocal opened
        opened += 1

    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer: t.Any = None
        if order["command"] == "open":
            before = opened
            port, path, count = int(order["port"]), str(order["path"]), int(order["count"])
            for first in range(0, count, 100):
                some = min(100, count - first)
                made = [Client(path.replace("{n}", str(len(clients) + index)), ready) for index in range(some)]
                waiting = iter(made)
                await asyncio.gather(*(loop.create_connection(lambda: next(waiting), "127.0.0.1", port) for _ in made))  # noqa: B023 - awaited at once
                clients += made
                await wait_for(order["seconds"], lambda: opened - before >= first + some)  # noqa: B023 - awaited at once
            answer = opened - before
        elif order["command"] == "delivered":
            await wait_for(order["seconds"], lambda: len(ARRIVALS.get(order["number"], ())) >= order["count"])  # noqa: B023 - awaited at once
            answer = ARRIVALS.get(order["number"], [])
        elif order["command"] == "closed":
            await wait_for(order["seconds"], lambda: len(ENDED) >= order["count"])  # noqa: B023 - awaited at once
            answer = ENDED
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
