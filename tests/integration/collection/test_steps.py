# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sees of a run that is shown by the callback ``wheels.ops.steps``."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY

PLAY = """
- name: Tidy
  hosts: all
  gather_facts: false
  tasks:
    - name: Set a fact that nobody needs to see
      ansible.builtin.set_fact: {seen: "no"}
    - name: Create the directory of a name that is much too long to stand on one line of a terminal
      ansible.builtin.file: {path: "{{ place }}/{{ inventory_hostname }}/directory", state: directory}
    - name: Look at the directory
      ansible.builtin.stat: {path: "{{ place }}"}
    - name: Write a secret
      ansible.builtin.copy: {content: "correct-horse", dest: "{{ place }}/{{ inventory_hostname }}/secret"}
      no_log: true
      diff: false
    - name: Show the report
      ansible.builtin.debug: {msg: "first line\\nsecond line"}
    - name: Fail where there is a reason
      ansible.builtin.fail: {msg: "There is no room. Free some first, then run it again; nothing was changed on here."}
      when: inventory_hostname == 'b'
"""


@pytest.fixture
def command(tmp_path: Path) -> t.List[str]:
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "hosts").write_text(
        "".join(f"{name} ansible_connection=local ansible_python_interpreter={sys.executable}\n" for name in "abc")
    )
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return [program, "-i", str(tmp_path / "hosts"), str(tmp_path / "play.yml"), "-e", f"place={tmp_path}/made"]


def environment(**more: str) -> t.Dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "ANSIBLE_FORCE_COLOR")}
    return {
        **mine,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_HOME": str(REPOSITORY / ".ansible"),
        "ANSIBLE_STDOUT_CALLBACK": "wheels.ops.steps",
        **more,
    }


def on_terminal(command: t.Sequence[str], **more: str) -> str:
    """The output of a command that believes that a person looks on."""
    leader, follower = pty.openpty()
    try:
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(TERM="xterm", **more), stdout=follower, stderr=follower
        ) as process:
            os.close(follower)
            parts: t.List[bytes] = []
            try:
                while part := os.read(leader, 65536):
                    parts.append(part)
            except OSError:  # what Linux gives at the end of a terminal
                pass
            process.wait()
    finally:
        os.close(leader)
    return b"".join(parts).decode()


def test_plain_lines_of_eighty_columns(command: t.List[str]) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    output = done.stdout
    assert "\033" not in output and "\r" not in output
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80, output
    assert lines[0] == "Tidy"
    created = next(line for line in lines if "Create the directory" in line)
    assert re.fullmatch(r" +\d+\.\d s  changed  \[#{10}\] 3/3 Create the directory.*\.\.\.", created), created
    looked = next(line for line in lines if "Look at the directory" in line)
    assert re.fullmatch(r" +\d+\.\d s  ok       \[#{10}\] 3/3 Look at the directory", looked), looked
    assert "Set a fact" not in output and "correct-horse" not in output
    assert output.count("first line\nsecond line\n") == 1, "three hosts say the same"
    assert re.search(r"failed   Fail where there is a reason on b\n", output)
    assert "There is no room. Free some first, then run it again; nothing was changed on here." in " ".join(
        output.split()
    )
    recap = [re.sub(r"^ *[\d.]+ s ", "", line) for line in lines[-3:]]
    assert recap == [
        " changed  a: 2 changed",
        " failed   b: 2 changed",
        " changed  c: 2 changed",
    ]


def test_colors_and_a_bar_on_a_terminal_unless_somebody_minds(command: t.List[str]) -> None:
    shown = on_terminal(command)
    assert "\033[33m" in shown and "\033[31m" in shown
    assert re.search(r"\[#{3}\.{7}\] 1/3 ", shown), "the bar moves while hosts finish"
    plain = on_terminal(command, NO_COLOR="1")
    assert not re.search(r"\033\[\d*m", plain)


def test_diff_and_reason(command: t.List[str], tmp_path: Path) -> None:
    """A module's own message is the reason; a difference stands below its step."""
    (tmp_path / "play.yml").write_text(
        "- {name: One, hosts: a, gather_facts: false, tasks: [{name: Write, ansible.builtin.copy: "
        "{content: 'new line', dest: '{{ place }}-file'}}]}\n"
    )
    done = subprocess.run(
        [*command, "--diff"], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "+new line" in done.stdout and "\033" not in done.stdout
    assert re.search(r"changed  Write: /\S+", done.stdout), done.stdout
