# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decides which references are cut, so that no access fails any more and none that works today is touched."""

from __future__ import annotations

import dataclasses
import functools
import typing as t
from dataclasses import dataclass, field

from ..audit import audits, callgraph
from ..audit.simulate import Context, Cut, Edge, Simulator, Step, cycle, describe
from ..model import policies, tree, wrap
from ..model.catalog import COMMANDS, Catalog, Policy, Relation
from ..model.column_details import Details
from ..model.expression_types import ExpressionTypes
from ..model.function_bodies import Bodies
from ..model.roles import RoleClass
from ..model.transactions import Cursor, rows
from . import captured, clone, rewrite
from .hitting_set import hitting_set
from .owner import Owners
from .volatility import DIFFERENCE, Volatility

#: Added to a cut's weight where the policy must be split, so that what works keeps its text.
SPLIT_COST = 1000

Slot = t.Tuple[int, str]


class Access(t.NamedTuple):
    who: RoleClass
    relation: Relation
    variant: str

    @property
    def words(self) -> str:
        return f"{self.variant} of {self.relation.short} as {self.who.name}"


@dataclass(frozen=True)
class Refusal:
    """What is left as it is, why, and what a person should do."""

    object: str
    reason: str
    advice: str
    details: t.Dict[str, t.Any] = field(default_factory=dict)

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {"object": self.object, "reason": self.reason, "advice": self.advice, **self.details}


@dataclass
class Options:
    allow_unbounded: bool = False
    accept_captured_columns: bool = False
    helper_schema: str = "rls_ops"
    read_volatile: bool = False


@dataclass
class Decision:
    """The outcome: what becomes of the policies, which helpers that takes and who may call them."""

    changes: t.List[policies.Change] = field(default_factory=list)
    helpers: t.Dict[str, t.Tuple[rewrite.Creatable, t.Set[str]]] = field(default_factory=dict)
    cuts: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    refusals: t.List[Refusal] = field(default_factory=list)
    cut: Cut = field(default_factory=lambda: Cut({}))
    unwrapped: t.FrozenSet[int] = frozenset()
    left: t.Set[t.Tuple[str, str, str]] = field(default_factory=set)
    warnings: t.List[str] = field(default_factory=list)


@dataclass
class _Option:
    """A reference that could be cut: at what cost, or why not."""

    weight: float = 0.0
    split: bool = False
    reason: str = ""
    advice: str = ""


class _Version(t.NamedTuple):
    """The slots of a policy that are cut for ``roles`` (quoted names), but for whoever holds one of ``others``
    (names).
    """

    roles: t.Tuple[str, ...]
    slots: t.FrozenSet[str]
    others: t.Tuple[str, ...] = ()


