# SPDX-License-Identifier: GPL-3.0-or-later
"""The id of a process, and what is said of a process from its id."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest

from wheels_ops.host import processes
from wheels_ops.state import holder

HERE = socket.gethostname()
NO_PROCESS = 2**22 + 1  # above the highest process id of the kernel


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.List[t.Tuple[str, str, str]]]:
    """What this machine says of itself; tests change it."""
    answers = [("aaaaaa", "bbbbbbbb", "1")]
    monkeypatch.setattr(holder, "machine", lambda: answers[-1])
    yield answers


def own(place: str = "aaaaaa-bbbbbbbb-1", *, pid: int = 0, start: str = "") -> str:
    pid = pid or os.getpid()
    return f"{HERE}:{pid}:{start or holder.started(pid)}:{place}"


def test_the_start_is_that_of_the_kernel() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        fields = Path(f"/proc/{process.pid}/stat").read_text().split()
        assert holder.started(process.pid) == fields[21] != ""
        process.kill()
    assert holder.started(process.pid) == "", "there is no such process any more"


@pytest.mark.parametrize(
    ("stat", "start"),
    [
        ("7 (a b) c) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", "4711"),
        ("7 (sh) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", ""),
        ("7 (sh) X 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", ""),
        ("7 (sh) x 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", ""),
        ("7 (sh) S 1 2 3", ""),
        ("", ""),
    ],
)
def test_a_command_may_hold_anything_and_a_zombie_has_no_start(
    monkeypatch: pytest.MonkeyPatch, stat: str, start: str
) -> None:
    monkeypatch.setattr(processes, "_read", lambda _path: stat)
    assert holder.started(7) == start


def test_the_name_says_host_process_start_and_machine() -> None:
    host, pid, start, place = holder.name_of(os.getpid()).split(":")
    assert (host, pid, start) == (HERE, str(os.getpid()), holder.started(os.getpid()))
    identity, boot, namespace = place.split("-")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    assert namespace == str(os.stat("/proc/self/ns/pid").st_ino)
    assert len(identity) in (0, 6)


def test_the_machine_id_is_not_shown_and_what_is_missing_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/etc/machine-id": "0123456789abcdef", "/proc/sys/kernel/random/boot_id": "12345678-9abc"}
    monkeypatch.setattr(holder, "_text", lambda path: texts.get(path, ""))
    assert holder.machine()[:2] == (hashlib.sha256(b"0123456789abcdef").hexdigest()[:6], "12345678")
    texts.clear()

    def missing(_path: str) -> os.stat_result:
        raise FileNotFoundError

    monkeypatch.setattr(holder.os, "stat", missing)
    assert holder.machine() == ("", "", "")


def test_a_text_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(" word\n")
    assert (holder._text(str(tmp_path / "a")), holder._text(str(tmp_path / "b"))) == ("word", "")


def test_the_verdicts_are_the_words_of_the_controller() -> None:
    assert (holder.ALIVE, holder.DEAD, holder.UNKNOWN) == ("alive", "dead", "unknown")


def test_one_that_runs_here_is_alive(place: t.List[t.Tuple[str, str, str]]) -> None:
    assert holder.judge(own()) == holder.ALIVE
    assert holder.judge(own(start="1")) == holder.DEAD, "another process has its id now"
    assert holder.judge(own(pid=NO_PROCESS, start="1")) == holder.DEAD
    assert holder.judge(own(pid=9_999_999_999, start="1")) == holder.DEAD


def test_an_id_of_an_earlier_version_is_judged_by_its_process(place: t.List[t.Tuple[str, str, str]]) -> None:
    assert holder.judge(f"{HERE}:{os.getpid()}:{holder.started(os.getpid())}") == holder.ALIVE
    assert holder.judge(f"{HERE}:{NO_PROCESS}:1") == holder.DEAD


def test_after_a_boot_of_the_same_machine_it_is_dead(place: t.List[t.Tuple[str, str, str]]) -> None:
    assert holder.judge(own("aaaaaa-00000000-1")) == holder.DEAD
    assert holder.judge(own("cccccc-00000000-1")) == holder.UNKNOWN, "another machine of that name"
    assert holder.judge(own("-00000000-1")) == holder.UNKNOWN
    place.append(("", "bbbbbbbb", "1"))
    assert holder.judge(own("-00000000-1")) == holder.UNKNOWN, "no machine id, so nothing says that it is the same"


def test_in_another_container_it_cannot_be_asked(place: t.List[t.Tuple[str, str, str]]) -> None:
    assert holder.judge(own("aaaaaa-bbbbbbbb-2")) == holder.UNKNOWN


@pytest.mark.parametrize(
    "name",
    ["", "two", "a:b:c", f"elsewhere:{os.getpid()}:1", f"{HERE}:12345678901:1", f"{HERE}:1:1:a-b", f"{HERE}:x:1"],
    ids=["empty", "one word", "no numbers", "another host", "long pid", "short tail", "no pid"],
)
def test_what_is_no_id_of_this_host_is_unknown(place: t.List[t.Tuple[str, str, str]], name: str) -> None:
    assert holder.judge(name) == holder.UNKNOWN


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (PermissionError, holder.UNKNOWN),
        (ProcessLookupError, holder.DEAD),
        (OverflowError, holder.DEAD),
        (None, holder.UNKNOWN),
    ],
)
def test_a_process_that_proc_hides_is_asked_by_a_signal(
    monkeypatch: pytest.MonkeyPatch,
    place: t.List[t.Tuple[str, str, str]],
    answer: t.Optional[t.Type[Exception]],
    verdict: str,
) -> None:
    signals: t.List[t.Tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        signals.append((pid, number))
        if answer:
            raise answer

    monkeypatch.setattr(holder.os, "kill", kill)
    assert holder.judge(own(pid=NO_PROCESS, start="1")) == verdict
    assert signals == [(NO_PROCESS, 0)], "nothing but the question may be sent"


def test_a_zombie_is_dead_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, place: t.List[t.Tuple[str, str, str]]
) -> None:
    monkeypatch.setattr(holder, "started", lambda _pid: "")
    assert holder.judge(own(start="1")) == holder.DEAD
