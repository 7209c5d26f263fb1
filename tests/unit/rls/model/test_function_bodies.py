# SPDX-License-Identifier: GPL-3.0-or-later
"""What the body of a function reads, writes and calls, of functions written here."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import rls_catalog
from wheels_ops.rls.model.catalog import Expression, Function
from wheels_ops.rls.model.function_bodies import Bodies, Body

TRIPS, PARTS, OTHER = 1, 2, 3
RELATIONS = (
    rls_catalog.relation(TRIPS, "trips"),
    rls_catalog.relation(PARTS, "parts"),
    rls_catalog.relation(OTHER, "trips", schema="other", qualified="other.trips"),
)
HELPERS = (
    rls_catalog.function(21, "mine", "select 1"),
    rls_catalog.function(22, "mine", "select 1", arguments=1),
    rls_catalog.function(23, "deep", "select 1", schema="other"),
)


def body(source: str, **values: t.Any) -> Body:
    function = rls_catalog.function(50, "f", source, **values)
    return Bodies(rls_catalog.catalog(RELATIONS, (*HELPERS, function))).of(function)


def plpgsql(block: str) -> Function:
    definition = f"CREATE FUNCTION public.f() RETURNS boolean LANGUAGE plpgsql AS $$ {block} $$"
    return rls_catalog.function(50, "f", block, language="plpgsql", definition=definition)


@pytest.mark.parametrize(
    ("source", "relations"),
    [
        ("select * from trips", {(TRIPS, "select")}),
        ("select * from other.trips", {(OTHER, "select")}),
        ("select * from trips join parts using (id)", {(TRIPS, "select"), (PARTS, "select")}),
        ("with trips as (select 1) select * from trips", set()),
        ("with t as (select * from parts) select * from t", {(PARTS, "select")}),
        ("insert into trips select * from parts", {(TRIPS, "insert_returning"), (PARTS, "select")}),
        ("update trips set a = 1 from parts", {(TRIPS, "update"), (PARTS, "select")}),
        ("delete from trips where exists (select from trips)", {(TRIPS, "delete"), (TRIPS, "select")}),
        ("select * from nowhere", set()),
        ("select 1; select * from parts", {(PARTS, "select")}),
    ],
)
def test_body_reads_and_writes_what_its_statements_name(source: str, relations: t.Set[t.Tuple[int, str]]) -> None:
    found = body(source)
    assert (found.relations, found.unknown) == (relations, [])
    assert found.writes == any(variant != "select" for _oid, variant in relations)


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("select mine()", {21, 22}),
        ("select mine(1)", {22}),
        ("select public.mine(1)", {22}),
        ("select other.deep()", {23}),
        ("select deep()", set()),
        ("select now()", set()),
    ],
)
def test_body_calls_what_its_calls_can_mean(source: str, called: t.Set[int]) -> None:
    """Arguments may be left out, so that a call with fewer can mean the function; a schema off the path cannot be
    meant.
    """
    assert body(source).functions == called


def test_body_looks_names_up_in_the_pinned_search_path() -> None:
    assert body("select * from trips", settings=("search_path=other",)).relations == {(OTHER, "select")}
    assert body("select * from trips", settings=("search_path=",)).relations == set()


def test_body_that_postgresql_keeps_parsed_is_read_from_its_tree() -> None:
    tree = "{QUERY :commandType 1 :rtable ({RTE :rtekind 0 :relid 2})} {FUNCEXPR :funcid 21} {FUNCEXPR :funcid 65}"
    kept = Expression("", tree, (PARTS,), frozenset({21, 65}))
    found = body("", body=kept)
    assert (found.relations, found.functions) == ({(PARTS, "select")}, {21})
    changing = Expression("", tree.replace("commandType 1", "commandType 4"), (PARTS,))
    assert body("", body=changing).writes


@pytest.mark.parametrize(
    ("block", "relations", "unknown"),
    [
        ("BEGIN RETURN EXISTS (SELECT 1 FROM trips); END", {(TRIPS, "select")}, False),
        ("DECLARE n int; BEGIN n := (SELECT count(*) FROM parts); RETURN n > 0; END", {(PARTS, "select")}, False),
        ("BEGIN IF mine() THEN DELETE FROM trips; END IF; RETURN true; END", {(TRIPS, "delete")}, False),
        ("BEGIN EXECUTE 'select 1 from trips'; RETURN true; END", set(), True),
    ],
)
def test_body_in_plpgsql(block: str, relations: t.Set[t.Tuple[int, str]], unknown: bool) -> None:
    """Dynamic SQL can do anything, and is said to."""
    function = plpgsql(block)
    found = Bodies(rls_catalog.catalog(RELATIONS, (*HELPERS, function))).of(function)
    assert (found.relations, bool(found.unknown)) == (relations, unknown)


def test_body_that_cannot_be_parsed_is_unknown() -> None:
    (reason,) = body("select from where").unknown
    assert reason.startswith("a statement cannot be parsed: ")
