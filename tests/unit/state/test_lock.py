# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets the lock of a host, who is refused, and what the message says of the holder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.state import deployments, documents, holder, lock

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
        deployments.hold(str(root), kind="deploy", holder=name, **options)
    return str(caught.value)


def test_of_many_takers_of_a_dead_runs_lock_exactly_one_gets_it(tmp_path: Path, ended: str) -> None:
    """Threads that start together; each of twenty rounds leaves the lock with the one that was told so."""

    def take(number: int) -> str:
        try:
            deployments.hold(str(tmp_path), kind="deploy", holder=f"run {number}")
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
        "import sys; from wheels_ops.state import deployments as d; from wheels_ops.core.results import OpsError\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "try: d.hold(sys.argv[1], kind='deploy', holder=sys.argv[2])\n"
        "except OpsError: sys.exit(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), f"run {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for number in range(4)
    ]
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
    assert deployments.hold(str(tmp_path), kind="deploy", holder="two").extra["holder"] == name


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
    result = deployments.hold(str(tmp_path), kind="deploy", holder="two", dead_holders=[ELSEWHERE])
    assert result.warnings == [f"The lock of {ELSEWHERE} was taken over. Its process has ended."]


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (
            60,
            (
                "cannot be asked from here whether it is alive; it last renewed the lock 60 s ago. Wait for it to end."
                " If it is dead, its lock expires in 29 m"
            ),
        ),
        (
            -60,
            (
                "its time stamp lies 60 s in the future, as the clock was set back. Wait for it to end. If it is dead,"
                " its lock expires in 31 minutes"
            ),
        ),
        (1900, "last renewed the lock 32 minutes ago"),
        (-10 * 24 * HOUR, "its time stamp lies 14400 minutes in the future: the clock was set back"),
    ],
)
def test_a_holder_that_cannot_be_asked_has_the_lock_until_it_expires(tmp_path: Path, age: float, words: str) -> None:
    put(tmp_path, ELSEWHERE, age=age)
    if abs(age) < lock.EXPIRES:
        assert words in refusal(tmp_path)
    else:
        assert words in deployments.hold(str(tmp_path), kind="deploy", holder="two").warnings[0]


def test_a_renewal_keeps_the_lock_from_expiring(tmp_path: Path) -> None:
    put(tmp_path, ELSEWHERE, age=1700, purpose="recover")
    with lock.heartbeat(tmp_path, ELSEWHERE):
        assert "renewed the lock 0 s ago" in refusal(tmp_path)
    entry = json.loads((tmp_path / "deploy.lock").read_text())
    assert (entry["at"], entry["purpose"]) == ("2025-07-30T02:11:00Z", "recover")


