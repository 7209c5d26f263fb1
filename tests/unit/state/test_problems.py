# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a problem: one change for each change of state, however many runs find it; nothing in the file breaks a
run.
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from wheels_ops.state import problems
from wheels_ops.state.problems import Attempt, Problems, update

NOW = 1_800_000_000.0
Checks = t.List[t.Dict[str, t.Any]]


def checks(**statuses: str) -> Checks:
    return [{"name": name, "status": status, "message": f"{name} is {status}."} for name, status in statuses.items()]


def life(*runs: t.Tuple[Checks, t.Sequence[Attempt]]) -> t.Tuple[Problems, t.List[t.List[str]]]:
    """(the problems after all runs, the kinds of changes of each); nothing is better after a run than before."""
    present = Problems()
    kinds = []
    for number, (measured, attempts) in enumerate(runs):
        present, changes = update(present, measured, measured, attempts, NOW + 60 * number)
        kinds.append([change.kind for change in changes])
    return present, kinds


def test_incurable_fault_over_twenty_runs_changes_twice() -> None:
    refused = Attempt("", ("disk",), "refused", reason="No remedy is known for it.", advice="Find what fills it.")
    present, kinds = life(*[(checks(disk="critical"), [refused])] * 20)
    assert kinds[0] == [problems.BEGUN, problems.ESCALATED]
    assert kinds[1:] == [[]] * 19
    (problem,) = present.problems
    assert (problem.runs, problem.since, problem.state) == (20, NOW, problems.ESCALATED)
    assert (problem.reason, problem.advice) == ("No remedy is known for it.", "Find what fills it.")


def test_remedy_that_does_not_help_twice_escalates() -> None:
    failed = Attempt("disk_cleanup", ("disk",), "partly", reason="It freed 3 MB.")
    cooling = Attempt("disk_cleanup", ("disk",), "refused", waits=True, reason="It was tried 60 s ago.")
    down = checks(disk="critical")
    present, kinds = life((down, [failed]), (down, [cooling]), (down, [failed]))
    assert kinds == [[problems.BEGUN, problems.TREATED], [], [problems.ESCALATED]]
    assert present.problems[0].reason == "disk_cleanup did not help 2 times."
    assert present.exhausted("disk_cleanup", ["disk"])
    assert not present.exhausted("log_rotation", ["disk"])
    assert not present.exhausted("disk_cleanup", ["disk"], 0)


def test_one_remedy_that_may_still_begin_is_not_given_up() -> None:
    attempts = [
        Attempt("log_rotation", ("disk",), "refused", reason="No directory of logs is configured."),
        Attempt("disk_cleanup", ("disk",), "refused", waits=True, reason="Its cool-down lasts."),
    ]
    _present, kinds = life(*[(checks(disk="critical"), attempts)] * 3)
    assert kinds == [[problems.BEGUN], [], []]


def test_problem_that_ends_says_what_repaired_it() -> None:
    present, _kinds = life((checks(redis="critical"), []))
    done = Attempt("service_restart", ("redis",), "done")
    present, changes = update(present, checks(redis="critical"), checks(redis="ok"), [done], NOW + 90)
    assert present.problems == ()
    (change,) = changes
    assert (change.kind, change.repaired_by, change.at_once) == (problems.ENDED, ("service_restart",), False)
    assert change.as_json()["repaired_by"] == ["service_restart"]


def test_problem_of_one_run_ends_and_was_never_begun_for_people() -> None:
    done = Attempt("service_restart", ("redis",), "done")
    present, changes = update(Problems(), checks(redis="critical"), checks(redis="ok"), [done], NOW)
    assert present.problems == ()
    assert [(change.kind, change.at_once) for change in changes] == [(problems.ENDED, True)]


def test_single_measurement_is_only_suspected() -> None:
    down, up = checks(http="critical"), checks(http="ok")
    present, changes = update(Problems(), down, down, [], NOW, confirmed=False)
    assert (changes, present.problems[0].state) == ([], problems.SUSPECTED)
    gone, changes = update(present, up, up, [], NOW + 60, confirmed=False)
    assert (changes, gone.problems) == ([], ())
    present, changes = update(present, down, down, [], NOW + 60, confirmed=False)
    assert [change.kind for change in changes] == [problems.BEGUN]
    assert present.problems[0].since == NOW


