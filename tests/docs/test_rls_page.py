# SPDX-License-Identifier: GPL-3.0-or-later
"""Every block of docs/rls.md, executed in the order of the page: what it prints is what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.sandbox.binaries import REPOSITORY
from tests.support import servers
from wheels_ops.rls.model.findings import KINDS

PAGE = REPOSITORY / "docs/rls.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> t.List[t.Tuple[str, str]]:
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def shown(text: str) -> str:
    """Output as it is compared: times in names are alike."""
    return re.sub(r"\b20\d{12}_rls", "STAMP_rls", text).strip()


@pytest.fixture
def fresh() -> t.Iterator[servers.Postgres]:
    """A server without the roles that other tests create: they would be counted."""
    with servers.postgres() as server:
        yield server


def test_console_blocks_print_what_the_page_shows(fresh: servers.Postgres, tmp_path: Path) -> None:
    """In an empty folder, with the page's own SQL files."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/wheels-ops"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wheels_ops.command_line "$@"\n')
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:{os.environ['PATH']}", "DATABASE_URL": fresh.dsn(), "HOME": str(tmp_path)}
    commands = 0
    for kind, text in blocks():
        if kind == "sql":
            path = tmp_path / text.splitlines()[0].removeprefix("-- ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        if kind != "console":
            continue
        for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _newline, expected = entry.partition("\n")
            completed = subprocess.run(
                ["sh", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
            )
            output = completed.stdout + completed.stderr
            if completed.returncode:
                output += f"[exit status {completed.returncode}]\n"
            assert shown(output) == shown(expected), line
            commands += 1
    assert commands >= 6


@pytest.mark.parametrize("text", [text for kind, text in blocks() if kind == "yaml"])
def test_yaml_blocks_name_commands_that_exist(text: str) -> None:
    """They are YAML, and each of their commands of ours has options that the program knows."""
    assert yaml.safe_load(text)
    (line,) = re.findall(r"wheels-ops (rls [^'\n]*)", text)
    from wheels_ops.command_line import parser

    options = parser().parse_args([word.replace("*", "1") for word in line.split()])
    assert options.action == "audit" and options.supabase


def test_compared_rules_have_a_kind_that_exists_or_a_reason() -> None:
    """Every rule of the two other linters has a line, with kinds that the program knows or with the reason."""
    lines = re.findall(
        r"^\| (0\d{3} \w+|[A-Z]+\d{3}) \| (.*?) \| (.*?) ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    names = [name.partition(" ")[0] for name, _here, _why in lines]
    assert len(names) == len(set(names))
    expected = [f"{number:04}" for number in range(1, 31) if number != 12]
    for prefix, last in (("SEC", 55), ("PERF", 5), ("HYG", 4), ("VIEW", 4)):
        expected += [f"{prefix}{number:03}" for number in range(1, last + 1)]
    assert names == expected
    for name, here, why in lines:
        kinds = re.findall(r"`(\w+)`", here)
        assert set(kinds) <= set(KINDS), name
        assert kinds or (here == "no" and why), name
