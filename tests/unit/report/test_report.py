# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds, checks side by side, the report, the history."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from wheels_ops.checks import suite
from wheels_ops.core.results import OpsError
from wheels_ops.health import check as health
from wheels_ops.health import thresholds
from wheels_ops.report import metrics, report
from wheels_ops.report import page as pages
from wheels_ops.state import history
from wheels_ops.state.history import HistoryRecord


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("memory", 65, "ok"),
        ("memory", 65.1, "warning"),
        ("memory", 75.1, "critical"),
        ("memory", 85.1, "emergency"),
        ("cpu", 70.5, "warning"),
        ("cpu", 87.1, "critical"),
        ("disk", 75.5, "warning"),
        ("disk", 85.5, "critical"),
        ("response_time_ms", 501, "warning"),
        ("response_time_ms", 1001, "critical"),
        ("error_rate", 1.1, "warning"),
        ("error_rate", 5.1, "critical"),
        ("memory", None, "unknown"),
    ],
)
def test_thresholds_of_the_report(name: str, value: float, status: str) -> None:
    assert thresholds.DEFAULTS[name].status(value) == status


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": {"warning": 80}}, "Thresholds of memory must be in ascending order, got warning 80, critical 75"),
        ({"memory": {"warning": "x"}}, "memory.warning must be a number, got 'x'"),
        ({"ram": {}}, "Unknown threshold 'ram'"),
        ({"disk": {"critical": 101}}, "disk.critical must be between 0 and 100, got 101"),
        ({"disk": {"panic": 1}}, "disk has unknown keys: panic"),
        ({"cpu": 80}, "threshold cpu must be a dictionary, got 80"),
    ],
)
def test_nonsense_thresholds_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(OpsError, match=message):
        thresholds.parse(given)


def test_checks_run_side_by_side_and_a_broken_one_is_unknown() -> None:
    meet = threading.Barrier(2, timeout=10)

    def subject() -> health.Check:
        meet.wait()  # passes only when both run at once
        return health.Check("x", "ok", 1)

    def broken() -> health.Check:
        raise RuntimeError("no")

    never = threading.Event()

    def hanging() -> health.Check:
        never.wait(30)
        return health.Check("x", "ok")

    checks = health.measure({"a": subject, "b": subject, "c": broken, "d": hanging}, timeout=2)
    never.set()
    assert [(check.name, check.status) for check in checks] == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "unknown"),
        ("d", "unknown"),
    ]
    assert "No answer within 2 s" in checks[3].message
    assert health.overall(checks) == "unknown"


BEFORE = {
    "status": "critical",
    "checks": [
        {
            "name": "cors",
            "status": "critical",
            "value": 40,
            "unit": "%",
            "message": "<b>bad</b>",
            "duration_ms": 1.0,
            "remedy": "x",
        }
    ],
}
AFTER = {
    "status": "ok",
    "checks": [
        {"name": "cors", "status": "ok", "value": 100, "unit": "%", "message": "fine", "duration_ms": 1.0, "remedy": ""}
    ],
}


def test_report_names_before_what_was_done_and_after() -> None:
    table = report.text(BEFORE, AFTER, {"cors": "patched"})
    assert (
        "5  CORS               critical   40 %                      patched                             ok        "
        " 100 %" in table
    )
    assert report.remaining(AFTER) == []
    assert report.remaining(BEFORE) == ["cors: critical: <b>bad</b>. Remedy: x."]


def test_page_escapes_what_was_measured() -> None:
    page = pages.page(BEFORE, before=AFTER, title="<script>", facts={"host": "<i>"})
    for words in ("<script>", "<i>", "<b>bad"):
        assert words not in page


def _append(path: str) -> None:
    for number in range(50):
        history.append(Path(path), HistoryRecord(extra={"number": number}))


