# SPDX-License-Identifier: GPL-3.0-or-later
"""Both programs as a person or cron starts them, against a real Redis under a real supervisord, real logs and a real
PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
import redis as redis_client

from tests.sandbox import binaries
from tests.sandbox.binaries import REPOSITORY
from tests.support.hook import Hook
from tests.support.servers import Postgres
from tests.support.supervised import Program, Supervisord, supervisord
from tests.support.waiting import free_port, wait_until
from wheels_ops.core.version import VERSION
from wheels_ops.remedies import cpu_relief
from wheels_ops.standalone import recovery
from wheels_ops.state import deployments
from wheels_ops.state import holder as holders

MONITOR = REPOSITORY / "production_health_monitor.py"
RECOVERY = REPOSITORY / "scripts/automated_recovery.py"
PASSWORD = "correct-horse-battery"
MEGABYTE = 1_000_000


class Place:
    """A host in small: its directories, its configuration, its Redis."""

    def __init__(self, root: Path, running: Supervisord, port: int) -> None:
        self.root, self.running, self.port = root, running, port
        self.log, self.tmp, self.state = (root / name for name in ("log", "tmp", "state"))
        for path in (self.log, self.tmp):
            path.mkdir()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        self.client = redis_client.Redis.from_url(self.url)
        self.client.flushall()
        (self.log / "app.log").write_bytes(b"a line\n" * 1000)
        self.settings: t.Dict[str, t.Any] = {
            "state_dir": str(self.state),
            "checks": {
                "subjects": ["disk", "redis", "services"],
                "redis_url": self.url,
                "filesystems": [],
                "disk_budgets": {f"{self.log}:{self.tmp}": 120 * MEGABYTE},
                "logs": [f"{self.log}/*.log"],
                "service_manager": "supervisor",
                "supervisor_socket": running.socket,
                "services": [{"name": "redis", "gate": {"type": "redis", "url": self.url}}],
            },
            "recovery": {
                "log_directories": [str(self.log)],
                "disk_sources": [{"path": str(self.tmp), "age": "24h", "age_by": ["mtime"]}],
                "confirm_after": 0.2,
                "cache_prefixes": ["user_profile:"],
                "min_healthy_time": 0.2,
                "healthy_deadline": 20,
                "token_file": str(root / "no-token"),
            },
        }
        self.config = root / "monitor.json"

    def run(
        self, program: Path, *words: str, python: t.Sequence[str] = (sys.executable,), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        self.config.write_text(json.dumps(self.settings))
        self.config.chmod(0o600)
        bare = {
            key: value
            for key, value in os.environ.items()
            if not key.endswith("_URL") and not key.startswith("WHEELS_OPS_")
        }
        named = {"WHEELS_OPS_CONFIG": str(self.config), **bare, **environment}
        done = subprocess.run(
            [*python, str(program), *words],
            cwd=self.root,
            env=named,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert PASSWORD not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def report(self, program: Path, *words: str) -> t.Tuple[int, t.Dict[str, t.Any]]:
        done = self.run(program, "--json", *words)
        return done.returncode, t.cast("t.Dict[str, t.Any]", json.loads(done.stdout))

    def break_disk_and_cache(self) -> None:
        with open(self.log / "big.log", "wb") as file:
            for _ in range(52):
                file.write(os.urandom(1000) * 1000)
        old = self.tmp / "upload.part"
        old.write_bytes(os.urandom(1000) * 40_000)
        os.utime(old, (time.time() - 7 * 86400,) * 2)
        (self.tmp / "new.part").write_text("in use")
        for number in range(20):
            self.client.set(f"user_profile:{number}", "x")
        self.client.set("sess:of-another-application", "untouched")
        self.client.rpush("celery", "a task")

    def fingerprint(self) -> t.Dict[str, str]:
        files = [path for path in self.root.rglob("*") if path.is_file() and path != self.config]
        found = {
            str(path): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}" for path in files
        }
        keys = sorted(self.client.keys("*"))
        return {
            **found,
            "keys": repr([(key, self.client.ttl(key)) for key in keys]),
            "pid": str(self.running.pid("redis")),
        }


@pytest.fixture(scope="module")
def running() -> t.Iterator[t.Tuple[Supervisord, int]]:
    programs, port = binaries.redis(), free_port()
    command = f"{programs.path('redis-server')} --port {port} --bind 127.0.0.1 --save '' --requirepass {PASSWORD}"
    with supervisord({"redis": Program(command, environment=programs.env)}) as server:
        wait_until(lambda: "RUNNING" in server.ctl("status", "redis"), what="Redis")
        yield server, port


@pytest.fixture
def place(running: t.Tuple[Supervisord, int], tmp_path: Path) -> t.Iterator[Place]:
    server, port = running
    made = Place(tmp_path, server, port)
    yield made
    if not server.pid("redis"):
        server.ctl("start", "redis")  # which waits until it is RUNNING


def test_a_healthy_host_is_0_and_recovery_has_nothing_to_do(place: Place) -> None:
    status, report = place.report(MONITOR, "--output", str(place.root / "health.json"))
    assert (status, report["status"], report["failing"], report["issues_found"]) == (0, "ok", [], [])
    assert report["detailed_results"]["redis"]["connected"] is True
    written = place.root / "health.json"
    assert json.loads(written.read_text()) == report
    assert written.stat().st_mode & 0o777 == 0o600
    text = place.run(MONITOR)
    assert text.returncode == 0 and text.stdout.startswith("OK: 3 of 3 checks are healthy")
    assert len((place.state / "monitor.jsonl").read_text().splitlines()) == 2
    assert sorted(path.name for path in place.root.glob("*.json")) == ["health.json", "monitor.json"], "no file a run"
    done = place.run(RECOVERY)
    assert done.returncode == 0 and "nothing was done" in done.stdout
    assert not (place.state / "history.jsonl").exists()


def test_what_is_broken_is_named_foretold_and_mended(place: Place) -> None:
    place.break_disk_and_cache()
    status, report = place.report(MONITOR)
    assert (status, report["failing"]) == (1, ["disk", "redis"])
    assert (
        "big.log" in report["detailed_results"]["disk"]["issue"]
        and "20 cache keys" in report["detailed_results"]["redis"]["issue"]
    )
    before = place.fingerprint()
    status, foretold = place.report(RECOVERY, "--dry-run")
    assert status == 1 and foretold["dry_run"] and foretold["recovery_actions_taken"] == 0
    assert place.fingerprint() == before, "a dry run changes nothing"
    status, done = place.report(RECOVERY)
    assert (status, done["after"]["failing"], done["failed_recoveries"]) == (0, [], 0)

    def shape(made: t.Mapping[str, t.Any]) -> t.List[t.Tuple[str, bool, t.Any, t.Any]]:
        kept = ("files", "bytes_freed", "rotated")
        results = made["recovery_results"]
        return [
            (
                each["action"],
                each["changed"],
                *({key: each["details"].get(key) for key in kept},),
                each["details"]["before"].keys(),
            )
            for each in results
        ]

    assert [each[:3] for each in shape(foretold)] == [each[:3] for each in shape(done)]
    assert [each["outcome"] for each in foretold["recovery_results"] if each["changed"]] == ["would"] * foretold[
        "recovery_actions_planned"
    ]
    # The witnesses: the files and Redis itself.
    assert not (place.tmp / "upload.part").exists() and (place.tmp / "new.part").exists()
    assert (place.log / "big.log").stat().st_size < 50 * MEGABYTE
    assert place.client.keys("user_profile:*") == []
    assert place.client.get("sess:of-another-application") == b"untouched" and place.client.llen("celery") == 1
    freed = next(
        each["details"]["bytes_freed"] for each in done["recovery_results"] if each["action"] == "disk_cleanup"
    )
    assert freed == 40 * MEGABYTE or abs(freed - 40 * MEGABYTE) < 8192, "whole blocks"
    assert place.run(MONITOR).returncode == 0
    record = json.loads((place.state / "history.jsonl").read_text())
    assert (record["action"], record["before"], record["after"], record["outcome"]) == (
        "recover",
        ["disk", "redis"],
        [],
        "healthy",
    )
    assert not (place.state / "deploy.lock").exists() and list((place.state / "deployments").iterdir()) == []
    assert "log_rotation" in place.run(RECOVERY, "--history", "9").stdout


def test_monitor_writes_metrics_and_a_page_and_speaks_as_a_plugin(place: Place) -> None:
    prometheus, page = place.root / "wheels_ops.prom", place.root / "health.html"
    place.log.joinpath("app.log").write_text("a line\n")
    done = place.run(MONITOR, "--prometheus", str(prometheus), "--html", str(page))
    first, _bar, data = done.stdout.splitlines()[0].partition(" | ")
    assert (done.returncode, first.partition(":")[0]) == (0, "OK")
    # https://nagios-plugins.org/doc/guidelines.html, section 2.6
    assert {word.partition("=")[0] for word in data.split()} == {"disk", "redis", "services"}
    assert all(re.fullmatch(r"\w+=[0-9.e+-]+(s|ms|%)?(;[0-9.e+-]*){0,2}", word) for word in data.split()), data
    assert "|" not in "".join(done.stdout.splitlines()[1:])
    assert prometheus.stat().st_mode & 0o777 == 0o644 and page.stat().st_mode & 0o777 == 0o600
    host = socket.gethostname()
    assert f'wheels_ops_severity{{host="{host}"}} 0' in prometheus.read_text().splitlines()
    assert f"<title>wheels.ops: {host}</title>" in page.read_text()
    quiet = place.run(MONITOR, "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    place.break_disk_and_cache()
    loud = place.run(MONITOR, "--quiet", "--prometheus", str(prometheus))
    assert (loud.returncode, loud.stdout.partition(":")[0]) == (1, "WARNING")
    assert f'wheels_ops_severity{{host="{host}"}} 1' in prometheus.read_text().splitlines()
    nowhere = place.run(MONITOR, "--json", "--prometheus", str(place.root / "none/x.prom"))
    assert json.loads(nowhere.stdout)["status"] == "warning", "what was measured is not lost"


@pytest.mark.parametrize("program", [MONITOR, RECOVERY])
def test_programs_name_their_version(place: Place, program: Path) -> None:
    assert place.run(program, "--version").stdout == f"{program.name} {VERSION} (wheels.ops)\n"


def test_people_are_told_when_a_problem_begins_and_ends_and_not_by_each_run(place: Place) -> None:
    with Hook() as hook:
        place.settings["alerts"] = [{"type": "webhook", "url": hook.url}]
        place.break_disk_and_cache()
        assert place.run(MONITOR).returncode == 1
        assert hook.bodies == [], "one measurement is no problem yet"
        for _number in range(3):
            assert place.run(MONITOR).returncode == 1
        assert [(body["event"], body["subject"]) for body in hook.bodies] == [("begun", "disk"), ("begun", "redis")]
        assert place.run(RECOVERY).returncode == 0
        ended = hook.bodies[2:]
        assert [(body["event"], body["subject"]) for body in ended] == [("ended", "disk"), ("ended", "redis")]
        assert ended[1]["repaired_by"] == ["cache_clear"]
        place.run(MONITOR)
        assert len(hook.bodies) == 4


def test_incurable_fault_is_one_record_however_often_the_recovery_runs(place: Place) -> None:
    place.break_disk_and_cache()
    place.settings["recovery"].update(cache_prefixes=["no_such_prefix:"], cooldown=0, confirm_after=0.05)
    place.settings["checks"]["subjects"] = ["redis"]
    with Hook() as hook:
        place.settings["alerts"] = [{"type": "webhook", "url": hook.url}]
        for _number in range(4):
            assert place.run(RECOVERY).returncode in (1, 2)
        assert [body["event"] for body in hook.bodies] == ["begun", "escalated"]
    records = [json.loads(line) for line in (place.state / "history.jsonl").read_text().splitlines()]
    assert [entry["change"] for record in records for entry in record["problems"]] == ["begun", "escalated"]
    assert len(records) == 1
    (problem,) = json.loads((place.state / "problems.json").read_text())["problems"]
    assert (problem["state"], problem["runs"]) == ("escalated", 4)


def test_what_fails_again_waits_for_the_cool_down_unless_it_is_told_not_to(place: Place) -> None:
    place.client.set("user_profile:1", "x")
    assert place.report(RECOVERY)[1]["successful_recoveries"] == 1
    place.client.set("user_profile:2", "x")
    status, again = place.report(RECOVERY)
    refusal = next(each for each in again["recovery_results"] if each["action"] == "cache_clear")
    assert status == 1 and refusal["outcome"] == "refused" and "cool-down of 600 s" in refusal["message"]
    assert place.client.exists("user_profile:2")
    assert place.report(RECOVERY, "--now")[0] == 0
    assert not place.client.exists("user_profile:2")


def test_a_service_that_is_down_is_named_and_started_within_the_budget(place: Place) -> None:
    place.running.ctl("stop", "redis")
    done = place.run(MONITOR)
    assert done.returncode == 2 and done.stdout.startswith("CRITICAL: ") and "redis, services" in done.stdout
    place.settings["recovery"]["max_restarts"] = 1
    foretold = place.run(RECOVERY, "--dry-run")
    assert "redis (start)" in foretold.stdout and not place.running.pid("redis")
    status, made = place.report(RECOVERY)
    assert (status, made["after"]["failing"]) == (0, [])
    assert place.running.pid("redis")
    place.running.ctl("stop", "redis")
    status, made = place.report(RECOVERY)
    result = next(each for each in made["recovery_results"] if each["action"] == "service_restart")
    assert status == 2 and result["outcome"] == "refused" and "budget of 1 restarts" in result["message"]
    assert "Find out why it needs restarts" in result["advice"]
    assert not place.running.pid("redis")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="restoring a priority needs root (CAP_SYS_NICE)")
def test_a_priority_that_was_lowered_is_restored_by_the_next_run_when_its_time_is_over(place: Place) -> None:
    word = f"hog-{place.port}-{os.getpid()}"
    with subprocess.Popen([sys.executable, str(REPOSITORY / "tests/support/hog.py"), word]) as hog:

        def policy() -> str:
            shown = subprocess.run(["ps", "-o", "cls=", "-p", str(hog.pid)], capture_output=True, text=True, check=True)
            return shown.stdout.strip()

        try:
            options = cpu_relief.Options(
                demote=(word,), min_percent=1, sample_s=1, revert_after=0.1, state_dir=str(place.state)
            )
            assert cpu_relief.run(options).changed and policy() == "IDL"
            assert "cpu_relief_end" in place.run(RECOVERY, "--dry-run").stdout and policy() == "IDL"
            status, made = place.report(RECOVERY)
            assert (status, policy()) == (0, "TS")
            assert [(each["action"], each["outcome"]) for each in made["recovery_results"]] == [
                ("cpu_relief_end", "done")
            ]
            assert "nothing was done" in place.run(RECOVERY).stdout
        finally:
            hog.kill()


def test_two_at_once_do_not_get_in_each_others_way(place: Place) -> None:
    place.settings["deadline"] = 4
    place.client.set("user_profile:1", "x")
    place.state.mkdir()
    for name, program in (("monitor.lock", MONITOR), ("recovery.lock", RECOVERY)):
        with open(place.state / name, "w") as held:
            held.write("4711")
            held.flush()
            fcntl.flock(held, fcntl.LOCK_EX)
            done = place.run(program)
            assert done.returncode == 3 and "4711" in done.stdout and done.stdout.count("\n") == 1, done.stdout
    assert place.client.exists("user_profile:1")
    # A playbook that deploys: its lock is the same.
    deployments.begin(str(place.state), "20250730T0211", holder=holders.name_of(os.getpid()))
    for words in ((), ("--dry-run",)):
        done = place.run(RECOVERY, *words)
        assert done.returncode == 3 and "Another deployment holds this host" in done.stdout
    assert place.client.exists("user_profile:1")
    # It died: what it left half done is for a person.
    (place.state / "deploy.lock").unlink()
    done = place.run(RECOVERY)
    assert done.returncode == 3 and "20250730T0211 was interrupted" in done.stdout
    assert place.client.exists("user_profile:1")


def test_the_lock_of_a_living_run_is_taken_only_by_its_id(place: Place) -> None:
    place.client.set("user_profile:1", "x")
    name = holders.name_of(os.getpid())
    deployments.hold(str(place.state), kind="maintenance", holder=name)
    for words in ((), ("--lock-force", "true")):
        done = place.run(RECOVERY, *words)
        assert done.returncode == 3 and f"Another run (maintenance) holds this host: {name}" in done.stdout
        assert f"--lock-force {name}" in done.stdout and place.client.exists("user_profile:1")
    status, made = place.report(RECOVERY, "--lock-force", name)
    assert status == 0 and f"The lock was taken from {name}, as was asked for." in made["notes"]
    assert not place.client.exists("user_profile:1") and not (place.state / "deploy.lock").exists()


def test_state_that_is_damaged_is_passed_over_or_named_with_status_3(place: Place) -> None:
    place.client.set("user_profile:1", "x")
    place.state.mkdir()
    for name in ("history.jsonl", "monitor.jsonl", "restarts.jsonl", "memory.json"):
        (place.state / name).write_bytes(
            b'{"time": 1, "results": 5}\n[1]\n\xff\n{"time": "2025-07-30T02:11:00Z", "results": 5, "checks": 5}\n'
        )
    (place.state / "deployments/20250730T0211").mkdir(parents=True)
    (place.state / "deployments/20250730T0211/manifest.json").write_text("[]")
    lock = place.state / "deploy.lock"
    lock.write_text('"held"')
    assert place.run(MONITOR).returncode == 1
    assert place.run(RECOVERY, "--history", "5").returncode == 0
    done = place.run(RECOVERY)
    assert (
        done.returncode == 3 and f"{lock} is damaged: it holds a text" in done.stdout and done.stdout.count("\n") == 1
    )
    lock.unlink()
    status, made = place.report(RECOVERY)
    assert status == 0 and "20250730T0211/manifest.json is damaged" in made["notes"][-1]
    place.state.chmod(0o777)
    for program in (MONITOR, RECOVERY):
        done = place.run(program)
        assert done.returncode == 3 and f"The state directory {place.state} is refused" in done.stdout
    place.state.chmod(0o700)


def test_a_recovery_that_was_killed_is_gone_on_with(place: Place) -> None:
    place.client.set("user_profile:1", "x")
    with subprocess.Popen(["sleep", "60"]) as ended:
        holder = holders.name_of(ended.pid)
        ended.kill()
    deployments.begin(str(place.state), f"{recovery.PREFIX}20250730T0211", holder=holder)
    assert place.report(RECOVERY)[0] == 0
    assert not (place.state / "deploy.lock").exists() and list((place.state / "deployments").iterdir()) == []


def test_requests_of_the_backend_are_noted_and_taken_away(place: Place) -> None:
    requests = place.state / "requests"
    requests.mkdir(parents=True)
    (requests / "one.json").write_text(json.dumps({"kind": "recover", "reason": "a person asked", "time": "now"}))
    place.client.set("user_profile:1", "x")
    assert place.run(RECOVERY, "--dry-run").returncode == 1 and (requests / "one.json").exists()
    assert place.run(RECOVERY).returncode == 0
    record = json.loads((place.state / "history.jsonl").read_text())
    assert (record["trigger"], record["requests"][0]["reason"]) == ("api", "a person asked")
    assert not (requests / "one.json").exists()


def test_what_has_no_means_is_refused_with_the_reason(place: Place) -> None:
    place.break_disk_and_cache()
    for name in ("log_directories", "disk_sources", "cache_prefixes"):
        del place.settings["recovery"][name]
    before = place.client.dbsize()
    status, made = place.report(RECOVERY)
    assert status == 1 and made["recovery_actions_taken"] == 0 and made["refused_recoveries"] == 3
    for words in ("recovery.log_directories", "recovery.disk_sources", "There is no ops token"):
        assert any(words in each["refused"] for each in made["recovery_results"]), words
    assert place.client.dbsize() == before and (place.tmp / "upload.part").exists()


def test_the_database_is_repaired_only_when_that_is_asked_for(place: Place, postgres: Postgres) -> None:
    dsn = postgres.database()
    place.settings["checks"].update(subjects=["database"], database_dsn=dsn, database_tables={"wanted": ["id"]})
    script = place.root / "fixes.sql"
    script.write_text("create table if not exists wanted (id int);\n")
    place.settings["recovery"]["database_scripts"] = [str(script)]
    status, made = place.report(RECOVERY)
    assert status == 2 and "--repair-database" in made["recovery_results"][0]["refused"]
    foretold = place.run(RECOVERY, "--repair-database", "--dry-run")
    assert foretold.returncode == 2 and "Would be applied: fixes.sql" in foretold.stdout
    assert place.run(MONITOR).returncode == 2, "the dry run has not made it"
    done = place.run(RECOVERY, "--repair-database")
    assert done.returncode == 0 and "Everything is healthy now." in done.stdout, done.stdout
    assert place.run(MONITOR).returncode == 0


def test_secrets_are_not_shown_where_they_are_wrong_either(place: Place) -> None:
    place.settings["checks"]["redis_url"] = place.url.replace(PASSWORD, f"{PASSWORD}-no-more")
    status, report = place.report(MONITOR, "--only", "redis")
    assert (status, report["status"]) == (2, "critical"), "a password that is refused is an outage for whoever uses it"
    assert place.run(RECOVERY, "--only", "cache_clear").returncode == 2
    assert PASSWORD not in "".join(
        path.read_text(errors="replace") for path in place.state.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("program", [MONITOR, RECOVERY])
def test_a_bad_call_or_configuration_is_one_line_and_3(place: Place, program: Path) -> None:
    place.settings["checks"]["redis_ur"] = place.url
    done = place.run(program)
    assert (
        done.returncode == 3
        and done.stdout.startswith("UNKNOWN: ")
        and "redis_ur" in done.stdout
        and done.stdout.count("\n") == 1
    )
    assert json.loads(place.run(program, "--json").stdout)["status"] == "unknown"
    del place.settings["checks"]["redis_ur"]
    done = place.run(program, "--only", "nonsense")
    assert done.returncode == 3 and "nonsense" in done.stdout
    assert place.run(program, "--help").stdout.count("Exit status: 0") == 1


def test_a_run_that_is_told_to_end_begins_no_remedy_and_gives_the_lock_back(place: Place) -> None:
    place.client.set("user_profile:1", "x")
    place.settings["recovery"]["confirm_after"] = 3
    place.config.write_text(json.dumps(place.settings))
    place.config.chmod(0o600)
    words = [sys.executable, str(RECOVERY), "--config", str(place.config), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        lock = place.state / "recovery.lock"
        wait_until(
            lambda: lock.exists() and lock.read_text() == str(process.pid), timeout=60, what="the start of the run"
        )
        process.terminate()
        output, _ignored = process.communicate(timeout=60)
    made = json.loads(output)
    assert process.returncode == 1 and made["recovery_actions_taken"] == 0
    assert "told to end" in made["recovery_results"][0]["refused"]
    assert place.client.exists("user_profile:1") and not (place.state / "deploy.lock").exists()


def test_a_report_that_cannot_be_written_is_shown_all_the_same(place: Place) -> None:
    done = place.run(MONITOR, "--output", str(place.tmp))
    assert done.returncode == 3 and done.stdout.startswith("OK: 3 of 3") and "is a directory" in done.stdout


def test_a_probe_that_hangs_does_not_hold_the_monitor_over_its_deadline(place: Place) -> None:
    """Redis stopped in the middle of its work: it accepts and says nothing.

    The report comes, and the process ends although its thread hangs.
    """
    pid = place.running.pid("redis")
    place.settings["deadline"] = 4
    os.kill(pid, 19)
    try:
        status, report = place.report(MONITOR, "--only", "redis,disk")
    finally:
        os.kill(pid, 18)
    assert (
        status == 3
        and report["detailed_results"]["redis"]["status"] == "unknown"
        and report["detailed_results"]["disk"]["healthy"]
    )
    assert report["duration_seconds"] < 4


def test_it_runs_under_a_python_that_has_nothing_and_says_what_is_missing(place: Place) -> None:
    """Installed as the role does, started with a Python without any package, as the system's is."""
    library = place.root / "opt/lib/wheels_ops"
    shutil.copytree(REPOSITORY / "src/wheels_ops", library, ignore=shutil.ignore_patterns("__pycache__"))
    program = place.root / "opt/production_health_monitor.py"
    shutil.copy(MONITOR, program)
    nothing = (sys.executable, "-S")
    done = place.run(program, python=nothing, WHEELS_OPS_INTERPRETER="none")
    assert done.returncode == 3 and done.stdout.count("\n") == 1
    for words in ("pglast", "psycopg2-binary", "playbook prepare", "pip install"):
        assert words in done.stdout
    (library.parent / "interpreter").write_text(f"{sys.executable}\n")
    (library.parent / "config").write_text(f"{place.config}\n")
    done = place.run(program, python=nothing, WHEELS_OPS_CONFIG="")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(library)
    done = place.run(program, python=nothing, WHEELS_OPS_INTERPRETER="none")
    assert done.returncode == 3 and "finds no library" in done.stdout


def test_the_programs_can_be_imported_as_their_first_versions_could(place: Place) -> None:
    place.run(MONITOR)
    text = (
        "import asyncio, json, production_health_monitor as monitor, automated_recovery as recovery\nreport ="
        " asyncio.run(monitor.main())\none = recovery.AutomatedRecovery(dry_run=True)\nmade ="
        " asyncio.run(one.check_and_recover())\nprint(json.dumps([report['summary']['overall_status'],"
        " sorted(made['system_health_summary']), one.get_recovery_history(3)]))\nassert"
        " recovery.RecoveryAction('disk_cleanup') in one.recovery_actions\n"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.endswith("_URL")},
        "WHEELS_OPS_CONFIG": str(place.config),
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'scripts'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=place.root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["healthy", ["database", "disk", "logs", "memory", "services"], []]
