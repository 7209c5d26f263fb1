# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A static simulation of PostgreSQL's query rewriter: which policies an access draws in, and where it meets itself.

It follows ``get_row_security_policies()`` and ``fireRIRrules()`` of PostgreSQL. The rewriter keeps a stack of relations
(not of commands or users) whose policies or view it is expanding. It raises 42P17 when it meets a relation on that
stack again and the policies applied there hold any sub-select, even one that reads no table.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..model.catalog import COMMANDS, Catalog, Policy, Relation
from ..model.roles import RoleClass

#: The session's own role, in contrast to the oid of a view's owner.
INVOKER = 0

# What each variant draws in: (command whose policies apply, "using" to filter rows that exist, "check" for rows that
# are written, "force" where the USING expression checks the rows that are written).
_STEPS: t.Dict[str, t.Tuple[t.Tuple[str, str], ...]] = {
    "select": (("r", "using"),),
    "select_for_update": (("r", "using"), ("w", "using")),
    "insert": (("a", "check"),),
    "insert_returning": (("a", "check"), ("r", "force")),
    "upsert": (("a", "check"), ("r", "force"), ("w", "force"), ("w", "check")),
    "update_blind": (("w", "using"), ("w", "check")),
    "update": (("r", "using"), ("w", "using"), ("w", "check"), ("r", "force")),
    "delete_blind": (("d", "using"),),
    "delete": (("r", "using"), ("d", "using")),
}


class Use(t.NamedTuple):
    """A policy's expression (``slot``: using or check) applied for ``command`` (r a w d)."""

    policy: Policy
    slot: str
    command: str


class Context(t.NamedTuple):
    """Under whose identity and for which command an expression is applied. ``user`` is a role's oid."""

    user: int
    command: str


class Edge(t.NamedTuple):
    """A reference that can be cut: the expression ``slot`` of policy ``policy`` (oid) reads ``target``, a relation or a
    function (oid).
    """

    policy: int
    slot: str
    target: int


class Step(t.NamedTuple):
    """One hop of a path: from ``relation`` through a policy's expression (None: through a view's query)
    to ``target``.
    """

    relation: int
    use: t.Optional[Use]
    user: int
    target: int


@dataclass(frozen=True)
class Cut:
    """References that no longer exist in the simulated schema: all of an edge's, but for the contexts that keep the
    original.
    """

    edges: t.Mapping[Edge, t.FrozenSet[Context]]

    def hides(self, edge: Edge, context: Context) -> bool:
        hidden = self.edges.get(edge)
        return hidden is not None and context not in hidden


