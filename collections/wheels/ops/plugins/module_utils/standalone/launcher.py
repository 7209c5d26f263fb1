# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finds a Python that has what the library imports, and says in one line what to do where there is none.

Only the standard library is imported here: ``python3 production_health_monitor.py`` is the system's Python, which has
nothing of ours.
"""

from __future__ import annotations

import contextlib
import grp
import importlib.util
import os
import pwd
import stat
import sys
import typing as t
from pathlib import Path

from ..core.packages import PACKAGES

#: Exit status of a monitor whose result is unknown.
UNKNOWN = 3
_MARK = "WHEELS_OPS_INTERPRETER"
_DEFAULT_VENV = "/opt/wheels-ops/venv"


def missing() -> t.List[str]:
    """The packages that this Python lacks."""
    return [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]


def interpreters(program: Path) -> t.List[Path]:
    """Where a Python of ours may be, the likeliest first: named, beside the program, in a clone, where the role makes
    it.
    """
    configured = [Path(directory) / "bin/python" for directory in [os.environ.get("WHEELS_OPS_VENV")] if directory]
    paths = []
    with contextlib.suppress(OSError):
        # Beside an installed library the role notes the Python of its tasks.
        paths.append(
            Path(Path(__file__).resolve().parents[2].joinpath("interpreter").read_text(encoding="utf-8").strip())
        )
    above = [
        directory / name / "bin/python"
        for directory in program.parents
        for name in ("venv", ".venv")
        if (directory / name / "pyvenv.cfg").is_file()
    ]
    return [*configured, *paths, *above, Path(_DEFAULT_VENV) / "bin/python"]


def is_ours(python: Path, program: Path) -> bool:
    """Whether a Python, its environment and the directories above it are written by nobody but root, this user and the
    owner of the program that runs.

    The backend's virtual environment may lie above the program as well; its owner's code does not run as us.
    """
    owners = {0, os.geteuid(), program.stat().st_uid}
    for place in (python, python.parent.parent / "pyvenv.cfg"):
        with contextlib.suppress(FileNotFoundError):
            for path in {place.absolute(), *place.absolute().parents, place.resolve(), *place.resolve().parents}:
                status = path.stat()
                open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
                open_to_group = status.st_mode & stat.S_IWGRP and _members(status.st_gid) - owners
                if open_to_all or open_to_group or {path.lstat().st_uid, status.st_uid} - owners:
                    return False
    return True


def _members(gid: int) -> t.Set[int]:
    """The users of a group, by number."""
    try:
        names = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        names = set()
    return {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid or user.pw_name in names}


def ensure(program: Path, words: t.Sequence[str]) -> str:
    """Starts the program again under the first Python of ours, where this one lacks packages; gives what is missing
    where there is none.

    The answer is one line for a person, empty where nothing is missing.
    """
    packages = missing()
    if not packages:
        return ""
    if _MARK not in os.environ:
        for python in interpreters(program):
            if os.access(python, os.X_OK) and is_ours(python, program):
                os.environ[_MARK] = str(python)
                sys.stdout.flush()
                os.execv(str(python), [str(python), str(program), *words])
    return (
        f"{program.name}: {sys.executable} lacks {', '.join(packages)}. Run the playbook prepare, which makes"
        f" {_DEFAULT_VENV}, or: {sys.executable} -m pip install {' '.join(packages)}"
    )
