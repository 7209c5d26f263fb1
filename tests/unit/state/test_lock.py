# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets the lock of a host, who is refused, and what the message says of the holder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wheels_ops.remedies import deployment
from wheels_ops.results import OpsError
from wheels_ops.state import holder, lock

ELSEWHERE = "another-controller:4711:1:aaaaaa-bbbbbbbb-1"
HOUR = 3600.0


@pytest.fixture
def ended() -> str:
    """The id of a process that has ended."""
    with subprocess.Popen(["sleep", "600"]) as process:
        name = holder.name_of(process.pid)
        process.kill()
    return name


def put(root: Path, name: str, *, age: float = 0.0, **changes: t.Any) -> None:
    """A lock as another run left it, renewed ``age`` seconds ago."""
    entry = {"holder": name, "since": time.time() - age, "at": "2025-07-30T02:11:00Z", "host": "web1", **changes}
    (root / "deploy.lock").write_text(json.dumps(entry))


def held_by(root: Path) -> str:
    return str(json.loads((root / "deploy.lock").read_text())["holder"])


def refusal(root: Path, name: str = "two", **options: t.Any) -> str:
    with pytest.raises(OpsError) as caught:
        deployment.hold(str(root), kind="deploy", holder=name, **options)
    return str(caught.value)


def test_of_many_takers_of_a_dead_runs_lock_exactly_one_gets_it(tmp_path: Path, ended: str) -> None:
    """Threads that start together; each of twenty rounds leaves the lock with the one that was told so."""

    def take(number: int) -> str:
        try:
            deployment.hold(str(tmp_path), kind="deploy", holder=f"run {number}")
        except OpsError:
            return ""
        return f"run {number}"

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            put(tmp_path, ended, age=5 * HOUR)
            winners = [name for name in pool.map(take, range(4)) if name]
            assert winners == [held_by(tmp_path)]


def test_of_many_processes_exactly_one_gets_it(tmp_path: Path, ended: str) -> None:
    put(tmp_path, ended)
    program = (
        "import sys; from wheels_ops.remedies import deployment as d; from wheels_ops.results import OpsError\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "try: d.hold(sys.argv[1], kind='deploy', holder=sys.argv[2])\n"
        "except OpsError: sys.exit(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), f"run {number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        for number in range(4)
    ]  # fmt: skip
    for taker in takers:
        assert taker.stdout is not None and taker.stdout.readline() == b"ready\n"
    for taker in takers:
        taker.communicate(b"\n")
    winners = [f"run {number}" for number, taker in enumerate(takers) if taker.returncode == 0]
    assert winners == [held_by(tmp_path)]


def test_a_living_holder_is_named_and_never_run_over_however_old(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        name = holder.name_of(process.pid)
        put(tmp_path, name, age=30 * 24 * HOUR, purpose="maintenance")
        message = refusal(tmp_path, dead_holders=[])
        assert f"Another run (maintenance) holds this host: {name}" in message
        assert "Its process is alive" in message and f"wheels_ops_lock_force={name}" in message
        # In check mode the same is said.
        assert refusal(tmp_path, check_mode=True) == message
        os.kill(process.pid, signal.SIGSTOP)  # one that stands still lives, too
        assert refusal(tmp_path) == message
        process.kill()
    assert deployment.hold(str(tmp_path), kind="deploy", holder="two").extra["holder"] == name


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    """A killed run whose parent has not asked for its end yet."""
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    name = holder.name_of(child)
    assert holder.judge(name) == holder.ALIVE
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child}").exists() and holder.judge(name) == holder.DEAD
    os.waitpid(child, 0)


def test_what_the_controller_knows_decides_before_any_age(tmp_path: Path) -> None:
    put(tmp_path, ELSEWHERE, age=10 * HOUR)
    assert "Its process is alive" in refusal(tmp_path, living_holders=[ELSEWHERE])
    put(tmp_path, ELSEWHERE)
    result = deployment.hold(str(tmp_path), kind="deploy", holder="two", dead_holders=[ELSEWHERE])
    assert result.warnings == [f"The lock of {ELSEWHERE} was taken over. Its process has ended."]


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (60, "cannot be asked from here whether it is alive; it last renewed the lock 60 s ago. Wait for it to end. If it is dead, its lock expires in 29 m"),
        (-60, "its time stamp lies 60 s in the future, as the clock was set back. Wait for it to end. If it is dead, its lock expires in 31 minutes"),
        (1900, "last renewed the lock 32 minutes ago"),
        (-10 * 24 * HOUR, "its time stamp lies 14400 minutes in the future: the clock was set back"),
    ],
)
def test_a_holder_that_cannot_be_asked_has_the_lock_until_it_expires(tmp_path: Path, age: float, words: str) -> None:
    put(tmp_path, ELSEWHERE, age=age)
    if abs(age) < lock.EXPIRES:
        assert words in refusal(tmp_path)
    else:
        assert words in deployment.hold(str(tmp_path), kind="deploy", holder="two").warnings[0]


