# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Recursion that only shows at run time: a policy calls a function, which reads a table, whose policy calls the
function.

PostgreSQL does not expand a function's body when it rewrites a query, so that PREPARE cannot see this. It ends in
SQLSTATE 54001 (stack depth), if the data and the plan make the function run.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..model.catalog import Catalog, Function, Relation, leading_round
from ..model.findings import Finding
from ..model.function_bodies import Bodies
from ..model.roles import RoleClass
from .simulate import INVOKER, Context, Cut, Edge, Simulator, Use, describe


class Node(t.NamedTuple):
    """Something that runs. ``function`` or ``relation`` is an oid, the other 0. ``session``: the role that is the
    current user (0: the caller's); ``user``: under whose rights the relation is read, where a view's owner stands
    between (0: the session's).
    """

    relation: int
    function: int
    session: int
    user: int
    variant: str


class Hop(t.NamedTuple):
    """One step: from ``source`` (through a policy's expression, where it is a table) to ``target``."""

    source: Node
    use: t.Optional[Use]
    target: Node


@dataclass(frozen=True)
class Runtime:
    """An access that can end in 54001."""

    role: str
    roles: t.Tuple[str, ...]
    relation: Relation
    variant: str
    path: t.Tuple[Hop, ...]


class CallGraph:
    """Policies, views and functions of one catalog as they call each other."""

    def __init__(self, catalog: Catalog, *, cut: t.Optional[Cut] = None, bodies: t.Optional[Bodies] = None) -> None:
        self.catalog = catalog
        self.cut = cut
        self.bodies = bodies or Bodies(catalog)
        self.simulator = Simulator(catalog, cut=cut)
        self._hops: t.Dict[t.Tuple[int, Node], t.Tuple[Hop, ...]] = {}
        self._clean: t.Dict[int, t.Set[Node]] = {}
        self.called = self._reachable_functions()
        self._interesting: t.Dict[int, bool] = {}
        self._circular: t.Optional[t.FrozenSet[int]] = None

    @property
    def any(self) -> bool:
        """Whether a policy or view calls any function of users at all."""
        return any(self._leads_on(oid) for oid in self.called)

    def _leads_on(self, oid: int) -> bool:
        """Whether a function, or one that it calls, reads a table; auth.uid() and its kind do not."""
        if oid not in self._interesting:
            self._interesting[oid] = False  # for functions that call each other
            body = self.bodies.of(self.catalog.functions[oid])
            self._interesting[oid] = bool(body.relations) or any(self._leads_on(inner) for inner in body.functions)
        return self._interesting[oid]

    def _going_round(self) -> t.FrozenSet[int]:
        """Relations (oid) and functions (-oid) from which references lead in a circle, whoever reads and for whatever
        command; none where no function is among them, as nothing can recurse at run time then.
        """
        references: t.Dict[int, t.Set[int]] = {}
        for oid, relation in self.catalog.relations.items():
            called: t.Set[int] = set(relation.query.functions) if relation.query else set()
            for policy in relation.policies:
                for expression in (policy.using, policy.check):
                    called |= expression.functions if expression else set()
            own = called & self.catalog.functions.keys()
            references[oid] = relation.references() | {-inner for inner in own if self._leads_on(inner)}
        todo = [inner for inner in self.called if self._leads_on(inner)]
        while todo:
            oid = todo.pop()
            if -oid in references:
                continue
            function = self.catalog.functions[oid]
            body = self.bodies.of(function)
            # What its owner reads without policies leads no further.
            references[-oid] = {
                relation
                for relation, _variant in body.relations
                if not (function.definer and self._open_to(relation, function.owner))
            } | {-inner for inner in body.functions}
            todo += body.functions
        circular = leading_round(references)
        return circular if any(oid < 0 for oid in circular) else frozenset()

    def _open_to(self, oid: int, owner: int) -> bool:
        relation = self.catalog.relations.get(oid)
        return relation is None or (relation.kind in ("r", "p") and self.simulator.exempt(relation, owner))

    def _reachable_functions(self) -> t.Set[int]:
        called: t.Set[int] = set()
        for relation in self.catalog.relations.values():
            for policy in relation.policies:
                for expression in (policy.using, policy.check):
                    called |= expression.functions if expression else set()
            called |= relation.query.functions if relation.query else set()
        return {oid for oid in called if oid in self.catalog.functions}

    def check(self, who: RoleClass, relation: Relation, variant: str) -> t.Optional[t.List[Hop]]:
        """None where nothing can go round through a function, else the hops to the node that is met again."""
        if self._circular is None:
            self._circular = self._going_round()
        if relation.oid not in self._circular:
            return None
        start = Node(relation.oid, 0, INVOKER, INVOKER, variant)
        return self._descend(start, who, [start])

    def _descend(self, node: Node, who: RoleClass, stack: t.List[Node]) -> t.Optional[t.List[Hop]]:
        clean = self._clean.setdefault(who.oid, set())
        for hop in self.hops(node, who):
            target = hop.target
            if target in stack:
                # A cycle without a function is the rewriter's business.
                if any(one.function for one in stack[stack.index(target) :]):
                    return [hop]
                continue
            if target in clean:
                continue
            stack.append(target)
            path = self._descend(target, who, stack)
            if path is not None:
                return [hop, *path]
            stack.pop()
        # Nothing below this node leads to a function cycle, unless through what is still open above it.
        if len(stack) == 1 or not self._reaches_open(node, who, stack):
            clean.add(node)
        return None

    def _reaches_open(self, node: Node, who: RoleClass, stack: t.List[Node]) -> bool:
        above = set(stack[:-1])
        visited: t.Set[Node] = set()
        todo = [node]
        while todo:
            current = todo.pop()
            for hop in self.hops(current, who):
                if hop.target in above:
                    return True
                if hop.target not in visited and hop.target not in self._clean.get(who.oid, ()):
                    visited.add(hop.target)
                    todo.append(hop.target)
        return False

    def hops(self, node: Node, who: RoleClass) -> t.Tuple[Hop, ...]:
        key = (who.oid, node)
        if key not in self._hops:
            self._hops[key] = tuple(self._from_function(node) if node.function else self._from_relation(node, who))
        return self._hops[key]

    def _from_relation(self, node: Node, who: RoleClass) -> t.Iterator[Hop]:
        relation = self.catalog.relations.get(node.relation)
        if relation is None:
            return
        if relation.kind == "v":
            below = INVOKER if relation.invoker else relation.owner
            if relation.query is not None:
                yield from self._expression(node, None, relation.query.relations, relation.query.functions, below, who)
            return
        session = node.session or who.oid
        for use in self.simulator.applied(relation, node.user or session, node.variant)[0]:
            expression = use.policy.slot(use.slot)
            if expression is not None:
                context = Context(node.user or session, use.command)
                relations = [
                    oid
                    for oid in expression.relations
                    if not self._hidden(Edge(use.policy.oid, use.slot, oid), context)
                ]
                functions = [
                    oid
                    for oid in expression.functions
                    if not self._hidden(Edge(use.policy.oid, use.slot, -oid), context)
                ]
                yield from self._expression(node, use, relations, functions, node.user, who)

    def _hidden(self, edge: Edge, context: Context) -> bool:
        return self.cut is not None and self.cut.hides(edge, context)

    def _expression(
        self,
        node: Node,
        use: t.Optional[Use],
        relations: t.Iterable[int],
        functions: t.Iterable[int],
        user: int,
        who: RoleClass,
    ) -> t.Iterator[Hop]:
        for oid in relations:
            yield Hop(node, use, Node(oid, 0, node.session, user, "select"))
        for oid in functions:
            function = self.catalog.functions.get(oid)
            if function is not None and self._leads_on(oid):
                # A function runs as the current user, whoever owns the view that calls it.
                yield Hop(node, use, Node(0, oid, function.owner if function.definer else node.session, INVOKER, ""))

    def _from_function(self, node: Node) -> t.Iterator[Hop]:
        body = self.bodies.of(self.catalog.functions[node.function])
        for oid, variant in sorted(body.relations):
            yield Hop(node, None, Node(oid, 0, node.session, INVOKER, variant))
        for oid in sorted(body.functions):
            function = self.catalog.functions[oid]
            yield Hop(node, None, Node(0, oid, function.owner if function.definer else node.session, INVOKER, ""))

    def words(self, path: t.Sequence[Hop]) -> t.List[str]:
        """``members (SELECT policy "s") -> my_orgs() -> members``."""
        return [self._name(hop.source) + (f" ({describe(hop.use)})" if hop.use else "") for hop in path] + [
            self._name(path[-1].target)
        ]

    def _name(self, node: Node) -> str:
        if node.function:
            return short(self.catalog.functions[node.function])
        return self.catalog.relations[node.relation].short


