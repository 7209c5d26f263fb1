# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python that a standalone program looks for: never one that another user may write."""

from __future__ import annotations

import os
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
        (environment / "bin/python").symlink_to(os.path.realpath(sys.executable))
        yield environment / "bin/python"


def test_an_environment_of_ours_is_taken(python: Path) -> None:
    assert launcher.is_ours(python)
    assert python in launcher.interpreters(python.parents[2] / "scripts/program.py")


@pytest.mark.parametrize("name", ["bin", "pyvenv.cfg", ""])
def test_an_environment_that_everybody_may_write_is_not_taken(python: Path, name: str) -> None:
    (python.parents[1] / name).chmod(0o777)
    assert not launcher.is_ours(python)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
@pytest.mark.parametrize("name", ["bin/python", "bin", "pyvenv.cfg", "", ".."])
def test_an_environment_of_another_user_is_not_taken(python: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(python.parents[1] / name, 54321, 54321, follow_symlinks=False)
    assert not launcher.is_ours(python)
    started: t.List[str] = []
    monkeypatch.delenv("WHEELS_OPS_INTERPRETER", raising=False)
    monkeypatch.delenv("WHEELS_OPS_VENV", raising=False)
    monkeypatch.setattr(launcher, "missing", lambda: ["psutil"])
    monkeypatch.setattr(launcher, "interpreters", lambda _program: [python])
    monkeypatch.setattr(os, "execv", lambda program, _words: started.append(program))
    assert "lacks psutil" in launcher.ensure(python.parents[2] / "scripts/program.py", []) and started == []
