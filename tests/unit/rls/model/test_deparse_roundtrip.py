# SPDX-License-Identifier: GPL-3.0-or-later
"""Constructs that PostgreSQL writes out as AND and OR, put back; a server verifies the same in
``tests/integration/rls/model``.
"""

from __future__ import annotations

import itertools
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import parse_sql

from wheels_ops.rls.model.deparse_roundtrip import same_tree


def value(node: t.Any, row: t.Mapping[str, int]) -> t.Any:
    """An evaluator of our own for what these conditions are made of."""
    kind = type(node).__name__
    if kind == "A_Const":
        return node.val.ival
    if kind == "ColumnRef":
        return row[node.fields[-1].sval]
    if kind == "RowExpr":
        return tuple(value(arg, row) for arg in node.args)
    if kind == "BoolExpr":
        return (all if int(node.boolop) == 0 else any)([value(arg, row) for arg in node.args])
    assert kind == "A_Expr", kind
    left, operator = value(node.lexpr, row), node.name[0].sval
    if isinstance(node.rexpr, tuple):
        members = [value(one, row) for one in node.rexpr]
        if operator in ("BETWEEN", "NOT BETWEEN"):
            return (members[0] <= left <= members[1]) is (operator == "BETWEEN")
        return (left in members) is (operator == "=")
    right = value(node.rexpr, row)
    return {"=": left == right, "<>": left != right, "<": left < right, ">": left > right}.get(
        operator, left <= right if operator == "<=" else left >= right
    )


def holds(text: str, row: t.Mapping[str, int]) -> bool:
    statement = t.cast("t.Any", parse_sql(f"SELECT {text}")[0].stmt)
    return bool(value(statement.targetList[0].val, row))


COMPARISON = st.builds(
    "({} {} {})".format, st.sampled_from("ab"), st.sampled_from(["=", "<>", "<", "<=", ">="]), st.sampled_from("bc1")
)


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda word, parts: "(" + f" {word} ".join(parts) + ")",
        st.sampled_from(["AND", "OR"]),
        st.lists(inner, min_size=2, max_size=3),
    )


@settings(max_examples=60)
@given(st.recursive(COMPARISON, joined, max_leaves=6))
def test_same_tree_never_changes_the_meaning(text: str) -> None:
    """For every value of three columns, whichever construct is put back."""
    result = same_tree(text)
    for values in itertools.product((0, 1, 2), repeat=3):
        row = dict(zip("abc", values))
        assert holds(result, row) == holds(text, row), result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("(((a = b) OR (a = c)) OR (a = d))", "(a IN (b, c, d))"),
        ("(((a <> b) AND (a <> c)) AND (a <> d))", "(a NOT IN (b, c, d))"),
        ("(((a >= b) AND (a <= c)) AND (d = e))", "((a BETWEEN (b) AND (c)) AND (d = e))"),
        ("(((a < b) OR (a > c)) OR (d = e))", "((a NOT BETWEEN (b) AND (c)) OR (d = e))"),
        ("(((a = b) AND (c = d)) AND (e = f))", "((ROW(a, c) = ROW(b, d)) AND (e = f))"),
    ],
)
def test_same_tree_puts_back_the_construct(text: str, result: str) -> None:
    assert same_tree(text) == result


@pytest.mark.parametrize(
    "text", ["(a = b)", "((a = b) OR (a = c))", "(note = ' OR ')", "(((a) OR (b)) AND (c))", "true"]
)
def test_same_tree_leaves_what_is_read_as_it_stands(text: str) -> None:
    assert same_tree(text) == text
