# SPDX-License-Identifier: GPL-3.0-or-later
"""When a beat counts as beating: its schedule is written, or held open, by the process that runs now."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from wheels_ops.host import processes
from wheels_ops.services import gates
from wheels_ops.services.model import ServiceState, parse_services


class Members:
    """Of a service manager, what the gate asks for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def pids(self, _state: ServiceState) -> t.Set[int]:
        return {self.pid}


@pytest.mark.parametrize(
    ("suffix", "held", "ready"),
    [
        (".db", True, True),  # Berkeley DB: Debian's Python writes it when beat ends
        ("-wal", True, True),  # SQLite: Python 3.13
        (".dat", False, False),  # nothing but an earlier process's file
    ],
)
def test_a_schedule_that_is_held_open_counts_and_an_old_one_does_not(
    tmp_path: Path, suffix: str, held: bool, ready: bool
) -> None:
    schedule = tmp_path / "schedule"
    file = Path(f"{schedule}{suffix}")
    file.touch()
    os.utime(file, (1_000_000_000, 1_000_000_000))
    program = f"import sys; kept = open({str(file)!r}) if {held} else None; print('up', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", program, "celery", "-A", "demo", "beat"]
    gate = {"type": "beat", "app": "demo", "schedule_file": str(schedule), "url": "redis://127.0.0.1:1/7"}
    (service,) = parse_services([{"name": "beat", "gate": gate}])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            wait_until(lambda: processes.command_line(process.pid) == words)
            seen = gates._PROBES["beat"](service, ServiceState("beat"), t.cast(t.Any, Members(process.pid)))
        finally:
            process.kill()
    assert seen.ready is ready
    assert ("neither written nor opened" in seen.why) is not ready
