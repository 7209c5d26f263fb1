# SPDX-License-Identifier: GPL-3.0-or-later
"""The WebSocket probe against real servers (the ``websockets`` library) that behave, and that do not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import typing as t

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from wheels_ops.checks import websocket
from wheels_ops.core.results import OpsError

SITE = "https://wheelsandwins.com"


@contextlib.contextmanager
def server(handler: t.Callable[[ServerConnection], None], **options: t.Any) -> t.Iterator[str]:
    with serve(handler, "127.0.0.1", 0, **{"ping_interval": None, **options}) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}/ws/probe"
        running.shutdown()
        thread.join()


def echo(connection: ServerConnection) -> None:
    """What the backend's route does with messages of type ping."""
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            if json.loads(message).get("type") == "ping":
                connection.send(json.dumps({"type": "pong"}))


@pytest.mark.parametrize("ping", ["frame", "json"])
def test_handshake_round_trips_and_a_clean_close(ping: str) -> None:
    with server(echo) as url:
        check = websocket.check(url, ping=ping, round_trips=5, origin=SITE)
    assert check.status == "ok", check.message
    assert len(check.details["round_trips_ms"]) == 5
    assert check.value and check.value < 1000
    assert check.details["close"]["clean"]
    assert check.details["close"]["code"] == 1000


def test_the_servers_heartbeat_is_timed_and_answered() -> None:
    answers: t.List[str] = []

    def beats(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            for _ in range(3):
                connection.send(json.dumps({"type": "ping", "timestamp": 1.0}))
                answers.append(str(connection.recv(timeout=2)))
                threading.Event().wait(0.2)
            connection.recv(timeout=2)

    with server(beats) as url:
        check = websocket.check(url, ping="none", heartbeat_within=5, heartbeats=3)
    assert check.status == "ok", check.message
    assert len(check.details["heartbeats_s"]) == 3
    assert 0.15 < check.details["heartbeat_period_s"] < 2
    assert [json.loads(answer)["type"] for answer in answers] == ["pong"] * 3


def test_control_frames_count_as_heartbeat() -> None:
    with server(echo, ping_interval=0.1, ping_timeout=5) as url:
        check = websocket.check(url, ping="none", heartbeat_within=5, heartbeats=2)
    assert check.status == "ok", check.message


def test_a_missing_heartbeat_is_critical() -> None:
    with server(echo) as url:
        check = websocket.check(url, round_trips=1, heartbeat_within=0.4)
    assert check.status == "critical"
    assert "0 of 1 heartbeats" in check.message
    assert check.remedy == "service_restart"


def test_a_server_that_answers_no_ping_is_critical() -> None:
    def silent(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for _message in connection:
                continue

    with server(silent) as url:
        check = websocket.check(url, ping="json", timeout=0.4)
    assert check.status == "critical"
    assert "not answered within" in check.message


def test_a_close_by_the_server_shows_code_and_reason() -> None:
    with server(lambda connection: connection.close(4001, "unauthorized")) as url:
        check = websocket.check(url)
    assert check.status == "critical"
    assert "4001 unauthorized" in check.message


def refuse(status: int, needed: str = "") -> t.Callable[[ServerConnection, Request], t.Optional[Response]]:
    def process(connection: ServerConnection, request: Request) -> t.Optional[Response]:
        if needed and request.headers.get("Origin") == needed:
            return None
        return connection.respond(status, "refused")

    return process


def test_a_refused_upgrade_says_what_it_means_and_hides_the_token() -> None:
    with server(echo, process_request=refuse(403)) as url:
        check = websocket.check(url, token="s3cret-token")
    assert check.status == "critical"
    assert "403" in check.message
    assert "s3cret-token" not in json.dumps(check.as_dict())


def test_a_foreign_origin_must_be_refused() -> None:
    with server(echo, process_request=refuse(403, SITE)) as url:
        good = websocket.check(url, origin=SITE, foreign_origin="https://evil.example")
    assert good.status == "ok", good.message
    assert good.details["foreign_origin_refused"] is True
    with server(echo) as url:
        bad = websocket.check(url, origin=SITE, foreign_origin="https://evil.example")
    assert bad.status == "critical"
    assert "is let in" in bad.message


def test_where_nothing_listens_no_origin_is_said_to_be_let_in() -> None:
    check = websocket.check("ws://127.0.0.1:1/", foreign_origin="https://evil.example")
    assert check.status == "critical"
    assert "let in" not in check.message and "nothing listens" in check.message
    assert check.details["foreign_origin_refused"] is None


def test_a_token_refused_after_the_handshake_is_no_clean_close() -> None:
    with server(lambda connection: connection.close(4001, "no token")) as url:
        check = websocket.check(url, ping="none")
    assert check.status == "critical"
    assert "4001" in check.message


def test_a_server_that_accepts_and_says_nothing_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        check = websocket.check(f"ws://127.0.0.1:{deaf.getsockname()[1]}/", timeout=0.3)
    assert check.status == "critical"
    assert "in time" in check.message


def test_a_connection_that_breaks_without_a_close_frame() -> None:
    def break_off(connection: ServerConnection) -> None:
        connection.recv()  # the library answers frames of type ping by itself, before this begins or after
        connection.socket.shutdown(socket.SHUT_RDWR)

    with server(break_off) as url:
        check = websocket.check(url, ping="json")
    assert check.status == "critical"
    assert "broke" in check.message


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://127.0.0.1/"},
        {"url": "ws://127.0.0.1:99999/"},
        {"round_trips": -1},
        {"timeout": 0},
        {"heartbeat_within": 601},
        {"heartbeats": 0},
        {"ping": "udp"},
        {"max_latency_ms": float("nan")},
        {"origin": "nonsense"},
        {"foreign_origin": "nonsense"},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "b\r\nc"}},
        {"subprotocols": ["a b"]},
    ],
)
def test_nonsense_is_refused(options: t.Dict[str, t.Any]) -> None:
    with pytest.raises(OpsError):
        websocket.check(**{"url": "ws://127.0.0.1:1/", **options})