class Planner:
    """Plans the cuts of one catalog."""

    def __init__(self, cursor: Cursor, catalog: Catalog, details: Details, owners: Owners, options: Options) -> None:
        self.catalog = catalog
        self.details = details
        self.owners = owners
        self.options = options
        self.policies = {policy.oid: policy for policy in catalog.policies()}
        self.cursor = cursor
        self.held = _held(cursor)
        self.types = ExpressionTypes(cursor)
        self.simulator = Simulator(catalog)
        self.bodies = Bodies(catalog)
        if options.read_volatile:
            self.details = dataclasses.replace(details, volatile=details.volatile - self.reading)
        self.graph = callgraph.CallGraph(catalog, bodies=self.bodies)
        self.failing: t.List[Access] = []
        # Accesses that PostgreSQL accepts, but that can go round through a function when they run.
        self.runtime: t.List[Access] = []
        # For every expression the contexts in which a working access draws it in: there it keeps its text.
        self.kept: t.Dict[Slot, t.Set[Context]] = {}
        self.broken: t.Dict[Slot, t.Set[Context]] = {}
        self._options: t.Dict[Edge, _Option] = {}

    @functools.cached_property
    def reading(self) -> t.FrozenSet[t.Tuple[str, str]]:
        return Volatility(self.catalog, self.details, self.bodies).reading()

    # -- what works and what does not ----------------------------------------------------------------------------------

    def survey(self) -> None:
        working: t.Dict[str, t.Set[t.Tuple[int, int, str]]] = {}
        for who, relation, variant in audits.accesses(self.catalog):
            if self.simulator.check(who, relation, variant):
                self.failing.append(Access(who, relation, variant))
            elif self.graph.any and self.graph.check(who, relation, variant):
                self.runtime.append(Access(who, relation, variant))
            else:
                for use, context in self.simulator.reached(who, relation, variant, working.setdefault(who.name, set())):
                    self.kept.setdefault((use.policy.oid, use.slot), set()).add(context)
        visited: t.Dict[str, t.Set[t.Tuple[int, int, str]]] = {}
        for who, relation, variant in [*self.failing, *self.runtime]:
            for use, context in self.simulator.reached(who, relation, variant, visited.setdefault(who.name, set())):
                slot = (use.policy.oid, use.slot)
                if context not in self.kept.get(slot, ()):
                    self.broken.setdefault(slot, set()).add(context)

    def reads_captured(self, access: Access) -> t.List[t.Tuple[int, str]]:
        """The policies (oid, in words) below an access that compare a column with itself: what the error hides."""
        result = set()
        for use, _ignored in self.simulator.reached(*access, set()):
            expression = use.policy.slot(use.slot)
            if expression and expression.self_comparisons():
                table = self.catalog.relations[use.policy.relation].short
                result.add((use.policy.oid, f"{table}, {describe(use)}: {expression.self_comparisons()[0]}"))
        return sorted(result)

    # -- which references ----------------------------------------------------------------------------------------------

    def decide(self) -> Decision:
        self.survey()
        decision = Decision()
        review: t.Dict[Access, Refusal] = {}
        if not self.options.accept_captured_columns:
            self._refuse_captured(review)
        while True:
            cut, unwrapped, members = self._solve(review)
            simulator = Simulator(self.catalog, cut=Cut(cut), unwrapped=unwrapped)
            unmasked = [
                access for access in review if review[access].details.get("captured") and not simulator.check(*access)
            ]
            if not unmasked:
                break
            # A cut for others would take the error, and with it the protection, away: those others must wait for a
            # person as well.
            for access in unmasked:
                path = self.simulator.check(*access)
                shared = {edge for step in path or () for edge in [_edge(step)] if edge in cut}
                for other, edges in members.items():
                    if other not in review and (edges & shared or not shared):
                        review[other] = review[access]
        decision.cut, decision.unwrapped = Cut(cut), frozenset(unwrapped)
        # Where something is left to a person, a sub-select less may yet make it work.
        self._realize(decision, bool(review))
        for access, refusal in review.items():
            decision.left.add((access.who.name, access.relation.qualified, access.variant))
            if refusal.as_dict() not in [earlier.as_dict() for earlier in decision.refusals]:
                decision.refusals.append(refusal)
        return decision

    def _refuse_captured(self, review: t.Dict[Access, Refusal]) -> None:
        behind = {access: self.reads_captured(access) for access in [*self.failing, *self.runtime]}
        if not any(behind.values()):
            return
        proposals = captured.propose(self.cursor, self.catalog, self.details)
        captured.count(self.cursor, self.catalog, proposals)
        for access, policies_of in behind.items():
            if not policies_of:
                continue
            told = sorted({words for _policy, words in policies_of})
            oids = {policy for policy, _words in policies_of}
            mine = [proposal for proposal in proposals if proposal.policy.oid in oids]
            meant = ", ".join(dict.fromkeys(name for proposal in mine for name in proposal.columns))
            advice = "Qualify the column with the table that was meant."
            if mine and {proposal.policy.oid for proposal in mine} == oids:
                advice = f"Meant is probably {meant}: --fix captured (fix: [captured]) qualifies it so."
            review[access] = Refusal(
                access.relation.qualified,
                f"The recursion hides a column that is compared with itself ({'; '.join(told)}): without"
                " the error the policy would let through what its author did not mean.",
                f"{advice} Only if it is meant as it is written: accept_captured_columns.",
                {"captured": told, "proposals": [proposal.as_dict() for proposal in mine]},
            )

    def _solve(
        self, review: t.Dict[Access, Refusal]
    ) -> t.Tuple[t.Dict[Edge, t.FrozenSet[Context]], t.Set[int], t.Dict[Access, t.FrozenSet[Edge]]]:
        constraints: t.Dict[t.FrozenSet[Edge], t.Set[Access]] = {}
        cut: t.Dict[Edge, t.FrozenSet[Context]] = {}
        unwrapped: t.Set[int] = set()
        while True:
            simulator = Simulator(self.catalog, cut=Cut(cut), unwrapped=unwrapped)
            progress = False
            for access in self.failing:
                path = None if access in review else simulator.check(*access)
                if not path:
                    continue
                progress = True
                candidates = self._candidates(access, path)
                if candidates:
                    constraints.setdefault(candidates, set()).add(access)
                    continue
                plain = self._unwrappable(access, path, simulator)
                if plain:
                    unwrapped |= plain
                else:
                    review[access] = self._refuse(access, path, simulator)
            if not progress:
                progress = self._solve_runtime(Cut(cut), review, constraints)
            if not progress:
                members: t.Dict[Access, t.Set[Edge]] = {}
                for edges, accesses in constraints.items():
                    for access in accesses:
                        members.setdefault(access, set()).update(edges)
                return cut, unwrapped, {access: frozenset(edges) for access, edges in members.items()}
            # What only an access asks for that is left to a person would be a change that mends nothing.
            constraints = {
                edges: accesses - review.keys()
                for edges, accesses in constraints.items()
                if not accesses <= review.keys()
            }
            selection = hitting_set(set(constraints), lambda edge: self._option(edge).weight)
            cut = {edge: frozenset(self.kept.get((edge.policy, edge.slot), ())) for edge in selection}

    def _solve_runtime(
        self, cut: Cut, review: t.Dict[Access, Refusal], constraints: t.Dict[t.FrozenSet[Edge], t.Set[Access]]
    ) -> bool:
        """Adds what breaks the cycles through functions that a cut leaves; whether there were any."""
        if not self.graph.any:
            return False
        graph = callgraph.CallGraph(self.catalog, cut=cut, bodies=self.bodies)
        progress = False
        for access in [*self.failing, *self.runtime]:
            path = None if access in review else graph.check(*access)
            if not path:
                continue
            progress = True
            candidates, reasons = set(), {}
            for hop in callgraph.cycle(path):
                if hop.use is None:
                    continue
                edge = Edge(hop.use.policy.oid, hop.use.slot, hop.target.relation or -hop.target.function)
                context = Context(hop.source.user or hop.source.session or access.who.oid, hop.use.command)
                option = self._option(edge)
                if context not in self.kept.get((edge.policy, edge.slot), ()) and not option.reason:
                    candidates.add(edge)
                else:
                    table = self.catalog.relations[hop.source.relation].short
                    reasons[
                        f"{table} ({describe(hop.use)}):"
                        f" {option.reason or 'an access that works draws in the same expression'}"
                    ] = option.advice
            if candidates:
                constraints.setdefault(frozenset(candidates), set()).add(access)
            else:
                words = " -> ".join(graph.words(path))
                review[access] = Refusal(
                    access.relation.qualified,
                    f"{words} can end in 54001 and cannot be cut: " + "; ".join(reasons),
                    " ".join(dict.fromkeys(advice for advice in reasons.values() if advice))
                    or "Make the function SECURITY DEFINER by hand.",
                    {"path": words},
                )
        return progress

    def _candidates(self, access: Access, path: t.Sequence[Step]) -> t.FrozenSet[Edge]:
        edges = set()
        for step in cycle(path):
            edge = _edge(step)
            if edge is None or step.use is None:
                continue
            context = Context(step.user or access.who.oid, step.use.command)
            if context not in self.kept.get((edge.policy, edge.slot), ()) and not self._option(edge).reason:
                edges.add(edge)
        return frozenset(edges)

    def _option(self, edge: Edge) -> _Option:
        if edge not in self._options:
            self._options[edge] = self._weigh(edge)
        return self._options[edge]

    def _weigh(self, edge: Edge) -> _Option:
        policy = self.policies[edge.policy]
        expression = policy.slot(edge.slot)
        if expression is None:
            raise AssertionError("a defect: expression is missing")
        table = self.catalog.relations[policy.relation]
        if not table.owned:
            return _Option(
                reason=(
                    f"{table.short} belongs to {self.catalog.role_name(table.owner)}, and {self.catalog.current_user}"
                    " may not change its policies"
                ),
                advice="Connect as the table's owner or as a superuser.",
            )
        try:
            outcome = self._rewrite(policy, edge.slot, [edge.target])
            for helper in outcome.helpers:
                self.owners.of_helper(helper)
        except rewrite.CannotRewrite as error:
            return _Option(reason=str(error), advice="Rewrite the policy by hand with a SECURITY DEFINER function.")
        if edge.target > 0:
            target = self.catalog.relations[edge.target]
        if outcome.unbounded and not self.options.allow_unbounded:
            undeclared = self._undeclared(policy, edge)
            if undeclared:
                return _Option(
                    reason=(
                        f"the function would give back every row of {target.short}: {undeclared} is VOLATILE, though its"
                        " body only reads, so that it cannot be asked once for all rows"
                    ),
                    advice=(
                        f"ALTER FUNCTION ... STABLE, or --fix volatile (fix: [volatile]), which takes it for STABLE. "
                        f"{DIFFERENCE}"
                    ),
                )
            return _Option(
                reason=(
                    f"the function would give back every row of {target.short}: the policy neither ties it to the"
                    " caller nor to its own row"
                ),
                advice=(
                    "Tie the sub-select to the caller (user_id = auth.uid()), or allow_unbounded: only roles with"
                    " EXECUTE can read it, and none of them can name it without USAGE of its schema."
                ),
            )
        weight = float(outcome.weight) + (100 if expression.self_comparisons() else 0)
        cached = self.kept.get((edge.policy, edge.slot))
        if cached:
            reason = self._inseparable(policy)
            if reason:
                return _Option(
                    reason=reason, advice="Split the policy by hand, so that what works has a policy of its own."
                )
            weight += SPLIT_COST
        return _Option(weight, bool(cached))

    def _undeclared(self, policy: Policy, edge: Edge) -> str:
        """The VOLATILE functions that only read and without which the cut would be bound; empty for none."""
        expression = policy.slot(edge.slot)
        names = {
            (one.schema, one.name): callgraph.short(one)
            for one in self.catalog.functions.values()
            if expression is not None and one.oid in expression.functions and one.volatility == "v"
        }
        reading = self.reading & names.keys()
        if not reading:
            return ""
        details = dataclasses.replace(self.details, volatile=self.details.volatile - reading)
        try:
            bound = not self._rewrite(policy, edge.slot, [edge.target], details).unbounded
        except rewrite.CannotRewrite:
            return ""
        return ", ".join(names[name] for name in sorted(reading)) if bound else ""

    def _rewrite(
        self, policy: Policy, slot: str, targets: t.Sequence[int], details: t.Optional[Details] = None
    ) -> rewrite.Rewritten:
        """The new expression; a negative target is a function."""
        expression = policy.slot(slot)
        if expression is None:
            raise AssertionError("a defect: expression is missing")
        copies = {
            -target: clone.clone(
                self.catalog.functions[-target],
                self.catalog,
                self.details,
                self.bodies,
                read_volatile=self.options.read_volatile,
            )
            for target in targets
            if target < 0
        }
        tables = [target for target in targets if target > 0]
        owner = self.catalog.relations[policy.relation]
        return rewrite.rewrite(
            expression.text,
            owner,
            tables,
            self.catalog,
            details or self.details,
            self.options.helper_schema,
            copies,
            self.types,
        )

    def _unwrappable(self, access: Access, path: t.Sequence[Step], simulator: Simulator) -> t.Set[int]:
        """The policies whose FROM-less sub-selects make a harmless second visit an error: without them it is none (and
        the same rows).
        """
        last = path[-1]
        again = self.catalog.relations[last.target]
        if again.kind == "v":
            return set()
        uses, _ignored = simulator.applied(again, last.user or access.who.oid, "select")
        guilty = {use.policy for use in uses if use.policy.has_sublink and use.policy.oid not in simulator.unwrapped}
        for policy in guilty:
            if not self.catalog.relations[policy.relation].owned:
                return set()
            for expression in (policy.using, policy.check):
                if expression is None or not expression.has_sublink:
                    continue
                holder = tree.parse(expression.text)
                if (
                    not tree.faithful(expression.text)
                    or not wrap.unwrap(holder)
                    or any(True for _ignored in tree.of_type(holder, "SubLink"))
                ):
                    return set()
        return {policy.oid for policy in guilty}

    def _refuse(self, access: Access, path: t.Sequence[Step], simulator: Simulator) -> Refusal:
        reasons: t.Dict[str, str] = {}
        for step in cycle(path):
            edge = _edge(step)
            if edge is None or step.use is None:
                continue
            option = self._option(edge)
            table = self.catalog.relations[step.relation].short
            why = (
                option.reason or "an access that works today draws in the same expression for the same role and command"
            )
            reasons.setdefault(
                f"{table} ({describe(step.use)}): {why}",
                option.advice or "Give the working access a policy of its own.",
            )
        words = " -> ".join(simulator.words(path))
        if not reasons:
            reasons["views that read each other can only be defined anew"] = (
                "Define one of the views without the other."
            )
        return Refusal(
            access.relation.qualified,
            f"{words} cannot be cut: " + "; ".join(reasons),
            " ".join(dict.fromkeys(reasons.values())),
            {"path": words},
        )

    # -- splitting -----------------------------------------------------------------------------------------------------

    def _inseparable(self, policy: Policy) -> str:
        """Why no set of policies could give the original to what works and the new text to what does not; empty where
        one can.
        """
        try:
            for command in _commands(policy):
                self._versions(policy, command, {"using", "check"})
        except rewrite.CannotRewrite as error:
            return str(error)
        return ""

    def _versions(self, policy: Policy, command: str, slots: t.Collection[str]) -> t.List[_Version]:
        """For one command: which roles get which slots cut. One entry with the policy's own roles where all are
        alike.
        """
        relevant = [slot for slot in slots if policy.slot(slot) is not None and slot in _slots_of(policy, command)]
        columns: t.Dict[int, t.FrozenSet[str]] = {}
        users = {
            context.user
            for slot in relevant
            for contexts in (self.kept, self.broken)
            for context in contexts.get((policy.oid, slot), ())
            if context.command == command
        }
        for user in users:
            context = Context(user, command)
            columns[user] = frozenset(slot for slot in relevant if context not in self.kept.get((policy.oid, slot), ()))
        everything = frozenset(relevant)
        if len(set(columns.values())) <= 1:
            return [_Version(policy.role_names, next(iter(columns.values()), everything))]
        by_class = {member: version for user, version in columns.items() for member in self._members(user)}
        names = {role.oid: role.name for role in self.catalog.roles.values()}
        public = 0 in policy.roles
        if public:
            candidates = [
                role.oid
                for role in self.catalog.roles.values()
                if not role.superuser and not role.bypass and not role.name.startswith("pg_")
            ]
        else:
            candidates = list(policy.roles)
        groups: t.Dict[t.FrozenSet[str], t.List[str]] = {}
        for candidate in candidates:
            versions = {
                version
                for member, version in by_class.items()
                if candidate in self.held.get(member, ()) or candidate == member
            }
            if len(versions) > 1:
                raise rewrite.CannotRewrite(
                    f'policy "{policy.name}" serves roles for which {COMMANDS[command]} works and others for which it'
                    f" fails through {names[candidate]}, so that it cannot be split by role"
                )
            groups.setdefault(next(iter(versions), everything), []).append(names[candidate])
        if public and not self._reads_for_others(users):
            # A role that is made later is one of PUBLIC, and must not lose what the policy gives it.
            groups.pop(everything, None)
            others = tuple(sorted(name for roles in groups.values() for name in roles))
            shared = [_Version(("public",), everything, others)]
        else:
            shared = []
        split = [_Version(tuple(sorted(map(tree.quote, roles))), version) for version, roles in groups.items()]
        return sorted([*shared, *split], key=lambda one: (len(one.slots), one.roles))

    def _reads_for_others(self, users: t.Collection[int]) -> bool:
        """Whether one of the users is the owner of a view, whose policies apply while ``current_user`` is somebody
        else.
        """
        return any(
            relation.kind == "v" and not relation.invoker and relation.owner in users
            for relation in self.catalog.relations.values()
        )

    def _members(self, user: int) -> t.List[int]:
        by_name = {role.name: role.oid for role in self.catalog.roles.values()}
        for role_class in self.catalog.classes:
            if role_class.oid == user:
                return [by_name[name] for name in role_class.members]
        return [user]

    def _wrap(self, policy: Policy, texts: t.Dict[str, str]) -> None:
        """Has the identity calls of a policy that gets another text anyway run once for a query, where no access that
        works reads it. The simulation counts a policy with a cut as holding a sub-select already.
        """
        for slot in ("using", "check"):
            expression = policy.slot(slot)
            if expression is None or (slot not in texts and self.kept.get((policy.oid, slot))):
                continue
            text = texts.get(slot, expression.text)
            holder = tree.parse(text)
            if tree.faithful(text) and wrap.wrap(holder):
                texts[slot] = tree.show(holder.val)

    def _realize(self, decision: Decision, refused: bool) -> None:
        touched: t.Dict[int, t.Dict[str, t.List[int]]] = {}
        for edge in sorted(decision.cut.edges):
            touched.setdefault(edge.policy, {}).setdefault(edge.slot, []).append(edge.target)
        for oid in sorted(set(touched) | decision.unwrapped):
            policy = self.policies[oid]
            relation = self.catalog.relations[policy.relation]
            cut = touched.get(oid, {})
            texts = {slot: self._new_text(decision, policy, relation, slot, targets) for slot, targets in cut.items()}
            if cut and not refused and oid not in decision.unwrapped:
                self._wrap(policy, texts)
            if oid in decision.unwrapped:
                for slot in ("using", "check"):
                    expression = policy.slot(slot)
                    if expression is not None and expression.has_sublink:
                        holder = tree.parse(texts.get(slot, expression.text))
                        wrap.unwrap(holder)
                        texts[slot] = tree.show(holder.val)
                        decision.cuts.append(
                            {
                                "table": relation.qualified,
                                "policy": policy.name,
                                "expression": slot,
                                "form": "unwrapped",
                                "weight": 0,
                            }
                        )
            guarded: t.Dict[str, t.FrozenSet[str]] = {}
            pieces = self._pieces(policy, relation, texts, cut, guarded)
            change = policies.Change(relation, [policy], pieces, ["recursion"], guarded)
            if oid in decision.unwrapped:
                change.reasons.append("unwrapped")
            decision.changes.append(change)
            self._grant(decision, change)
            if guarded:
                decision.warnings.append(
                    f"{relation.qualified}: {policy.name} stays for PUBLIC with the new text: a role made later is served"
                    " as those are for which it failed. Those for which it works keep the old text, by name."
                )
            elif 0 in policy.roles and any(piece.roles != policy.role_names for piece in change.after):
                decision.warnings.append(
                    f"{relation.qualified}: {policy.name} was for PUBLIC and is now for each role by name, as the owner"
                    " of a view reads the table through it: a role made later needs to be added to it."
                )

    def _new_text(self, decision: Decision, policy: Policy, relation: Relation, slot: str, targets: t.List[int]) -> str:
        outcome = self._rewrite(policy, slot, targets)
        for helper in outcome.helpers:
            decision.helpers.setdefault(helper.name, (helper, set()))
        decision.cuts.append(
            {
                "table": relation.qualified,
                "policy": policy.name,
                "expression": slot,
                "reads": [
                    (self.catalog.relations[target] if target > 0 else self.catalog.functions[-target]).qualified
                    for target in targets
                ],
                "form": ", ".join(dict.fromkeys(outcome.forms)),
                "helpers": [helper.name for helper in outcome.helpers],
                "bound": [helper.bound or "unbounded" for helper in outcome.helpers],
                "weight": outcome.weight,
                "split": bool(self.kept.get((policy.oid, slot))),
            }
        )
        return outcome.text

    def _pieces(
        self,
        policy: Policy,
        relation: Relation,
        texts: t.Dict[str, str],
        cut: t.Dict[str, t.List[int]],
        guarded: t.Dict[str, t.FrozenSet[str]],
    ) -> t.List[policies.Piece]:
        old = policies.original(policy)

        def text(slot: str, version: t.Collection[str]) -> t.Optional[str]:
            expression = policy.slot(slot)
            if expression is None:
                return None
            return texts[slot] if slot in texts and (slot in version or slot not in cut) else expression.text

        if not any(self.kept.get((policy.oid, slot)) for slot in cut):
            return [
                policies.Piece(old.name, old.command, old.permissive, old.roles, text("using", cut), text("check", cut))
            ]
        plan = {command: self._versions(policy, command, cut) for command in _commands(policy)}
        names = {other.name for other in relation.policies}
        pieces: t.List[policies.Piece] = []
        for command, versions in plan.items():
            for version in versions:
                using = text("using", version.slots) if command != "a" else None
                check = {
                    "r": None,
                    "d": None,
                    "w": text("check", version.slots),
                    "a": text("check", version.slots) or text("using", version.slots),
                }[command]
                # An expression that is not cut is the same in each piece.
                if version.others and "using" in version.slots:
                    using = _guarded(using, version.others, policy.permissive)
                if version.others and ("check" in version.slots or (command == "a" and version.slots)):
                    check = _guarded(check, version.others, policy.permissive)
                name = (
                    policy.name
                    if not pieces
                    else policies.unused_name(f"{policy.name} ({COMMANDS[command].lower()})", names)
                )
                names.add(name)
                pieces.append(policies.Piece(name, command, policy.permissive, version.roles, using, check))
                if version.others:
                    guarded[name] = frozenset(version.others)
        return pieces

    def _grant(self, decision: Decision, change: policies.Change) -> None:
        """Whoever a policy applies to evaluates it, and so must be allowed to call what it calls."""
        for piece in change.after:
            for text in (piece.using, piece.check):
                for call in tree.of_type(tree.parse(text), "FuncCall") if text else ():
                    name = tree.function_name(call)
                    if len(name) == 2 and name[0] == self.options.helper_schema and name[1] in decision.helpers:
                        decision.helpers[name[1]][1].update(piece.roles)


