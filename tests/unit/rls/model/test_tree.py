# SPDX-License-Identifier: GPL-3.0-or-later
"""SQL expressions parsed, printed, walked and changed; PostgreSQL's own scanner and parser (pglast) say
what a text is.
"""

from __future__ import annotations

import itertools
import json
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import parse_sql
from pglast.parser import ParseError, parse_sql_json

from wheels_ops.core.results import OpsError
from wheels_ops.rls.model import tree

#: Where tokens stand in a text.
PLACES = ("location", "stmt_len", "list_start", "list_end", "rexpr_list_start", "rexpr_list_end")
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
EXPRESSIONS = (
    "(user_id = auth.uid())",
    "((SELECT auth.uid() AS uid) = user_id)",
    "(EXISTS (SELECT 1 FROM public.trips t WHERE ((t.id = trip_id) AND (t.created_by = auth.uid()))))",
    "(trip_id IN (SELECT p.trip_id FROM public.participants p))",
    "(((current_setting('request.jwt.claims'::text, true))::json ->> 'role'::text) = 'admin'::text)",
    "((a = ANY (ARRAY['x'::text, 'y'::text])) OR (NOT (b IS NULL)))",
    "(CASE WHEN a THEN b ELSE (c > 1) END)",
)


@given(TEXTS)
def test_literal_is_read_as_the_value(value: str) -> None:
    """Whatever is in it: quotes, backslashes, line breaks."""
    constant = tree.parse(tree.literal(value)).val
    assert constant.val.sval == value


@given(TEXTS.filter(lambda name: 0 < len(name.encode()) < 64))
def test_quote_is_read_as_the_name(name: str) -> None:
    statement = t.cast("t.Any", parse_sql(f"SELECT {tree.quote(name)}")[0].stmt)
    assert tree.names(statement.targetList[0].val) == (name,)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_show_prints_what_was_parsed(text: str) -> None:
    """PostgreSQL's parser makes the same tree of the print as of the text; the places of the tokens aside."""

    def shape(expression: str) -> t.Any:
        def plain(value: t.Any) -> t.Any:
            if isinstance(value, dict):
                return {key: plain(inner) for key, inner in value.items() if key not in PLACES}
            return [plain(inner) for inner in value] if isinstance(value, list) else value

        return plain(json.loads(parse_sql_json(f"SELECT {expression}")))

    assert shape(tree.show(tree.parse(text).val)) == shape(text)
    assert tree.faithful(text)


def test_show_refuses_what_it_cannot_print() -> None:
    """The printer loses the schema of a sampling method: better an error than another condition."""
    text = "EXISTS (SELECT 1 FROM public.a AS b TABLESAMPLE public.system (10))"
    assert not tree.faithful(text)
    with pytest.raises(OpsError, match="printer"):
        tree.show(tree.parse(text).val)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_walk_meets_every_node_once(text: str) -> None:
    """As many column references and calls as PostgreSQL's JSON of the same text has; the root comes first."""
    root = tree.parse(text).val
    met = list(tree.walk(root))
    assert met[0] is root and len({id(node) for node in met}) == len(met)
    dump = parse_sql_json(f"SELECT {text}")
    for name in ("ColumnRef", "FuncCall", "SubLink", "A_Expr", "RangeVar"):
        assert sum(tree.kind(node) == name for node in met) == dump.count(f'"{name}":'), name


def test_replace_changes_the_very_node_and_says_so() -> None:
    """Two nodes that look alike: the second is meant."""
    holder = tree.parse("(a = 1) OR (a = 1)")
    _first, second = holder.val.args
    assert tree.replace(holder.val, second, tree.parse("b").val)
    assert tree.show(holder.val) == "a = 1 OR b"
    assert not tree.replace(holder.val, second, tree.parse("c").val), "it is no longer there"


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "NOT c", "(d OR e)", "(a AND (b AND c))"]), min_size=1, max_size=5))
def test_conjuncts_are_true_together_exactly_where_the_condition_is(parts: t.List[str]) -> None:
    """For every assignment of the five columns; and ``conjunction`` puts them together again."""

    def compiled(text: str) -> t.Callable[[t.Dict[str, bool]], bool]:
        code = compile(text.lower(), "condition", "eval")
        return lambda values: bool(eval(code, {"__builtins__": {}}, values))

    text = " AND ".join(parts)
    found = [tree.show(node) for node in tree.conjuncts(tree.parse(text).val)]
    again = tree.conjunction(tree.conjuncts(tree.parse(text).val))
    assert again is not None and not any(" AND " in part for part in found)
    whole, together, members = compiled(text), compiled(tree.show(again)), [compiled(part) for part in found]
    for bits in itertools.product((False, True), repeat=5):
        values = dict(zip("abcde", bits))
        assert whole(values) == together(values) == all(member(values) for member in members)


def test_conjuncts_of_nothing_are_none_and_nothing_is_their_conjunction() -> None:
    assert tree.conjuncts(None) == [] and tree.conjunction([]) is None


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("a = b", ("a", "b")),
        ("(a)::text = (b)::uuid", ("a::pg_catalog.text", "b::uuid")),
        ("a <> b", None),
        ("a = ANY (b)", None),
        ("a OPERATOR(public.=) b", None),
        ("NOT a", None),
    ],
)
def test_equality_is_that_of_the_catalog_only(text: str, sides: t.Optional[t.Tuple[str, str]]) -> None:
    found = tree.equality(tree.parse(text).val)
    if sides is None:
        assert found is None
    else:
        assert found is not None and [tree.names(tree.uncast(side))[-1] for side in found] == ["a", "b"]


def test_positive_parts_are_separated_by_and_and_or_only() -> None:
    """Below NOT, or inside of anything else, NULL and false differ."""
    parts = tree.positive(tree.parse("(a OR (b AND NOT c)) AND (d IS NULL)").val)
    assert [tree.show(part) for part in parts] == ["a", "b", "NOT c", "d IS NULL"]


def test_parse_of_what_is_no_expression_is_an_error_of_the_parser() -> None:
    with pytest.raises(ParseError, match="end of input"):
        tree.parse("(a = ")
