# SPDX-License-Identifier: GPL-3.0-or-later
"""The ladder on real processes under supervisord: check mode first, then the run, then nothing more to do."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import typing as t
import urllib.request
from pathlib import Path

import pytest

from tests.support import memory_shapes, servers
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.host import heap
from wheels_ops.remedies.memory import trim
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services

MEBIBYTE = 1024 * 1024
#: What the shapes let go of, in MB.
WASTE = 100


@contextlib.contextmanager
def service(shape: str) -> t.Iterator[t.Tuple[Supervisord, t.Dict[str, t.Any], int]]:
    """A supervised server of a shape, the parameters of a run on it, and its resident MiB."""
    port = free_port()
    command = f"{sys.executable} {memory_shapes.__file__} {port} {shape} {WASTE}"
    with supervisord({"web": Program(command)}) as daemon:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
        size = settled(daemon.pid("web"))
        yield daemon, parameters(daemon, address, size), size


def settled(pid: int) -> int:
    """The resident MiB of a process when they change no more: glibc returns some when the next block is freed."""
    seen = [0, -1]

    def steady() -> bool:
        seen.append(round(trim.resident_bytes([pid]) / MEBIBYTE))
        return seen[-1] == seen[-2] == seen[-3]

    wait_until(steady, every=0.1)
    return seen[-1]


def optimize(address: str) -> None:
    post(f"{address}/api/v1/system/memory/optimize")


def post(url: str) -> None:
    urllib.request.urlopen(
        urllib.request.Request(url, data=b"", headers={"X-Ops-Token": memory_shapes.TOKEN}), timeout=30
    ).read()


def parameters(daemon: Supervisord, address: str, size: int) -> t.Dict[str, t.Any]:
    """Such that the service is at about 80 % of its limit."""
    return {
        "services": [{"name": "web", "gate": {"type": "http", "url": f"{address}/health"}}],
        "service_manager": "supervisor",
        "supervisor_socket": daemon.socket,
        "scope": "services",
        "memory_limits_mb": {"web": size / 0.8},
        "base_url": address,
        "token": memory_shapes.TOKEN,
        "state_dir": str(daemon.directory / "state"),
        "min_gain": "8M",
    }


def test_the_application_gives_back_and_the_prediction_holds() -> None:
    with service("medium") as (daemon, given, _size):
        pid = daemon.pid("web")
        before = heap.look(pid).rss
        foreseen = trim.run_with(given, check_mode=True)
        assert heap.look(pid).rss == pytest.approx(before, rel=0.01), "check mode changed something"
        done = trim.run_with(given)
        again = trim.run_with(given)
        after = heap.look(pid).rss
    assert foreseen.changed and done.changed and not again.changed
    assert (
        [action["action"] for action in foreseen.actions]
        == [action["action"] for action in done.actions]
        == ["application"]
    )
    assert set(foreseen.as_dict()) == set(done.as_dict())
    action = done.actions[0]
    assert before - after > 60 * MEBIBYTE
    assert action["bytes_freed"] == pytest.approx(before - after, rel=0.1)
    assert 0.85 * action["predicted_bytes"] < action["bytes_freed"] <= 1.02 * action["predicted_bytes"]
    assert done.before["tier"] == "critical" and done.after["tier"] == "ok"
    assert done.extra["missed"] == []


def test_small_objects_are_not_asked_for_in_vain_and_a_restart_is_the_cure() -> None:
    with service("json") as (daemon, given, _size):
        pid = daemon.pid("web")
        optimize(given["base_url"])  # what is left now is small objects
        size = settled(pid)
        warm = {**given, "memory_limits_mb": {"web": size / 0.7}}  # between warning and critical
        skipped = trim.run_with(warm)
        assert not skipped.changed and "not worth it" in skipped.actions[0].get("skipped", ""), (skipped.actions, size)
        assert skipped.extra["missed"] == ["web"]
        full = {**given, "memory_limits_mb": {"web": size / 0.97}}
        unallowed = trim.run_with(full)
        assert "A restart is in order" in unallowed.msg and daemon.pid("web") == pid
        protected = trim.run_with({**full, "allow_restart": True, "protect": ["web"]})
        assert daemon.pid("web") == pid and not any(action["action"] == "restart" for action in protected.actions)
        done = trim.run_with({**full, "allow_restart": True})
        assert done.changed and done.actions[-1]["action"] == "restart" and daemon.pid("web") != pid


def test_the_share_does_not_depend_on_what_else_runs() -> None:
    """A library counts the same however many other programs have it mapped: PSS fell by 8 % as soon as another Python
    ran.
    """
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    with service("live") as (daemon, _given, _size):
        pid = daemon.pid("web")
        alone = trim.resident_bytes([pid])
        others = [subprocess.Popen(program) for _ in range(6)]
        try:
            wait_until(lambda: all(trim.resident_bytes([other.pid]) > 4 * MEBIBYTE for other in others))
            beside = trim.resident_bytes([pid])
        finally:
            for other in others:
                other.kill()
                other.wait()
        assert beside == pytest.approx(alone, abs=MEBIBYTE // 4)
        assert alone == pytest.approx(heap.look(pid).rss, rel=0.02), "one process has what the kernel calls resident"


def test_a_limit_below_what_a_service_needs_restarts_it_once() -> None:
    """The second run changes nothing and says how much it needs; check mode foretells each of them."""
    with service("live") as (daemon, given, size):
        tight = {**given, "memory_limits_mb": {"web": size / 0.97}, "allow_restart": True}

        def both(parameters: t.Dict[str, t.Any]) -> trim.Result:
            """The run, after check mode foretold the same of it."""
            pid = daemon.pid("web")
            foreseen = trim.run_with(parameters, check_mode=True)
            assert daemon.pid("web") == pid
            done = trim.run_with(parameters)
            seen = [
                [(action["action"], action["changed"], "skipped" in action) for action in result.actions]
                for result in (foreseen, done)
            ]
            assert seen[0] == seen[1] and foreseen.changed == done.changed, (foreseen.msg, done.msg)
            return done

        pid = daemon.pid("web")
        first = both(tight)
        assert first.changed and daemon.pid("web") != pid
        assert "gave nothing back: it needs that much" in first.msg
        pid = daemon.pid("web")
        for _ in range(2):
            again = both(tight)
            assert not again.changed and daemon.pid("web") == pid
            assert "is too low for what web needs" in again.msg
            assert again.actions[-1]["needed_bytes"] == pytest.approx(size * MEBIBYTE, rel=0.05)
        # It grew: within ten minutes of its restart that is how it is, later a restart may give it back.
        post(f"{given['base_url']}/grow")
        grown = {**tight, "memory_limits_mb": {"web": (size + 40) / 0.97}}
        soon = both(grown)
        assert not soon.changed and "grew back" in soon.msg and daemon.pid("web") == pid
        notes = daemon.directory / "state/memory.json"
        kept = json.loads(notes.read_text())
        for note in kept.values():
            note["time"] -= 3600
        notes.write_text(json.dumps(kept))
        later = both(grown)
        assert later.changed and daemon.pid("web") != pid
        assert later.actions[-1]["bytes_freed"] > 30 * MEBIBYTE
        # What a limit of its own budget refuses, check mode refuses too.
        pid = daemon.pid("web")
        notes.unlink()
        spent = both({**tight, "max_restarts": 2})
        assert not spent.changed and "budget of 2 restarts" in spent.msg and daemon.pid("web") == pid


def test_one_run_restarts_a_service_once_for_all_of_its_limits() -> None:
    with service("live") as (daemon, given, size):
        # The host is above these tiers too, by what everything on it uses.
        low = {
            "thresholds": {"warning": 0.1, "critical": 0.2, "emergency": 0.3},
            "restart_above": 1,
            "scope": "host",
            "actions": ["restart"],
        }
        tight = {**given, **low, "memory_limits_mb": {"web": size / 0.97}, "allow_restart": True}
        pid = daemon.pid("web")
        for check_mode in (True, False):
            result = trim.run_with(tight, check_mode=check_mode)
            taken = [(action["subject"], action["changed"]) for action in result.actions]
            assert taken[:2] == [("web", True), ("the host", False)], taken
            assert "did so already" in result.actions[1]["skipped"]
        new = daemon.pid("web")
        assert new != pid
        for check_mode in (True, False):
            assert not trim.run_with(tight, check_mode=check_mode).changed
        assert daemon.pid("web") == new


def test_a_token_that_is_missing_or_wrong_is_told_in_check_mode_too(tmp_path: Path) -> None:
    with service("medium") as (_daemon, given, _size):
        for content, said in (
            (None, "No such file"),
            ("# none yet\n\n", "holds no ops token"),
            ("wrong-but-long-enough\n", "refuses the ops token"),
        ):
            file = tmp_path / "token"
            if content is not None:
                file.write_text(content)
            for check_mode in (True, False):
                try:
                    result = trim.run_with({**given, "token": "", "token_file": str(file)}, check_mode=check_mode)
                except OpsError as error:
                    assert said in str(error) and content != "wrong-but-long-enough\n"
                else:
                    assert said in result.msg and not result.changed


@pytest.mark.parametrize("token", ["two\nlines-of-a-token", "wort-mit-\u00e4-und-mehr", "a\0b-and-so-much-more"])
def test_a_token_that_cannot_be_sent_is_refused_before_it_is_needed(token: str) -> None:
    with pytest.raises(OpsError, match="token must be letters, digits and signs, got a value of") as caught:
        trim.run_with({"base_url": "http://127.0.0.1:1", "token": token}, check_mode=True)
    assert token not in str(caught.value)


def test_a_wrong_token_is_said_and_the_next_rung_is_tried() -> None:
    with service("medium") as (_daemon, given, _size):
        result = trim.run_with({**given, "token": "wrong-but-long-enough"})
    assert not result.changed and "refuses the ops token" in result.actions[0]["skipped"]


@pytest.mark.parametrize("shape", memory_shapes.SHAPES)
def test_the_bound_is_never_exceeded(shape: str) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, memory_shapes.__file__, str(port), shape, "60"])
    try:
        wait_until(lambda: urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
        before = heap.look(process.pid)
        optimize(address)
        freed = before.rss - heap.look(process.pid).rss
    finally:
        process.kill()
        process.wait()
    assert freed <= before.trim_bound + 4 * MEBIBYTE, before
    if shape in ("medium", "threads"):
        assert freed > 0.8 * before.trim_bound > 20 * MEBIBYTE
    if shape in ("small", "json"):
        assert before.trim_bound < 0.35 * before.rss and before.other_anonymous > 0.4 * before.rss


def test_the_largest_worker_of_gunicorn_like_servers_is_replaced(tmp_path: Path) -> None:
    """uvicorn with several workers, in the backend's environment: the fat worker goes, the others serve on."""
    from tests.support.backend_env import BACKEND_PYTHON

    (tmp_path / "fat.py").write_text(
        "import os, pathlib\n"
        "first = pathlib.Path(__file__).with_name('first')\n"
        "try:\n"
        "    os.close(os.open(first, os.O_CREAT | os.O_EXCL))\n"
        "    WASTE = [str(number) * 4 for number in range(1_000_000)]\n"
        "except FileExistsError:\n"
        "    pass\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': b'ok'})\n"
    )
    port = free_port()
    uvicorn = Path(BACKEND_PYTHON).with_name("uvicorn")
    program = Program(
        f"{uvicorn} fat:app --app-dir {tmp_path} --port {port} --workers 3 --lifespan off",
        options={"directory": str(tmp_path)},
    )
    with supervisord({"web": program}) as daemon:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: urllib.request.urlopen(f"{address}/", timeout=2).status == 200)
        control = open_manager("supervisor", daemon.socket)
        services = parse_services([{"name": "web", "gate": {"type": "http", "url": f"{address}/"}}])
        context = trim.Context(services=services, control=control)
        worker = trim.steps.RUNGS["recycle"]
        wait_until(lambda: worker.predict(context, "web") > 50 * MEBIBYTE)
        before = trim.resident_bytes(context.pids("web")) // MEBIBYTE
        given = {
            **parameters(daemon, "", 1),
            "services": [{"name": "web"}],
            "memory_limits_mb": {"web": before / 0.88},
            "base_url": "",
        }
        master = daemon.pid("web")
        result = trim.run_with(given)
        assert result.changed and result.actions[-1]["action"] == "recycle", result.actions
        assert result.actions[-1]["bytes_freed"] > 40 * MEBIBYTE and len(result.actions[-1]["new"]) == 1
        assert daemon.pid("web") == master
        wait_until(lambda: urllib.request.urlopen(f"{address}/", timeout=2).status == 200)
        # All workers are as small as a fresh one: above its limit for good, none is ended in vain, as check mode says.
        workers = context.pids("web")
        tight = {**given, "memory_limits_mb": {"web": trim.resident_bytes(workers) / MEBIBYTE / 0.95}}
        for check_mode in (True, False):
            again = trim.run_with(tight, check_mode=check_mode)
            assert not again.changed and "was replaced at" in again.actions[-1]["skipped"], again.actions
        assert context.pids("web") == workers


def test_redis_gives_back_what_its_allocator_kept(redis: servers.Redis) -> None:
    import redis as redis_client

    client = redis_client.Redis.from_url(redis.url)
    pipe = client.pipeline(transaction=False)
    for number in range(60_000):
        pipe.set(f"cache:{number}", b"x" * 1500)
    pipe.execute()
    pipe = client.pipeline(transaction=False)
    for number in range(60_000):
        if number % 10:
            pipe.delete(f"cache:{number}")
    pipe.execute()
    rung = trim.steps.RUNGS["redis"]
    context = trim.Context(services=[], control=None, redis_url=redis.url)
    predicted = rung.predict(context, "redis")
    outcome = rung.act(context, "redis", False)
    assert outcome.given_back <= predicted
    assert client.dbsize() == 6_000


def test_no_debugger_and_no_drop_caches_anywhere() -> None:
    """What must never be done is not there to be called."""
    root = Path(trim.__file__).parents[1]
    found = subprocess.run(
        ["grep", "-rlE", "drop_caches|gdb |ptrace\\(|SIGKILL", str(root), "--include=*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [
        line for line in found.stdout.splitlines() if "memory" in line or "heap" in line or "pressure" in line
    ] == []
