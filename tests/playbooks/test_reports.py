# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports are written below the directory in which Ansible was started, and never into the collection."""

from __future__ import annotations

import json
import re
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.collection import BIN, run


def files(place: Path) -> t.Set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.parametrize(
    "playbook, variables, directory, report",
    [
        ("health", {}, "reports/here", "health.json"),
        ("maintenance", {"monitoring_report_dir": "mine/{{ inventory_hostname }}"}, "mine/here", "thresholds.txt"),
    ],
)
def test_reports_are_below_the_working_directory(
    installed: Path, tmp_path: Path, playbook: str, variables: t.Dict[str, str], directory: str, report: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "wheels_ops_venv": sys.prefix,
        "wheels_ops_state_dir": str(tmp_path / "state"),
        "monitoring_subjects": ["disk"],
        **variables,
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"children": {"backend": {"hosts": {"here": host}}}}}))
    before = files(installed)
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        str(inventory),
        f"wheels.ops.{playbook}",
        *(["--tags", "quarterly"] if playbook == "maintenance" else []),
        cwd=work,
        HOME=str(work / "home"),
        ANSIBLE_COLLECTIONS_PATH=str(installed),
        ANSIBLE_CONFIG=str(installed.parent / "ansible.cfg"),
        ANSIBLE_HOME=str(tmp_path / "ansible"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{directory}/{report}" in files(work), sorted(files(work))
    assert files(installed) == before
    said = re.sub(r"\s+", " ", done.stdout)
    assert f"The report is in {work / directory}." in said
