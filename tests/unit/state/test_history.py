# SPDX-License-Identifier: GPL-3.0-or-later
"""The one record of the history: what each writer writes, each reader reads."""

from __future__ import annotations

import dataclasses
import json
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support.collection import COLLECTION
from tests.support.recovery_run import append_run
from wheels_ops.report import performance
from wheels_ops.standalone import monitor
from wheels_ops.standalone.settings import Settings
from wheels_ops.state import history
from wheels_ops.state.history import HistoryRecord


def written(path: Path) -> t.List[t.Dict[str, t.Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def record_of(name: str) -> t.Dict[str, str]:
    """The ``record`` of the task of a playbook that appends to the history."""
    tasks = yaml.safe_load((COLLECTION / "playbooks" / "tasks" / name).read_text())
    return next(task[module]["record"] for task in tasks for module in _MODULES if module in task)


_MODULES = ("wheels.ops.recovery_history", "wheels.ops.recovery_problems")


@pytest.mark.parametrize("name", ["recover_host.yml", "maintenance_weekly.yml"])
def test_playbooks_write_keys_that_the_record_has(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(HistoryRecord)} - {"extra"}
    assert set(record_of(name)) <= fields


@pytest.mark.parametrize(
    ("after", "not_checked", "outcome"),
    [
        ([], [], "healthy"),
        ([], ["database", "rls"], "healthy, 2 not checked"),
        (["disk"], [], "not healthy"),
        (["disk"], ["database"], "not healthy"),
    ],
)
def test_completed_calls_healthy_only_what_was_checked(
    tmp_path: Path, after: t.List[str], not_checked: t.List[str], outcome: str
) -> None:
    path = tmp_path / "history.jsonl"
    for words in ({}, {"outcome": "healthy"}):
        entry = {"action": "recover", "before": ["disk"], "after": after, "not_checked": not_checked, **words}
        history.append(path, HistoryRecord.from_json(entry))
    assert [line["outcome"] for line in written(path)] == [outcome, outcome]
    past = performance.recoveries(history.read(path), time.time() - 60)
    part = {"healthy": "healthy", "not healthy": "not_healthy"}.get(outcome, "healthy_in_part")
    assert {name: past[name] for name in ("healthy", "healthy_in_part", "not_healthy")} == {
        **dict.fromkeys(("healthy", "healthy_in_part", "not_healthy"), 0),
        part: 2,
    }


def test_completed_measures_the_duration_since_the_start() -> None:
    record = HistoryRecord(started_at="2025-07-30T02:11:00Z").completed(1753841460 + 42.25)
    assert (record.time, record.duration_s) == ("2025-07-30T02:11:42Z", 42.2)


def test_from_json_loses_nothing_of_a_line_it_cannot_use() -> None:
    line = {
        "time": "2025-07-30T02:11:00Z",
        "action": ["recover"],
        "before": {"disk": 1},
        "results": [{"action": "x"}, 3],
        "bytes_freed": "much",
        "duration_s": True,
        "note": "a person wrote this",
    }
    record = HistoryRecord.from_json(line)
    assert (record.action, record.before, record.results, record.bytes_freed) == ("", (), (), None)
    assert record.as_json() == line


def test_from_json_reads_numbers_that_a_template_made_texts(tmp_path: Path) -> None:
    """ansible-core before 2.19 gives the text of a number."""
    path = tmp_path / "history.jsonl"
    history.append(path, HistoryRecord.from_json({"action": "maintenance", "bytes_freed": "58000000"}))
    assert performance.recoveries(history.read(path), 0)["bytes_freed"] == 58_000_000
    assert written(path)[0]["bytes_freed"] == 58_000_000


def test_lines_of_earlier_monitors_still_count(tmp_path: Path) -> None:
    path = tmp_path / monitor.HISTORY
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": stamp, "status": "ok", "failing": ["tts"], "checks": {"http": "ok"}, "duration_ms": 1500.0}
    path.write_text((json.dumps({**line, "scores": {}}) + "\n") * monitor.ENOUGH)
    record = history.read(path, 1)[0]
    assert (record.after, record.duration_s, record.extra) == (("tts",), 1.5, {"status": "ok"})


def test_the_monitor_writes_what_it_did_not_check(tmp_path: Path) -> None:
    report: t.Dict[str, t.Any] = {
        "status": "ok",
        "failing": [],
        "scores": {},
        "duration_ms": 1500.0,
        "notes": [],
        "detailed_results": {"http": {"status": "ok", "skipped": False}, "tts": {"status": "skipped", "skipped": True}},
    }
    monitor.note(Settings(state_dir=tmp_path), report)
    entry = written(tmp_path / monitor.HISTORY)[0]
    assert (entry["outcome"], entry["not_checked"], entry["duration_s"]) == ("healthy, 1 not checked", ["tts"], 1.5)


def test_the_standalone_recovery_writes_what_it_did_not_check(tmp_path: Path) -> None:
    append_run(tmp_path, skipped=["database"])
    entry = written(tmp_path / history.FILE)[0]
    assert (entry["outcome"], entry["before"], entry["duration_s"]) == ("healthy, 1 not checked", ["redis"], 4.2)
