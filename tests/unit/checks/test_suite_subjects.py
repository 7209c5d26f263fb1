# SPDX-License-Identifier: GPL-3.0-or-later
"""Which checks are made of a host, with what, and how their report is put together."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing as t

import pytest

from wheels_ops.checks import cpu, dead_peer, suite
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check
from wheels_ops.health.subjects import NAMES, REGISTRY
from wheels_ops.health.thresholds import DEFAULTS, Thresholds

SUBJECTS = list(NAMES)
MODULES: t.Dict[str, t.Any] = {name: importlib.import_module(f"wheels_ops.checks.{name}") for name in NAMES}
EVERYTHING: t.Dict[str, t.Any] = {
    "base_url": "https://backend",
    "database_dsn": "postgresql://db/app",
    "redis_url": "redis://redis/0",
    "cors_origins": ["https://app", "https://other"],
    "websocket_path": "/ws/chat",
    "tts_path": "/speak",
    "services": [
        {"name": "api", "unit": "api.service"},
        {"name": "worker", "unit": "worker.service"},
        {"name": "down", "unit": "down.service"},
    ],
}

Calls = t.Dict[str, t.Dict[str, t.Any]]


class Manager:
    """Stands in for the service manager: two of three services run."""

    pids_of = {"api.service": {11, 12}, "worker.service": {21}, "down.service": set()}

    def states(self, units: t.Sequence[str]) -> t.Dict[str, t.Any]:
        return {unit: types.SimpleNamespace(pid=min(self.pids_of[unit], default=0), unit=unit) for unit in units}

    def pids(self, state: t.Any) -> t.Set[int]:
        return self.pids_of[state.unit] or {99}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What each check was called with, by the names of its parameters; none of them measures anything."""
    collected: Calls = {}

    def stand_in(name: str, real: t.Callable[..., Check]) -> t.Callable[..., Check]:
        signature = inspect.signature(real)

        def check(*args: t.Any, **options: t.Any) -> Check:
            collected[name] = dict(signature.bind(*args, **options).arguments)
            return Check(name, "ok", message="fine")

        return check

    for name, module in MODULES.items():
        monkeypatch.setattr(module, "check", stand_in(name, module.check))

    def open_manager(kind: str = "auto", socket: str = "", *, username: str, password: str) -> Manager:
        collected["manager"] = {"kind": kind, "socket": socket, "account": (username, password)}
        return Manager()

    monkeypatch.setattr(suite, "open_manager", open_manager)
    return collected


def _has(arguments: t.Mapping[str, t.Any], **expected: t.Any) -> None:
    assert {name: arguments.get(name, "not given") for name in expected} == expected


def test_every_subject_in_the_order_of_a_report(calls: Calls) -> None:
    report = suite.run(suite.Options(**EVERYTHING))
    assert [check["name"] for check in report["checks"]] == SUBJECTS
    assert {check["status"] for check in report["checks"]} == {"ok"}
    assert (report["status"], report["failing"]) == ("ok", [])
    assert set(SUBJECTS) <= set(calls)
    assert list(suite.SUBJECTS) == SUBJECTS


