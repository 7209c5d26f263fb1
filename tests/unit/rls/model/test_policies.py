# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies as statements, read back by PostgreSQL's own parser; and a change undone, on a table of
policies of our own.
"""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pglast import parse_sql

from tests.support import rls_catalog
from wheels_ops.rls.model import tree
from wheels_ops.rls.model.catalog import Policy
from wheels_ops.rls.model.policies import Change, Piece, original, unused_name

TABLE = rls_catalog.relation(1, "trips")
#: Name of a policy -> (command, permissive, roles, USING, WITH CHECK, comment).
State = t.Dict[str, t.Tuple[str, bool, t.Tuple[str, ...], t.Optional[str], t.Optional[str], t.Optional[str]]]


def run(state: State, statements: t.Sequence[str]) -> State:
    """What PostgreSQL would make of the policies: the statements are read by its parser, and kept in a dictionary."""

    def shown(node: t.Any) -> t.Optional[str]:
        return None if node is None else tree.show(node)

    state = dict(state)
    for statement in statements:
        node = t.cast("t.Any", parse_sql(statement)[0].stmt)
        kind = type(node).__name__
        if kind == "CreatePolicyStmt":
            assert node.policy_name not in state, "it exists"
            roles = tuple("public" if role.rolename is None else role.rolename for role in node.roles)
            expressions = (shown(node.qual), shown(node.with_check))
            state[node.policy_name] = (node.cmd_name, bool(node.permissive), roles, *expressions, None)
        elif kind == "AlterPolicyStmt":
            command, permissive, roles, using, check, comment = state[node.policy_name]
            using, check = shown(node.qual) or using, shown(node.with_check) or check
            state[node.policy_name] = (command, permissive, roles, using, check, comment)
        elif kind == "DropStmt":
            del state[node.objects[0][-1].sval]
        else:
            assert kind == "CommentStmt"
            name = node.object[-1].sval
            state[name] = (*state[name][:5], node.comment)
    return state


def policy(name: str, command: str, using: t.Optional[str], check: t.Optional[str], **values: t.Any) -> Policy:
    expressions = [None if text is None else rls_catalog.expression(text=text) for text in (using, check)]
    values = {"role_names": ("authenticated",), "comment": "why it's there", **values}
    return rls_catalog.policy(1, expressions[0], name=name, command=command, check=expressions[1], **values)


def state_of(policies: t.Sequence[Policy]) -> State:
    statements = [original(one).create("public.trips") for one in policies]
    return {name: (*value[:5], "why it's there") for name, value in run({}, statements).items()}


@pytest.mark.parametrize(
    ("piece", "read"),
    [
        (Piece("p", "r", True, ("public",), "a", None), ("select", True, ("public",), "a", None, None)),
        (Piece("p", "a", True, ("anon", "b"), None, "c"), ("insert", True, ("anon", "b"), None, "c", None)),
        (Piece('a "p"', "*", False, ("anon",), "a", "c"), ("all", False, ("anon",), "a", "c", None)),
        (Piece("p; drop table t", "d", True, ('"a b"',), "a", None), ("delete", True, ("a b",), "a", None, None)),
        (Piece("ü", "w", True, ("anon",), "a", "NOT a"), ("update", True, ("anon",), "a", "NOT a", None)),
    ],
)
def test_create_says_what_the_piece_is(piece: Piece, read: t.Tuple[t.Any, ...]) -> None:
    assert run({}, [piece.create("public.trips")]) == {piece.name: read}


BEFORE = (policy("p", "*", "a", "b"), policy("q", "*", "c", None))
PIECES = st.builds(
    Piece,
    st.sampled_from(["p", "q", "new", "it's"]),
    st.sampled_from("*raw"),
    st.booleans(),
    st.sampled_from([("authenticated",), ("anon", "authenticated")]),
    st.sampled_from(["a", "NOT a"]),
    st.sampled_from(["b", None]),
)


@given(
    st.sampled_from([BEFORE[:1], BEFORE]), st.lists(PIECES, min_size=1, max_size=3, unique_by=lambda piece: piece.name)
)
def test_undo_restores_what_apply_changed(before: t.Tuple[Policy, ...], pieces: t.List[Piece]) -> None:
    """One policy or several, in place or not, with comments: afterwards it is as it is to be, then as it was."""
    first = state_of(before)
    change = Change(TABLE, list(before), pieces)
    after = run(first, change.apply())
    for piece in pieces:
        wanted = run({}, [piece.create("public.trips")])[piece.name]
        # ALTER POLICY cannot take an expression away, so a piece that changes less than that is never in place.
        assert after[piece.name] == (*wanted[:5], "why it's there"), piece
    assert set(after) == {piece.name for piece in pieces}
    assert run(after, change.undo()) == first


@pytest.mark.parametrize(
    ("piece", "in_place"),
    [
        (Piece("p", "*", True, ("authenticated",), "NOT a", "c"), True),
        (Piece("other", "*", True, ("authenticated",), "a", "b"), False),
        (Piece("p", "r", True, ("authenticated",), "a", "b"), False),
        (Piece("p", "*", False, ("authenticated",), "a", "b"), False),
        (Piece("p", "*", True, ("anon",), "a", "b"), False),
        (Piece("p", "*", True, ("authenticated",), "a", None), False),
        (Piece("p", "*", True, ("authenticated",), None, "b"), False),
    ],
)
def test_in_place_is_a_change_of_expressions_that_are_there(piece: Piece, in_place: bool) -> None:
    """Everything else takes DROP and CREATE; ALTER keeps the policy's oid."""
    change = Change(TABLE, [BEFORE[0]], [piece])
    assert change.in_place is in_place
    kinds = {type(parse_sql(statement)[0].stmt).__name__ for statement in change.apply()}
    assert (kinds == {"AlterPolicyStmt"}) is in_place


def test_texts_show_both_sides_as_statements() -> None:
    change = Change(TABLE, list(BEFORE), [Piece("new", "*", True, ("anon",), "a OR c", "b")])
    before, after = change.texts()
    assert [len(parse_sql(text)) for text in (before, after)] == [2, 1]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=70))
def test_unused_name_fits_and_is_free(wanted: str) -> None:
    """PostgreSQL cuts identifiers at 63 bytes, also in the middle of nothing but whole characters."""
    taken: t.Set[str] = set()
    for _number in range(12):
        name = unused_name(wanted, taken)
        assert name not in taken and len(name.encode()) <= 63
        taken.add(name)
    assert unused_name("trips", ()) == "trips"
