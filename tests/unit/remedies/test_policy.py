# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy of a recovery is data: what it says is what the plan does, and what no policy can be is refused by name."""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.health.subjects import NAMES as SUBJECTS
from wheels_ops.remedies import plan, policy
from wheels_ops.remedies.policy import Policy
from wheels_ops.state.problems import Problem, Problems

NOW = 1_800_000_000.0
DISK = {"name": "disk", "status": "critical", "remedy": "disk_cleanup", "value": 97, "message": "", "details": {}}


def parse(**values: t.Any) -> Policy:
    return policy.parse(values, Policy(), remedies=plan.NAMES, subjects=SUBJECTS)


HEALTHY = plan.State(now=NOW)


def steps(present: Policy, state: plan.State = HEALTHY, **allowed: t.Any) -> t.Dict[str, plan.Step]:
    planned = plan.plan([DISK], plan.Allowed(policy=present, **allowed), state)
    return {step.remedy: step for step in planned}


def test_empty_policy_is_the_report_s() -> None:
    assert parse() == Policy()


def test_check_gets_the_remedies_that_the_policy_names() -> None:
    assert set(steps(parse())) == {"log_rotation", "disk_cleanup"}
    assert set(steps(parse(remedies={"disk": ["log_rotation"]}))) == {"log_rotation"}
    (step,) = steps(parse(remedies={"disk": []})).values()
    assert (step.remedy, step.refused) == ("", "No remedy is known for it.")


def test_remedy_waits_for_a_person_unless_a_person_names_it() -> None:
    present = parse(ask_person=["disk_cleanup"])
    assert steps(present)["disk_cleanup"].refused == "The policy leaves this remedy to a person."
    assert not steps(present)["log_rotation"].refused
    assert not steps(present, only=["disk_cleanup"])["disk_cleanup"].refused


def test_limits_of_one_remedy_hold_for_it_alone() -> None:
    tries = [plan.Try(name, NOW - 700, "done") for name in ("disk_cleanup", "log_rotation")]
    present = parse(limits={"disk_cleanup": {"cooldown": 3600}})
    planned = steps(present, plan.State(now=NOW, tries=tries))
    assert (planned["disk_cleanup"].waits_until, planned["log_rotation"].waits_until) == (NOW + 2900, 0)


def test_remedy_that_did_not_help_twice_is_not_tried_a_third_time() -> None:
    open_problem = Problem("disk", "critical", since=NOW - 9e5, failures={"disk_cleanup": 2})
    state = plan.State(now=NOW, problems=Problems((open_problem,)))
    refused = steps(Policy(), state)["disk_cleanup"]
    assert "It did not help twice" in refused.refused
    assert (refused.waits_until, bool(refused.advice)) == (0.0, True)
    assert not steps(Policy(), state)["log_rotation"].refused
    assert not steps(Policy(), state, ignore_cooldown=True)["disk_cleanup"].refused
    assert not steps(parse(max_failures=0), state)["disk_cleanup"].refused


def test_service_that_went_down_since_is_restarted_though_another_is_given_up() -> None:
    services = [{"name": "web"}, {"name": "worker"}]
    failures = {"service_restart": 2, "service_restart web": 2}
    blocked = {"web": plan.Blocked("restarting it did not help", 0.0)}

    def planned(*down: str) -> plan.Step:
        facts = {name: {"status": "critical" if name in down else "ok"} for name in ("web", "worker")}
        check = {"name": "services", "status": "critical", "remedy": "service_restart", "details": {"services": facts}}
        problems = Problems((Problem("services", failures=failures),))
        state = plan.State(now=NOW, restarts=blocked, problems=problems)
        (step,) = plan.plan([check], plan.Allowed(services=services), state)
        return step

    assert "did not help twice" in planned("web").refused
    assert (planned("web", "worker").refused, planned("web", "worker").without) == ("", ("web",))


def test_loop_stops_on_a_host_that_got_worse() -> None:
    state = plan.State(now=NOW, problems=Problems(stopped="After the last remedies this host was worse: http."))
    assert "Nothing more is changed" in steps(Policy(), state)["disk_cleanup"].refused
    assert not steps(Policy(), state, ignore_cooldown=True)["disk_cleanup"].refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cooldwn": 3}, "cooldwn"),
        ({"cooldown": "soon"}, "policy.cooldown must be a number"),
        ({"cooldown": -1}, "between 0 and 604,800"),
        ({"budget": 1.5e9}, "policy.budget"),
        ({"remedies": {"dsk": []}}, "dsk"),
        ({"remedies": {"disk": "log_rotation"}}, "policy.remedies.disk must be a list"),
        ({"remedies": {"disk": ["reboot"]}}, "reboot"),
        ({"remedies": []}, "policy.remedies must be an object"),
        ({"ask_person": ["reboot"]}, "reboot"),
        ({"limits": {"disk_cleanup": {"max_restarts": 1}}}, "max_restarts"),
        ({"limits": {"disk_cleanup": 3}}, "policy.limits.disk_cleanup must be an object"),
    ],
)
def test_what_no_policy_can_be_is_refused_by_name(values: t.Mapping[str, t.Any], words: str) -> None:
    with pytest.raises(OpsError, match=words):
        parse(**values)
