# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a restart is a pure function: order, only what must, what depends on it, each once."""

from __future__ import annotations

import itertools
import random
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wheels_ops.core.results import OpsError
from wheels_ops.remedies import restart_plan
from wheels_ops.services.model import Gate, Service, ServiceState

REPORT = [
    Service("redis", "redis-server", Gate("redis", url="redis://127.0.0.1/0")),
    Service("pam-backend", "pam-backend", Gate("http", url="http://127.0.0.1/"), ("redis",)),
    Service("celery-worker", "celery-worker", Gate("celery", url="redis://127.0.0.1/0"), ("redis",)),
    Service("celery-beat", "celery-beat", Gate("beat"), ("celery-worker",)),
]


def state(unit: str, word: str = "RUNNING") -> ServiceState:
    up = word in ("RUNNING", "STARTING")
    return ServiceState(
        unit,
        exists=True,
        running=word == "RUNNING",
        settled=word != "STARTING",
        state=word,
        instance="1@1" if up else "",
    )


def states(services: t.Sequence[Service], **words: str) -> t.Dict[str, ServiceState]:
    return {
        service.unit: state(service.unit, words.get(service.name.replace("-", "_"), "RUNNING")) for service in services
    }


def verbs(steps: t.Sequence[restart_plan.Step]) -> t.List[t.Tuple[str, str]]:
    return [(step.action, step.service.name) for step in steps]


def test_the_order_of_the_report_with_tasks_held_still_below() -> None:
    assert verbs(restart_plan.plan(REPORT, states(REPORT))) == [
        ("pause", "celery-beat"),
        ("pause", "celery-worker"),
        ("restart", "redis"),
        ("restart", "pam-backend"),
        ("start", "celery-worker"),
        ("start", "celery-beat"),
    ]


def test_only_what_must_and_what_depends_on_it() -> None:
    assert verbs(restart_plan.plan(REPORT, states(REPORT), targets=["pam-backend"])) == [("restart", "pam-backend")]
    assert verbs(restart_plan.plan(REPORT, states(REPORT), targets=["celery-worker"])) == [
        ("restart", "celery-worker"),
        ("restart", "celery-beat"),
    ]
    assert verbs(restart_plan.plan(REPORT, states(REPORT), targets=["celery-worker"], with_dependents=False)) == [
        ("restart", "celery-worker")
    ]
    steps = restart_plan.plan(REPORT, states(REPORT), only_if=["stale"], stale={"celery-worker": "its code is newer"})
    assert verbs(steps) == [("restart", "celery-worker"), ("restart", "celery-beat")]
    assert [step.reason for step in steps] == ["its code is newer", "depends on celery-worker"]
    assert restart_plan.plan(REPORT, states(REPORT), only_if=["failed", "stopped", "stale", "unhealthy"]) == []


def test_reasons() -> None:
    now = states(REPORT, pam_backend="FATAL", celery_beat="STOPPED")
    assert verbs(restart_plan.plan(REPORT, now, only_if=["failed"])) == [("start", "pam-backend")]
    assert verbs(restart_plan.plan(REPORT, now, only_if=["stopped"])) == [
        ("start", "pam-backend"),
        ("start", "celery-beat"),
    ]
    assert verbs(
        restart_plan.plan(REPORT, now, only_if=["unhealthy"], unhealthy={"redis": "no PONG"}, targets=["redis"])
    ) == [
        ("pause", "celery-worker"),
        ("restart", "redis"),
        ("start", "celery-worker"),
    ]


def test_started_leaves_alone_what_runs() -> None:
    assert restart_plan.plan(REPORT, states(REPORT), state="started") == []
    assert verbs(restart_plan.plan(REPORT, states(REPORT, redis="STOPPED"), state="started")) == [("start", "redis")]


@pytest.mark.parametrize("word", ["STARTING", "BACKOFF"])
def test_what_is_on_its_way_up_is_replaced_not_joined(word: str) -> None:
    assert verbs(restart_plan.plan(REPORT, states(REPORT, pam_backend=word), targets=["pam-backend"])) == [
        ("restart", "pam-backend")
    ]


def test_a_stopped_dependent_stays_stopped_unless_it_is_chosen() -> None:
    now = states(REPORT, celery_beat="STOPPED")
    assert verbs(restart_plan.plan(REPORT, now, targets=["celery-worker"])) == [("restart", "celery-worker")]


def test_a_diamond_is_restarted_once() -> None:
    graph = [
        Service("d", "d", Gate(), ("b", "c")),
        Service("c", "c", Gate(), ("a",)),
        Service("b", "b", Gate(), ("a",)),
        Service("a", "a"),
    ]
    assert verbs(restart_plan.plan(graph, states(graph), targets=["a", "b"])) == [
        ("restart", "a"),
        ("restart", "b"),
        ("restart", "c"),
        ("restart", "d"),
    ]


def test_circles_strangers_and_unknown_targets_are_refused() -> None:
    circle = [Service("a", "a", Gate(), ("b",)), Service("b", "b", Gate(), ("c",)), Service("c", "c", Gate(), ("a",))]
    with pytest.raises(OpsError, match="a -> b -> c -> a"):
        restart_plan.plan(circle, states(circle))
    with pytest.raises(OpsError, match="nobody"):
        restart_plan.plan(REPORT, states(REPORT), targets=["nobody"])
    now = {**states(REPORT), "pam-backend": ServiceState("pam-backend", state="not-found")}
    with pytest.raises(OpsError, match="does not know pam-backend"):
        restart_plan.plan(REPORT, now)


@given(st.integers(2, 8), st.randoms(use_true_random=False))
def test_every_graph(count: int, chance: random.Random) -> None:
    """For any graph without a circle and any targets: dependencies first, nobody twice, exactly the targets and what is
    above them.
    """
    names = [f"s{number}" for number in range(count)]
    graph = [
        Service(
            name,
            name,
            Gate(chance.choice(["state", "redis", "celery", "beat"])),
            tuple(sorted(chance.sample(names[:number], chance.randint(0, min(number, 3))))),
        )
        for number, name in enumerate(names)
    ]
    chance.shuffle(graph)
    targets = chance.sample(names, chance.randint(1, count))
    steps = restart_plan.plan(graph, states(graph), targets=targets)
    acted = [step.service.name for step in steps if step.action != "pause"]
    paused = [step.service.name for step in steps if step.action == "pause"]
    assert len(acted) == len(set(acted))
    assert len(paused) == len(set(paused))
    assert set(acted) == set(targets) | restart_plan.dependents(graph, targets)
    assert [step.action for step in steps] == sorted(
        (step.action for step in steps), key=lambda action: action != "pause"
    )
    by_name = {service.name: service for service in graph}
    for earlier, later in itertools.combinations(acted, 2):
        assert later not in by_name[earlier].depends_on
    for step in steps:
        assert (step.action == "start") == (step.service.name in paused) or step.action == "pause"
