# SPDX-License-Identifier: GPL-3.0-or-later
"""health_info as Ansible runs it, beside what hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.collection import COLLECTION
from tests.support.dead_mount import dead_mount


@pytest.mark.root
@pytest.mark.parametrize("option", ["filesystems", "logs", "disk_budgets"])
def test_a_dead_mount_holds_back_neither_the_report_nor_the_process(tmp_path: Path, option: str) -> None:
    path = tmp_path / "nfs"
    values = {"filesystems": [str(path)], "logs": [f"{path}/*.log"], "disk_budgets": {str(path): 10**9}}
    arguments = {
        "subjects": ["disk", "memory"],
        "timeout": 2,
        "filesystems": ["/"],
        option: values[option],
        "_ansible_remote_tmp": "/tmp",
    }
    try:
        with dead_mount(path):
            done = subprocess.run(
                [sys.executable, str(COLLECTION / "plugins/modules/health_info.py")],
                input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
                env={**os.environ, "PYTHONPATH": str(COLLECTION.parents[1])},
                capture_output=True,
                text=True,
                check=False,
                timeout=100,  # a process that waits for the mount never ends
            )
    except PermissionError:
        pytest.skip("needs the right to mount")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert (checks["disk"]["status"], checks["disk"]["message"]) == ("unknown", "No answer within 2 s.")
    assert checks["memory"]["status"] != "unknown"
