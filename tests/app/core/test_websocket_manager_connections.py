# SPDX-License-Identifier: GPL-3.0-or-later
"""The manager under real uvicorn: peers that vanish, freeze, do not read, talk nonsense; limits; latency; the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import typing as t

import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_now

from tests.support.tcp_relay import Relay
from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend, socket_backend

#: The report's 20 s and 60 s, about forty times faster: more than a busy machine keeps a client from answering. The
#: server's own protocol pings are off: they must not do our work.
FAST: t.Dict[str, t.Any] = {
    "WEBSOCKET_HEARTBEAT_INTERVAL": "0.4",
    "WEBSOCKET_CONNECTION_TIMEOUT": "1.6",
    "WEBSOCKET_MAX_MISSED_PINGS": "4",
    "WEBSOCKET_STALL_SECONDS": "1",
    "WEBSOCKET_MAX_PER_USER": "0",
}
OPTIONS = (
    *os.environ.get("WHEELS_OPS_UVICORN_OPTIONS", "").split(),
    "--ws-ping-interval",
    "86400",
    "--ws-ping-timeout",
    "86400",
    "--ws-max-size",
    "65536",
    "--ws-per-message-deflate",
    "false",
)


@pytest.fixture(scope="module", params=["guard", "manager alone", "guard, sansio"])
def backend(request: pytest.FixtureRequest) -> t.Iterator[SocketBackend]:
    guard = request.param != "manager alone"
    options = [
        *OPTIONS,
        *(["--ws", "websockets-sansio"] if "sansio" in request.param else []),
    ]  # which writes without ever waiting
    with socket_backend(guard=guard, poll=guard, options=options, WEBSOCKET_MAX_PER_ADDRESS=0, **FAST) as server:
        yield server


def sockets_of(server: SocketBackend) -> int:
    """Established TCP connections that the server process holds."""
    return sum(
        1
        for item in psutil.Process(server.process.pid).net_connections("tcp")
        if item.status == psutil.CONN_ESTABLISHED
    )


async def answer(websocket: t.Any) -> None:
    """A client of today: answers each ping, without any data."""
    with contextlib.suppress(ConnectionClosed):
        async for text in websocket:
            if json.loads(text)["type"] == "ping":
                await websocket.send('{"type":"pong"}')


async def test_old_clients_are_served_as_before(backend: SocketBackend) -> None:
    async with connect(backend.url("ann")) as websocket:
        first = (await collect(websocket, "connection", 1))[0]
        assert set(first) == {"type", "status", "connection_id"}
        await websocket.send('{"type":"chat","message":"hello"}')
        assert await collect(websocket, "chat_response", 1) == [{"type": "chat_response", "message": "hello"}]
        await websocket.send('{"type":"ping"}')
        assert await collect(websocket, "pong", 1) == [{"type": "pong"}]
        await websocket.send('{"type":"close","code":4009}')
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await websocket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4009


async def test_a_wrong_token_is_refused_by_the_endpoint(backend: SocketBackend) -> None:
    async with connect(backend.url("ann").replace("token-of", "no-token-of")) as websocket:
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4001


async def test_a_peer_whose_path_was_lost_is_found_and_its_socket_closed(backend: SocketBackend) -> None:
    before = backend.stats()["totals"]["timed_out"]
    async with Relay(backend.port) as relay:
        websocket = await connect(backend.url("ann").replace(str(backend.port), str(relay.port)))
        task = asyncio.ensure_future(answer(websocket))
        # Longer than the timeout: it lives because it answers.
        await asyncio.to_thread(
            wait_until, lambda: backend.stats()["connection_details"][0]["total_pings_sent"] >= 6, timeout=15
        )
        held = await asyncio.to_thread(sockets_of, backend)
        relay.silent = True
        await asyncio.to_thread(wait_until, lambda: backend.stats()["total_connections"] == 0, timeout=10)
        await asyncio.to_thread(
            wait_until, lambda: sockets_of(backend) < held, timeout=10, what="the socket to be closed"
        )
        assert (await asyncio.to_thread(backend.stats))["totals"]["timed_out"] == before + 1
        task.cancel()
        websocket.transport.abort()


def test_a_frozen_client_is_found_and_the_others_live(backend: SocketBackend) -> None:
    client = (
        "import json, sys\nfrom websockets.sync.client import connect\nwith connect(sys.argv[1]) as ws:\n"
        "    for text in ws:\n        if json.loads(text)['type'] == 'ping': ws.send('{\"type\":\"pong\"}')\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", client, backend.url(f"user{number}")], stderr=subprocess.DEVNULL)
        for number in range(3)
    ]
    try:
        wait_until(lambda: backend.stats()["total_connections"] == 3)
        os.kill(processes[0].pid, signal.SIGSTOP)
        wait_until(lambda: backend.stats()["total_connections"] == 2, timeout=10)
        assert set(backend.stats()["connections_by_user"]) == {"user1", "user2"}
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


async def test_a_client_that_does_not_read_delays_nobody_and_is_closed(backend: SocketBackend) -> None:
    reader = await connect(backend.url("reader"), max_queue=None)
    stuck = socket.create_connection(("127.0.0.1", backend.port))
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.sendall(
        f"GET {backend.url('stuck').split(str(backend.port))[1]} HTTP/1.1\r\nHost: x\r\nUpgrade:"
        " websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version:"
        " 13\r\n\r\n".encode()
    )
    try:
        await asyncio.to_thread(wait_until, lambda: backend.stats()["total_connections"] == 2)
        before = await asyncio.to_thread(backend.stats)
        for first in range(0, 200, 10):  # less at a time than the reader itself may be behind
            news = asyncio.ensure_future(collect(reader, "news", 10))
            await asyncio.to_thread(backend.broadcast, number=first, count=10, size=60_000)
            assert [message["number"] for message in await asyncio.wait_for(news, 20)] == list(range(first, first + 10))
        task = asyncio.ensure_future(answer(reader))
        await asyncio.to_thread(wait_until, lambda: backend.stats()["total_connections"] == 1, timeout=15)
        after = await asyncio.to_thread(backend.stats)
        task.cancel()
        assert set(after["connections_by_user"]) == {"reader"}
        assert after["rss"] - before["rss"] < 12 * 1048576
    finally:
        stuck.close()
        await reader.close()


async def collect(websocket: t.Any, kind: str, count: int) -> t.List[t.Dict[str, t.Any]]:
    """The next messages of this kind; pings are answered."""
    found: t.List[t.Dict[str, t.Any]] = []
    while len(found) < count:
        message = json.loads(await websocket.recv())
        if message["type"] == "ping":
            await websocket.send('{"type":"pong"}')
        elif message["type"] == kind:
            found.append(message)
    return found


async def test_a_busy_endpoint_does_not_lose_its_peer(backend: SocketBackend) -> None:
    async with connect(backend.url("ann")) as websocket:
        await websocket.send('{"type":"busy","seconds":2.5}')
        assert await asyncio.wait_for(collect(websocket, "done", 1), 20)


async def test_an_endpoint_that_floods_its_client_does_not_lose_a_message(backend: SocketBackend) -> None:
    async with connect(backend.url("ann"), max_queue=4, close_timeout=1) as websocket:
        await websocket.send('{"type":"flood","count":300,"size":20000}')
        flood: t.List[t.Dict[str, t.Any]] = []
        while len(flood) < 300:
            flood += await asyncio.wait_for(collect(websocket, "flood", 1), 20)
            if len(flood) % 100 == 0:
                await asyncio.sleep(0.2)
        assert [message["number"] for message in flood] == list(range(300))


def test_nonsense_from_the_network(backend: SocketBackend) -> None:
    """Broken frames end their own connection; broken JSON does not even do that."""
    seed = int(os.environ.get("WHEELS_OPS_SEED", "20250730"))
    chance = random.Random(seed)
    words = [
        '{"type":"pong"',
        '{"type":"pong","seq":NaN}',
        "[[[[",
        "\x00",
        '{"type":{"type":"pong"}}',
        "null",
        '"pong"',
        "1e999",
        '{"type":"resume","session":5}',
        "💓" * 50,
    ]
    with connect_now(backend.url("fuzz")) as websocket:
        websocket.recv()
        for number in range(300):
            if number % 5 == 0:
                websocket.send(chance.randbytes(chance.randrange(200)))
            else:
                websocket.send("".join(chance.choice(words) for _ in range(chance.randrange(1, 4))))
        websocket.send('{"type":"chat","message":"still there"}')
        while json.loads(websocket.recv(timeout=20)).get("message") != "still there":
            pass
    handshake = (
        f"GET {backend.url('raw').split(str(backend.port))[1]} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection:"
        " Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    for number in range(100):
        with socket.create_connection(("127.0.0.1", backend.port)) as raw:
            raw.sendall(handshake)
            raw.recv(64)
            raw.sendall(
                chance.randbytes(chance.randrange(1, 300))
                if number % 2
                else bytes([0x81, 0xFE, 0xFF, 0xFF]) + chance.randbytes(30)
            )
    wait_until(
        lambda: backend.stats()["total_connections"] == 0, timeout=15, what=f"seed {seed}: all of them to be closed"
    )
    assert backend.process.poll() is None
    assert "Traceback" not in "".join(line for line in backend.logged().splitlines() if "websocket_manager" in line)


def test_what_the_log_says(backend: SocketBackend) -> None:
    with connect_now(backend.url("ann")) as websocket:
        websocket.send('{"type":"chat","message":"private words"}')
        websocket.recv()
    wait_until(lambda: backend.stats()["total_connections"] == 0)
    ours = [line for line in backend.logged().splitlines() if re.search("💓|🔗|🔌", line)]
    assert any("🔗 WebSocket connected" in line for line in ours) and any(
        "🔌 WebSocket disconnected" in line for line in ours
    )
    assert not any("private words" in line or "token-of" in line for line in ours)


class TestLimits:
    @pytest.mark.parametrize("implementation", ["websockets", "websockets-sansio"])
    def test_per_address(self, implementation: str) -> None:
        limits: t.Dict[str, t.Any] = {"WEBSOCKET_MAX_PER_ADDRESS": 3, "WEBSOCKET_MAX_PER_USER": 0}
        with socket_backend(options=["--ws", implementation], **limits) as server, contextlib.ExitStack() as stack:
            for number in range(3):
                stack.enter_context(connect_now(server.url(f"u{number}")))
            with pytest.raises(InvalidStatus) as refused:
                connect_now(server.url("u4"))
            assert refused.value.response.status_code == 429 and int(refused.value.response.headers["Retry-After"]) > 0
            # Behind a proxy each client has its own address; what it forges before the proxy's entry is not believed.
            forwarded = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
            for number in range(3):
                stack.enter_context(connect_now(server.url(f"v{number}"), additional_headers=forwarded))
            with pytest.raises(InvalidStatus):
                connect_now(server.url("v4"), additional_headers={"X-Forwarded-For": "198.51.100.8, 203.0.113.9"})
            stack.pop_all().close()
            wait_until(lambda: server.stats()["open"] == 0)
            connect_now(server.url("u5")).close()

    def test_in_total_and_per_user(self) -> None:
        with (
            socket_backend(
                WEBSOCKET_MAX_CONNECTIONS=4, WEBSOCKET_MAX_PER_USER=3, WEBSOCKET_MAX_PER_ADDRESS=0
            ) as server,
            contextlib.ExitStack() as stack,
        ):
            sockets = [stack.enter_context(connect_now(server.url("ann"))) for _ in range(4)]
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    sockets[0].recv(timeout=10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
            wait_until(lambda: server.stats()["open"] == 3)
            stack.enter_context(connect_now(server.url("bob")))
            with pytest.raises(InvalidStatus) as refused:
                connect_now(server.url("eve"))
            assert refused.value.response.status_code == 503 and int(refused.value.response.headers["Retry-After"]) > 0

    def test_handshakes_of_one_user(self) -> None:
        with socket_backend(WEBSOCKET_MAX_PER_USER=2, WEBSOCKET_MAX_PER_ADDRESS=0) as server:
            statuses = []
            for _ in range(30):
                try:
                    connect_now(server.url("ann")).close()
                    statuses.append(101)
                except InvalidStatus as refused:
                    statuses.append(refused.response.status_code)
            assert 429 in statuses and statuses[:8] == [101] * 8
            connect_now(server.url("bob")).close()


async def test_sigterm_tells_everybody_when_to_come_back() -> None:
    """All get the hint and 1012, the hints are spread, and the process ends."""
    many = int(os.environ.get("WHEELS_OPS_DRAIN_CLIENTS", "300"))
    with socket_backend(options=OPTIONS, WEBSOCKET_MAX_PER_ADDRESS=0, WEBSOCKET_ACCEPT_RATE=0) as server:
        hints: t.List[int] = []
        codes: t.List[t.Optional[int]] = []

        async def client(number: int) -> None:
            async with connect(server.url(f"u{number}"), open_timeout=60) as websocket:
                ready.release()
                try:
                    while True:
                        message = json.loads(await websocket.recv())
                        if message["type"] == "reconnect":
                            hints.append(message["after_ms"])
                except ConnectionClosed as closed:
                    codes.append(closed.rcvd.code if closed.rcvd else None)

        ready = asyncio.Semaphore(0)
        clients = [asyncio.ensure_future(client(number)) for number in range(many)]
        for _ in range(many):
            await asyncio.wait_for(ready.acquire(), 60)
        seconds = await asyncio.to_thread(server.stop, signal.SIGTERM, 20)
        await asyncio.wait_for(asyncio.gather(*clients), 20)
        assert server.process.returncode in (0, -signal.SIGTERM)
        assert codes == [1012] * many and len(hints) == many
        assert seconds <= 10
        tenths = [sum(1 for hint in hints if number * 800 <= hint < (number + 1) * 800) for number in range(10)]
        assert max(tenths) <= many * 0.2, tenths
