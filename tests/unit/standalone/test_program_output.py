# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys that callers of the first versions know, the exit status, and what is remembered between runs."""

from __future__ import annotations

import asyncio
import time
import typing as t
from pathlib import Path

import pytest

from wheels_ops.checks import suite
from wheels_ops.health.thresholds import parse
from wheels_ops.standalone import monitor, program_output, recovery
from wheels_ops.standalone.settings import Recovery, Settings
from wheels_ops.state import history
from wheels_ops.state.history import HistoryRecord


def check(name: str, status: str, **further: t.Any) -> t.Dict[str, t.Any]:
    base: t.Dict[str, t.Any] = {
        "name": name,
        "status": status,
        "value": None,
        "unit": "",
        "thresholds": {},
        "message": f"{name} is {status}.",
        "remedy": "",
        "details": {},
    }
    return {**base, "duration_ms": 1.0, **further}


@pytest.mark.parametrize(
    ("statuses", "overall", "exit_status"),
    [
        (["ok", "skipped"], "healthy", 0),
        (["ok", "warning"], "degraded", 1),
        (["ok", "unknown"], "degraded", 3),
        (["warning", "unknown"], "degraded", 3),
        (["critical", "warning"], "unhealthy", 2),
        (["emergency"], "critical", 2),
    ],
)
def test_summary_and_exit_status_follow_the_worst_check(statuses: t.List[str], overall: str, exit_status: int) -> None:
    names = list(suite.SUBJECTS[: len(statuses)])
    found = {name: program_output.detailed(check(name, status)) for name, status in zip(names, statuses)}
    summary = program_output.summary(found, 1.5)
    measured = [status for status in statuses if status != "skipped"]
    assert summary["overall_status"] == overall
    assert (summary["total_checks"], summary["total_issues"]) == (
        len(measured),
        sum(status != "ok" for status in measured),
    )
    assert sum(summary["issues_by_severity"].values()) == summary["unhealthy_checks"] == summary["total_issues"]
    worst = next(status for status in ("emergency", "critical", "unknown", "warning", "ok") if status in statuses)
    assert program_output.exit_status(worst) == exit_status


def test_a_skipped_check_is_neither_healthy_nor_an_issue_and_its_reason_is_in_the_first_line(tmp_path: Path) -> None:
    options = suite.Options(
        subjects=("database", "disk"),
        filesystems=("/",),
        thresholds=parse({"disk": {"warning": 100, "critical": 100}}),
        timeout=10,
    )
    one = monitor.ProductionHealthMonitor(Settings(checks=options, state_dir=tmp_path))
    report = asyncio.run(one.run_all_checks())
    assert report["detailed_results"]["database"]["healthy"] is None
    assert report["detailed_results"]["disk"]["healthy"] is True
    assert (report["summary"]["overall_status"], report["summary"]["skipped_checks"]) == ("healthy", 1)
    assert report["summary"]["overall_message"] == "1 healthy, 1 skipped: no database DSN is given (database)."
    first = monitor.text(report).splitlines()[0]
    assert first.startswith("OK: 1 of 1 checks are healthy; skipped: database: no database DSN is given (")
    assert program_output.exit_status(report["status"]) == 0
    assert "redis" in report["left_out"]


def test_recovery_does_not_call_everything_healthy_where_a_check_was_not_made(tmp_path: Path) -> None:
    options = suite.Options(
        subjects=("database", "disk"),
        filesystems=("/",),
        thresholds=parse({"disk": {"warning": 100, "critical": 100}}),
        timeout=10,
    )
    report = recovery.AutomatedRecovery(Settings(checks=options, state_dir=tmp_path), dry_run=True).run()
    first = recovery.text(report).splitlines()[0]
    assert first.startswith(
        f"1 healthy, 1 skipped: no database DSN is given (database); {len(suite.SUBJECTS) - 2} left out on purpose:"
        " memory, cpu, "
    )
    assert first.endswith("; nothing was done.")
    assert report["system_health_summary"]["database"]["healthy"] is None
    assert report["system_health_summary"]["database"]["note"] == "Not measured."


def test_where_nothing_is_measured_nothing_is_healthy() -> None:
    assert (
        program_output.summary({"redis": program_output.detailed(check("redis", "skipped"))}, 0)["overall_status"]
        == "degraded"
    )
    assert program_output.exit_status("skipped") == 3


