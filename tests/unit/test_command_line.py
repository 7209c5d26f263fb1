# SPDX-License-Identifier: GPL-3.0-or-later
"""The program ``wheels-ops``: its completion, and what it says where a library is missing."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from wheels_ops import command_line


def test_completion_is_that_of_the_parser(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """bash itself completes the words."""
    with pytest.raises(SystemExit) as ended:
        command_line.main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = tmp_path / "wheels-ops.bash"
    script.write_text(capsys.readouterr().out)
    words = [
        action.choices for action in command_line.parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    commands = sorted(str(name) for name in words[0] or ())

    def complete(*line: str) -> t.List[str]:
        program = (
            'source "$1"; shift; COMP_WORDS=(wheels-ops "$@"); COMP_CWORD=$#; COMPREPLY=();'
            ' function=$(complete -p wheels-ops | sed "s/.* -F \\([^ ]*\\) .*/\\1/");'
            ' "$function" wheels-ops "${@: -1}" "${@: -2:1}"; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", program, "bash", str(script), *line], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert set(commands) <= set(complete(""))
    assert complete("rls", "aud") == ["audit"]


@pytest.mark.parametrize("shell, mark", [("zsh", "#compdef wheels-ops"), ("fish", "complete -c wheels-ops")])
def test_completion_for_other_shells(capsys: pytest.CaptureFixture[str], shell: str, mark: str) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--print-completion", shell])
    text = capsys.readouterr().out
    assert mark in text and "audit" in text
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("module, package", [("shtab", "shtab"), ("psycopg2", "psycopg2-binary")])
def test_missing_library_is_named_as_pip_knows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    words = {
        "shtab": ["--print-completion", "bash"],
        "psycopg2": ["rls", "audit", "--dsn", "host=/nowhere"],
    }[module]
    try:
        status = command_line.main(words)
    except SystemExit as ended:
        status = t.cast("int", ended.code)
    assert status == command_line.UNKNOWN
    said = capsys.readouterr().err
    assert f"the package {package} is missing: " in said and said.endswith(f"pip install {package}\n")
