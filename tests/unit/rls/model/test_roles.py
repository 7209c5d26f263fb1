# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles in classes, from answers that PostgreSQL gives; the cursor that gives them is made here."""

from __future__ import annotations

import itertools
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wheels_ops.core.results import OpsError
from wheels_ops.rls.model.roles import RoleClass, role_classes

COLUMNS = ("oid", "name", "settable", "held", "schemas")
Row = t.Tuple[int, str, bool, t.List[int], t.List[str]]


class RecordedCursor:
    """Answers both queries from given roles."""

    def __init__(self, roles: t.Sequence[Row], version: int = 150000) -> None:
        self.roles = roles
        self.connection = self
        self.server_version = version
        self.description: t.List[t.Tuple[str]] = []
        self.answer: t.List[t.Tuple[t.Any, ...]] = []
        self.values: t.Any = None

    def execute(self, query: str, values: t.Any = None) -> None:
        if "rolname = any" in query:
            self.answer = [(row[1],) for row in self.roles if row[1] in values[0]]
        else:
            self.values, self.description = values, [(name,) for name in COLUMNS]
            self.answer = list(self.roles)

    def fetchall(self) -> t.List[t.Tuple[t.Any, ...]]:
        return self.answer


NAMES = ("anon", "authenticated", "authenticator", "carol", "dave", "erin")
ROWS = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.sampled_from([101, 102]), unique=True),
        st.lists(st.sampled_from(["public", "private"]), unique=True),
    ),
    min_size=1,
    max_size=len(NAMES),
)


@given(ROWS)
def test_role_classes_join_exactly_the_roles_that_are_alike(
    rows: t.List[t.Tuple[bool, t.List[int], t.List[str]]],
) -> None:
    """Two roles share a class where they hold the same policy roles and see the same schemas; nobody is lost or
    doubled.
    """
    roles: t.List[Row] = [(number, name, *row) for (number, row), name in zip(enumerate(rows, 1), NAMES)]
    classes = role_classes(RecordedCursor(roles))
    assert sorted(name for one in classes for name in one.members) == sorted(row[1] for row in roles)
    of = {name: one for one in classes for name in one.members}
    for first, second in itertools.combinations(roles, 2):
        alike = set(first[3]) == set(second[3]) and set(first[4]) == set(second[4])
        assert (of[first[1]] is of[second[1]]) is alike
    for one in classes:
        members = {row[1]: row for row in roles if row[1] in one.members}
        assert (one.oid, one.settable) == (members[one.name][0], members[one.name][2])
        assert one.settable or not any(row[2] for row in members.values()), "one that can be asked speaks for its class"


def only_class(*rows: Row) -> RoleClass:
    (found,) = role_classes(RecordedCursor(rows))
    return found


def test_role_classes_let_the_well_known_role_speak() -> None:
    """People know ``authenticated``; among others the first by name speaks."""
    alike: t.Tuple[t.List[int], t.List[str]] = ([101], ["public"])
    assert only_class((1, "aaa", True, *alike), (2, "anon", True, *alike), (3, "authenticated", True, *alike)).name == (
        "authenticated"
    )
    assert only_class((2, "zoe", True, *alike), (1, "amy", True, *alike)).name == "amy"
    assert only_class((1, "authenticated", False, *alike), (2, "zoe", True, *alike)).name == "zoe"


def test_role_classes_of_named_roles_are_one_each() -> None:
    alike: t.Tuple[t.List[int], t.List[str]] = ([], ["public"])
    cursor = RecordedCursor([(1, "anon", True, *alike), (2, "carol", True, *alike), (3, "dave", True, *alike)])
    assert [one.members for one in role_classes(cursor, ["carol", "anon"])] == [("anon",), ("carol",)]


def test_role_classes_refuse_a_role_that_is_not_there() -> None:
    with pytest.raises(OpsError, match=r"There is no role nobody-knows, zoe\."):
        role_classes(RecordedCursor([(1, "anon", True, [], [])]), ["anon", "zoe", "nobody-knows"])


@pytest.mark.parametrize(("version", "right"), [(150004, "MEMBER"), (160000, "SET"), (180001, "SET")])
def test_role_classes_ask_for_the_right_that_the_server_knows(version: int, right: str) -> None:
    """PostgreSQL 16 tells membership from the right to SET ROLE."""
    cursor = RecordedCursor([(1, "anon", True, [], [])], version)
    role_classes(cursor)
    assert cursor.values == {"set": right, "named": None}