def _edge(step: Step) -> t.Optional[Edge]:
    return Edge(step.use.policy.oid, step.use.slot, step.target) if step.use else None


def _commands(policy: Policy) -> t.Tuple[str, ...]:
    return ("r", "a", "w", "d") if policy.command == "*" else (policy.command,)


def _slots_of(policy: Policy, command: str) -> t.Tuple[str, ...]:
    """The expressions of a policy that a command uses."""
    if command in ("r", "d"):
        return ("using",)
    if command == "a":
        return ("check",) if policy.check is not None else ("using",)
    return ("using", "check")


def _guarded(text: t.Optional[str], others: t.Sequence[str], permissive: bool) -> t.Optional[str]:
    """The expression for everybody but who holds one of ``others``, for whom a policy of their own stands.

    Policies are for whoever has a role's privileges, as ``pg_has_role`` asks.
    """
    if text is None:
        return None
    held = " OR ".join(f"pg_has_role({tree.literal(name)}, 'USAGE')" for name in others)
    return f"NOT (SELECT {held}) AND ({text})" if permissive else f"(SELECT {held}) OR ({text})"


def _held(cursor: Cursor) -> t.Dict[int, t.FrozenSet[int]]:
    """For every role that is not PostgreSQL's own the roles whose privileges it has."""
    memberships: t.Dict[int, t.Set[int]] = {}
    query = (
        "select a.oid::bigint as holder, b.oid::bigint as held from pg_catalog.pg_roles a, pg_catalog.pg_roles b"
        " where a.rolname !~ '^pg_' and b.rolname !~ '^pg_' and not a.rolsuper and pg_has_role(a.oid, b.oid, 'USAGE')"
    )
    for row in rows(cursor, query):
        memberships.setdefault(row["holder"], set()).add(row["held"])
    return {holder: frozenset(held) for holder, held in memberships.items()}
