# SPDX-License-Identifier: GPL-3.0-or-later
"""The program and the playbook ``recover`` carry out one plan: the same remedies for every subject, by the same
modules, on the same services.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support import transport
from tests.support.collection import COLLECTION
from wheels_ops.checks import suite
from wheels_ops.core.results import Result
from wheels_ops.health.subjects import REGISTRY
from wheels_ops.remedies import plan, service_restart
from wheels_ops.remedies.memory import trim
from wheels_ops.standalone import recovery
from wheels_ops.standalone.settings import Recovery, Settings

SERVICES: t.List[t.Dict[str, t.Any]] = [
    {"name": "redis", "gate": {"type": "redis", "url": "redis://h/0"}},
    {"name": "pam-backend", "depends_on": ["redis"], "gate": {"type": "http", "url": "http://h/health"}},
    {"name": "worker", "depends_on": ["redis"], "gate": {"type": "celery", "url": "redis://h/0"}},
    {"name": "planner", "gate": {"type": "beat", "url": "redis://h/0"}},
    {"name": "celery-emails"},
    {"name": "nginx"},
]
#: What each remedy calls beside its module, and what is no module of a remedy.
HELPERS = {"deployment", "health_info"}


def tasks_of(path: Path) -> t.List[t.Dict[str, t.Any]]:
    """Every task of a file, also those in blocks and in the files that it imports."""
    tasks: t.List[t.Dict[str, t.Any]] = []
    waiting = list(yaml.safe_load(path.read_text(encoding="utf-8")))
    while waiting:
        task = waiting.pop(0)
        tasks.append(task)
        for key in ("block", "rescue", "always"):
            waiting += task.get(key, [])
    return tasks


def roles() -> t.Dict[str, t.Dict[str, t.Any]]:
    """What carries out each remedy in the playbook."""
    tasks = tasks_of(COLLECTION / "playbooks/tasks/recover_host.yml")
    return next(task["vars"]["recover_roles"] for task in tasks if "recover_roles" in task.get("vars", {}))


def test_both_carry_out_every_remedy_of_the_plan_but_a_deployment() -> None:
    names = [name for name in plan.NAMES if name != plan.DEPLOY]
    assert list(roles()) == names
    program = recovery.AutomatedRecovery(Settings())
    assert [action.value for action in program.recovery_actions] == names
    assert [action.value for action in recovery.RecoveryAction] == list(plan.NAMES)


@pytest.mark.parametrize("subject", REGISTRY, ids=lambda subject: subject.name)
def test_both_have_the_same_remedies_for_a_subject(subject: t.Any) -> None:
    """Every module that a check may name leads to a step of the plan, and the playbook calls that module for it."""
    assert subject.remedies
    for module in subject.remedies:
        check = {"name": subject.name, "status": "critical", "remedy": module, "message": "", "details": {}, "value": 1}
        steps = [step.remedy for step in plan.plan([check], plan.Allowed(SERVICES), plan.State(now=0))]
        owners = [remedy.name for remedy in plan.REMEDIES if module in remedy.modules]
        assert set(owners) <= set(steps) and owners, (module, steps)
        for name in set(owners) - {plan.DEPLOY, plan.CACHE_CLEAR}:
            assert module in called(name), (name, module)


def called(name: str) -> t.Set[str]:
    """The modules of ours that the playbook calls for a remedy."""
    role = roles()[name]
    tasks = tasks_of(COLLECTION / f"roles/{role['role']}/tasks/{role['tasks']}")
    modules = {key[len("wheels.ops.") :] for task in tasks for key in task if key.startswith("wheels.ops.")}
    return modules - HELPERS


@pytest.mark.parametrize("name", [name for name in plan.NAMES if name != plan.DEPLOY])
def test_playbook_calls_no_other_module_and_reads_the_results_that_it_registers(name: str) -> None:
    role = roles()[name]
    path = COLLECTION / f"roles/{role['role']}/tasks/{role['tasks']}"
    registered = {task.get("register") for task in tasks_of(path)} | {
        variable for task in tasks_of(path) for variable in task.get("ansible.builtin.set_fact", {})
    }
    assert set(role["results"]) <= registered
    remedy = next(each for each in plan.REMEDIES if each.name == (plan.CPU_RELIEF if "relief" in name else name))
    assert called(name) == (set() if name == plan.CACHE_CLEAR else set(remedy.modules))


def test_playbook_leaves_alone_the_same_services() -> None:
    tasks = tasks_of(COLLECTION / "playbooks/tasks/recover_one.yml")
    variables = next(task["vars"] for task in tasks if "recover_services" in task.get("vars", {}))
    assert variables["services_list"] == variables["host_cleanup_services"] == "{{ recover_services }}"
    expression = "{{ recover_listed | wheels.ops.remaining_services(recover_step.without) }}"
    assert variables["recover_services"] == expression
    remaining = plan.remaining_services(SERVICES, ["redis", "worker"])
    assert [(each["name"], each["depends_on"]) for each in remaining] == [
        (name, []) for name in ("pam-backend", "planner", "celery-emails", "nginx")
    ]


@pytest.mark.parametrize("without", [(), ("redis", "worker", "planner", "celery-emails")])
def test_program_leaves_alone_what_the_step_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without: t.Tuple[str, ...]
) -> None:
    touched: t.Dict[str, t.List[str]] = {}

    def restart(services: t.Any, *_words: t.Any, **_options: t.Any) -> Result:
        touched["restart"] = [service.name for service in services]
        return Result()

    def reduce(params: t.Mapping[str, t.Any], **_options: t.Any) -> Result:
        touched["trim"] = [service["name"] for service in params["services"]]
        return Result()

    monkeypatch.setattr(service_restart, "run", restart)
    monkeypatch.setattr(trim, "run_with", reduce)
    monkeypatch.setattr(suite.Options, "open_manager", lambda _self: None)
    program = recovery.AutomatedRecovery(Settings(checks=suite.Options(services=SERVICES), state_dir=tmp_path))
    steps = [plan.Step(name, ("services",), without=without) for name in (plan.SERVICE_RESTART, plan.MEMORY_CLEANUP)]
    results = program._remedies({"checks": []}, steps)
    names = [each["name"] for each in SERVICES if each["name"] not in without]
    assert touched == {"restart": names, "trim": names}
    assert [(result.action, result.outcome) for result in results] == [(step.remedy, "") for step in steps]


@pytest.mark.parametrize(
    ("counts", "calls", "remaining"),
    [([60_000, 20_000, 0], 3, 0), ([60_000, 60_000], 2, 60_000), ([9, 8, 7, 6, 5], 4, 6), ([0], 1, 0)],
)
def test_cache_is_cleared_in_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counts: t.List[int], calls: int, remaining: int
) -> None:
    """The backend ends a call after 25 s, and goes on with the next one."""
    sent = transport.answer(monkeypatch, lambda _request: (200, "{}", {}))
    measured = iter(counts)
    monkeypatch.setattr(suite, "run", lambda _options: {"checks": [{"name": "redis", "value": next(measured)}]})
    settings = Settings(checks=suite.Options(base_url="http://backend:8000"), state_dir=tmp_path)
    program = recovery.AutomatedRecovery(settings)
    monkeypatch.setattr(recovery, "token_of", lambda _text, _path: "t" * 20)
    result = program._clear_cache(
        {"checks": [{"name": "redis", "value": 100_000}]}, plan.Step(plan.CACHE_CLEAR, ("redis",))
    )
    assert len(sent) == calls
    assert result.after == {"keys_without_expiry": remaining} and result.changed


def test_program_carries_out_nothing_that_is_refused(tmp_path: Path) -> None:
    program = recovery.AutomatedRecovery(Settings(state_dir=tmp_path))
    for action in program.recovery_actions:
        program.recovery_actions[action] = lambda _before, _step: pytest.fail("a refused remedy was begun")
    steps = [plan.Step(name, ("disk",), refused="Not now.", advice="Wait.") for name in plan.NAMES]
    results = program._remedies({"checks": []}, [*steps, plan.Step("", ("rls",), refused="Not measured.")])
    assert [(each.action, each.outcome, each.message, each.advice) for each in results] == [
        (name, "refused", "Not now.", "Wait.") for name in plan.NAMES
    ]


@pytest.mark.parametrize("caller", ["program", "playbook"])
def test_options_in_a_refusal_exist(caller: str) -> None:
    """A person who follows the advice finds the option under that name."""
    names = set()
    for remedy in plan.NAMES:
        for allowed in (
            plan.Allowed(SERVICES, unavailable={remedy}, caller=caller),
            plan.Allowed(SERVICES, forbidden={remedy}, caller=caller),
        ):
            for subject in REGISTRY:
                for module in subject.remedies:
                    check = {"name": subject.name, "status": "critical", "remedy": module, "value": 1}
                    for step in plan.plan([check], allowed, plan.State(now=0)):
                        if step.remedy == remedy:
                            names.update(
                                re.findall(r"(recovery|checks)\.(\w+)|((?:wheels_ops|recovery)_\w+)", step.refused)
                            )
    assert names
    text = (COLLECTION / "roles/host_cleanup/defaults/main.yml").read_text(encoding="utf-8")
    text += (COLLECTION / "plugins/plugin_utils/shared_variables.py").read_text(encoding="utf-8")
    for section, option, variable in names:
        if caller == "program":
            assert hasattr(Recovery() if section == "recovery" else suite.Options(), option), option
        else:
            assert variable in text, variable


def test_documentation_lists_the_remedies_with_their_subjects() -> None:
    text = (COLLECTION.parents[2] / "docs/standalone.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", text[text.index("| remedy |") :], re.MULTILINE)
    wanted = [(name, ", ".join(plan.subjects_of(name))) for name in plan.NAMES]
    assert rows == [(name, subjects or "cpu") for name, subjects in wanted]
