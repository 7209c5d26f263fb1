# SPDX-License-Identifier: GPL-3.0-or-later
"""service_restart under a real supervisord: the sequence of modes, and eight ways in which a start goes wrong."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from tests.support.faulty_app import MODES
from tests.support.supervised import FAULTY_APP, Program, Supervisord, supervisord
from tests.support.waiting import free_port, port_open, wait_until
from wheels_ops.checks import services as services_check
from wheels_ops.core.results import OpsError, Result
from wheels_ops.health.check import Check
from wheels_ops.host import processes
from wheels_ops.remedies import backend_patch, service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services
from wheels_ops.state import deployments


class Web:
    """A supervised web service whose next start can be made to go wrong."""

    def __init__(self, daemon: Supervisord, port: int, mode: Path, state: Path, name: str = "web") -> None:
        self.daemon, self.port, self.mode, self.state, self.name = daemon, port, mode, state, name

    def run(
        self, *, check_mode: bool = False, entry: t.Optional[t.Dict[str, t.Any]] = None, **options: t.Any
    ) -> Result:
        settings: t.Dict[str, t.Any] = {
            "wait_timeout": 15,
            "wait_sleep": 0.1,
            "min_healthy_time": 3,
            "healthy_deadline": 6,
            "max_restarts": 0,
        }
        return service_restart.run(
            parse_services(
                [
                    {
                        "name": self.name,
                        "gate": {"type": "http", "url": f"http://127.0.0.1:{self.port}/readyz", "timeout": 2},
                        **(entry or {}),
                    }
                ]
            ),
            open_manager("supervisor", self.daemon.socket),
            Options(**{**settings, "state_dir": str(self.state), **options}),
            check_mode=check_mode,
        )


@pytest.fixture
def web(tmp_path: Path) -> t.Iterator[Web]:
    port, mode = free_port(), tmp_path / "mode"
    mode.write_text("healthy")
    program = Program(f"{sys.executable} {FAULTY_APP} {port} {mode}")
    with supervisord({"web": program}) as daemon:
        wait_until(lambda: port_open(port) and "RUNNING" in daemon.ctl("status", "web"))
        yield Web(daemon, port, mode, tmp_path / "state")


def test_check_mode_then_real_then_started_again(web: Web) -> None:
    old = web.daemon.pid("web")

    predicted = web.run(check_mode=True)
    assert predicted.changed
    assert [(entry["action"], entry["target"]) for entry in predicted.actions] == [("restart", "web")]
    assert web.daemon.pid("web") == old
    assert not web.state.exists()

    done = web.run()
    new = web.daemon.pid("web")
    assert done.changed
    assert new not in (0, old)
    assert done.actions[0]["instance_after"].startswith(f"{new}@")
    assert done.actions[0]["ms_to_ready"] > 0
    assert set(done.as_dict()) == set(predicted.as_dict())
    assert set(predicted.actions[0]) <= set(done.actions[0])

    again = web.run(state="started")
    assert not again.changed
    assert again.actions == []
    assert web.daemon.pid("web") == new


def test_eight_faults_are_caught_and_a_healthy_start_passes(tmp_path: Path) -> None:
    """All nine at once, each with a state of its own: eight are caught, with the last state and the last lines."""
    names = (*MODES, "healthy")
    ports = {name: free_port() for name in names}
    programs = {}
    for name in names:
        (tmp_path / name).write_text("healthy")
        programs[name] = Program(f"{sys.executable} {FAULTY_APP} {ports[name]} {tmp_path / name}")
    caught: t.Dict[str, OpsError] = {}
    passed: t.Dict[str, Result] = {}

    def attempt(name: str) -> None:
        try:
            passed[name] = Web(daemon, ports[name], tmp_path / name, tmp_path / "state" / name, name).run()
        except OpsError as error:
            caught[name] = error

    with supervisord(programs) as daemon, contextlib.ExitStack() as stack:
        wait_until(lambda: all(port_open(port) for port in ports.values()))
        for name in names:
            (tmp_path / name).write_text(name)
        daemon.ctl("stop", "stale")
        (tmp_path / "other").write_text("healthy")
        stale = subprocess.Popen(
            [sys.executable, str(FAULTY_APP), str(ports["stale"]), str(tmp_path / "other")], stdout=subprocess.DEVNULL
        )
        stack.callback(stale.wait)
        stack.callback(stale.kill)
        wait_until(lambda: port_open(ports["stale"]))
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(attempt, names))
    assert sorted(caught) == sorted(MODES)
    assert list(passed) == ["healthy"]
    for name, error in caught.items():
        assert error.details["service"] == name
        assert error.details["last_state"]["unit"] == name
        assert any(f"starting as {name}" in line for line in error.details["log"]), error.details["log"]
        assert error.details["changed"]
        assert set(error.details) >= {"before", "after", "actions", "diff", "last_state", "log"}
    assert str(stale.pid) in caught["stale"].message
    assert "DATABASE_URL is not set" in "\n".join(caught["exit"].details["log"])


def test_what_does_not_run_is_started(web: Web) -> None:
    web.daemon.ctl("stop", "web")
    done = web.run()
    assert [(entry["action"], entry["changed"]) for entry in done.actions] == [("start", True)]
    assert web.daemon.pid("web")


def test_only_where_a_reason_is_found(web: Web, tmp_path: Path) -> None:
    watched = tmp_path / "main.py"
    watched.write_text("old")
    os.utime(watched, (1, 1))
    # ctime cannot be put back: the service has to be younger than the file to begin with.
    web.run()
    old = web.daemon.pid("web")
    entry = {"watch_files": [str(watched), str(tmp_path / "missing")]}
    assert not web.run(only_if=("stale", "failed", "stopped", "unhealthy"), entry=entry).changed
    assert web.daemon.pid("web") == old

    wait_until(lambda: time.time() - (processes.start_time(old) or 0) > 2)
    watched.write_text("new")
    done = web.run(only_if=("stale",), entry=entry)
    assert done.changed
    assert "main.py is newer" in done.actions[0]["reason"]
    new = web.daemon.pid("web")
    assert new not in (0, old)

    # It runs for its manager and does not answer: only the gate knows.
    os.kill(new, signal.SIGSTOP)
    try:
        assert not web.run(only_if=("failed", "stopped"), entry=entry).changed
        done = web.run(only_if=("unhealthy",), entry=entry)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(new, signal.SIGCONT)
    assert "its gate does not hold" in done.actions[0]["reason"]
    assert web.daemon.pid("web") not in (0, new)


def test_the_check_sees_what_its_manager_had_to_do(web: Web) -> None:
    entry = {"name": "web", "gate": {"type": "http", "url": f"http://127.0.0.1:{web.port}/readyz"}}

    def check() -> Check:
        return services_check.check([entry], manager="supervisor", supervisor_socket=web.daemon.socket)

    assert check().status == "ok"
    os.kill(web.daemon.pid("web"), signal.SIGKILL)
    wait_until(lambda: check().status != "critical")
    assert check().status == "warning", check()
    assert "start it again" in check().message
    web.daemon.ctl("stop", "web")
    stopped = check()
    assert (stopped.status, stopped.remedy, stopped.value) == ("critical", "service_restart", 0.0)


def test_what_supervisord_refuses_is_said_with_a_way_out(tmp_path: Path) -> None:
    programs = {
        "missing": Program("/nowhere/at/all", autostart=False),
        "brief": Program("/bin/false", autostart=False),
        "steady": Program("sleep 600", options={"process_name": "%(program_name)s_%(process_num)d", "numprocs": "2"}),
    }
    with supervisord(programs, username="ops", password="s3cret") as daemon:

        def run(unit: str, **account: str) -> Result:
            services = parse_services([{"name": "service", "unit": unit}])
            control = open_manager("supervisor", daemon.socket, **{"username": "ops", "password": "s3cret", **account})
            options = Options(
                wait_timeout=10,
                wait_sleep=0.1,
                min_healthy_time=0.2,
                healthy_deadline=5,
                max_restarts=0,
                state_dir=str(tmp_path),
            )
            return service_restart.run(services, control, options)

        with pytest.raises(OpsError, match="401") as caught:
            run("steady:steady_0", password="wrong")
        assert "supervisor_password" in caught.value.hint
        assert "wrong" not in str(caught.value)
        with pytest.raises(OpsError, match="does not know service"):
            run("nobody")
        with pytest.raises(OpsError, match="does not exist|NO_FILE|gave up"):
            run("missing")
        with pytest.raises(OpsError, match="gave up, FATAL"):
            run("brief")
        before = daemon.pid("steady:steady_1")
        assert run("steady:steady_0").changed
        assert daemon.pid("steady:steady_1") == before
    with pytest.raises(OpsError, match="does not answer") as caught:
        open_manager("supervisor", str(tmp_path / "no.sock")).states(["a"])
    assert "Is it running" in caught.value.hint


def test_file_that_does_not_compile_is_named_with_the_deployment_that_it_left(tmp_path: Path) -> None:
    tree, state = tmp_path / "backend", tmp_path / "state"
    main = tree / "app" / "main.py"
    main.parent.mkdir(parents=True)
    main.write_text("import time\ntime.sleep(600)\n")
    files = {"app/main.py": b"import time\ntime.sleep(700)\n", "app/cors.py": b"x = 1\n"}
    deployments.begin(str(state), "one", holder="me")
    backend_patch.install(
        str(state), "one", backend_patch.Request(root=str(tree), files=files), backend_patch.Proof(module="")
    )
    deployments.end(str(state), "one", holder="me", state=deployments.FINISHED)
    program = Program(f"{sys.executable} {main}", options={"startretries": "0", "startsecs": "1"})
    with supervisord({"web": program}) as daemon:
        wait_until(lambda: "RUNNING" in daemon.ctl("status", "web"))
        main.write_text("import time\ndef broken(:\n")
        (tree / "app/cors.py").unlink()
        control = open_manager("supervisor", daemon.socket)
        options = Options(
            wait_timeout=15, wait_sleep=0.1, min_healthy_time=0.2, healthy_deadline=6, state_dir=str(state)
        )
        with pytest.raises(OpsError) as caught:
            service_restart.run(parse_services([{"name": "web"}]), control, options)
    assert f"{main}, line 2: SyntaxError: invalid syntax" in str(caught.value)
    assert "2 files of the deployment were changed since, 1 of them deleted" in caught.value.hint
    assert str(tree / "app/cors.py") in caught.value.hint
