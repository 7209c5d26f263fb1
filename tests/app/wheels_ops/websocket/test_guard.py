# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard's decisions before a handshake is accepted, and what passes through it."""

from __future__ import annotations

import random
import sys
import tracemalloc
import types
import typing as t

import pytest
from websockets.sync.client import connect

from tests.support.waiting import wait_until
from tests.support.websocket_backend import SocketBackend
from tests.support.websocket_module import Clock, Peer, Socket, load_all

ws, sessions, _, guards, _ = load_all()


async def nothing(scope: t.Any, receive: t.Any, send: t.Any) -> None:
    """An application that ends at once."""


def scope(
    address: str = "192.0.2.1", *headers: t.Tuple[str, str], path: str = "/api/v1/pam/ws/ann", extension: bool = True
) -> t.Dict[str, t.Any]:
    return {
        "type": "websocket",
        "path": path,
        "client": (address, 5),
        "query_string": b"",
        "extensions": {"websocket.http.response": {}} if extension else {},
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }


async def knock(guard: t.Any, asked: t.Dict[str, t.Any]) -> t.List[t.Dict[str, t.Any]]:
    sent: t.List[t.Dict[str, t.Any]] = []

    async def receive() -> t.Dict[str, t.Any]:
        return {"type": "websocket.connect"}

    async def send(message: t.Dict[str, t.Any]) -> None:
        sent.append(message)

    await guard(asked, receive, send)
    return sent


@pytest.fixture
def guard() -> t.Any:
    return guards.WebSocketGuard(nothing, ws.ConnectionManager(Clock()))


async def test_draining_refuses_with_a_time_to_come_back(guard: t.Any) -> None:
    guard.manager.draining = True
    start, body = await knock(guard, scope())
    assert (
        start["type"] == "websocket.http.response.start"
        and start["status"] == 503
        and int(dict(start["headers"])[b"retry-after"]) > 0
    )
    assert body["type"] == "websocket.http.response.body"


async def test_a_server_that_cannot_answer_with_http(guard: t.Any) -> None:
    guard.manager.draining = True
    assert await knock(guard, scope(extension=False)) == [
        {"type": "websocket.close", "code": 1012, "reason": "server restarts"}
    ]