def test_a_renewal_keeps_the_lock_from_expiring(tmp_path: Path) -> None:
    put(tmp_path, ELSEWHERE, age=1700, purpose="recover")
    with lock.heartbeat(tmp_path, ELSEWHERE):
        assert "renewed the lock 0 s ago" in refusal(tmp_path)
    entry = json.loads((tmp_path / "deploy.lock").read_text())
    assert (entry["at"], entry["purpose"]) == ("2025-07-30T02:11:00Z", "recover")


def test_who_lost_the_lock_is_told_so_and_closes_nothing(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployment.begin(state, "a", holder="one")
    deployment.hold(state, kind="rollback", holder="two", force="one")
    with pytest.raises(OpsError, match=r"This run \(one\) does not hold the lock of this host any more; two does"), lock.heartbeat(tmp_path, "one"):
        pass
    with pytest.raises(OpsError, match="holds this host: two, so one cannot close a"):
        deployment.end(state, "a", holder="one", state=deployment.FINISHED)
    assert deployment.let_go(state, holder="one").after == {"lock": "two"}
    assert held_by(tmp_path) == "two" and deployment.query(state).extra["unfinished"] == "a"


@pytest.mark.parametrize("force", ["true", "True", "yes", "1", "somebody-else:1:1"])
def test_the_escape_asks_for_the_id_of_the_holder(tmp_path: Path, force: str) -> None:
    put(tmp_path, ELSEWHERE)
    assert f"wheels_ops_lock_force={ELSEWHERE}" in refusal(tmp_path, force=force)
    assert held_by(tmp_path) == ELSEWHERE
    deployment.hold(str(tmp_path), kind="deploy", holder="two", force=ELSEWHERE)
    assert held_by(tmp_path) == "two"


def test_check_mode_takes_nothing_and_says_who_holds_it(tmp_path: Path, ended: str) -> None:
    put(tmp_path, ended)
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    assert deployment.hold(str(tmp_path), kind="rollback", holder="two", check_mode=True).extra["holder"] == ended
    assert deployment.let_go(str(tmp_path), holder="two", check_mode=True).extra["holder"] == ended
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", deployment.KINDS)
def test_every_kind_of_run_is_kept_out_by_every_other(tmp_path: Path, kind: str) -> None:
    deployment.hold(str(tmp_path), kind=kind, holder="one")
    for other in deployment.KINDS:
        with pytest.raises(OpsError, match="holds this host: one"):
            deployment.hold(str(tmp_path), kind=other, holder="two")
    deployment.let_go(str(tmp_path), holder="one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["recover", "maintenance", "monitor"])
@pytest.mark.parametrize("state", [deployment.BEGUN, deployment.ROLLING_BACK])
def test_what_was_interrupted_is_sealed_by_nobody(tmp_path: Path, kind: str, state: str, ended: str) -> None:
    journal = deployment.Journal(str(tmp_path))
    deployment.begin(str(tmp_path), "a", holder=ended)
    journal.write({**journal.read("a"), "state": state})
    before = sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    commands = "ansible-playbook playbooks/deploy.yml.*ansible-playbook playbooks/rollback.yml"
    for check_mode in (True, False):
        with pytest.raises(OpsError, match=f"a was interrupted.*{commands}"):
            deployment.hold(str(tmp_path), kind=kind, holder="two", check_mode=check_mode)
    with pytest.raises(OpsError, match=f"a was interrupted.*{commands}"):
        deployment.begin(str(tmp_path), "b", kind=kind, holder="two")
    assert sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    assert deployment.hold(str(tmp_path), kind="rollback", holder="two").extra["unfinished"] == "a"
    with pytest.raises(OpsError, match="a was interrupted.*so older cannot be rolled back before it"):
        deployment.hold(str(tmp_path), kind="rollback", holder="two", deployment_id="older")
    assert journal.latest() == "a"


@pytest.mark.parametrize("kind", ["deploy", "rollback", "recover", "maintenance"])
def test_an_interrupted_recovery_is_closed_by_whoever_comes_next(tmp_path: Path, kind: str, ended: str) -> None:
    deployment.begin(str(tmp_path), "20250730T0211", kind="recover", holder=ended)
    deployment.hold(str(tmp_path), kind=kind, holder="two")
    assert list((tmp_path / "deployments").iterdir()) == []
    with pytest.raises(OpsError, match="No deployment is in force"):
        deployment.Journal(str(tmp_path)).latest()


def test_a_lock_and_a_manifest_of_the_first_version_are_read(tmp_path: Path, ended: str) -> None:
    name = ":".join(ended.split(":")[:3])
    put(tmp_path, name)
    manifest = {"id": "20250730T0211", "state": "begun", "step": "files", "began_at": "2025-07-30T02:11:00Z", "holder": name, "files": {}}
    (tmp_path / "deployments/20250730T0211").mkdir(parents=True)
    (tmp_path / "deployments/20250730T0211/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OpsError, match="20250730T0211 was interrupted"):
        deployment.begin(str(tmp_path), "recover-1", holder="two")
    assert deployment.begin(str(tmp_path), "b", holder="two").extra == {"deployment_id": "20250730T0211", "resumed": True, "holder": name}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"host": "elsewhere"}, holder.UNKNOWN),
        ({"start": "1"}, holder.DEAD),
        ({"namespace": "1"}, holder.UNKNOWN),
        ({"machine": "abcdef", "boot": "00000000"}, holder.UNKNOWN),
        ({}, holder.ALIVE),
    ],
)
def test_only_a_process_that_can_be_asked_is_judged(change: t.Dict[str, str], verdict: str) -> None:
    """Two hosts of one name, and two containers of one kernel, do not know each other's processes."""
    host, _pid, start, place = holder.name_of(os.getpid()).split(":")
    machine, boot, namespace = place.split("-")
    parts = {"host": host, "start": start, "machine": machine, "boot": boot, "namespace": namespace, **change}
    assert host == socket.gethostname()
    assert holder.judge("{host}:{pid}:{start}:{machine}-{boot}-{namespace}".format(pid=os.getpid(), **parts)) == verdict


def test_what_a_killed_process_left_in_the_state_directory_is_swept_by_the_next_run(tmp_path: Path, ended: str) -> None:
    deployment.begin(str(tmp_path), "a", holder=ended)
    left = [tmp_path / ".deploy.lock.abcdefgh.wheels-ops", tmp_path / "deployments/a/.manifest.json.abcdefgh.wheels-ops", tmp_path / ".deploy.lock.guard"]
    for path in left:
        path.write_text("half")
    (tmp_path / "deployments/b").mkdir()
    deployment.begin(str(tmp_path), "c", holder="two")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "deploy.lock", "deployments", "deployments/a", "deployments/a/manifest.json",
    ]  # fmt: skip
