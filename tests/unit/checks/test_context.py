# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of one run share: one look at the services, whoever asks for it and however often."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
import typing as t

import pytest

from wheels_ops.checks import cpu, memory, suite
from wheels_ops.checks import services as services_check
from wheels_ops.checks.context import HostContext, Once, Options
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check
from wheels_ops.health.thresholds import Thresholds
from wheels_ops.services import gates, model
from wheels_ops.services.model import Service, ServiceState

SERVICES = ({"name": "web", "unit": "web.service"}, {"name": "worker"})


class Manager:
    """A service manager that counts: ``web.service`` runs as 7, ``worker`` is down."""

    name = "stub"

    def __init__(self) -> None:
        self.calls: t.Counter[str] = collections.Counter()

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        self.calls["states"] += 1
        return {
            unit: ServiceState(unit, exists=True, running=True, pid=7 if unit == "web.service" else 0) for unit in units
        }

    def pids(self, state: ServiceState) -> t.Set[int]:
        self.calls["pids"] += 1
        return {state.pid, 8}

    def automatic_restarts(self, _unit: str, _seconds: float) -> int:
        return 0


def context_of(manager: Manager) -> HostContext:
    return HostContext([Service("web", "web.service"), Service("worker", "worker")], lambda: t.cast("t.Any", manager))


def test_limits_are_those_of_the_report_unless_others_are_given() -> None:
    assert Options().limits("cpu") == Thresholds(70, 85)
    assert Options(thresholds={"cpu": Thresholds(1, 2)}).limits("cpu") == Thresholds(1, 2)


def test_once_in_many_threads() -> None:
    """While the first call lasts nobody else begins one, and everybody has its result."""
    second_call = threading.Barrier(2)
    start = threading.Barrier(4)

    def call() -> t.List[int]:
        with pytest.raises(threading.BrokenBarrierError):
            second_call.wait(timeout=0.3)
        return []

    once = Once(call)

    def ask() -> t.List[int]:
        start.wait(timeout=30)
        return once()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(ask) for _number in range(4)]]
    assert all(result is results[0] for result in results)


def test_once_raises_its_error_again() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise OpsError("No manager.")

    once = Once(call)
    for _number in range(3):
        with pytest.raises(OpsError, match=r"No manager\."):
            once()
    assert calls == [1]


def test_context_looks_up_once() -> None:
    manager = Manager()
    context = context_of(manager)
    assert context.pids() == context.pids() == {"web": {7, 8}}
    assert set(context.states()) == {"web.service", "worker"}
    assert manager.calls == {"states": 1, "pids": 1}


def test_context_without_services_asks_nobody() -> None:
    def refuse() -> t.NoReturn:
        raise AssertionError("There is nothing to be asked for.")

    context = HostContext((), refuse)
    assert (context.states(), context.pids()) == ({}, {})


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> t.Counter[str]:
    """How often a run opens the manager and parses the services; every readiness check passes."""
    calls: t.Counter[str] = collections.Counter()
    manager = Manager()
    manager.calls = calls

    def open_manager(*_words: t.Any, **_options: t.Any) -> Manager:
        calls["open_manager"] += 1
        return manager

    def parse(raw: t.Any) -> t.Any:
        calls["parse_services"] += 1
        return model.parse_services(raw)

    for module in (suite, services_check):
        monkeypatch.setattr(module, "open_manager", open_manager)
    for module in (suite, services_check):
        monkeypatch.setattr(module, "parse_services", parse)
    monkeypatch.setattr(gates, "probe", lambda *_words: gates.Seen(True))
    monkeypatch.setattr(cpu, "check", lambda pids, **_options: Check("cpu", "ok", value=sorted(pids)))
    monkeypatch.setattr(memory, "check", lambda groups, *_words, **_options: Check("memory", "ok", value=dict(groups)))
    return calls


def test_run_opens_the_manager_once(counts: t.Counter[str]) -> None:
    health = suite.run(suite.Options(subjects=("memory", "cpu", "services"), services=SERVICES))
    values = {check["name"]: check["value"] for check in health["checks"]}
    assert values == {"memory": {"web": {7, 8}}, "cpu": [7, 8], "services": 100.0}
    assert counts == {"parse_services": 1, "open_manager": 1, "states": 1, "pids": 1}


def test_run_looks_again_each_time(counts: t.Counter[str]) -> None:
    for _number in range(2):
        suite.run(suite.Options(subjects=("services",), services=SERVICES))
    assert counts == {"parse_services": 2, "open_manager": 2, "states": 2}


@pytest.fixture
def no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: t.Any, **_options: t.Any) -> t.NoReturn:
        raise OpsError("Neither systemd nor supervisord runs on this host.")

    monkeypatch.setattr(suite, "open_manager", refuse)
    details = {"host_percent": 9.0, "services_percent": 0.0}
    monkeypatch.setattr(cpu, "check", lambda *_words, **_options: Check("cpu", "ok", 9.0, details=details))


def run_of(scope: str = "host") -> t.Dict[str, t.Dict[str, t.Any]]:
    options = suite.Options(
        subjects=("memory", "cpu", "services"),
        services=SERVICES,
        scope=scope,
        memory_limits_mb={"web": 100},
    )
    return {check["name"]: check for check in suite.run(options)["checks"]}


@pytest.mark.usefixtures("no_manager")
@pytest.mark.parametrize(
    ("host", "status"),
    [("ok", "unknown"), ("warning", "unknown"), ("critical", "critical"), ("emergency", "emergency")],
)
def test_run_without_a_manager_grades_the_host(monkeypatch: pytest.MonkeyPatch, host: str, status: str) -> None:
    """The host's memory counts; that of the services was not measured, which is not healthy. CPU needs no manager."""
    arguments: t.List[t.Any] = []

    def check(*words: t.Any, **_options: t.Any) -> Check:
        arguments.extend(words)
        return Check("memory", host, 97.0, message="The host uses 97 %.")

    monkeypatch.setattr(memory, "check", check)
    checks = run_of()
    assert {name: each["status"] for name, each in checks.items()} == {
        "memory": status,
        "cpu": "ok",
        "services": "unknown",
    }
    assert checks["memory"]["value"] == 97.0 and arguments == [{}, {}]
    assert checks["memory"]["message"] == (
        "The host uses 97 %. The memory of the services was not measured: Neither systemd nor supervisord runs on this"
        " host."
    )
    assert checks["cpu"]["details"] == {"host_percent": 9.0, "services_percent": None}


@pytest.mark.usefixtures("no_manager")
def test_run_without_a_manager_knows_nothing_of_services_alone() -> None:
    assert {name: each["status"] for name, each in run_of("services").items()} == {
        "memory": "unknown",
        "cpu": "unknown",
        "services": "unknown",
    }


def test_the_password_of_the_manager_is_not_shown() -> None:
    assert "hidden-word" not in repr(Options(supervisor_password="hidden-word"))
