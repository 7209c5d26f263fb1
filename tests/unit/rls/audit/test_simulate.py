# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated rewriter against its rule, written down plainly; a server is asked in
``tests/integration/rls_fuzz``.
"""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import rls_catalog
from tests.support.rls_catalog import OWNER, READER, WHO, expression, policy, relation
from wheels_ops.rls.audit.simulate import Context, Cut, Edge, Simulator, Use, cycle, describe
from wheels_ops.rls.model.catalog import Catalog, Relation

#: For each table: what its one policy reads, and whether it has a sub-select all the same.
Tables = t.List[t.Tuple[t.Set[int], bool]]
TABLES = st.lists(st.tuples(st.sets(st.integers(1, 5), max_size=3), st.booleans()), min_size=1, max_size=5)


def tables(shape: Tables) -> Catalog:
    return rls_catalog.catalog(
        relation(number, f"t{number}", [policy(number, expression(sorted(targets), sublink=sublink))])
        for number, (targets, sublink) in enumerate(shape, 1)
    )


def recurses(shape: Tables, number: int, stack: t.Tuple[int, ...] = ()) -> bool:
    """The rule: a relation whose policies hold a sub-select is put on the stack; met there again, it is an error."""
    if number > len(shape):
        return False
    targets, sublink = shape[number - 1]
    if not (targets or sublink):
        return False
    return number in stack or any(recurses(shape, target, (*stack, number)) for target in targets)


@given(TABLES)
def test_check_says_what_the_rule_says(shape: Tables) -> None:
    """Each table in turn with one simulator, which remembers; and the path that it names goes round."""
    read = tables(shape)
    simulator = Simulator(read)
    for number, table in read.relations.items():
        path = simulator.check(WHO, table, "select")
        assert (path is not None) == recurses(shape, number)
        if path:
            assert path[0].relation == number
            assert all(first.target == second.relation for first, second in zip(path, path[1:]))
            round_trip = cycle(path)
            assert round_trip[0].relation == round_trip[-1].target


@given(TABLES)
def test_check_after_cutting_every_edge_of_the_cycles_accepts_everything(shape: Tables) -> None:
    read = tables(shape)
    edges = {
        Edge(one.oid, "using", target): frozenset[Context]()
        for table in read.relations.values()
        for one in table.policies
        for target in (one.using.relations if one.using else ())
    }
    simulator = Simulator(read, cut=Cut(edges))
    assert [table.name for table in read.relations.values() if simulator.check(WHO, table, "select")] == []


def test_a_cut_keeps_the_reference_where_the_original_is_kept() -> None:
    edge, context = Edge(1001, "using", 1), Context(READER, "r")
    assert Cut({edge: frozenset()}).hides(edge, context)
    assert not Cut({edge: frozenset({context})}).hides(edge, context)
    assert not Cut({}).hides(edge, context)


SELF = expression([1])


@pytest.mark.parametrize(
    ("table", "variant", "fails"),
    [
        (relation(1, "t", [policy(1, SELF)]), "select", True),
        (relation(1, "t", [policy(1, SELF, command="r")]), "delete_blind", False),
        (relation(1, "t", [policy(1, SELF, command="r"), policy(1, expression(), command="d", oid=9)]), "delete", True),
        (relation(1, "t", [policy(1, None, command="a", check=SELF)]), "insert", False),
        (relation(1, "t", [policy(1, None, check=SELF)]), "select", False),
        (relation(1, "t", [policy(1, SELF)], secured=False), "select", False),
        (relation(1, "t", [policy(1, SELF)], owner=READER), "select", False),
        (relation(1, "t", [policy(1, SELF)], owner=READER, forced=True), "select", True),
        (relation(1, "t", [policy(1, SELF, roles=(OWNER,))]), "select", False),
        (relation(1, "t", [policy(1, SELF, roles=(READER,))]), "select", True),
        # Without a permissive policy nothing is visible, and the restrictive ones are not asked.
        (relation(1, "t", [policy(1, SELF, permissive=False)]), "select", False),
        (relation(1, "t", [policy(1, SELF, permissive=False), policy(1, expression(), oid=9)]), "select", True),
    ],
)
def test_check_of_a_table_that_reads_itself(table: Relation, variant: str, fails: bool) -> None:
    """By command, role, owner and kind of policy, as PostgreSQL's documentation of row-level security says."""
    simulator = Simulator(rls_catalog.catalog([table]))
    assert (simulator.check(WHO, table, variant) is not None) is fails


def test_check_goes_through_a_view_as_its_owner_or_its_caller() -> None:
    """The owner of a view owns the table behind it as well: no policy applies to him there."""
    for invoker, fails in ((True, True), (False, False)):
        view = relation(2, "v", kind="v", secured=False, invoker=invoker, query=expression([1]))
        table = relation(1, "t", [policy(1, expression([2]))])
        simulator = Simulator(rls_catalog.catalog([table, view]))
        path = simulator.check(WHO, table, "select")
        assert (path is not None) is fails
        if path:
            caller = "view, read as its caller"
            assert simulator.words(path) == ['t (SELECT policy "policy of 1")', f"v ({caller})", "t"]


def test_unwrapped_and_sublinks_take_and_add_sub_selects() -> None:
    """A FROM-less sub-select alone makes the second visit an error."""
    first = relation(1, "a", [policy(1, expression([2]))])
    silent = relation(2, "b", [policy(2, expression(sublink=True))])
    back = relation(3, "c", [policy(3, expression([3], sublink=True))])
    read = rls_catalog.catalog([first, silent, back])
    assert Simulator(read).check(WHO, back, "select")
    assert Simulator(read, unwrapped=[1003]).check(WHO, back, "select") is None
    plain = relation(4, "d", [policy(4, rls_catalog.Expression("x", "", (4,)))])
    again = rls_catalog.catalog([plain])
    assert Simulator(again).check(WHO, plain, "select") is None
    assert Simulator(again, sublinks=[1004]).check(WHO, plain, "select")


def test_describe_names_the_expression_where_it_is_the_check() -> None:
    one = policy(1, SELF, name="mine", check=SELF)
    assert describe(Use(one, "using", "w")) == 'UPDATE policy "mine"'
    assert describe(Use(one, "check", "a")) == 'INSERT policy "mine", WITH CHECK'
