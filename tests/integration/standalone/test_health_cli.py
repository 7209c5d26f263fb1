# SPDX-License-Identifier: GPL-3.0-or-later
"""``wheels-ops patch`` and ``wheels-ops health`` where there is no host: a backend that is built, started and measured
without a playbook.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support.backend_env import BACKEND_PYTHON, Backend, running_backend
from tests.support.servers import Postgres, Redis
from tests.support.waiting import free_port
from wheels_ops.health.subjects import NAMES

TOKEN = "ops-token-of-this-test-only"
PASSWORD = "correct-horse-battery"
NEEDS_HOST = {"memory", "cpu", "disk", "services"}


def call(*words: str, blocked: t.Sequence[str] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in an environment without any server; the modules ``blocked`` cannot be imported."""
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    start = (
        "import importlib.util, sys; find = importlib.util.find_spec;"
        f" importlib.util.find_spec = lambda name, *more: None if name in {list(blocked)!r} else find(name, *more);"
        " from wheels_ops.command_line import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", start, *words],
        env={**bare, "PYTHONPATH": str(REPOSITORY / "src"), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def backend(postgres: Postgres, redis_server: Redis) -> t.Iterator[Backend]:
    """The August release, patched by the program, which imports it with the new files first."""

    def patch(directory: Path) -> None:
        completed = call("patch", "install", str(directory), "--python", str(BACKEND_PYTHON))
        assert completed.returncode == 0, completed.stdout + completed.stderr

    with running_backend(
        "august", postgres.database(), redis_server.url, prepare=patch, WHEELS_OPS_TOKEN=TOKEN
    ) as running:
        yield running


def by_name(completed: subprocess.CompletedProcess[str]) -> t.Dict[str, t.Dict[str, t.Any]]:
    return {check["name"]: check for check in json.loads(completed.stdout)["checks"]}


def test_patched_build_serves_what_the_patched_files_bring(backend: Backend) -> None:
    answer = backend.request("GET", "/api/v1/system/health")
    assert answer.status in (200, 503) and "redis:connection" in answer.json()["checks"]
    assert backend.request("GET", "/livez").status == 200
    assert (backend.directory / "app/wheels_ops/wiring.py").is_file()


def test_look_from_outside_measures_what_needs_no_host(backend: Backend, tmp_path: Path) -> None:
    """Everything from the environment; the servers' own programs say what is to be seen."""
    page, metrics, report = tmp_path / "page.html", tmp_path / "wheels.prom", tmp_path / "report.json"
    words = ["--origin", "https://wheelsandwins.com", "--json", "--output", str(report), "--html", str(page)]
    completed = call(
        "health",
        *words,
        "--prometheus",
        str(metrics),
        BASE_URL=backend.url,
        SUPABASE_DB_URL=backend.environment["DATABASE_URL"],
        REDIS_URL=backend.environment["REDIS_URL"],
        WHEELS_OPS_TOKEN=TOKEN,
    )
    assert completed.stderr == ""
    checks = by_name(completed)
    assert list(checks) == list(NAMES)
    assert {name for name, check in checks.items() if check["status"] == "skipped"} == NEEDS_HOST
    assert {checks[name]["message"] for name in NEEDS_HOST} == {"Not checked: needs the host."}
    document = json.loads(completed.stdout)
    assert set(document["not_measured"]) == NEEDS_HOST
    assert [document["detailed_results"][name]["healthy"] for name in NEEDS_HOST] == [None] * 4
    assert checks["redis"]["status"] == "ok" and checks["cors"]["status"] == "ok"
    assert checks["celery"]["status"] == "critical" and "0 of 1 workers answer" in checks["celery"]["message"]
    assert completed.returncode == 2 == {"ok": 0, "warning": 1}.get(document["status"], 2)
    assert document["scores"]["performance"] is None
    assert "needs the host" in page.read_text() and "127.0.0.1" in page.read_text()
    assert 'host="127.0.0.1"' in metrics.read_text()
    assert json.loads(report.read_text())["checks"] == document["checks"]
    for text in (completed.stdout, page.read_text(), metrics.read_text()):
        assert TOKEN not in text and "automated_recovery" not in text and "playbook" not in text


def test_what_the_application_says_of_its_host_counts_from_outside(backend: Backend) -> None:
    """On the host itself the same is measured, and is left out there."""
    (state,) = [
        entry
        for name, entries in backend.request("GET", "/api/v1/system/health").json()["checks"].items()
        if name.startswith("memory")
        for entry in entries
    ]
    assert state["status"] in ("pass", "warn", "fail")
    from wheels_ops.checks import self_report

    full = {"status": "fail", "checks": {"disk:utilization": [{"status": "fail", "output": "97 %"}]}}
    outside = self_report.read(full, self_report.MEASURED_FROM_AFAR)
    assert outside and outside.status == "critical" and "disk:utilization is critical (97 %)" in outside.reasons
    on_host = self_report.read(full)
    assert on_host and on_host.status == "ok" and on_host.left_out == ("disk:utilization (critical)",)


def test_only_what_was_named_is_measured(redis: Redis) -> None:
    completed = call("health", "--redis", redis.url, "--only", "redis,memory")
    first = completed.stdout.splitlines()[0]
    assert completed.returncode == 0, completed.stdout
    assert first.startswith("OK: 1 of 1 checks are healthy; skipped: memory: needs the host (")
    # No terminal: performance data for a monitor of the Nagios family.
    assert " | redis=" in first
    assert call("health", "--redis", redis.url, "--only", "redis", "--quiet").stdout == ""
    nothing = call("health", "--redis", redis.url, "--only", "memory")
    assert nothing.returncode == 3 and nothing.stdout.startswith("UNKNOWN: 0 of 0 checks are healthy")


def test_server_that_is_away_is_critical_and_its_password_hidden() -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"
    completed = call("health", "--redis", url, "--only", "redis,database")
    assert completed.returncode == 2 and "does not answer" in completed.stdout
    assert "Set --dsn or DATABASE_URL." in completed.stdout
    assert "Restart the service where it runs" in completed.stdout
    assert PASSWORD not in completed.stdout + completed.stderr


@pytest.mark.parametrize(
    "words, blocked, message",
    [
        ([], (), "There is nothing to measure. Give --url, --dsn or --redis"),
        (["--redis", "redis://127.0.0.1/0", "--only", "speed"], (), "speed"),
        (["--redis", "redis://127.0.0.1/0", "--deadline", "1"], (), "deadline must be"),
        (["--url", "http://[x", "--only", "http"], (), "must be an http(s) URL, got"),
        (["--url", "http://127.0.0.1:1"], ("websocket",), "This Python lacks websocket-client. pip install"),
        (["--dsn", "host=127.0.0.1"], ("psycopg2", "redis"), "This Python lacks psycopg2-binary. pip install"),
    ],
)
def test_what_cannot_be_measured_is_unknown(words: t.List[str], blocked: t.Sequence[str], message: str) -> None:
    completed = call("health", *words, blocked=blocked)
    assert completed.returncode == 3 and completed.stdout.startswith("UNKNOWN: ") and message in completed.stdout
    assert completed.stderr == ""


def test_library_that_no_check_needs_may_be_missing(redis: Redis) -> None:
    unused = ("psycopg2", "requests", "websocket", "pglast", "psutil")
    completed = call("health", "--redis", redis.url, "--only", "redis", blocked=unused)
    assert completed.returncode == 0, completed.stdout
