# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python that a standalone program looks for: never one that another user may write."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
import typing as t
from pathlib import Path

import pytest

from wheels_ops.standalone import launcher


@pytest.fixture
def python() -> t.Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        environment = Path(place) / "venv"
        (environment / "bin").mkdir(parents=True)
        (environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
        (Path(place) / "scripts").mkdir()
        (Path(place) / "scripts/program.py").touch()
        (environment / "bin/python").symlink_to(os.path.realpath(sys.executable))
        yield environment / "bin/python"


def program_beside(python: Path) -> Path:
    return python.parents[2] / "scripts/program.py"


def test_an_environment_of_ours_is_taken(python: Path) -> None:
    assert launcher.is_ours(python, program_beside(python))
    assert python in launcher.interpreters(program_beside(python))


@pytest.mark.parametrize("name", ["bin", "pyvenv.cfg", ""])
def test_an_environment_that_everybody_may_write_is_not_taken(python: Path, name: str) -> None:
    (python.parents[1] / name).chmod(0o777)
    assert not launcher.is_ours(python, program_beside(python))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
@pytest.mark.parametrize("name", ["bin/python", "bin", "pyvenv.cfg", "", ".."])
def test_an_environment_of_another_user_is_not_taken(python: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(python.parents[1] / name, 54321, 54321, follow_symlinks=False)
    assert not launcher.is_ours(python, program_beside(python))
    started: t.List[str] = []
    monkeypatch.delenv("WHEELS_OPS_INTERPRETER", raising=False)
    monkeypatch.delenv("WHEELS_OPS_VENV", raising=False)
    monkeypatch.setattr(launcher, "missing", lambda: ["psutil"])
    monkeypatch.setattr(launcher, "interpreters", lambda _program: [python])
    monkeypatch.setattr(os, "execv", lambda program, _words: started.append(program))
    assert "lacks psutil" in launcher.ensure(program_beside(python), []) and started == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give directories to a group")
@pytest.mark.parametrize("ours", [True, False])
def test_a_group_that_may_write_an_environment_has_no_member_but_us(python: Path, ours: bool) -> None:
    directory = python.parents[1]
    os.chown(directory, 0, 0 if ours else pwd.getpwnam("nobody").pw_gid)
    directory.chmod(0o775)
    assert launcher.is_ours(python, program_beside(python)) is ours


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
def test_a_clone_is_run_with_the_environment_of_its_owner(python: Path) -> None:
    for path in (
        program_beside(python),
        python.parents[1],
        python.parents[1] / "bin",
        python.parents[1] / "pyvenv.cfg",
    ):
        os.chown(path, 54321, 54321)
    assert launcher.is_ours(python, program_beside(python))
