# SPDX-License-Identifier: GPL-3.0-or-later
"""The Molecule scenario that users run in their CI: check mode on a host where nothing ever ran, deploy, again without
a change, verify.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = ["destroy", "syntax", "create", "check", "converge", "idempotence", "verify", "destroy"]


def test_the_default_scenario(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "WHEELS_OPS_SANDBOX": str(tmp_path / "sandbox"),
        "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "molecule"),
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path / "user"),
        "NO_COLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    done = subprocess.run(
        [str(programs / "molecule"), "test", "-s", "default"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    summary = output.rpartition("DETAILS")[2]
    assert re.findall(r"default \S+ (\w+): Executed: Successful", summary) == STEPS, summary
    assert "Everything is healthy (12 checks)." in re.sub(r"\s+", " ", output)
    assert not (tmp_path / "user/.ansible/collections").exists(), "a stale copy of the collection in the home directory"
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "sandbox")], capture_output=True, text=True, check=False)
    assert left.stdout == ""
