# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check is, and how several are measured side by side."""

from __future__ import annotations

import socket
import threading
import types
import typing as t

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.health import check as health
from wheels_ops.health.check import Check, Finding
from wheels_ops.health.thresholds import Thresholds

LIMITS = Thresholds(10, 20)


def test_a_check_that_says_nothing_else_names_no_remedy() -> None:
    assert Check("x", "ok").as_dict() == {
        "name": "x",
        "status": "ok",
        "value": None,
        "unit": "",
        "thresholds": {},
        "message": "",
        "remedy": "",
        "duration_ms": 0.0,
        "details": {},
    }


def test_what_could_not_be_measured_says_why() -> None:
    check = health.unknown("x", "No such thing.", path="/x")
    assert (check.name, check.status, check.value, check.message, check.remedy) == (
        "x",
        "unknown",
        None,
        "No such thing.",
        "",
    )
    assert check.details == {"path": "/x"}


@pytest.mark.parametrize(
    ("value", "status", "remedy"),
    [(10, "ok", ""), (11, "warning", "cure"), (21, "critical", "cure")],
)
def test_a_remedy_is_named_only_where_one_is_needed(value: float, status: str, remedy: str) -> None:
    assert health.graded("x", value, "%", LIMITS, message="So much.", remedy="cure", path="/x").as_dict() == {
        "name": "x",
        "status": status,
        "value": value,
        "unit": "%",
        "thresholds": {"warning": 10, "critical": 20, "emergency": None},
        "message": "So much.",
        "remedy": remedy,
        "duration_ms": 0.0,
        "details": {"path": "/x"},
    }


def test_checks_come_in_the_order_of_their_subjects_under_the_names_of_these() -> None:
    first_may_end = threading.Event()

    def slow() -> Check:
        assert first_may_end.wait(20)
        return Check("anything", "critical", 7, "%", {"warning": 1}, "Bad.", "cure", details={"a": 1})

    def quick() -> Check:
        first_may_end.set()
        return Check("anything", "ok")

    checks = health.measure({"slow": slow, "quick": quick}, timeout=30)
    assert [check.name for check in checks] == ["slow", "quick"]
    expected = {
        "name": "slow",
        "status": "critical",
        "value": 7,
        "unit": "%",
        "thresholds": {"warning": 1},
        "message": "Bad.",
        "remedy": "cure",
    }
    assert {**checks[0].as_dict(), **expected, "details": {"a": 1}} == checks[0].as_dict()


