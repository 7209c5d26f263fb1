# SPDX-License-Identifier: GPL-3.0-or-later
"""Our files drop into each release: it starts, answers, and what was broken in it works."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.backend import database
from tests.backend.materialise import RELEASES, materialise
from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON, PATCHES, Backend, environment, patch_request, running_backend
from tests.support.waiting import wait_until
from wheels_ops.checks import websocket
from wheels_ops.checks.context import HostContext, Options
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments

ANNA = database.USERS["anna"]
EVERYTHING = tuple(sorted(path.name for path in PATCHES.iterdir() if path.name != "__pycache__"))

#: What a release's start leaves with the process: the optimizer is started before that in two releases, after it in the
#: third.
LEFT_MB = 200


@pytest.fixture(scope="module", params=sorted(RELEASES))
def patched(
    request: pytest.FixtureRequest, postgres: servers.Postgres, redis_server: servers.Redis
) -> t.Iterator[Backend]:
    release = str(request.param)
    with running_backend(
        release, postgres.database(), redis_server.url, patched=EVERYTHING, install_block=True, LEAK_MB=str(LEFT_MB)
    ) as backend:
        yield backend


def test_august_starts_with_our_speech_service_alone(postgres: servers.Postgres, redis: servers.Redis) -> None:
    with running_backend("august", postgres.database(), redis.url, patched=["services/tts", "wheels_ops"]) as backend:
        assert backend.request("GET", "/health").json()["service"] == "wheels-wins-pam-api"
        status = backend.request("GET", "/api/v1/tts/status").json()
        assert {"status", "initialized", "is_initialized", "engines", "service_status"} <= set(status)


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_a_release_is_imported_with_the_patches_before_one_of_them_is_installed(release: str, tmp_path: Path) -> None:
    """August only inside a running event loop, as its server imports it."""
    root, state = materialise(release, tmp_path / "pam"), str(tmp_path / "state")
    deployments.begin(state, "one", holder="me")
    variables = environment(root, database_url="postgresql://nobody@127.0.0.1:1/none", redis_url=None, port=1)
    proof = backend_patch.Proof(str(BACKEND_PYTHON), "app.main", variables)
    result = backend_patch.install(state, "one", patch_request(root), proof, check_mode=False)
    assert (result.extra["proof"]["imported"], result.warnings) == ("app.main", [])


def test_a_patched_release_answers(patched: Backend) -> None:
    assert patched.request("GET", "/health").status == 200
    assert patched.request("GET", "/livez").status == 200
    assert "cannot be imported, its part is left out" not in patched.logged()
    assert "Traceback" not in patched.logged()


def test_a_patched_release_lets_its_front_ends_in_and_nobody_else(patched: Backend) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "apikey,authorization,x-client-info",
    }
    answer = patched.request(
        "OPTIONS", "/api/v1/pam/chat", headers={"Origin": "https://www.wheelsandwins.com", **asked}
    )
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://www.wheelsandwins.com")
    refused = patched.request("OPTIONS", "/api/v1/pam/chat", headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers


def test_the_callers_of_a_patched_release_find_what_they_call(patched: Backend) -> None:
    cache = patched.request("GET", "/health/services").json()["cache"]
    assert cache["status"] == "healthy"
    for name in ("clear_expired", "get_stats", "delete_pattern", "allowed_origins", "websocket_manager"):
        assert f"has no attribute '{name}'" not in patched.logged()
    assert patched.request("GET", "/api/memory").status == 200
    assert patched.request("GET", "/api/v1/voice/health").status == 200
    assert patched.request("GET", "/api/v1/tts/health").status == 200


def test_a_socket_is_found_measured_and_its_end_stops_nobody(patched: Backend) -> None:
    """At the path that the release itself names, for the token's user; August's endpoint spins after a disconnect."""
    path = f"{websocket.PATHS[0]}?token={patched.jwt(ANNA)}"
    options = Options(base_url=patched.url, websocket_path=path)
    for _number in range(2):
        measured = websocket.measure(HostContext((), options.open_manager), options)
        assert (measured.status, measured.details["url"].partition("?")[0]) == (
            "ok",
            patched.websocket_url(ANNA).partition("?")[0],
        )
    assert patched.request("GET", "/health", timeout=20).status == 200
    spun = "kept receiving after the socket was closed" in patched.logged()
    assert spun == (patched.release == "august")


def test_browsers_and_polls_have_one_address_for_every_release(patched: Backend) -> None:
    token = patched.jwt(ANNA)
    with connect(f"ws://127.0.0.1:{patched.port}/api/v1/pam/ws/{ANNA}?token={token}") as socket:
        assert json.loads(socket.recv(timeout=20))["type"] in ("connection", "session")
    answer = patched.request("GET", f"/api/v1/pam/poll?user_id={ANNA}&token={token}")
    assert answer.status == 200 and answer.json()["session"]


def test_what_the_start_of_a_patched_release_left_behind_is_given_back(patched: Backend) -> None:
    wait_until(lambda: patched.rss_mb() < LEFT_MB, timeout=60, what="a trim")
    wait_until(lambda: "Memory standard clean-up (routine)" in patched.logged(), what="its line in the log")
