# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host import preflight


def test_environment_works_with_what_is_installed() -> None:
    assert preflight.environment_works(sys.executable, ["json", "psutil", "redis"])


@pytest.mark.parametrize("name", ["no_such_module", "json.no_such_part"])
def test_environment_lacks_a_module(name: str) -> None:
    assert not preflight.environment_works(sys.executable, ["json", name])


def test_environment_is_not_there(tmp_path: Path) -> None:
    assert not preflight.environment_works(str(tmp_path / "bin/python"), ["json"])
    (tmp_path / "python").symlink_to("/nowhere/python3.4")
    assert not preflight.environment_works(str(tmp_path / "python"), ["json"])


def test_environment_with_a_library_of_another_python(tmp_path: Path) -> None:
    """A file that is there and cannot be loaded: the system's Python was replaced by a newer one."""
    package = tmp_path / "compiled"
    package.mkdir()
    (package / "__init__.py").write_text("from compiled import _library\n")
    (package / "_library.cpython-34m.so").write_text("")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    assert not preflight.environment_works(str(program), ["compiled"])


def test_environment_half_installed(tmp_path: Path) -> None:
    """A directory without its code is what an interrupted installation leaves."""
    (tmp_path / "half").mkdir()
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    assert not preflight.environment_works(str(program), ["half"])


def test_free_space_is_what_df_says(tmp_path: Path) -> None:
    answer = preflight.free_space([str(tmp_path), "/"])
    lines = subprocess.run(
        ["df", "--output=avail,target", "-B1", str(tmp_path), "/"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    rows = {line.split(None, 1)[1]: int(line.split()[0]) for line in lines}
    assert answer["path"] in rows
    # Others write to this disk meanwhile.
    assert abs(answer["bytes"] - min(rows.values())) < 2_000_000_000


def test_free_space_of_a_file_system_without_a_size() -> None:
    assert preflight.free_space(["/proc", "/"])["path"] == "/"
    with pytest.raises(OpsError, match="No file system of /proc has a size"):
        preflight.free_space(["/proc"])


def test_free_space_of_nothing() -> None:
    with pytest.raises(OpsError, match="/nowhere/at/all cannot be measured: No such file or directory"):
        preflight.free_space(["/nowhere/at/all"])


def test_look_before_and_after_the_backend_is_there(tmp_path: Path) -> None:
    options: t.Dict[str, t.Any] = {
        "interpreter": sys.executable,
        "modules": ["json"],
        "backend_dir": str(tmp_path / "production"),
        "application": "app/main.py",
        "state_dir": str(tmp_path / "state/below"),
    }
    answer = preflight.look(**options)
    assert (answer.changed, answer.extra["application"], answer.extra["writable"]) == (False, False, False)
    assert answer.extra["environment"] is True
    (tmp_path / "production/app").mkdir(parents=True)
    (tmp_path / "production/app/main.py").touch()
    answer = preflight.look(**options)
    assert (answer.extra["application"], answer.extra["writable"]) == (True, True)
    assert answer.extra["directory"] == str(tmp_path / "production/app")
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif(not os.geteuid(), reason="no mode stops root")
def test_look_where_nothing_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app").chmod(0o555)
    answer = preflight.look(
        interpreter=sys.executable, modules=["json"], backend_dir=str(tmp_path), application="app/x", state_dir="/"
    )
    assert answer.extra["writable"] is False


def test_look_wants_whole_paths() -> None:
    with pytest.raises(OpsError, match="backend_dir must be an absolute path, got 'here'"):
        preflight.look(interpreter="/x", modules=["json"], backend_dir="here", application="x", state_dir="/")
    with pytest.raises(OpsError, match="interpreter must be an absolute path"):
        preflight.environment_works("python3", ["json"])


def test_system_is_named_with_its_python(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('PRETTY_NAME="Debian 12"\nID=debian\nVERSION_ID="12"\n')
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    facts = preflight.system(sys.executable, release=str(release))
    assert facts == {"name": "debian 12", "machine": os.uname().machine, "python": version, "venv": True}


def test_system_without_a_python_or_a_name(tmp_path: Path) -> None:
    facts = preflight.system(str(tmp_path / "python3"), release=str(tmp_path / "os-release"))
    assert (facts["name"], facts["python"], facts["venv"]) == ("unknown", "", False)


def test_system_whose_python_makes_no_environments(tmp_path: Path) -> None:
    """As Debian without python3-venv."""
    (tmp_path / "ensurepip.py").write_text("raise ImportError\n")
    program = tmp_path / "python3"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    facts = preflight.system(str(program))
    assert (facts["python"] != "", facts["venv"]) == (True, False)
