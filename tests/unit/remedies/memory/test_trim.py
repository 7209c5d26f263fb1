# SPDX-License-Identifier: GPL-3.0-or-later
"""When the ladder is climbed, and how far."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support.recorded_host import scope
from wheels_ops.host import memory_pressure
from wheels_ops.remedies.memory import steps, trim


@pytest.mark.parametrize(
    ("scopes", "restarted"),
    [
        ([scope(97.0, 0.0)], False),
        ([scope(97.0, 9.9)], False),
        ([scope(97.0, 40.0)], True),
        ([scope(89.0, 40.0)], False),
        ([scope(97.0, None)], False),
        ([scope(97.0, None, {"max": number}) for number in range(20)], True),
    ],
    ids=["calm", "nearly calm", "pressure", "pressure below the tier", "the kernel does not say", "limits are met"],
)
def test_a_percentage_alone_restarts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scopes: t.List[memory_pressure.Scope], restarted: bool
) -> None:
    """The whole ladder on a machine that is given; a restart is what the last rung asks for."""
    acted: t.List[str] = []

    class Last(steps.Rung):
        replaces = True

        def targets(self, context: steps.Context, among: t.Sequence[str]) -> t.List[str]:
            return ["web"]

        def act(self, context: steps.Context, target: str, emergency: bool) -> steps.Outcome:
            acted.append(target)
            return steps.Outcome(replaced=True)

    waiting = list(scopes)
    monkeypatch.setattr(trim.memory_pressure, "host", lambda: waiting.pop(0) if len(waiting) > 1 else waiting[0])
    monkeypatch.setattr(trim.memory_pressure, "cgroup", lambda *words: None)
    monkeypatch.setattr(trim, "_WATCHED", 0.01)
    monkeypatch.setitem(steps.RUNGS, "restart", Last())
    options = trim.Options(actions=("restart",), allow_restart=True, state_dir=str(tmp_path))
    foreseen = trim.run([], None, {}, options, check_mode=True)
    assert acted == []
    done = trim.run([], None, {}, options)
    assert (acted == ["web"]) is restarted
    assert done.changed is foreseen.changed is restarted
    if scopes[0].percent > 90 and not restarted:
        assert "a percentage alone restarts nothing" in done.msg and "skipped" in done.actions[0]


def test_pressure_below_the_warning_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trim.memory_pressure, "host", lambda: scope(20.0, 70.0))
    monkeypatch.setattr(trim.memory_pressure, "cgroup", lambda *words: None)
    done = trim.run([], None, {}, trim.Options(state_dir=str(tmp_path)))
    assert not done.changed and "the host, at 20.0 %, is under pressure: all tasks waited for memory 70.0 %" in done.msg
