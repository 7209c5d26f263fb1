# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployments and rollbacks that are killed, and finished by the next run. The second test builds on the first."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import requests

from tests.backend.materialise import materialise
from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import LOOK, fingerprint, report, statuses, tree
from tests.sandbox.binaries import REPOSITORY

pytestmark = pytest.mark.slow


def test_kill_in_the_middle_is_finished_by_the_next_run(stage: Stage, installed: Path) -> None:
    """The next run is a whole deployment, and comes from the installed tarball: it needs nothing of the repository."""
    process = subprocess.Popen(
        stage.command("deploy", *LOOK),
        cwd=REPOSITORY,
        env=stage.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TASK [Set the environment variables]"):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    assert stage.proxy_requests() == ["drain 200"]
    assert "BEGIN wheels.ops" in (stage.sandbox.backend / "app/main.py").read_text()
    before = fingerprint(stage)
    for playbook in ("recover", "maintenance"):
        # It would restart services on what is half-installed, and seal it.
        run = stage.playbook(playbook, *LOOK)
        assert run.status != 0 and run.changed == 0
        for words in (
            "was interrupted at step",
            "ansible-playbook -i INVENTORY playbooks/deploy.yml",
            "ansible-playbook -i INVENTORY playbooks/rollback.yml",
        ):
            assert words in run.text, run.output[-3000:]
    assert fingerprint(stage) == before
    assert stage.proxy_requests() == [], "what is half-installed serves nobody"
    run = stage.installed_playbook(installed, "deploy")
    assert run.status == 0, run.output[-4000:]
    assert "was interrupted at step" in run.text
    assert stage.proxy_requests() == ["drain 200", "restore 200"]
    assert set(statuses(report(stage, "after.json")).values()) == {"ok"}


def test_rollback_leaves_no_trace(stage: Stage, tmp_path: Path) -> None:
    """Also where it was killed after the last file, and before the services were restarted."""
    process = subprocess.Popen(
        stage.command("rollback", *LOOK),
        cwd=REPOSITORY,
        env=stage.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TASK [Reload systemd]"):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    refused = stage.playbook("recover", *LOOK)
    assert refused.status != 0 and "The rollback of deployment" in refused.text and "was interrupted" in refused.text, (
        refused.output[-3000:]
    )
    served = {name: pid for name, pid in fingerprint(stage).items() if name.startswith("process pam-")}
    run = stage.playbook("rollback")
    assert served and all(fingerprint(stage)[name] != pid for name, pid in served.items()), (
        "they would serve what is no longer on the disk"
    )
    assert run.status == 0, run.output[-3000:]
    assert "The backend answers again." in run.text
    assert stage.proxy_requests() == ["drain 200", "restore 200"]
    assert tree(stage.sandbox.backend) == tree(materialise("incident", tmp_path / "incident"))
    assert not stage.sandbox.env_file.exists()
    assert stage.sandbox.etc.stat().st_mode & 0o777 == 0o700, "a directory that was there is nobody's to open"
    assert requests.get(f"{stage.facts.base_url}/health", timeout=10).status_code == 200
