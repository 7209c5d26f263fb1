# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock and the journal of a deployment."""

from __future__ import annotations

import json
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wheels_ops import files
from wheels_ops.remedies import deployment
from wheels_ops.results import OpsError


def test_two_at_once_then_one_after_the_other(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert deployment.begin(state, "a", holder="one").extra["resumed"] is False
    with pytest.raises(OpsError, match="Another deployment holds this host: one"):
        deployment.begin(state, "b", holder="two")
    deployment.end(state, "a", holder="one", state=deployment.FINISHED)
    assert not (tmp_path / "state/deploy.lock").exists()
    assert deployment.begin(state, "b", holder="two").extra["deployment_id"] == "b"


@pytest.mark.parametrize("how", ["dead", "forced", "old"])
def test_a_lock_is_taken_over_from_the_dead(tmp_path: Path, how: str) -> None:
    state = str(tmp_path)
    deployment.begin(state, "a", holder="one")
    if how == "old":
        lock = tmp_path / "deploy.lock"
        entry = json.loads(lock.read_text())
        lock.write_text(json.dumps({**entry, "since": entry["since"] - deployment.LOCK_EXPIRES - 1}))
    force = "one" if how == "forced" else ""
    result = deployment.begin(state, "b", holder="two", dead_holders=["one"] if how == "dead" else [], force=force)
    assert result.extra == {"deployment_id": "a", "resumed": True, "holder": "one"}
    assert json.loads((tmp_path / "deploy.lock").read_text())["holder"] == "two"


def test_check_mode_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert deployment.begin(str(state), "a", holder="one", check_mode=True).extra["deployment_id"] == "a"
    assert not state.exists()


def test_a_deployment_without_files_leaves_no_journal(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployment.begin(state, "a", holder="one")
    deployment.end(state, "a", holder="one", state=deployment.FINISHED)
    assert deployment.query(state).extra["in_force"] == []
    with pytest.raises(OpsError, match="There is no deployment a"):
        deployment.Journal(state).read("a")


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_ids_are_no_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpsError, match="no deployment id"):
        deployment.begin(str(tmp_path), name, holder="one")


@pytest.mark.parametrize("nth", [0, 1])
def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The lock is the first file that is written, the journal the second."""
    state = tmp_path / "state"
    writes: t.List[Path] = []
    real = files.write_atomically

    def full(path: Path, content: bytes, **options: t.Any) -> None:
        writes.append(path)
        if len(writes) == nth + 1:
            raise OpsError(f"Cannot write {path}: No space left on device.")
        real(path, content, **options)

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(OpsError, match="No space left"):
        deployment.begin(str(state), "a", holder="one")
    assert [path for path in state.rglob("*") if path.is_file()] == []
    assert deployment.begin(str(state), "b", holder="two").extra["resumed"] is False


def test_of_many_at_once_one_gets_the_lock(tmp_path: Path) -> None:
    def begin(number: int) -> bool:
        try:
            deployment.begin(str(tmp_path), f"d{number}", holder=f"run {number}")
        except OpsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(8))) == 1


def test_what_failed_before_is_told_to_whoever_takes_it_back(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployment.begin(state, "a", holder="one", failing=["http"])
    # The run that goes on after an interruption measures a half-changed host.
    deployment.begin(state, "b", holder="one", failing=["http", "tts"])
    assert deployment.end(state, "a", holder="one", state=deployment.ROLLED_BACK).extra["failing_before"] == ["http"]
