# SPDX-License-Identifier: GPL-3.0-or-later
"""Every filesystem, every kind of writer, every fault: no line is lost, doubled or torn, nothing ends in a traceback,
nothing of ours stays behind, and owner, mode, access list and attributes are the same before and after.

Each filesystem meets every fault, with the writers in turn. ``make matrix`` (WHEELS_OPS_MATRIX=1) runs all 125 cells.
"""

from __future__ import annotations

import os
import signal
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.support import filesystems, log_writer
from tests.support.killed_rotation import killed_before
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.remedies.logs import logrotate, rotate

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
    pytest.mark.skipif(not logrotate.installed(), reason="this machine has no logrotate"),
]
#: How each writes, and lines a second.
WRITERS: t.Dict[str, t.Tuple[str, int]] = {
    "append": ("append", 10_000),
    "reopen": ("reopen", 5000),
    "sparse": ("plain", 5000),
    "slow": ("append", 50),
    "bursty": ("bursty", 10_000),
}
FAULTS: t.Tuple[str, ...] = ("none", "full", "read-only", "attribute", "kill")
SIZE = 200_000
#: Before which steps a rotation is killed.
KILLED = (3, 6, 9, 12, 15)


def cells(kind: str) -> t.List[t.Tuple[str, str]]:
    if os.environ.get("WHEELS_OPS_MATRIX"):
        return [(writer, fault) for writer in WRITERS for fault in FAULTS]
    turn = filesystems.KINDS.index(kind)
    names = list(WRITERS)
    return [(names[(turn + number) % len(names)], fault) for number, fault in enumerate(FAULTS)]


def beside(path: Path) -> t.Tuple[int, int, int, t.Dict[str, bytes]]:
    """Mode, owner, group, and what else a file has, by the system's own calls."""
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid, {name: os.getxattr(path, name) for name in os.listxattr(path)}


def refused(call: t.Callable[[], object]) -> str:
    """The words of a refusal; empty where the call did its work. Anything else fails the test."""
    try:
        call()
    except OpsError as error:
        assert error.hint, error
        return str(error)
    return ""


def endure(fault: str, top: Path, log: Path, options: rotate.Options, process: subprocess.Popen[str]) -> None:
    """A rotation with a fault in its way."""
    if fault == "none":
        assert not refused(lambda: rotate.run([str(log)], options))
    elif fault == "full":
        # What the writer itself could not write is not ours to lose.
        process.send_signal(signal.SIGSTOP)
        try:
            with filesystems.full(top):
                words = refused(lambda: rotate.run([str(log)], options))
        finally:
            process.send_signal(signal.SIGCONT)
        assert "is full" in words or "no room" in words or "still writes" in words or not words, words
    elif fault == "read-only":
        with filesystems.read_only_view(log.parent) as view:
            assert "mounted read-only" in refused(lambda: rotate.run([str(view / log.name)], options))
    elif fault == "attribute":
        with filesystems.attribute(log, "a"):
            assert "append-only" in refused(lambda: rotate.run([str(log)], options))
    else:
        for step in KILLED:
            killed_before(step, lambda: refused(lambda: rotate.run([str(log)], options)))


def one_cell(top: Path, writer: str, fault: str) -> None:
    directory = top / f"{writer}-{fault}"
    directory.mkdir()
    log = directory / "access.log"
    start = log_writer.fill(log, 2 * SIZE)
    log.chmod(0o640)
    os.chown(log, 12, 34)
    filesystems.run("setfacl", "-m", "u:65534:r", str(log))
    os.setxattr(log, "user.shipper", b"offset\xff")
    before = beside(log)
    how, rate = WRITERS[writer]
    with log_writer.writer(log, how, rate=rate, start=start) as (process, stop):
        reopen = ("kill", "-HUP", str(process.pid)) if how == "reopen" else ()
        options = rotate.Options(max_size=SIZE, keep=1000, reopen=reopen, reopen_timeout=1 if fault == "full" else 30)
        endure(fault, top, log, options, process)
        rotate.run([str(log)], options)
        if rate > 1000:
            wait_until(lambda: log.exists() and rotate.disk_bytes(log.stat()) > SIZE, what="a full log")
        assert not refused(lambda: rotate.run([str(log)], options))
        written = stop()
    rotate.run([str(log)], options)
    assert not rotate.run([str(log)], options).changed
    counts = log_writer.account(log_writer.read(directory, log.name), written)
    if how == "plain" or top.name in ("btrfs", "tmpfs"):
        counts["nuls"] = 0  # nothing but holes can be made there, and they read as zeros
    assert counts == {"lost": 0, "doubled": 0, "torn": 0, "nuls": 0}
    names = os.listdir(directory)
    assert len(names) > 1 and not [name for name in names if name.startswith(".")], names
    assert {name: beside(directory / name) for name in names} == dict.fromkeys(names, before)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", filesystems.KINDS)
def test_no_line_is_lost_whatever_happens(kind: str, tmp_path: Path) -> None:
    sizes = {"ext4": 64, "overlay": 64, "tmpfs": 64, "btrfs": 200}
    for writer, fault in cells(kind):
        # A filesystem for each: one that was full once is slow, and one that is large takes long to fill.
        with filesystems.mounted(kind, tmp_path / f"{writer}-{fault}", mib=sizes.get(kind, 0)) as top:
            try:
                one_cell(top, writer, fault)
            except (AssertionError, OSError, OpsError) as error:
                raise AssertionError(f"{kind}, {writer}, {fault}: {error}") from error
