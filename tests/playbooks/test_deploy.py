# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: a broken backend becomes healthy, on real parts. The tests of this file build on each other, in their order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
import redis as redis_client
import requests

from tests.backend.materialise import materialise
from tests.playbooks.conftest import Stage
from tests.sandbox import lifecycle
from tests.sandbox.binaries import REPOSITORY
from tests.support.backend_env import make_jwt
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
EIGHT = ("memory", "tts", "database", "rls", "websocket", "cors", "cpu", "disk", "redis")
TASKS = 150
#: For runs of which the health is not what is tested: a look at everything takes ten seconds, twice in a deployment.
LOOK = ("-e", '{"monitoring_subjects": ["http"]}')
CATALOG = {
    "policies": (
        "select polrelid::regclass, polname, polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck,"
        " polrelid) from pg_policy order by 1, 2"
    ),
    "tables": (
        "select table_schema, table_name, column_name, data_type from information_schema.columns where table_schema not"
        " like 'pg_%' order by 1, 2, 3"
    ),
    "functions": "select proname, prosrc from pg_proc order by 1, 2",
}


def fingerprint(stage: Stage) -> t.Dict[str, str]:
    """Everything that a deployment may change: files with their modes and times, the catalog, the processes."""
    found = {}
    roots = (stage.sandbox.backend, stage.sandbox.etc, stage.sandbox.state, stage.sandbox.tmp)
    for root in roots:
        for path in sorted(root.rglob("*")):
            if (
                path.is_file()
                and "__pycache__" not in path.parts
                and path.suffix not in (".sqlite", ".sqlite-wal", ".sqlite-shm")
            ):
                status = path.stat()
                found[str(path)] = (
                    f"{hashlib.sha256(path.read_bytes()).hexdigest()} {status.st_mode:o} {status.st_mtime_ns}"
                )
    for kind, query in CATALOG.items():
        found[kind] = hashlib.sha256(repr(stage.sql(query)).encode()).hexdigest()
    for info in stage.rpc().getAllProcessInfo():
        found[f"process {info['name']}"] = str(info["pid"])
    return found


def tree(root: Path) -> t.Dict[str, str]:
    """Contents and modes of a directory."""
    return {
        str(path.relative_to(root)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mode:o}"
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def report(stage: Stage, name: str) -> t.Any:
    return json.loads((stage.sandbox.reports / name).read_text())


def statuses(health: t.Mapping[str, t.Any]) -> t.Dict[str, str]:
    return {check["name"]: check["status"] for check in health["checks"]}


def token(stage: Stage, user: str) -> str:
    return make_jwt(user, key=stage.facts.secret_key)


def test_verify_is_red_and_names_all_eight(stage: Stage) -> None:
    run = stage.playbook("verify")
    assert run.status != 0
    for subject in EIGHT:
        assert f"{subject}: " in run.text, subject


def test_check_mode_changes_nothing_and_predicts(stage: Stage) -> None:
    before = fingerprint(stage)
    run = stage.playbook("deploy", "--check", "--diff", *LOOK)
    assert run.status == 0, run.output[-3000:]
    assert run.changed > 0
    assert fingerprint(stage) == before
    for words in ("app/core/cors_config.py (after)", "BEGIN wheels.ops", "would be patched"):
        assert words in run.text, words
    stage.predicted = run.changed_tasks


@contextlib.contextmanager
def read_only(directory: Path) -> t.Iterator[None]:
    """For its owner by its mode; for root, whom no mode stops, by a mount."""
    if os.geteuid():
        directory.chmod(0o555)
        try:
            yield
        finally:
            directory.chmod(0o755)
        return
    if subprocess.run(
        ["mount", "--bind", "-o", "ro", str(directory), str(directory)], capture_output=True, check=False
    ).returncode:
        pytest.skip("root may not mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('{"wheels_ops_backend_dir": "/nowhere"}', "There is no app/main.py in /nowhere"),
        (
            '{"prerequisites_free_bytes": 900000000000000}',
            "are needed for the new files and the originals. Nothing was changed.",
        ),
        ('{"wheels_ops_hosts": "nobody"}', "No host matches nobody."),
        ('{"wheels_ops_state_dir": "/proc/nowhere"}', "The state directory /proc/nowhere cannot be written"),
        ('{"wheels_ops_environment_extra": {"BAD": "it\'s"}}', "a value with a quote or a line break"),
        (
            '{"services_of_the_report": [{"name": "no-such-service"}]}',
            "The service manager does not know no-such-service",
        ),
        ('{"wheels_ops_database_dsn": "host=127.0.0.1 port=1 dbname=x user=x"}', "Nothing listens there"),
        ('{"database_scripts": [{"path": "/nowhere/missing.sql"}]}', "/nowhere/missing.sql: No such file or directory"),
        ("read-only directory", "app/core cannot be written, so app/core/cors_config.py cannot be installed"),
    ],
)
def test_bad_input_is_found_before_anything_is_changed(stage: Stage, extra: str, message: str) -> None:
    """On the broken backend, where there is much to change: no file, no log, no table, no process is touched."""
    before = fingerprint(stage)
    with contextlib.ExitStack() as stack:
        if not extra.startswith("{"):
            stack.enter_context(read_only(stage.sandbox.backend / "app/core"))
            extra = "{}"
        run = stage.playbook("deploy", "-e", extra, *LOOK)
    assert run.status != 0
    assert message in run.text, run.output[-3000:]
    assert run.changed == 0
    assert fingerprint(stage) == before