def test_history_from_several_processes_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    workers = [multiprocessing.Process(target=_append, args=(str(path),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 200


def test_history_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"number": 1}\n{"num')
    history.append(path, HistoryRecord(extra={"number": 2}))
    assert [record.extra["number"] for record in history.read(path)] == [2, 1]
    for number in range(200):
        history.append(path, HistoryRecord(extra={"number": number, "padding": "x" * 100}), max_bytes=5000)
    assert path.stat().st_size <= 5000
    assert history.read(path, 1)[0].extra["number"] == 199


def test_history_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / "history.jsonl").symlink_to(victim)
    with pytest.raises(OpsError, match="Cannot write the history"):
        history.append(tmp_path / "history.jsonl", HistoryRecord())
    assert victim.read_text() == ""


def _look(*statuses: str, **further: object) -> dict[str, object]:
    """A health result: one check a status, with the message of one that lacks what it needs where it is skipped."""
    names = ("database", "rls", "redis", "http", "memory", "cpu")
    reasons = {"database": "no database DSN is given", "rls": "no database DSN is given"}
    return {
        "checks": [
            {
                "name": name,
                "status": status,
                "value": None,
                "unit": "",
                "duration_ms": 1.0,
                "remedy": "",
                "message": (
                    f"Not measured: {reasons.get(name, 'no base URL is given')}. Set something."
                    if status == "skipped"
                    else "measured"
                ),
            }
            for name, status in zip(names, statuses)
        ],
        **further,
    }


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (_look("ok", "ok", "ok"), "Everything is healthy (3 checks)."),
        (_look("skipped", "skipped", "ok"), "1 healthy, 2 skipped: no database DSN is given (database, rls)."),
        (
            _look("skipped", "ok", "ok", "skipped"),
            "2 healthy, 2 skipped: no database DSN is given (database); no base URL is given (http).",
        ),
        (_look("ok", left_out=["tts", "cors"]), "Everything is healthy (1 checks); 2 left out on purpose: tts, cors."),
        (
            _look("skipped", "ok", left_out=["tts"]),
            "1 healthy, 1 skipped: no database DSN is given (database); 1 left out on purpose: tts.",
        ),
        (_look("ok", "unknown"), "Not healthy: rls."),
        (
            _look("skipped", "critical", "ok"),
            "Not healthy: rls. 1 healthy, 1 skipped: no database DSN is given (database).",
        ),
        (_look("skipped"), "Nothing was measured, 1 skipped: no database DSN is given (database)."),
        (_look(), "Nothing was measured."),
    ],
)
def test_only_what_was_measured_is_called_healthy(look: dict[str, object], said: str) -> None:
    assert report.summary(look) == said


def test_a_check_that_was_not_made_is_seen_as_such_in_every_format() -> None:
    look = _look("skipped", "skipped", "ok", "unknown", left_out=["tts"])
    prom = metrics.text(look, "web1").splitlines()
    assert 'wheels_ops_check_status{check="database",status="skipped",host="web1"} 1' in prom
    assert 'wheels_ops_check_status{check="http",status="unknown",host="web1"} 1' in prom
    severities = {
        line.split('"')[1]: line.split()[-1] for line in prom if line.startswith("wheels_ops_check_severity{")
    }
    assert severities.keys() == {"redis", "http"}
    assert severities["redis"] == "0" < severities["http"]
    table = report.text(look, look, {})
    assert "3  Database           skipped    not measured              -" in table
    page = pages.page(look, title="x", facts={})
    for words in (
        "What was not measured",
        "database, rls: no database DSN is given",
        "tts: left out on purpose",
        'class="status skipped"',
    ):
        assert words in page


def test_no_score_where_a_value_was_asked_for_and_not_measured() -> None:
    def scores(disk: str) -> dict[str, float | None]:
        checks = [health.Check("memory", "ok", 20.0), health.Check("disk", disk, None if disk == "unknown" else 10.0)]
        return suite.scores_of(checks)

    assert scores("ok")["performance"] is not None
    assert scores("unknown")["performance"] is None
    assert scores("skipped")["performance"] is not None


def test_what_a_check_lacks_is_named_with_the_variable_that_gives_it() -> None:
    options = suite.Options(
        subjects=("database", "rls", "tts", "cors", "services", "celery"), base_url="http://127.0.0.1:1", tts_path=""
    )
    found = suite.run(options)
    messages = {check["name"]: check["message"] for check in found["checks"]}
    assert messages["database"] == "Not measured: no database DSN is given. Set wheels_ops_database_dsn."
    assert messages["tts"] == "Not measured: no speech path is given. Set monitoring_tts_path."
    assert found["not_measured"] == ["database", "rls", "cors", "tts", "celery", "services"]
    assert found["left_out"][:6] == ["memory", "cpu", "disk", "redis", "http", "websocket"]
    assert set(found["left_out"]) == set(suite.SUBJECTS) - set(options.subjects)
    assert (found["status"], found["failing"]) == ("unknown", [])
