# SPDX-License-Identifier: GPL-3.0-or-later
"""Resume under real uvicorn: nothing lost, nothing twice, in order."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_now

from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend, socket_backend
from tests.support.websocket_client import Client

#: How often connections are cut, over all users.
CUTS = int(os.environ.get("WHEELS_OPS_CUTS", "1000"))
SEED = int(os.environ.get("WHEELS_OPS_SEED", "20250730"))


async def test_nothing_is_lost_or_doubled_over_many_cuts(backend: SocketBackend) -> None:
    users = 20
    chance = random.Random(SEED)
    clients = [Client(backend, f"cut{number}") for number in range(users)]
    sent = dict.fromkeys((client.user for client in clients), 0)
    cuts_left = dict.fromkeys(sent, CUTS // users)
    pool = ThreadPoolExecutor(8)

    async def produce(client: Client) -> None:
        loop = asyncio.get_running_loop()
        while not client.session:
            await asyncio.sleep(0.01)
        while cuts_left[client.user]:
            count = chance.randrange(1, 12)
            await loop.run_in_executor(
                pool, functools.partial(backend.send, client.user, number=sent[client.user], count=count)
            )
            sent[client.user] += count
            await asyncio.sleep(chance.random() * 0.05)

    async def consume(client: Client) -> None:
        await client.listen(lambda: bool(client.session), 30)
        while cuts_left[client.user]:
            enough = functools.partial(client.has, len(client.numbers) + chance.randrange(0, 15))
            await client.listen(enough, chance.random() * 0.1)
            cuts_left[client.user] -= 1
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.05)

    await asyncio.gather(*(produce(client) for client in clients), *(consume(client) for client in clients))
    for client in clients:
        await client.listen(lambda: len(client.numbers) >= sent[client.user], 30)  # noqa: B023 - as above
        assert client.numbers == list(range(sent[client.user])), f"seed {SEED}, user {client.user}"
        assert client.notices == ["session"] * len(client.notices), f"seed {SEED}"
    pool.shutdown()
    assert sum(sent.values()) > CUTS


def test_an_answer_that_was_under_way_when_the_connection_broke_arrives(backend: SocketBackend) -> None:
    """The endpoint was at work on the old connection; what it sent there is replayed on the new one."""
    client = Client(backend, "slow")
    with connect_now(client.url()) as websocket:
        while client.last_seq < 1:
            client.take(t.cast(str, websocket.recv(timeout=10)))
        websocket.send('{"type":"busy","seconds":0.5}')
        websocket.socket.close()
    with connect_now(client.url()) as websocket:
        seen = []
        while "done" not in seen:
            text = t.cast(str, websocket.recv(timeout=10))
            seen.append(json.loads(text)["type"])
            client.take(text)


def test_a_connection_that_the_server_believes_alive_is_replaced(backend: SocketBackend) -> None:
    client = Client(backend, "half")
    with connect_now(client.url()) as old:
        client.take(t.cast(str, old.recv(timeout=10)))
        client.take(t.cast(str, old.recv(timeout=10)))
        with connect_now(client.url()) as new:
            client.take(t.cast(str, new.recv(timeout=10)))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    old.recv(timeout=10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
            backend.send("half", number=1)
            while client.numbers != [1]:
                client.take(t.cast(str, new.recv(timeout=10)))


def test_the_handshake_as_a_frame(backend: SocketBackend) -> None:
    client = Client(backend, "frame")
    with connect_now(client.url()) as websocket:
        while client.last_seq < 1:
            client.take(t.cast(str, websocket.recv(timeout=10)))
    wait_until(lambda: backend.stats()["total_connections"] == 0)
    backend.send("frame", number=0, count=3)
    with connect_now(backend.url("frame")) as websocket:
        assert "_seq" not in json.loads(websocket.recv(timeout=10))  # the greeting, before the session is known
        websocket.send(json.dumps({"type": "resume", "session": client.session, "last_seq": client.last_seq}))
        while client.numbers != [0, 1, 2]:
            client.take(t.cast(str, websocket.recv(timeout=10)))


def test_beyond_the_window_there_is_exactly_one_resync() -> None:
    with socket_backend(WEBSOCKET_SESSION_SECONDS=0.3) as server:
        client = Client(server, "late")
        with connect_now(client.url()) as websocket:
            while client.last_seq < 1:
                client.take(t.cast(str, websocket.recv(timeout=10)))
        wait_until(lambda: server.stats()["sessions"] == 0, timeout=15)
        server.send("late", number=1)
        with connect_now(client.url()) as websocket:
            while client.last_seq < 1 or client.notices != ["session", "resync"]:
                client.take(t.cast(str, websocket.recv(timeout=10)))
            server.send("late", number=2)
            while client.numbers != [2]:
                client.take(t.cast(str, websocket.recv(timeout=10)))
        assert client.notices == ["session", "resync"]


@pytest.mark.parametrize("asked", ["unknown", "of another user", "more than was sent", "too old", "negative"])
def test_what_cannot_be_resumed(backend: SocketBackend, asked: str) -> None:
    client, other = Client(backend, "ann"), Client(backend, "bob")
    for someone in (client, other):
        with connect_now(someone.url()) as websocket:
            while someone.last_seq < 1:
                someone.take(t.cast(str, websocket.recv(timeout=10)))
    wait_until(lambda: backend.stats()["total_connections"] == 0)
    session, last_seq = {
        "unknown": ("A" * 24, 1),
        "of another user": (other.session, 1),
        "more than was sent": (client.session, 10**9),
        "too old": (client.session, 1),
        "negative": (client.session, -1),
    }[asked]
    if asked == "too old":
        backend.send("ann", number=0, count=400)
    with connect_now(backend.url("ann", f"&session={session}&last_seq={last_seq}")) as websocket:
        notice = json.loads(websocket.recv(timeout=10))
        greeting = json.loads(websocket.recv(timeout=10))
    assert notice["type"] == "resync" and notice["session"] not in (client.session, other.session)
    assert greeting["type"] == "connection" and greeting["_seq"] == notice["seq"] + 1
