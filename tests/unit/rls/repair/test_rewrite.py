# SPDX-License-Identifier: GPL-3.0-or-later
"""References in a policy become calls of a function; what the new text reads and calls, PostgreSQL's parser says.

That both give the same rows is verified with a server, on random schemas: ``tests/integration/rls_fuzz``.
"""

from __future__ import annotations

import typing as t

import pytest
from pglast import parse_sql
from pglast.visitors import referenced_relations

from tests.support import rls_catalog
from wheels_ops.rls.model import tree
from wheels_ops.rls.model.column_details import Column, Details
from wheels_ops.rls.repair.rewrite import CannotRewrite, Rewritten, rewrite

TRIPS, PARTS = 1, 2
OWNER_TABLE = rls_catalog.relation(TRIPS, "trips")
CATALOG = rls_catalog.catalog([OWNER_TABLE, rls_catalog.relation(PARTS, "parts")])
DETAILS = Details(
    columns={
        TRIPS: {"id": Column("id", 1, "integer"), "owner": Column("owner", 2, "uuid")},
        PARTS: {
            "trip_id": Column("trip_id", 1, "integer"),
            "user_id": Column("user_id", 2, "uuid"),
            "flag": Column("flag", 3, "boolean"),
        },
    }
)
CALLER = "(EXISTS ( SELECT 1\n   FROM public.parts p\n  WHERE ((p.trip_id = trips.id) AND (p.user_id = auth.uid()))))"


def rewritten(text: str, targets: t.Collection[int] = (PARTS,)) -> Rewritten:
    return rewrite(text, OWNER_TABLE, targets, CATALOG, DETAILS, "rls_ops")


def relations(text: str) -> t.Set[str]:
    return {str(name) for name in referenced_relations(f"SELECT {text}")}


def calls(text: str) -> t.List[str]:
    holder = tree.parse(text)
    return [".".join(tree.function_name(call)) for call in tree.of_type(holder, "FuncCall")]


TEXTS = (
    CALLER,
    "(id IN ( SELECT p.trip_id FROM public.parts p WHERE (p.user_id = auth.uid())))",
    "(id = ANY (ARRAY( SELECT p.trip_id FROM public.parts p WHERE (p.user_id = ( SELECT auth.uid() AS uid)))))",
    f"((owner = auth.uid()) OR {CALLER})",
    f"(NOT {CALLER})",
)


@pytest.mark.parametrize("text", TEXTS)
def test_rewrite_leaves_no_reference_and_calls_each_helper(text: str) -> None:
    """The helper reads the table in its place, runs as its owner, and is found by no search path."""
    result = rewritten(text)
    assert relations(result.text) == set()
    (helper,) = result.helpers
    assert f"rls_ops.{helper.name}" in calls(result.text)
    (statement,) = parse_sql(helper.create("rls_ops", atomic=False))
    options = {option.defname: option.arg for option in t.cast("t.Any", statement.stmt).options}
    assert options["security"].boolval is True and options["set"].name == "search_path"
    assert {str(name) for name in referenced_relations(options["as"][0].sval)} == {"public.parts"}


@pytest.mark.parametrize("text", TEXTS)
def test_rewrite_gives_the_same_names_in_every_run(text: str) -> None:
    """So that a second run finds its functions, and changes nothing."""
    first, second = rewritten(text), rewritten(text)
    assert (first.text, [one.name for one in first.helpers]) == (second.text, [one.name for one in second.helpers])
    assert all(len(one.name.encode()) <= 63 for one in first.helpers)


def test_rewrite_keeps_the_rest_of_the_condition() -> None:
    result = rewritten(f"((owner = auth.uid()) OR {CALLER})")
    assert tree.show(tree.parse(result.text).val.args[0]) == "owner = auth.uid()"


@pytest.mark.parametrize(
    ("where", "bound"),
    [
        ("p.user_id = auth.uid()", "caller"),
        ("p.flag", ""),
        ("true", ""),
    ],
)
def test_rewrite_tells_what_keeps_the_helper_from_the_whole_table(where: str, bound: str) -> None:
    """A function that anybody with EXECUTE may call: unbounded, it would hand out every row."""
    result = rewritten(f"(id IN ( SELECT p.trip_id FROM public.parts p WHERE ({where})))")
    assert [one.bound for one in result.helpers] == [bound]
    assert result.unbounded is (bound == "")
    assert result.weight == (1 if bound else 10)


def test_rewrite_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(CannotRewrite, match="not in the expression's text"):
        rewritten("(owner = auth.uid())")


def test_rewrite_of_what_cannot_be_printed_is_refused() -> None:
    """Rather than a condition that means something else."""
    text = "(EXISTS ( SELECT 1 FROM public.parts p TABLESAMPLE public.system (10)))"
    with pytest.raises(CannotRewrite, match="does not survive"):
        rewritten(text)
