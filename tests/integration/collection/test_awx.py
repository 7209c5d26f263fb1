# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX sees of a project of this repository, and what it gets of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

from tests.sandbox.binaries import REPOSITORY
from tests.support.waiting import free_port

#: AWX lists a YAML file as a playbook by a line like these (awx/main/utils/ansible.py), whatever else is in it.
LISTED = re.compile(r"^\s*-?\s*(hosts|include|import_playbook):")
#: Files below directories of these names, or of names that begin with a dot, are not looked at; nor are links followed.
LEFT_OUT = {"roles", "tasks", "group_vars", "host_vars"}


def tracked() -> t.List[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [Path(name) for name in done.stdout.splitlines()]


def is_listed(path: Path) -> bool:
    directories = path.parts[:-1]
    if path.suffix not in (".yml", ".yaml") or LEFT_OUT.intersection(directories):
        return False
    if any(name.startswith(".") for name in directories) or (REPOSITORY / path).is_symlink():
        return False
    return any(LISTED.match(line) for line in (REPOSITORY / path).read_text().splitlines())


def test_discovery_lists_our_playbooks_and_nothing_else() -> None:
    """Where a file is listed that is not to be: write its key as ``"hosts":``, which is the same YAML."""
    listed = {str(path) for path in tracked() if is_listed(path)}
    playbooks = {str(path) for path in tracked() if path.parts[0] == "playbooks"}
    assert len(playbooks) >= 8
    assert listed == playbooks


def health(directory: Path, **variables: t.Any) -> t.Tuple[int, str]:
    """Runs ``health`` on this machine with a backend that is not there; gives its status and what it printed."""
    everything = {
        "wheels_ops_hosts": "all",
        "ansible_python_interpreter": sys.executable,
        "wheels_ops_venv": sys.prefix,
        "wheels_ops_state_dir": str(directory / "state"),
        "wheels_ops_report_dir": str(directory / "reports"),
        "monitoring_subjects": ["http"],
        "wheels_ops_base_url": f"http://127.0.0.1:{free_port()}",
        **variables,
    }
    words = ["-i", "here,", "-c", "local", "playbooks/health.yml", "-e", json.dumps(everything)]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), *words],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_SHOW_CUSTOM_STATS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_scheduled_health_fails_and_gives_its_artifacts(tmp_path: Path) -> None:
    status, output = health(tmp_path, wheels_ops_health_must_pass=True)
    assert status != 0, output
    assert "Require all checks to pass" in output
    artifacts = re.sub(r"\s+", " ", output.partition("CUSTOM STATS")[2])
    for words in ("ops_status: critical", "hosts_failing: 1", "failing: - http", "health.html"):
        assert words in artifacts, output


def test_health_of_a_person_reports_and_succeeds(tmp_path: Path) -> None:
    status, output = health(tmp_path)
    assert status == 0, output
    assert "ops_status: critical" in output
