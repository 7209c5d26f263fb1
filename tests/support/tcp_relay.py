# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP relay that can delay, cut, or go silent like a network that lost its path (no FIN, no RST): a half-open
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import typing as t


class Relay:
    """``delay`` seconds (one way, varied by ``jitter`` of it) in each direction; order within a direction is kept."""

    def __init__(self, target: int, *, delay: float = 0.0, jitter: float = 0.0, seed: int = 1) -> None:
        self.target, self.delay, self.jitter = target, delay, jitter
        self.port = 0
        self.silent = False
        self.waits: t.Tuple[t.List[float], t.List[float]] = (
            [],
            [],
        )  # what data really waited here, to the target and from it
        self._chance = random.Random(seed)
        self._server: t.Optional[asyncio.AbstractServer] = None
        self._writers: t.Set[asyncio.StreamWriter] = set()
        self._tasks: t.Set[asyncio.Task[t.Any]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Resets all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, down = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, down}
        for source, target, waits in ((reader, down, self.waits[0]), (upstream, writer, self.waits[1])):
            task = asyncio.ensure_future(self._pump(source, target, waits))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, waits: t.List[float]) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[t.Tuple[float, float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                came, due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if self.silent:
                    continue
                if not data:
                    target.close()
                    return
                target.write(data)
                waits.append(loop.time() - came)
                await target.drain()

        sender = asyncio.ensure_future(deliver())
        try:
            while True:
                data = await source.read(65536)
                wait = self.delay * (1 + self._chance.uniform(-self.jitter, self.jitter))
                queue.put_nowait((loop.time(), loop.time() + wait, data))
                if not data:
                    await sender
                    return
        except OSError:
            target.transport.abort()
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sender
            self._writers.discard(target)
