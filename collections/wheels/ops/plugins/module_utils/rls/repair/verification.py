# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that is verified of a plan before a policy is changed, under locks that no reader and no writer notices.

What could only be seen on the changed tables is left to ``apply``: that PostgreSQL has made of the policies what was
predicted, and that it accepts the accesses that they apply to.
"""

from __future__ import annotations

import contextlib
import hashlib
import typing as t
from dataclasses import dataclass

from ...core.results import OpsError
from ..audit import audits, callgraph, oracle
from ..audit.simulate import Simulator
from ..model import catalog, policies
from ..model.catalog import Catalog, Policy, Relation
from ..model.roles import RoleClass
from ..model.transactions import Connection, Cursor, transaction
from . import compare, locks, prediction, strict
from .owner import DEDICATED
from .plans import Plan
from .visibility import Refused, Unmeasured, Visibility

#: Accesses that are asked for while the locks are held, at most: so many, and so many more for each policy. One takes
#: about 15 us.
ASKED, ASKED_BY_POLICY = 1_000, 20


class Broken(OpsError):
    """The repair would have changed or left something that it must not; it was rolled back."""


class ChangedSince(OpsError):
    """The catalog is not the one any more that was verified."""


@dataclass
class Verified:
    """What was established. ``told``: the result in the words of ``apply``; ``state``: the digest of the catalog that
    it holds for; ``catalog``: as it will be; ``inexact``: see ``prediction``; ``seen``: what the
    sample of users will see; ``due``: the accesses to be asked for
    under the locks and ``later`` those to be asked for after them, all of which are predicted to work.
    """

    told: t.Dict[str, t.Any]
    state: str
    catalog: Catalog
    inexact: t.FrozenSet[int]
    seen: t.Dict[compare.Key, compare.Seen]
    due: t.List[oracle.Access]
    later: t.List[oracle.Access]


def state_query(plan: Plan) -> str:
    return locks.state_query(helper_schema=plan.helper_schema, owner=DEDICATED)


def preparations(plan: Plan) -> t.List[str]:
    """The statements that lock no table: the helpers, their owner and its rights."""
    return plan.statements[: len(plan.statements) - plan.locking]


def verify(connection: Connection, plan: Plan, *, statement_timeout_ms: int, lock_timeout_ms: int) -> Verified:
    """Raises ``Broken`` where the plan would change or leave what it must not, and ``OpsError`` where the policies are
    not those that it was made from. Nothing that it does stays.

    PostgreSQL reads the new policies (``prediction``), the simulation decides every access of the catalog that they
    make, and the rows that a sample of users will see (``visibility``) are compared with those that they see now.
    """
    timeouts: t.Dict[str, t.Any] = {"statement_timeout_ms": statement_timeout_ms, "lock_timeout_ms": lock_timeout_ms}
    with transaction(connection, read_only=False, **timeouts) as cursor, explained(cursor):
        cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (locks.ADVISORY,))
        cursor.execute(state_query(plan))
        state = str(cursor.fetchone()[0])
        before = catalog.read(cursor, schemas=plan.schemas, roles=plan.roles)
        _check_planned(plan, before)
        asked = oracle.ask(cursor, before.classes, schemas=plan.schemas)
        failing = audits.explain(before, asked, audits.predict(before))
        columns = oracle.columns(cursor, schemas=plan.schemas)
        old = Simulator(before)
        changed = {relation.oid for relation in before.relations.values() if relation.qualified in touched(plan)}
        subjects = _subjects(cursor, before, old, changed)
        counting = compare.Counting(cursor, before, {relation.oid for dummy, user, relation in subjects})
        questions = [
            compare.Question(who, user, relation.qualified, counting.direct(relation))
            for who, user, relation in subjects
        ]
        seen = compare.measure(cursor, before, questions)
        strictly = strict.read(
            cursor,
            before,
            [
                (who, user, relation)
                for who, user, relation in subjects
                if seen[who.name, user, relation.qualified].state == oracle.RECURSION
            ],
        )
        for statement in preparations(plan):
            cursor.execute(statement)
        place = prediction.place(cursor)
        predicted = prediction.predict(cursor, plan, before, place)
        told = _decided(plan, before, old, predicted.catalog)
        told["checked"] = asked.checked
        told["other_errors"] = [failure.as_dict() for failure in failing if not failure.recursive]
        visibility = Visibility(cursor, predicted.catalog, changed, place)
        now, unmeasured = _foreseen(cursor, predicted.catalog, subjects, counting, visibility)
        told.update(_compared(plan, before, seen, now))
        told["unmeasured"] = unmeasured
        told["strict_reading"] = strict.report(
            {key: value for key, value in strictly.items() if key in now},
            {key: now[key].rows for key in strictly if key in now and not now[key].state},
        )
        due, later = _to_ask(predicted.catalog, changed, columns, len(plan.changes))
        return Verified(told, state, predicted.catalog, predicted.inexact, now, due, later)


@contextlib.contextmanager
def explained(cursor: Cursor) -> t.Iterator[None]:
    """Errors of PostgreSQL about a statement of the repair, in words."""
    import psycopg2

    try:
        yield
    except psycopg2.errors.DeadlockDetected as error:
        raise OpsError(
            "Deadlock detected; PostgreSQL aborted this transaction.",
            hint="Nothing was changed. Run again.",
            sqlstate=error.pgcode,
        ) from error
    except (psycopg2.errors.LockNotAvailable, psycopg2.OperationalError):
        raise
    except psycopg2.Error as error:
        raise Broken(
            f"PostgreSQL refuses a statement of the repair: {error.pgcode}"
            f" {(error.diag.message_primary or str(error)).strip()}",
            hint="Nothing was changed. "
            + ("Connect as the tables' owner or a superuser." if error.pgcode == "42501" else "Please report it."),
            sqlstate=error.pgcode,
            statement=_text(cursor),
        ) from error


def described(policy: Policy, *, texts: bool = True) -> t.Tuple[t.Any, ...]:
    """What makes a policy: two of the same description are the same to everybody."""
    expressions = [one for one in (policy.using, policy.check) if one is not None]
    return (
        policy.command,
        policy.permissive,
        sorted(policy.roles),
        policy.using is None,
        [(sorted(one.relations), one.has_sublink, one.locks_rows, one.text if texts else "") for one in expressions],
    )


def _text(cursor: Cursor) -> str:
    query = cursor.query or b""
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query)


def _check_planned(plan: Plan, now: Catalog) -> None:
    """Nobody may have changed what the plan was made from."""
    for change in plan.changes:
        relation = now.by_name(change.relation.schema, change.relation.name)
        present = {policy.name: policies.original(policy) for policy in (relation.policies if relation else ())}
        for policy in change.before:
            if present.get(policy.name) != policies.original(policy):
                raise OpsError(
                    f'The policy "{policy.name}" of {change.relation.qualified} was changed since the plan was made.',
                    hint="Nothing was changed. Audit and plan again.",
                )


def touched(plan: Plan) -> t.Set[str]:
    """The tables (qualified) whose policies the plan changes."""
    return {change.relation.qualified for change in plan.changes}


def _subjects(
    cursor: Cursor, before: Catalog, old: Simulator, changed: t.Collection[int]
) -> t.List[t.Tuple[RoleClass, compare.User, Relation]]:
    """Who is looked through and at what: every relation whose rows depend on a policy that changes."""
    sample = compare.users(cursor, before, changed)
    pairs = []
    for who in before.classes:
        if not who.settable:
            continue
        for relation in before.relations.values():
            if relation.schema not in who.schemas or not (relation.secured or relation.kind == "v"):
                continue
            reached = relation.oid in changed or any(
                use.policy.relation in changed for use, dummy in old.reached(who, relation, "select", set())
            )
            if reached:
                pairs.append((who, relation))
    return [(who, user, relation) for who, relation in pairs for user in sample]


def _foreseen(
    cursor: Cursor,
    now: Catalog,
    subjects: t.Sequence[t.Tuple[RoleClass, compare.User, Relation]],
    counting: compare.Counting,
    visibility: Visibility,
) -> t.Tuple[t.Dict[compare.Key, compare.Seen], t.List[str]]:
    """What the users will see, and of what that cannot be told, with the reasons."""
    questions = []
    seen: t.Dict[compare.Key, compare.Seen] = {}
    sources: t.Dict[t.Tuple[str, int], t.Union[str, compare.Seen, None]] = {}
    reasons: t.Dict[str, None] = {}
    for who, user, relation in subjects:
        pair = (who.name, relation.oid)
        if pair not in sources:
            here = now.relations[relation.oid]
            try:
                sources[pair] = counting.query(here, *visibility.source(who, here))
            except Refused as error:
                sources[pair] = compare.Seen(0, "", str(error))
            except Unmeasured as error:
                sources[pair] = None
                reasons[f"{relation.qualified} as {who.name}: {error}"] = None
        source = sources[pair]
        if isinstance(source, compare.Seen):
            seen[who.name, user, relation.qualified] = source
        elif source is not None:
            questions.append(compare.Question(who, user, relation.qualified, source))
    seen.update(compare.measure(cursor, now, questions))
    return seen, list(reasons)


def _to_ask(
    now: Catalog, changed: t.Collection[int], columns: t.Mapping[str, t.Optional[str]], policies_changed: int
) -> t.Tuple[t.List[oracle.Access], t.List[oracle.Access]]:
    """The accesses to which a changed policy applies, directly or further down, the changed tables' own first.

    The rewriter goes by the expressions that it draws in. An access that draws in no more than another one of the same
    relation is accepted where that one is: it is not asked for as well.
    """
    simulator = Simulator(now)
    leading = _leading(now, changed)
    aims = {policy.oid for oid in changed for policy in now.relations[oid].policies}
    groups: t.Dict[int, t.Dict[t.FrozenSet[t.Tuple[t.Any, ...]], t.Tuple[str, str]]] = {}
    for who, relation, variant in audits.accesses(now):
        if relation.oid not in leading or not who.settable or relation.qualified not in columns:
            continue
        if columns[relation.qualified] is None and "{c}" in oracle.VARIANTS[variant]:
            continue
        drawn = frozenset(
            (use.policy.oid, use.slot, context.command, 0 if context.user == who.oid else context.user)
            for use, context in simulator.reached(who, relation, variant, set())
        )
        if any(policy in aims for policy, *dummy in drawn) and not simulator.check(who, relation, variant):
            groups.setdefault(relation.oid, {}).setdefault(drawn, (who.name, variant))
    asked: t.List[oracle.Access] = []
    for oid in sorted(groups, key=lambda one: (one not in changed, one)):
        name = now.relations[oid].qualified
        for drawn, (role, variant) in groups[oid].items():
            if not any(drawn < other for other in groups[oid]):
                asked.append((role, name, variant, columns[name]))
    most = ASKED + ASKED_BY_POLICY * policies_changed
    return asked[:most], asked[most:]


def _leading(now: Catalog, changed: t.Collection[int]) -> t.Set[int]:
    """The relations from which references lead to a changed table."""
    referring: t.Dict[int, t.List[int]] = {}
    for relation in now.relations.values():
        for target in relation.references():
            referring.setdefault(target, []).append(relation.oid)
    todo, leading = list(changed), set(changed)
    while todo:
        for oid in referring.get(todo.pop(), ()):
            if oid not in leading:
                leading.add(oid)
                todo.append(oid)
    return leading


def _decided(plan: Plan, before: Catalog, old: Simulator, now: Catalog) -> t.Dict[str, t.Any]:
    """What the simulation says of the catalog to be: nothing fails but what is left to a person, and no working access
    reads other policies.
    """
    known = {
        (who.name, relation.qualified, variant)
        for who, relation, variant in audits.accesses(before)
        if old.check(who, relation, variant)
    }
    # A policy that was split names roles that no policy named before, so that a class of then may be several now:
    # compare in the names of then.
    then = {member: who.name for who in before.classes for member in who.members}
    new = Simulator(now)
    recursive = {
        (then.get(member, member), relation.qualified, variant)
        for who, relation, variant in audits.accesses(now)
        if new.check(who, relation, variant)
        for member in who.members
    }
    if recursive - known:
        raise Broken(
            f"The repair would make accesses fail that work: {_list(recursive - known)}.",
            hint="Nothing was changed. Please report it.",
            failing=sorted(recursive - known),
        )
    if recursive - plan.left:
        raise Broken(
            f"The repair would leave recursion: {_list(recursive - plan.left)}.",
            hint="Nothing was changed. Please report it.",
            failing=sorted(recursive - plan.left),
        )
    members = {who.name: who.members for who in now.classes}
    looping = {
        (then.get(member, member), one.relation.qualified, one.variant)
        for one in callgraph.runtime(now, audits.accesses(now))
        for member in members.get(one.role, (one.role,))
    }
    if looping - plan.left:
        raise Broken(
            f"The repair would leave recursion through functions: {_list(looping - plan.left)}.",
            hint="Nothing was changed. Please report it.",
            failing=sorted(looping - plan.left),
        )
    _check_unchanged(plan, before, old, now)
    return {
        "failing_before": len(known),
        "possible_54001": len(looping),
        "failing_after": len(recursive),
        "still_failing": {relation for role, relation, variant in recursive | looping},
    }


def _check_unchanged(plan: Plan, before: Catalog, old: Simulator, now: Catalog) -> None:
    """D1, statically: the expressions that working accesses draw in are the very same texts. Rewordings that keep the
    meaning (initplan, unwrapped, merged policies) are left to the data comparison.
    """
    reworded = {change.relation.qualified for change in plan.changes if set(change.reasons) - {"recursion"}}
    guarded = {
        (change.relation.qualified, name): roles for change in plan.changes for name, roles in change.guarded.items()
    }
    new = Simulator(now)
    graph = callgraph.CallGraph(before)

    def drawn(simulator: Simulator, read: Catalog) -> t.Dict[str, t.Set[t.Tuple[t.Any, ...]]]:
        result: t.Dict[str, t.Set[t.Tuple[t.Any, ...]]] = {}
        seen: t.Dict[str, t.Set[t.Tuple[int, int, str]]] = {}
        for who, relation, variant in audits.accesses(before):
            if old.check(who, relation, variant) or (graph.any and graph.check(who, relation, variant)):
                continue
            here = read.by_name(relation.schema, relation.name)
            if here is None:
                raise AssertionError("a defect: here is missing")
            for use, context in simulator.reached(who, here, variant, seen.setdefault(who.name, set())):
                expression = use.policy.slot(use.slot)
                table = read.relations[use.policy.relation].qualified
                others = guarded.get((table, use.policy.name), frozenset())
                if read is not before and not others.isdisjoint(_role_names(read, context.user)):
                    continue
                if expression is not None and table not in reworded:
                    entry = (table, context.command, use.policy.permissive, context.user, expression.text)
                    result.setdefault(who.name, set()).add(entry)
        return result

    was, is_now = drawn(old, before), drawn(new, now)
    different = [name for name in set(was) | set(is_now) if was.get(name) != is_now.get(name)]
    if different:
        tables = sorted({entry[0] for name in different for entry in was.get(name, set()) ^ is_now.get(name, set())})
        raise Broken(
            f"The repair would change policies that working accesses of {', '.join(sorted(different))} draw in:"
            f" {', '.join(tables)}.",
            hint="Nothing was changed. Please report it.",
        )


def _role_names(read: Catalog, user: int) -> t.Set[str]:
    """The roles whose policies apply to a user."""
    return {read.role_name(oid) for oid in read.held.get(user, frozenset()) | {user}}


def _compared(
    plan: Plan, before: Catalog, was: t.Dict[compare.Key, compare.Seen], now: t.Dict[compare.Key, compare.Seen]
) -> t.Dict[str, t.Any]:
    """D1, by the data: whoever saw rows before sees the same rows."""
    compared = 0
    differences = []
    opened: t.Dict[str, int] = {}
    reworded: t.Dict[str, t.List[int]] = {}
    meant = _meant(plan, before)
    for key, seen in was.items():
        after = now.get(key)
        if after is None:
            continue
        if (key[0], key[2]) in meant and seen.state not in ("42P17", "54001"):
            counts = reworded.setdefault(key[2], [0, 0])
            counts[0], counts[1] = counts[0] + seen.rows, counts[1] + after.rows
            continue
        if seen.state in ("42P17", "54001"):
            opened[key[2]] = opened.get(key[2], 0) + after.rows
            continue
        compared += 1
        if seen[:3] != after[:3]:
            differences.append(f"{key[0]} ({key[1].words}) saw {_told(seen)} in {key[2]}, now {_told(after)}")
    if differences:
        raise Broken(
            f"The repair would change what is visible in {len(differences)} of {compared} comparisons, the first:"
            f" {differences[0]}.",
            hint="Nothing was changed. Please report it.",
            differences=differences[:50],
        )
    # Class 22 is about the data: the condition came from the policy, and would fail there for the same value.
    ours = [
        seen.context
        for seen in now.values()
        if seen.state[:2] != "22" and any(function["name"] in seen.context for function in plan.functions)
    ]
    if ours:
        raise Broken(
            f"A function of the repair fails: {ours[0].splitlines()[0]}",
            hint="Nothing was changed. Please report it.",
            contexts=ours[:20],
        )
    errors = sorted(
        {
            f"{key[2]} as {key[0]}: {seen.state}"
            for key, seen in now.items()
            if seen.state and was[key].state != seen.state
        }
    )
    told: t.Dict[str, t.Any] = {"comparisons": compared, "now_visible": opened, "unmasked": errors}
    if reworded:
        told["reworded"] = {
            table: {"before": counts[0], "after": counts[1]} for table, counts in sorted(reworded.items())
        }
    return told


def _meant(plan: Plan, before: Catalog) -> t.Set[t.Tuple[str, str]]:
    """The reads (role, relation) whose rows are to be others, as a policy is to mean something else."""
    simulator = Simulator(before)
    return {
        (who.name, relation.qualified)
        for who, relation, variant in audits.accesses(before)
        if plan.reworded
        and variant == "select"
        and any(use.policy.oid in plan.reworded for use, dummy in simulator.reached(who, relation, variant, set()))
    }


def _told(seen: compare.Seen) -> str:
    return (
        f"the error {seen.state}"
        if seen.state
        else f"{seen.rows} rows (digest {hashlib.sha256(seen.digest.encode()).hexdigest()[:8]})"
    )


def _list(accesses: t.Collection[t.Tuple[str, str, str]]) -> str:
    found = [f"{variant} of {relation} as {role}" for role, relation, variant in sorted(accesses)]
    return "; ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
