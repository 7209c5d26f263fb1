# SPDX-License-Identifier: GPL-3.0-or-later
"""The module recovery_history: check mode writes nothing, a run adds one line to the file."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from tests.support.module_run import run_module

RECORD = {"run_id": "20250730T0211", "trigger": "manual", "action": "service_restart", "outcome": "healthy"}


def lines(directory: Path) -> t.List[t.Dict[str, t.Any]]:
    path = directory / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


def test_check_mode_writes_nothing_and_has_the_shape_of_a_run(state: Path) -> None:
    predicted = run_module("recovery_history", check=True, state_dir=str(state), record=RECORD)
    assert lines(state) == []
    result = run_module("recovery_history", state_dir=str(state), record=RECORD)
    assert set(predicted) == set(result)


def test_each_run_adds_one_line_with_its_time(state: Path) -> None:
    for number in (1, 2):
        result = run_module("recovery_history", state_dir=str(state), record={**RECORD, "run_id": f"run {number}"})
        assert not result.get("failed"), result
    written = lines(state)
    assert [record["run_id"] for record in written] == ["run 1", "run 2"]
    assert all(record["time"] and record["outcome"] == "healthy" for record in written)
    assert (state / "history.jsonl").stat().st_mode & 0o022 == 0, "the backend reads it, and nobody else writes it"


def test_a_link_in_the_place_of_the_history_is_refused(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept\n")
    (state / "history.jsonl").symlink_to(target)
    assert run_module("recovery_history", state_dir=str(state), record=RECORD)["failed"]
    assert target.read_text() == "kept\n"
