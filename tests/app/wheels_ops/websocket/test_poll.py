# SPDX-License-Identifier: GPL-3.0-or-later
"""The long poll under real uvicorn: what a WebSocket brings, for clients that none reaches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import typing as t

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_now

from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend, socket_backend
from tests.support.websocket_client import Client

POLL = "/api/v1/pam/poll"


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
