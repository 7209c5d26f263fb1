# SPDX-License-Identifier: GPL-3.0-or-later
"""A rotation that is killed at each of its steps, one after the other, under a running writer: the next run finishes
it, no line is lost or doubled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.support import log_writer
from tests.support.killed_rotation import killed_before
from tests.support.waiting import wait_until
from wheels_ops.remedies.logs import rotate

SIZE = 250_000


@pytest.mark.parametrize(
    ("how", "strategy"), [("append", "collapse"), ("plain", "punch"), ("reopen", "logrotate"), ("nobody", "rename")]
)
@pytest.mark.parametrize("compress", [True, False])
def test_killed_at_every_step(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    strategy: str,
    compress: bool,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))  # a killed one cannot clear it
    log = tmp_path / "access.log"
    if how == "nobody":
        written, pid, stop = log_writer.fill(log, SIZE), 0, None
    else:
        context = log_writer.writer(log, how)
        process, stop = context.__enter__()
        pid = process.pid
    options = rotate.Options(
        max_size=SIZE // 2,
        strategy=strategy,
        keep=1000,
        compress=compress,
        reopen=("kill", "-HUP", str(pid)) if strategy == "logrotate" else (),
    )
    try:
        step, rounds = 0, 0
        while True:
            if stop is None:
                existing = log.read_bytes() if log.exists() else b""
                log.write_bytes(
                    existing + b"".join(log_writer.line(number) for number in range(written, written + 3000))
                )
                written += 3000
            else:
                # After a kill between renaming and telling, the writer goes on in the renamed file until the next run
                # tells it.
                wait_until(
                    lambda: (
                        (tmp_path / ".access.log.rotation").exists()
                        or (log.exists() and rotate.disk_bytes(log.stat()) > SIZE)
                    )
                )
            if not killed_before(step, lambda: rotate.run([str(log)], options)):
                break
            rounds += 1
            step += 1
        assert rounds > 10
        if stop is not None:
            written = stop()
    finally:
        if stop is not None:
            context.__exit__(None, None, None)
    final = rotate.run([str(log)], options)
    again = rotate.run([str(log)], options)
    assert not again.changed, again.actions
    counts = log_writer.account(log_writer.read(tmp_path, log.name), written)
    if how == "plain":
        counts["nuls"] = 0  # the holes read as zeros
    assert counts == {"lost": 0, "doubled": 0, "torn": 0, "nuls": 0}, (rounds, final.actions)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left == []
