# SPDX-License-Identifier: GPL-3.0-or-later
"""recovery_plan_info as Ansible runs it, and the filters that the playbook ``recover`` uses with it."""

from __future__ import annotations

import importlib
import json
import sys
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support.container_host import REPOSITORY
from wheels_ops.remedies import backend_patch, plan
from wheels_ops.state import deployments, history
from wheels_ops.state.restarts import Ledger

SERVICES: t.List[t.Dict[str, t.Any]] = [
    {"name": "redis", "gate": {"type": "redis", "url": "redis://:correct-horse@127.0.0.1/0"}},
    {"name": "pam-backend", "depends_on": ["redis"]},
]


def plugin(name: str) -> t.Any:
    if str(REPOSITORY / "collections") not in sys.path:
        sys.path.append(str(REPOSITORY / "collections"))
    return importlib.import_module(f"ansible_collections.wheels.ops.plugins.{name}")


def check(name: str, remedy: str, status: str = "critical", **details: t.Any) -> t.Dict[str, t.Any]:
    return {
        "name": name,
        "status": status,
        "value": 1,
        "remedy": remedy,
        "message": f"{name} is {status}.",
        "details": details,
    }


DISK = check("disk", "disk_cleanup")


def defaults(state: Path) -> t.Dict[str, t.Any]:
    """What Ansible gives the module where a task says nothing, but for the second health run."""
    spec: t.Dict[str, t.Any] = {"confirmation": None, "services": [], "unavailable": [], "forbidden": []}
    return {
        **spec,
        "confirm_after": 0,
        "deploys": False,
        "token_file": str(state / "no-token"),
        "cooldown": 600,
        "max_cooldown": 14400,
        "ignore_cooldown": False,
        "budget": 6,
        "max_restarts": 3,
        "max_failures": 2,
        "policy": {},
        "state_dir": str(state),
    }


def asked(state: Path, **params: t.Any) -> t.Dict[str, t.Any]:
    """The result of the module's one call."""
    module = plugin("modules.recovery_plan_info")
    return t.cast("t.Dict[str, t.Any]", module.call({**defaults(state), **params}).as_dict())


def steps(result: t.Mapping[str, t.Any]) -> t.Dict[str, t.Dict[str, t.Any]]:
    return {step["remedy"]: step for step in result["steps"]}


def test_deployment_is_planned_for_what_a_missing_file_may_have_broken(tmp_path: Path) -> None:
    """By the journal of the state directory: the check itself knows nothing of files."""
    state, tree = tmp_path / "state", tmp_path / "tree"
    tree.mkdir()
    deployments.begin(str(state), "a", holder="one")
    request = backend_patch.Request(root=str(tree), files={"main.py": b"new = 1\n"})
    backend_patch.install(str(state), "a", request, backend_patch.Proof())
    deployments.end(str(state), "a", holder="one", state=deployments.FINISHED)
    down = check("http", "service_restart")
    assert list(steps(asked(state, checks=[down], services=SERVICES, deploys=True))) == ["service_restart"]
    (tree / "main.py").unlink()
    named = steps(asked(state, checks=[down], services=SERVICES))["deploy"]
    assert str(tree / "main.py") in named["refused"] and "playbooks/deploy.yml" in named["advice"]
    assert not steps(asked(state, checks=[down], services=SERVICES, deploys=True))["deploy"]["refused"]


def test_documentation_names_every_remedy_in_order() -> None:
    options = yaml.safe_load(plugin("modules.recovery_plan_info").DOCUMENTATION)["options"]
    assert options["unavailable"]["choices"] == options["forbidden"]["choices"] == list(plan.NAMES)


