# SPDX-License-Identifier: GPL-3.0-or-later
"""cpu_relief on real hogs, found by a word of their own so that nothing else on this machine is touched; chrt and ps
are the witnesses.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import secrets
import subprocess
import sys
import typing as t
from pathlib import Path

import psutil
import pytest

from tests.support.container_host import REPOSITORY
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import cpu_relief
from wheels_ops.remedies.cpu_relief import Options

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="putting a process back needs root (CAP_SYS_NICE)")


def at_work(pid: int) -> bool:
    times = psutil.Process(pid).cpu_times()
    return bool(times.user + times.system > 0.3)


@contextlib.contextmanager
def hogs(count: int) -> t.Iterator[t.Tuple[str, t.List[int]]]:
    """The word and the processes."""
    word = f"hog-{secrets.token_hex(6)}"
    running = [
        subprocess.Popen([sys.executable, str(REPOSITORY / "tests/support/hog.py"), word], start_new_session=True)
        for _ in range(count)
    ]
    try:
        for process in running:
            # Only a process that has been at work for a while is a consumer in a short sample.
            wait_until(functools.partial(at_work, process.pid), what="the hog to work")
        yield word, [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def seen(pids: t.Sequence[int]) -> t.List[str]:
    """Class, nice and session group of each process."""
    return [
        subprocess.run(
            ["ps", "-o", "cls=,ni=", "-p", str(pid)], capture_output=True, text=True, check=True
        ).stdout.strip()
        + Path(f"/proc/{pid}/autogroup").read_text().strip()
        for pid in pids
    ]


@ROOT_ONLY
@pytest.mark.parametrize("method", ["idle", "nice"])
def test_yield_and_put_back_exactly(tmp_path: Path, method: str) -> None:
    with hogs(2) as (word, pids):
        subprocess.run(["renice", "-n", "3", "-p", str(pids[1])], check=True, capture_output=True)
        before = seen(pids)
        options = Options(demote=(word,), method=method, sample_s=1, min_percent=1, state_dir=str(tmp_path))

        predicted = cpu_relief.run(options, check_mode=True)
        assert predicted.changed
        assert seen(pids) == before
        assert not list(tmp_path.iterdir())

        done = cpu_relief.run(options)
        assert done.changed
        assert sorted(entry["pid"] for entry in done.actions) == sorted(pids)
        assert sorted(entry["pid"] for entry in predicted.actions) == sorted(pids)
        assert set(done.as_dict()) == set(predicted.as_dict())
        now = seen(pids)
        assert all(("IDL" if method == "idle" else "19") in line for line in now), now

        assert not cpu_relief.run(options).changed
        back = Options(state="normal", state_dir=str(tmp_path))
        assert cpu_relief.run(back, check_mode=True).changed
        assert seen(pids) == now
        assert cpu_relief.run(back).changed
        assert seen(pids) == before
        assert not cpu_relief.run(back).changed


#: A shell that starts a hog and, in a session of its own as Ansible's modules have, the relief.
_SHELL = """
import subprocess, sys, time
hog, word, state = sys.argv[1:]
running = subprocess.Popen([sys.executable, hog, word])
relief = "from wheels_ops.remedies import cpu_relief as c; c.run(c.Options(demote=(%r,), sample_s=1, min_percent=1, state_dir=%r))"
try:
    subprocess.run([sys.executable, "-c", relief % (word, state)], start_new_session=True, check=True)
    scheduling = subprocess.run(["ps", "-o", "cls=", "-p", str(running.pid)], capture_output=True, text=True).stdout
    print(scheduling.strip(), open(f"/proc/{running.pid}/autogroup").read().split()[-1])
finally:
    running.kill()