def short(function: Function) -> str:
    """How people call it."""
    name = function.qualified[len("public.") :] if function.schema == "public" else function.qualified
    return f"{name}()"


def cycle(path: t.Sequence[Hop]) -> t.List[Hop]:
    """The part of a path that goes round."""
    again = path[-1].target
    start = next(number for number, hop in enumerate(path) if hop.source == again)
    return list(path[start:])


def runtime(
    read: Catalog, accesses: t.Iterable[t.Tuple[RoleClass, Relation, str]], graph: t.Optional[CallGraph] = None
) -> t.List[Runtime]:
    """Those of the accesses that can end in 54001."""
    graph = graph or CallGraph(read)
    if not graph.any:
        return []
    circles = []
    for who, relation, variant in accesses:
        path = graph.check(who, relation, variant)
        if path is not None:
            circles.append(Runtime(who.name, who.members, relation, variant, tuple(path)))
    return circles


def findings(read: Catalog, accesses: t.Iterable[t.Tuple[RoleClass, Relation, str]]) -> t.List[Finding]:
    """One finding for each relation and path, and one for each function that cannot be followed."""
    graph = CallGraph(read)
    groups: t.Dict[t.Tuple[str, t.Tuple[str, ...]], t.List[Runtime]] = {}
    for circle in runtime(read, accesses, graph):
        groups.setdefault((circle.relation.qualified, tuple(graph.words(circle.path))), []).append(circle)
    result = []
    for (relation, path), members in groups.items():
        commands = sorted({member.variant for member in members})
        roles = sorted({role for member in members for role in member.roles})
        result.append(
            Finding(
                "possible_54001",
                relation,
                f"{', '.join(commands)} as {', '.join(roles)} can end in 'stack depth limit exceeded' (SQLSTATE 54001):"
                f" {' -> '.join(path)}. It depends on the data and the plan.",
                "-- wheels-ops rls repair, or the module rls_repair",
                details={
                    "table": relation,
                    "commands": commands,
                    "roles": roles,
                    "path": list(path),
                    "sqlstate": "54001",
                },
            )
        )
    for oid in sorted(graph.called):
        function = read.functions[oid]
        reasons = graph.bodies.of(function).unknown
        if reasons and not function.extension:
            why = (
                f"What it reads cannot be told: {'; '.join(dict.fromkeys(reasons))}. A recursion through it would go"
                " unseen."
            )
            result.append(
                Finding("unknown_function", function.signature, why, details={"function": function.signature})
            )
    return result
