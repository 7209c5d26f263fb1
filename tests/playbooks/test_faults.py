# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault is found, rightly named, and healed in one run or left to a person; a second run changes nothing; no row,
no task that waits and no line of a log is lost. A healthy sandbox raises no alarm.

``make faults`` runs all of it, each fault with the playbook and with the program, and writes ``docs/fault-matrix.md``;
``test_recover.py`` has some of the faults.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import typing as t

import pytest

from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import LOOK
from tests.sandbox import faults
from tests.sandbox.faults import FAULTS, PAIRS, Bench, Fault, Outcome
from tests.support.container_host import REPOSITORY

PAGE = REPOSITORY / "docs/fault-matrix.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("WHEELS_OPS_FAULTS") != "1", reason="make faults: it takes an hour"),
]


@pytest.fixture(scope="module")
def bench(stage: Stage) -> Bench:
    for name, words in (("deploy", LOOK), ("monitor", ())):
        run = stage.playbook(name, *words)
        assert run.status == 0, run.output[-4000:]
    return Bench(stage.sandbox)


@pytest.fixture(scope="module")
def table() -> t.Iterator[t.List[t.Tuple[str, ...]]]:
    """What became of each fault; the page is written only where all of them were met."""
    rows: t.List[t.Tuple[str, ...]] = []
    yield rows
    if len(rows) == 2 * len((*FAULTS, *PAIRS)):
        PAGE.write_text(faults.page(rows))


@pytest.mark.parametrize("by", ["program", "playbook"])
@pytest.mark.parametrize("fault", (*FAULTS, *PAIRS), ids=lambda fault: fault.name)
def test_fault_is_healed_or_left_to_a_person(
    fault: Fault, by: str, bench: Bench, stage: Stage, table: t.List[t.Tuple[str, ...]]
) -> None:
    def recover() -> Outcome:
        return faults.script(bench) if by == "program" else _playbook(bench, stage, fault)

    table.append((*faults.meet(bench, fault, recover), by))


def _playbook(bench: Bench, stage: Stage, fault: Fault) -> Outcome:
    # How soon a dead peer is noticed is no fault of this file.
    variables: t.Dict[str, t.Any] = {
        "recovery_confirm_after": 1,
        "wheels_ops_websocket_dead_peer_within": 0,
        "wheels_ops_websocket_heartbeat_within": 0,
        **fault.variables(bench),
    }
    run = stage.playbook("recover", "-e", json.dumps(variables))
    return Outcome(run.status, run.text, run.changed > 0, faults.failing(run.text), faults.escalated(bench))


@pytest.mark.parametrize(("runs", "hogs"), [(30, 0), (20, 4)], ids=["quiet", "beside four CPU hogs"])
def test_healthy_sandbox_raises_no_alarm_that_blames_the_backend(runs: int, hogs: int, bench: Bench) -> None:
    bench.restore()
    with contextlib.ExitStack() as stack:
        for _hog in range(hogs):
            hog = stack.enter_context(subprocess.Popen([sys.executable, "-m", "tests.support.hog"], cwd=REPOSITORY))
            stack.callback(hog.kill)
        for number in range(runs):
            alarms = faults.alarms(bench)
            assert all("other processes than the services hold" in each for each in alarms if hogs), (number, alarms)
            assert hogs or not alarms, (number, alarms)
