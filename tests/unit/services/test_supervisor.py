# SPDX-License-Identifier: GPL-3.0-or-later
"""A start that supervisord answers with SPAWN_ERROR.

Its answers are made here, as which one it gives depends on how busy the machine is.
"""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.services import supervisor
from wheels_ops.services.supervisor import SPAWN_ERROR, Supervisor

QUICK = "Exited too quickly (process log may have details)"


def supervisord(monkeypatch: pytest.MonkeyPatch, *states: t.Tuple[str, str]) -> Supervisor:
    """Answers ``startProcess`` with the fault, and is then in one state (name, spawnerr) after the other; the last one
    stays.
    """
    left = [("STOPPED", ""), ("STOPPED", ""), *states]

    def answer(method: str, *words: t.Any) -> t.Any:
        if method == "startProcess":
            raise OpsError("supervisord refuses startProcess.", fault=SPAWN_ERROR)
        name, error = left.pop(0) if len(left) > 1 else left[0]
        return [
            {
                "group": "web",
                "name": "web",
                "statename": name,
                "spawnerr": error,
                "pid": 7,
                "start": 1,
                "now": 2,
                "exitstatus": 1,
            }
        ]

    made = Supervisor("/nowhere", wait_sleep=0.001)
    monkeypatch.setattr(made, "_call", answer)
    return made


def test_a_program_that_ended_before_the_answer_is_begun_again_by_supervisord(monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (("BACKOFF", QUICK), ("STARTING", "")):
        control = supervisord(monkeypatch, first, ("BACKOFF", QUICK), ("STARTING", ""), ("RUNNING", ""))
        assert control.start("web", 10).state == "RUNNING"


def test_supervisord_that_gives_up_is_reported_as_where_the_program_ends_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpsError, match="gave up, FATAL .*Exited too quickly"):
        supervisord(monkeypatch, ("BACKOFF", QUICK), ("STARTING", ""), ("FATAL", QUICK)).start("web", 10)


def test_what_cannot_be_spawned_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpsError, match="refuses startProcess"):
        supervisord(monkeypatch, ("BACKOFF", "unknown error during fork"), ("RUNNING", "")).start("web", 10)


@pytest.mark.parametrize(
    ("name", "running", "failed", "up"),
    [
        ("RUNNING", True, False, True),
        ("STARTING", False, False, True),
        ("STOPPING", False, False, True),
        ("BACKOFF", False, True, True),
        ("FATAL", False, True, False),
        ("STOPPED", False, False, False),
        ("EXITED", False, False, False),
    ],
)
def test_states_of_supervisord(name: str, running: bool, failed: bool, up: bool) -> None:
    pid = 7 if name in ("RUNNING", "STARTING", "STOPPING") else 0
    info = {
        "statename": name,
        "pid": pid,
        "start": 100,
        "now": 130,
        "exitstatus": 0,
        "spawnerr": "",
        "group": "g",
        "name": "p",
    }
    found = supervisor.state_of("p", info)
    assert (found.running, found.failed, found.up) == (running, failed, up)
    assert found.uptime_s == (30 if running else None)