@pytest.mark.parametrize(("verdict", "status"), [(True, None), (False, 403)])
async def test_the_cors_policy_decides_about_origins(
    guard: t.Any, monkeypatch: pytest.MonkeyPatch, verdict: bool, status: t.Optional[int]
) -> None:
    asked: t.List[str] = []

    def judge(origin: str) -> bool:
        asked.append(origin)
        return verdict

    policy = types.SimpleNamespace(is_websocket_origin_allowed=judge)
    for name in ("app", "app.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "app.core.cors_config", types.SimpleNamespace(cors_config=policy))
    refusal = guard.refuse(scope("192.0.2.1", ("Origin", "https://page.example")), "x")
    assert (refusal and refusal.status) == status and asked == ["https://page.example"]
    assert guard.refuse(scope(), "x") is None, "a client without an Origin is no browser"


def test_a_policy_that_cannot_judge_sockets_is_tolerated(guard: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release's own cors_config.py has no such method."""
    for name in ("app", "app.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "app.core.cors_config", types.SimpleNamespace(cors_config=object()))
    assert guard.refuse(scope("192.0.2.1", ("Origin", "https://page.example")), "x") is None


async def test_an_ipv6_client_counts_with_its_network(guard: t.Any) -> None:
    guard.max_per_address = 2
    seen: t.List[t.Any] = []

    async def endpoint(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        seen.append(dict(guard.by_address))

    guard.app = endpoint
    for address in ("2001:db8:1:2::5", "2001:db8:1:2:ffff::6"):
        await knock(guard, scope(address))
    await knock(guard, scope("::ffff:203.0.113.9"))
    assert seen == [{"2001:db8:1:2::/64": 1}, {"2001:db8:1:2::/64": 1}, {"203.0.113.9": 1}]


@pytest.mark.parametrize(
    ("peer", "headers", "chosen", "status"),
    [
        ("10.0.0.1", (), False, None),  # a proxy without a word about its clients
        ("10.0.0.1", (), True, 429),  # ... whose operator chose a limit for that
        ("10.0.0.1", (("X-Forwarded-For", "10.0.0.1"),), False, 429),
        ("127.0.0.1", (), False, 429),  # a program on this machine
        ("127.0.0.1", (("Origin", "http://localhost:5173"),), False, 429),
        (
            "127.0.0.1",
            (("Origin", "https://wheelsandwins.com"),),
            False,
            None,
        ),  # a page from elsewhere: through a proxy here
        ("203.0.113.9", (), False, 429),
        ("203.0.113.9", (("Origin", "https://wheelsandwins.com"),), False, 429),
    ],
)
def test_a_proxy_that_names_nobody_locks_nobody_out(
    guard: t.Any,
    caplog: pytest.LogCaptureFixture,
    peer: str,
    headers: t.Tuple[t.Tuple[str, str], ...],
    chosen: bool,
    status: t.Optional[int],
) -> None:
    guard.address_limit_chosen = chosen
    guard.by_address[peer] = 50
    with caplog.at_level("WARNING"):
        found = [guard.refuse(scope(peer, *headers), peer) for _ in range(3)]
    assert {refusal and refusal.status for refusal in found} == {status}
    assert caplog.text.count("names no client") == (status is None), "said once"


async def test_counts_are_given_back(guard: t.Any) -> None:
    for _ in range(10):
        await knock(guard, scope())
    assert guard.open == 0 and not guard.by_address

    async def broken(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        raise ValueError("the endpoint failed")

    guard.app = broken
    with pytest.raises(ValueError, match="the endpoint failed"):
        await knock(guard, scope())
    assert guard.open == 0 and not guard.by_address


async def test_other_traffic_passes_untouched(guard: t.Any) -> None:
    seen = []

    async def application(scope: t.Any, receive: t.Any, send: t.Any) -> None:
        seen.append((scope, receive, send))

    guard.app = application
    for kind in ("http", "lifespan"):
        arguments = ({"type": kind, "path": "/api/v1/pam/chat", "method": "GET"}, object(), object())
        await guard(*arguments)
        assert all(one is other for one, other in zip(seen.pop(), arguments))


def test_the_books_do_not_grow_with_attackers(guard: t.Any) -> None:
    for number in range(20_000):
        guard.refuse(scope(path=f"/{number}"), str(number))
    assert len(guard.handshakes) <= 4097 and not guard.by_address


async def test_a_hundred_thousand_hostile_frames_leave_nothing_behind() -> None:
    chance = random.Random(20250730)
    manager = ws.ConnectionManager(Clock())
    sessions.Sessions.of(manager)
    manager._start_heartbeat = lambda: None
    await manager.connect(Socket(Peer()), "ann", "c1")
    connection = manager.connections["c1"]
    parts = [
        '{"type":"pong"',
        ',"seq":',
        "NaN",
        "1e999",
        "-1",
        "}",
        "[",
        '{"type":"resume"',
        "null",
        "\x00",
        "\ud800",
        "9" * 50,
        '"',
        "💓",
    ]

    def storm(count: int) -> None:
        for _ in range(count):
            connection.heard(
                {"type": "websocket.receive", "text": "".join(chance.choices(parts, k=chance.randrange(8)))}
            )

    storm(1000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    storm(100_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000 and not connection.closed and len(manager.sessions) <= 1
    connection.gone(1000)


@pytest.mark.parametrize("method", ["receive", "receive_text", "receive_json"])
@pytest.mark.parametrize("closes", [0, 1])
def test_an_endpoint_that_spins_on_a_closed_socket_is_ended_and_named(
    backend: SocketBackend, method: str, closes: int
) -> None:
    path = f"/spin/{method}/{closes}"
    with connect(f"ws://127.0.0.1:{backend.port}{path}"):
        pass
    assert backend.request("GET", "/control/stats", timeout=20)[0] == 200
    wait_until(lambda: backend.stats()["open"] == 0, what="the end of the endpoint")
    (line,) = [line for line in backend.logged().splitlines() if f"path={path}" in line]
    assert "kept receiving after the socket was closed" in line


def test_the_guard_says_which_sockets_the_application_has(backend: SocketBackend) -> None:
    paths = {"paths": ["/api/v1/pam/ws/{user_id}", "/spin/{method}/{closes}"]}
    assert backend.request("GET", "/api/v1/pam/sockets") == (200, paths)


async def test_one_address_does_not_use_up_everybodys_handshakes(guard: t.Any) -> None:
    """With ever other user names, so that no limit by user holds it."""
    taken = 0
    guard.accepts_by_address["203.0.113.9"] = guards.TokenBucket(50, 100, lambda: 1.0)  # its clock stands still
    for number in range(300):
        sent = await knock(guard, scope("203.0.113.9", path=f"/api/v1/pam/ws/x{number}"))
        taken += not sent or sent[0].get("status") not in (429, 503)
    assert taken == 100, "its own share: a tenth of the rate, twice that at once"
    assert not await knock(guard, scope("198.51.100.7", path="/api/v1/pam/ws/victim"))
    refused = await knock(guard, scope("203.0.113.9", path="/api/v1/pam/ws/y"))
    assert refused[0]["status"] == 429 and int(dict(refused[0]["headers"])[b"retry-after"]) >= 1


async def test_the_share_of_an_address_is_not_that_of_a_proxy_that_names_no_client(guard: t.Any) -> None:
    for number in range(300):
        assert not await knock(guard, scope("10.0.0.2", path=f"/api/v1/pam/ws/x{number}"))


async def test_clients_that_come_through_cloudflare_do_not_lock_each_other_out(guard: t.Any) -> None:
    """Not believed, it is still no single client."""
    for number in range(300):
        asked = scope("10.0.0.2", ("X-Forwarded-For", "172.64.0.1"), path=f"/api/v1/pam/ws/x{number}")
        assert not await knock(guard, asked)


def test_ids_of_callers_are_one_word_of_a_log_line() -> None:
    shown = ws.shown("ann\nERROR fake line\x1b[31m")
    assert shown == "ann\\nERROR fake line\\x1b[31m" and "\n" not in shown
    assert ws.shown("ann-1") == "ann-1" and ws.shown(7) == 7
    assert len(ws.shown("x" * 10_000)) == 203
