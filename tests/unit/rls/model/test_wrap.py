# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity calls are wrapped once each, wherever they stand; the reading of the result is PostgreSQL's grammar, not
ours.
"""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import ast, parse_sql
from pglast.visitors import Visitor

from wheels_ops.rls.model import tree, wrap


class Calls(Visitor):
    """Counts identity calls by whether a FROM-less SELECT stands directly around them: pglast's own
    walk, with parents.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bare = self.wrapped = 0

    def visit_FuncCall(self, ancestors: t.Any, node: ast.FuncCall) -> None:
        if [part.sval for part in t.cast("t.Any", node.funcname)] != ["auth", "uid"]:
            return
        inside = False
        while ancestors is not None and ancestors.node is not None:
            if isinstance(ancestors.node, ast.SelectStmt):
                inside = ancestors.node.fromClause is None and not _outermost(ancestors)
                break
            ancestors = ancestors.parent
        self.wrapped += inside
        self.bare += not inside


def _outermost(ancestors: t.Any) -> bool:
    above = ancestors.parent
    while above is not None and above.node is not None:
        if isinstance(above.node, ast.SelectStmt):
            return False
        above = above.parent
    return True


def calls(text: str) -> t.Tuple[int, int]:
    """(bare, wrapped)"""
    visitor = Calls()
    visitor(parse_sql(f"SELECT {text}"))
    return visitor.bare, visitor.wrapped


PARTS = (
    "user_id = auth.uid()",
    "auth.uid() IS NOT NULL",
    "(SELECT auth.uid()) = owner",
    "EXISTS (SELECT 1 FROM public.t WHERE t.user_id = auth.uid())",
    "a IN (SELECT b FROM public.t WHERE t.c = (SELECT auth.uid()))",
    "coalesce(auth.uid(), owner) = owner",
    "flag",
)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4), st.sampled_from((" AND ", " OR ")))
def test_wrap_leaves_no_bare_call_and_loses_none(parts: t.List[str], joint: str) -> None:
    text = joint.join(f"({part})" for part in parts)
    bare, wrapped = calls(text)
    holder = tree.parse(text)
    assert wrap.wrap(holder) == bool(bare)
    result = tree.show(holder.val)
    assert calls(result) == (0, bare + wrapped)
    again = tree.parse(result)
    assert not wrap.wrap(again) and tree.show(again.val) == result, "a second time changes nothing"


@settings(max_examples=40)
@given(st.lists(st.sampled_from([part for part in PARTS if "(SELECT auth" not in part]), min_size=1, max_size=4))
def test_unwrap_takes_exactly_back_what_wrap_did(parts: t.List[str]) -> None:
    text = " AND ".join(f"({part})" for part in parts)
    holder = tree.parse(text)
    original = tree.show(holder.val)
    changed = wrap.wrap(holder)
    assert wrap.unwrap(holder) == changed
    assert tree.show(holder.val) == original


def test_wrap_of_the_whole_expression_replaces_the_root() -> None:
    holder = tree.parse("auth.uid()")
    assert wrap.wrap(holder) and tree.show(holder.val) == "(SELECT auth.uid())"


def test_wrap_collapses_what_is_wrapped_several_times() -> None:
    holder = tree.parse("(SELECT (SELECT (SELECT auth.uid()))) = user_id")
    assert wrap.wrap(holder) and tree.show(holder.val) == "(SELECT auth.uid()) = user_id"


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("auth.uid()", True),
        ("auth.jwt()", True),
        ("auth.role()", True),
        ("auth.email()", True),
        ("auth.uid(1)", False),
        ("uid()", False),
        ("public.uid()", False),
        ("auth.other()", False),
        ("current_setting('a.b')", True),
        ("pg_catalog.current_setting('a.b'::text, true)", True),
        ("current_setting(name)", False),
        ("public.current_setting('a.b')", False),
        ("now()", False),
    ],
)
def test_is_identity_takes_what_depends_on_the_session_alone(text: str, identity: bool) -> None:
    assert wrap.is_identity(tree.parse(text).val) is identity


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("(SELECT a)", "a"),
        ("(SELECT a AS b)", "a"),
        ("(SELECT a, b)", None),
        ("(SELECT a FROM public.t)", None),
        ("(SELECT a WHERE b)", None),
        ("(SELECT a LIMIT 1)", None),
        ("(SELECT DISTINCT a)", None),
        ("(SELECT a UNION SELECT b)", None),
        ("(VALUES (1))", None),
        ("EXISTS (SELECT a)", None),
        ("a IN (SELECT b)", None),
    ],
)
def test_fromless_is_a_scalar_select_of_one_expression(text: str, inner: t.Optional[str]) -> None:
    found = wrap.fromless(tree.parse(text).val)
    assert (found and tree.show(found)) == inner