def test_a_duration_is_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.34567, 200.0, 200.0])
    monkeypatch.setattr(health, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    assert health._timed("x", lambda: Check("x", "ok")).duration_ms == 2345.7
    assert health._timed("x", lambda: Check("x", "ok", duration_ms=9)).duration_ms == 0


def _raise(error: Exception) -> t.Callable[[], Check]:
    def subject() -> Check:
        raise error

    return subject


def test_a_subject_that_raises_is_unknown_with_its_reason_and_the_others_are_measured() -> None:
    subjects = {
        "refused": _raise(OpsError("It refuses us.", hint="Give a token.", path="/x")),
        "broken": _raise(ZeroDivisionError("of seven")),
        "fine": lambda: Check("fine", "ok", 1),
    }
    refused, broken, fine = health.measure(subjects)
    assert (refused.name, refused.status, refused.message, refused.details) == (
        "refused",
        "unknown",
        "It refuses us. Give a token.",
        {"path": "/x"},
    )
    assert (broken.name, broken.status, broken.message) == ("broken", "unknown", "ZeroDivisionError: of seven")
    assert (fine.name, fine.status, fine.value) == ("fine", "ok", 1)


def test_the_time_limit_counts_for_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of those that hang would otherwise be given the whole limit once more."""
    never = threading.Event()
    waits: t.List[t.Optional[float]] = []
    real = threading.Thread.join

    def join(thread: threading.Thread, timeout: t.Optional[float] = None) -> None:
        waits.append(timeout)
        real(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join)

    def hang() -> Check:
        never.wait(60)
        return Check("x", "ok")

    try:
        checks = health.measure({"a": hang, "b": hang, "c": hang}, timeout=0.3)
    finally:
        never.set()
    assert [(check.name, check.status) for check in checks] == [("a", "unknown"), ("b", "unknown"), ("c", "unknown")]
    assert {check.message for check in checks} == {"No answer within 0.3 s."}
    assert waits[0] is not None and 0 <= waits[0] <= 0.3 and waits[1:] == [0, 0]


def test_nothing_to_measure() -> None:
    assert health.measure({}) == []
    assert health.overall([]) == "unknown"


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        (["ok", "skipped"], "ok"),
        (["skipped"], "unknown"),
        (["ok", "warning", "critical"], "critical"),
        (["ok", "unknown"], "unknown"),
    ],
)
def test_the_whole_is_as_bad_as_the_worst_that_was_measured(statuses: t.List[str], worst: str) -> None:
    assert health.overall(Check("x", status) for status in statuses) == worst


def test_every_subject_has_a_thread_of_its_own() -> None:
    """More than a pool has of itself on any machine (32)."""
    meet = threading.Barrier(40, timeout=30)
    checks = health.measure({str(number): lambda: Check("x", "ok", meet.wait()) for number in range(40)})
    assert {check.status for check in checks} == {"ok"}


def test_a_library_that_is_not_installed_is_named() -> None:
    (check,) = health.measure({"x": _raise(ModuleNotFoundError("No module named 'redis'", name="redis"))})
    assert (check.name, check.status) == ("x", "unknown")
    assert "library redis is not installed" in check.message


FINDINGS = [
    Finding("warning", "it is slow", "tune"),
    Finding("critical", "it is full.", "empty"),
    Finding("ok", "it is blue"),
    Finding("unknown", "it is dark"),
]


@pytest.mark.parametrize(
    ("findings", "status", "message", "remedy"),
    [
        (FINDINGS, "critical", "It is full; it is dark; it is slow; it is blue.", "empty"),
        (FINDINGS[:1], "warning", "It is slow.", "tune"),
        (FINDINGS[2:3], "ok", "All is well; it is blue.", ""),
        (FINDINGS[2:], "unknown", "It is dark; it is blue.", ""),
        ([Finding("skipped", "nobody asked", "x")], "ok", "All is well; nobody asked.", ""),
        ([], "ok", "All is well.", ""),
        ([Finding("critical", "celery-1 is down")], "critical", "celery-1 is down.", ""),
    ],
)
def test_the_worst_finding_is_the_subject_of_the_message(
    findings: t.List[Finding],
    status: str,
    message: str,
    remedy: str,
) -> None:
    check = health.conclude("x", findings, fine="all is well", value=7, unit="%", details={"a": 1})
    assert (check.name, check.status, check.message, check.remedy) == ("x", status, message, remedy)
    assert (check.value, check.unit, check.details) == (7, "%", {"a": 1})


def _chained(
    outer: Exception,
    *,
    cause: t.Optional[Exception] = None,
    context: t.Optional[Exception] = None,
) -> Exception:
    outer.__cause__, outer.__context__ = cause, context
    return outer


class _Reasoned(Exception):
    def __init__(self, reason: t.Any) -> None:
        super().__init__("wrapped")
        self.reason = reason


NAME, RIGHT, REFUSED = (
    socket.gaierror(-2, "Name or service not known"),
    PermissionError(13, "Permission denied"),
    ConnectionRefusedError(111, "refused"),
)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (NAME, True),
        (RIGHT, True),
        (REFUSED, False),
        (None, False),
        (OSError(5, "Input/output error"), False),
        (Exception("of", "text"), False),
        (_chained(Exception(), cause=NAME), True),
        (_chained(Exception(), context=RIGHT), True),
        (_chained(Exception(), cause=REFUSED), False),
        (Exception("text", NAME), True),
        (_Reasoned(NAME), True),
        (_Reasoned("a text"), False),
        (Exception(Exception(_Reasoned(RIGHT))), True),
        (_chained(_Reasoned("a text"), context=NAME), True),
        (_chained(Exception(), cause=REFUSED, context=NAME), False),
    ],
)
def test_a_name_that_does_not_resolve_or_a_right_that_we_lack_is_ours(error: t.Optional[Exception], ours: bool) -> None:
    assert health.is_ours(error) is ours


def test_errors_that_go_round_in_a_circle_end() -> None:
    first, second = Exception(), Exception()
    first.__cause__, second.__cause__ = second, first
    assert health.is_ours(first) is False
