# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: breaks the sandbox in the eight ways of the incident report, deploys, and shows what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from tests.sandbox import lifecycle
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Sandbox
from wheels_ops.report import report


def heading(text: str) -> None:
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def playbook(name: str, *words: str, quiet: bool = True, sandbox: t.Optional[Sandbox] = None) -> int:
    """Runs one of the playbooks on the sandbox; quiet shows a line a step and everything only when it fails.

    ``sandbox`` where it is another than the environment names.
    """
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        "inventories/sandbox",
        f"playbooks/{name}.yml",
        *words,
    ]
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0"}
    if sandbox:
        environment["WHEELS_OPS_SANDBOX"] = str(sandbox.directory)
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    lines: t.List[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if not quiet:
            sys.stdout.write(line)
        elif line.startswith("TASK ["):
            sys.stdout.write(f"  {line[6 : line.rindex(']')].replace('wheels.ops.', '')}\n")
        sys.stdout.flush()
    status = process.wait()
    if status and quiet:
        sys.stdout.write("".join(lines[-60:]))
    return status


def run(sandbox: Sandbox) -> int:
    """Gives the exit status of the deployment; 0 only when the proof is green."""
    started = time.monotonic()
    heading("1. a backend on this machine: PostgreSQL, Redis, FastAPI, Celery")
    lifecycle.up(sandbox)
    heading("2. broken in the eight ways of the incident report")
    lifecycle.break_it(sandbox)
    heading("3. ansible-playbook -i inventories/sandbox playbooks/deploy.yml")
    status = playbook("deploy")
    if status:
        return status
    heading("4. before and after")
    before, after = (json.loads((sandbox.reports / name).read_text()) for name in ("before.json", "after.json"))
    done = json.loads((sandbox.reports / "done.json").read_text())
    sys.stdout.write(report.text(before, after, done, colour=sys.stdout.isatty()) + "\n\n")
    for line in report.remaining(after):
        lifecycle.say(line)
    lifecycle.say(f"{len(after['checks'])} checks, status {after['status']}; {time.monotonic() - started:.0f} s in all")
    lifecycle.say(f"The whole report: {sandbox.reports / 'report.html'}  (before.json and after.json beside it)")
    lifecycle.say("Next: make verify, break something by hand, make verify again; make rollback; make sandbox-down")
    return 0 if after["status"] == "ok" else 1
