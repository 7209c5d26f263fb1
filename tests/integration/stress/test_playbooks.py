# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole playbooks and the standalone recovery against each other on the sandbox, killed at random moments.

Only with ``make stress``: some minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import psutil
import pytest

from tests.backend.materialise import materialise
from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import LOOK, tree
from tests.sandbox import lifecycle
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Sandbox
from tests.support.waiting import wait_until
from wheels_ops.state import deployments, holder, lock

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("WHEELS_OPS_STRESS_PLAYBOOKS") or 0)
SEED = int(os.environ.get("WHEELS_OPS_STRESS_SEED") or random.randrange(1 << 32))
KINDS = ("deploy", "rollback", "recover", "maintenance", "standalone")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Stage]:
    if not ROUNDS:
        pytest.skip("whole playbooks are part of make stress")
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    try:
        lifecycle.start_servers(sandbox)
        lifecycle.break_it(sandbox)
        yield Stage(sandbox)
    finally:
        lifecycle.down(sandbox)


def start(stage: Stage, kind: str, output: Path) -> subprocess.Popen[bytes]:
    words = stage.command(kind, *LOOK)
    if kind == "standalone":
        config = {
            "state_dir": str(stage.sandbox.state),
            "checks": {
                "subjects": ["http"],
                "base_url": stage.facts.base_url,
                "thresholds": {"response_time_ms": {"warning": 1, "critical": 9000}},
            },
            "recovery": {"confirm_after": 0.1, "log_directories": [], "disk_sources": []},
        }
        path = output.with_suffix(".json")
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        words = [sys.executable, str(REPOSITORY / "scripts/automated_recovery.py"), "--config", str(path)]
    with open(output, "wb") as file:
        return subprocess.Popen(
            words,
            cwd=REPOSITORY,
            env=stage.environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def tasks_that_still_work(stage: Stage) -> t.List[int]:
    """The tasks of killed playbooks: processes of their own, which know whose lock they work under."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            ours = environment.get(lock.HOLDER_VARIABLE) and environment.get(lock.DIRECTORY_VARIABLE) == str(
                stage.sandbox.state
            )
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def holders(stage: Stage) -> t.Set[str]:
    """Whose tasks work on the host at this moment, and live: the witness that there is one holder at most."""
    names = set()
    for pid in tasks_that_still_work(stage):
        with contextlib.suppress(psutil.Error):
            name = psutil.Process(pid).environ()[lock.HOLDER_VARIABLE]
            if holder.judge(name) == holder.ALIVE:
                names.add(name)
    return names


def require_order(stage: Stage, old: t.Dict[str, str], said: str) -> None:
    """What is on the disk is what the journal says; a deployment that was interrupted may have left anything, as long
    as it is open.
    """
    journal = deployments.Journal(str(stage.sandbox.state))
    manifests, damaged = journal.scan()
    assert not damaged, said
    if journal.open_one() is None:
        assert deployments.drifted(journal) == [], said
        if not journal.in_force():
            assert tree(stage.sandbox.backend) == old, said


def test_playbooks_against_each_other(stage: Stage, tmp_path: Path) -> None:
    chance, said = random.Random(SEED), f"seed {SEED} (WHEELS_OPS_STRESS_SEED)"
    old = tree(materialise("incident", tmp_path / "incident"))
    number = 0
    while number < ROUNDS:
        kinds = [chance.choice((*KINDS, "deploy", "rollback")) for _ in range(2)]
        outputs = [tmp_path / f"{number + place}-{kind}.log" for place, kind in enumerate(kinds)]
        number += len(kinds)
        runs = []
        for kind, output in zip(kinds, outputs):
            runs.append(start(stage, kind, output))
            time.sleep(chance.random() * 4)
        victim, moment = chance.choice([*runs, None]), time.monotonic() + chance.uniform(4, 30)
        while any(run.poll() is None for run in runs):
            # The processes are not listed all at the same moment: two looks.
            assert len(holders(stage)) <= 1 or len(holders(stage)) <= 1, f"{said}: {kinds}: two holders"
            if victim is not None and time.monotonic() > moment:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(victim.pid, signal.SIGKILL)
                victim = None
            time.sleep(0.05)
        wait_until(lambda: not tasks_that_still_work(stage), timeout=120, what="the end of every task")
        for output in outputs:
            text = output.read_text(errors="replace")
            assert "Traceback" not in text and "Internal error in wheels.ops" not in text, (
                f"{said}: {output.name}: {text[-3000:]}"
            )
        require_order(stage, old, f"{said}: {kinds} {[run.returncode for run in runs]}, logs in {tmp_path}")
    done = stage.playbook("deploy", *LOOK)
    assert done.status == 0, f"{said}: {done.output[-3000:]}"
    require_order(stage, old, said)
    while deployments.Journal(str(stage.sandbox.state)).in_force():
        done = stage.playbook("rollback", *LOOK)
        assert "No deployment is in force" not in done.text, f"{said}: {done.output[-3000:]}"
    require_order(stage, old, said)
    assert not (stage.sandbox.state / "deploy.lock").exists(), said