"""


@ROOT_ONLY
def test_a_session_that_runs_the_relief_is_not_slowed(tmp_path: Path) -> None:
    """A hog in the shell from which a person runs the playbook yields; everything else in that shell does not."""
    word = f"hog-{secrets.token_hex(6)}"
    completed = subprocess.run(
        [sys.executable, "-c", _SHELL, str(REPOSITORY / "tests/support/hog.py"), word, str(tmp_path)],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.split() == ["IDL", "0"], completed.stdout + completed.stderr


@ROOT_ONLY
def test_an_expired_relief_ends_with_the_next_run_and_the_protected_stay(tmp_path: Path) -> None:
    with hogs(1) as (word, pids):
        before = seen(pids)
        short = Options(demote=(word,), sample_s=0.5, min_percent=1, revert_after=0.001, state_dir=str(tmp_path))
        assert cpu_relief.run(short).changed
        assert seen(pids) != before
        again = cpu_relief.run(Options(demote=("nobody at all",), sample_s=0.2, state_dir=str(tmp_path)))
        assert [entry["action"] for entry in again.actions] == ["restore"]
        assert seen(pids) == before
        for options in (
            Options(demote=(word,), protect=(word,), sample_s=0.5, min_percent=1, state_dir=str(tmp_path)),
            Options(
                demote=(word,), protected_pids=frozenset(pids), sample_s=0.5, min_percent=1, state_dir=str(tmp_path)
            ),
        ):
            assert not cpu_relief.run(options).changed
        assert seen(pids) == before


#: The relief, killed by itself the moment that it has changed a process.
_KILLED = """
import os, signal, sys
from wheels_ops.remedies import cpu_relief as c
real = c._apply
def apply(*words):
    real(*words)
    os.kill(os.getpid(), signal.SIGKILL)
c._apply = apply
c.run(c.Options(demote=(sys.argv[1],), sample_s=0.5, min_percent=1, state_dir=sys.argv[2]))
"""


@ROOT_ONLY
def test_killed_in_between_a_process_is_put_back_all_the_same(tmp_path: Path) -> None:
    with hogs(1) as (word, pids):
        before = seen(pids)
        subprocess.run([sys.executable, "-c", _KILLED, word, str(tmp_path)], check=False)
        assert "IDL" in seen(pids)[0]
        assert cpu_relief.run(Options(state="normal", state_dir=str(tmp_path))).changed
        assert seen(pids) == before


@pytest.mark.parametrize("method", ["idle", "nice"])
def test_what_could_not_be_put_back_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Without CAP_SYS_NICE a process may take from its own, and its RLIMIT_NICE says whether it may give back."""
    monkeypatch.setattr(cpu_relief, "_privileged", lambda: False)
    with hogs(1) as (word, pids):
        before = seen(pids)
        options = Options(demote=(word,), method=method, sample_s=0.5, min_percent=1, state_dir=str(tmp_path))
        for check_mode in (True, False):
            with pytest.raises(OpsError, match=r"may not be changed.*Run as root"):
                cpu_relief.run(options, check_mode=check_mode)
        assert seen(pids) == before
        if os.geteuid() == 0:
            monkeypatch.setattr(
                resource, "prlimit", lambda _pid, _which: (20, 20)
            )  # raising it takes a right of its own
            assert cpu_relief.run(options, check_mode=True).changed
            assert cpu_relief.run(options).changed and seen(pids) != before
            assert cpu_relief.run(Options(state="normal", state_dir=str(tmp_path))).changed
            assert seen(pids) == before


def test_another_process_with_an_old_number_is_left_alone(tmp_path: Path) -> None:
    with hogs(1) as (word, pids):
        before = seen(pids)
        entry = {
            "pid": pids[0],
            "born": 1.0,
            "threads": {str(pids[0]): {"policy": 0, "nice": -5}},
            "until": 0.0,
            "session": "",
            "session_nice": 0,
        }
        (tmp_path / "cpu_relief.json").write_text(json.dumps([entry]))
        assert not cpu_relief.run(Options(state="normal", state_dir=str(tmp_path))).changed
        assert seen(pids) == before
        assert word


@pytest.mark.parametrize(
    "name",
    [
        "postgres: writer",
        "/usr/sbin/sshd -D",
        "/lib/systemd/systemd --user",
        "[kworker/0:1]",
        "/usr/bin/redis-server *:6379",
    ],
)
def test_what_carries_the_host_is_never_chosen(name: str) -> None:
    top = [{"pid": 999999, "percent": 100.0, "command": name, "born": 1.0}]
    assert cpu_relief._chosen(top, Options()) == []


@pytest.mark.parametrize(
    "options",
    [
        Options(state="absent"),
        Options(method="kill"),
        Options(sample_s=0),
        Options(min_percent=0),
        Options(revert_after=-1),
        Options(demote=("(",)),
        Options(demote=("",)),
    ],
)
def test_nonsense_is_refused(options: Options) -> None:
    with pytest.raises(OpsError):
        cpu_relief.run(options)
