# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection manager with sockets and a clock of our own: contract, heartbeats, deadlines, bounds."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import math
import random
import statistics
import types
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.websocket_module import Clock, Peer, Socket, load_all, load_manager

ws, sessions, _, guards, _ = load_all()


async def settle(rounds: int = 5) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)


async def until(condition: t.Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 60)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def manager(clock: Clock) -> t.AsyncIterator[t.Any]:
    """A manager with sessions whose wheel turns only when the test says so."""
    manager = ws.ConnectionManager(clock)
    sessions.Sessions.of(manager)
    async with by_hand(manager):
        yield manager


@contextlib.asynccontextmanager
async def by_hand(manager: t.Any) -> t.AsyncIterator[None]:
    manager._start_heartbeat = lambda: None
    yield
    for connection in list(manager.connections.values()):
        connection.gone(1000)
    for task in list(manager._tasks):
        task.cancel()
    await settle()


async def turn(manager: t.Any, clock: Clock, seconds: float, each: t.Optional[t.Callable[[], None]] = None) -> None:
    """Lets time pass in steps of 0.1 s, as the heartbeat does."""
    for _ in range(round(seconds * 10)):
        clock.now += 0.1
        if each:
            each()
        manager.tick()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def join(manager: t.Any, name: str = "c1", user: str = "ann", query: str = "") -> Peer:
    peer = Peer(query)
    await manager.connect(Socket(peer), user, name)
    return peer