def test_deploy_makes_it_healthy_and_loses_no_task(stage: Stage) -> None:
    program = (
        "from app.workers.tasks.notification_tasks import send_notification\n"
        f"for number in range({TASKS}): send_notification.apply_async((number,), countdown=number % 7)\n"
    )
    environment = {
        **os.environ,
        "REDIS_URL": stage.facts.redis_url,
        "DATABASE_URL": stage.facts.database_url,
        "SECRET_KEY": stage.facts.secret_key,
        "LOG_DIR": str(stage.sandbox.log),
        "PYTHONPATH": str(stage.sandbox.backend),
    }
    subprocess.run(
        [str(REPOSITORY / ".venv-backend/bin/python"), "-c", program],
        check=True,
        cwd=stage.sandbox.backend,
        env=environment,
    )
    run = stage.playbook("deploy")
    assert run.status == 0, run.output[-5000:]
    # The repaired backend's own beat may have cleared the cache before the deployment comes to it: then there is nothing left to ask for.
    cache = {
        "wheels.ops.host_cleanup : Show how many keys a real run would change",
        "wheels.ops.host_cleanup : Set an expiry on cache keys without one",
    }
    assert [task for task in run.changed_tasks if task not in cache] == [
        task for task in stage.predicted if task not in cache
    ]
    assert cache & set(stage.predicted)
    before, after = statuses(report(stage, "before.json")), statuses(report(stage, "after.json"))
    assert {subject: before[subject] for subject in EIGHT if before[subject] in ("ok", "unknown", "skipped")} == {}
    assert set(after.values()) == {"ok"}
    assert "<table>" in (stage.sandbox.reports / "report.html").read_text()
    given = stage.sandbox.env_file.read_text().splitlines()
    for line in (
        "MEMORY_LIMIT_MB='430'",
        f"LOG_DIRS='{stage.sandbox.log}'",
        f"DISK_CLEANUP_DIRS='{stage.sandbox.tmp}'",
    ):
        assert line in given, "the backend watches what the health check grades"
    assert not any(line.startswith("DISK_PATHS=") for line in given), "the sandbox grades no file system"
    connection = redis_client.Redis.from_url(stage.facts.redis_url, decode_responses=True)

    def sent() -> t.List[int]:
        return sorted(int(number) for number in set(connection.lrange("pam:sent:notifications", 0, -1)))

    wait_until(lambda: len(sent()) == TASKS, timeout=60, what="every task to run")
    assert sent() == list(range(TASKS))
    assert connection.get("sess:of-another-application") == "untouched"
    assert connection.ttl("sess:of-another-application") == -1


