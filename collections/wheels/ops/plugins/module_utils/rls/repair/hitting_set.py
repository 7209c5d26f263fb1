# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cheapest set of references whose removal breaks every cycle: a minimum-weight hitting set."""

from __future__ import annotations

import typing as t

T = t.TypeVar("T", bound=t.Hashable)

#: Above this many branches a component is settled with the best set found so far (the greedy one or better).
MAX_BRANCHES = 20_000


def hitting_set(constraints: t.Iterable[t.FrozenSet[T]], cost: t.Callable[[T], float]) -> t.FrozenSet[T]:
    """A set that shares an element with every constraint, of the least total cost (exact up to ``MAX_BRANCHES`` a
    component).

    Equal costs are decided by the elements' own order, so that the same input gives the same answer in every run.
    """
    chosen: t.Set[T] = set()
    for component in _components(_minimal(constraints)):
        chosen |= _solve(component, cost)
    return frozenset(chosen)


def _minimal(constraints: t.Iterable[t.FrozenSet[T]]) -> t.List[t.FrozenSet[T]]:
    """Without those that hold another one, which is harder to meet."""
    kept: t.List[t.FrozenSet[T]] = []
    for constraint in sorted(set(constraints), key=lambda one: (len(one), sorted(map(repr, one)))):
        if not constraint:
            raise ValueError("a constraint without any element cannot be met")
        if not any(other <= constraint for other in kept):
            kept.append(constraint)
    return kept


def _components(constraints: t.List[t.FrozenSet[T]]) -> t.List[t.List[t.FrozenSet[T]]]:
    groups: t.List[t.Tuple[t.Set[T], t.List[t.FrozenSet[T]]]] = []
    for constraint in constraints:
        touching = [group for group in groups if not group[0].isdisjoint(constraint)]
        groups = [group for group in groups if group[0].isdisjoint(constraint)]
        merged: t.Tuple[t.Set[T], t.List[t.FrozenSet[T]]] = (set(constraint), [constraint])
        for elements, members in touching:
            merged[0].update(elements)
            merged[1].extend(members)
        groups.append(merged)
    return [members for _ignored, members in groups]


def _solve(constraints: t.List[t.FrozenSet[T]], cost: t.Callable[[T], float]) -> t.Set[T]:
    best = _greedy(constraints, cost)
    best_cost = sum(cost(one) for one in best)
    branches = 0

    def bound(open_constraints: t.List[t.FrozenSet[T]]) -> float:
        """What disjoint open constraints cost at least."""
        used: t.Set[T] = set()
        total = 0.0
        for constraint in open_constraints:
            if used.isdisjoint(constraint):
                used |= constraint
                total += min(cost(one) for one in constraint)
        return total

    def descend(
        open_constraints: t.List[t.FrozenSet[T]], taken: t.Set[T], spent: float, banned: t.FrozenSet[T]
    ) -> None:
        nonlocal best, best_cost, branches
        branches += 1
        if not open_constraints:
            if spent < best_cost:
                best, best_cost = set(taken), spent
            return
        if branches > MAX_BRANCHES or spent + bound(open_constraints) >= best_cost:
            return
        tightest = min(open_constraints, key=lambda one: (len(one - banned), sorted(map(repr, one))))
        refused = banned
        for element in sorted(tightest - banned, key=lambda one: (cost(one), repr(one))):
            descend(
                [one for one in open_constraints if element not in one],
                taken | {element},
                spent + cost(element),
                refused,
            )
            refused |= {element}

    descend(constraints, set(), 0.0, frozenset())
    return best


def _greedy(constraints: t.List[t.FrozenSet[T]], cost: t.Callable[[T], float]) -> t.Set[T]:
    chosen: t.Set[T] = set()
    left = list(constraints)
    while left:
        elements = {element for constraint in left for element in constraint}
        element = min(elements, key=lambda one: (cost(one) / sum(one in constraint for constraint in left), repr(one)))
        chosen.add(element)
        left = [constraint for constraint in left if element not in constraint]
    return chosen
