# SPDX-License-Identifier: GPL-3.0-or-later
"""What the catalog's texts and node trees say, without a server.

The node trees are as PostgreSQL 15 writes them, shortened.
"""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import rls_catalog
from wheels_ops.rls.model.catalog import Expression, expression, split_search_path

UID = 16384


def bare(oid: int = UID) -> str:
    return f"{{FUNCEXPR :funcid {oid} :funcresulttype 2950}}"


def scalar(inner: str, rtable: str = "<>") -> str:
    """``(SELECT inner)``; a range table makes it one with FROM."""
    query = f"{{QUERY :commandType 1 :rtable {rtable} :targetList ({{TARGETENTRY :expr {inner}}})}}"
    return f"{{SUBLINK :subLinkType 4 :subselect {query}}}"


TABLE = "({RTE :rtekind 0 :relid 4711})"


@pytest.mark.parametrize(
    ("tree", "counted"),
    [
        (bare(), ({UID: 1}, 0, 0)),
        (f"{{OPEXPR :opfuncid 60 :args ({bare()} {bare()})}}", ({UID: 2}, 0, 0)),
        (scalar(bare()), ({}, 1, 0)),
        (f"{{OPEXPR :args ({scalar(bare())} {bare()})}}", ({UID: 1}, 1, 0)),
        (scalar(scalar(bare())), ({}, 1, 1)),
        (scalar(scalar(scalar(bare()))), ({}, 1, 2)),
        # Inside of a sub-select that reads a table the call runs for each of its rows.
        (f"{{OPEXPR :args ({scalar(bare(), TABLE)} {scalar('{CONST}')})}}", ({UID: 1}, 0, 0)),
        (scalar(scalar(bare()), TABLE), ({}, 1, 0)),
        # A function between both is another expression.
        (scalar(f"{{FUNCEXPR :funcid 99 :args ({scalar(bare())})}}"), ({}, 1, 0)),
        (scalar(bare(99)), ({}, 0, 0)),
    ],
)
def test_identity_calls_are_told_by_what_is_around_them(
    tree: str, counted: t.Tuple[t.Dict[int, int], int, int]
) -> None:
    found = expression("", tree)
    assert found is not None and found.identity_calls([UID]) == counted


def test_identity_calls_are_not_found_in_names() -> None:
    """A column may be called like a node: PostgreSQL escapes its braces."""
    escaped = scalar("{CONST :name a\\}}")
    tree = f"{{VAR :name \\{{SUBLINK\\ :subLinkType\\ 4}} {escaped} {bare()}"
    found = expression("", tree)
    assert found is not None and found.identity_calls([UID])[0] == {UID: 1}


def test_expression_names_relations_once_and_functions() -> None:
    tree = f"{{SUBLINK :subLinkType 0 {TABLE} {TABLE} ({{RTE :rtekind 0 :relid 12}}) {{OPEXPR :opfuncid 67}} {bare()}"
    found = expression("text", tree)
    assert found is not None and (found.relations, found.functions) == ((4711, 12), frozenset({67, UID}))
    assert (found.has_sublink, found.locks_rows) == (True, False)
    assert expression(None, None) is None and expression("text", None) is None


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("(p.trip_id = p.trip_id)", ["p.trip_id = p.trip_id"]),
        ("(trip_id = trip_id)", ["trip_id = trip_id"]),
        ('("a b" = "a b")', ['"a b" = "a b"']),
        ('("my trips".id = "my trips".id)', ['"my trips".id = "my trips".id']),
        ('(p."a ""b""" = p."a ""b""")', ['p."a ""b""" = p."a ""b"""']),
        ("(a$b = a$b)", ["a$b = a$b"]),
        ("((p.id)::text = (p.id)::text)", ["(p.id)::text = (p.id)::text"]),
        ('(("a b")::public."T y" = ("a b")::public."T y")', ['("a b")::public."T y" = ("a b")::public."T y"']),
        ("(a$b = b)", []),
        ("(b = b$a)", []),
        ('("a b" = "a c")', []),
        ('("x".a = "y".a)', []),
        ("(p.trip_id = q.trip_id)", []),
        ("(p.trip_id = trip_id)", []),
        ("(a = ab)", []),
        ("(a = a.b)", []),
        ("(a = a(1))", []),
        ("(xa = a)", []),
        ("((p.id)::text = (p.id)::uuid)", []),
        ("(a <> a)", []),
    ],
)
def test_self_comparisons_are_those_of_the_very_same_column(text: str, compared: t.List[str]) -> None:
    assert Expression(text, "").self_comparisons() == compared


@pytest.mark.parametrize(
    ("value", "schemas"),
    [
        ('"$user", public, extensions', ("public", "extensions")),
        ('Public, "Mixed", "a, b"', ("public", "Mixed", "a, b")),
        ('"a""b"', ('a"b',)),
        ("''", ()),
        ("", ()),
    ],
)
def test_split_search_path_reads_it_as_postgresql_does(value: str, schemas: t.Tuple[str, ...]) -> None:
    assert split_search_path(value) == schemas


@given(st.dictionaries(st.integers(1, 7), st.sets(st.integers(1, 8), max_size=3), max_size=7))
def test_circular_relations_are_those_from_which_a_walk_never_has_to_end(references: t.Dict[int, t.Set[int]]) -> None:
    """As long a walk as there are relations has met one twice."""
    relations = [
        rls_catalog.relation(oid, f"t{oid}", [rls_catalog.policy(oid, rls_catalog.expression(sorted(targets)))])
        for oid, targets in references.items()
    ]

    def longest(oid: int, steps: int) -> int:
        if steps == len(references) + 1:
            return steps
        return max([steps, *(longest(target, steps + 1) for target in references[oid] if target in references)])

    endless = {oid for oid in references if longest(oid, 0) == len(references) + 1}
    assert rls_catalog.catalog(relations).circular() == endless


@pytest.mark.parametrize(("optional", "accepted"), [(0, {2}), (1, {1, 2}), (2, {0, 1, 2}), (None, {0, 1, 2, 3})])
def test_accepts_counts_defaults_and_variadics(optional: t.Optional[int], accepted: t.Set[int]) -> None:
    function = rls_catalog.function(1, "f", "", arguments=2, optional=optional)
    assert {number for number in range(4) if function.accepts(number)} == accepted


def test_search_path_of_a_function_is_what_it_pins() -> None:
    pinned = rls_catalog.function(1, "f", "", settings=("work_mem=1MB", "search_path=public, auth"))
    assert pinned.search_path == "public, auth"
    assert rls_catalog.function(1, "f", "", settings=("search_path=",)).search_path == ""
    assert rls_catalog.function(1, "f", "").search_path is None