def test_what_a_check_says_is_what_the_report_says(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in MODULES.items():
        said = Check(name, "critical", 7, message="Bad.", remedy="cure")
        monkeypatch.setattr(module, "check", lambda *_, said=said, **__: said)
    report = suite.run(suite.Options(**EVERYTHING))
    assert report["failing"] == SUBJECTS
    for check in report["checks"]:
        assert (check["status"], check["value"], check["message"], check["remedy"]) == ("critical", 7, "Bad.", "cure")


def test_only_those_that_were_asked_for_and_still_in_order(calls: Calls) -> None:
    report = suite.run(suite.Options(subjects=["rls", "disk", "cpu"], **EVERYTHING))
    assert [check["name"] for check in report["checks"]] == ["cpu", "disk", "rls"]
    assert set(calls) - {"manager"} == {"cpu", "disk", "rls"}


def test_a_subject_that_does_not_exist_is_refused(calls: Calls) -> None:
    with pytest.raises(OpsError, match=r"subjects must contain only memory, cpu.*, got ram, swap\."):
        suite.run(suite.Options(subjects=["swap", "memory", "ram"]))
    assert calls == {}


@pytest.mark.parametrize(
    ("subject", "missing", "what"),
    [
        ("database", "database_dsn", "Set wheels_ops_database_dsn"),
        ("rls", "database_dsn", "Set wheels_ops_database_dsn"),
        ("redis", "redis_url", "Set wheels_ops_redis_url"),
        ("http", "base_url", "Set wheels_ops_base_url"),
        ("cors", "base_url", "Set wheels_ops_base_url"),
        ("cors", "cors_origins", "wheels_ops_cors_origins"),
        ("websocket", "base_url", "Set wheels_ops_base_url"),
        ("websocket", "websocket_path", "Set wheels_ops_base_url and monitoring_websocket_path"),
        ("tts", "base_url", "Set wheels_ops_base_url"),
        ("tts", "tts_path", "Set monitoring_tts_path"),
        ("celery", "redis_url", "Set wheels_ops_redis_url"),
        ("services", "services", "Set wheels_ops_services"),
    ],
)
def test_a_subject_that_lacks_what_it_needs_is_left_out_and_says_so(
    calls: Calls,
    subject: str,
    missing: str,
    what: str,
) -> None:
    options = {**EVERYTHING, missing: "" if isinstance(EVERYTHING[missing], str) else []}
    (check,) = suite.run(suite.Options(subjects=[subject], **options))["checks"]
    assert (check["name"], check["status"], check["value"]) == (subject, "skipped", None)
    assert check["message"].startswith("Not measured: no ") and what in check["message"]
    assert subject not in calls


def test_memory_cpu_and_disk_need_nothing(calls: Calls) -> None:
    report = suite.run(suite.Options())
    measured = {check["name"] for check in report["checks"] if check["status"] != "skipped"}
    assert measured == {subject.name for subject in REGISTRY if not subject.needs} >= {"memory", "cpu", "disk"}
    assert report["status"] == "ok" and report["failing"] == []
    _has(calls["memory"], scope="host", thresholds=DEFAULTS["memory"])
    assert list(calls["memory"].values())[:2] == [{}, {}]
    _has(
        calls["cpu"],
        scope="host",
        base_url="",
        heavy="/api/memory",
        light="/health",
        thresholds=DEFAULTS["cpu"],
        response=DEFAULTS["response_time_ms"],
    )
    assert calls["cpu"]["pids"] == set()
    _has(calls["disk"], filesystems=("/",), budgets={}, logs=(), thresholds=DEFAULTS["disk"])
    assert "manager" not in calls


def test_what_was_named_reaches_its_check(calls: Calls) -> None:
    limits = {name: Thresholds(number, number + 1) for number, name in enumerate(DEFAULTS, start=1)}
    options = {
        **EVERYTHING,
        "thresholds": limits,
        "scope": "services",
        "http_paths": ["/a", "/b"],
        "stall_path": "/heavy",
        "database_tables": {"public.trips": ["id"]},
        "schemas": ["public"],
        "cors_path": "/chat",
        "websocket_heartbeat_within": 9.0,
        "filesystems": ["/", "/srv"],
        "disk_budgets": {"/srv/audio": 5},
        "logs": ["/var/log/*.log"],
        "service_manager": "supervisor",
        "supervisor_socket": "/run/s.sock",
        "supervisor_username": "ops",
        "supervisor_password": "s3cret",
        "memory_limits_mb": {"api": 512.0},
    }
    suite.run(suite.Options(**options))
    _has(calls["memory"], scope="services", thresholds=limits["memory"])
    assert list(calls["memory"].values())[:2] == [{"api": {11, 12}, "worker": {21}}, {"api": 512.0}]
    _has(calls["cpu"], pids={11, 12, 21}, scope="services", base_url="https://backend", heavy="/heavy", light="/a")
    _has(calls["cpu"], thresholds=limits["cpu"], response=limits["response_time_ms"])
    _has(
        calls["disk"],
        filesystems=["/", "/srv"],
        budgets={"/srv/audio": 5},
        logs=["/var/log/*.log"],
        thresholds=limits["disk"],
    )
    _has(calls["database"], dsn="postgresql://db/app", required={"public.trips": ["id"]})
    _has(calls["rls"], dsn="postgresql://db/app", schemas=["public"])
    _has(calls["redis"], url="redis://redis/0", thresholds=limits["memory"])
    _has(
        calls["http"],
        base_url="https://backend",
        paths=["/a", "/b"],
        response=limits["response_time_ms"],
        errors=limits["error_rate"],
    )
    assert list(calls["cors"].values())[:2] == ["https://backend", ["https://app", "https://other"]]
    _has(calls["cors"], headers=("authorization", "content-type", "apikey", "x-client-info"), path="/chat")
    _has(
        calls["websocket"],
        url="wss://backend/ws/chat",
        origin="https://app",
        ping="json",
        heartbeat_within=9.0,
        thresholds=limits["websocket_ms"],
    )
    _has(calls["tts"], base_url="https://backend", path="/speak")
    _has(calls["celery"], redis_url="redis://redis/0", waiting=limits["waiting_tasks"])
    assert list(calls["services"].values())[0] == EVERYTHING["services"]
    _has(calls["services"], manager="supervisor", supervisor_socket="/run/s.sock")
    assert calls["manager"] == {"kind": "supervisor", "socket": "/run/s.sock", "account": ("ops", "s3cret")}


def test_what_was_not_named_is_as_the_incident_report_and_the_releases_have_it(calls: Calls) -> None:
    suite.run(suite.Options(**{name: value for name, value in EVERYTHING.items() if name != "tts_path"}))
    _has(calls["http"], paths=("/health",), health_path="/api/v1/system/health", settle=10.0)
    _has(calls["cors"], path="/api/v1/pam/chat")
    _has(calls["tts"], path="/api/v1/tts/test")
    _has(calls["database"], required=None)
    _has(calls["rls"], schemas=None)
    _has(calls["websocket"], heartbeat_within=0.0)
    _has(calls["services"], manager="auto", supervisor_socket="")
    assert calls["manager"] == {"kind": "auto", "socket": "", "account": ("", "")}
    assert suite.Options().timeout == 60


def test_a_backend_settles_within_half_of_the_time_for_all(calls: Calls) -> None:
    suite.run(suite.Options(subjects=["http"], timeout=8, **EVERYTHING))
    assert calls["http"]["settle"] == 4


def test_a_socket_without_an_origin(calls: Calls) -> None:
    suite.run(suite.Options(subjects=["websocket"], **{**EVERYTHING, "cors_origins": [], "base_url": "http://backend"}))
    _has(calls["websocket"], url="ws://backend/ws/chat", origin="")


def test_a_dead_peer_is_measured_where_a_limit_is_given(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: t.List[t.Any] = []

    def add_to(check: Check, url: str, *, within: float, origin: str = "") -> Check:
        seen.append((check.name, url, within, origin))
        return Check("websocket", "critical", message="still connected")

    monkeypatch.setattr(dead_peer, "add_to", add_to)
    assert suite.run(suite.Options(subjects=["websocket"], **EVERYTHING))["status"] == "ok"
    assert seen == []
    options = suite.Options(subjects=["websocket"], websocket_dead_peer_within=30, **EVERYTHING)
    assert suite.run(options)["status"] == "critical"
    assert seen == [("websocket", "wss://backend/ws/chat", 30, "https://app")]


def test_services_that_cannot_be_asked_for_hide_no_disk(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: t.Any) -> t.Any:
        raise OpsError("Neither systemd nor supervisord runs on this host.")

    monkeypatch.setattr(suite, "open_manager", refuse)
    report = suite.run(suite.Options(subjects=["memory", "disk"], **EVERYTHING))
    assert [(check["name"], check["status"]) for check in report["checks"]] == [("memory", "unknown"), ("disk", "ok")]
    assert (report["status"], report["failing"]) == ("unknown", ["memory"])


def test_a_report_names_what_fails_and_when_it_was_made(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = {"memory": "ok", "cpu": "warning", "disk": "critical", "redis": "unknown"}
    for name, status in statuses.items():
        monkeypatch.setattr(MODULES[name], "check", lambda *_, name=name, status=status, **__: Check(name, status))
    clock = iter([50.0, 51.23456])
    fake = types.SimpleNamespace(monotonic=lambda: next(clock), gmtime=suite.time.gmtime, strftime=suite.time.strftime)
    monkeypatch.setattr(suite, "time", fake)
    report = suite.run(suite.Options(subjects=["memory", "cpu", "disk", "redis", "tts"], redis_url="redis://redis/0"))
    assert (report["status"], report["failing"]) == ("critical", ["cpu", "disk", "redis"])
    assert report["checks"][-1]["status"] == "skipped"
    assert report["duration_ms"] == 1234.6
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", report["measured_at"])
    assert report["not_measured"] == ["tts"]
    assert report["left_out"] == [name for name in SUBJECTS if name not in (*statuses, "tts")]
    assert report["left_out"][:3] == ["database", "rls", "http"]


CPU = {"host_percent": 70, "services_percent": 85, "stall_ms": 500}


@pytest.mark.parametrize(
    ("checks", "scope", "performance", "experience"),
    [
        ([], "host", None, None),
        ([Check("memory", "warning", 75)], "host", 50, None),
        ([Check("disk", "ok", 75)], "host", 80, None),
        ([Check("cpu", "ok", 9, details={"host_percent": 70, "services_percent": 85})], "host", 80, None),
        ([Check("cpu", "ok", 9, details={"host_percent": 70, "services_percent": 85})], "services", 50, None),
        ([Check("cpu", "ok", 9, details={"stall_ms": 500})], "host", 50, None),
        ([Check("cpu", "ok", 9, details=CPU)], "host", 57.5, None),
        ([Check("http", "ok", 500)], "host", None, 80),
        ([Check("http", "ok", 500, details={"error_rate_percent": 5})], "host", None, 57.5),
        ([Check("http", "critical", None, details={"error_rate_percent": 25.0})], "host", None, 0),
        (
            [Check("memory", "skipped", 75), Check("disk", "skipped", 75), Check("http", "skipped", 1)],
            "host",
            None,
            None,
        ),
        ([Check("memory", "unknown"), Check("disk", "ok", 75), Check("http", "ok", 500)], "host", None, 80),
        ([Check("memory", "ok", 75), Check("cpu", "unknown"), Check("http", "ok", 500)], "host", None, 80),
        ([Check("memory", "ok", 75), Check("disk", "unknown"), Check("http", "ok", 500)], "host", None, 80),
        ([Check("memory", "ok", 75), Check("redis", "unknown"), Check("http", "unknown", 500)], "host", 50, None),
        ([Check("memory", "ok", "75"), Check("disk", "ok", [1])], "host", None, None),
    ],
)
def test_scores_of_one_look(
    checks: t.List[Check],
    scope: str,
    performance: t.Optional[float],
    experience: t.Optional[float],
) -> None:
    assert suite.scores_of(iter(checks), scope=scope) == {
        "performance": performance,
        "stability": None,
        "user_experience": experience,
    }


def test_a_report_scores_what_its_scope_measures(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cpu,
        "check",
        lambda *_, **__: Check("cpu", "ok", 1, details={"host_percent": 70, "services_percent": 85}),
    )
    for scope, score in (("host", 80), ("services", 50)):
        assert suite.run(suite.Options(subjects=["cpu"], scope=scope))["scores"]["performance"] == score
    details = {"host_percent": 70, "services_percent": 85}
    assert suite.scores_of([Check("cpu", "ok", 1, details=details)])["performance"] == 80
