# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery plan is a pure function: order, nothing refused, nothing twice, nothing for what was not measured,
back-off.
"""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wheels_ops.checks import suite
from wheels_ops.remedies import plan
from wheels_ops.remedies.plan import Allowed, Blocked, Policy, State, Step, Try

NOW = 1_800_000_000.0
SERVICES: t.List[t.Dict[str, t.Any]] = [
    {"name": "redis", "gate": {"type": "redis", "url": "redis://h/0"}},
    {"name": "pam-backend", "depends_on": ["redis"], "gate": {"type": "http", "url": "http://h/health"}},
    {"name": "worker", "depends_on": ["redis"], "gate": {"type": "celery", "url": "redis://h/0"}},
    {"name": "planner", "depends_on": ["worker"], "gate": {"type": "beat", "url": "redis://h/0"}},
    {"name": "celery-emails"},
    {"name": "nginx"},
]
BROKER = ("redis", "worker", "planner", "celery-emails")
MODULES = sorted({module for remedy in plan.REMEDIES for module in remedy.modules} | {"", "no_such_module"})
HEALTHY = State(now=NOW)


def check(name: str, status: str = "critical", remedy: str = "", **further: t.Any) -> t.Dict[str, t.Any]:
    return {
        "name": name,
        "status": status,
        "remedy": remedy,
        "value": further.pop("value", None),
        "message": f"{name} is {status}.",
        "details": further,
    }


def redis(writes: str = "accepted", **further: t.Any) -> t.Dict[str, t.Any]:
    return check("redis", writes=writes, **{"remedy": "cache_purge", "value": 3, **further})


def services(*down: str) -> t.Dict[str, t.Any]:
    facts = {each["name"]: {"status": "critical" if each["name"] in down else "ok"} for each in SERVICES}
    return check("services", remedy="service_restart", services=facts)


def step_of(name: str, checks: t.Sequence[plan.Check], allowed: Allowed, state: State = HEALTHY) -> Step:
    return next(step for step in plan.plan(checks, allowed, state) if step.remedy == name)


@st.composite
def checks_of(draw: st.DrawFn) -> t.List[t.Dict[str, t.Any]]:
    """A health run: every subject at most once, whatever each check names."""
    names = draw(st.lists(st.sampled_from(suite.SUBJECTS), unique=True))
    statuses = st.sampled_from(["ok", "skipped", "unknown", "warning", "critical", "emergency"])
    made = [check(name, draw(statuses), draw(st.sampled_from(MODULES))) for name in names]
    for each in made:
        each["value"] = draw(st.sampled_from([None, 0, 5]))
        if each["name"] == "redis":
            words = ["accepted", "not tried", "refused: OOM", "refused: MISCONF", "refused: READONLY"]
            each["details"]["writes"] = draw(st.sampled_from(words))
        if each["name"] == "services":
            each["details"] = services(*draw(st.sets(st.sampled_from([each["name"] for each in SERVICES]))))["details"]
        if each["name"] == "cpu":
            each["details"] = {"host_percent": 90.0, "services_percent": draw(st.sampled_from([0.0, 10.0, 80.0]))}
    return made


TRIES = st.lists(
    st.builds(
        Try,
        st.sampled_from(plan.NAMES),
        st.floats(NOW - 20_000, NOW + 1000),
        st.sampled_from(["done", "partly", "failed", "nothing", "refused"]),
    ),
    max_size=12,
)
NAMES = st.sets(st.sampled_from(plan.NAMES))
ALLOWED = st.builds(
    Allowed,
    services=st.sampled_from([[], SERVICES, SERVICES[:1]]),
    unavailable=NAMES,
    forbidden=NAMES,
    ignore_cooldown=st.booleans(),
    caller=st.sampled_from([plan.PROGRAM, plan.PLAYBOOK]),
)
STATES = st.builds(
    State,
    now=st.just(NOW),
    tries=TRIES,
    confirmed=st.none() | st.sets(st.sampled_from(suite.SUBJECTS)),
    restarts=st.dictionaries(
        st.sampled_from([each["name"] for each in SERVICES]), st.just(Blocked("its budget is spent", NOW + 60))
    ),
    relief_ends=st.sampled_from([0.0, NOW - 1, NOW + 100]),
)


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_keeps_the_order_and_names_each_remedy_once(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    names = [step.remedy for step in plan.plan(checks, allowed, state) if step.remedy]
    assert names == [name for name in plan.NAMES if name in names]


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_is_deterministic_and_changes_none_of_its_input(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    copies = [{**each, "details": dict(each["details"])} for each in checks]
    assert plan.plan(checks, allowed, state) == plan.plan(copies, allowed, state)
    assert checks == copies


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_does_nothing_for_what_was_not_measured_or_passes(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    statuses = {each["name"]: each["status"] for each in checks}
    for step in plan.plan(checks, allowed, state):
        if step.refused or step.remedy == plan.CPU_RELIEF_END:
            continue
        assert step.subjects and {statuses[name] for name in step.subjects} <= plan.FAILING
        assert set(step.subjects) <= set(plan.subjects_of(step.remedy))


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_names_every_failure_in_a_step_and_no_other_check(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    state = State(now=NOW, tries=state.tries, restarts=state.restarts)
    named = [name for step in plan.plan(checks, allowed, state) for name in step.subjects]
    assert sorted(set(named)) == sorted(plan.failing(checks))


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_begins_nothing_that_is_forbidden_unavailable_or_unconfirmed(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    for step in plan.plan(checks, allowed, state):
        if step.remedy == plan.CPU_RELIEF_END:
            continue
        if step.remedy in {*allowed.unavailable, *allowed.forbidden, plan.DEPLOY}:
            assert step.refused
        if not step.refused and state.confirmed is not None:
            assert set(step.subjects) <= set(state.confirmed)
        assert not step.waits_until or step.waits_until > NOW
        assert not step.waits_until or step.refused


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_leaves_the_broker_alone_while_redis_refuses_writes(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    if not plan.refused_writes(checks):
        return
    for step in plan.plan(checks, allowed, state):
        if step.remedy in (plan.SERVICE_RESTART, plan.MEMORY_CLEANUP) and not step.refused:
            kept = plan.remaining_services(allowed.services, step.without)
            assert {each["name"] for each in kept} <= {"pam-backend", "nginx"}
        if step.remedy == plan.BACKGROUND_THROTTLE:
            assert step.refused


@settings(max_examples=50)
@given(checks_of(), ALLOWED, STATES)
def test_plan_restarts_no_service_whose_budget_is_spent(
    checks: t.List[t.Dict[str, t.Any]], allowed: Allowed, state: State
) -> None:
    facts: t.Dict[str, t.Dict[str, str]] = next(
        (each["details"]["services"] for each in checks if each["name"] == "services"), {}
    )
    down = {name for name, fact in facts.items() if fact["status"] == "critical"}
    for step in plan.plan(checks, allowed, state):
        if step.remedy == plan.SERVICE_RESTART and not step.refused:
            assert not down & set(state.restarts) - set(step.without)


@given(st.integers(0, 40), st.floats(0, 1000), st.floats(0, 5000))
def test_pause_never_shrinks_with_more_failures(failures: int, cooldown: float, longest: float) -> None:
    policy = Policy(cooldown=cooldown, max_cooldown=longest)
    assert cooldown <= policy.pause(failures) <= policy.pause(failures + 1) <= max(cooldown, longest)


@given(st.integers(1, 5), st.floats(0, 3599))
def test_plan_waits_longer_after_each_try_that_did_not_help(failures: int, ago: float) -> None:
    def until(count: int) -> float:
        tries = [Try(plan.DISK_CLEANUP, NOW - ago - 4000 * number, "failed") for number in range(count)]
        step = step_of(plan.DISK_CLEANUP, [check("disk", remedy="disk_cleanup")], Allowed(), State(NOW, tries))
        return step.waits_until

    assert until(failures) <= until(failures + 1)


@pytest.mark.parametrize(
    ("outcome", "ago", "waits"),
    [
        ("done", 100, 500),
        ("failed", 100, 500),
        ("partly", 100, 500),
        ("done", 700, 0),
        ("nothing", 100, 0),
        ("refused", 100, 0),
        ("done", -50, 600),  # a clock that was put back
    ],
)
def test_plan_waits_for_the_cool_down_after_a_try(outcome: str, ago: float, waits: float) -> None:
    state = State(NOW, [Try(plan.LOG_ROTATION, NOW - ago, outcome)])
    step = step_of(plan.LOG_ROTATION, [check("disk", remedy="log_rotate")], Allowed(), state)
    assert step.waits_until == (NOW + waits if waits else 0)
    assert bool(step.refused) is bool(waits)
    assert not waits or "the cool-down of 600 s lasts" in step.refused
    forced = step_of(plan.LOG_ROTATION, [check("disk", remedy="log_rotate")], Allowed(ignore_cooldown=True), state)
    assert not forced.refused


def test_plan_doubles_the_cool_down_until_a_try_helps() -> None:
    failed = [Try(plan.LOG_ROTATION, NOW - 1000 * number - 10, "partly") for number in range(3)]
    disk = [check("disk", remedy="log_rotate")]
    step = step_of(plan.LOG_ROTATION, disk, Allowed(), State(NOW, failed))
    assert step.waits_until == NOW - 10 + 2400 and "for the 3rd time without success" in step.refused
    helped = [Try(plan.LOG_ROTATION, NOW - 5, "done"), *failed]
    assert step_of(plan.LOG_ROTATION, disk, Allowed(), State(NOW, helped)).waits_until == NOW - 5 + 600


def test_plan_keeps_the_budget_even_where_the_cool_down_is_ignored() -> None:
    tries = [Try(plan.DISK_CLEANUP, NOW - 100 * number, "done") for number in range(1, 4)]
    allowed = Allowed(ignore_cooldown=True, policy=Policy(budget=3))
    step = step_of(plan.DISK_CLEANUP, [check("disk", remedy="disk_cleanup")], allowed, State(NOW, tries))
    assert "budget of 3 tries in 3600 s is spent" in step.refused and step.waits_until == NOW - 300 + 3600
    assert not step_of(
        plan.DISK_CLEANUP, [check("disk", remedy="disk_cleanup")], allowed, State(NOW, tries[:2])
    ).refused


def test_plan_waits_for_a_second_measurement() -> None:
    checks = [check("disk", remedy="disk_cleanup"), check("memory", remedy="memory_trim")]
    assert plan.to_confirm(checks, Policy()) == ["disk", "memory"]
    assert plan.to_confirm(checks, Policy(confirm_after=0)) == []
    steps = plan.plan(checks, Allowed(), State(NOW, confirmed=()))
    assert {step.waits_until for step in steps} == {NOW + 5}
    second = [check("disk", "ok"), check("memory", remedy="memory_trim")]
    merged = plan.confirm(checks, second)
    assert [each["status"] for each in merged] == ["ok", "critical"]
    steps = plan.plan(merged, Allowed(), State(NOW, confirmed=["memory"]))
    assert [(step.remedy, step.refused) for step in steps] == [(plan.MEMORY_CLEANUP, "")]


WRITES = [("refused: OOM", BROKER), ("refused: MISCONF", BROKER), ("accepted", ()), ("not tried", ()), ("", ())]


@pytest.mark.parametrize(("writes", "left"), WRITES)
def test_plan_restarts_no_broker_while_redis_refuses_writes(writes: str, left: t.Tuple[str, ...]) -> None:
    checks = [redis(writes), services("pam-backend", "worker")]
    assert step_of(plan.SERVICE_RESTART, checks, Allowed(SERVICES)).without == left
    assert (
        step_of(plan.MEMORY_CLEANUP, [*checks, check("memory", remedy="memory_trim")], Allowed(SERVICES)).without
        == left
    )


def test_plan_refuses_a_restart_where_only_the_broker_is_down() -> None:
    for allowed in (Allowed(SERVICES), Allowed([SERVICES[0], SERVICES[2]])):
        step = step_of(plan.SERVICE_RESTART, [redis("refused: OOM"), services("worker")], allowed)
        assert "Redis takes no writes (refused: OOM)" in step.refused and "make it worse" in step.refused
        assert "redis is critical." in step.advice


@pytest.mark.parametrize(
    ("writes", "value", "reason"),
    [
        ("accepted", 3, ""),
        ("refused: OOM", 3, ""),
        ("refused: OOM", 0, "No cache key is without an expiry"),
        ("refused: MISCONF", 3, "nothing in it can be removed"),
    ],
)
def test_plan_clears_the_cache_where_that_can_help(writes: str, value: int, reason: str) -> None:
    step = step_of(plan.CACHE_CLEAR, [redis(writes, value=value)], Allowed(SERVICES))
    assert (reason in step.refused) if reason else not step.refused


def test_plan_says_why_a_service_that_is_down_is_not_restarted() -> None:
    """Whatever else fails since it is down: restarting the others, which are healthy, would not help."""
    checks = [check("http", remedy="service_restart"), services("pam-backend")]
    blocked = State(NOW, restarts={"pam-backend": Blocked("its budget is spent", NOW + 60)})
    (step,) = plan.plan(checks, Allowed(SERVICES), blocked)
    assert step.refused == "pam-backend is not restarted: its budget is spent." and step.waits_until == NOW + 60
    (step,) = plan.plan(
        [check("http", remedy="service_restart"), services("pam-backend", "nginx")], Allowed(SERVICES), blocked
    )
    assert not step.refused and "pam-backend" in step.without
    assert "pam-backend is not restarted: its budget is spent." in step.advice


def test_plan_leaves_out_what_depends_on_a_service_that_may_not_be_restarted() -> None:
    state = State(NOW, restarts={"worker": Blocked("its budget is spent", NOW + 90)})
    step = step_of(plan.SERVICE_RESTART, [services("worker", "nginx")], Allowed(SERVICES), state)
    assert not step.refused and step.without == ("planner", "worker")
    assert [each["name"] for each in plan.remaining_services(SERVICES, step.without)] == [
        "redis",
        "pam-backend",
        "celery-emails",
        "nginx",
    ]
    step = step_of(plan.SERVICE_RESTART, [services("worker")], Allowed(SERVICES), state)
    assert step.refused == "worker is not restarted: its budget is spent." and step.waits_until == NOW + 90


@pytest.mark.parametrize(
    ("allowed", "details", "reason"),
    [
        (Allowed(SERVICES), {"host_percent": 99.0, "services_percent": 9.0}, ""),
        (Allowed(SERVICES), {"host_percent": 99.0, "services_percent": 80.0}, "The services themselves use 80 of 99 %"),
        (Allowed(), {"host_percent": 99.0}, "the backend itself could be slowed down"),
        (Allowed(SERVICES, forbidden={plan.CPU_RELIEF}), {}, "is switched off (recovery.relieve_cpu)."),
    ],
)
def test_plan_relieves_the_cpu_only_of_others(allowed: Allowed, details: t.Dict[str, t.Any], reason: str) -> None:
    checks = [check("cpu", remedy="celery_throttle", **details)]
    step = step_of(plan.CPU_RELIEF, checks, allowed)
    assert (reason in step.refused) if reason else not step.refused
    assert not step_of(plan.BACKGROUND_THROTTLE, checks, allowed).refused


def test_plan_ends_a_relief_when_its_time_is_over() -> None:
    assert plan.plan([check("cpu", "ok")], Allowed(), State(NOW, relief_ends=NOW + 1)) == []
    assert plan.plan([check("cpu", "ok")], Allowed(), State(NOW, relief_ends=NOW - 1)) == [
        Step(plan.CPU_RELIEF_END, ("cpu",)),
    ]
    again = [check("cpu", remedy="celery_throttle", host_percent=99.0)]
    names = [step.remedy for step in plan.plan(again, Allowed(SERVICES), State(NOW, relief_ends=NOW - 1))]
    assert names == [plan.CPU_RELIEF, plan.BACKGROUND_THROTTLE], "a new relief puts back what is due itself"


@pytest.mark.parametrize("name", ["cors", "websocket", "cpu"])
def test_plan_says_deploy_where_files_are_missing(name: str) -> None:
    (step,) = plan.plan([check(name, remedy="managed_files")], Allowed(SERVICES), HEALTHY)
    assert (step.remedy, step.advice) == (plan.DEPLOY, "Run ansible-playbook -i INVENTORY playbooks/deploy.yml.")
    assert step.refused


@pytest.mark.parametrize(
    ("asker", "forbidden"),
    [
        (check("cors", remedy="managed_files"), ()),
        (check("tts", remedy="tts_engine"), {plan.SPEECH_ENGINE}),
        (redis(), {plan.CACHE_CLEAR}),
    ],
)
def test_plan_begins_a_deployment_only_where_that_is_allowed(
    asker: t.Dict[str, t.Any], forbidden: t.Collection[str]
) -> None:
    (refused,) = plan.plan([asker], Allowed(SERVICES, forbidden=forbidden), HEALTHY)
    assert refused.refused and refused.advice == "Run ansible-playbook -i INVENTORY playbooks/deploy.yml."
    (begun,) = plan.plan([asker], Allowed(SERVICES, forbidden=forbidden, deploys=True), HEALTHY)
    assert (begun.remedy, begun.subjects, begun.refused) == (plan.DEPLOY, (asker["name"],), "")
    deployed = State(NOW, tries=[Try(plan.DEPLOY, NOW - 30, "failed")])
    (waits,) = plan.plan([asker], Allowed(SERVICES, forbidden=forbidden, deploys=True), deployed)
    assert "cool-down" in waits.refused


def test_plan_deploys_after_the_restart_where_a_file_is_not_as_deployed() -> None:
    state = State(NOW, drifted=("/srv/app/main.py",))
    restart, deploy = plan.plan([services("pam-backend")], Allowed(SERVICES, caller=plan.PLAYBOOK), state)
    assert (restart.remedy, restart.refused, deploy.remedy) == (plan.SERVICE_RESTART, "", plan.DEPLOY)
    for words in ("/srv/app/main.py", "wheels_ops_recover_deploys", "wheels_ops_force=true"):
        assert words in deploy.refused
    assert [step.refused for step in plan.plan([services("nginx")], Allowed(SERVICES, deploys=True), state)] == ["", ""]
    assert plan.plan([], Allowed(SERVICES, deploys=True), state) == [], "nothing fails for it"


def test_plan_installs_speech_engines_only_where_that_is_allowed() -> None:
    checks = [check("tts", remedy="tts_engine")]
    assert not step_of(plan.SPEECH_ENGINE, checks, Allowed()).refused
    for caller, option in ((plan.PROGRAM, "recovery.install_speech"), (plan.PLAYBOOK, "recovery_install_speech")):
        step = step_of(plan.SPEECH_ENGINE, checks, Allowed(forbidden={plan.SPEECH_ENGINE}, caller=caller))
        assert f"({option})" in step.refused and "deploy.yml" in step.advice


def test_plan_says_that_nothing_is_changed_for_what_could_not_be_measured() -> None:
    (step,) = plan.plan([check("database", "unknown", "sql_script")], Allowed(), HEALTHY)
    assert (step.remedy, step.advice) == ("", "database is unknown.") and "could not be measured" in step.refused