def test_who_lost_the_lock_is_told_so_and_closes_nothing(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployments.begin(state, "a", holder="one")
    deployments.hold(state, kind="rollback", holder="two", force="one")
    with (
        pytest.raises(OpsError, match=r"This run \(one\) does not hold the lock of this host any more; two does"),
        lock.heartbeat(tmp_path, "one"),
    ):
        pass
    with pytest.raises(OpsError, match="holds this host: two, so one cannot close a"):
        deployments.end(state, "a", holder="one", state=deployments.FINISHED)
    assert deployments.let_go(state, holder="one").after == {"lock": "two"}
    assert held_by(tmp_path) == "two" and deployments.query(state).extra["unfinished"] == "a"


@pytest.mark.parametrize("force", ["true", "True", "yes", "1", "somebody-else:1:1"])
def test_the_escape_asks_for_the_id_of_the_holder(tmp_path: Path, force: str) -> None:
    put(tmp_path, ELSEWHERE)
    assert f"wheels_ops_lock_force={ELSEWHERE}" in refusal(tmp_path, force=force)
    assert held_by(tmp_path) == ELSEWHERE
    deployments.hold(str(tmp_path), kind="deploy", holder="two", force=ELSEWHERE)
    assert held_by(tmp_path) == "two"


def test_check_mode_takes_nothing_and_says_who_holds_it(tmp_path: Path, ended: str) -> None:
    put(tmp_path, ended)
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    assert deployments.hold(str(tmp_path), kind="rollback", holder="two", check_mode=True).extra["holder"] == ended
    assert deployments.let_go(str(tmp_path), holder="two", check_mode=True).extra["holder"] == ended
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", deployments.KINDS)
def test_every_kind_of_run_is_kept_out_by_every_other(tmp_path: Path, kind: str) -> None:
    deployments.hold(str(tmp_path), kind=kind, holder="one")
    for other in deployments.KINDS:
        with pytest.raises(OpsError, match="holds this host: one"):
            deployments.hold(str(tmp_path), kind=other, holder="two")
    deployments.let_go(str(tmp_path), holder="one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["recover", "maintenance", "monitor"])
@pytest.mark.parametrize("state", [deployments.BEGUN, deployments.ROLLING_BACK])
def test_what_was_interrupted_is_sealed_by_nobody(tmp_path: Path, kind: str, state: str, ended: str) -> None:
    journal = deployments.Journal(str(tmp_path))
    deployments.begin(str(tmp_path), "a", holder=ended)
    journal.write({**journal.read("a"), "state": state})
    before = sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    commands = (
        "ansible-playbook -i INVENTORY playbooks/deploy.yml.*ansible-playbook -i INVENTORY playbooks/rollback.yml"
    )
    for check_mode in (True, False):
        with pytest.raises(OpsError, match=f"a was interrupted.*{commands}"):
            deployments.hold(str(tmp_path), kind=kind, holder="two", check_mode=check_mode)
    with pytest.raises(OpsError, match=f"a was interrupted.*{commands}"):
        deployments.begin(str(tmp_path), "b", kind=kind, holder="two")
    assert sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    assert deployments.hold(str(tmp_path), kind="rollback", holder="two").extra["unfinished"] == "a"
    with pytest.raises(OpsError, match="a was interrupted.*so older cannot be rolled back before it"):
        deployments.hold(str(tmp_path), kind="rollback", holder="two", deployment_id="older")
    assert journal.latest() == "a"


@pytest.mark.parametrize("kind", ["deploy", "rollback", "recover", "maintenance"])
def test_an_interrupted_recovery_is_closed_by_whoever_comes_next(tmp_path: Path, kind: str, ended: str) -> None:
    deployments.begin(str(tmp_path), "20250730T0211", kind="recover", holder=ended)
    deployments.hold(str(tmp_path), kind=kind, holder="two")
    assert list((tmp_path / "deployments").iterdir()) == []
    with pytest.raises(OpsError, match="No deployment is in force"):
        deployments.Journal(str(tmp_path)).latest()


def test_a_lock_and_a_manifest_of_the_first_version_are_read(tmp_path: Path, ended: str) -> None:
    name = ":".join(ended.split(":")[:3])
    put(tmp_path, name)
    manifest = {
        "id": "20250730T0211",
        "state": "begun",
        "step": "files",
        "began_at": "2025-07-30T02:11:00Z",
        "holder": name,
        "files": {},
    }
    (tmp_path / "deployments/20250730T0211").mkdir(parents=True)
    (tmp_path / "deployments/20250730T0211/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OpsError, match="20250730T0211 was interrupted"):
        deployments.begin(str(tmp_path), "recover-1", holder="two")
    assert deployments.begin(str(tmp_path), "b", holder="two").extra == {
        "deployment_id": "20250730T0211",
        "resumed": True,
        "holder": name,
    }


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
    deployments.begin(str(tmp_path), "a", holder=ended)
    left = [
        tmp_path / ".deploy.lock.abcdefgh.wheels-ops",
        tmp_path / "deployments/a/.manifest.json.abcdefgh.wheels-ops",
        tmp_path / ".deploy.lock.guard",
    ]
    for path in left:
        path.write_text("half")
    (tmp_path / "deployments/b").mkdir()
    deployments.begin(str(tmp_path), "c", holder="two")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "deploy.lock",
        "deployments",
        "deployments/a",
        "deployments/a/manifest.json",
    ]


# -- what the file says
# ----------------------------------------------------------------------------------------------------


def test_a_lock_says_who_since_when_where_and_for_what(tmp_path: Path) -> None:
    before = time.time()
    lock.write(tmp_path, "one", "recover")
    entry = json.loads((tmp_path / "deploy.lock").read_text())
    assert before <= entry.pop("since") <= time.time()
    assert time.strptime(entry["at"], "%Y-%m-%dT%H:%M:%SZ") and abs(time.time() - _seconds(entry.pop("at"))) < HOUR
    assert entry == {"holder": "one", "host": socket.gethostname(), "purpose": "recover"}
    lock.write(tmp_path, "one", "recover", at="2025-07-30T02:11:00Z")
    read = lock.read(tmp_path)
    assert read is not None and (read.holder, read.at, read.purpose) == ("one", "2025-07-30T02:11:00Z", "recover")
    lock.remove(tmp_path)
    lock.remove(tmp_path)
    assert lock.read(tmp_path) is None and lock.holder_of(tmp_path) == ""


def _seconds(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


@pytest.mark.parametrize(
    ("purpose", "title"),
    [
        ("", "Another deployment"),
        ("deploy", "Another deployment"),
        ("monitor", "Another run (monitor)"),
        (3, "Another deployment"),
    ],
)
def test_the_title_says_what_kind_of_run(tmp_path: Path, purpose: t.Any, title: str) -> None:
    put(tmp_path, "one", purpose=purpose)
    entry = lock.read(tmp_path)
    assert entry is not None and entry.title == title
    put(tmp_path, "one", at=None)
    entry = lock.read(tmp_path)
    assert entry is not None and (entry.at, entry.title) == ("an unknown time", "Another deployment")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"holder": ""}, "holder is a text"),
        ({"holder": None}, "holder is null"),
        ({"holder": 3}, "holder is a number"),
        ({"since": "now"}, "since is a text, not a time in seconds"),
        ({"since": True}, "since is true or false, not a time in seconds"),
    ],
)
def test_a_lock_that_names_nobody_is_damaged(tmp_path: Path, changes: t.Dict[str, t.Any], reason: str) -> None:
    put(tmp_path, "one", **changes)
    with pytest.raises(documents.Damaged) as caught:
        lock.read(tmp_path)
    assert (
        caught.value.reason == reason
        and caught.value.hint == "Make sure that no run works on this host, then remove the file."
    )
    assert lock.holder_of(tmp_path) == ""


