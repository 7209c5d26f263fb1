# SPDX-License-Identifier: GPL-3.0-or-later
"""The one reader of /proc, against this process and what ps and Python's own calls say of it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.collection import COLLECTION
from wheels_ops.host import processes

GONE = 2**22 + 1


def ps(column: str, pid: int) -> str:
    return subprocess.run(
        ["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_stat_of_a_command_with_brackets_and_spaces(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(str(number) for number in range(5, 53))
    (tmp_path / "7/stat").write_text(f"7 (a) S 1) S 42 {fields}\n")
    facts = processes.stat(7, proc=str(tmp_path))
    assert facts == processes.Stat(state="S", parent=42, user=14, system=15, start=22, nice=19, policy=41)


@pytest.mark.parametrize("text", ["", "7 (web) S", "7 (web) S x y", "garbage"])
def test_stat_that_is_cut_short_is_a_process_that_is_gone(tmp_path: Path, text: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(text)
    assert processes.stat(7, proc=str(tmp_path)) is None
    assert processes.stat(GONE) is None


def test_stat_and_status_agree_with_ps() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        facts = processes.stat(child.pid)
        assert facts is not None and facts.parent == os.getpid() == int(ps("ppid", child.pid))
        assert processes.parents()[child.pid] == os.getpid()
        assert processes.status(child.pid)["Uid"].split()[1] == ps("uid", child.pid)
        assert processes.user_of(child.pid) == os.geteuid()
        assert processes.program(child.pid) == ps("comm", child.pid)
        assert child.pid in processes.pids()
    finally:
        child.communicate(b"\n")
    assert processes.stat(child.pid) is None and not processes.hidden(child.pid)


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(
        "4:cpu,cpuacct:/a:b\n1:name=systemd:/web.service\n0::/system.slice/web.service\n"
    )
    assert processes.control_groups(7, proc=str(tmp_path)) == [
        processes.ControlGroup("4", ("cpu", "cpuacct"), "/a:b"),
        processes.ControlGroup("1", ("name=systemd",), "/web.service"),
        processes.ControlGroup("0", (), "/system.slice/web.service"),
    ]


def test_environment_of_a_value_with_an_equals_sign_and_no_text() -> None:
    variables = {"A": "b=c", "EMPTY": "", "RAW": os.fsdecode(b"\xff")}
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1, env=variables)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert {name: processes.environment_of(child.pid)[name] for name in variables} == variables
        assert processes.environment(child.pid, ["A", "NONE"]) == {"A": "b=c"}
    finally:
        child.communicate(b"\n")


#: File of /proc/PID -> the only file of the collection that opens it.
READERS: t.Mapping[str, str] = {
    "stat": "host/processes.py",
    "status": "host/processes.py",
    "cgroup": "host/processes.py",
    "environ": "host/processes.py",
    "cmdline": "host/processes.py",
    "comm": "host/processes.py",
}


def test_each_file_of_a_process_has_one_reader() -> None:
    readers: t.Dict[str, t.Set[str]] = {name: set() for name in READERS}
    for path in sorted((COLLECTION / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                match = re.fullmatch(r"(?:/proc|\{\})/\{\}/(\w+)", text)
                if match and match[1] in readers:
                    readers[match[1]].add(path.relative_to(COLLECTION / "plugins/module_utils").as_posix())
    assert readers == {name: {reader} for name, reader in READERS.items()}


def test_number_of_a_process_in_its_own_namespace_is_that_of_the_kernel() -> None:
    assert processes.inner_pid(os.getpid()) == os.getpid()
    assert processes.inner_pid(2**22 + 1) == 0