def test_the_keys_of_the_first_version_are_there_and_true() -> None:
    memory = check(
        "memory",
        "warning",
        value=70.0,
        details={"host": {"percent": 70.0, "total_bytes": 4 << 30, "available_bytes": 2 << 30}, "services": {}},
    )
    found = program_output.detailed(memory)
    assert (found["memory_percent"], found["available_memory_gb"], found["healthy"], found["severity"]) == (
        70.0,
        2.0,
        False,
        "medium",
    )
    assert "process_memory_mb" not in found, "what was not measured is not there"
    down = program_output.detailed(check("redis", "critical"))
    assert (down["connected"], down["error"], down["issue"]) == (False, "redis is critical.", "redis is critical.")
    assert program_output.detailed(check("tts", "critical", details={"engine": "edge"}))["failed_engines"] == ["edge"]
    assert program_output.detailed(check("cors", "ok"))["issues"] == []


def test_a_check_that_cannot_be_made_is_unknown_and_counts(tmp_path: Path) -> None:
    options = suite.Options(
        subjects=("database", "redis"),
        database_dsn="mysql://u:word@127.0.0.1:1/x",
        redis_url="nonsense://:other@h",
        timeout=10,
    )
    one = monitor.ProductionHealthMonitor(Settings(checks=options, state_dir=tmp_path))
    report = asyncio.run(one.run_all_checks())
    assert {name: result["status"] for name, result in report["detailed_results"].items()} == {
        "database": "unknown",
        "redis": "unknown",
    }
    assert [each["check"] for each in report["issues_found"]] == ["database", "redis"] == report["failing"]
    assert all(each["recommendation"] for each in report["issues_found"])
    assert report["recommendations"] == one.recommendations
    assert {"timestamp", "duration_seconds", "summary", "detailed_results", "issues_found", "recommendations"} <= set(
        report
    )
    assert "word" not in repr(report) and "other@" not in repr(report)
    assert set(one.checks) == set(suite.SUBJECTS)
    assert asyncio.run(one.checks["tts"]())["skipped"] is True


def test_without_a_service_manager_the_rest_is_measured_all_the_same(tmp_path: Path) -> None:
    services = [{"name": "a"}]
    options = suite.Options(
        subjects=("disk", "services", "memory"),
        services=services,
        service_manager="supervisor",
        supervisor_socket=str(tmp_path / "none"),
    )
    found = {each["name"]: each["status"] for each in suite.run(options)["checks"]}
    assert found["services"] == found["memory"] == "unknown"
    assert found["disk"] != "unknown"


def test_the_history_is_bounded_and_gives_the_stability(tmp_path: Path) -> None:
    report = {
        "status": "ok",
        "failing": [],
        "scores": {},
        "duration_ms": 1.0,
        "notes": [],
        "detailed_results": {"http": {"status": "ok", "skipped": False}, "tts": {"status": "skipped", "skipped": True}},
    }
    given = Settings(state_dir=tmp_path)
    for _ in range(monitor.ENOUGH - 1):
        monitor.note(given, t.cast("t.Dict[str, t.Any]", report))
        assert "stability" not in t.cast("t.Dict[str, t.Any]", report["scores"])
    monitor.note(given, t.cast("t.Dict[str, t.Any]", report))
    assert t.cast("t.Dict[str, t.Any]", report["scores"])["stability"] == 100.0
    assert history.read(tmp_path / monitor.HISTORY, 1)[0].checks == {"http": "ok"}


def remembered(path: Path, seconds_ago: float, **result: t.Any) -> None:
    made = history.append(path, HistoryRecord(results=(result,)))
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds_ago))
    path.write_text(path.read_text().replace(made.time, when))


@pytest.mark.parametrize(
    ("outcome", "action", "seconds_ago", "waits"),
    [
        ("done", "log_rotation", 100, True),
        ("failed", "log_rotation", 100, True),
        ("partly", "log_rotation", 100, True),
        ("done", "log_rotation", 700, False),
        ("nothing", "log_rotation", 100, False),
        ("refused", "log_rotation", 100, False),
        # Each remedy has its own; restarts are counted for each service in restarts.jsonl.
        ("done", "memory_cleanup", 100, False),
    ],
)
def test_the_cool_down_is_over_all_runs(
    tmp_path: Path, outcome: str, action: str, seconds_ago: float, waits: bool
) -> None:
    remembered(tmp_path / history.FILE, seconds_ago, action=action, outcome=outcome)
    options = Recovery(cooldown=600, confirm_after=0, log_directories=(str(tmp_path),))
    one = recovery.AutomatedRecovery(Settings(state_dir=tmp_path, recovery=options))
    steps = one._plan({"checks": [check("disk", "critical", remedy="log_rotate")]}, ["disk"])
    step = next(each for each in steps if each.remedy == "log_rotation")
    assert bool(step.refused) is waits and (step.waits_until > time.time()) is waits
