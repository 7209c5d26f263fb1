# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole playbook: what a run costs that finds nothing to do, beside one that repairs everything."""

from __future__ import annotations

import contextlib
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


def deploy(sandbox: Sandbox) -> t.Tuple[float, int]:
    """Seconds of one ``playbooks/deploy.yml``, and the number of changes that it reports."""
    environment = {
        **os.environ,
        "WHEELS_OPS_SANDBOX": str(sandbox.directory),
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
    }
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        "inventories/sandbox",
        "playbooks/deploy.yml",
    ]
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"the deployment failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return seconds, sum(int(number) for number in re.findall(r"changed=(\d+)", done.stdout))


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
