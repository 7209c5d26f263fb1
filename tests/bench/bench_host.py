# SPDX-License-Identifier: GPL-3.0-or-later
"""Host remedies: memory given back, scanning and its safety, rotation under load. Peers run in the same run, on the
same files.

``WHEELS_OPS_SCAN_FILES=100000`` scans fewer files than the goal names, which takes a fifth of the time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.request
from pathlib import Path

from tests.bench.harness import REPOSITORY, Measure, Pair, Unavailable, benchmark
from tests.support import log_writer, memory_shapes
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, wait_until
from wheels_ops.remedies.disk import cleanup as disk_cleanup
from wheels_ops.remedies.logs import rotate as log_rotate
from wheels_ops.remedies.memory import trim

MEBIBYTE = 1024 * 1024
WASTE_MB = 80
LOG_BYTES = 30_000_000


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Unavailable(f"{name} is not installed")
    return found


@contextlib.contextmanager
def shaped(shape: str, directory: Path) -> t.Iterator[t.Tuple[Supervisord, str, int]]:
    """A supervised server that has wasted memory once, its address, and what a fresh one takes.

    Started again it wastes nothing: the load is over.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    flag, program = directory / "wasted", directory / "once.py"
    program.write_text(
        "import os, sys\n"
        f"size = '0' if os.path.exists({str(flag)!r}) else '{WASTE_MB}'\n"
        f"open({str(flag)!r}, 'w').close()\n"
        f"os.execv(sys.executable, [sys.executable, {memory_shapes.__file__!r}, '{port}', {shape!r}, size])\n"
    )
    fresh = subprocess.Popen([sys.executable, memory_shapes.__file__, str(port), shape, "0"])
    try:
        wait_until(lambda: urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
        least = trim.resident_bytes([fresh.pid])
    finally:
        fresh.kill()
        fresh.wait()
    with supervisord({"web": Program(f"{sys.executable} {program}")}) as daemon:
        wait_until(lambda: urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
        yield daemon, address, least


def given_back(shape: str, how: str) -> float:
    """The percentage of a shape's waste that is given back; the waste is what the process has above a fresh one."""
    with tempfile.TemporaryDirectory() as place, shaped(shape, Path(place)) as (daemon, address, least):
        before = trim.resident_bytes([daemon.pid("web")])
        if how == "gc":
            request = urllib.request.Request(f"{address}/gc", data=b"", headers={"X-Ops-Token": memory_shapes.TOKEN})
            urllib.request.urlopen(request, timeout=60).read()
        else:
            trim.run_with(
                {
                    "services": [{"name": "web", "gate": {"type": "http", "url": f"{address}/health"}}],
                    "service_manager": "supervisor",
                    "supervisor_socket": daemon.socket,
                    "scope": "services",
                    "memory_limits_mb": {"web": before / 0.98 / MEBIBYTE},
                    "base_url": address,
                    "token": memory_shapes.TOKEN,
                    "allow_restart": True,
                    "state_dir": place,
                    "min_gain": "8M",
                    "restart_above": 50.0,
                    # With the usual tiers, the ladder stops at a service that is below 65 %: here all of the waste is
                    # to come back.
                    "thresholds": {"warning": 30, "critical": 40, "emergency": 50},
                }
            )
        after = trim.resident_bytes([daemon.pid("web")])
    return 100.0 * (before - after) / max(1, before - least)


@benchmark(
    "K1",
    what="memory_trim: waste given back, mean of six shapes",
    unit="%",
    goal="ours >= 90",
    peer="gc.collect alone",
    runs=1,
)
@contextlib.contextmanager
def memory() -> t.Iterator[Pair]:
    def mean(how: str) -> Measure:
        return lambda: sum(given_back(shape, how) for shape in memory_shapes.SHAPES) / len(memory_shapes.SHAPES)

    yield mean("ladder"), mean("gc")


@contextlib.contextmanager
def tree(count: int) -> t.Iterator[Path]:
    """As many small files, 83 in a directory, as a cache of sounds has."""
    root = Path(tempfile.mkdtemp(prefix="wops-scan-"))
    try:
        for number in range(-(-count // 83)):
            directory = root / f"d{number // 100}" / f"e{number}"
            directory.mkdir(parents=True)
            for index in range(min(83, count - number * 83)):
                os.close(os.open(directory / f"f{index}", os.O_CREAT | os.O_WRONLY, 0o600))
        yield root
    finally:
        shutil.rmtree(root)


def cpu_of(call: t.Callable[[], object]) -> float:
    """CPU seconds of this process and of those that it started, which a busy machine does not stretch as it does wall
    time.
    """

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    before = spent()
    call()
    return spent() - before


def wall_of(call: t.Callable[[], object]) -> float:
    before = time.monotonic()
    call()
    return time.monotonic() - before


def scan(root: Path) -> None:
    disk_cleanup.Cleanup([], []).clean(disk_cleanup.parse_source({"path": str(root), "age": "10d"}))


def peer_scan(words: t.Sequence[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def files() -> int:
    return int(os.environ.get("WHEELS_OPS_SCAN_FILES", "500000"))


@benchmark(
    "K2", what="disk_cleanup: scan of a large tree, CPU", unit="s", goal="ratio <= 1.7", peer="systemd-tmpfiles", runs=3
)
@contextlib.contextmanager
def scanning() -> t.Iterator[Pair]:
    program = tool("systemd-tmpfiles")
    with tree(files()) as root, tempfile.TemporaryDirectory() as place:
        config = Path(place, "wops.conf")
        config.write_text(f"d {root} 0755 - - 10d\n")
        yield lambda: cpu_of(lambda: scan(root)), lambda: cpu_of(lambda: peer_scan([program, "--clean", str(config)]))


@benchmark(
    "K2b",
    what="disk_cleanup: scan of a large tree, wall time",
    unit="s",
    goal="ratio <= 0.34",
    peer="tmpreaper",
    runs=3,
)
@contextlib.contextmanager
def scanning_tmpreaper() -> t.Iterator[Pair]:
    program = tool("tmpreaper")
    with tree(files()) as root:
        yield (
            lambda: wall_of(lambda: scan(root)),
            lambda: wall_of(lambda: peer_scan([program, "--test", "--runtime=0", "10d", str(root)])),
        )


def race_rounds(clean: t.Callable[[Path], object], rounds: int = 24) -> float:
    """In how many rounds a victim lost a file to a cleaner while somebody swapped a directory for a link to it."""
    program = (
        "import os, sys\n"
        "place, victim = sys.argv[1:]\n"
        "while True:\n"
        "    try:\n"
        "        os.rename(place, place + '.away'); os.symlink(victim, place)\n"
        "        os.unlink(place); os.rename(place + '.away', place)\n"
        "    except OSError: pass\n"
    )
    lost = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as base:
            victim, root = Path(base, "victim"), Path(base, "root")
            for directory, count in ((victim, 60), (root / "d0", 60), (root / "d1", 60)):
                directory.mkdir(parents=True)
                for number in range(count):
                    path = directory / f"f{number}"
                    path.write_bytes(b"x")
                    os.utime(path, (1, 1))
            attacker = subprocess.Popen([sys.executable, "-c", program, str(root / "d0"), str(victim)])
            try:
                for _attempt in range(3):
                    clean(root)
            finally:
                attacker.kill()
                attacker.wait()
            lost += len(os.listdir(victim)) < 60
    return float(lost)


def ours_cleans(root: Path) -> None:
    cleanup = disk_cleanup.Cleanup([], [])
    cleanup.clean(disk_cleanup.parse_source({"path": str(root), "age": "1d", "age_by": ["mtime"]}))


def walk_cleans(root: Path) -> None:
    """The cleaner that everyone writes."""
    for directory, _names, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if os.lstat(path).st_mtime < time.time() - 86400:
                    os.remove(path)


@benchmark(
    "K2c",
    what="disk_cleanup: rounds of 24 in which a flipping link cost a victim files",
    unit="rounds",
    goal="ours == 0",
    peer="os.walk",
    runs=1,
)
@contextlib.contextmanager
def races() -> t.Iterator[Pair]:
    yield lambda: race_rounds(ours_cleans), lambda: race_rounds(walk_cleans)


@benchmark(
    "K2d",
    what="disk_cleanup: files of 50 lost behind a bind mount",
    unit="files",
    goal="ours == 0",
    peer="find -xdev -delete",
    runs=1,
)
@contextlib.contextmanager
def bind_mounts() -> t.Iterator[Pair]:
    if os.geteuid() != 0:
        raise Unavailable("mounting needs root")
    unshare, find = tool("unshare"), tool("find")

    def lost(words: t.Sequence[str]) -> float:
        with tempfile.TemporaryDirectory() as base:
            victim, root = Path(base, "victim"), Path(base, "root")
            victim.mkdir()
            (root / "mounted").mkdir(parents=True)
            for number in range(50):
                (victim / f"f{number}").write_bytes(b"x")
                os.utime(victim / f"f{number}", (1, 1))
            script = f'mount --bind {victim} {root}/mounted && exec "$@"'
            command = [
                unshare,
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
                *[word.replace("ROOT", str(root)) for word in words],
            ]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")})
            return 50.0 - len(os.listdir(victim))

    call = (
        "import sys; from wheels_ops.remedies.disk import cleanup as d; d.run([{'path': sys.argv[1], 'age': '1d',"
        " 'age_by': ['mtime']}])"
    )
    yield (
        lambda: lost([sys.executable, "-c", call, "ROOT"]),
        lambda: lost([find, "ROOT", "-xdev", "-type", "f", "-mtime", "+1", "-delete"]),
    )


def lost_lines(how: str, rotate: t.Callable[[Path, int], object], rounds: int = 2) -> float:
    """Lines lost, doubled or torn over rotations of a 30 MB log under a writer of 20,000 lines a second."""
    with tempfile.TemporaryDirectory(prefix="wops-log-") as place:
        log = Path(place, "access.log")
        start = log_writer.fill(log, LOG_BYTES)
        with log_writer.writer(log, how, start=start) as (process, stop):
            for number in range(rounds):
                wait_until(lambda: log.exists() and log.stat().st_size > 1_000_000)
                rotate(log, process.pid)
                if number + 1 < rounds:
                    wait_until(lambda: log.exists() and log.stat().st_size > 6_000_000)
            written = stop()
        log_rotate.run([str(log)], log_rotate.Options())
        counts = log_writer.account(log_writer.read(Path(place), log.name), written)
    return float(counts["lost"] + counts["doubled"] + counts["torn"])


def ours_rotates(strategy: str) -> t.Callable[[Path, int], object]:
    def rotate(log: Path, pid: int) -> None:
        reopen = ("kill", "-HUP", str(pid)) if strategy == "logrotate" else ()
        log_rotate.run([str(log)], log_rotate.Options(max_size=500_000, strategy=strategy, keep=100, reopen=reopen))

    return rotate


def copytruncate(log: Path, _pid: int) -> None:
    program = tool("logrotate")
    policy = log.parent / ".policy"
    policy.write_text(
        f'"{log}" {{\n size 1\n rotate 99\n copytruncate\n nocompress\n dateext\n dateformat .%Y%m%d-%s\n}}\n'
    )
    policy.chmod(0o600)
    subprocess.run(
        [program, "--force", "--state", str(log.parent / ".state"), str(policy)], check=True, stderr=subprocess.DEVNULL
    )


def rotation(how: str, strategy: str) -> Pair:
    return lambda: lost_lines(how, ours_rotates(strategy)), lambda: lost_lines("append", copytruncate)


@benchmark(
    "K3",
    what="log_rotate: lines lost or doubled, in place",
    unit="lines",
    goal="ours == 0",
    peer="logrotate copytruncate",
    runs=3,
)
@contextlib.contextmanager
def rotation_in_place() -> t.Iterator[Pair]:
    tool("logrotate")
    yield rotation("append", "collapse")


@benchmark(
    "K3b", what="log_rotate: lines lost or doubled, writer without O_APPEND", unit="lines", goal="ours == 0", runs=3
)
@contextlib.contextmanager
def rotation_by_holes() -> t.Iterator[Pair]:
    yield rotation("plain", "punch")[0], None


@benchmark("K3c", what="log_rotate: lines lost or doubled, writer that reopens", unit="lines", goal="ours == 0", runs=3)
@contextlib.contextmanager
def rotation_by_reopening() -> t.Iterator[Pair]:
    tool("logrotate")
    yield rotation("reopen", "logrotate")[0], None


@benchmark(
    "K3d", what="log_rotate: longest time that a writer is held off, in place", unit="ms", goal="ours <= 100", runs=3
)
@contextlib.contextmanager
def stall() -> t.Iterator[Pair]:
    def measure() -> float:
        with tempfile.TemporaryDirectory(prefix="wops-log-") as place:
            log = Path(place, "access.log")
            lines = log_writer.fill(log, 60_000_000)
            # Another process: what we have open ourselves is no writer.
            with log_writer.writer(log, "append", rate=1000, start=lines):
                result = log_rotate.run([str(log)], log_rotate.Options(max_size=500_000))
            return float(result.actions[0]["stall_ms"])

    yield measure, None