def test_plan_changes_nothing_and_is_the_same_again(tmp_path: Path) -> None:
    first = asked(tmp_path, checks=[DISK, check("cors", "managed_files")])
    assert (first["changed"], list(tmp_path.iterdir())) == (False, [])
    assert [step["remedy"] for step in first["steps"]] == ["log_rotation", "disk_cleanup", "deploy"]
    assert first["msg"] == "Remedies: log_rotation, disk_cleanup. Refused: 1."
    assert first == asked(tmp_path, checks=[DISK, check("cors", "managed_files")])
    text = "\n".join(first["lines"])
    for line in (
        "disk: critical: disk is critical.",
        "disk_cleanup (disk)",
        "Run ansible-playbook -i INVENTORY playbooks/deploy.yml.",
    ):
        assert line in text


def test_plan_waits_for_a_second_health_run(tmp_path: Path) -> None:
    first = asked(tmp_path, checks=[DISK, check("http", "service_restart")], confirm_after=5)
    assert first["to_confirm"] == ["disk", "http"]
    assert all(step["refused"] and step["waits_until"].endswith("Z") for step in first["steps"])
    second = asked(
        tmp_path,
        checks=[DISK, check("http", "service_restart")],
        confirmation=[DISK, check("http", "", "ok")],
        confirm_after=5,
    )
    assert (second["to_confirm"], second["failing"]) == ([], ["disk"])
    assert [step["remedy"] for step in second["steps"] if not step["refused"]] == ["log_rotation", "disk_cleanup"]
    cleared = asked(tmp_path, checks=[DISK], confirmation=[check("disk", "", "ok")], confirm_after=5)
    assert (cleared["steps"], cleared["failing"], cleared["msg"]) == ([], [], "Remedies: none.")


