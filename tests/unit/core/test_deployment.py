# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock and the journal of a deployment."""

from __future__ import annotations

import json
import os
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wheels_ops import files
from wheels_ops.remedies import backend_patch, deployment
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


def _deploy(place: Path, name: str, content: bytes) -> None:
    (place / "tree").mkdir(exist_ok=True)
    state = str(place / "state")
    deployment.begin(state, name, holder="one")
    request = backend_patch.Request(root=str(place / "tree"), files={"one.py": content})
    backend_patch.install(state, name, request, backend_patch.Proof())
    deployment.end(state, name, holder="one", state=deployment.FINISHED)


@pytest.mark.parametrize("check_mode", [False, True])
def test_an_id_that_is_in_use_keeps_its_originals(tmp_path: Path, check_mode: bool) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/one.py").write_text("old = 1\n")
    _deploy(tmp_path, "a", b"new = 1\n")
    state = str(tmp_path / "state")
    with pytest.raises(OpsError, match="There is a deployment a on this host already"):
        deployment.begin(state, "a", holder="two", check_mode=check_mode)
    assert not (tmp_path / "state/deploy.lock").exists()
    backend_patch.restore(state, "a")
    assert (tmp_path / "tree/one.py").read_text() == "old = 1\n"


def test_the_newest_is_rolled_back_although_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/one.py").write_text("old = 1\n")
    with monkeypatch.context() as ahead:
        ahead.setattr(deployment, "now", lambda: "2099-12-31T23:59:59Z")
        _deploy(tmp_path, "20991231T235959Z", b"new = 1\n")
    _deploy(tmp_path, "20250801T021100Z", b"newer = 1\n")
    state = str(tmp_path / "state")
    assert backend_patch.latest(state) == "20250801T021100Z"
    backend_patch.restore(state, backend_patch.latest(state))
    assert (tmp_path / "tree/one.py").read_text() == "new = 1\n"


def test_a_deployment_that_was_killed_before_its_first_file_leaves_no_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/one.py").write_text("old = 1\n")
    state = str(tmp_path / "state")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        deployment.begin(state, "a", holder="one")

        def kill(_journal: t.Any, _manifest: t.Any) -> t.NoReturn:
            raise KeyboardInterrupt

        killed.setattr(deployment.Journal, "write", kill)
        backend_patch.install(state, "a", backend_patch.Request(root=str(tmp_path / "tree"), files={"one.py": b"new = 1\n"}), backend_patch.Proof())
    assert list((tmp_path / "state/deployments/a/originals").iterdir())
    deployment.hold(state, kind="rollback", holder="two", dead_holders=["one"])
    deployment.end(state, "a", holder="two", state=deployment.ROLLED_BACK)
    assert not (tmp_path / "state/deployments/a").exists()


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


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
@pytest.mark.parametrize("name", ["bin/python", "bin", "lib/python3.11/site-packages/x.pth", ".."])
def test_an_interpreter_of_a_lesser_user_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    prefix = tmp_path / "their/venv"
    packages = prefix / "lib/python3.11/site-packages"
    for directory in (prefix / "bin", packages):
        directory.mkdir(parents=True)
    (prefix / "pyvenv.cfg").touch()
    (packages / "x.pth").touch()
    python = prefix / "bin/python"
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    python.chmod(0o755)
    state = str(tmp_path / "state")
    assert deployment.query(state, interpreter=str(python)).extra["holder"] == ""
    assert deployment.query(state, interpreter=str(prefix / "bin/absent")).extra["holder"] == ""
    os.chown(prefix / name, 65534, 65534)
    with pytest.raises(OpsError, match="other than root control it: .* belongs to user 65534"):
        deployment.query(state, interpreter=str(python))
    assert not (tmp_path / "run").exists()
