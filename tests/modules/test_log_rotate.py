# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotation under a writer of 20,000 lines a second: no line lost, none doubled, none torn, in every mode that is
offered without allow_loss.
"""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from tests.support import log_writer
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.host import extents
from wheels_ops.host.safe_tree import open_directory
from wheels_ops.remedies.logs import rotate

MEGABYTE = 1_000_000
#: Bytes that a round waits for; three rounds each.
ROUND = 2 * MEGABYTE


def supported(path: Path, operation: str) -> bool:
    descriptor = open_directory(os.path.realpath(path))
    try:
        return extents.supports(descriptor, operation)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("how", "strategy", "compress"),
    [
        ("append", "collapse", True),
        ("append", "collapse", False),
        ("plain", "punch", True),
        ("plain", "punch", False),
        ("reopen", "logrotate", True),
        ("reopen", "logrotate", False),
        ("each", "auto", True),
        ("append", "auto", True),
    ],
)
def test_nothing_is_lost_or_doubled(tmp_path: Path, how: str, strategy: str, compress: bool) -> None:
    if not supported(tmp_path, "collapse"):
        pytest.skip(
            "the filesystem of the temporary directory cannot take a range out of a file (FALLOC_FL_COLLAPSE_RANGE)"
        )
    log = tmp_path / "access.log"
    start = log_writer.fill(log, 4 * MEGABYTE)
    with log_writer.writer(log, how, start=start) as (process, stop):
        reopen = ("kill", "-HUP", str(process.pid)) if how == "reopen" else ()
        options = rotate.Options(max_size=ROUND, strategy=strategy, keep=100, compress=compress, reopen=reopen)
        done = []
        for _round in range(3):
            wait_until(lambda: rotate.disk_bytes(log.stat()) > ROUND + 4096, what="a full log")
            done.append(rotate.run([str(log)], options))
        written = stop()
    rotate.run([str(log)], options)
    counts = log_writer.account(log_writer.read(tmp_path, log.name), written)
    expected_nuls = 0 if how != "plain" else counts["nuls"]  # the holes that were punched read as zeros
    assert counts == {"lost": 0, "doubled": 0, "torn": 0, "nuls": expected_nuls}
    assert all(result.changed and any(action["action"] == "rotate" for action in result.actions) for result in done)
    used = [next(action["strategy"] for action in result.actions if action["action"] == "rotate") for result in done]
    # A writer that opens its log for every line is met with it open, or not.
    assert set(used) <= {"each": {"rename", "collapse"}, "append": {"collapse"}}.get(how, {strategy})
    assert rotate.disk_bytes(log.stat()) < 2 * ROUND


def test_several_writers_at_once(tmp_path: Path) -> None:
    if not supported(tmp_path, "collapse"):
        pytest.skip(
            "the filesystem of the temporary directory cannot take a range out of a file (FALLOC_FL_COLLAPSE_RANGE)"
        )
    log = tmp_path / "access.log"
    with (
        log_writer.writer(log, rate=5000) as (_one, stop),
        log_writer.writer(log, rate=5000, start=10_000_000) as (_other, stop_other),
    ):
        wait_until(lambda: log.stat().st_size > MEGABYTE)
        result = rotate.run([str(log)], rotate.Options(max_size=MEGABYTE // 2, keep=10))
        written, other = stop(), stop_other()
    assert {holder["append"] for holder in result.actions[0]["holders"]} == {True}
    content = log_writer.read(tmp_path, log.name)
    numbers = [int(entry[: log_writer.WIDTH]) for entry in content.splitlines()]
    assert sorted(numbers) == [*range(written), *range(10_000_000, other)]


def test_a_log_with_a_hole_is_under_its_size_after_one_run(tmp_path: Path) -> None:
    """A line begins with a block once in 405,504 bytes here: the cut that spares a line must not leave more than the
    limit.
    """
    log = tmp_path / "access.log"
    lines = b"".join(log_writer.line(number) for number in range(6000))
    hole = 4 * 1024 * 1024
    with log.open("wb") as file:
        file.seek(hole)
        file.write(lines)
    options = rotate.Options(max_size=125_000, strategy="punch", keep=10, compress=False)
    foretold = rotate.run([str(log)], options, check_mode=True)
    assert log_writer.read(tmp_path, log.name).lstrip(b"\0") == lines
    done = rotate.run([str(log)], options)
    assert [(action["archived_bytes"], action["whole_lines"]) for action in foretold.actions] == [
        (action["archived_bytes"], action["whole_lines"]) for action in done.actions
    ]
    assert log.stat().st_blocks * 512 <= 125_000
    assert log.stat().st_size == hole + len(lines)
    [part] = tmp_path.glob("access.log.*")
    assert part.read_bytes() + log.read_bytes().lstrip(b"\0") == lines
    assert not rotate.run([str(log)], options).changed


def test_a_writer_that_does_not_append_is_not_collapsed(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with log_writer.writer(log, "plain") as (_process, _stop):
        wait_until(lambda: log.stat().st_size > MEGABYTE)
        with pytest.raises(OpsError, match="without losing lines: not every writer appends"):
            rotate.run([str(log)], rotate.Options(max_size=MEGABYTE // 2, strategy="collapse"))
    assert [path.name for path in tmp_path.iterdir()] == ["access.log"]


def test_a_writer_that_does_not_reopen_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    options: t.Dict[str, t.Any] = {"max_size": MEGABYTE // 2, "strategy": "logrotate", "reopen_timeout": 1.0}
    with log_writer.writer(log, rate=2000) as (process, stop):
        wait_until(lambda: log.stat().st_size > MEGABYTE // 2 + 4096)
        with pytest.raises(OpsError, match=rf"\({process.pid}\) still writes the renamed"):
            rotate.run([str(log)], rotate.Options(reopen=("true",), **options))
        # The next run tells it again; it still does not hear.
        with pytest.raises(OpsError, match="still writes"):
            rotate.run([str(log)], rotate.Options(reopen=("true",), **options))
        written = stop()
    result = rotate.run([str(log)], rotate.Options(reopen=("true",), **options))
    assert [action["action"] for action in result.actions] == ["finish", "compress"]
    assert log_writer.account(log_writer.read(tmp_path, log.name), written) == {
        "lost": 0,
        "doubled": 0,
        "torn": 0,
        "nuls": 0,
    }


def test_a_reopen_command_that_fails_says_so(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with log_writer.writer(log, rate=2000) as (_process, stop):
        wait_until(lambda: log.stat().st_size > MEGABYTE // 2)
        with pytest.raises(OpsError, match="false ended with 1"):
            rotate.run([str(log)], rotate.Options(max_size=MEGABYTE // 4, strategy="logrotate", reopen=("false",)))
        written = stop()
    assert log_writer.account(log_writer.read(tmp_path, log.name), written)["lost"] == 0


def test_copytruncate_needs_consent(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    count = log_writer.fill(log, MEGABYTE)
    with pytest.raises(OpsError, match="copytruncate loses lines"):
        rotate.run([str(log)], rotate.Options(strategy="copytruncate", max_size=4096))
    result = rotate.run([str(log)], rotate.Options(strategy="copytruncate", max_size=4096, allow_loss=True))
    assert "may be lost" in result.actions[0]["note"]
    assert log_writer.account(log_writer.read(tmp_path, log.name), count) == {
        "lost": 0,
        "doubled": 0,
        "torn": 0,
        "nuls": 0,
    }


@pytest.mark.parametrize(("strategy", "expected"), [("auto", "collapse"), ("rename", "")])
def test_a_writer_that_comes_back_before_the_rename_is_met_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, expected: str
) -> None:
    """The moment in which a writer that opens its log for every line has it closed is the moment of the choice."""
    if not supported(tmp_path, "collapse"):
        pytest.skip(
            "the filesystem of the temporary directory cannot take a range out of a file (FALLOC_FL_COLLAPSE_RANGE)"
        )
    log = tmp_path / "access.log"
    start = log_writer.fill(log, 4 * MEGABYTE)
    options = rotate.Options(max_size=ROUND, strategy=strategy, keep=100)
    with log_writer.writer(log, "append", start=start) as (_process, stop):
        monkeypatch.setattr(rotate.Log, "_unwritten", lambda _log, _writers: True)
        if expected:
            actions = rotate.run([str(log)], options).actions
            assert [action["strategy"] for action in actions if action["action"] == "rotate"] == [expected]
        else:
            with pytest.raises(OpsError, match="keeps reopening"):
                rotate.run([str(log)], options)
        written = stop()
    assert log_writer.account(log_writer.read(tmp_path, log.name), written) == {
        "lost": 0,
        "doubled": 0,
        "torn": 0,
        "nuls": 0,
    }
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")], (
        "what was begun is not left behind"
    )
