# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: a broken backend becomes healthy, on real parts.

The tests of this file build on each other, in their order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
import redis as redis_client
import requests

from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import EIGHT, LOOK, fingerprint, report, statuses, token, tree
from tests.sandbox.binaries import REPOSITORY
from tests.support import remote_tasks
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
TASKS = 150
#: Of a deployment that has nothing to change.
REMOTE_TASKS = 25


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
    for words in ("wheels_ops_full_diff", "app/core/cors_config.py", "BEGIN wheels.ops", "would be patched"):
        assert words in run.text, words
    assert stage.proxy_requests() == []
    stage.predicted = run.changed_tasks


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
    assert stage.proxy_requests() == ["drain 200", "restore 200"]
    # The repaired backend's own beat may have cleared the cache before the deployment comes to it: then there is
    # nothing left to ask for.
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


def test_a_second_deploy_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    """And takes over the lock of the run before it, whose holder is dead now."""
    before = fingerprint(stage)
    names = tmp_path / "remote-tasks"
    run = stage.playbook("deploy", environment=remote_tasks.counting(names))
    assert run.status == 0, run.output[-3000:]
    assert run.changed == 0
    assert stage.proxy_requests() == []
    tasks = remote_tasks.counted(names)
    assert 0 < len(tasks) <= REMOTE_TASKS, tasks
    assert len([name for name in tasks if "Run health checks" in name]) == 1, "the baseline is the result"
    assert not (stage.sandbox.state / "deploy.lock").exists()
    kept = {
        name: value
        for name, value in before.items()
        if "restarts.jsonl" not in name and not name.endswith("/deploy.lock")
    }
    assert {name: value for name, value in fingerprint(stage).items() if "restarts.jsonl" not in name} == kept


def test_one_late_answer_takes_nothing_back(stage: Stage) -> None:
    """The worker stands still while the health is measured after the deployment, and goes on when it is measured once
    more.
    """
    # Something to do, so that the health is measured after it; nothing for which a service restarts.
    old = stage.sandbox.tmp / "upload-of-last-week"
    old.write_bytes(b"x")
    os.utime(old, (time.time() - 7 * 86400,) * 2)
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
    requests_of_the_proxy = stage.proxy_requests()
    assert requests_of_the_proxy[0] == "drain 200", "before the bad setting is in force"
    assert requests_of_the_proxy[-1] == "restore 200", "not before the old release answers"
    assert [line.split()[0] for line in requests_of_the_proxy].count("restore") == 1, requests_of_the_proxy
    assert requests.get(f"{stage.facts.base_url}/health", timeout=10).status_code == 200
