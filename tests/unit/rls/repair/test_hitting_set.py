# SPDX-License-Identifier: GPL-3.0-or-later
"""The cheapest hitting set, against every subset there is."""

from __future__ import annotations

import itertools
import random
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wheels_ops.rls.repair.hitting_set import hitting_set

Constraints = t.List[t.FrozenSet[str]]


def least_cost(constraints: Constraints, costs: t.Mapping[str, float]) -> float:
    """By trying every subset of the elements."""
    elements = sorted(set().union(*constraints)) if constraints else []
    return min(
        sum(costs[one] for one in subset)
        for size in range(len(elements) + 1)
        for subset in itertools.combinations(elements, size)
        if all(not constraint.isdisjoint(subset) for constraint in constraints)
    )


@given(
    st.lists(st.frozensets(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=7),
    st.lists(st.integers(min_value=1, max_value=9), min_size=8, max_size=8),
)
def test_hitting_set_is_as_cheap_as_the_best_subset(constraints: Constraints, weights: t.List[int]) -> None:
    """It meets every constraint, and no subset that does costs less."""
    costs = dict(zip("abcdefgh", map(float, weights)))
    chosen = hitting_set(constraints, costs.__getitem__)
    assert all(constraint & chosen for constraint in constraints)
    assert sum(costs[one] for one in chosen) == least_cost(constraints, costs)


def test_hitting_set_beats_the_greedy_choice() -> None:
    """The element in most constraints is the wrong one here: with it two more are needed, without it two suffice."""
    constraints = [frozenset("ca"), frozenset("cb"), frozenset("ad"), frozenset("be")]
    chosen = hitting_set(constraints, {"a": 1.0, "b": 1.0, "c": 0.9, "d": 9.0, "e": 9.0}.__getitem__)
    assert chosen == {"a", "b"}


@pytest.mark.parametrize("seed", range(5))
def test_hitting_set_is_the_same_in_any_order(seed: int) -> None:
    """Of equally cheap sets the same one is chosen, whatever the order of the constraints."""
    constraints = [frozenset("ab"), frozenset("bc"), frozenset("cd"), frozenset("de"), frozenset("ea")]
    shuffled = constraints[:]
    random.Random(seed).shuffle(shuffled)
    assert hitting_set(shuffled, lambda _element: 1.0) == hitting_set(constraints, lambda _element: 1.0)


def test_hitting_set_of_nothing_is_empty() -> None:
    assert hitting_set([], lambda _element: 1.0) == frozenset()


def test_hitting_set_with_a_constraint_that_nothing_can_meet_is_refused() -> None:
    with pytest.raises(ValueError, match="without any element"):
        hitting_set([frozenset("a"), frozenset()], lambda _element: 1.0)


def test_hitting_set_over_the_limit_of_branches_still_meets_every_constraint() -> None:
    """A component that is too big for the exact answer gets one that is valid, and no dearer than one element each."""
    dice = random.Random(7)
    constraints = [frozenset(dice.sample(range(60), 4)) for _number in range(90)]
    chosen = hitting_set(constraints, lambda element: 1.0 + element % 3)
    assert all(constraint & chosen for constraint in constraints)
    assert len(chosen) < len(constraints)
