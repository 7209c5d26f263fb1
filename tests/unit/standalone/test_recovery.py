# SPDX-License-Identifier: GPL-3.0-or-later
"""While Redis takes no writes, neither it nor what lives from it is restarted; the program and the playbook have one rule."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.support.collection import COLLECTION
from wheels_ops.checks import context, suite
from wheels_ops.core.results import Result
from wheels_ops.remedies import service_restart
from wheels_ops.standalone import recovery
from wheels_ops.standalone.settings import Settings

SERVICES: t.List[t.Dict[str, t.Any]] = [
    {"name": "redis", "gate": {"type": "redis", "url": "redis://h/0"}},
    {"name": "pam-backend", "depends_on": ["redis"], "gate": {"type": "http", "url": "http://h/health"}},
    {"name": "worker", "depends_on": ["redis"], "gate": {"type": "celery", "url": "redis://h/0"}},
    {"name": "planner", "gate": {"type": "beat", "url": "redis://h/0"}},
    {"name": "celery-emails"},
    {"name": "nginx"},
]


def health(writes: t.Optional[str], failing: t.Sequence[str] = ("redis", "celery")) -> t.Dict[str, t.Any]:
    details = {} if writes is None else {"writes": writes}
    return {
        "checks": [{"name": "redis", "details": details}, {"name": "celery", "details": {}}],
        "failing": list(failing),
    }


CASES = [
    ("refused: OOM", ["pam-backend", "nginx"]),
    ("refused: MISCONF", ["pam-backend", "nginx"]),
    ("accepted", [each["name"] for each in SERVICES]),
    ("not tried", [each["name"] for each in SERVICES]),
    (None, [each["name"] for each in SERVICES]),
]


@pytest.mark.parametrize(("writes", "names"), CASES)
def test_the_program_leaves_them_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, writes: t.Optional[str], names: t.List[str]
) -> None:
    restarted: t.List[t.Any] = []

    def run(services: t.Any, *_words: t.Any, **_options: t.Any) -> Result:
        restarted.extend(services)
        return Result()

    monkeypatch.setattr(service_restart, "run", run)
    monkeypatch.setattr(context, "open_manager", lambda *_words, **_account: None)
    one = recovery.AutomatedRecovery(Settings(checks=suite.Options(services=SERVICES), state_dir=tmp_path))
    one._restart_services(health(writes))
    assert [service.name for service in restarted] == names


def test_where_nothing_is_left_the_restart_is_refused(tmp_path: Path) -> None:
    one = recovery.AutomatedRecovery(
        Settings(checks=suite.Options(services=[SERVICES[0], SERVICES[2]]), state_dir=tmp_path)
    )
    with pytest.raises(recovery.Refused, match=r"Redis takes no writes \(refused: OOM\)"):
        one._restart_services(health("refused: OOM"))


@pytest.mark.parametrize(("writes", "names"), CASES)
def test_the_playbook_leaves_out_the_same(writes: t.Optional[str], names: t.List[str]) -> None:
    tasks = yaml.safe_load((COLLECTION / "playbooks/tasks/recover_host.yml").read_text())
    task = next(task for task in tasks if "recover_services" in task.get("ansible.builtin.set_fact", {}))
    variables: t.Dict[str, t.Any] = {"services_list": SERVICES, "recover_before": health(writes)}
    for name, text in task["vars"].items():
        variables[name] = Templar(DataLoader(), variables=variables).template(trust_as_template(text))
    found = Templar(DataLoader(), variables=variables).template(
        trust_as_template(task["ansible.builtin.set_fact"]["recover_services"])
    )
    assert [service["name"] for service in found] == names
    if len(names) < len(SERVICES):
        assert found == recovery.without_broker(SERVICES)
