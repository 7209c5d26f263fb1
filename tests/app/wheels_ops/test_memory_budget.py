# SPDX-License-Identifier: GPL-3.0-or-later
"""One bound for what is kept for clients and as speech: the oldest that nobody waits for goes first."""

from __future__ import annotations

import tracemalloc
import typing as t

import pytest

from tests.support.websocket_module import Clock, Peer, Socket, load

ws, sessions_module, memory_budget = load(
    "app.core.websocket_manager", "app.wheels_ops.websocket.session", "app.wheels_ops.memory_budget"
)
MIB = 1 << 20


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> t.Any:
    monkeypatch.setenv("WHEELS_OPS_MEMORY_BUDGET_MB", "4")
    memory_budget.budget.__init__()
    manager = ws.ConnectionManager(clock)
    manager._start_heartbeat = lambda: None
    sessions_module.Sessions.of(manager)
    return manager


async def client(manager: t.Any, number: int, *, away: bool) -> t.Any:
    peer = Peer("session=")
    await manager.connect(Socket(peer), f"user{number}", f"c{number}")
    connection = manager.connections[f"c{number}"]
    session = connection.session
    if away:
        connection.gone(1006)
    return session


async def test_all_rings_together_stay_within_the_bound(manager: t.Any, clock: Clock) -> None:
    """256 KiB for each of a thousand clients were 256 MiB."""
    owned = [await client(manager, number, away=True) for number in range(100)]
    tracemalloc.start()
    for round_ in range(20):
        for session in owned:
            session.add("x" * 10_000 + str(round_))
    held, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5 * MIB, "100 rings of 200 kB"
    assert memory_budget.budget.used <= 4 * MIB
    assert memory_budget.budget.used == sum(sessions_module.held_by(text) for one in owned for _seq, text in one.ring)


async def test_those_that_are_away_longest_go_first_and_those_that_are_there_last(manager: t.Any, clock: Clock) -> None:
    present = await client(manager, 0, away=False)
    longest = await client(manager, 1, away=True)
    clock.now += 10
    latest = await client(manager, 2, away=True)
    for session in (present, longest, latest):
        for _ in range(12):
            session.add("x" * 20_000)
    writer = await client(manager, 3, away=False)
    while len(longest.ring) == 12:
        writer.add("y" * 20_000)
        if len(writer.ring) > 11:  # its own bound; a further writer is needed
            writer = await client(manager, 3 + memory_budget.budget.used, away=False)
    assert len(longest.ring) < 3 and len(latest.ring) == len(present.ring) == 12
    assert longest.since(0) is None, "it starts anew, which a resync tells its client"
    assert latest.since(0) is not None


async def test_clients_that_are_there_keep_their_newest(manager: t.Any) -> None:
    owned = [await client(manager, number, away=False) for number in range(40)]
    for _ in range(12):
        for session in owned:
            session.add("x" * 20_000)
    assert memory_budget.budget.used <= 4 * MIB * 1.05 or all(len(one.ring) == 8 for one in owned)
    assert all(one.since(one.seq - 1) is not None for one in owned), "the last message can be sent again"


async def test_an_ended_session_is_counted_no_more(manager: t.Any) -> None:
    session = await client(manager, 1, away=True)
    session.add("x" * 1000)
    assert memory_budget.budget.used > 1000
    manager.sessions.end(session)
    assert memory_budget.budget.used == 0
    session.add("late")
    assert memory_budget.budget.used == 0


def test_members_shrink_in_their_order() -> None:
    budget = memory_budget.Budget(1000)
    held = {"speech": 600, "present": 500}
    asked: t.List[str] = []

    def shrink(name: str) -> t.Callable[[int], int]:
        def give(size: int) -> int:
            asked.append(name)
            given = min(size, held[name])
            held[name] -= given
            budget.change(-given)
            return given

        return give

    budget.register("present", memory_budget.PRESENT, shrink("present"))
    budget.register("speech", memory_budget.SPEECH, shrink("speech"))
    budget.change(500)
    budget.change(600)
    assert (asked, budget.used, held) == (["speech"], 950, {"speech": 450, "present": 500})
