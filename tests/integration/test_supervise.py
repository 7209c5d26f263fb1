# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of tests or benchmarks that is interrupted leaves no process behind; ``/proc`` is the witness."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import typing as t
import uuid
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support.waiting import port_open, wait_until

SUPERVISE = (sys.executable, "-m", "tests.supervise")
MARK = "WHEELS_OPS_INTERRUPTED_RUN"
#: A server, something that leaves its session and its parent and lets nobody end it in peace, and a test that does not
#: end.
SUITE = """
import signal, subprocess, sys, time
import pytest
from tests.support import servers

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"

@pytest.fixture(scope="session")
def torn_down():
    yield
    open("torn-down", "w").close()

def test_that_does_not_end(torn_down):
    with servers.redis() as redis:
        subprocess.run([sys.executable, "-c", PARENT], check=True)
        with open("port", "w") as file:
            file.write(str(redis.port))
        open("begun", "w").close()
        time.sleep(600)
"""


def marked(mark: str) -> t.Dict[int, str]:
    """The processes that a run started, by what they inherited from it."""
    processes = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                processes[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return processes


@contextlib.contextmanager
def started(words: t.Sequence[str], directory: Path) -> t.Iterator[t.Tuple[subprocess.Popen[str], str]]:
    """A command in the way that a shell or ``make`` starts it; ended with all that belongs to it, whatever the test
    found.
    """
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/src",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    output = directory / "output"
    with open(output, "w") as file:
        process = subprocess.Popen(
            words, cwd=directory, env=environment, stdout=file, stderr=file, text=True, start_new_session=True
        )
    try:
        yield process, mark
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def suite(tmp_path: Path) -> t.Tuple[str, ...]:
    """A suite of one file, with our conftest."""
    (tmp_path / "test_endless.py").write_text(SUITE)
    return (str(Path(sys.executable).with_name("pytest")), "-q", "-p", "tests.conftest", "test_endless.py")


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ("-n", "1"))],
    ids=["ctrl-c", "terminated, with xdist"],
)
def test_main_ends_everything_of_an_interrupted_suite(
    suite: t.Tuple[str, ...], tmp_path: Path, number: signal.Signals, workers: t.Tuple[str, ...]
) -> None:
    """Fixtures are torn down first, and what is left then is ended, also what ignores SIGTERM in a
    session of its own.
    """
    with started((*SUPERVISE, *suite, *workers), tmp_path) as (process, mark):
        wait_until((tmp_path / "begun").exists, timeout=60, what="the test to begin")
        port = int((tmp_path / "port").read_text())
        assert port_open(port) and any("SIG_IGN" in line for line in marked(mark).values())
        process.send_signal(number)
        assert process.wait(timeout=120) == 128 + number, (tmp_path / "output").read_text()
        assert marked(mark) == {}
        assert not port_open(port), "Redis writes its title over the environment by which we know the others"
        assert (tmp_path / "torn-down").exists(), (tmp_path / "output").read_text()


def test_main_ends_everything_where_the_shell_that_started_it_is_killed(
    suite: t.Tuple[str, ...], tmp_path: Path
) -> None:
    """As when a job is cancelled: nobody waits for the run any more."""
    words = " ".join((*SUPERVISE, *suite))
    with started(("sh", "-c", f"{words}; true"), tmp_path) as (process, mark):
        wait_until((tmp_path / "begun").exists, timeout=60, what="the test to begin")
        process.kill()
        wait_until(lambda: not marked(mark), timeout=120, what="the end of every process")
        assert (tmp_path / "torn-down").exists()


def test_main_ends_everything_of_an_interrupted_benchmark(tmp_path: Path) -> None:
    """A real one, with the server that it measures."""
    words = (*SUPERVISE, sys.executable, "-m", "tests.bench.harness", "S1")
    with started(words, tmp_path) as (process, mark):
        wait_until(lambda: len(marked(mark)) > 2, timeout=60, what="the benchmark's server")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
        assert marked(mark) == {}


@pytest.mark.parametrize(("code", "status"), [("0", 0), ("3", 3)])
def test_main_gives_the_status_of_the_command_and_ends_what_it_left(tmp_path: Path, code: str, status: int) -> None:
    """A run that ends by itself leaves nothing either."""
    program = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        f" start_new_session=True); sys.exit({code})"
    )
    with started((*SUPERVISE, sys.executable, "-c", program), tmp_path) as (process, mark):
        assert process.wait(timeout=60) == status
        assert marked(mark) == {}


@pytest.mark.parametrize("target", ["test", "unit", "stress", "test-fleet", "mutants", "bench"])
def test_make_runs_tests_and_benchmarks_supervised(target: str) -> None:
    """What make would run, and what the script does that ``make test`` runs."""
    dry = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    commands = (REPOSITORY / "tests/run").read_text() if target == "test" else dry
    runs = [line for line in commands.splitlines() if ("pytest" in line or "tests." in line) and "#" not in line]
    assert runs and all("python -m tests.supervise " in line for line in runs), runs
