# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched files in the stand-in backend: each release, copied by hand as the report says, and installed."""

from __future__ import annotations

import contextlib
import json
import re
import typing as t

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.support import servers
from tests.support.backend_env import Backend, running_backend
from tests.support.waiting import wait_until

ALONE = ("app/core/websocket_manager.py",)
INSTALLED = ("app/core/websocket_manager.py", "app/core/cors_config.py", "app/wheels_ops")


@pytest.fixture(
    scope="module",
    # Not August's by hand: its own endpoint receives for ever on a closed socket, and nothing that is copied with the
    # manager alone ends that.
    params=[("incident", False), ("first_fix", False), ("august", True), ("incident", True)],
    ids=str,
)
def backend(
    request: pytest.FixtureRequest, postgres: servers.Postgres, redis_server: servers.Redis
) -> t.Iterator[Backend]:
    release, installed = request.param
    # With REDIS_URL set the August release cannot start: a defect that is not this file's.
    redis_url = None if release == "august" else redis_server.url
    with socket_server(release, postgres, redis_url, installed=installed) as server:
        server.installed = installed  # type: ignore[attr-defined]  # a note for the tests below
        yield server


def socket_server(
    release: str, postgres: servers.Postgres, redis_url: t.Optional[str], *, installed: bool
) -> contextlib.AbstractContextManager[Backend]:
    patched = [
        *(INSTALLED if installed else ALONE),
        *(["services/tts", "wheels_ops"] if release == "august" else []),
    ]  # its speech service cannot be imported
    return running_backend(
        release,
        postgres.database(supabase=True),
        redis_url,
        patched=patched,
        install_block=installed,
        WEBSOCKET_HEARTBEAT_INTERVAL="0.4",
        WEBSOCKET_MAX_MISSED_PINGS="5",
        ENABLE_SECURITY_MONITORING="false",
    )


def receive(websocket: t.Any, kind: str) -> t.Dict[str, t.Any]:
    while True:
        message = json.loads(websocket.recv(timeout=15))
        if message["type"] == "ping":
            websocket.send('{"type":"pong"}')
        if message["type"] == kind:
            return t.cast(t.Dict[str, t.Any], message)


def readable(backend: Backend) -> str:
    """Both logs, with their pictographs also where the release's own JSON has them as escapes."""
    text = backend.logged() + (backend.app_log.read_text() if backend.app_log.exists() else "")
    escapes = r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})"
    return re.sub(escapes, lambda match: bytes.fromhex(match[1] + match[2]).decode("utf-16-be"), text)


def test_august_by_hand_converses_and_beats(postgres: servers.Postgres) -> None:
    with socket_server("august", postgres, None, installed=False) as server:
        converse(server)


def test_conversation_and_heartbeat(backend: Backend) -> None:
    converse(backend)


def converse(backend: Backend) -> None:
    with connect(backend.websocket_url("ann")) as websocket:
        receive(websocket, "connection")
        websocket.send('{"type":"chat","message":"hello"}')
        assert "hello" in json.dumps(receive(websocket, "chat_response"))
        for _ in range(3):
            ping = receive(websocket, "ping")
            assert isinstance(ping["timestamp"], float) and ping["connection_id"]
        websocket.send('{"type":"ping"}')
        assert receive(websocket, "pong")


def test_a_silent_peer_is_closed(backend: Backend) -> None:
    with connect(backend.websocket_url("ann")) as websocket, pytest.raises(ConnectionClosed) as closed:
        while True:
            websocket.recv(timeout=15)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
    wait_until(lambda: "🔌" in readable(backend))


