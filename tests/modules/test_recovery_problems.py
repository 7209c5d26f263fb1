# SPDX-License-Identifier: GPL-3.0-or-later
"""recovery_problems as Ansible runs it: check mode writes and tells nothing, a problem that lasts is one record."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from tests.support.module_run import run_module

DISK = {"name": "disk", "status": "critical", "message": "The disk is at 97 %."}
REFUSED = {
    "remedy": "",
    "subjects": ["disk"],
    "outcome": "refused",
    "waits": False,
    "reason": "None.",
    "advice": "Look.",
}
RECORD = {"action": "recover", "before": ["disk"], "after": ["disk"]}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


def history(state: Path) -> t.List[t.Dict[str, t.Any]]:
    path = state / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(state: Path, *, check: bool = False, **further: t.Any) -> t.Dict[str, t.Any]:
    arguments = {"state_dir": str(state), "before": [DISK], "attempts": [REFUSED], "record": RECORD, **further}
    return run_module("recovery_problems", check=check, **arguments)


def test_problem_that_lasts_is_one_record_and_a_count(state: Path) -> None:
    predicted = run(state, check=True)
    assert list(state.iterdir()) == []
    first = run(state)
    assert set(predicted) == set(first)
    assert [predicted[key] for key in ("msg", "recorded", "changed")] == [first["msg"], first["recorded"], False]
    assert first["msg"] == "1 open problems; disk begun, disk escalated."
    second = run(state)
    assert (second["changes"], second["recorded"], second["problems"][0]["runs"]) == ([], False, 2)
    (record,) = history(state)
    assert [entry["change"] for entry in record["problems"]] == ["begun", "escalated"]
    assert run(state, always_record=True)["recorded"]
    ended = run(state, after=[{**DISK, "status": "ok"}])
    assert [entry["change"] for entry in ended["changes"]] == ["ended"]
    assert len(history(state)) == 3


def test_single_measurement_begins_nothing_yet(state: Path) -> None:
    assert run(state, confirmed=False, attempts=[])["changes"] == []
    assert [entry["change"] for entry in run(state, confirmed=False, attempts=[])["changes"]] == ["begun"]


@pytest.mark.parametrize(
    ("further", "words"),
    [
        ({"attempts": [{"remedy": "x"}]}, "attempts has an entry of another shape"),
        ({"alerts": [{"type": "webhook", "url": "hooks.example.com/T0/marked"}]}, "alerts[0].url must be"),
        ({"max_failures": -1}, "max_failures must be between"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(state: Path, further: t.Dict[str, t.Any], words: str) -> None:
    result = run(state, **further)
    assert result["failed"]
    assert words in result["msg"]
    assert "Traceback" not in json.dumps(result)
    assert list(state.iterdir()) == []


def test_secret_of_a_receiver_is_in_no_output(state: Path) -> None:
    url = "http://127.0.0.1:9/services/T0/B0/marked-hook-secret"
    result = run(state, alerts=[{"type": "slack", "url": url, "timeout": 0.5}])
    assert result["warnings"]
    assert "marked-hook-secret" not in json.dumps(result)
    assert "marked-hook-secret" not in (state / "problems.json").read_text()