# -- the claim
# -------------------------------------------------------------------------------------------------------------


def test_a_claim_says_who_had_it(tmp_path: Path) -> None:
    assert lock.claim(tmp_path, "two") == lock.Claim("", "", "")
    put(tmp_path, ELSEWHERE)
    assert lock.claim(tmp_path, ELSEWHERE) == lock.Claim(ELSEWHERE, "", "2025-07-30T02:11:00Z")
    assert lock.claim(tmp_path, "two", force=ELSEWHERE) == lock.Claim(
        ELSEWHERE, f"The lock was taken from {ELSEWHERE}, as was asked for."
    )
    with pytest.raises(OpsError) as caught:
        lock.claim(tmp_path, "two", force="three")
    assert caught.value.details == {"lock": {"holder": ELSEWHERE, "at": "2025-07-30T02:11:00Z"}}
    assert "must be the id of that holder, got 'three'" in caught.value.message
    with pytest.raises(OpsError) as caught:
        lock.claim(tmp_path, "two")
    assert caught.value.details == {"lock": {"holder": ELSEWHERE, "at": "2025-07-30T02:11:00Z"}}
    with pytest.raises(OpsError, match="The lock has no holder"):
        lock.claim(tmp_path, "")


@pytest.mark.parametrize(
    ("age", "expired"),
    [(0, False), (1799, False), (1800, False), (1801, True), (-1799, False), (-1800, False), (-1801, True)],
)
def test_a_lock_expires_after_half_an_hour_and_a_damaged_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, expired: bool
) -> None:
    put(tmp_path, ELSEWHERE, since=5000.0)
    monkeypatch.setattr(lock.time, "time", lambda: 5000.0 + age)

    def taken() -> bool:
        try:
            lock.claim(tmp_path, "two")
        except OpsError:
            return False
        return True

    assert taken() is expired
    (tmp_path / "deploy.lock").write_text("[]")
    os.utime(tmp_path / "deploy.lock", (5000, 5000))
    assert taken() is expired
    if expired:
        assert lock.claim(tmp_path, "two") == lock.Claim(
            "",
            f"{tmp_path}/deploy.lock is damaged: it holds a list where an object belongs. Make sure that no run works"
            " on this host, then remove the file. It was taken over, as it is 30 minutes old.",
        )
    (tmp_path / "deploy.lock").unlink()
    (tmp_path / "deploy.lock").mkdir()
    os.utime(tmp_path / "deploy.lock", (5000, 5000))
    assert not taken(), "a directory cannot be replaced"


