# SPDX-License-Identifier: GPL-3.0-or-later
"""A long walk is shared with a second process: every file is seen once, and neither process outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from wheels_ops.host import safe_tree

SOURCES = Path(__file__).resolve().parents[3] / "src"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_tree, "SHARE_AFTER", 0.0)
    monkeypatch.setattr(safe_tree, "_may_fork", lambda: True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """300 directories, three levels deep, with 5 files each, a link and what has to stay."""
    for number in range(300):
        directory = tmp_path / f"a{number % 7}" / f"b{number % 30}" / f"c{number}"
        directory.mkdir(parents=True)
        for index in range(5):
            (directory / f"f{index}").touch()
        (directory / "link").symlink_to("f0")
    return tmp_path


def seen(walk: t.Iterator[safe_tree.Seen]) -> t.Tuple[int, t.List[str]]:
    return os.getpid(), ["/".join([*directory.names(), name]) for directory, name, _status in walk]


def left() -> t.Tuple[int, t.List[str]]:
    """What a walk must not leave behind: how many descriptors are open, and the children of this process."""
    return len(os.listdir("/proc/self/fd")), Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def expected(top: Path) -> t.List[str]:
    found = subprocess.run(
        ["find", ".", "-type", "f"], cwd=top, check=True, capture_output=True, text=True
    ).stdout.split()
    return sorted(name.removeprefix("./") for name in found)


def test_every_file_is_seen_by_one_of_two_processes(tree: Path) -> None:
    before = left()
    with safe_tree.Tree(str(tree)) as opened:
        found = opened.gather(seen)
        assert opened.skipped == {"special": 300}
    assert [pid == os.getpid() for pid, _names in found] == [True, False]
    assert sorted(name for _pid, names in found for name in names) == expected(tree)
    assert left() == before


def test_what_is_below_too_many_directories_is_left_in_both(tmp_path: Path) -> None:
    for side in "ab":
        path = tmp_path
        for _ in range(safe_tree.MAX_DEPTH + 2):
            path = path / side
        path.mkdir(parents=True)
        (path / "hidden").touch()
    with safe_tree.Tree(str(tmp_path)) as opened:
        assert [names for _pid, names in opened.gather(seen)] == [[], []] and opened.skipped == {"deep": 2}


def test_a_second_process_that_is_killed_loses_nothing(tree: Path) -> None:
    me = os.getpid()

    def consume(walk: t.Iterator[safe_tree.Seen]) -> t.List[str]:
        if os.getpid() != me:
            os.kill(os.getpid(), signal.SIGKILL)
        return seen(walk)[1]

    before = left()
    with safe_tree.Tree(str(tree)) as opened:
        assert [sorted(names) for names in opened.gather(consume)] == [expected(tree)]
        assert opened.skipped == {"special": 300}
    assert left() == before


def test_where_no_process_is_to_be_had_one_walks_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    before = left()
    with safe_tree.Tree(str(tree)) as opened:
        assert [sorted(names) for _pid, names in opened.gather(seen)] == [expected(tree)]
    assert left() == before


def test_an_error_of_the_caller_ends_the_second_process(tree: Path) -> None:
    me = os.getpid()

    def consume(walk: t.Iterator[safe_tree.Seen]) -> None:
        for number, _file in enumerate(walk):
            if os.getpid() != me:
                signal.pause()
            elif number == 20:
                raise ValueError("enough")

    before = left()
    with safe_tree.Tree(str(tree)) as opened, pytest.raises(ValueError, match="enough"):
        opened.gather(consume)
    assert left() == before


def test_the_second_process_ends_with_the_first(tree: Path) -> None:
    """The program is not told to share: it does so by itself, once its walk takes long."""
    program = (
        "import os, sys, time\n"
        "from wheels_ops.host import safe_tree\n"
        "def consume(walk):\n"
        "    for _ in walk: time.sleep(0.002)\n"
        "with safe_tree.Tree(sys.argv[1]) as tree: tree.gather(consume)\n"
    )
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor: a walk is never shared")
    runner = subprocess.Popen(
        [sys.executable, "-c", program, str(tree)], env={**os.environ, "PYTHONPATH": str(SOURCES)}
    )
    try:
        helper = int(
            wait_until(Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text, what="a second process")
        )
    finally:
        runner.kill()
        runner.wait()
    wait_until(
        lambda: not Path(f"/proc/{helper}").exists() or ") Z " in Path(f"/proc/{helper}/stat").read_text(),
        what="the end of the second process",
    )
