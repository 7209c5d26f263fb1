# SPDX-License-Identifier: GPL-3.0-or-later
"""The module recovery_history_info reads what recovery_history wrote, newest first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.module_run import run_module


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three records, and a line that a power cut left."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    for number in range(3):
        record = {"run_id": f"run {number}", "trigger": "manual", "action": "recover", "outcome": "healthy"}
        assert not run_module("recovery_history", state_dir=str(directory), record=record).get("failed")
    with open(directory / "history.jsonl", "a") as file:
        file.write('{"run_id": "to')
    return directory


def test_history_is_newest_first_and_bounded(state: Path) -> None:
    """The torn line is counted, named in a warning, and in nobody's way; nothing is changed by reading."""
    before = (state / "history.jsonl").read_bytes()
    result = run_module("recovery_history_info", state_dir=str(state), limit=2)
    assert [record["run_id"] for record in result["history"]] == ["run 2", "run 1"]
    assert (result["damaged_lines"], result["changed"]) == (1, False)
    assert any(str(state / "history.jsonl") in str(warning) for warning in result["warnings"])
    assert (state / "history.jsonl").read_bytes() == before


def test_history_of_a_host_without_one_is_empty(tmp_path: Path) -> None:
    result = run_module("recovery_history_info", state_dir=str(tmp_path / "absent"))
    assert (result["history"], result["damaged_lines"], result.get("failed", False)) == ([], 0, False)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_limit_out_of_range_is_refused_by_name(tmp_path: Path, limit: int) -> None:
    result = run_module("recovery_history_info", state_dir=str(tmp_path), limit=limit)
    assert result["failed"] and "limit" in result["msg"] and f"{limit:,}" in result["msg"]
