# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault is found, rightly named, and healed in one run or left to a person; a second run changes nothing; no row,
no task that waits and no line of a log is lost.

``make faults`` runs the matrix, each fault with the playbook and with the program, and writes ``docs/faults.md``;
``make test`` has some.
"""

from __future__ import annotations

import os
import typing as t

import pytest

from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import LOOK
from tests.sandbox import faults
from tests.sandbox.faults import ESCALATED, FAULTS, PAIRS, Bench, Fault, Outcome
from tests.support.container_host import REPOSITORY

WHOLE = os.environ.get("WHEELS_OPS_FAULTS") == "1"
PAGE = REPOSITORY / "docs/faults.md"
#: Those of ``make test``: one for each way in which a run can end.
SHORT = ("celery-beat stopped", "recursive policy", "lock damaged", "PostgreSQL stopped")
SELECTION = [fault for fault in (*FAULTS, *PAIRS) if WHOLE or fault.name in SHORT]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def bench(stage: Stage) -> t.Iterator[Bench]:
    for name, words in (("deploy", LOOK), ("monitor", ())):
        run = stage.playbook(name, *words)
        assert run.status == 0, run.output[-4000:]
    yield Bench(stage.sandbox)


@pytest.fixture(scope="module")
def table() -> t.Iterator[t.List[t.Tuple[str, ...]]]:
    """What became of each fault; the page is written only where all of them were met."""
    rows: t.List[t.Tuple[str, ...]] = []
    yield rows
    if WHOLE and len(rows) == 2 * len(SELECTION):
        PAGE.write_text(faults.page(rows))


@pytest.mark.parametrize("by", ["program", "playbook"] if WHOLE else ["program"])
@pytest.mark.parametrize("fault", SELECTION, ids=lambda fault: fault.name)
def test_fault_is_healed_or_left_to_a_person(
    fault: Fault, by: str, bench: Bench, stage: Stage, table: t.List[t.Tuple[str, ...]]
) -> None:
    bench.restore()
    fault.make(bench)
    before = bench.counts()

    def recover() -> Outcome:
        return faults.script(bench) if by == "program" else _playbook(bench, stage, fault)

    first, second = recover(), recover()
    after = bench.counts()
    said = f"{first.text} {second.text}"
    assert set(fault.subjects) <= set(first.failing), said
    for words in fault.words:
        assert words in said, said
    if fault.end == ESCALATED:
        assert second.status in (1, 2, 3), said
        assert set(second.escalated) & set(fault.subjects), said
        assert "What to do next" in said, said
    else:
        assert (first.status, second.status) == (0, 0), said
        assert second.escalated == () and not second.changed, said
    for name, count in before.items():
        assert after.get(name, count) >= count, name
    table.append((fault.name, by, ", ".join(first.failing) or "nothing", fault.end, str(first.status)))


def _playbook(bench: Bench, stage: Stage, fault: Fault) -> Outcome:
    # How soon a dead peer is noticed is no fault of this file.
    variables: t.Dict[str, t.Any] = {
        "recovery_confirm_after": 1,
        "wheels_ops_websocket_dead_peer_within": 0,
        "wheels_ops_websocket_heartbeat_within": 0,
        **fault.variables(bench),
    }
    words = [word for name, value in variables.items() for word in ("-e", f"{name}='{value}'")]
    run = stage.playbook("recover", *words)
    return Outcome(run.status, run.text, run.changed > 0, faults.failing(run.text), faults.escalated(bench))