def test_what_a_user_sees(stage: Stage) -> None:
    """Everybody sees exactly the trips that he takes part in or made; a stranger none."""
    for (user,) in stage.sql("select id::text from auth.users"):
        made = f"select id::text from group_trips where created_by = '{user}'"
        mine = {
            row[0]
            for row in stage.sql(
                f"{made} union select trip_id::text from group_trip_participants where user_id = '{user}'"
            )
        }
        answer = requests.get(
            f"{stage.facts.base_url}/api/v1/trips",
            headers={"Authorization": f"Bearer {token(stage, user)}"},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        rows = answer.json()
        assert {row["id"] for row in (rows["trips"] if isinstance(rows, dict) else rows)} == mine
    stranger = requests.get(
        f"{stage.facts.base_url}/api/v1/trips",
        headers={"Authorization": f"Bearer {token(stage, '00000000-0000-4000-8000-00000000dead')}"},
        timeout=10,
    )
    rows = stranger.json()
    assert (rows["trips"] if isinstance(rows, dict) else rows) == []
    for origin, allowed in (("https://www.wheelsandwins.com", True), ("https://evil.example", False)):
        preflight = requests.options(
            f"{stage.facts.base_url}/api/v1/pam/chat",
            timeout=10,
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "apikey, x-client-info",
            },
        )
        assert (preflight.headers.get("Access-Control-Allow-Origin") == origin) is allowed
        assert (preflight.status_code == 200) is allowed


@pytest.mark.parametrize("playbook", ["rollback", "recover", "maintenance", "monitor", "prepare", "deploy"])
def test_whoever_changes_this_host_keeps_every_other_run_out_by_name(stage: Stage, playbook: str) -> None:
    """The last one leaves the lock of a run that is dead then."""
    lock = stage.sandbox.state / "deploy.lock"
    with subprocess.Popen(["sleep", "600"]) as other:
        start = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        name = f"{os.uname().nodename}:{other.pid}:{start}"
        # Far older than the half hour after which a lock of which nobody knows the holder expires.
        lock.write_text(json.dumps({"holder": name, "since": time.time() - 90_000, "at": "yesterday", "host": "here"}))
        before = fingerprint(stage)
        run = stage.playbook(playbook, *LOOK)
        other.kill()
    assert run.status != 0
    assert f"Another deployment holds this host: {name}, since yesterday. Its process is alive." in run.text, (
        run.output[-3000:]
    )
    assert run.changed == 0
    assert fingerprint(stage) == before
    if playbook != "deploy":
        lock.unlink()


def test_a_second_deploy_changes_nothing(stage: Stage) -> None:
    """And takes over the lock of the run before it, whose holder is dead now."""
    before = fingerprint(stage)
    run = stage.playbook("deploy")
    assert run.status == 0, run.output[-3000:]
    assert run.changed == 0
    assert not (stage.sandbox.state / "deploy.lock").exists()
    kept = {
        name: value
        for name, value in before.items()
        if "restarts.jsonl" not in name and not name.endswith("/deploy.lock")
    }
    assert {name: value for name, value in fingerprint(stage).items() if "restarts.jsonl" not in name} == kept