class Simulator:
    """Decides accesses of one catalog; ``cut`` removes references, ``sublinks`` and ``unwrapped`` (policy oids) add
    sub-selects that are not there, or take those away that read no table.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        cut: t.Optional[Cut] = None,
        sublinks: t.Collection[int] = (),
        unwrapped: t.Collection[int] = (),
    ) -> None:
        self.catalog = catalog
        self.cut = cut
        self.sublinks = frozenset(sublinks)
        self.unwrapped = frozenset(unwrapped)
        self._inert_tables: t.Dict[int, bool] = {}
        self._applied: t.Dict[t.Tuple[int, int, str], t.Tuple[t.Tuple[Use, ...], bool]] = {}
        self._refs: t.Dict[t.Tuple[int, int, str], t.Tuple[Step, ...]] = {}
        # (session role, relation, effective user) -> relations below that would raise if they were on the stack.
        self._clean: t.Dict[t.Tuple[int, int, int], t.FrozenSet[int]] = {}

    # -- which policies ------------------------------------------------------------------------------------------------

    def exempt(self, relation: Relation, user: int) -> bool:
        """Whether row-level security does not apply: not enabled, a superuser, BYPASSRLS, or the owner
        unless forced.
        """
        if relation.kind not in ("r", "p") or not relation.secured:
            return True
        role = self.catalog.roles.get(user)
        if role is None or role.superuser or role.bypass:
            return True
        return not relation.forced and relation.owner in self.catalog.held.get(user, frozenset((user,))) | {user}

    def applied(self, relation: Relation, user: int, variant: str) -> t.Tuple[t.Tuple[Use, ...], bool]:
        """The expressions that PostgreSQL attaches, and whether it counts them as holding a sub-select."""
        key = (relation.oid, user, variant)
        if key not in self._applied:
            self._applied[key] = self._apply(relation, user, variant)
        return self._applied[key]

    def _apply(self, relation: Relation, user: int, variant: str) -> t.Tuple[t.Tuple[Use, ...], bool]:
        if not relation.policies or self.exempt(relation, user):
            return (), False
        key = (relation.oid, user, variant)
        uses = self.catalog.uses.get(key)
        if uses is None:
            uses = self.catalog.uses[key] = self._uses(relation, user, variant)
        return uses, any(self._counts(use.policy) for use in uses)

    def _uses(self, relation: Relation, user: int, variant: str) -> t.Tuple[Use, ...]:
        """The same for every simulation of a catalog."""
        uses: t.Dict[Use, None] = {}
        for command, manner in _STEPS[variant]:
            key = (relation.oid, user, command, manner)
            step = self.catalog.uses.get(key)
            if step is None:
                memberships = self.catalog.held.get(user, frozenset()) | {user, 0}
                mine = [
                    policy
                    for policy in relation.policies
                    if policy.command in ("*", command) and not memberships.isdisjoint(policy.roles)
                ]
                step = [use for use in (_use(policy, command, manner) for policy in mine) if use]
                # Without a permissive policy nothing is visible anyway: PostgreSQL puts "false" there and leaves the
                # restrictive ones out.
                step = step if any(use.policy.permissive for use in step) else []
                self.catalog.uses[key] = step
            uses.update(dict.fromkeys(step))
        return tuple(uses)

    def _counts(self, policy: Policy) -> bool:
        return policy.oid in self.sublinks or (policy.has_sublink and policy.oid not in self.unwrapped)

    def steps(self, relation: Relation, user: int, role: int, variant: str) -> t.Tuple[Step, ...]:
        """What the rewriter expands next: one step for every relation that the applied expressions read and that is not
        cut off.
        """
        key = (relation.oid, user if user != INVOKER else -role, variant)
        if key not in self._refs:
            self._refs[key] = tuple(self._steps(relation, user, role, variant))
        return self._refs[key]

    def _steps(self, relation: Relation, user: int, role: int, variant: str) -> t.Iterator[Step]:
        if relation.kind == "v":
            below = INVOKER if relation.invoker else relation.owner
            for target in relation.query.relations if relation.query else ():
                yield Step(relation.oid, None, below, target)
            return
        effective = user or role
        for use in self.applied(relation, effective, variant)[0]:
            expression = use.policy.slot(use.slot)
            for target in expression.relations if expression else ():
                if not (
                    self.cut and self.cut.hides(Edge(use.policy.oid, use.slot, target), Context(effective, use.command))
                ):
                    yield Step(relation.oid, use, user, target)

    def _raises(self, relation: Relation, user: int, role: int, variant: str) -> bool:
        """Whether meeting this relation again would be an error, and it goes onto the stack."""
        if relation.kind == "v":
            return True
        return self.applied(relation, user or role, variant)[1]

    # -- what happens --------------------------------------------------------------------------------------------------

    def check(self, who: RoleClass, relation: Relation, variant: str) -> t.Optional[t.List[Step]]:
        """None where the access is accepted, else the steps that lead from it to the relation that is met again."""
        if not self._inert(relation) and self._raises(relation, INVOKER, who.oid, variant):
            return self._from(who, relation, variant)
        return None

    def _inert(self, relation: Relation) -> bool:
        """Whether nothing can go wrong there for anybody: no policy of the table holds a sub-select, or no reference
        from it leads in a circle.
        """
        cached = self._inert_tables.get(relation.oid)
        if cached is None:
            silent = relation.kind != "v" and not any(self._counts(policy) for policy in relation.policies)
            cached = silent or relation.oid not in self.catalog.circular()
            self._inert_tables[relation.oid] = cached
        return cached

    def _from(self, who: RoleClass, relation: Relation, variant: str) -> t.Optional[t.List[Step]]:
        below: t.Set[int] = set()
        for step in self.steps(relation, INVOKER, who.oid, variant):
            path = self._descend(step, who.oid, [relation.oid], below)
            if path is not None:
                return path
        return None

    def _descend(self, step: Step, role: int, stack: t.List[int], below: t.Set[int]) -> t.Optional[t.List[Step]]:
        relation = self.catalog.relations.get(step.target)
        if relation is None or relation.kind not in ("r", "p", "v"):
            return None
        variant = _variant(step)
        if not self._raises(relation, step.user, role, variant):
            return None
        if relation.oid in stack:
            return [step]
        # A plain read is decided once; one that locks rows is too rare to remember.
        key = (role, relation.oid, step.user)
        cached = self._clean.get(key) if variant == "select" else None
        if cached is not None and cached.isdisjoint(stack):
            below |= cached
            return None
        mine: t.Set[int] = {relation.oid}
        stack.append(relation.oid)
        for onward in self.steps(relation, step.user, role, variant):
            path = self._descend(onward, role, stack, mine)
            if path is not None:
                return [step, *path]
        stack.pop()
        if variant == "select":
            self._clean[key] = frozenset(mine)
        below |= mine
        return None

    def reached(
        self, who: RoleClass, relation: Relation, variant: str, seen: t.Set[t.Tuple[int, int, str]]
    ) -> t.Iterator[t.Tuple[Use, Context]]:
        """Every expression that an access draws in, directly or below, with its context; ``seen`` is shared between
        accesses of a role.
        """
        todo = [(relation.oid, INVOKER, variant)]
        while todo:
            key = todo.pop()
            current = self.catalog.relations.get(key[0])
            if key in seen or current is None:
                continue
            seen.add(key)
            effective = key[1] or who.oid
            if current.kind in ("r", "p"):
                for use in self.applied(current, effective, key[2])[0]:
                    yield use, Context(effective, use.command)
            todo += [(step.target, step.user, _variant(step)) for step in self.steps(current, key[1], who.oid, key[2])]

    # -- in words ------------------------------------------------------------------------------------------------------

    def words(self, path: t.Sequence[Step]) -> t.List[str]:
        """A path for people: ``trips (SELECT policy "p") -> parts (SELECT policy "q") -> trips``."""
        words = []
        for step in path:
            relation = self.catalog.relations[step.relation]
            if step.use is None:
                words.append(f"{relation.short} (view, read as {'its caller' if relation.invoker else 'its owner'})")
            else:
                words.append(f"{relation.short} ({describe(step.use)})")
        return [*words, self.catalog.relations[path[-1].target].short]


def describe(use: Use) -> str:
    """``SELECT policy "name"``, with the expression named where it is the WITH CHECK."""
    check = ", WITH CHECK" if use.slot == "check" else ""
    return f'{COMMANDS[use.command]} policy "{use.policy.name}"{check}'


def cycle(path: t.Sequence[Step]) -> t.List[Step]:
    """The part of a path that goes round: from the first visit of the relation that is met again."""
    again = path[-1].target
    start = next(number for number, step in enumerate(path) if step.relation == again)
    return list(path[start:])


def _use(policy: Policy, command: str, manner: str) -> t.Optional[Use]:
    if manner == "check" and policy.check is not None:
        return Use(policy, "check", command)
    return Use(policy, "using", command) if policy.using is not None else None


def _variant(step: Step) -> str:
    expression = step.use.policy.slot(step.use.slot) if step.use else None
    return "select_for_update" if expression and expression.locks_rows else "select"
