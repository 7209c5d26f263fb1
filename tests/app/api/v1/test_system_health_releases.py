# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched files in the three releases of the backend: started, asked, stopped; the callers of each find what they
look for.
"""

from __future__ import annotations

import re

import pytest

from tests.support import servers
from tests.support.backend_env import Backend, running_backend
from tests.support.health_app import REPORT_FILES, TOKEN
from tests.support.waiting import wait_until

RELEASES = ("incident", "first_fix", "august")
PREFIX = "/api/v1/system"
KEY = {"X-Ops-Token": TOKEN}
#: That release cannot be imported without them.
SPEECH = ("services/tts/tts_service.py", "services/tts/fallback_tts.py")


@pytest.fixture(scope="module")
def dsn(postgres: servers.Postgres) -> str:
    return postgres.database(supabase=True)


def needed(release: str) -> tuple[str, ...]:
    return (*REPORT_FILES, *(SPEECH if release == "august" else ()))


def details(backend: Backend) -> dict[str, object]:
    found = backend.request("GET", f"{PREFIX}/health", headers=KEY).json()
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_serves_and_measures_in_every_release(release: str, dsn: str, redis_server: servers.Redis) -> None:
    """The broken database of the incident is seen as it is: recursive policies, missing tables."""
    url = None if release == "august" else redis_server.url  # with REDIS_URL set that release's own cache cannot start
    patched = (*needed(release), "wheels_ops", *(["services/cache_service.py"] if url else []))
    with running_backend(release, dsn, url, patched=patched, install_block=True, WHEELS_OPS_TOKEN=TOKEN) as backend:
        answer = backend.request("GET", f"{PREFIX}/health")
        assert answer.status == 503 and answer.json()["overall_status"] == "critical"
        wait_until(lambda: details(backend)["checks"]["database:policies"][0]["status"] == "fail", timeout=30)  # type: ignore[index]  # JSON
        found = details(backend)
        assert "recursion" in str(found["checks"]["database:policies"][0]["output"])  # type: ignore[index]  # JSON
        assert "affiliate_sales" in str(found["checks"]["database:tables"][0]["output"])  # type: ignore[index]  # JSON
        assert backend.request("GET", "/livez").status == 200 and backend.request("GET", "/readyz").status == 200
        assert backend.request("POST", f"{PREFIX}/memory/optimize").status == 401
        done = backend.request("POST", f"{PREFIX}/memory/optimize", headers=KEY)
        assert done.status == 200 and done.json()["rss_after"] > 0
        for path in (
            "performance/report?hours=6",
            "monitoring/status",
            "recovery/history",
            "logs/health",
            "admin/debug",
            "dashboard",
            "metrics",
        ):
            assert backend.request("GET", f"{PREFIX}/{path}", headers=KEY).status == 200, path
        services = backend.request("GET", f"{PREFIX}/monitoring/status", headers=KEY).json()["services"]
        debug = backend.request("GET", f"{PREFIX}/admin/debug", headers=KEY).json()["monitoring_services"]
        assert services["cache_service"]["initialized"] is debug["cache_service_connected"] is bool(url)
        memory = backend.request("GET", "/api/memory")
        assert memory.status == 200 and memory.json()["system"]["total_mb"] > 0
        routes = details(backend)["system_metrics"]["performance"]["current_metrics"]  # type: ignore[index]  # JSON
        assert "memory_percent" in routes
        written = backend.logged() + (backend.app_log.read_text() if backend.app_log.exists() else "")
        assert re.search("🧹|📊", written) and "recursion" in written
        pid = backend.pid
        assert backend.stop() in (0, -15) and pid
        assert "Traceback" not in backend.logged().split("wheels.ops", 1)[-1] or release != "incident"


# August cannot be imported without our speech service.
@pytest.mark.parametrize(
    ("release", "speech"),
    [(release, speech) for release in RELEASES for speech in (True, False) if speech or release != "august"],
)
def test_only_the_files_that_the_report_names(
    release: str, speech: bool, dsn: str, redis_server: servers.Redis
) -> None:
    """Copied by hand, without wiring and helpers: the release starts, and its own callers of these modules work."""
    files = (
        *REPORT_FILES,
        "services/cache_service.py",
        "core/websocket_manager.py",
        "core/cors_config.py",
        *(SPEECH if speech else ()),
    )
    with running_backend(release, dsn, redis_server.url, patched=files, seed=False) as backend:
        assert backend.request("GET", "/health").status == 200
        memory = backend.request("GET", "/api/memory")
        assert memory.status == 200 and memory.json()["system"]["total_mb"] > 0
        status = backend.request("GET", "/api/v1/tts/status").json()
        assert not speech or {"status", "initialized", "is_initialized", "engines", "service_status"} <= set(status)
        assert "Traceback" not in backend.logged()
        if release != "august":
            answer = backend.request("POST", "/api/memory/optimize")
            assert answer.status in (200, 403), answer.body  # the first fix's CSRF layer refuses every POST
