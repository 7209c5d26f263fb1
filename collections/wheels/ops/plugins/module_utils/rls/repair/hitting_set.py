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
    selection: t.Set[T] = set()
    for component in _components(_minimal(constraints)):
        selection |= _solve(component, cost)
    return frozenset(selection)


def _minimal(constraints: t.Iterable[t.FrozenSet[T]]) -> t.List[t.FrozenSet[T]]:
    """Without those that hold another one, which is harder to meet."""
    minimal: t.List[t.FrozenSet[T]] = []
    for constraint in sorted(set(constraints), key=lambda item: (len(item), sorted(map(repr, item)))):
        if not constraint:
            raise ValueError("a constraint without any element cannot be met")
        if not any(other <= constraint for other in minimal):
            minimal.append(constraint)
    return minimal


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
        covered: t.Set[T] = set()
        total = 0.0
        for constraint in open_constraints:
            if covered.isdisjoint(constraint):
                covered |= constraint
                total += min(cost(one) for one in constraint)
        return total

    def descend(
        open_constraints: t.List[t.FrozenSet[T]], selection: t.Set[T], spent: float, banned: t.FrozenSet[T]
    ) -> None:
        nonlocal best, best_cost, branches
        branches += 1
        if not open_constraints:
            if spent < best_cost:
                best, best_cost = set(selection), spent
            return
        if branches > MAX_BRANCHES or spent + bound(open_constraints) >= best_cost:
            return
        tightest = min(open_constraints, key=lambda item: (len(item - banned), sorted(map(repr, item))))
        refused = banned
        for element in sorted(tightest - banned, key=lambda item: (cost(item), repr(item))):
            descend(
                [item for item in open_constraints if element not in item],
                selection | {element},
                spent + cost(element),
                refused,
            )
            refused |= {element}

    descend(constraints, set(), 0.0, frozenset())
    return best


def _greedy(constraints: t.List[t.FrozenSet[T]], cost: t.Callable[[T], float]) -> t.Set[T]:
    selection: t.Set[T] = set()
    remaining = list(constraints)
    while remaining:
        elements = {element for constraint in remaining for element in constraint}
        element = min(
            elements,
            key=lambda candidate: (
                cost(candidate) / sum(candidate in constraint for constraint in remaining),
                repr(candidate),
            ),
        )
        selection.add(element)
        remaining = [constraint for constraint in remaining if element not in constraint]
    return selection
