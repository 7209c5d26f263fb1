# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts against the budget of restarts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies import service_restart
from wheels_ops.services.supervisor import Supervisor
from wheels_ops.state import restarts


def book(directory: Path, *outcomes: str) -> restarts.Ledger:
    """A ledger of restarts of ``web`` that ended so; the last may not have ended."""
    made = restarts.Ledger(directory)
    for outcome in outcomes:
        made.add(event="begin", service="web")
        if outcome:
            made.add(event="end", service="web", outcome=outcome)
    return made


def test_a_restart_that_its_manager_refused_is_not_counted(tmp_path: Path) -> None:
    found = book(tmp_path, "healthy", restarts.REFUSED, "failed", restarts.REFUSED, "")
    assert len(found.starts("web", 60)) == 3
    assert not found.blocked("web", max_restarts=4, window=60, cooldown=0)
    assert "budget of 3 restarts" in found.blocked("web", max_restarts=3, window=60, cooldown=0)
    assert found.starts("other", 60) == []


def test_a_clock_that_was_put_back_and_torn_lines_free_nothing(tmp_path: Path) -> None:
    found = book(tmp_path, "failed")
    with found.path.open("a") as file:
        file.write(
            json.dumps({"time": time.time() + 9999, "event": "begin", "service": "web"}) + "\n" + '{"time": 1, "eve'
        )
    assert len(found.starts("web", 60)) == 2
    assert max(found.starts("web", 60)) <= time.time()


def test_a_directory_that_cannot_be_written_is_said_without_making_it(tmp_path: Path) -> None:
    restarts.require_writable(tmp_path / "a/b")
    assert not (tmp_path / "a").exists()
    with pytest.raises(OpsError, match="cannot be written"):
        restarts.require_writable(Path("/proc/1/wheels-ops"))


def test_a_restart_says_how_many_lines_it_could_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book(tmp_path, "healthy").path.open("ab").write(b"\xff\n")

    def carry_out(one: service_restart._Run, _check_mode: bool) -> Result:
        assert one.book.starts("web", 60)
        return Result()

    monkeypatch.setattr(service_restart._Run, "carry_out", carry_out)
    result = service_restart.run([], Supervisor("/nowhere.sock"), service_restart.Options(state_dir=str(tmp_path)))
    assert result.warnings == [
        f"1 lines of {tmp_path}/restarts.jsonl are damaged and were passed over: a restart in one of them is not"
        " counted."
    ]