def test_plan_counts_what_earlier_runs_did(tmp_path: Path) -> None:
    """The history is the one that playbook and program write, the restarts those of service_restart."""
    record = history.HistoryRecord(results=({"action": "disk_cleanup", "outcome": "done"},))
    history.append(tmp_path / history.FILE, record)
    for _ in range(3):
        Ledger(tmp_path).add(event="begin", service="pam-backend")
    down = check("services", "service_restart", services={"pam-backend": {"status": "critical"}})
    result = steps(asked(tmp_path, checks=[DISK, down], services=SERVICES))
    assert not result["log_rotation"]["refused"]
    assert "cool-down of 600 s" in result["disk_cleanup"]["refused"]
    assert "(-e recovery_ignore_cooldown=true)" in result["disk_cleanup"]["refused"]
    assert "budget of 3 restarts" in result["service_restart"]["refused"]
    until = time.mktime(time.strptime(result["disk_cleanup"]["waits_until"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert 500 < until - time.time() <= 601
    again = steps(asked(tmp_path, checks=[DISK, down], services=SERVICES, ignore_cooldown=True, max_restarts=4))
    assert not again["disk_cleanup"]["refused"] and not again["service_restart"]["refused"]


def test_plan_passes_over_a_damaged_line(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"results": [\n')
    (tmp_path / "cpu_relief.json").write_text("{")
    result = plugin("modules.recovery_plan_info")
    params = {**defaults(tmp_path), "checks": [DISK]}
    warnings = result.call(params).warnings
    assert "1 lines of" in warnings[0] and "cpu_relief.json is damaged" in warnings[1]


def test_cache_clear_needs_the_token(tmp_path: Path) -> None:
    redis = check("redis", "cache_purge", writes="accepted")
    assert "no ops token" in steps(asked(tmp_path, checks=[redis]))["cache_clear"]["refused"]
    (tmp_path / "token").write_text("0123456789abcdef")
    assert not steps(asked(tmp_path, checks=[redis], token_file=str(tmp_path / "token")))["cache_clear"]["refused"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cooldown": -1}, "cooldown must be between 0 and 604,800, got -1."),
        ({"confirm_after": 3601}, "confirm_after must be between 0 and 3,600, got 3,601."),
        ({"budget": 1001}, "budget must be between 0 and 1,000, got 1,001."),
        ({"checks": [{"name": "disk"}]}, "Each entry of checks must have a text status, got name."),
        ({"confirmation": [{}]}, "Each entry of confirmation must have a text name, got nothing."),
    ],
)
def test_bad_options_are_named(tmp_path: Path, params: t.Dict[str, t.Any], message: str) -> None:
    with pytest.raises(plugin("module_utils.core.results").OpsError) as caught:
        asked(tmp_path, **{"checks": [DISK], **params})
    assert caught.value.message == message and caught.value.hint


def entry(action: str, *checks: str, **further: t.Any) -> t.Dict[str, t.Any]:
    return {"action": action, "checks": list(checks), "timestamp": "2025-07-30T02:11:00Z", **further}


ENTRIES = [
    entry("disk_cleanup", "disk", changed=True, message="9 files deleted.", advice="Find what fills the disk."),
    entry("service_restart", "services", failed=True, message="worker does not start."),
    entry("memory_cleanup", "memory", changed=True, message="Trimmed."),
    entry("deploy", "cors", refused="Only a deployment installs it.", advice="Run deploy."),
    entry("", "rls", refused="It could not be measured.", advice="No database."),
]
BEFORE = [check(name, "x") for name in ("disk", "services", "memory", "cors")] + [check("rls", "", "unknown")]


def test_recovery_report_judges_by_the_checks_afterwards() -> None:
    after = [check("disk", "x"), check("services", "x"), check("memory", "", "ok"), check("cors", "x"), BEFORE[-1]]
    report = plugin("filter.recovery_report").FilterModule().filters()["recovery_report"](ENTRIES, BEFORE, after)
    assert [(each["action"], each["outcome"], each["success"]) for each in report["results"]] == [
        ("disk_cleanup", "partly", False),
        ("service_restart", "failed", False),
        ("memory_cleanup", "done", True),
        ("deploy", "refused", False),
    ]
    text = "\n".join(report["lines"])
    sections = ["What was wrong", "What was done", "What was refused", "What is left", "What to do next"]
    assert [line for line in report["lines"] if not line.startswith(" ")] == sections
    for line in (
        "  partly   disk_cleanup (disk): 9 files deleted. Still: disk: critical: disk is critical.",
        "  failed   service_restart (services): worker does not start.",
        "  deploy (cors): Only a deployment installs it.",
        "  no remedy (rls): It could not be measured.",
        "  Find what fills the disk.\n  Run deploy.\n  No database.",
    ):
        assert line in text, line
    history_keys = {"action", "success", "outcome", "message", "timestamp", "changed"}
    assert all(set(each) == history_keys for each in report["results"])
    assert json.loads(json.dumps(report)) == report


def test_recovery_report_in_check_mode_says_what_would_be_done() -> None:
    report = plugin("filter.recovery_report").FilterModule().filters()["recovery_report"](ENTRIES, BEFORE, BEFORE, True)
    assert [each["outcome"] for each in report["results"]] == ["would", "failed", "would", "refused"]
    assert report["lines"][0] == "What is wrong" and "What would be done" in report["lines"]
    assert "What is left" not in report["lines"]


def test_recovery_report_hides_secrets_and_is_empty_where_nothing_is_wrong() -> None:
    call = plugin("filter.recovery_report").FilterModule().filters()["recovery_report"]
    secret = entry("service_restart", "redis", failed=True, message="redis://:correct-horse@h/0 does not answer")
    assert "correct-horse" not in repr(call([secret], BEFORE, BEFORE))
    healthy = [check("disk", "", "ok")]
    assert call([], healthy, healthy) == {"results": [], "attempts": [], "lines": []}


def test_remaining_services_cuts_the_dependencies_on_what_is_left_out() -> None:
    call = plugin("filter.remaining_services").FilterModule().filters()["remaining_services"]
    assert call(SERVICES, []) == [{**SERVICES[0], "depends_on": []}, SERVICES[1]]
    assert call(SERVICES, ["redis"]) == [{"name": "pam-backend", "depends_on": []}]