def test_a_damaged_lock_that_is_gone_meanwhile_is_none_to_take_over(tmp_path: Path) -> None:
    damaged = documents.Damaged(tmp_path / "deploy.lock", "x", "y")
    with pytest.raises(documents.Damaged):
        lock._claim_damaged(damaged)


# -- renewal and release
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "renewed"), [(0, False), (9.9, False), (10, True), (3000, True), (-1, True)])
def test_a_lock_is_renewed_where_it_is_not_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, renewed: bool
) -> None:
    put(tmp_path, "one", since=5000.0, purpose="recover")
    monkeypatch.setattr(lock.time, "time", lambda: 5000.0 + age)
    lock.renew(tmp_path, "one")
    entry = lock.read(tmp_path)
    assert entry == lock.Entry("one", 5000.0 + age if renewed else 5000.0, "2025-07-30T02:11:00Z", "recover")
    with pytest.raises(OpsError, match=r"This run \(two\) does not hold the lock of this host any more; one does"):
        lock.renew(tmp_path, "two")
    (tmp_path / "deploy.lock").unlink()
    with pytest.raises(OpsError, match="any more; nobody does"):
        lock.renew(tmp_path, "one")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_lost_while_it_is_renewed_is_left_to_its_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "one", age=60)
    real = lock.guard

    def guard(root: Path) -> t.Any:
        put(root, "two")
        return real(root)

    monkeypatch.setattr(lock, "guard", guard)
    with pytest.raises(OpsError, match="two does"):
        lock.renew(tmp_path, "one")
    assert held_by(tmp_path) == "two"
    put(tmp_path, "one")
    assert lock.release(tmp_path, "one") is False and held_by(tmp_path) == "two"


def test_only_the_holder_gives_a_lock_back(tmp_path: Path) -> None:
    assert lock.release(tmp_path / "none", "one") is False
    assert lock.release(tmp_path, "one") is False
    put(tmp_path, "one")
    assert lock.release(tmp_path, "two") is False and held_by(tmp_path) == "one"
    assert lock.release(tmp_path, "one") is True and list(tmp_path.iterdir()) == []


def test_a_lock_is_renewed_again_and_again_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: t.List[t.Tuple[Path, str]] = []
    enough = threading.Event()

    def renew(root: Path, name: str) -> None:
        calls.append((root, name))
        if len(calls) == 3:
            enough.set()
        if len(calls) > 1:
            raise OpsError("The lock is lost.")

    monkeypatch.setattr(lock, "RENEWAL", 0.001)
    monkeypatch.setattr(lock, "renew", renew)
    with lock.heartbeat(tmp_path, "one"):
        assert enough.wait(30), "a renewal that fails ends neither the renewals nor the work"
    assert set(calls) == {(tmp_path, "one")}
    assert not [thread for thread in threading.enumerate() if thread.name == "wheels-ops-lock"]


