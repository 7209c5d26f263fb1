# SPDX-License-Identifier: GPL-3.0-or-later
"""The CORS file in each release of the stand-in backend, with its own middlewares inside."""

from __future__ import annotations

import subprocess
import typing as t

import pytest

from tests.backend.materialise import RELEASES
from tests.support import servers
from tests.support.backend_env import PATCHES, Backend, DidNotStart, running_backend

OWN, STAGING, FOREIGN = (
    "https://www.wheelsandwins.com",
    "https://wheels-wins-staging.netlify.app",
    "https://evil.example",
)
PATCHED = ("core/cors_config.py", "wheels_ops")

OPS_TOKEN = "t0ken-of-the-operators"


@pytest.fixture(scope="module", params=sorted(RELEASES))
def backend(
    request: pytest.FixtureRequest, postgres: servers.Postgres, redis_server: servers.Redis
) -> t.Iterator[Backend]:
    def guard(directory: t.Any) -> None:
        """The August release does not start with its own speech service; that is another file's matter."""
        path = directory / "app/services/tts/tts_service.py"
        if request.param == "august":
            path.write_text(
                path.read_text().replace(
                    "from .streaming_tts import streaming_tts_service\n", "streaming_tts_service = None\n"
                )
            )

    redis_url = (
        None if request.param == "august" else redis_server.url
    )  # with an address its own Redis code fails; another file's matter too
    with running_backend(
        str(request.param), postgres.database(), redis_url, patched=PATCHED, install_block=True, prepare=guard
    ) as running:
        yield running


def preflight(
    backend: Backend, origin: str, method: str = "POST", names: str = "apikey,authorization,content-type,x-client-info"
) -> t.Any:
    return backend.request(
        "OPTIONS",
        "/api/v1/pam/chat",
        headers={"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": names},
    )


def shared(headers: t.Mapping[str, str]) -> t.List[str]:
    return [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", [OWN, STAGING, "https://deploy-preview-12--wheels-wins-landing-page.netlify.app"])
def test_the_reports_preflights_are_answered_with_200(backend: Backend, origin: str) -> None:
    answer = preflight(backend, origin)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
    assert answer.headers["vary"].startswith("Origin") and answer.headers["access-control-allow-credentials"] == "true"


def test_foreign_preflights_learn_nothing(backend: Backend) -> None:
    for answer in (
        preflight(backend, FOREIGN),
        preflight(backend, "null"),
        preflight(backend, OWN, "PURGE"),
        preflight(backend, OWN, names="x-evil"),
    ):
        assert answer.status == 403 and not shared(answer.headers)


def test_every_other_way_of_asking(backend: Backend) -> None:
    for method, path in (
        ("GET", "/health"),
        ("GET", "/does/not/exist"),
        ("OPTIONS", "/health"),
        ("GET", "/api/v1/pam/history"),
        ("GET", "/api/cors/debug"),
    ):
        own = backend.request(method, path, headers={"Origin": OWN})
        assert own.headers["access-control-allow-origin"] == OWN and "Origin" in own.headers["vary"], (method, path)
        foreign = backend.request(method, path, headers={"Origin": FOREIGN})
        assert foreign.status == own.status or method == "OPTIONS"
        assert not shared(foreign.headers) and "Origin" in foreign.headers["vary"], (method, path)
        nobody = backend.request(method, path)
        assert not shared(nobody.headers) and "Origin" in nobody.headers["vary"], (method, path)
        assert FOREIGN not in "".join(f"{name}{value}" for name, value in foreign.headers.items())


def test_the_routes_of_a_release_that_ask_the_policy_answer(backend: Backend) -> None:
    """The August release never imports the name that they use."""
    for path in ("/api/cors/debug", "/api/cors/stats"):
        answer = backend.request("GET", path, headers={"Origin": OWN})
        assert answer.status == (404 if backend.release == "incident" else 200), (path, answer.body)
    if backend.release != "incident":
        assert OWN in backend.request("GET", "/api/cors/debug").json()["origins"]


def test_the_log_is_found_by_the_reports_command(backend: Backend) -> None:
    preflight(backend, FOREIGN)
    done = subprocess.run(
        ["grep", "CORS\\|OPTIONS\\|preflight", str(backend.log), str(backend.app_log)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CORS preflight denied" in done.stdout and "evil.example" in done.stdout


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_a_bad_origin_stops_the_start_of_every_release(
    release: str, postgres: servers.Postgres, redis_server: servers.Redis
) -> None:
    with (
        pytest.raises(DidNotStart) as caught,
        running_backend(
            release,
            postgres.database(),
            redis_server.url,
            patched=[*PATCHED, "services"],
            install_block=True,
            ADDITIONAL_CORS_ORIGINS="*",
        ),
    ):
        pass
    assert 'ADDITIONAL_CORS_ORIGINS: origin "*" has a wildcard' in str(caught.value)


def test_only_operators_see_why_an_origin_was_refused(postgres: servers.Postgres, redis_server: servers.Redis) -> None:
    everything = sorted(path.name for path in PATCHES.iterdir() if path.name != "__pycache__")
    with running_backend(
        "first_fix",
        postgres.database(),
        redis_server.url,
        patched=everything,
        install_block=True,
        WHEELS_OPS_TOKEN=OPS_TOKEN,
    ) as backend:
        preflight(backend, "http://www.wheelsandwins.com")
        refused = backend.request("GET", "/api/v1/system/admin/debug")
        assert refused.status in (401, 403) and b"wheelsandwins" not in refused.body
        found = backend.request("GET", "/api/v1/system/admin/debug", headers={"X-Ops-Token": OPS_TOKEN}).json()["cors"]
        assert found["counters"]["preflight_denied_origin"] >= 1
        assert {entry["origin"]: entry["why"] for entry in found["denied_origins"]}[
            "http://www.wheelsandwins.com"
        ].startswith("the host is listed")