def test_subject_that_was_not_measured_keeps_its_problem() -> None:
    present, _kinds = life((checks(disk="critical"), []))
    present, changes = update(present, checks(cpu="ok"), checks(cpu="ok"), [], NOW + 60)
    assert ([problem.subject for problem in present.problems], changes) == (["disk"], [])


def test_warning_that_gets_critical_is_told_once() -> None:
    runs: t.List[t.Tuple[Checks, t.List[Attempt]]] = [
        (checks(memory=status), []) for status in ("warning", "critical", "warning", "critical", "emergency")
    ]
    _present, kinds = life(*runs)
    assert kinds == [[problems.BEGUN], [problems.WORSENED], [], [], [problems.WORSENED]]


def test_host_that_got_worse_stops_until_it_is_healthy() -> None:
    done = Attempt("memory_cleanup", ("memory",), "partly")
    before, after = checks(memory="critical", http="ok"), checks(memory="critical", http="critical")
    present, _changes = update(Problems(), before, after, [done], NOW)
    assert present.stopped == "After the last remedies this host was worse than before: http."
    present, _changes = update(present, after, after, [], NOW + 60)
    assert present.stopped
    up = checks(memory="ok", http="ok")
    present, _changes = update(present, after, up, [], NOW + 120)
    assert present.stopped == ""


def test_host_that_gets_worse_without_a_remedy_does_not_stop() -> None:
    before, after = checks(http="ok"), checks(http="critical")
    present, _changes = update(Problems(), before, after, [], NOW)
    assert present.stopped == ""


def test_restart_is_counted_for_each_service_that_is_still_down() -> None:
    facts = {"web": {"status": "critical"}, "worker": {"status": "ok"}}
    down = [{"name": "services", "status": "critical", "message": "web", "details": {"services": facts}}]
    present, _changes = update(Problems(), down, down, [Attempt("service_restart", ("services",), "partly")], NOW)
    assert present.problems[0].failures == {"service_restart": 1, "service_restart web": 1}


def test_file_keeps_the_problems(tmp_path: Path) -> None:
    down = checks(disk="critical")
    failed = Attempt("disk_cleanup", ("disk",), "partly")
    kept, _changes, warnings = problems.update_file(tmp_path, lambda now: update(now, down, down, [failed], NOW))
    assert (problems.read(tmp_path), warnings) == (kept, [])
    assert json.loads((tmp_path / problems.FILE).read_text())["problems"][0]["failures"] == {"disk_cleanup": 1}


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    down = checks(disk="critical")
    kept, changes, _warnings = problems.update_file(
        tmp_path, lambda now: update(now, down, down, [], NOW), check_mode=True
    )
    assert ([change.kind for change in changes], len(kept.problems)) == ([problems.BEGUN], 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"problems": 3}', '{"problems": [], "stopped": 1}', "\xff"])
def test_damaged_file_is_set_aside_and_said(tmp_path: Path, content: str) -> None:
    (tmp_path / problems.FILE).write_bytes(content.encode("latin-1"))
    down = checks(disk="critical")
    _kept, changes, warnings = problems.update_file(tmp_path, lambda now: update(now, down, down, [], NOW))
    assert [change.kind for change in changes] == [problems.BEGUN]
    assert "is damaged" in warnings[0]
    assert (tmp_path / f"{problems.FILE}.damaged").read_bytes() == content.encode("latin-1")


def test_entries_of_another_shape_are_passed_over(tmp_path: Path) -> None:
    good = {"subject": "disk", "state": "begun", "since": "yesterday", "runs": 2, "failures": {"x": "y"}}
    entries = [good, 3, {"subject": "cpu"}, {"subject": 1, "state": "begun"}, {"subject": "cpu", "state": "odd"}]
    (tmp_path / problems.FILE).write_text(json.dumps({"problems": entries}))
    (problem,) = problems.read(tmp_path).problems
    assert (problem.subject, problem.since, problem.runs, problem.failures) == ("disk", 0.0, 2, {})
