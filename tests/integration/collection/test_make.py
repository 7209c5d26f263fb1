# SPDX-License-Identifier: GPL-3.0-or-later
"""``make`` where the locale is that of a bare container."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.sandbox.binaries import REPOSITORY
from tests.support.collection import run


def test_help_lists_every_target_in_the_c_locale() -> None:
    done = run("make", "--no-print-directory", "help", cwd=REPOSITORY, LC_ALL="C")
    assert done.returncode == 0 and done.stderr == ""
    targets = re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE) == targets


def test_sandbox_needs_nothing_but_what_make_demo_installs(tmp_path: Path) -> None:
    """The tests themselves have more."""
    uv, lock = str(Path(sys.executable).with_name("uv")), str(REPOSITORY / "requirements/controller.txt")
    python = tmp_path / "venv/bin/python"
    for words in (
        (uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")),
        (uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", lock),
        (str(python), "-m", "tests.sandbox", "demo", "--help"),
    ):
        done = run(*words, cwd=REPOSITORY, PYTHONPATH=str(REPOSITORY / "src"))
        assert done.returncode == 0, done.stdout + done.stderr


def test_playbooks_run_in_the_c_locale() -> None:
    """A step of Ansible itself, as far as that there is no such host."""
    words = ("make", "--no-print-directory", "verify", "INVENTORY=nobody,", "OUTPUT=default")
    done = run(*words, cwd=REPOSITORY, LC_ALL="C")
    said = done.stdout + done.stderr
    assert "locale" not in said, said
    assert "No host matches backend" in said, said
