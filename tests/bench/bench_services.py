# SPDX-License-Identifier: GPL-3.0-or-later
"""K4 to K6: restarts under load, start-up faults that a gate catches, and a web service beside four CPU hogs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import typing as t
from pathlib import Path

from tests.bench.harness import Pair, Unavailable, benchmark
from tests.support.backend_env import BACKEND_PYTHON, REPOSITORY
from tests.support.faulty_app import MODES
from tests.support.supervised import FAULTY_APP, Program, Supervisord, supervisord
from tests.support.waiting import free_port, port_open, wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import cpu_relief, service_restart
from wheels_ops.remedies.service_restart import Options
from wheels_ops.services.manager import open_manager
from wheels_ops.services.model import parse_services

LAUNCHER = REPOSITORY / "collections/wheels/ops/roles/services/files/drain.py"
#: Restarts in one measurement, each way of connecting; RESTARTS=18 makes the 36 restarts of the long run.
RESTARTS = int(os.environ.get("RESTARTS", "3"))
SUPPORT = REPOSITORY / "tests/support"


def restart_under_load(daemon: Supervisord, name: str, port: int) -> float:
    """Percent of requests that failed while ``name`` was restarted, with new and with kept connections together."""
    loads = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.load",
                "--port",
                str(port),
                "--seconds",
                str(5 * RESTARTS + 2),
                *extra,
            ],
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        for extra in ([], ["--keep-alive"])
    ]
    for _ in range(RESTARTS):
        daemon.ctl("restart", name)
        wait_until(
            lambda: (
                subprocess.run(
                    ["curl", "-sf", "-m", "5", f"http://127.0.0.1:{port}/"], capture_output=True, check=False
                ).returncode
                == 0
            )
        )
    found = [json.loads(load.communicate()[0]) for load in loads]
    return 100.0 * sum(each["failed"] for each in found) / sum(each["ok"] + each["failed"] for each in found)


@benchmark(
    "K4",
    what=f"requests that fail over {2 * RESTARTS} restarts under load",
    unit="percent",
    goal="ours == 0",
    peer="uvicorn, plain restart",
    runs=2,
)
@contextlib.contextmanager
def failed_requests() -> t.Iterator[Pair]:
    port, plain = free_port(), free_port()
    environment = {"START_SECONDS": "1.5"}
    # supervisord closes an inherited socket with the last process of its group: the first program of the group holds
    # it.
    drained = f"{BACKEND_PYTHON} {LAUNCHER} restarting_app:app --fd 0 --app-dir {SUPPORT} --log-level warning"
    holder = Program(
        f"/bin/sh -c '[ %(process_num)d = 0 ] && exec sleep infinity; exec {drained}'",
        environment=environment,
        options={
            "socket": f"tcp://127.0.0.1:{port}",
            "numprocs": "2",
            "process_name": "%(process_num)d",
            "stdout_logfile": "NONE",
            "stopwaitsecs": "30",
        },
    )
    ordinary = Program(
        f"{BACKEND_PYTHON} -m uvicorn restarting_app:app --app-dir {SUPPORT} --port {plain} --log-level warning",
        environment=environment,
        options={"stopwaitsecs": "30"},
    )
    with supervisord({"web": holder}, section="fcgi-program") as ours, supervisord({"web": ordinary}) as peer:
        wait_until(lambda: port_open(port) and port_open(plain))
        yield lambda: restart_under_load(ours, "web:1", port), lambda: restart_under_load(peer, "web", plain)


class Faults:
    """Eight services whose next start goes wrong, each in its own way, under one supervisord."""

    def __init__(self, daemon: Supervisord, directory: Path, ports: t.Mapping[str, int]) -> None:
        self.daemon, self.directory, self.ports = daemon, directory, ports

    @contextlib.contextmanager
    def armed(self) -> t.Iterator[None]:
        """Every program healthy, then told to start wrongly; a stranger sits on the port of ``stale``."""
        for name in MODES:
            (self.directory / name).write_text("healthy")
        self.daemon.ctl("stop", "all")
        self.daemon.ctl("start", "all")
        wait_until(lambda: all(port_open(port) for port in self.ports.values()))
        for name in MODES:
            (self.directory / name).write_text(name)
        self.daemon.ctl("stop", "stale")
        (self.directory / "other").write_text("healthy")
        stranger = subprocess.Popen(
            [sys.executable, str(FAULTY_APP), str(self.ports["stale"]), str(self.directory / "other")],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: port_open(self.ports["stale"]))
            yield
        finally:
            stranger.kill()
            stranger.wait()

    def caught(self, attempt: t.Callable[[str], bool]) -> float:
        """How many of the eight an attempt recognises; all at once."""
        found: t.Dict[str, bool] = {}

        def one(name: str) -> None:
            found[name] = not attempt(name)

        with self.armed():
            threads = [threading.Thread(target=one, args=(name,)) for name in MODES]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return float(sum(found.values()))

    def gate(self, name: str) -> bool:
        """Whether service_restart lets the start pass."""
        entry = {
            "name": name,
            "gate": {"type": "http", "url": f"http://127.0.0.1:{self.ports[name]}/readyz", "timeout": 2},
        }
        options = Options(
            max_restarts=0,
            wait_sleep=0.1,
            min_healthy_time=3,
            healthy_deadline=8,
            state_dir=str(self.directory / "state" / name),
        )
        try:
            service_restart.run(parse_services([entry]), open_manager("supervisor", self.daemon.socket), options)
        except OpsError:
            return False
        return True

    def plain(self, name: str) -> bool:
        """Whether a restart and one HTTP 200 within eight seconds let it pass: what a playbook with ``supervisorctl``
        and ``uri`` does.
        """
        self.daemon.ctl("restart", name)
        words = [
            "curl",
            "-sf",
            "-m",
            "2",
            "--retry",
            "8",
            "--retry-all-errors",
            "--retry-delay",
            "1",
            f"http://127.0.0.1:{self.ports[name]}/",
        ]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


@benchmark(
    "K5",
    what="start-up faults caught, of eight",
    unit="faults",
    goal="ours == 8",
    peer="restart, then HTTP 200 from /",
    runs=1,
)
@contextlib.contextmanager
def faults() -> t.Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="wops-k5-") as name:
        directory = Path(name)
        ports = {mode: free_port() for mode in MODES}
        for mode in MODES:
            (directory / mode).write_text("healthy")
        programs = {mode: Program(f"{sys.executable} {FAULTY_APP} {ports[mode]} {directory / mode}") for mode in MODES}
        with supervisord(programs) as daemon:
            fixture = Faults(daemon, directory, ports)
            yield lambda: fixture.caught(fixture.gate), lambda: fixture.caught(fixture.plain)


class Busy:
    """A web service that needs CPU for every answer, and four hogs of another session."""

    def __init__(self, port: int, pid: int, directory: Path) -> None:
        self.port, self.pid, self.directory = port, pid, directory
        self.word = f"hog-{secrets.token_hex(6)}"

    def throughput(self) -> float:
        """Answers a second, eight clients on kept connections."""
        words = [
            sys.executable,
            "-m",
            "tests.support.load",
            "--port",
            str(self.port),
            "--seconds",
            "4",
            "--clients",
            "8",
            "--slow-path",
            "",
            "--pace",
            "0",
        ]
        done = subprocess.run([*words, "--keep-alive"], capture_output=True, cwd=REPOSITORY, check=True)
        return float(json.loads(done.stdout)["ok"]) / 4

    @contextlib.contextmanager
    def hogs(self) -> t.Iterator[t.List[int]]:
        running = [
            subprocess.Popen([sys.executable, str(SUPPORT / "hog.py"), self.word], start_new_session=True)
            for _ in range(4)
        ]
        try:
            yield [process.pid for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()

    def share(self, relief: bool) -> float:
        """Throughput beside the hogs as a share of that without them, measured before and after."""
        alone = self.throughput()
        with self.hogs() as pids:
            before = [(cpu_relief.scheduling(pid), cpu_relief.autogroup(pid)) for pid in pids]
            if relief:
                protected = frozenset({self.pid})
                cpu_relief.run(
                    cpu_relief.Options(
                        demote=(self.word,),
                        protected_pids=protected,
                        sample_s=1.0,
                        min_percent=5.0,
                        state_dir=str(self.directory),
                    )
                )
            beside = self.throughput()
            if relief:
                cpu_relief.run(cpu_relief.Options(state="normal", state_dir=str(self.directory)))
                if [(cpu_relief.scheduling(pid), cpu_relief.autogroup(pid)) for pid in pids] != before:
                    raise AssertionError("the hogs were not put back as they were")
        return beside / statistics.mean([alone, self.throughput()])


@benchmark(
    "K6",
    what="throughput beside four CPU hogs, share of that without them",
    unit="",
    goal="ours >= 0.8",
    peer="nothing done",
    runs=3,
)
@contextlib.contextmanager
def beside_hogs() -> t.Iterator[Pair]:
    if os.geteuid():
        raise Unavailable("putting the hogs back needs root")
    port = free_port()
    words = [
        str(BACKEND_PYTHON),
        "-m",
        "uvicorn",
        "busy_app:app",
        "--app-dir",
        str(SUPPORT),
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    process = subprocess.Popen(words, start_new_session=True)
    try:
        with tempfile.TemporaryDirectory(prefix="wops-k6-") as directory:
            wait_until(lambda: port_open(port))
            busy = Busy(port, process.pid, Path(directory))
            yield lambda: busy.share(True), lambda: busy.share(False)
    finally:
        process.terminate()
        process.wait()
