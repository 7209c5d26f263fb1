# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faster policies with the same meaning, never at the price of a recursion.

Wrapping an identity call adds a sub-select, and PostgreSQL takes any second visit of a table whose policies hold a
sub-select for a recursion. So each rewording is simulated first, together with everything else in the plan, and left
out where an access would fail.
"""

from __future__ import annotations

import typing as t

from ..audit import audits, lints
from ..audit.simulate import Simulator
from ..model import policies, tree, wrap
from ..model.catalog import Catalog, Policy, Relation
from ..model.column_details import Details
from ..model.transactions import Cursor
from .cuts import Decision


def extend(
    cursor: Cursor, decision: Decision, catalog: Catalog, details: Details, fix: t.Sequence[str]
) -> t.Tuple[t.List[str], t.List[str], t.List[str]]:
    """Adds the rewordings asked for to a decision; gives (statements that build indexes, those that drop them again,
    warnings).
    """
    warnings: t.List[str] = []
    if "multiple_permissive" in fix:
        _merge(decision, catalog)
    if "initplan" in fix:
        warnings += _wrap(decision, catalog)
    creates, drops = _indexes(cursor, catalog, decision) if "indexes" in fix else ([], [])
    return creates, drops, warnings


def _merge(decision: Decision, catalog: Catalog) -> None:
    """One policy in the place of several permissive ones of the same table, roles and command.

    PostgreSQL joins them by OR as well.
    """
    # A policy that the repair gives another text is merged with that text; one that it splits is left as it is.
    repaired = {change.before[0].oid: change for change in decision.changes if change.in_place}
    busy = {policy.oid for change in decision.changes if not change.in_place for policy in change.before}
    for relation in catalog.relations.values():
        if not catalog.audited(relation) or not relation.secured or not relation.owned:
            continue
        groups: t.Dict[t.Tuple[str, t.Tuple[str, ...]], t.List[Policy]] = {}
        for policy in relation.policies:
            if policy.permissive and policy.oid not in busy:
                groups.setdefault((policy.command, tuple(sorted(policy.role_names))), []).append(policy)
        for members in groups.values():
            if len(members) > 1:
                earlier = [repaired[policy.oid] for policy in members if policy.oid in repaired]
                pieces = [
                    repaired[policy.oid].after[0] if policy.oid in repaired else policies.original(policy)
                    for policy in members
                ]
                reasons = list(dict.fromkeys(reason for change in earlier for reason in change.reasons))
                decision.changes = [change for change in decision.changes if change not in earlier]
                decision.changes.append(
                    policies.Change(relation, members, [lints.merge(pieces)], [*reasons, "multiple_permissive"])
                )


def _wrap(decision: Decision, catalog: Catalog) -> t.List[str]:
    """Wraps the identity calls of every policy where that makes no access fail, and collapses nested wraps."""
    warnings: t.List[str] = []
    changed = {policy.oid: change for change in decision.changes for policy in change.before}
    wrapped: t.Set[int] = set()
    candidates: t.List[t.Tuple[Relation, Policy]] = []
    for relation in catalog.relations.values():
        if catalog.audited(relation) and relation.secured and relation.owned:
            candidates += [(relation, policy) for policy in relation.policies if _calls_identity(catalog, policy)]
    failing = _failing(catalog, decision, set())
    # All at once first: it is safe nearly always, and one simulation instead of one for each policy.
    todo = [(relation, policy) for relation, policy in candidates if policy.oid not in decision.unwrapped]
    safe = (
        {policy.oid for _ignored, policy in todo}
        if _failing(catalog, decision, {policy.oid for _ignored, policy in todo}) <= failing
        else None
    )
    for relation, policy in todo:
        together = (
            {policy_before.oid for policy_before in changed[policy.oid].before}
            if policy.oid in changed
            else {policy.oid}
        )
        if safe is None and _failing(catalog, decision, wrapped | together) - failing:
            warnings.append(
                f"{relation.qualified}: {policy.name} keeps its bare identity calls: wrapped, accesses would fail with"
                " 42P17."
            )
            continue
        change = changed.get(policy.oid) or policies.Change(relation, [policy], [policies.original(policy)])
        pieces = [_wrapped_piece(piece) for piece in change.after]
        wrapped |= together
        if pieces == change.after:
            continue
        change.after = pieces
        change.reasons = [*change.reasons, "initplan"] if "initplan" not in change.reasons else change.reasons
        if policy.oid not in changed:
            decision.changes.append(change)
            changed[policy.oid] = change
    return warnings


def _calls_identity(catalog: Catalog, policy: Policy) -> bool:
    for expression in (policy.using, policy.check):
        if expression is not None and not catalog.identity.keys().isdisjoint(expression.functions):
            bare, _ignored, nested = expression.identity_calls(catalog.identity)
            if bare or nested:
                return True
    return False


def _wrapped_piece(piece: policies.Piece) -> policies.Piece:
    texts: t.List[t.Optional[str]] = []
    for text in (piece.using, piece.check):
        if text is None or not tree.faithful(text):
            texts.append(text)
            continue
        holder = tree.parse(text)
        texts.append(tree.show(holder.val) if wrap.wrap(holder) else text)
    return policies.Piece(piece.name, piece.command, piece.permissive, piece.roles, texts[0], texts[1])


def _failing(catalog: Catalog, decision: Decision, wrapped: t.Set[int]) -> t.Set[t.Tuple[str, int, str]]:
    simulator = Simulator(catalog, cut=decision.cut, unwrapped=decision.unwrapped, sublinks=wrapped)
    return {
        (who.name, relation.oid, variant)
        for who, relation, variant in audits.accesses(catalog)
        if simulator.check(who, relation, variant)
    }


def _indexes(cursor: Cursor, catalog: Catalog, decision: Decision) -> t.Tuple[t.List[str], t.List[str]]:
    """CREATE INDEX CONCURRENTLY for every column by which policies look rows up; partitioned tables are left out, which
    cannot have it.
    """
    creates, drops = [], []
    names = _index_names(cursor)
    # The policies as the plan leaves them, too: what they look up by then would otherwise be found by the next run
    # only.
    later: t.Dict[int, t.List[t.Tuple[str, str]]] = {}
    for change in decision.changes:
        texts = [(piece.name, text) for piece in change.after for text in (piece.using, piece.check) if text]
        later.setdefault(change.relation.oid, []).extend(texts)
    for relation, column in sorted(
        lints.unindexed(cursor, catalog, later), key=lambda item: (item[0].qualified, item[1])
    ):
        if relation.kind != "r" or not catalog.audited(relation) or not relation.owned:
            continue
        plain = column[1:-1].replace('""', '"') if column.startswith('"') else column
        name = policies.unused_name(f"{relation.name}_{plain}_rls_idx", names.get(relation.schema, set()))
        names.setdefault(relation.schema, set()).add(name)
        creates.append(f"CREATE INDEX CONCURRENTLY {tree.quote(name)} ON {relation.qualified} ({column})")
        drops.append(f"DROP INDEX CONCURRENTLY IF EXISTS {tree.quote(relation.schema)}.{tree.quote(name)}")
    return creates, drops


def _index_names(cursor: Cursor) -> t.Dict[str, t.Set[str]]:
    cursor.execute(
        "select n.nspname, c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid ="
        " c.relnamespace"
    )
    names: t.Dict[str, t.Set[str]] = {}
    for schema, name in cursor.fetchall():
        names.setdefault(schema, set()).add(name)
    return names
