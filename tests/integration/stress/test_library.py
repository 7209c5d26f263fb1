# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that changes a host, against each other, in random order, killed at random points."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
import typing as t
from pathlib import Path

from tests.support.stress_runs import BROKEN, DONE, FILES, KINDS, REFUSED, Host, Run
from wheels_ops.state import deployments, holder, lock

#: ``make stress`` makes it long. A seed of an earlier run gives its order and its kills again, though not the kernel's
#: scheduling.
RUNS = int(os.environ.get("WHEELS_OPS_STRESS_RUNS") or 90)
SEED = int(os.environ.get("WHEELS_OPS_STRESS_SEED") or random.randrange(1 << 32))


def require_order(host: Host, said: str) -> None:
    """After every process has ended: the journal says what is on the disk, and nobody complained."""
    assert not host.complaints.exists(), f"{said}: {host.complaints.read_text()}"
    journal = deployments.Journal(str(host.state))
    manifests, damaged = journal.scan()
    assert not damaged, f"{said}: {damaged}"
    versions = host.versions()
    if journal.open_one() is None:
        assert len(versions) == 1 and -1 not in versions, (
            f"{said}: no deployment is open, and the tree has the versions {versions}"
        )
        in_force = journal.in_force()
        expected = {entry["installed"][-1] for entry in in_force[0]["files"].values()} if in_force else set()
        on_disk = {
            path: deployments.sha256((host.root / path).read_bytes()) for path in FILES if (host.root / path).exists()
        }
        assert set(on_disk.values()) <= expected if in_force else versions == {0}, (
            f"{said}: the journal says another version than {versions}"
        )
    entry = lock.read(host.state) if host.state.exists() else None
    assert entry is None or holder.judge(entry.holder) == holder.DEAD, f"{said}: {entry} is held by nobody"


def alone(host: Host, kind: str, number: int, *, version: int = 1) -> int:
    return Run(host, kind, number, version=version, kill_at=0).wait()


def test_one_holder_and_a_whole_tree_whatever_is_killed(tmp_path: Path) -> None:
    host, chance = Host(tmp_path), random.Random(SEED)
    said = f"seed {SEED} (WHEELS_OPS_STRESS_SEED)"
    ends: t.Counter[t.Tuple[str, str]] = collections.Counter()
    number = 0
    while number < RUNS:
        runs = []
        for _ in range(chance.choice((1, 2, 3))):
            number += 1
            kind = chance.choice((*KINDS, "deploy", "rollback"))
            kill_at = chance.choice((0, 0, chance.randint(1, 12), chance.randint(1, 70), chance.randint(1, 70)))
            runs.append(Run(host, kind, number, version=chance.randint(1, 3), kill_at=kill_at))
        if chance.random() < 0.2:
            # Anywhere, also inside a write.
            time.sleep(chance.random() * 0.03)
            os.kill(chance.choice(runs).pid, signal.SIGKILL)
        for run in runs:
            status = run.wait()
            ends[run.kind, {DONE: "done", REFUSED: "refused", BROKEN: "broken", -signal.SIGKILL: "killed"}[status]] += 1
        require_order(host, f"{said}, run {number}: {[(run.kind, run.kill_at) for run in runs]}")
    for kind in ("deploy", "rollback"):
        for how in ("done", "refused", "killed"):
            assert ends[kind, how], f"{said}: no {kind} was {how}: {ends}"
    assert alone(host, "deploy", number + 1, version=4) == DONE
    require_order(host, said)
    assert host.versions() == {4}, said
    assert alone(host, "recover", number + 2) == DONE
    while deployments.Journal(str(host.state)).in_force():
        assert alone(host, "rollback", number + 3) == DONE
        require_order(host, said)
    assert host.versions() == {0}, said
    assert host.listing() == host.original, said
    left = [str(path) for path in host.state.rglob("*") if path.name.startswith(".") or path.name == lock.NAME]
    assert left == [], f"{said}: {left}"