def test_one_late_answer_takes_nothing_back(stage: Stage) -> None:
    """The worker stands still while the health is measured after the deployment, and goes on when it is measured once more."""
    worker = t.cast("t.Dict[str, t.Any]", stage.rpc().getProcessInfo("celery-worker"))["pid"]
    before = tree(stage.sandbox.backend)
    look = ("-e", '{"monitoring_subjects": ["http", "services"]}')
    process = subprocess.Popen(
        stage.command("deploy", *look),
        cwd=REPOSITORY,
        env=stage.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("TASK [Run health checks after the change]"):
                os.kill(worker, signal.SIGSTOP)
            elif line.startswith("TASK [Repeat health checks that got worse]"):
                os.kill(worker, signal.SIGCONT)
        assert process.wait() == 0, "".join(lines)[-4000:]
    finally:
        os.kill(worker, signal.SIGCONT)
        process.stdout.close()
    once_more = lines.index(
        next(line for line in lines if line.startswith("TASK [Repeat health checks that got worse]"))
    )
    assert lines[once_more + 1].startswith("included: "), lines[once_more : once_more + 3]
    assert tree(stage.sandbox.backend) == before


def test_verify_names_whatever_is_broken_again(stage: Stage, tmp_path: Path) -> None:
    stage.sql(
        "create policy broken on group_trip_participants for select to authenticated using "
        "(exists (select 1 from group_trip_participants other where other.trip_id = group_trip_participants.trip_id))"
    )
    stage.rpc().stopProcess("celery-beat", True)
    patched = stage.sandbox.backend / "app/services/cache_service.py"
    aside = Path(shutil.move(patched, tmp_path))
    redis_client.Redis.from_url(stage.facts.redis_url).set("user_profile:again", "1")
    run = stage.playbook("verify")
    shutil.move(aside, patched)
    assert run.status != 0
    for words in (
        "group_trip_participants",
        "celery-beat",
        "1 cache keys never expire",
        f"files: {patched}: not as the deployment left them",
    ):
        assert words in run.text, words


def test_recover_repairs_it(stage: Stage) -> None:
    run = stage.playbook("recover")
    assert run.status == 0, run.output[-4000:]
    assert stage.playbook("verify").status == 0
    history = [json.loads(line) for line in (stage.sandbox.state / "history.jsonl").read_text().splitlines()]
    assert history[-1]["outcome"] == "healthy"
    assert {"rls", "services"} <= set(history[-1]["before"])


def test_recover_takes_what_the_backend_asked_for(stage: Stage) -> None:
    """Asked for over the API, done by the host, seen over the API; a file that is no request is not in the way."""
    key = {"X-Ops-Token": (stage.sandbox.etc / "ops-token").read_text().strip()}
    asked = requests.post(f"{stage.facts.base_url}/api/v1/system/recovery/trigger", headers=key, timeout=10).json()[
        "request_id"
    ]
    pending = stage.sandbox.state / "requests"
    (pending / "nonsense.json").write_text("{")
    run = stage.playbook("recover", "--check", *LOOK)
    assert run.status == 0, run.output[-3000:]
    assert {path.stem for path in pending.glob("*.json")} == {asked, "nonsense"}
    run = stage.playbook("recover", *LOOK)
    assert run.status == 0, run.output[-3000:]
    assert list(pending.glob("*.json")) == []
    newest = requests.get(
        f"{stage.facts.base_url}/api/v1/system/recovery/history?limit=1", headers=key, timeout=10
    ).json()["history"][0]
    assert (newest["action"], newest["trigger"], newest["outcome"]) == ("recover", "api", "healthy")
    assert [entry["id"] for entry in newest["requests"]] == [asked]


def test_maintenance_tidies_once_and_reports_what_was_measured(stage: Stage) -> None:
    """Weekly is foretold, done, and then has nothing left to do; the reports hold what happened in this sandbox and make up nothing."""
    log, old = stage.sandbox.log / "access.log", stage.sandbox.tmp / "old.part"
    log.write_bytes(b"a line\n" * 9_000_000)
    old.write_bytes(b"x" * 100_000)
    os.utime(old, (time.time() - 90_000,) * 2)
    cache = redis_client.Redis.from_url(stage.facts.redis_url)
    cache.set("response:asked-for", "1", ex=600)
    misspelt = stage.playbook("maintenance", "--tags", "weekyl")
    assert misspelt.status != 0
    assert "Nothing is tagged weekyl. There are: weekly, monthly, quarterly." in misspelt.text
    foretold = stage.playbook("maintenance", "--check", "--diff", "--tags", "weekly")
    assert foretold.status == 0, foretold.output[-3000:]
    assert str(old) in foretold.text
    assert "performance report" not in foretold.text
    assert (log.stat().st_size, old.exists()) == (63_000_000, True)
    run = stage.playbook("maintenance")
    assert run.status == 0, run.output[-3000:]
    assert run.changed_tasks == foretold.changed_tasks
    assert (log.stat().st_size, old.exists()) == (0, False)
    assert cache.get("response:asked-for") == b"1"
    again = stage.playbook("maintenance")
    assert (again.status, again.changed) == (0, 0), again.output[-3000:]
    history = [json.loads(line) for line in (stage.sandbox.state / "history.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in history].count("maintenance") == 1
    assert history[-1]["bytes_freed"] > 60_000_000
    found = report(stage, "performance.json")
    assert found["recovery"]["runs"] == [entry["action"] for entry in history].count("recover") > 0
    assert found["metrics"]["memory_percent"]["highest"] > 0
    assert found["backend"]["alert_summary"].keys() == {"warning", "critical", "emergency"}
    assert {entry["verdict"] for entry in report(stage, "thresholds.json")} == {"unknown"}, (
        "minutes of history are no ground for advice"
    )


def test_a_gate_that_fails_takes_everything_back(stage: Stage) -> None:
    before = tree(stage.sandbox.backend)
    environment = stage.sandbox.env_file.read_text()
    # uvicorn reads it and cannot start; importing the application proves nothing of it.
    extra = (
        '{"wheels_ops_environment_extra": {"UVICORN_SSL_KEYFILE": "/nowhere/key.pem"}, "services_healthy_deadline": 12}'
    )
    run = stage.playbook("deploy", "-e", extra, *LOOK)
    assert run.status != 0
    assert "The backend answers again." in run.text, run.output[-4000:]
    assert tree(stage.sandbox.backend) == before
    assert stage.sandbox.env_file.read_text() == environment
    assert requests.get(f"{stage.facts.base_url}/health", timeout=10).status_code == 200


def test_kill_in_the_middle_is_finished_by_the_next_run(stage: Stage, installed: Path) -> None:
    """The next run is a whole deployment, and comes from the installed tarball: it needs nothing of the repository."""
    lifecycle.break_it(stage.sandbox)
    process = subprocess.Popen(
        stage.command("deploy", *LOOK),
        cwd=REPOSITORY,
        env=stage.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TASK [Set the environment variables]"):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    assert "BEGIN wheels.ops" in (stage.sandbox.backend / "app/main.py").read_text()
    before = fingerprint(stage)
    for playbook in ("recover", "maintenance"):
        # It would restart services on what is half-installed, and seal it.
        run = stage.playbook(playbook, *LOOK)
        assert run.status != 0 and run.changed == 0
        for words in (
            "was interrupted at step",
            "ansible-playbook playbooks/deploy.yml",
            "ansible-playbook playbooks/rollback.yml",
        ):
            assert words in run.text, run.output[-3000:]
    assert fingerprint(stage) == before
    run = stage.installed_playbook(installed, "deploy")
    assert run.status == 0, run.output[-4000:]
    assert "was interrupted at step" in run.text
    assert set(statuses(report(stage, "after.json")).values()) == {"ok"}


def test_rollback_leaves_no_trace(stage: Stage, tmp_path: Path) -> None:
    """Also where it was killed after the last file, and before the services were restarted."""
    process = subprocess.Popen(
        stage.command("rollback", *LOOK),
        cwd=REPOSITORY,
        env=stage.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TASK [Reload systemd]"):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    refused = stage.playbook("recover", *LOOK)
    assert refused.status != 0 and "The rollback of deployment" in refused.text and "was interrupted" in refused.text, (
        refused.output[-3000:]
    )
    served = {name: pid for name, pid in fingerprint(stage).items() if name.startswith("process pam-")}
    run = stage.playbook("rollback")
    assert served and all(fingerprint(stage)[name] != pid for name, pid in served.items()), (
        "they would serve what is no longer on the disk"
    )
    assert run.status == 0, run.output[-3000:]
    assert "The backend answers again." in run.text
    assert tree(stage.sandbox.backend) == tree(materialise("incident", tmp_path / "incident"))
    assert not stage.sandbox.env_file.exists()
    assert stage.sandbox.etc.stat().st_mode & 0o777 == 0o700, "a directory that was there is nobody's to open"
    assert requests.get(f"{stage.facts.base_url}/health", timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('{"wheels_ops_environment_extra": {"DATABASE_POOL_SIZE": "many"}}', "cannot be imported with the new files"),
        (
            '{"database_scripts": [{"name": "no/such/place.sql", "content": "select 1"}]}',
            "Leave the SQL scripts on the host: Destination directory",
        ),
    ],
)
def test_what_only_a_step_can_find_replaces_no_file(stage: Stage, extra: str, message: str) -> None:
    before = tree(stage.sandbox.backend)
    run = stage.playbook("deploy", "-e", extra, *LOOK)
    assert run.status != 0
    assert message in run.text, run.output[-3000:]
    assert tree(stage.sandbox.backend) == before
