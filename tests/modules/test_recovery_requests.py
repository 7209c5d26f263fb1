# SPDX-License-Identifier: GPL-3.0-or-later
"""The module recovery_requests: reads what the backend asks for, and takes away only what is done."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from tests.support.module_run import run_module


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two requests and a file that is none, as the backend's user leaves them."""
    directory = tmp_path / "state/requests"
    directory.mkdir(parents=True)
    for name in ("first", "second"):
        request = {"time": f"2026-11-27T03:00:0{len(name) % 10}Z", "kind": "recover", "reason": "asked for"}
        (directory / f"{name}.json").write_text(json.dumps(request))
    (directory / "nonsense.json").write_text("{")
    return tmp_path / "state"


def pending(state: Path) -> t.List[str]:
    return sorted(path.name for path in (state / "requests").iterdir())


def test_requests_are_read_without_a_change(state: Path) -> None:
    before = pending(state)
    result = run_module("recovery_requests", state_dir=str(state))
    assert {entry["id"] for entry in result["requests"]} == {"first", "second"}
    assert [entry["id"] for entry in result["refused"]] == ["nonsense"]
    assert result["changed"] is False and pending(state) == before


def test_done_requests_are_predicted_taken_away_and_gone(state: Path) -> None:
    """Check mode says exactly what the run does; a second run has nothing to do."""
    before = pending(state)
    predicted = run_module("recovery_requests", check=True, state_dir=str(state), done=["first", "nonsense"])
    assert predicted["changed"] is True and pending(state) == before
    result = run_module("recovery_requests", state_dir=str(state), done=["first", "nonsense"])
    assert pending(state) == ["second.json"]
    for key in ("changed", "before", "after", "actions", "msg"):
        assert predicted[key] == result[key], key
    assert run_module("recovery_requests", state_dir=str(state), done=["first", "nonsense"])["changed"] is False


def test_done_cannot_lead_out_of_the_directory(state: Path) -> None:
    (state / "kept.json").write_text("{}")
    run_module("recovery_requests", state_dir=str(state), done=["../kept"])
    assert (state / "kept.json").exists()
