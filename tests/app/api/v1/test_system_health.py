# SPDX-License-Identifier: GPL-3.0-or-later
"""The API from outside: who may do what, what anonymous callers see, the keys that callers read."""

from __future__ import annotations

import json
import re
import socket
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import psutil
import pytest

from tests.support import servers
from tests.support.backend_env import BACKEND_PYTHON, REPOSITORY
from tests.support.health_app import OTHER_TOKEN, REPORT_FILES, TOKEN, HealthApp, health_app
from tests.support.waiting import wait_until

PREFIX = "/api/v1/system"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "CONNECT", "PROPFIND", "get", "X-ANY")
PATHS = (
    "/health",
    "/performance/report",
    "/memory/optimize",
    "/cache/clear",
    "/monitoring/status",
    "/monitoring/start",
    "/monitoring/stop",
    "/recovery/history",
    "/recovery/trigger",
    "/logs/health",
    "/admin/debug",
    "/metrics",
    "/dashboard",
    "/dashboard/login",
    "/dashboard/logout",
)
#: (method, path) that answers anonymous callers; everything else is privileged.
OPEN = {
    ("GET", f"{PREFIX}/health"),
    ("HEAD", f"{PREFIX}/health"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("HEAD", "/livez"),
    ("HEAD", "/readyz"),
    ("GET", f"{PREFIX}/dashboard"),
    ("HEAD", f"{PREFIX}/dashboard"),
    ("POST", f"{PREFIX}/dashboard/logout"),  # takes the caller's own cookie away, nothing else
}
HEALTH_JSON: t.Dict[str, t.Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": {"enum": ["pass", "warn", "fail"]},
        "notes": {"type": "array", "items": {"type": "string"}},
        "output": {"type": "string"},
        "checks": {
            "type": "object",
            "minProperties": 3,
            "propertyNames": {"pattern": "^[A-Za-z_]+:[A-Za-z_]+$"},
            "additionalProperties": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["status"],
                    "properties": {
                        "status": {"enum": ["pass", "warn", "fail"]},
                        "componentType": {"enum": ["component", "datastore", "system"]},
                        "observedUnit": {"type": "string"},
                        "time": {
                            "type": "string",
                            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$",
                        },
                        "output": {"type": "string"},
                    },
                    "additionalProperties": False,
                    # ``since`` is ours: the draft allows further keys here (section 4.10).
                    "patternProperties": {"^(componentId|affectedEndpoints|links|observedValue|since)$": {}},
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def app() -> t.Iterator[HealthApp]:
    # The optimizer looks so seldom that it does nothing by itself between two requests of a test.
    with health_app(MEMORY_CHECK_INTERVAL="3600") as running:
        yield running


@pytest.fixture(scope="module")
def unlocked(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[HealthApp]:
    """Without any token configured."""
    with health_app(WHEELS_OPS_TOKEN="") as running:
        yield running


def raw(app: HealthApp, method: str, path: str, *headers: str) -> t.Tuple[int, bytes]:
    """A request as written, for methods and paths that a client library would refuse."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=20) as sock:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: close",
            "Content-Length: 0",
            *headers,
            "",
            "",
        ]
        sock.sendall("\r\n".join(lines).encode())
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    return int(data.split(None, 2)[1]), data.partition(b"\r\n\r\n")[2]


def test_the_route_table_has_no_privileged_route_without_the_token(app: HealthApp, unlocked: HealthApp) -> None:
    """H3: every path, every method, no token, a wrong one, an empty one, a user's JWT; with none configured as well."""
    strangers: t.List[t.Tuple[str, ...]] = [
        (),
        ("X-Ops-Token: wrong",),
        ("X-Ops-Token: ",),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.x",),
        ("Authorization: Basic Zmlyc3Q6",),
        ("Cookie: wheels_ops_session=9999999999.00.00",),
        ("X-Forwarded-For: 127.0.0.1",),
    ]
    tried = 0
    for one in (app, unlocked):
        for path in [*(PREFIX + path for path in PATHS), "/livez", "/readyz", "/metrics"]:
            for method in METHODS:
                for variant in (path, path + "/", path + "?force_aggressive=true"):
                    if (method, path) in OPEN:
                        continue  # what they show is the subject of the tests below
                    for headers in strangers if variant == path else strangers[:1]:
                        status, body = raw(one, method, variant, *headers)
                        tried += 1
                        assert status in (400, 401, 403, 404, 405, 429), (method, variant, headers, status, body[:200])
    assert tried > 1500


SPELLINGS = (
    "/api/v1/system/../system/admin/debug",
    "//api/v1/system/admin/debug",
    "/api/v1/system//admin/debug",
    "/api/v1/SYSTEM/admin/debug",
    "/api/v1/system/admin/debug%20",
    "/api/v1/system/admin%2fdebug",
    "/api/v1/system/admin/debug;x",
)


@pytest.mark.parametrize("path", SPELLINGS)
def test_other_spellings_of_a_path_are_no_way_in(app: HealthApp, path: str) -> None:
    status, body = raw(app, "GET", path)
    assert status in (400, 401, 404, 429), body


@pytest.mark.parametrize("token", [TOKEN, OTHER_TOKEN])
def test_every_configured_token_opens(app: HealthApp, token: str) -> None:
    assert app.request("GET", f"{PREFIX}/monitoring/status", token=token).status == 200
    assert app.request("GET", f"{PREFIX}/monitoring/status", Authorization=f"Bearer {token}").status == 200
    assert app.request("GET", f"{PREFIX}/monitoring/status", token=token + "x").status in (401, 429)
    assert app.request("GET", f"{PREFIX}/monitoring/status", token=token[:-1]).status in (401, 429)


def test_without_a_token_configured_it_refuses_and_says_why(unlocked: HealthApp) -> None:
    for method, path in (
        ("POST", "/memory/optimize"),
        ("POST", "/monitoring/stop"),
        ("GET", "/admin/debug"),
        ("POST", "/recovery/trigger"),
    ):
        answer = unlocked.request(method, PREFIX + path, token="anything")
        assert answer.status == 403 and "WHEELS_OPS_TOKEN" in answer.json()["detail"]
    assert unlocked.request("GET", f"{PREFIX}/health").status == 200
    page = unlocked.request("GET", f"{PREFIX}/dashboard")
    assert page.status == 403 and b"WHEELS_OPS_TOKEN" in page.body


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# rotated every quarter\n\n  old-token-of-the-file \n")
    with health_app(WHEELS_OPS_TOKEN="", WHEELS_OPS_TOKEN_FILE=str(path)) as app:
        assert app.request("GET", f"{PREFIX}/monitoring/status", token="old-token-of-the-file").status == 200
        path.write_text("new-token-of-the-file\n")
        wait_until(
            lambda: app.request("GET", f"{PREFIX}/monitoring/status", token="new-token-of-the-file").status == 200
        )
        wait_until(
            lambda: app.request("GET", f"{PREFIX}/monitoring/status", token="old-token-of-the-file").status == 401
        )
        path.unlink()
        wait_until(
            lambda: app.request("GET", f"{PREFIX}/monitoring/status", token="new-token-of-the-file").status == 403
        )


def test_anonymous_callers_get_statuses_and_nothing_else(app: HealthApp) -> None:
    """H4: no version, path, process, host, user, address, number of a measurement."""
    answer = app.request("GET", f"{PREFIX}/health")
    document = answer.json()
    assert set(document) >= {
        "timestamp",
        "overall_status",
        "status_message",
        "system_metrics",
        "alerts_summary",
        "status",
        "checks",
    }
    assert document["overall_status"] in ("healthy", "warning", "critical")
    assert set(document["alerts_summary"]) == {"total_alerts", "critical_alerts", "warning_alerts", "active_alerts"}
    for entry in document["checks"].values():
        assert set(entry[0]) == {"status"}
    text = re.sub(r'"timestamp":"[^"]*"', "", answer.body.decode())
    for pattern in (
        r"\d+\.\d+\.\d+",
        r"/(var|tmp|home|root|usr|etc|proc|work)\b",
        r"\bpid\b",
        re.escape(socket.gethostname()),
        r"python|uvicorn|fastapi|linux|redis_version",
        r"[0-9a-f]{8}-[0-9a-f]{4}",
        r"postgres(ql)?://",
        r"\b127\.",
        r"Traceback|Error\b",
        r"\d+\.\d+",
    ):
        assert not re.search(pattern, text, re.I), pattern
    for name in ("server", "x-powered-by"):
        assert "python" not in answer.headers.get(name, "").lower()


@pytest.mark.parametrize("token", ["", TOKEN])
def test_health_validates_as_health_json(app: HealthApp, token: str) -> None:
    """H5."""
    answer = app.request("GET", f"{PREFIX}/health", token=token)
    assert answer.headers["content-type"] == "application/health+json"
    assert answer.headers["cache-control"] == ("no-store" if token else "max-age=1")
    jsonschema.validate(answer.json(), HEALTH_JSON)


def test_details_keep_the_keys_of_the_first_version(app: HealthApp) -> None:
    document = app.health()
    assert set(document["system_metrics"]) == {"performance", "memory", "cache"}
    assert document["system_metrics"]["performance"]["monitoring_active"] is True
    assert document["system_metrics"]["memory"]["system"]["total_mb"] > 0
    assert set(document["scores"]) == {"overall", "performance", "stability", "user_experience"}


@pytest.mark.parametrize(
    ("method", "path", "keys"),
    [
        (
            "GET",
            "/performance/report?hours=6",
            {"report_period_hours", "generated_at", "metrics_summary", "alert_summary", "recommendations"},
        ),
        ("GET", "/performance/report?days=30", {"report_period_hours", "metrics_summary"}),
        ("POST", "/memory/optimize", {"message", "type", "started_at", "rss_before", "rss_after", "freed_bytes"}),
        (
            "POST",
            "/memory/optimize?force_aggressive=true",
            {"message", "type", "started_at", "rss_before", "rss_after", "freed_bytes"},
        ),
        ("GET", "/monitoring/status", {"timestamp", "services"}),
        ("GET", "/recovery/history?limit=5", {"message", "note", "limit", "timestamp", "history"}),
        ("POST", "/recovery/trigger", {"message", "started_at", "note"}),
        ("GET", "/logs/health", {"timestamp", "healthy", "issues", "log_info", "recommendations"}),
        ("GET", "/admin/debug", {"timestamp", "system", "process", "network", "monitoring_services"}),
        ("POST", "/cache/clear?cache_type=memory", {"message", "cleared_caches", "started_at"}),
    ],
)
def test_endpoints_answer_with_their_keys(app: HealthApp, method: str, path: str, keys: t.Set[str]) -> None:
    answer = app.request(method, PREFIX + path, token=TOKEN)
    assert answer.status == 200, answer.body
    assert set(answer.json()) >= keys
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/performance/report?hours=0", "Hours must be between 1 and 24"),
        ("/performance/report?hours=25", "Hours must be between 1 and 24"),
        ("/performance/report?hours=abc", "Hours must be between 1 and 24"),
        ("/performance/report?days=99", "Days must be between 1 and 35"),
        ("/performance/report?days=x", "Days must be between 1 and 35"),
        ("/performance/report?hours=", "Hours must be between 1 and 24"),
        ("/performance/report?hours=1_0", "Hours must be between 1 and 24"),
        ("/recovery/history?limit=x", "limit must be a number between 1 and 500"),
        ("/recovery/history?limit=0", "limit must be a number between 1 and 500"),
        ("/health?" + "a&" * 30, "Too many query parameters"),
    ],
)
def test_wrong_arguments_are_refused(app: HealthApp, path: str, detail: str) -> None:
    answer = app.request("GET", PREFIX + path, token=TOKEN)
    assert (answer.status, answer.json()) == (400, {"detail": detail})


def test_an_unknown_cache_is_refused_and_an_absent_redis_is_said(app: HealthApp) -> None:
    assert app.request("POST", f"{PREFIX}/cache/clear?cache_type=everything", token=TOKEN).status == 400
    unclear = app.request("POST", f"{PREFIX}/memory/optimize?force_aggressive=perhaps", token=TOKEN)
    assert (unclear.status, unclear.json()) == (400, {"detail": "force_aggressive must be true or false"})
    answer = app.request("POST", f"{PREFIX}/cache/clear?cache_type=redis", token=TOKEN)
    assert (
        answer.status == 503 and answer.json()["failed_caches"] == ["redis"] and answer.json()["cleared_caches"] == []
    )


def test_logs_health_looks_where_the_operator_says_and_never_calls_the_unread_healthy(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("a line\n")
    with health_app(LOG_DIRS=str(tmp_path)) as app:
        found = app.request("GET", f"{PREFIX}/logs/health", token=TOKEN).json()
        assert (found["healthy"], found["issues"]) == (True, [])
        assert [entry["path"] for entry in found["log_info"]["log_files"]] == [str(tmp_path / "app.log")]
        with open(tmp_path / "access.log", "wb") as large:
            large.truncate(51_000_000)
        found = app.request("GET", f"{PREFIX}/logs/health", token=TOKEN).json()
        assert found["healthy"] is False and [entry["path"] for entry in found["log_info"]["large_files"]] == [
            str(tmp_path / "access.log")
        ]
    with health_app(LOG_DIRS=f"{tmp_path / 'absent'}:{tmp_path / 'app.log'}") as app:
        found = app.request("GET", f"{PREFIX}/logs/health", token=TOKEN).json()
        assert found["healthy"] is False
        assert found["issues"] == [f"{tmp_path / 'absent'} cannot be read", f"{tmp_path / 'app.log'} cannot be read"]


def test_memory_optimize_really_frees(app: HealthApp) -> None:
    """200 MB that glibc holds on to come back, which the kernel says as well as the answer."""
    process = psutil.Process(app.process.pid)
    started = process.memory_info().rss
    app.request("GET", "/fault/fragment?mb=200")
    held = process.memory_info().rss
    wasted = held - started
    assert wasted > 150_000_000, "glibc gave it back by itself: there is nothing to show"
    found = app.request("POST", f"{PREFIX}/memory/optimize", token=TOKEN).json()
    assert held - process.memory_info().rss > 0.8 * wasted
    assert found["freed_bytes"] == found["rss_before"] - found["rss_after"] > 0.8 * wasted
    assert found["trimmed"] is True and found["predicted_bytes"] > 0.8 * found["freed_bytes"]
    assert "🧹" in app.logged()


def test_monitoring_stops_and_starts(app: HealthApp) -> None:
    stopped = app.request("POST", f"{PREFIX}/monitoring/stop", token=TOKEN).json()
    assert stopped["results"]["performance_monitor"] == "stopped" and "stopped_at" in stopped
    health = app.request("GET", f"{PREFIX}/health").json()
    assert health["overall_status"] == "warning", "what nobody measures is not shown as healthy"
    started = app.request("POST", f"{PREFIX}/monitoring/start", token=TOKEN).json()
    assert (
        started["results"]["performance_monitor"] == "started" and started["results"]["memory_optimizer"] == "started"
    )
    assert (
        app.request("GET", f"{PREFIX}/monitoring/status", token=TOKEN).json()["services"]["performance_monitor"][
            "active"
        ]
        is True
    )


def test_recovery_is_handed_to_the_host_and_its_history_shown(tmp_path: Path) -> None:
    with health_app(state=tmp_path) as app:
        with ThreadPoolExecutor(4) as pool:  # also at the same time
            work = [
                pool.submit(
                    app.request, "POST", f"{PREFIX}/recovery/trigger", token=TOKEN, Idempotency_Key="night-shift-1"
                )
                for _ in range(4)
            ]
        answer, *others = (one.result().json() for one in work)
        assert others == [answer] * 3
        (path,) = (tmp_path / "requests").glob("*.json")
        request = json.loads(path.read_text())
        assert request["id"] == answer["request_id"] == path.stem
        assert (
            request["kind"] == "recover"
            and request["requested_by"].startswith("token ")
            and TOKEN not in path.read_text()
        )
        (tmp_path / "history.jsonl").mkdir()  # nothing that can be read, also not by root
        assert (
            "cannot read the host's history"
            in app.request("GET", f"{PREFIX}/recovery/history", token=TOKEN).json()["note"]
        )
        (tmp_path / "history.jsonl").rmdir()
        assert (
            "has not written anything yet"
            in app.request("GET", f"{PREFIX}/recovery/history", token=TOKEN).json()["note"]
        )
        entries = [
            {"time": f"2026-01-01T00:00:{second:02}Z", "action": "memory_trim", "outcome": "ok"} for second in range(60)
        ]
        lines = [json.dumps(entry) for entry in entries]
        (tmp_path / "history.jsonl").write_text("\n".join([*lines[:30], "{broken", "[]", *lines[30:]]) + "\n")
        history = app.request("GET", f"{PREFIX}/recovery/history?limit=40", token=TOKEN).json()["history"]
        assert history == list(reversed(entries))[:40]
        for number in range(30):
            (tmp_path / "requests" / f"filler{number}.json").write_text("{}")
        refused = app.request("POST", f"{PREFIX}/recovery/trigger", token=TOKEN)
        assert refused.status == 503 and len(list((tmp_path / "requests").glob("*.json"))) == 31
        logged = app.logged()
        assert "audit: POST /api/v1/system/recovery/trigger by token" in logged and TOKEN not in logged


def test_actions_and_failed_tries_are_rate_limited() -> None:
    with health_app() as app:
        statuses = [app.request("POST", f"{PREFIX}/memory/optimize", token=TOKEN).status for _ in range(12)]
        assert statuses.count(200) == 5 and set(statuses) == {200, 429}
        limited = app.request("POST", f"{PREFIX}/memory/optimize", token=TOKEN)
        assert int(limited.headers["retry-after"]) >= 1
        wrong = [app.request("GET", f"{PREFIX}/admin/debug", token="guess").status for _ in range(30)]
        assert wrong[:20] == [401] * 20 and 429 in wrong
        assert app.request("GET", f"{PREFIX}/monitoring/status", token=TOKEN).status == 200, (
            "the right token is never locked out"
        )


def test_a_busy_processor_is_a_warning_and_takes_no_server_out() -> None:
    """Whatever its critical limit: a load balancer that asks would take a host out that works hard for its users."""
    with health_app(CPU_WARNING_THRESHOLD="0", CPU_CRITICAL_THRESHOLD="0", MONITORING_INTERVAL="0.2") as app:

        def state() -> t.Any:
            checks = app.request("GET", f"{PREFIX}/health", token=TOKEN).json()["checks"]
            return checks.get("cpu:utilization", [{"status": "pass"}])[0]["status"]

        wait_until(lambda: state() != "pass", what="the alert")
        assert state() == "warn"
        answer = app.request("GET", f"{PREFIX}/health", token=TOKEN)
        assert answer.status == 200 and "broken" not in answer.json()["status_message"]


def test_no_exception_text_leaves(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").mkdir()
    with health_app(state=tmp_path) as app:
        assert app.request("GET", f"{PREFIX}/recovery/history", token=TOKEN).json()["history"] == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    with health_app(state=blocked) as app:
        answer = app.request("POST", f"{PREFIX}/recovery/trigger", token=TOKEN)
        assert answer.status == 503 and str(blocked) not in answer.body.decode() and "Errno" not in answer.body.decode()
        report = app.request("GET", f"{PREFIX}/performance/report", token=TOKEN)
        assert report.status == 200 and report.json()["source"] == "memory"
        assert app.request("GET", f"{PREFIX}/health").status == 200


def test_metrics_are_what_prometheus_reads(app: HealthApp) -> None:
    import subprocess

    for _ in range(5):
        app.request("GET", "/items/7")
    assert app.request("GET", "/metrics").status == 401
    answer = app.request("GET", "/metrics", token=TOKEN)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    program = """
import sys, json
from prometheus_client.parser import text_string_to_metric_families
found = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        found[sample.name + json.dumps(sample.labels, sort_keys=True)] = sample.value
print(json.dumps(found))
"""
    text = subprocess.run(
        [str(BACKEND_PYTHON), "-c", program], input=answer.body, capture_output=True, check=True
    ).stdout
    found = json.loads(text)
    assert 0 < found["pam_memory_ratio{}"] < 1
    assert found["pam_process_memory_bytes{}"] > 20_000_000
    assert found['pam_request_duration_seconds_count{"method": "GET", "route": "/items/{item}"}'] >= 5
    assert found['pam_request_duration_seconds_bucket{"le": "+Inf", "method": "GET", "route": "/items/{item}"}'] >= 5
    assert found['pam_health_check{"check": "memory:utilization"}'] == 0


def test_the_applications_own_layers_do_not_refuse_it(app: HealthApp) -> None:
    """Its CSRF layer refuses every POST; ours lies outside it."""
    assert app.request("POST", "/items/1").status == 403
    assert app.request("POST", f"{PREFIX}/cache/clear?cache_type=memory", token=TOKEN).status in (200, 429)
    assert app.request("GET", f"{PREFIX}/nothing-of-ours").status == 404
    assert app.request("DELETE", f"{PREFIX}/health").headers["allow"] == "GET, HEAD, OPTIONS"


def test_options_says_what_a_path_offers_and_preflights_stay_with_the_cors_layer(app: HealthApp) -> None:
    """Neither needs the token: browsers never send one with a preflight."""
    plain = app.request("OPTIONS", f"{PREFIX}/memory/optimize")
    assert (plain.status, plain.headers["allow"], plain.body) == (200, "POST, OPTIONS", b"")
    assert (
        app.request("OPTIONS", f"{PREFIX}/health", Origin="https://wheelsandwins.com").headers["allow"]
        == "GET, HEAD, OPTIONS"
    )
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = app.request(
        "OPTIONS", f"{PREFIX}/memory/optimize", more={"Origin": "https://wheelsandwins.com", **asked}
    )
    assert preflight.status == 200 and preflight.headers["access-control-allow-origin"] == "https://wheelsandwins.com"
    foreign = app.request("OPTIONS", f"{PREFIX}/memory/optimize", more={"Origin": "https://evil.example", **asked})
    assert foreign.status != 200 and "access-control-allow-origin" not in foreign.headers


def test_what_is_checked_after_all_is_no_longer_noted_as_unchecked(redis_server: servers.Redis) -> None:
    """Celery beat may start after the backend."""
    quick = {"HEALTH_CHECK_INTERVAL": "0.2", "MONITORING_INTERVAL": "0.2"}
    with health_app(quick, REDIS_URL=redis_server.url, CELERY_BEAT_HEARTBEAT_KEY="of-this-test") as app:
        wait_until(lambda: any(note.startswith("celery:beat: ") for note in app.health()["notes"]), timeout=30)
        redis_server.cli("set", "of-this-test", str(time.time() + 60))
        wait_until(lambda: app.check("celery:beat") == "pass", timeout=30)
        assert not any(note.startswith("celery:beat: ") for note in app.health()["notes"])


def test_workers_of_which_none_lives_fail_the_health(redis_server: servers.Redis) -> None:
    """Also of a backend that starts after their end; a worker that cannot show a heartbeat is not called stopped."""
    quick = {"HEALTH_CHECK_INTERVAL": "0.2", "MONITORING_INTERVAL": "0.2"}

    def show(age: float, **facts: t.Any) -> None:
        redis_server.cli("set", "workers-of-this-test", json.dumps({"at": time.time() - age, **facts}))

    show(600)
    with health_app(quick, REDIS_URL=redis_server.url, CELERY_WORKERS_HEARTBEAT_KEY="workers-of-this-test") as app:
        wait_until(lambda: app.check("celery:workers") == "fail", timeout=30)
        show(-60)
        wait_until(lambda: app.check("celery:workers") == "pass", timeout=30)
        show(600, solo=True)
        wait_until(lambda: any(note.startswith("celery:workers: ") for note in app.health()["notes"]), timeout=30)


def test_only_the_files_of_the_report_through_the_router() -> None:
    """Copied by hand as the report says, mounted by ``include_router``: everything but what needs the other files."""
    with health_app(files=REPORT_FILES, ROUTER_ONLY="1") as app:
        wait_until(lambda: app.request("GET", f"{PREFIX}/health").status == 200)
        assert app.health()["system_metrics"]["performance"]["monitoring_active"], (
            "the router starts what it reads from"
        )
        running = app.request("GET", f"{PREFIX}/monitoring/status", token=TOKEN).json()["services"]
        assert running["performance_monitor"]["active"] and running["memory_optimizer"]["active"]
        assert app.request("GET", f"{PREFIX}/admin/debug").status == 401
        assert app.request("GET", f"{PREFIX}/admin/debug", token=TOKEN).status == 200
        assert app.request("GET", f"{PREFIX}/performance/report?hours=25", token=TOKEN).status == 400
        assert app.request("GET", f"{PREFIX}/dashboard", token=TOKEN).status == 503
        assert app.request("GET", "/livez").status == 404, "nothing is outside the router"
        assert app.request("HEAD", f"{PREFIX}/health").status == 200
        assert app.request("OPTIONS", f"{PREFIX}/health").headers["allow"] == "GET, HEAD, OPTIONS"
        assert app.request("PUT", f"{PREFIX}/health").status == 405
        assert app.request("GET", f"{PREFIX}/metrics", token=TOKEN).status == 503
        assert f"{PREFIX}/admin/debug" in app.request("GET", "/openapi.json").json()["paths"]
        wrong = [app.request("GET", f"{PREFIX}/admin/debug", token="guess").status for _ in range(30)]
        assert wrong[:18] == [401] * 18 and 429 in wrong, "failed tries are limited without the other files as well"


def test_the_documentation_names_every_route_as_it_is(app: HealthApp) -> None:
    """docs/health-api.md against the application's OpenAPI document: method, path, and whether the token is needed."""
    text = (REPOSITORY / "docs" / "health-api.md").read_text(encoding="utf-8")
    documented = [
        [method, path, needs == "yes"]
        for method, path, needs in re.findall(r"^\| (GET|POST) \| `([^`]+)` \| (yes|no|form) \|", text, re.M)
        if path.startswith(PREFIX)
    ]
    schema = app.request("GET", "/openapi.json").json()
    shown = [
        [method.upper(), path, {"APIKeyHeader": []} in operation.get("security", [])]
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if path.startswith(PREFIX)
    ]
    assert sorted(documented) == sorted(shown)
    assert {"name": "X-Ops-Token", "in": "header", "type": "apiKey"} in schema["components"]["securitySchemes"].values()
    report = {
        one["name"]: one["schema"] for one in schema["paths"][f"{PREFIX}/performance/report"]["get"]["parameters"]
    }
    assert (report["hours"]["minimum"], report["hours"]["maximum"], report["hours"]["default"]) == (1, 24, 1)
    assert "/items/{item}" in schema["paths"], "what the application documents itself stays"
    for path in ("/livez", "/readyz", "/metrics"):  # at the root of the server, outside of the application
        assert f"`{path}`" in text and app.request("GET", path, token=TOKEN).status == 200


@pytest.mark.parametrize("path", ["/readyz", f"{PREFIX}/health"])
def test_a_probe_is_answered_the_same_by_the_short_way_and_by_the_router(app: HealthApp, path: str) -> None:
    """An argument that nobody reads leads through the router."""

    def facts(answer: t.Any) -> t.Any:
        headers = {name: text for name, text in answer.headers.items() if name not in ("date", "content-length")}
        body = {name: value for name, value in answer.json().items() if name == "status"}
        return answer.status, headers, body

    assert facts(app.request("GET", path)) == facts(app.request("GET", path + "?since=1"))
    assert app.request("GET", path, token="wrong").status == 200


def test_head_has_no_body(app: HealthApp) -> None:
    status, body = raw(app, "HEAD", f"{PREFIX}/health")
    assert status == 200 and body == b""


def test_without_psutil_the_monitor_measures_and_the_rest_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise ImportError('not here')\n")
    with health_app(PYTHONPATH=str(tmp_path)) as app:
        document = app.health()
        assert (
            document["checks"]["memory:utilization"][0]["observedValue"] > 0
            and "error" in document["system_metrics"]["memory"]
        )
        debug = app.request("GET", f"{PREFIX}/admin/debug", token=TOKEN)
        assert debug.status == 200 and debug.json()["process"]["pid"] == app.process.pid
        assert {debug.json()[part]["error"] for part in ("system", "process", "network")} == {"psutil is not installed"}
        assert debug.json()["monitoring_services"]["performance_monitor_running"]


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_a_web_process_without_celery_slows_background_work_down(
    redis_server: servers.Redis, tmp_path: Path, wanted: str
) -> None:
    """Beat sees the processors of its own host; that the event loop of a web process is late is known only there."""
    (tmp_path / "celery.py").write_text("raise ImportError('not here')\n")
    redis_server.cli("DEL", "pam:throttle")
    with health_app(
        PYTHONPATH=str(tmp_path),
        REDIS_URL=redis_server.url,
        MONITORING_INTERVAL="0.5",
        LOOP_LAG_INTERVAL="0.1",
        CELERY_THROTTLE_FROM_WEB=wanted,
    ) as app:
        app.request("GET", "/fault/stall?seconds=1.5")
        if wanted == "false":
            wait_until(lambda: app.health()["checks"]["eventloop:lag"][0]["observedValue"] > 1000)
            assert not redis_server.cli("HGETALL", "pam:throttle")
            return

        def slowed_down() -> bool:
            # A single stall can fall between two samples of a busy machine.
            if redis_server.cli("HGET", "pam:throttle", "level") == "3":
                return True
            app.request("GET", "/fault/stall?seconds=1.5")
            return False

        wait_until(slowed_down, what="the load of the web process", timeout=60)
        assert redis_server.cli("HGET", "pam:throttle", "source") == "monitor"
        assert redis_server.cli("HGET", "pam:throttle", "writer") == f"{socket.gethostname()}:{app.process.pid}"
        assert redis_server.cli("GET", f"pam:throttle:observer:{socket.gethostname()}") == "monitor", (
            "beat on this host need not measure"
        )
        assert not redis_server.cli("GET", "pam:throttle:observer"), "beat on another one must"


@pytest.mark.parametrize(("interval", "timeout", "period"), [(5, 1, 5), (0.5, 4, 4)])
def test_a_sample_is_old_by_what_takes_longer_the_interval_or_the_answer(
    app: HealthApp, interval: float, timeout: float, period: float
) -> None:
    """What is waited for is no older than what was asked often; what nobody measures any more is not healthy."""
    program = f"""
import json
from app.api.v1 import system_health
from app.wheels_ops.health_checks import HealthChecks
checks = HealthChecks(system_health)
checks.checks[0].post("pass")
sample = checks.board.checks[checks.checks[0].name]
taken, found = sample.at, []
for seconds in ({2.5 * period}, {3.5 * period}, {12.5 * period}):
    sample.at = taken - seconds
    found.append(sample.current())
print(json.dumps(found))
"""
    done = app.tree.run(program, env={"HEALTH_CHECK_INTERVAL": str(interval), "HEALTH_CHECK_TIMEOUT": str(timeout)})
    assert json.loads(done.stdout.splitlines()[-1]) == ["pass", "warn", "fail"]
