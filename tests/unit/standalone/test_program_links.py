# SPDX-License-Identifier: GPL-3.0-or-later
"""The links of the programs in a directory that belongs to somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.backend.materialise import BROKEN_PROGRAMS, materialise
from wheels_ops.core.results import OpsError
from wheels_ops.standalone import program_links

LINKS = {"monitor.py": "/opt/ours/monitor.py", "scripts/recovery.py": "/opt/ours/scripts/recovery.py"}


def apply(directory: Path, state: str = "present", **further: t.Any) -> t.Tuple[t.List[str], t.List[str]]:
    actions, left_alone = program_links.run(
        LINKS, str(directory), state=state, check_mode=further.get("check_mode", False)
    )
    return [action["action"] for action in actions], left_alone


def test_links_are_predicted_made_kept_and_removed(tmp_path: Path) -> None:
    assert apply(tmp_path, check_mode=True) == (["link", "link"], [])
    assert not list(tmp_path.iterdir())
    assert apply(tmp_path) == (["link", "link"], [])
    assert {name: os.readlink(tmp_path / name) for name in LINKS} == LINKS
    assert apply(tmp_path) == ([], [])
    assert apply(tmp_path, "absent", check_mode=True) == (["unlink", "unlink"], [])
    assert apply(tmp_path, "absent") == (["unlink", "unlink"], [])
    assert not any(os.path.lexists(tmp_path / name) for name in LINKS)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "monitor.py").write_text('print("his own")\n')
    actions, left_alone = apply(tmp_path)
    assert actions == ["link"] and len(left_alone) == 1 and "monitor.py is not ours and was left alone" in left_alone[0]
    assert apply(tmp_path, "absent")[0] == ["unlink"]
    assert (tmp_path / "monitor.py").read_text() == 'print("his own")\n'


def _state(directory: Path) -> t.Dict[str, t.Tuple[bytes, int, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize("release", ["first_fix", "august"])
def test_a_program_of_the_release_that_cannot_run_is_put_aside_and_comes_back(release: str, tmp_path: Path) -> None:
    root = materialise(release, tmp_path / "pam")
    ours = tmp_path / "ours.py"
    ours.write_text("print('ours')\n")
    links = dict.fromkeys(BROKEN_PROGRAMS, str(ours))

    def run(state: str, check_mode: bool = False) -> t.List[str]:
        actions, left_alone = program_links.run(links, str(root), state=state, check_mode=check_mode)
        assert left_alone == []
        return [action["action"] for action in actions]

    def cron_line() -> str:
        words = [sys.executable, "production_health_monitor.py"]
        return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False).stdout

    before = _state(root)
    assert cron_line() == "", "a SyntaxError"
    assert run("present", check_mode=True) == ["put aside", "link"] * 2 and _state(root) == before
    assert run("present") == ["put aside", "link"] * 2
    assert cron_line() == "ours\n"
    assert run("present") == []
    assert run("absent", check_mode=True) == ["unlink", "put back"] * 2
    assert run("absent") == ["unlink", "put back"] * 2
    assert _state(root) == before and run("absent") == []


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_putting_aside_that_was_killed_is_finished_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    (tmp_path / "scripts").mkdir()
    for name in LINKS:
        (tmp_path / name).write_text("def (:\n")
    before = _state(tmp_path)
    count = iter(range(1, 100))
    for name in ("_rename", "_make"):
        step = getattr(program_links, name)

        def dying(*words: t.Any, step: t.Any = step) -> None:
            if next(count) == killed:
                raise KeyboardInterrupt
            step(*words)

        monkeypatch.setattr(program_links, name, dying)
    with pytest.raises(KeyboardInterrupt):
        apply(tmp_path)
    apply(tmp_path)
    assert {name: os.readlink(tmp_path / name) for name in LINKS} == LINKS
    apply(tmp_path, "absent")
    assert _state(tmp_path) == before


def test_nothing_is_put_aside_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "monitor.py").write_text("def (:\n")
    (tmp_path / "monitor.py.original").write_text("kept\n")
    actions, left_alone = apply(tmp_path)
    assert actions == ["link"] and "monitor.py.original is there already" in left_alone[0]
    assert (tmp_path / "monitor.py").read_text() == "def (:\n"


def test_without_the_directory_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert apply(tmp_path / "nowhere") == ([], []) and not (tmp_path / "nowhere").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom the link leads astray")
@pytest.mark.parametrize("place", ["his", "his/above/backend", "his/scripts"])
def test_no_link_of_another_user_is_followed(tmp_path: Path, place: str) -> None:
    guarded, link = tmp_path / "guarded", tmp_path / place
    (guarded / "backend").mkdir(parents=True)
    link = link.parent if link.name == "backend" else link
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(guarded)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    directory = tmp_path / place if place != "his/scripts" else tmp_path / "his"
    with pytest.raises(OpsError, match="is a link that belongs to another user"):
        apply(directory)
    assert [path.name for path in guarded.rglob("*")] == ["backend"]
