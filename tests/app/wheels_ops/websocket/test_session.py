# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions without a network: what is kept, for whom and how long; what is replayed, and when a client starts anew."""

from __future__ import annotations

import json
import typing as t

import pytest

from tests.support.websocket_module import Clock, Peer, Socket, load_all

ws, sessions, _, _, _ = load_all()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> t.Any:
    """A manager with sessions whose wheel does not turn."""
    manager = ws.ConnectionManager(clock)
    manager._start_heartbeat = lambda: None
    sessions.Sessions.of(manager)
    return manager


async def join(manager: t.Any, name: str, query: str, user: str = "ann") -> Peer:
    peer = Peer(query)
    await manager.connect(Socket(peer), user, name)
    return peer


def frames(peer: Peer) -> t.List[t.Dict[str, t.Any]]:
    return [json.loads(text) for text in peer.texts()]


async def cut(manager: t.Any, name: str) -> None:
    manager.connections[name].gone(1006)


@pytest.mark.parametrize("text", ["plain", "[1]", '"x"', "", "{}", "{ }", '{"a":1}'])
def test_number_frame(text: str) -> None:
    frame = json.loads(sessions.number_frame(text, 3))
    assert frame["_seq"] == 3
    if not text.startswith("{"):
        assert frame["type"] == "message" and frame["data"] == text


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7), ("7", 7), (True, -1), (1.5, -1), ("x", -1), (None, -1), ([1], -1), ("9" * 16, -1)],
)
def test_whole_number(value: t.Any, number: int) -> None:
    assert sessions.whole_number(value) == number


def test_of_registers_once(manager: t.Any) -> None:
    assert sessions.Sessions.of(manager) is manager.sessions is sessions.Sessions.of(manager)


async def test_messages_between_two_connections_are_replayed_once_and_in_order(manager: t.Any) -> None:
    first = await join(manager, "c1", "session=")
    session = frames(first)[0]["session"]
    await manager.send_message_to_user({"n": 1}, "ann")
    await cut(manager, "c1")
    await manager.send_message_to_user({"n": 2}, "ann")
    await manager.broadcast({"n": 3})
    second = await join(manager, "c2", f"session={session}&last_seq=1")
    assert frames(second)[0]["type"] == "session"
    assert [(frame["_seq"], frame["n"]) for frame in frames(second)[1:]] == [(2, 2), (3, 3)]
    assert manager.get_public_stats()["totals"]["resumed"] == 1


async def test_the_resume_frame_does_what_the_query_string_does(manager: t.Any) -> None:
    session = frames(await join(manager, "c1", "session="))[0]["session"]
    await cut(manager, "c1")
    await manager.send_message_to_user({"n": 1}, "ann")
    peer = await join(manager, "c2", "")
    text = json.dumps({"type": "resume", "session": session, "last_seq": 0})
    assert manager.connections["c2"].heard({"type": "websocket.receive", "text": text}), "the endpoint does not see it"
    assert [frame.get("n") for frame in frames(peer)] == [None, 1]


async def test_the_session_of_somebody_else_is_not_resumed(manager: t.Any) -> None:
    session = frames(await join(manager, "c1", "session="))[0]["session"]
    await manager.send_message_to_user({"secret": 1}, "ann")
    await cut(manager, "c1")
    peer = await join(manager, "c2", f"session={session}&last_seq=0", user="bob")
    assert [frame["type"] for frame in frames(peer)] == ["resync"] and frames(peer)[0]["session"] != session


async def test_a_session_ends_when_its_time_is_over(manager: t.Any, clock: Clock) -> None:
    session = frames(await join(manager, "c1", "session="))[0]["session"]
    await cut(manager, "c1")
    clock.now += manager.sessions.seconds - 1
    manager.sessions.sweep()
    assert len(manager.sessions) == 1 and len(manager.sessions.detached("ann")) == 1
    clock.now += 2
    assert not manager.sessions.detached("ann"), "also before it is swept"
    manager.sessions.sweep()
    assert len(manager.sessions) == 0 and not manager.sessions.by_user
    peer = await join(manager, "c2", f"session={session}&last_seq=0")
    assert [frame["type"] for frame in frames(peer)] == ["resync"]


async def test_what_is_kept_is_bounded(manager: t.Any) -> None:
    session = frames(await join(manager, "c1", "session="))[0]["session"]
    await cut(manager, "c1")
    for number in range(sessions.SESSION_MESSAGES + 1):
        await manager.send_message_to_user({"n": number}, "ann")
    ring = manager.sessions.by_id[session]
    assert len(ring.ring) == sessions.SESSION_MESSAGES
    assert ring.since(0) is None and ring.since(-1) is None and ring.since(ring.seq + 1) is None
    assert len(ring.since(1)) == sessions.SESSION_MESSAGES and ring.since(ring.seq) == []
    await manager.send_message_to_user("x" * sessions.SESSION_BYTES, "ann")
    assert len(ring.ring) == 1


async def test_a_user_keeps_no_more_sessions_than_twice_his_connections(manager: t.Any) -> None:
    for number in range(40):
        await join(manager, f"c{number}", "session=")
        await cut(manager, f"c{number}")
    assert len(manager.sessions) == 2 * manager.max_per_user


async def test_a_full_process_ends_the_session_that_waits_longest(
    manager: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    for number in range(5):
        await join(manager, f"c{number}", "session=", user=f"u{number}")
        if number:
            await cut(manager, f"c{number}")
    assert {session.user_id for session in manager.sessions.by_id.values()} == {"u0", "u3", "u4"}
