# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole playbook: what a run costs that finds nothing to do, beside one that repairs everything."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from tests.bench.harness import REPOSITORY, Pair, benchmark
from tests.sandbox import lifecycle
from tests.sandbox.layout import Sandbox
from tests.support import remote_tasks


def ansible(sandbox: Sandbox, program: str, *words: str, **more: str) -> t.Tuple[float, str]:
    """Seconds and output of ``ansible`` or ``ansible-playbook`` on the sandbox."""
    environment = {
        **os.environ,
        "WHEELS_OPS_SANDBOX": str(sandbox.directory),
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
        **more,
    }
    command = [str(Path(sys.executable).with_name(program)), "-i", "inventories/sandbox", *words]
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(words)} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return seconds, done.stdout


def deploy(sandbox: Sandbox) -> t.Tuple[float, int]:
    """Seconds of one ``playbooks/deploy.yml``, and the number of changes that it reports."""
    seconds, output = ansible(sandbox, "ansible-playbook", "playbooks/deploy.yml")
    return seconds, sum(int(number) for number in re.findall(r"changed=(\d+)", output))


@contextlib.contextmanager
def deployed() -> t.Iterator[Sandbox]:
    """A broken sandbox that was deployed to."""
    with tempfile.TemporaryDirectory(prefix="wops-") as directory, contextlib.redirect_stdout(sys.stderr):
        sandbox = Sandbox(Path(directory))
        try:
            lifecycle.up(sandbox)
            lifecycle.break_it(sandbox)
            deploy(sandbox)
            yield sandbox
        finally:
            lifecycle.down(sandbox)


@benchmark(
    "D1",
    what="a whole `deploy` that changes nothing, wall time with the health before and after",
    unit="s",
    goal="ratio <= 0.9",
    peer="`deploy` onto the broken backend",
    runs=3,
)
@contextlib.contextmanager
def unchanged_deploy() -> t.Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="wops-") as directory, contextlib.redirect_stdout(sys.stderr):
        sandbox = Sandbox(Path(directory))

        def first() -> float:
            lifecycle.break_it(sandbox)
            seconds, changes = deploy(sandbox)
            if not changes:
                raise RuntimeError("a deployment onto the broken backend reports no change")
            return seconds

        def again() -> float:
            seconds, changes = deploy(sandbox)
            if changes:
                raise RuntimeError(f"a deployment that has nothing to do reports {changes} changes")
            return seconds

        try:
            lifecycle.up(sandbox)
            first()
            yield again, first
        finally:
            lifecycle.down(sandbox)


@benchmark(
    "D1b",
    what="a whole `deploy` that changes nothing, wall time",
    unit="s",
    goal="ratio <= 1.5",
    peer="`verify`",
    runs=3,
)
@contextlib.contextmanager
def unchanged_deploy_beside_verify() -> t.Iterator[Pair]:
    with deployed() as sandbox:

        def again() -> float:
            seconds, changes = deploy(sandbox)
            if changes:
                raise RuntimeError(f"a deployment that has nothing to do reports {changes} changes")
            return seconds

        yield again, lambda: ansible(sandbox, "ansible-playbook", "playbooks/verify.yml")[0]


@benchmark(
    "D2",
    what="a whole `deploy` that changes nothing: tasks that run a module on the host",
    unit="tasks",
    goal="ours <= 25",
    runs=1,
)
@contextlib.contextmanager
def tasks_of_an_unchanged_deploy() -> t.Iterator[Pair]:
    with deployed() as sandbox:

        def count() -> float:
            file = sandbox.directory / "remote-tasks"
            ansible(sandbox, "ansible-playbook", "playbooks/deploy.yml", **remote_tasks.counting(file))
            return float(len(remote_tasks.counted(file)))

        yield count, None


@benchmark(
    "J4",
    what="`verify` on a healthy sandbox, wall time less that of its longest single check",
    unit="s",
    goal="ratio <= 2",
    peer="`ansible -m ping`",
    runs=3,
)
@contextlib.contextmanager
def verify_beside_ping() -> t.Iterator[Pair]:
    with deployed() as sandbox:

        def verify() -> float:
            seconds, _output = ansible(sandbox, "ansible-playbook", "playbooks/verify.yml")
            ansible(sandbox, "ansible-playbook", "playbooks/health.yml")
            health = json.loads((sandbox.reports / "health.json").read_text(encoding="utf-8"))
            return seconds - max(check["duration_ms"] for check in health["checks"]) / 1000

        yield verify, lambda: ansible(sandbox, "ansible", "backend", "-m", "ping")[0]
