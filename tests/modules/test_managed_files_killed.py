# SPDX-License-Identifier: GPL-3.0-or-later
"""Patched files: killed at any change of the disk, also within a write, the next run ends it, and nothing of ours stays
behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support import killed_patches
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments, leftovers

Tree = t.Dict[str, t.Tuple[t.Any, ...]]


def snapshot(root: Path) -> Tree:
    """Everything below a directory: content, mode, owner and time of change."""
    tree: Tree = {}
    for path in [root / "app", *sorted((root / "app").rglob("*"))]:
        status = path.lstat()
        tree[str(path.relative_to(root))] = (
            path.read_bytes() if path.is_file() else None,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
        )
    return tree


def contents(root: Path) -> t.Dict[str, t.Any]:
    return {name: entry[0] for name, entry in snapshot(root).items() if entry[0] is not None}


def temporary_files(place: Path) -> t.List[str]:
    return [str(path) for path in place.rglob("*.wheels-ops")]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("old")
    killed_patches.make_tree(root)
    return snapshot(root)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> t.Dict[str, t.Any]:
    place = tmp_path_factory.mktemp("new")
    killed_patches.make_tree(place / "production")
    deployments.begin(str(place / "state"), killed_patches.DEPLOYMENT, holder="me")
    killed_patches.install(place)
    return contents(place / "production")


@pytest.fixture(scope="module", params=["install", "restore"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.List[Path]:
    root = tmp_path_factory.mktemp("killed")
    # In a process of its own: one that has threads, as this one, had better not fork.
    words = [sys.executable, "-m", killed_patches.__name__, str(root), request.param]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    places = [root / str(number) for number in range(1, int(done.stdout) + 1)]
    assert len(places) > 20
    assert sum(bool(temporary_files(place / "production")) for place in places) >= 3, "none was killed within a write"
    return places


def test_killed_anywhere_the_next_run_ends_it_and_nothing_of_ours_is_left(
    killed: t.List[Path], old: Tree, new: t.Dict[str, t.Any]
) -> None:
    before = {name: entry[0] for name, entry in old.items() if entry[0] is not None}
    for number, place in enumerate(killed):
        root = place / "production"
        for name, content in contents(root).items():
            if not name.endswith(".wheels-ops"):
                assert content in (
                    before.get(name),
                    new.get(name),
                ), f"{name} is neither old nor new at point {number + 1}"
        if number % 2:
            # As every deployment does: it takes one whose rollback was interrupted back into hand.
            assert (
                deployments.begin(str(place / "state"), "another", holder="me").extra["deployment_id"]
                == killed_patches.DEPLOYMENT
            )
            foretold = backend_patch.install(
                str(place / "state"),
                killed_patches.DEPLOYMENT,
                killed_patches.request(root),
                backend_patch.Proof(),
                check_mode=True,
            )
            done = backend_patch.install(
                str(place / "state"), killed_patches.DEPLOYMENT, killed_patches.request(root), backend_patch.Proof()
            )
            assert (foretold.changed, foretold.actions) == (done.changed, done.actions)
            assert contents(root) == new
            assert {entry[2:4] for entry in snapshot(root).values()} == {old["app"][2:4]}, (
                "a file or directory of another owner"
            )
            assert temporary_files(place) == []
        backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT)
        assert snapshot(root) == old, f"at point {number + 1}"
        assert temporary_files(place) == []
        assert not backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT).changed


@pytest.fixture
def place(tmp_path: Path) -> Path:
    killed_patches.make_tree(tmp_path / "production")
    deployments.begin(str(tmp_path / "state"), killed_patches.DEPLOYMENT, holder="me")
    return tmp_path


def test_git_sees_no_change_after_a_killed_installation_is_rolled_back(place: Path) -> None:
    git = shutil.which("git")
    if not git:
        pytest.skip("needs git")
    root = place / "production"
    words = [git, "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "safe.directory=*"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*words, *command], check=True, capture_output=True)
    killed_patches.install(place)
    token = deployments.Journal(str(place / "state")).read(killed_patches.DEPLOYMENT)["token"]
    left = root / f"app/ours/deep/.extra.py.{token}.wheels-ops"
    left.write_bytes(b"X =")
    assert (
        left.name
        in subprocess.run([*words, "status", "--porcelain", "-uall"], check=True, capture_output=True, text=True).stdout
    )
    backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT)
    assert subprocess.run([*words, "status", "--porcelain"], check=True, capture_output=True, text=True).stdout == ""
    assert not (root / "app/ours").exists()


def test_what_a_living_run_writes_and_what_is_not_ours_stays(place: Path) -> None:
    killed_patches.install(place)
    journal = deployments.Journal(str(place / "state"))
    token = journal.read(killed_patches.DEPLOYMENT)["token"]
    core = place / "production/app/core"
    dead = place / f"production/app/.main.py.{token}.wheels-ops"
    dead.write_bytes(b"half")
    foreign = [
        core / ".cors_config.py.notes.wheels-ops",
        core / ".cors_config.py.0123abcd.wheels-ops",
        core / ".other.py.wheels-ops",
    ]
    for path in foreign:
        path.write_bytes(b"theirs")
    living = core / f".cors_config.py.{token}.wheels-ops"
    with open(living, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert leftovers.sweep(place / "state", journal.all(), check_mode=True) == [str(dead)]
        assert dead.exists()
        assert leftovers.sweep(place / "state", journal.all()) == [str(dead)]
        assert living.exists() and not dead.exists()
    assert leftovers.sweep(place / "state", journal.all()) == [str(living)]
    assert [path.read_bytes() for path in foreign] == [b"theirs"] * 3
    living.symlink_to(foreign[0])
    assert leftovers.sweep(place / "state", journal.all()) == []
    assert living.is_symlink()


def test_any_run_that_takes_the_lock_removes_what_a_dead_one_left(place: Path) -> None:
    killed_patches.install(place)
    state = str(place / "state")
    token = deployments.Journal(state).read(killed_patches.DEPLOYMENT)["token"]
    left = place / f"production/app/.main.py.{token}.wheels-ops"
    left.write_bytes(b"half")
    deployments.hold(state, kind=deployments.PREPARE, holder="me", check_mode=True)
    assert left.exists()
    deployments.hold(state, kind=deployments.PREPARE, holder="me")
    assert not left.exists()


def test_a_restore_that_was_killed_before_it_set_the_time_is_ended(place: Path, old: Tree) -> None:
    killed_patches.install(place)
    cors = place / "production/app/core/cors_config.py"
    cors.write_bytes(old["app/core/cors_config.py"][0])
    foretold = backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT, check_mode=True)
    done = backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT)
    assert {"action": "restore time", "target": str(cors), "changed": True, "bytes": 0} in done.actions
    assert foretold.actions == done.actions
    assert snapshot(place / "production") == old


def test_a_directory_that_got_a_file_of_somebody_else_keeps_its_own_time(place: Path) -> None:
    killed_patches.install(place)
    core = place / "production/app/core"
    (core / "theirs.py").touch()
    now = core.stat().st_mtime_ns
    backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT)
    assert core.stat().st_mtime_ns >= now
    assert os.listdir(core) != []


@pytest.mark.parametrize("change", [{"token": 7}, {"token": "../../x"}, {"directories": []}, {"directories": {"/": 7}}])
def test_what_is_damaged_in_the_journal_beside_the_files_stops_no_rollback(
    place: Path, old: Tree, change: t.Dict[str, t.Any]
) -> None:
    killed_patches.install(place)
    journal = deployments.Journal(str(place / "state"))
    journal.write({**journal.read(killed_patches.DEPLOYMENT), **change})
    backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT)
    assert contents(place / "production") == {name: entry[0] for name, entry in old.items() if entry[0] is not None}


@pytest.mark.parametrize(
    "change", [{"root": 7}, {"relative": "/etc/passwd"}, {"relative": "../x"}, {"relative": ""}, {"root": "here"}]
)
def test_a_damaged_entry_of_a_file_is_named_and_nothing_is_changed(
    place: Path, new: t.Dict[str, t.Any], change: t.Dict[str, t.Any]
) -> None:
    killed_patches.install(place)
    journal = deployments.Journal(str(place / "state"))
    manifest = journal.read(killed_patches.DEPLOYMENT)
    manifest["files"][str(place / "production/app/main.py")].update(change)
    journal.write(manifest)
    with pytest.raises(OpsError):
        backend_patch.restore(str(place / "state"), killed_patches.DEPLOYMENT)
    assert contents(place / "production") == new
