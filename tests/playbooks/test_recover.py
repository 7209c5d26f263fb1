# SPDX-License-Identifier: GPL-3.0-or-later
"""What breaks after a deployment is named, repaired and tidied up.

The tests of this file build on each other, in their order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import redis as redis_client
import requests

from tests.playbooks.conftest import Stage
from tests.playbooks.witnesses import LOOK, report
from tests.sandbox import faults
from tests.sandbox.faults import Bench
from tests.support import alert_loop
from tests.support.container_host import REPOSITORY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def deployed(stage: Stage) -> None:
    """That the deployment itself makes everything healthy is asserted in ``test_deploy.py``."""
    run = stage.playbook("deploy", *LOOK)
    assert run.status == 0, run.output[-4000:]


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
    outcomes = {result["action"]: result["outcome"] for result in history[-1]["results"]}
    assert (outcomes["service_restart"], outcomes["database_repair"], outcomes["cache_clear"]) == ("done",) * 3
    # What a person on call reads: what was wrong, and what became of it.
    for words in ("What was wrong", "celery-beat", "What was done", "done database_repair (rls)"):
        assert words in run.text, words


def test_recover_deploys_where_that_is_allowed_and_only_that_helps(stage: Stage) -> None:
    """A restart finds the file missing and says so; the deployment under the same lock installs it again."""
    patched = stage.sandbox.backend / "app/services/cache_service.py"
    content = patched.read_bytes()
    patched.unlink()
    stage.rpc().stopProcess("pam-backend", True)
    words = (*LOOK, "-e", "recovery_ignore_cooldown=true", "-e", "recovery_confirm_after=0")
    run = stage.playbook("recover", *words, "-e", "wheels_ops_recover_deploys=true")
    assert run.status == 0, run.output[-4000:]
    assert patched.read_bytes() == content
    assert requests.get(f"{stage.facts.base_url}/health", timeout=10).status_code == 200
    states = [json.loads(path.read_text())["state"] for path in stage.sandbox.state.glob("deployments/*/manifest.json")]
    assert set(states) == {"finished"} and not (stage.sandbox.state / "deploy.lock").exists()
    history = [json.loads(line) for line in (stage.sandbox.state / "history.jsonl").read_text().splitlines()]
    assert history[-1]["run_id"].startswith("recover-") and history[-1]["outcome"] == "healthy"
    assert ("deploy", "done") in {(each["action"], each["outcome"]) for each in history[-1]["results"]}


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


@pytest.mark.skipif(bool(alert_loop.missing()), reason=f"not installed: {alert_loop.missing()}")
def test_an_alert_of_prometheus_starts_recover_for_its_host_and_is_resolved(stage: Stage, tmp_path: Path) -> None:
    """The files that are shipped; and labels of somebody who means harm."""
    variables = {"recovery_ignore_cooldown": True, "services_min_healthy_time": 1}
    planted = tmp_path / "planted"
    with alert_loop.alert_loop(stage.sandbox, tmp_path, variables) as loop:
        assert loop.notify("another-token-of-somebody", host="sandbox") == 401
        assert loop.notify(host=f"{{{{ lookup('pipe', 'touch {planted}') }}}}") == 200
        assert loop.notify() == 200
        wait_until(lambda: "have no label host in common" in loop.log, timeout=60, what="why nothing is started")
        # A group, which would be every host.
        assert loop.notify(host="all") == 200
        wait_until(lambda: "The alert is about a host that is none of backend" in loop.log, timeout=120)
        assert "TASK [Reach this host]" not in loop.log
        stage.rpc().stopProcess("celery-worker", True)
        wait_until(loop.alerts, timeout=90, what="the alert fires")
        wait_until(lambda: not loop.alerts(), timeout=180, what="the alert is resolved")
        assert stage.rpc().getProcessInfo("celery-worker")["statename"] == "RUNNING"
        history = stage.sandbox.state / "history.jsonl"
        newest = wait_until(
            lambda: [
                record for record in map(json.loads, history.read_text().splitlines()) if record["trigger"] == "alert"
            ],
            timeout=120,
            what="the run is in the history",
        )
        assert [(record["host"], record["outcome"]) for record in newest] == [("sandbox", "healthy")]
        assert loop.log.count("TASK [Reach this host]") == 1, "one run for its host"
    assert not planted.exists()


def test_commands_of_the_procedures_page_work_here(stage: Stage, tmp_path: Path) -> None:
    """The backend answers JSON to each, and the programs what Nagios takes."""
    page = (REPOSITORY / "docs/procedures.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 12
    environment = {
        **stage.environment(),
        "API": stage.facts.base_url,
        "TOKEN": (stage.sandbox.etc / "ops-token").read_text().strip(),
        "PROGRAMS": str(REPOSITORY),
        "BASE_URL": stage.facts.base_url,
        "WHEELS_OPS_STATE_DIR": str(tmp_path),
    }
    for command in commands:
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        if command.startswith("curl"):
            assert done.returncode == 0 and json.loads(done.stdout), (command, done.stdout, done.stderr)
        else:
            assert done.returncode in (0, 1, 2) and done.stdout, (command, done.stdout, done.stderr)
    for name, tag in re.findall(r"ansible-playbook playbooks/(\w+)\.yml(?: --tags (\w+))?", page):
        listed = stage.playbook(name, "--list-tasks", *(["--tags", tag] if tag else []))
        assert listed.status == 0 and "play #" in listed.text, listed.output


def test_maintenance_tidies_once_and_reports_what_was_measured(stage: Stage) -> None:
    """Weekly is foretold, done, and then has nothing left to do; the reports hold what happened in this sandbox and
    make up nothing.
    """
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


@pytest.fixture(scope="module")
def bench(stage: Stage) -> Bench:
    run = stage.playbook("monitor")
    assert run.status == 0, run.output[-4000:]
    return Bench(stage.sandbox)


@pytest.mark.parametrize("name", ["celery-beat stopped", "recursive policy", "lock damaged", "PostgreSQL stopped"])
def test_program_meets_faults(name: str, bench: Bench) -> None:
    """One for each way in which a run can end; ``test_faults.py`` has all of them."""
    (fault,) = (each for each in faults.FAULTS if each.name == name)
    faults.meet(bench, fault, lambda: faults.script(bench))
    bench.restore()
