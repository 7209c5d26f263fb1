# SPDX-License-Identifier: GPL-3.0-or-later
"""Recursion through functions, in schemas of three tables at most."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import rls_catalog
from tests.support.rls_catalog import WHO, expression, function, policy, relation
from wheels_ops.rls.audit import callgraph
from wheels_ops.rls.audit.callgraph import CallGraph
from wheels_ops.rls.model.catalog import Catalog


def members(source: str, **values: t.Any) -> Catalog:
    """A table whose policy calls a function."""
    table = relation(1, "members", [policy(1, expression(functions=[50]), name="mine")])
    return rls_catalog.catalog([table, relation(2, "orgs")], [function(50, "my_orgs", source, **values)])


@pytest.mark.parametrize(
    ("source", "values", "path"),
    [
        ("select * from members", {}, ['members (SELECT policy "mine")', "my_orgs()", "members"]),
        ("select * from orgs", {}, None),
        ("select 1", {}, None),
        # It runs with the rights of the table's owner, to whom no policy applies.
        ("select * from members", {"definer": True}, None),
    ],
)
def test_check_finds_the_way_round(source: str, values: t.Dict[str, t.Any], path: t.Optional[t.List[str]]) -> None:
    read = members(source, **values)
    graph = CallGraph(read)
    found = graph.check(WHO, read.relations[1], "select")
    assert (graph.words(found) if found else None) == path
    if found:
        assert callgraph.cycle(found) == found
    assert [one.variant for one in callgraph.runtime(read, [(WHO, read.relations[1], "select")])] == (
        ["select"] if path else []
    )


def test_check_leaves_a_cycle_without_a_function_to_the_rewriter() -> None:
    """That one is 42P17, which PREPARE sees."""
    table = relation(1, "members", [policy(1, expression([1], functions=[50]))])
    read = rls_catalog.catalog([table, relation(2, "orgs")], [function(50, "f", "select * from orgs")])
    assert CallGraph(read).check(WHO, table, "select") is None


def test_any_is_false_where_functions_read_nothing() -> None:
    """auth.uid() and its kind: most schemas need no graph."""
    assert not CallGraph(members("select 1")).any
    assert CallGraph(members("select * from orgs")).any


def test_findings_name_the_way_and_what_cannot_be_followed() -> None:
    read = members("select * from members")
    (found,) = callgraph.findings(read, [(WHO, read.relations[1], "select")])
    assert (found.kind, found.object, found.details["roles"]) == ("possible_54001", "public.members", ["authenticated"])
    block = "BEGIN EXECUTE 'select 1'; RETURN true; END"
    definition = f"CREATE FUNCTION public.my_orgs() RETURNS boolean LANGUAGE plpgsql AS $$ {block} $$"
    dynamic = members(block, language="plpgsql", definition=definition)
    (found,) = callgraph.findings(dynamic, [(WHO, dynamic.relations[1], "select")])
    assert (found.kind, found.object) == ("unknown_function", "public.my_orgs()") and "dynamic SQL" in found.why


def test_short_leaves_public_out() -> None:
    assert callgraph.short(function(1, "f", "")) == "f()"
    assert callgraph.short(function(1, "f", "", schema="auth", qualified="auth.f")) == "auth.f()"
