# SPDX-License-Identifier: GPL-3.0-or-later
"""How the services check grades: the manager's words and the gates' are given."""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.checks import services
from wheels_ops.core.results import OpsError
from wheels_ops.services.gates import Seen
from wheels_ops.services.model import Service, ServiceState

NAMES = ("redis", "web", "worker")


class Manager:
    """A service manager by its answers."""

    name = "supervisord"

    def __init__(self) -> None:
        self.known = {
            name: ServiceState(name, exists=True, running=True, state="RUNNING", pid=5, uptime_s=50.0, restarts=0)
            for name in NAMES
        }
        self.seen: t.Dict[str, t.Union[Seen, Exception]] = {}
        self.again: t.Dict[str, int] = {}
        self.asked: t.List[t.Tuple[str, float]] = []

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        return {unit: self.known[unit] for unit in units}

    def automatic_restarts(self, unit: str, seconds: float) -> int:
        self.asked.append((unit, seconds))
        return self.again.get(unit, 0)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    control = Manager()

    def probe(service: Service, state: ServiceState, asked: t.Any) -> Seen:
        assert asked is control and state.unit == service.unit
        answer = control.seen.get(service.name, Seen(True))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(services, "open_manager", lambda *words, **options: control)
    monkeypatch.setattr(services.gates, "probe", probe)
    return control


def check(**options: t.Any) -> t.Any:
    return services.check([{"name": name} for name in NAMES], **options)


def test_all_are_well(manager: Manager) -> None:
    found = check()
    assert (found.name, found.status, found.value, found.unit, found.remedy) == ("services", "ok", 100.0, "percent", "")
    assert found.message == "All 3 services are healthy."
    assert found.details["manager"] == "supervisord"
    assert found.details["services"]["web"] == {
        "state": "RUNNING",
        "pid": 5,
        "uptime_s": 50.0,
        "restarts": 0,
        "status": "ok",
        "why": "",
        "healthy": True,
    }
    assert manager.asked == [(name, 3600.0) for name in NAMES]


@pytest.mark.parametrize(
    ("seen", "status", "value", "remedy"),
    [
        (Seen(False, "its reason"), "critical", 66.7, "service_restart"),
        (OpsError("its reason"), "unknown", 66.7, ""),
        (Seen(False, "its reason", unfinished=True), "warning", 100.0, ""),
        (Seen(True, "its reason"), "ok", 100.0, ""),
    ],
)
def test_one_gate(manager: Manager, seen: t.Union[Seen, Exception], status: str, value: float, remedy: str) -> None:
    manager.seen["worker"] = seen
    found = check()
    assert (found.status, found.value, found.remedy) == (status, value, remedy)
    assert "worker: its reason" in found.message
    assert found.details["services"]["worker"]["status"] == status
    assert found.details["services"]["worker"]["healthy"] is (status in ("ok", "warning"))
    assert (found.message.startswith("All 3 services are healthy.")) is (status == "ok")


def test_the_worst_decides_and_every_reason_is_said(manager: Manager) -> None:
    manager.seen = {"redis": OpsError("nobody may look"), "web": Seen(False, "busy", unfinished=True)}
    found = check()
    assert found.status == "unknown" and found.remedy == ""
    manager.seen["worker"] = Seen(False, "down")
    found = check()
    assert (found.status, found.value, found.remedy) == ("critical", 33.3, "service_restart")
    assert found.message == "worker: down; redis: nobody may look; web: busy"


def test_what_its_manager_does_not_know(manager: Manager) -> None:
    manager.known["web"] = ServiceState("web")
    manager.seen["web"] = AssertionError("it is not probed")
    found = check()
    assert found.status == "critical" and found.message == "web: supervisord does not know it"


@pytest.mark.parametrize(
    ("uptime", "least", "status"),
    [(50.0, 0.0, "ok"), (50.0, 50.0, "ok"), (49.9, 50.0, "warning"), (None, 50.0, "ok"), (0.0, 1.0, "warning")],
)
def test_a_service_that_was_just_started(
    manager: Manager, uptime: t.Optional[float], least: float, status: str
) -> None:
    manager.known["web"] = ServiceState("web", exists=True, running=True, state="RUNNING", uptime_s=uptime)
    found = check(min_uptime=least)
    assert found.status == status and found.value == 100.0 and found.remedy == ""
    assert ("web: runs for" in found.message) is (status == "warning")


def test_no_uptime_is_asked_for_where_none_is_given(manager: Manager) -> None:
    manager.known["web"] = ServiceState("web", exists=True, running=True, state="RUNNING", uptime_s=0.5)
    assert check().status == "ok"


def test_automatic_restarts_of_the_last_hour(manager: Manager) -> None:
    manager.again["web"] = 1
    found = check()
    assert (
        found.status == "warning"
        and found.message == "web: supervisord had to start it again 1 times within the last hour"
    )
    manager.seen["web"] = Seen(False, "down")
    assert check().message == "web: down", "one that is down has another reason"


def test_a_manager_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: t.Any, **options: t.Any) -> t.Any:
        raise OpsError("No manager.", hint="Start one.")

    monkeypatch.setattr(services, "open_manager", refuse)
    found = check()
    assert (found.name, found.status, found.message) == ("services", "unknown", "No manager. Start one.")
