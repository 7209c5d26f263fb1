# SPDX-License-Identifier: GPL-3.0-or-later
"""Resume and the long poll under real uvicorn: nothing lost, nothing twice, in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_now

from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend, socket_backend

POLL = "/api/v1/pam/poll"
#: How often connections are cut, over all users.
CUTS = int(os.environ.get("WHEELS_OPS_CUTS", "1000"))
SEED = int(os.environ.get("WHEELS_OPS_SEED", "20250730"))


@pytest.fixture(scope="module")
def backend() -> t.Iterator[SocketBackend]:
    limits: t.Dict[str, t.Any] = {
        "WEBSOCKET_MAX_PER_USER": 0,
        "WEBSOCKET_MAX_PER_ADDRESS": 0,
        "WEBSOCKET_ACCEPT_RATE": 0,
    }
    with socket_backend(WEBSOCKET_HEARTBEAT_INTERVAL=0.5, WEBSOCKET_CONNECTION_TIMEOUT=5, **limits) as server:
        yield server


class Client:
    """A client that remembers its session and what it saw of one kind of message."""

    def __init__(self, backend: SocketBackend, user: str, kind: str = "note") -> None:
        self.backend, self.user, self.kind = backend, user, kind
        self.session, self.last_seq = "", 0
        self.numbers: t.List[int] = []
        self.notices: t.List[str] = []

    def url(self) -> str:
        return self.backend.url(self.user, f"&session={self.session}&last_seq={self.last_seq}")

    def take(self, text: str) -> t.Optional[str]:
        """Processes one frame; gives an answer to send."""
        message = json.loads(text)
        if message["type"] in ("session", "resync"):
            self.notices.append(message["type"])
            if message["session"] != self.session:
                self.session, self.last_seq = message["session"], message["seq"]
        elif message["type"] == "ping":
            return json.dumps({"type": "pong", "seq": message["seq"]})
        else:
            assert message["_seq"] == self.last_seq + 1, "each message of a session has the next number"
            self.last_seq = message["_seq"]
            if message["type"] == self.kind:
                self.numbers.append(message["number"])
        return None

    def has(self, count: int) -> bool:
        """Whether so many messages came."""
        return len(self.numbers) >= count

    async def listen(self, until: t.Callable[[], bool], seconds: float) -> None:
        """Connects and listens until the condition holds or the time is over, then drops the connection at once."""
        websocket = await connect(self.url(), open_timeout=30)
        try:
            async with asyncio.timeout(seconds) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
                while not until():
                    answer = self.take(t.cast(str, await websocket.recv()))
                    if answer:
                        await websocket.send(answer)
        except (TimeoutError, asyncio.TimeoutError, ConnectionClosed):
            pass
        finally:
            websocket.transport.abort()


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


class TestPoll:
    async def test_the_same_stream_without_any_websocket(self, backend: SocketBackend) -> None:
        listener = Client(backend, "pat", "news")
        polled: t.List[int] = []
        chats: t.List[str] = []

        def poll() -> None:
            session, last_seq = "", 0
            while len(polled) < 100 or not chats:
                status, page = backend.request(
                    "GET", f"{POLL}?user_id=pat&token=token-of-pat&session={session}&last_seq={last_seq}"
                )
                assert status == 200 and "resync" not in page, page
                if not session:
                    ready.release()
                    backend.request("POST", f"{POLL}?session={page['session']}", {"type": "chat", "message": "by post"})
                session = page["session"]
                for message in page["messages"]:
                    assert message["_seq"] == last_seq + 1
                    last_seq = message["_seq"]
                    if message["type"] == "news":
                        polled.append(message["number"])
                    elif message["type"] == "chat_response":
                        chats.append(message["message"])

        ready = asyncio.Semaphore(0)
        polling = asyncio.ensure_future(asyncio.to_thread(poll))
        listening = asyncio.ensure_future(listener.listen(lambda: len(listener.numbers) >= 100, 60))
        await asyncio.to_thread(wait_until, lambda: backend.stats()["total_connections"] == 2)
        for number in range(20):
            await asyncio.to_thread(backend.broadcast, number=5 * number, count=5)
        await asyncio.wait_for(asyncio.gather(polling, listening), 60)
        assert polled == listener.numbers == list(range(100))
        assert chats == ["by post"]
        stats = await asyncio.to_thread(backend.stats)
        assert "by post" in stats["messages"]

    def test_from_a_websocket_to_the_poll_and_back(self, backend: SocketBackend) -> None:
        client = Client(backend, "switch")
        with connect_now(client.url()) as websocket:
            while client.last_seq < 1:
                client.take(t.cast(str, websocket.recv(timeout=10)))
        backend.send("switch", number=0, count=3)
        status, page = backend.request(
            "GET", f"{POLL}?user_id=switch&token=token-of-switch&session={client.session}&last_seq={client.last_seq}"
        )
        assert status == 200 and page["session"] == client.session and "resync" not in page
        for message in page["messages"]:
            client.take(json.dumps(message))
        backend.send("switch", number=3, count=2)
        with connect_now(client.url()) as websocket:
            while len(client.numbers) < 5:
                client.take(t.cast(str, websocket.recv(timeout=10)))
        assert client.numbers == [0, 1, 2, 3, 4]

    def test_a_client_whose_websocket_died_unnoticed_can_send_by_post(self) -> None:
        with socket_backend(
            WEBSOCKET_HEARTBEAT_INTERVAL=0.5, WEBSOCKET_CONNECTION_TIMEOUT=600, WEBSOCKET_MAX_MISSED_PINGS=1000
        ) as server:
            client = Client(server, "lost")
            with connect_now(client.url()) as websocket, contextlib.suppress(ConnectionClosed):
                while client.last_seq < 1:
                    client.take(t.cast(str, websocket.recv(timeout=10)))
                query = f"{POLL}?user_id=lost&token=token-of-lost&session={client.session}&last_seq={client.last_seq}"
                server.send("lost", number=0)
                status, page = server.request("GET", query)
                assert (status, page["session"]) == (200, client.session), "a WebSocket that was heard of lately stays"
                assert (
                    server.request("POST", f"{POLL}?session={client.session}", {"type": "chat", "message": "early"})[0]
                    == 409
                )
                assert server.stats()["totals"]["replaced"] == server.stats()["totals"]["resumed"] == 0
                server.request("POST", "/control/silence", {"seconds": 400})
                status, page = server.request("GET", query)
                assert (status, page["session"], page["messages"][0]["number"]) == (200, client.session, 0)
                assert (
                    server.request("POST", f"{POLL}?session={client.session}", {"type": "chat", "message": "by post"})[
                        0
                    ]
                    == 202
                )
                wait_until(lambda: server.stats()["messages"] == ["by post"], what="the message")
                assert server.stats()["total_connections"] == 1

    def test_who_may_poll(self, backend: SocketBackend) -> None:
        assert backend.request("GET", f"{POLL}?user_id=ann&token=wrong")[0] == 401
        assert backend.request("GET", f"{POLL}?session=guessed&last_seq=0")[0] == 404
        assert backend.request("GET", POLL)[0] == backend.request("GET", f"{POLL}?user_id=ann")[0] == 401
        assert backend.request("POST", f"{POLL}?session=guessed", {"type": "chat"})[0] == 409
        status, page = backend.request("GET", f"{POLL}?user_id=ann", headers={"Authorization": "Bearer token-of-ann"})
        assert status == 200 and page["messages"][0]["type"] == "connection"
        assert backend.request("POST", f"{POLL}?session={page['session']}", "x" * 70_000)[0] == 413
        assert backend.request("POST", f"{POLL}?session={page['session']}", b"\xff\xfe")[0] == 400

    def test_nothing_new_is_not_modified(self, backend: SocketBackend) -> None:
        _, page = backend.request("GET", f"{POLL}?user_id=etag&token=token-of-etag")
        query = f"{POLL}?session={page['session']}&last_seq={page['seq']}"
        tag = f'"{page["epoch"]}-{page["seq"]}"'
        assert backend.request("GET", query, headers={"If-None-Match": tag}) == (304, None)
        backend.send("etag", number=1)
        status, page = backend.request("GET", query, headers={"If-None-Match": tag})
        assert status == 200 and [message["number"] for message in page["messages"]] == [1]

    @pytest.mark.parametrize(
        "query",
        [
            "session=%FF%FE&last_seq=0",
            "last_seq=NaN",
            "session=&last_seq=" + "9" * 300,
            "user_id=../../x&token=y",
            "user_id=%00&token=%00",
        ],
    )
    def test_nonsense(self, backend: SocketBackend, query: str) -> None:
        assert backend.request("GET", f"{POLL}?{query}")[0] in (400, 401, 403, 404)

    def test_a_poller_that_stays_away_is_forgotten(self, backend: SocketBackend) -> None:
        backend.request("GET", f"{POLL}?user_id=leaves&token=token-of-leaves")
        wait_until(lambda: "leaves" not in backend.stats()["connections_by_user"], timeout=20)

    def test_without_the_package_there_is_no_poll_and_the_log_says_so(self) -> None:
        with socket_backend(package=False) as server:
            assert server.request("GET", POLL)[0] == 404
            assert server.logged().count("there is no long poll") == 1
