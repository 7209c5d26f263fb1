# SPDX-License-Identifier: GPL-3.0-or-later
"""One step of the ladder: what it asks the kernel for, and what it counts as its gain."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recorded_host import MIB, Host
from wheels_ops.core.results import OpsError
from wheels_ops.remedies.memory import steps


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_reclaim_asks_for_file_cache_only_and_counts_it_apart(host: Host) -> None:
    """The kernel's file is a plain one here, so what was written to it can be read."""
    host.v2("/a", "max", 300 * MIB, cache=100 * MIB)
    directory = str(host.root / "sys/fs/cgroup/a")
    host.write("sys/fs/cgroup/a/memory.reclaim", "")
    outcome = steps.reclaim(directory, proc=host.proc)
    assert Path(directory, "memory.reclaim").read_text() == f"{100 * MIB} swappiness=0"
    assert outcome.details == {"cache_bytes_freed": 0, "anonymous_bytes": 0}


def test_reclaim_of_nothing_is_said(host: Host) -> None:
    host.v2("/a", "max", 300 * MIB)
    with pytest.raises(OpsError, match="holds no file cache"):
        steps.reclaim(str(host.root / "sys/fs/cgroup/a"), proc=host.proc)
