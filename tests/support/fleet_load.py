# SPDX-License-Identifier: GPL-3.0-or-later
"""Steady load on a fleet through its proxy, and what came of it.

    .venv-backend/bin/python -m tests.support.fleet_load DIRECTORY PROXY REDIS

Until ``DIRECTORY/watch.stop`` is there: requests on new connections, numbered WebSocket messages of clients that come
back and repeat what was not answered, and numbered Celery tasks. One line an event in ``DIRECTORY/watch.jsonl``; the
last is of the kind ``end`` and has what was lost or came twice. A slow answer of a busy machine is an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import redis
from celery import Celery
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.support.load import Load

CLIENTS, SOCKETS = 4, 2
#: Seconds between two requests of a client, two messages of a socket, two tasks.
PACE = 0.5
#: Seconds after which an answer is a lost one.
PATIENCE = 60.0
TASK, QUEUE, SENT = "app.workers.tasks.notification_tasks.send_notification", "notifications", "pam:sent:notifications"


@dataclass
class FleetLoad:
    """``address`` is the proxy's, ``token`` opens the WebSocket."""

    directory: Path
    address: str
    port: int
    redis_url: str
    token: str
    tasks: int = 0
    lost_messages: t.List[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.output = open(self.directory / "watch.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by run

    @property
    def stopped(self) -> bool:
        return not self.directory.is_dir() or (self.directory / "watch.stop").exists()

    def event(self, kind: str, **values: t.Any) -> None:
        self.output.write(json.dumps({"kind": kind, "time": time.time(), **values}) + "\n")
        self.output.flush()

    async def requests(self, path: str) -> None:
        load = Load(self.address, self.port, keep_alive=False)
        while not self.stopped:
            started, error = time.monotonic(), ""
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(self.address, self.port), PATIENCE)
                try:
                    await asyncio.wait_for(load.request(reader, writer, path), PATIENCE)
                finally:
                    writer.close()
            except (OSError, EOFError, ValueError, asyncio.TimeoutError) as problem:
                error = f"{type(problem).__name__} {problem}"
            self.event("http", seconds=time.monotonic() - started, error=error, path=path)
            await asyncio.sleep(PACE)

    async def messages(self, name: str) -> None:
        """One socket after the other; a message that has no answer is sent again on the next one."""
        number, waiting_since = 0, 0.0
        url = f"ws://{self.address}:{self.port}/api/v1/pam/ws?token={self.token}"
        while not self.stopped:
            try:
                async with connect(url, open_timeout=PATIENCE, close_timeout=1) as websocket:
                    self.event("socket", client=name)
                    while not self.stopped:
                        waiting_since = waiting_since or time.monotonic()
                        text = f"{name}-{number}"
                        await websocket.send(json.dumps({"type": "chat", "message": text}))
                        async with asyncio.timeout(PATIENCE):
                            while text not in str(await websocket.recv()):
                                continue
                        self.event("message", seconds=time.monotonic() - waiting_since)
                        number, waiting_since = number + 1, 0.0
                        await asyncio.sleep(PACE)
            except (OSError, EOFError, WebSocketException, asyncio.TimeoutError):
                if waiting_since and time.monotonic() - waiting_since > PATIENCE:
                    self.lost_messages.append(f"{name}-{number}")
                    self.event("lost message", number=self.lost_messages[-1])
                    number, waiting_since = number + 1, 0.0
                await asyncio.sleep(0.2)

    async def send_tasks(self) -> None:
        celery = Celery(broker=self.redis_url)
        while not self.stopped:
            await asyncio.to_thread(celery.send_task, TASK, (self.tasks,), queue=QUEUE)
            self.event("task", number=self.tasks)
            self.tasks += 1
            await asyncio.sleep(PACE)

    def ran(self) -> t.List[int]:
        """The numbers of the tasks that ran, by Redis itself."""
        client = redis.Redis.from_url(self.redis_url)
        try:
            return [int(number) for number in t.cast("t.List[bytes]", client.lrange(SENT, 0, -1))]
        finally:
            client.close()

    async def run(self) -> None:
        paths = ["/health", "/api/v1/pam/chat"] * (CLIENTS // 2)
        await asyncio.gather(
            self.send_tasks(),
            *(self.requests(path) for path in paths),
            *(self.messages(f"socket{number}") for number in range(SOCKETS)),
        )
        if not self.directory.is_dir():
            return
        until = time.monotonic() + PATIENCE
        numbers = self.ran()
        while len(set(numbers)) < self.tasks and time.monotonic() < until:
            await asyncio.sleep(0.5)
            numbers = self.ran()
        self.event(
            "end",
            tasks=self.tasks,
            lost_tasks=sorted(set(range(self.tasks)) - set(numbers)),
            doubled_tasks=sorted({number for number in numbers if numbers.count(number) > 1}),
            lost_messages=self.lost_messages,
        )
        self.output.close()


def main(words: t.Sequence[str]) -> int:
    directory, proxy, redis_host = Path(words[0]), words[1], words[2]
    facts = json.loads((directory / "fleet.json").read_text())
    address, _colon, port = proxy.partition(":")
    load = FleetLoad(
        directory,
        address,
        int(port or 80),
        facts["redis_url"].replace("127.0.0.1", redis_host),
        facts["health_token"],
    )
    asyncio.run(load.run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