class TestContract:
    async def test_the_names_that_callers_use(self) -> None:
        assert ws.websocket_manager is ws.manager
        for name in (
            "connect",
            "send_personal_message",
            "send_message_to_user",
            "broadcast",
            "handle_pong",
            "get_connection_stats",
        ):
            assert inspect.iscoroutinefunction(getattr(ws.ConnectionManager, name))
        assert inspect.iscoroutinefunction(ws.ConnectionManager.update_connection_context)
        for name in ("disconnect", "get_connection_context", "get_public_stats"):
            assert not inspect.iscoroutinefunction(getattr(ws.ConnectionManager, name))

    async def test_defaults_are_those_of_the_report(self, manager: t.Any) -> None:
        assert (manager.heartbeat_interval, manager.connection_timeout, manager.max_missed_pings) == (20, 60, 3)

    async def test_registers_and_forgets(self, manager: t.Any) -> None:
        peer = Peer()
        socket = Socket(peer)
        await manager.connect(socket, "ann", "c1")
        assert manager.active_connections == {"c1": socket}
        assert manager.user_connections == {"ann": {"c1": socket}}
        assert set(manager.connection_metadata["c1"]) >= {
            "user_id",
            "connected_at",
            "last_ping",
            "last_pong",
            "is_alive",
            "missed_pings",
            "total_pings_sent",
            "total_pongs_received",
            "last_latency_ms",
            "context",
        }
        metadata = manager.connection_metadata
        assert all(
            isinstance(found, dict)
            for found in (metadata, metadata["c1"], manager.active_connections, manager.user_connections)
        )
        for found in (
            dict(metadata),
            {**metadata},
            metadata.copy(),
            metadata | {},
            json.loads(json.dumps(metadata, default=str)),
        ):
            assert found["c1"]["user_id"] == "ann"
        assert (
            "c1" in metadata
            and bool(metadata)
            and list(metadata) == ["c1"]
            and metadata.get("c2") is None
            and metadata.get("c1", {})["is_alive"]
        )
        with pytest.raises(KeyError):
            metadata["c2"]
        manager.disconnect("ann", "c1")
        manager.disconnect("ann", "c1")
        manager.disconnect("nobody", "nothing")
        assert not manager.active_connections and not manager.user_connections and not len(manager.connection_metadata)
        await settle()
        assert peer.closed == 1000, "the socket must really be closed"

    async def test_statistics_keep_their_keys(self, manager: t.Any) -> None:
        await join(manager)
        stats = await manager.get_connection_stats()
        assert stats["total_connections"] == stats["unique_users"] == 1
        assert stats["connections_by_user"] == {"ann": 1}
        assert set(stats["connection_details"][0]) >= {
            "connection_id",
            "user_id",
            "age_seconds",
            "time_since_ping",
            "time_since_pong",
            "is_alive",
            "missed_pings",
            "total_pings_sent",
            "total_pongs_received",
            "last_latency_ms",
        }
        json.dumps(stats, allow_nan=False)

    async def test_public_statistics_name_nobody(self, manager: t.Any) -> None:
        await join(manager, "connection-7f3", "user-of-the-secret", "session=")
        public = json.dumps(manager.get_public_stats(), allow_nan=False)
        assert "user-of-the-secret" not in public and "connection-7f3" not in public
        assert next(iter(manager.sessions.by_id)) not in public
        assert manager.get_public_stats()["total_connections"] == 1

    async def test_a_user_id_in_place_of_a_socket_reaches_nobody(self, manager: t.Any) -> None:
        """As the older chat API calls it, with an id out of the request's body: today False, and so it stays."""
        peer = await join(manager)
        for who in ("ann", "c1", "nobody", None, 7):
            assert await manager.send_personal_message({"type": "chat"}, who) is False
        assert peer.texts() == []

    async def test_what_json_has_no_form_for_is_not_sent_and_raises_nothing(self, manager: t.Any) -> None:
        peer = await join(manager)
        itself: t.List[t.Any] = []
        itself.append(itself)
        for message in ({("a", 1): 1}, itself, {"a": itself}):
            assert await manager.send_personal_message(message, manager.active_connections["c1"]) is False
            await manager.send_message_to_user(message, "ann")
            await manager.broadcast(message)
        await manager.send_message_to_user({"type": "well"}, "ann")
        assert peer.texts() == ['{"type":"well"}']

    async def test_a_double_that_hangs_is_closed_too(
        self, manager: t.Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A socket whose transport is out of reach: its own close is called, beside the write that hangs."""
        monkeypatch.setattr(ws, "CLOSE_GRACE", 0.01)
        closed = asyncio.Event()

        class Double:
            async def send_json(self, message: t.Any) -> None:
                await asyncio.Event().wait()

            send_text = send_json

            async def close(self, code: int = 1000) -> None:
                closed.set()

        await manager.connect(Double(), "ann", "c1")
        await turn(manager, clock, 70)
        await asyncio.wait_for(closed.wait(), 20)
        assert not manager.active_connections

    async def test_context(self, manager: t.Any) -> None:
        await join(manager)
        await manager.update_connection_context("c1", {"page": "trip"})
        await manager.update_connection_context("c1", {"step": 2})
        await manager.update_connection_context("unknown", {"step": 2})
        assert manager.get_connection_context("c1") == {"page": "trip", "step": 2}
        assert manager.get_connection_context("unknown") is None

    async def test_sockets_that_only_have_the_methods(self, manager: t.Any) -> None:
        class Double:
            def __init__(self) -> None:
                self.got: t.List[t.Any] = []

            async def send_json(self, message: t.Any) -> None:
                self.got.append(message)

            async def send_text(self, text: str) -> None:
                self.got.append(text)

            async def close(self, code: int = 1000) -> None:
                self.got.append(code)

        double, stranger = Double(), Double()
        await manager.connect(double, "ann", "c1")
        assert await manager.send_personal_message({"a": 1}, double)
        assert await manager.send_personal_message("plain", double)
        assert await manager.send_personal_message({"a": 2}, stranger)
        manager.disconnect("ann", "c1")
        await settle()
        assert double.got == [{"a": 1}, "plain", 1000] and stranger.got == [{"a": 2}]
        for gone in (double, stranger):
            state = types.SimpleNamespace(name="DISCONNECTED")
            gone.client_state = state  # type: ignore[attr-defined]  # as Starlette's own says
        await manager.connect(double, "ann", "c2")
        assert not await manager.send_personal_message({"a": 3}, double) and not await manager.send_personal_message(
            {"a": 3}, stranger
        )
        await manager.broadcast("to nobody")
        assert not manager.active_connections and len(double.got) == 3

    async def test_a_text_that_only_looks_like_json_reaches_such_a_socket_as_text(self, manager: t.Any) -> None:
        class Double:
            def __init__(self) -> None:
                self.got: t.List[t.Any] = []

            async def send_json(self, message: t.Any) -> None:
                self.got.append(("json", message))

            async def send_text(self, text: str) -> None:
                self.got.append(("text", text))

            async def close(self, code: int = 1000) -> None:
                pass

        double, stranger = Double(), Double()
        await manager.connect(double, "ann", "c1")
        for socket in (double, stranger):
            for message in ("", "[draft] hello", "{name}", {"a": 1}, [1]):
                assert await manager.send_personal_message(message, socket), message
            assert socket.got == [
                ("text", ""),
                ("text", "[draft] hello"),
                ("text", "{name}"),
                ("json", {"a": 1}),
                ("json", [1]),
            ]
        assert "c1" in manager.active_connections, "and none of them ends the connection"

    @pytest.mark.parametrize("guarded", [True, False])
    async def test_an_endpoint_may_connect_before_it_accepts(self, manager: t.Any, clock: Clock, guarded: bool) -> None:
        """A server takes no frame before that; what is sent meanwhile, heartbeats among it, follows the acceptance."""

        class Strict(Peer):
            async def asgi_send(self, message: t.Dict[str, t.Any]) -> None:
                if message["type"] == "websocket.send" and not self.sent:
                    raise RuntimeError("Expected ASGI message 'websocket.accept'")
                await super().asgi_send(message)

        peer = Strict("session=")
        kept = asyncio.Event()

        async def endpoint(scope: t.Any, receive: t.Any, send: t.Any) -> None:
            socket = Socket(peer)
            state = types.SimpleNamespace(name="CONNECTING")
            socket.application_state = state  # type: ignore[attr-defined]  # as Starlette's own says
            socket.scope, socket._send, socket._receive = scope, send, receive
            await manager.connect(socket, "ann", "c1")
            await manager.send_message_to_user({"a": 1}, "ann")
            await turn(manager, clock, 21)
            assert not peer.sent and "c1" in manager.active_connections
            await socket._send({"type": "websocket.accept"})
            await manager.send_message_to_user({"a": 2}, "ann")
            await kept.wait()

        app = guards.WebSocketGuard(endpoint, manager) if guarded else endpoint
        running = asyncio.ensure_future(app(peer.scope, peer.asgi_receive, peer.asgi_send))
        await until(lambda: len(peer.texts()) >= 4 or running.done())
        assert peer.sent[0]["type"] == "websocket.accept"
        frames = [json.loads(text) for text in peer.texts()]
        assert [frame["type"] for frame in frames if "type" in frame] == ["session", "ping"]
        assert [frame["a"] for frame in frames if "a" in frame] == [1, 2]
        kept.set()
        await running

    async def test_a_connection_id_that_is_used_again_replaces_the_first(self, manager: t.Any) -> None:
        first = await join(manager)
        second = await join(manager)
        await manager.broadcast("hello")
        await settle()
        assert first.closed == 4409 and second.texts() == ["hello"] and len(manager.active_connections) == 1

    async def test_the_newest_connections_of_a_user_win(self, manager: t.Any) -> None:
        peers = [await join(manager, f"c{number}") for number in range(7)]
        await settle()
        assert [peer.closed for peer in peers] == [4409, 4409, None, None, None, None, None]
        assert list(manager.user_connections["ann"]) == ["c2", "c3", "c4", "c5", "c6"]

    async def test_a_resumed_connection_pushes_out_none_but_its_predecessor(self, manager: t.Any) -> None:
        peers = [await join(manager, f"c{number}", query="session=") for number in range(5)]
        session = json.loads(peers[3].texts()[0])["session"]
        again = await join(manager, "again", query=f"session={session}&last_seq=0")
        await settle()
        assert [peer.closed for peer in peers] == [None, None, None, 4409, None]
        assert json.loads(again.texts()[0])["type"] == "session" and len(manager.user_connections["ann"]) == 5

    async def test_a_peer_that_left_during_authentication(self, manager: t.Any) -> None:
        peer = Peer()
        connection = ws.Connection(manager, peer.asgi_send, peer.asgi_receive, peer.scope)
        peer.scope[ws.SCOPE_KEY] = connection
        connection.gone(1001)
        await manager.connect(Socket(peer), "ann", "c1")
        assert not manager.active_connections
        assert (await connection.app_receive())["type"] == "websocket.disconnect"


class TestMessages:
    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ("as it is", "as it is"),
            ({"é": "ü"}, '{"é":"ü"}'),
            ([1, 2], "[1,2]"),
            (
                {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5,)},
                '{"a":null,"b":[null,{"c":null}],"d":[1.5]}',
            ),
            ("lone \ud800", "lone ?"),
        ],
    )
    def test_encoding(self, message: t.Any, text: str) -> None:
        assert ws.encode(message) == text
        ws.encode(message).encode()

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    @settings(max_examples=200, deadline=None)
    def test_whatever_is_sent_can_be_parsed_by_a_browser(self, value: t.Any) -> None:
        def refuse(name: str) -> None:
            raise AssertionError(name)

        text = ws.encode({"value": value})
        json.loads(text.encode().decode(), parse_constant=refuse)
        numbered = json.loads(sessions.number_frame(text, 7), parse_constant=refuse)
        assert numbered.pop("_seq") == 7 and numbered == json.loads(text)


class TestHeartbeat:
    async def test_pings_carry_what_clients_know(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        await turn(manager, clock, 1)
        ping = json.loads(peer.texts()[0])
        assert (
            set(ping) == {"type", "timestamp", "connection_id", "seq"}
            and ping["type"] == "ping"
            and ping["connection_id"] == "c1"
        )
        assert len(peer.texts()) == 1

    async def test_load_is_spread_over_the_interval(self, manager: t.Any, clock: Clock) -> None:
        peers = [await join(manager, f"c{number}", f"u{number}") for number in range(400)]
        most, before = 0, 0
        for _ in range(200):
            await turn(manager, clock, 0.1)
            sent = sum(len(peer.texts()) for peer in peers)
            most, before = max(most, sent - before), sent
        assert before in range(396, 405) and most <= 6

    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_silent_peers_are_found_within_a_minute(self, manager: t.Any, clock: Clock, seed: int) -> None:
        """A thousand peers that fall silent at random moments, at the real defaults."""
        chance = random.Random(seed)
        manager.max_per_user = 0
        peers: t.Dict[str, Peer] = {}
        silent_since: t.Dict[str, float] = {}
        last_word: t.Dict[str, float] = {}
        found: t.Dict[str, float] = {}
        answered: t.Dict[str, int] = {}
        for number in range(1000):
            name = f"c{number}"
            peers[name] = await join(manager, name, f"u{number % 50}")
            silent_since[name] = clock.now + chance.uniform(0, 60)
            last_word[name] = clock.now
        began = clock.now

        def answer() -> None:
            for name, peer in peers.items():
                pings = len(peer.sent)
                if clock.now < silent_since[name] and pings > answered.get(name, 0):
                    answered[name] = pings
                    peer.says('{"type":"pong"}')
                    last_word[name] = clock.now
                if name not in found and name not in manager.active_connections:
                    found[name] = clock.now

        await turn(manager, clock, 125, answer)
        assert len(found) == 1000, f"seed {seed}"
        waits = [found[name] - last_word[name] for name in peers]
        assert max(waits) <= 61 and min(waits) >= 59.5, f"seed {seed}: {min(waits)}..{max(waits)}"
        assert clock.now - began < 130
        await settle()
        assert all(peer.closed == 1001 for peer in peers.values())

    async def test_a_peer_that_answers_late_lives(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        due: t.List[float] = []
        seen = 0

        def answer() -> None:
            nonlocal seen
            for _ in peer.texts()[seen:]:
                due.append(clock.now + 25)
            seen = len(peer.texts())
            while due and due[0] <= clock.now:
                due.pop(0)
                peer.says('{"type":"pong"}')

        await turn(manager, clock, 600, answer)
        assert "c1" in manager.active_connections and seen >= 29

    async def test_a_peer_that_talks_but_never_pongs_lives(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        spoken = [clock.now]

        def talk() -> None:
            if clock.now - spoken[0] >= 45:
                spoken[0] = clock.now
                peer.says('{"type":"chat","message":"still here"}')

        socket = manager.active_connections["c1"]
        for _ in range(10):
            await turn(manager, clock, 60, talk)
            while manager.connections["c1"].inbox:
                await socket.receive()
        assert "c1" in manager.active_connections

    async def test_fewer_missed_pings_end_it_sooner(self, manager: t.Any, clock: Clock) -> None:
        manager.max_missed_pings = 1
        await join(manager)
        silent = clock.now
        while "c1" in manager.active_connections:
            await turn(manager, clock, 0.1)
        assert clock.now - silent <= 40.2

    async def test_while_the_endpoint_is_busy_pongs_still_count(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        seen = 0

        def answer() -> None:
            nonlocal seen
            for _ in peer.texts()[seen:]:
                peer.says('{"type":"pong"}')
            seen = len(peer.texts())

        await turn(manager, clock, 300, answer)  # nobody ever calls receive()
        assert "c1" in manager.active_connections and manager.connection_metadata["c1"]["total_pongs_received"] >= 14

    async def test_nobody_dies_for_a_pause_of_the_server(
        self, manager: t.Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process stands still for five minutes (a frozen VM): frames that arrived meanwhile were not read yet."""
        await join(manager)
        slept: t.List[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            clock.now += 300 if len(slept) == 3 else seconds
            if len(slept) == 5:
                raise asyncio.CancelledError

        monkeypatch.setattr(ws.asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await manager._heartbeat()
        monkeypatch.undo()
        assert "c1" in manager.active_connections and manager.paused == pytest.approx(300, abs=0.2)

    async def test_an_error_in_a_slot_does_not_end_the_heartbeat(self, clock: Clock) -> None:
        manager = ws.ConnectionManager()
        calls: t.List[int] = []

        def broken() -> None:
            calls.append(1)
            raise ValueError("once")

        manager.tick = broken
        await join(manager)
        await until(lambda: len(calls) >= 3)
        assert not manager.heartbeat_task.done()
        manager.disconnect("ann", "c1")

    async def test_the_heartbeat_starts_again_after_the_last_one_left(self) -> None:
        manager = ws.ConnectionManager()
        manager.heartbeat_interval = 0.1
        for number in range(3):
            peer = await join(manager, f"c{number}")
            manager.disconnect("ann", f"c{number}")
            peer = await join(manager, f"d{number}")  # in the same tick
            await until(lambda: bool(peer.texts()))  # noqa: B023 - awaited before it changes
            manager.disconnect("ann", f"d{number}")
            await until(lambda: manager.heartbeat_task is None)


class TestLatency:
    async def test_a_pong_without_data_gives_a_latency(self, manager: t.Any, clock: Clock) -> None:
        class Double:
            async def send_json(self, message: t.Any) -> None:
                pass

        await manager.connect(Double(), "ann", "c1")
        for _ in range(100):
            while not manager.connections["c1"].outstanding:
                await turn(manager, clock, 0.1)
            clock.now += 0.05
            await manager.handle_pong("c1")
            assert manager.connection_metadata["c1"]["last_latency_ms"] == pytest.approx(50, abs=0.01)

    async def test_round_trip_by_our_own_clock(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        await turn(manager, clock, 1)
        sent = clock.now - manager.connections["c1"].outstanding[0][1]
        clock.now += 0.043
        peer.says('{"type":"pong","seq":1,"timestamp":1}')
        await settle()
        assert manager.connection_metadata["c1"]["last_latency_ms"] == pytest.approx((sent + 0.043) * 1000, abs=0.01)

    @pytest.mark.parametrize("milliseconds", [5, 50, 200])
    @pytest.mark.parametrize("echo", [True, False])
    async def test_injected_delays_are_measured(
        self, manager: t.Any, clock: Clock, milliseconds: int, echo: bool
    ) -> None:
        """The median of round trips that vary by 20 % is right within 1 ms + 5 %, with an echoed number and without."""
        chance = random.Random(7)
        peer = await join(manager)
        measured: t.List[float] = []
        for _ in range(200):
            before = len(peer.texts())
            while len(peer.texts()) == before:
                clock.now += 0.1
                manager.tick()
            clock.now += milliseconds / 1000 * chance.uniform(0.8, 1.2)
            peer.says(f'{{"type":"pong","seq":{json.loads(peer.texts()[-1])["seq"]}}}' if echo else '{"type":"pong"}')
            await settle()
            manager.connections["c1"].inbox.clear()
            measured.append(manager.connection_metadata["c1"]["last_latency_ms"])
        assert abs(statistics.median(measured) - milliseconds) <= 1 + 0.05 * milliseconds
        assert manager.latencies.quantile(0.5) == pytest.approx(milliseconds, rel=0.15)

    @pytest.mark.parametrize(
        "forged",
        [
            '"timestamp":NaN',
            '"timestamp":1e303',
            '"timestamp":-Infinity',
            '"seq":NaN',
            '"seq":true',
            '"seq":-5',
            '"seq":"1"',
            '"seq":1e9',
            '"seq":[1]',
            '"seq":99999999999999999999',
        ],
    )
    async def test_forged_stamps_change_nothing(self, manager: t.Any, clock: Clock, forged: str) -> None:
        peer = await join(manager)
        await turn(manager, clock, 1)
        peer.says(f'{{"type":"pong",{forged}}}')
        await settle()
        latency = manager.connection_metadata["c1"]["last_latency_ms"]
        assert 0 <= latency < 1_100 and math.isfinite(latency)
        json.dumps(await manager.get_connection_stats(), allow_nan=False)

    async def test_no_sample_when_it_is_uncertain_which_ping_was_answered(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        await turn(manager, clock, 45)
        peer.says('{"type":"pong"}')
        await settle()
        assert manager.latencies.total == 0

    async def test_the_other_keepalive_does_not_falsify_it(self, manager: t.Any, clock: Clock) -> None:
        """A second keepalive pings the same client: its pong is not taken for the answer to ours."""
        peer = await join(manager)
        socket = manager.active_connections["c1"]
        await turn(manager, clock, 1)
        clock.now += 0.010
        await socket.send_text('{"type": "ping", "timestamp": "2025-07-30T10:00:00", "ping_number": 1}')
        clock.now += 0.100
        peer.says('{"type":"pong"}')  # which of the two?
        await settle()
        assert manager.latencies.total == 0
        peer.says('{"type":"pong"}')
        await settle()
        assert manager.connection_metadata["c1"]["last_latency_ms"] == pytest.approx(100, abs=0.1)

    async def test_the_endpoint_does_not_count_a_pong_again(self, manager: t.Any, clock: Clock) -> None:
        peer = await join(manager)
        await turn(manager, clock, 1)
        peer.says('{"type":"pong"}')
        message = await manager.active_connections["c1"].receive()
        assert message["text"] == '{"type":"pong"}'
        await manager.handle_pong("c1")
        assert manager.connection_metadata["c1"]["total_pongs_received"] == 1

    def test_histogram(self) -> None:
        histogram = ws.Histogram()
        assert histogram.quantile(0.5) is None
        for value in range(1, 1001):
            histogram.add(value)
        for share in (0.5, 0.95, 0.99):
            assert histogram.quantile(share) == pytest.approx(share * 1000, rel=0.1)
        for odd in (0.0, -1.0, 1e12):
            histogram.add(odd)


class TestBounds:
    async def test_one_stuck_client_delays_nobody(self, manager: t.Any) -> None:
        stuck = await join(manager, "stuck", "bob")
        peers = [await join(manager, f"c{number}", f"u{number}") for number in range(20)]
        stuck.stuck = True
        for number in range(50):
            await asyncio.wait_for(manager.broadcast({"number": number}), 1)
        assert all(len(peer.texts()) == 50 for peer in peers)

    async def test_a_stalled_writer_is_closed_with_1013_and_aborted(
        self, manager: t.Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ws, "CLOSE_GRACE", 0.05)
        peer = await join(manager)
        peer.stuck = True
        await manager.broadcast("x")
        await turn(manager, clock, 9.9)
        assert "c1" in manager.active_connections
        await turn(manager, clock, 0.3)
        connection = manager.connections.get("c1")
        await until(lambda: peer.aborted and "c1" not in manager.active_connections)
        assert connection is None or connection.close_code == 1013
        assert manager.totals["slow"] == 1

    @pytest.mark.parametrize(("size", "count"), [(10, 256), (100_000, 9), (5_000_000, 1)])
    async def test_the_outbox_is_bounded(self, manager: t.Any, size: int, count: int) -> None:
        peer = await join(manager)
        peer.stuck = True
        connection = manager.connections["c1"]
        accepted = 0
        while await manager.send_personal_message(
            "x" * size, manager.active_connections.get("c1", connection.websocket)
        ):
            accepted += 1
            assert connection.outbox_bytes <= max(ws.OUTBOX_BYTES, size)
        assert accepted in (count, count + 1)
        assert connection.close_code == 1013 and not connection.outbox

    async def test_only_the_latest_of_a_droppable_kind_is_kept(self, manager: t.Any) -> None:
        peer = await join(manager)
        peer.stuck = True
        await manager.broadcast("blocks")
        for number in range(10_000):
            await manager.broadcast(f"position {number}", droppable="position")
        peer.release()
        await settle(20)
        assert peer.texts() == ["blocks", "position 9999"]

    async def test_order_survives_a_slow_client(self, manager: t.Any) -> None:
        peer = await join(manager)
        for number in range(200):
            if number == 50:
                peer.stuck = True
            if number == 150:
                peer.release()
            await manager.broadcast(str(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await settle(300)
        assert peer.texts() == [str(number) for number in range(200)]

    @staticmethod
    async def sending_to_a_stuck_client(manager: t.Any, texts: t.Iterable[str]) -> t.Tuple[Peer, asyncio.Task[None]]:
        """An endpoint that sends one text after the other to a client that reads nothing."""
        peer = await join(manager)
        socket = manager.active_connections["c1"]
        peer.stuck = True

        async def endpoint() -> None:
            for text in texts:
                await socket.send_text(text)

        return peer, asyncio.ensure_future(endpoint())

    async def test_an_endpoint_that_sends_too_fast_waits_for_its_client_only(self, manager: t.Any) -> None:
        peer, task = await self.sending_to_a_stuck_client(manager, ["x" * 10_000] * 40)
        await settle(100)
        assert not task.done() and manager.connections["c1"].outbox_bytes <= ws.RESUME_WRITING + 10_000
        peer.release()
        await asyncio.wait_for(task, 1)
        await settle(50)
        assert len(peer.texts()) == 40

    async def test_an_endpoint_that_sends_many_small_frames_waits_too(self, manager: t.Any) -> None:
        """As one that streams an answer word by word: it is the number of frames that grows, not their size."""
        peer, task = await self.sending_to_a_stuck_client(manager, map(str, range(2000)))
        await settle(3000)
        assert not task.done() and len(manager.connections["c1"].outbox) < ws.OUTBOX_MESSAGES
        await manager.send_message_to_user("in between", "ann")
        assert "c1" in manager.active_connections, "there is room for the manager's own messages"
        peer.release()
        await asyncio.wait_for(task, 10)
        await until(lambda: len(peer.texts()) == 2001)
        assert [text for text in peer.texts() if text != "in between"] == [str(number) for number in range(2000)]

    async def test_the_inbox_is_bounded(self, manager: t.Any) -> None:
        peer = await join(manager)
        for number in range(1000):
            peer.says(str(number))
        await settle(50)
        assert len(manager.connections["c1"].inbox) == ws.INBOX_MESSAGES
        socket = manager.active_connections["c1"]
        assert [(await socket.receive())["text"] for _ in range(1000)] == [str(number) for number in range(1000)]

    async def test_the_inbox_is_bounded_in_bytes_too(self, manager: t.Any) -> None:
        """A frame that was taken is given to the endpoint, however large; the next ones wait on the network."""
        peer = await join(manager)
        for number in range(40):
            peer.says(f"{number:02}" + "x" * ws.INBOX_BYTES)
        await settle(50)
        assert len(manager.connections["c1"].inbox) <= 2
        socket = manager.active_connections["c1"]
        assert [int((await socket.receive())["text"][:2]) for _ in range(40)] == list(range(40))
        assert manager.connections["c1"].inbox_bytes == 0

    async def test_a_client_that_left_ends_the_endpoint(self, manager: t.Any) -> None:
        peer = await join(manager)
        socket = manager.active_connections["c1"]
        peer.leaves()
        assert (await asyncio.wait_for(socket.receive(), 1))["type"] == "websocket.disconnect"
        assert (await asyncio.wait_for(socket.receive(), 1))["type"] == "websocket.disconnect"
        with pytest.raises(OSError):
            await socket.send_text("too late")
        await socket.close()
        assert not manager.active_connections and peer.closed is None

    @given(
        st.lists(
            st.text(max_size=600)
            | st.sampled_from(
                [
                    '{"type":"pong"}',
                    '{"type":"resume"}',
                    '{"type":"resume","session":[1],"last_seq":{}}',
                    '["pong"]',
                    '{"type":"pong","seq":{}}',
                    "[" * 500 + '"pong"',
                ]
            )
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_malformed_frames(self, frames: t.List[str]) -> None:
        async def scenario() -> None:
            manager = ws.ConnectionManager(Clock())
            sessions.Sessions.of(manager)
            manager._start_heartbeat = lambda: None
            await join(manager)
            connection = manager.connections["c1"]
            for text in frames:
                connection.heard({"type": "websocket.receive", "text": text})
                connection.heard({"type": "websocket.receive", "bytes": text.encode("utf-8", "replace")})
            json.dumps(await manager.get_connection_stats(), allow_nan=False)
            assert not connection.closed
            connection.gone(1000)

        asyncio.run(scenario())


class TestLogs:
    async def test_lines_are_found_by_the_reports_grep_and_hold_no_body(
        self, manager: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ws._throttle.windows.clear()
        with caplog.at_level(logging.DEBUG):
            peer = await join(manager, query="session=&token=top-secret-token")
            await manager.broadcast({"text": "private words"})
            peer.says("private words of the client")
            await settle()
            manager.disconnect("ann", "c1")
            await settle()
        text = caplog.text
        assert "🔗" in text and "🔌" in text
        assert (
            "private words" not in text
            and "top-secret-token" not in text
            and next(iter(manager.sessions.by_id)) not in text
        )

    async def test_the_end_is_logged_with_the_code_that_the_peer_gave(
        self, manager: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ws._throttle.windows.clear()
        with caplog.at_level(logging.DEBUG):
            peer = await join(manager)
            socket = manager.active_connections["c1"]
            peer.leaves()
            assert [(await socket.receive())["code"] for _ in range(2)] == [1001, 1001]
        assert "disconnected" in caplog.text and "code=1001" in caplog.text

    async def test_an_attack_does_not_fill_the_log(self, manager: t.Any, caplog: pytest.LogCaptureFixture) -> None:
        ws._throttle.windows.clear()
        with caplog.at_level(logging.DEBUG):
            for number in range(2000):
                await join(manager, f"c{number}", "ann")
        assert len(caplog.records) <= 4 * ws._throttle.burst


class TestSettings:
    @pytest.mark.parametrize(
        ("raw", "value"),
        [
            ("30", 30.0),
            ("0.5", 0.5),
            ("", 20.0),
            ("abc", 20.0),
            ("nan", 20.0),
            ("-1", 20.0),
            ("0", 20.0),
            ("inf", 20.0),
            ("1e9", 20.0),
        ],
    )
    def test_the_heartbeat_interval(self, monkeypatch: pytest.MonkeyPatch, raw: str, value: float) -> None:
        monkeypatch.setenv("WEBSOCKET_HEARTBEAT_INTERVAL", raw)
        assert ws.ConnectionManager().heartbeat_interval == value

    def test_a_value_out_of_range_is_named_in_the_log(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        ws._throttle.windows.clear()
        monkeypatch.setenv("WEBSOCKET_MAX_MISSED_PINGS", "many")
        assert ws.ConnectionManager().max_missed_pings == 3
        line = "WEBSOCKET_MAX_MISSED_PINGS must be a number between 1 and 1000, got 'many'. Using 3."
        assert caplog.text.count(line) == 1

    def test_a_timeout_shorter_than_the_heartbeat_is_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WEBSOCKET_CONNECTION_TIMEOUT", "5")
        assert ws.ConnectionManager().connection_timeout == 60


class TestAlone:
    """The file by itself, as it is copied into a backend by hand."""

    async def test_connections_heartbeats_and_messages_work(self, clock: Clock) -> None:
        manager = load_manager().ConnectionManager(clock)
        async with by_hand(manager):
            peer = await join(manager)
            await manager.send_message_to_user({"a": 1}, "ann")
            await manager.broadcast({"a": 2})
            await turn(manager, clock, 5)
            assert [json.loads(text).get("type") for text in peer.texts()] == [None, None, "ping"]
            manager.disconnect("ann", "c1")
            await settle()
            assert peer.closed == 1000 and not manager.active_connections

    @pytest.mark.parametrize("query", ["session=", "session=anything&last_seq=7"])
    async def test_a_client_that_asks_for_a_session_is_served_as_one_that_does_not(
        self, clock: Clock, query: str
    ) -> None:
        manager = load_manager().ConnectionManager(clock)
        async with by_hand(manager):
            peer = await join(manager, query=query)
            await manager.send_message_to_user({"a": 1}, "ann")
            assert peer.texts() == ['{"a":1}']
            peer.says('{"type":"resume","session":"","last_seq":0}')
            message = await manager.active_connections["c1"].receive()
            assert json.loads(message["text"])["type"] == "resume", "it is the endpoint's, as is all that nobody knows"
            socket = manager.active_connections["c1"]
            peer.leaves()
            await settle()
            with pytest.raises(OSError):
                await socket.send_text("too late")
            stats = manager.get_public_stats()
            assert (stats["sessions"], stats["totals"]["resumed"], stats["totals"]["resynced"]) == (0, 0, 0)

    async def test_one_line_says_what_is_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            alone = load_manager().ConnectionManager()
            for number in range(3):  # each time the heartbeat starts again
                await join(alone, f"c{number}")
                alone.disconnect("ann", f"c{number}")
                await until(lambda: alone.heartbeat_task is None)
            assert [record.getMessage() for record in caplog.records if "not in use" in record.getMessage()] == [
                "🔌 WebSocket: app/wheels_ops is not in use; sessions are not resumed, origins and limits are not"
                " checked before the handshake, there is no long poll"
            ]
            caplog.clear()
            ws._throttle.windows.clear()
            complete = ws.ConnectionManager()
            sessions.Sessions.of(complete)
            await join(complete)
            complete.disconnect("ann", "c1")
            assert caplog.records and "not in use" not in caplog.text