def test_a_process_renews_the_lock_of_the_run_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewals: t.List[t.Tuple[Path, str]] = []
    monkeypatch.setattr(lock, "renew", lambda root, name: renewals.append((root, name)))
    for environment in (
        {},
        {"WHEELS_OPS_LOCK_HOLDER": "one"},
        {"WHEELS_OPS_LOCK_DIR": str(tmp_path)},
        {"WHEELS_OPS_LOCK_HOLDER": "", "WHEELS_OPS_LOCK_DIR": str(tmp_path)},
    ):
        with lock.of_the_run(environment):
            assert renewals == []
    with lock.of_the_run({"WHEELS_OPS_LOCK_HOLDER": "one", "WHEELS_OPS_LOCK_DIR": str(tmp_path)}):
        assert renewals == [(tmp_path, "one")]
    with (
        pytest.raises(OpsError, match="must be an absolute path"),
        lock.of_the_run({"WHEELS_OPS_LOCK_HOLDER": "one", "WHEELS_OPS_LOCK_DIR": "x"}),
    ):
        pass


# -- one process at a time
# -------------------------------------------------------------------------------------------------


def test_another_process_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    before = len(os.listdir("/proc/self/fd"))
    with lock.exclusive(path, "works"):
        assert path.read_text() == str(os.getpid()) and path.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(lock, "_WAIT", 0.0)
        with (
            pytest.raises(OpsError, match=rf"Another process \({os.getpid()}\) works in {tmp_path}\."),
            lock.exclusive(path, "works"),
        ):
            pass
        path.write_text("")
        with pytest.raises(OpsError, match=r"Another process \(unknown\) works"), lock.exclusive(path, "works"):
            pass
        assert path.exists()
    assert not path.exists() and len(os.listdir("/proc/self/fd")) == before


def test_what_was_written_before_is_replaced_by_the_id(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("9" * 30)
    with lock.exclusive(tmp_path / "x", "works"):
        assert (tmp_path / "x").read_text() == str(os.getpid())


def test_who_waits_goes_on_when_the_other_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other removes the file: whoever waited on it has to take the new one."""
    other = lock.exclusive(tmp_path / "x", "works")
    other.__enter__()
    sleeps: t.List[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            other.__exit__(None, None, None)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with lock.exclusive(tmp_path / "x", "works"):
        assert (tmp_path / "x").exists()
    assert len(sleeps) == 2 and 0 < sleeps[0] < 1


def test_a_file_that_was_replaced_is_not_the_one_that_is_open(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    with open(path) as file:
        assert lock._is(path, file.fileno())
        path.rename(tmp_path / "y")
        assert not lock._is(path, file.fileno())
        path.write_text("")
        assert not lock._is(path, file.fileno())
        path.unlink()
        path.symlink_to("y")
        assert not lock._is(path, file.fileno()), "a link to it is not the file"


def test_a_guard_through_a_link_or_without_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".deploy.lock.guard").symlink_to("elsewhere")
    with pytest.raises(OpsError, match=f"The state directory {tmp_path} cannot be written"), lock.guard(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with (
        pytest.raises(OpsError, match=f"The state directory {tmp_path}/none cannot be written: No such file"),
        lock.guard(tmp_path / "none"),
    ):
        pass


def test_the_guard_is_there_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_WAIT", 0.0)
    with lock.guard(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".deploy.lock.guard"]
        put(tmp_path, "one")
        with pytest.raises(OpsError, match="takes the lock in"):
            lock.release(tmp_path, "one")


def test_what_changes_files_works_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_WAIT", 0.0)
    calls: t.List[t.Tuple[t.Any, ...]] = []

    @lock.changes_files
    def work(state_dir: str, word: str = "", *, check_mode: bool = False) -> str:
        """What it does."""
        calls.append((state_dir, word, check_mode, (tmp_path / ".files.lock").exists()))
        if word == "beside":
            work(state_dir, "inner")
        return "done"

    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    state, none = str(tmp_path), str(tmp_path / "none")
    assert work(state, "a") == work(state, "b", check_mode=True) == work(none, "c") == "done"
    assert calls == [(state, "a", False, True), (state, "b", True, False), (none, "c", False, False)]
    with pytest.raises(
        OpsError, match=rf"Another process \({os.getpid()}\) installs or restores files with the state in {tmp_path}"
    ):
        work(state, "beside")
    assert len(calls) == 4 and not (tmp_path / ".files.lock").exists()
    with pytest.raises(OpsError, match="must be an absolute path"):
        work("x")
