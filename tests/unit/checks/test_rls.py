# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of the policies that recurse, and of those that could not be asked for."""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.checks import rls
from wheels_ops.core.results import OpsError
from wheels_ops.database import connect as postgres
from wheels_ops.rls.audit import oracle
from wheels_ops.rls.audit.oracle import Failure, Probe

DSN = "postgresql://owner@db/app"


def _failure(relation: str, sqlstate: str = "42P17", role: str = "authenticated", command: str = "select") -> Failure:
    return Failure(role=role, relation=relation, command=command, sqlstate=sqlstate, message="infinite recursion")


class Server:
    """Stands in for the database: answers with ``probe``, and remembers the question and its own end."""

    def __init__(self, probe: t.Union[Probe, Exception]) -> None:
        self.probe = probe
        self.asked: t.Dict[str, t.Any] = {}
        self.options: t.Dict[str, t.Any] = {}
        self.closed = 0

    def connect(self, dsn: str, **options: t.Any) -> Server:
        assert dsn == DSN
        self.options = options
        return self

    def close(self) -> None:
        self.closed += 1

    def answer(self, connection: t.Any, **options: t.Any) -> Probe:
        assert connection is self and not self.closed
        self.asked = options
        if isinstance(self.probe, Exception):
            raise self.probe
        return self.probe


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[t.Union[Probe, Exception]], Server]:
    def install(probe: t.Union[Probe, Exception]) -> Server:
        stand_in = Server(probe)
        monkeypatch.setattr(postgres, "connect", stand_in.connect)
        monkeypatch.setattr(oracle, "probe", stand_in.answer)
        return stand_in

    return install


Install = t.Callable[[t.Union[Probe, Exception]], Server]


def test_no_policy_recurses(server: Install) -> None:
    stand_in = server(Probe(36, []))
    check = rls.check(DSN, schemas=["public"], timeout=7)
    assert (check.name, check.status, check.value, check.unit, check.remedy) == ("rls", "ok", 0, "recursive tables", "")
    assert check.message == "No policy recurses (36 accesses asked)."
    assert check.details == {"checked": 36, "failing": [], "failing_total": 0}
    assert stand_in.asked == {"schemas": ["public"], "statement_timeout_ms": 7000}
    assert stand_in.closed == 1


def test_one_recursive_table_is_critical_and_counted_once(server: Install) -> None:
    server(Probe(36, [_failure("public.trips"), _failure("public.trips", command="update")]))
    check = rls.check(DSN)
    assert (check.status, check.value, check.remedy) == ("critical", 1, "rls_repair")
    assert check.message == "Infinite recursion (42P17) in public.trips."
    access = {"relation": "public.trips", "role": "authenticated", "sqlstate": "42P17"}
    assert check.details == {
        "checked": 36,
        "failing": [{**access, "command": command} for command in ("select", "update")],
        "failing_total": 2,
    }


def test_tables_are_named_in_order_and_the_list_of_accesses_is_cut(server: Install) -> None:
    server(Probe(900, [_failure(f"public.{name}") for name in ("b", "a", "c") for _ in range(50)]))
    check = rls.check(DSN)
    assert (check.value, check.details["failing_total"], len(check.details["failing"])) == (3, 150, 100)
    assert check.message == "Infinite recursion (42P17) in public.a, public.b, public.c."


def test_another_refusal_is_no_recursion(server: Install) -> None:
    server(Probe(36, [_failure("public.log", sqlstate="0A000")]))
    check = rls.check(DSN)
    assert (check.status, check.value, check.remedy, check.details["failing_total"]) == ("ok", 0, "", 0)


@pytest.mark.parametrize(
    ("checked", "unasked", "status"),
    [
        (0, ["anon"], "unknown"),
        (9, ["anon"], "unknown"),
        (9, ["authenticated", "service"], "unknown"),
        (9, ["service"], "ok"),
        (0, ["service"], "unknown"),
        (0, [], "ok"),
    ],
)
def test_roles_of_the_api_must_be_asked(server: Install, checked: int, unasked: t.List[str], status: str) -> None:
    server(Probe(checked, [], unasked))
    check = rls.check(DSN)
    assert (check.name, check.status, check.remedy) == ("rls", status, "")
    if status == "unknown":
        assert f"may not become {', '.join(unasked)}" in check.message
        assert check.details == {"checked": checked, "unasked": unasked}


def test_what_recurses_counts_also_where_a_role_could_not_be_asked(server: Install) -> None:
    server(Probe(9, [_failure("public.trips")], ["anon"]))
    assert rls.check(DSN).status == "critical"


def test_the_session_is_closed_after_an_error(server: Install) -> None:
    stand_in = server(OpsError("A lock is held."))
    with pytest.raises(OpsError, match="A lock is held"):
        rls.check(DSN)
    assert stand_in.closed == 1


def test_every_schema_and_twenty_seconds_where_nothing_is_said(server: Install) -> None:
    stand_in = server(Probe(1, []))
    rls.check(DSN)
    assert stand_in.asked == {"schemas": None, "statement_timeout_ms": 20_000}


@pytest.mark.parametrize(("timeout", "wait"), [(3, 3), (60, 10)])
def test_connecting_takes_ten_seconds_at_most(server: Install, timeout: int, wait: int) -> None:
    stand_in = server(Probe(1, []))
    rls.check(DSN, timeout=timeout)
    assert stand_in.options == {"connect_timeout": wait}


def test_a_server_that_gives_no_session_is_critical(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dsn: str, **_: t.Any) -> t.Any:
        raise postgres.Unavailable("The database refuses us: too many clients.")

    monkeypatch.setattr(postgres, "connect", refuse)
    check = rls.check(DSN)
    assert (check.name, check.status, check.unit) == ("rls", "critical", "recursive tables")
    assert check.message == "The database refuses us: too many clients."