def test_resume(backend: Backend) -> None:
    with connect(backend.websocket_url("ann") + "&session=") as websocket:
        if not backend.installed:  # type: ignore[attr-defined]  # see the fixture
            assert "_seq" not in receive(websocket, "connection"), "the sessions come with app/wheels_ops"
            return
        session = receive(websocket, "session")["session"]
        assert receive(websocket, "connection")["_seq"] == 1
    with connect(backend.websocket_url("ann") + f"&session={session}&last_seq=0") as websocket:
        assert receive(websocket, "session")["session"] == session
        assert [receive(websocket, "connection")["_seq"] for _ in range(2)] == [1, 2]
    assert "WebSocket: app/wheels_ops is not" not in backend.logged(), "nothing is left out"


def test_no_token_no_conversation(backend: Backend) -> None:
    with connect(backend.websocket_url("ann", "forged")) as websocket, pytest.raises(ConnectionClosed) as closed:
        websocket.recv(timeout=15)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4001


def test_origins(backend: Backend) -> None:
    """With the guard a page of a foreign origin gets no socket."""
    with connect(backend.websocket_url("ann"), origin=Origin("https://wheelsandwins.com")) as websocket:
        receive(websocket, "connection")
    installed = backend.installed  # type: ignore[attr-defined]  # see the fixture
    expected = pytest.raises(InvalidStatus) if installed else contextlib.nullcontext()
    with expected, connect(backend.websocket_url("ann"), origin=Origin("https://evil.example")) as websocket:
        receive(websocket, "connection")


def test_long_poll(backend: Backend) -> None:
    if not backend.installed:  # type: ignore[attr-defined]  # see the fixture
        assert backend.request("GET", "/api/v1/pam/poll").status in (404, 405)  # the poll is part of the guard
        return
    token = backend.jwt("ann")
    page = backend.request("GET", f"/api/v1/pam/poll?user_id=ann&token={token}").json()
    assert [message["type"] for message in page["messages"]] == ["connection"]
    answer = backend.request(
        "POST", f"/api/v1/pam/poll?session={page['session']}", body={"type": "chat", "message": "by post"}
    )
    assert answer.status == 202
    later = backend.request("GET", f"/api/v1/pam/poll?session={page['session']}&last_seq={page['seq']}").json()
    assert "by post" in json.dumps(later["messages"])
    assert backend.request("GET", "/api/v1/pam/poll?user_id=ann&token=forged").status == 401


def test_no_log_has_a_token_a_session_or_a_message(backend: Backend) -> None:
    """uvicorn logs the address of every WebSocket and request, with a browser's token in it: the guard keeps that out.

    Without the guard only our own lines are in our hands.
    """
    installed = backend.installed  # type: ignore[attr-defined]  # see the fixture
    token = backend.jwt("ann", nonce="websocket")
    address = backend.websocket_url("ann", token)
    with connect(f"{address}&session=") as websocket:
        secrets = [receive(websocket, "session")["session"]] if installed else []
        websocket.send('{"type":"chat","message":"private words"}')
        receive(websocket, "chat_response")
    forged = token[:-6] + "forged"
    with connect(backend.websocket_url("ann", forged)) as websocket, pytest.raises(ConnectionClosed):
        websocket.recv(timeout=15)
    if installed:
        with pytest.raises(InvalidStatus), connect(address, origin=Origin("https://evil.example")):
            pass
        page = backend.request("GET", f"/api/v1/pam/poll?user_id=ann&token={token}").json()
        secrets.append(page["session"])
        backend.request(
            "POST", f"/api/v1/pam/poll?session={page['session']}", body={"type": "chat", "message": "private words"}
        )
        backend.request("GET", f"/api/v1/pam/poll?user_id=ann&token={forged}")
        wait_until(lambda: "POST /api/v1/pam/poll" in backend.logged())
    text = readable(backend)
    if installed:
        assert "token=***" in text and "session=***" in text, "the lines are there, without the secrets"
    else:
        text = "\n".join(line for line in text.splitlines() if "app.core.websocket_manager" in line)
        assert "🔗" in text
    for secret in (token.rpartition(".")[2], forged.split(".")[1], *secrets, "private words"):
        assert secret not in text
