# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Columns that the inner table captured: ``x.trip_id = trip_id``, which PostgreSQL reads as ``x.trip_id = x.trip_id``.

Where exactly one column of the tables around can have been meant it is proposed, with the rows that each text lets
through for whom, as only a person can tell that it was meant.
"""

from __future__ import annotations

import dataclasses
import typing as t
from dataclasses import dataclass, field

from ..model import tree
from ..model.catalog import Catalog, Expression, Policy, Relation
from ..model.column_details import Details
from ..model.transactions import Cursor, rows
from . import compare, strict
from .conditions import alias_of, from_items

#: Users of the sample for whom rows are counted.
USERS = 4
_FOREIGN_KEYS = """
select conrelid::bigint as relation, a.attname as name, confrelid::bigint as target, b.attname as target_name
  from pg_catalog.pg_constraint c
  join pg_catalog.pg_attribute a on a.attrelid = conrelid and a.attnum = conkey[1]
  join pg_catalog.pg_attribute b on b.attrelid = confrelid and b.attnum = confkey[1]
 where contype = 'f' and cardinality(conkey) = 1
"""

Column = t.Tuple[int, str]


@dataclass
class Proposal:
    """One expression of a policy with its captured columns qualified. ``rows``: what each text lets through."""

    relation: Relation
    policy: Policy
    slot: str
    written: str
    qualified: str
    columns: t.Tuple[str, ...]
    rows: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    not_counted: str = ""

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "table": self.relation.qualified,
            "policy": self.policy.name,
            "expression": self.slot,
            "meant": list(self.columns),
            "written": self.written,
            "qualified": self.qualified,
            "rows": self.rows,
            "not_counted": self.not_counted,
        }


def sentences(proposal: t.Mapping[str, t.Any]) -> t.List[str]:
    """A proposal for people."""
    lines = [
        f'{proposal["table"]}, policy "{proposal["policy"]}":',
        f"  as written: {' '.join(str(proposal['written']).split())}",
        f"  qualified:  {' '.join(str(proposal['qualified']).split())}",
    ]
    for row in proposal["rows"]:
        lines.append(
            f"  {row['role']} ({row['user']}): {row['written']} of {row['of']} rows as written,"
            f" {row['qualified']} qualified"
        )
    if proposal["not_counted"]:
        lines.append(f"  rows were not counted: {proposal['not_counted']}")
    elif not proposal["rows"]:
        lines.append("  for nobody of the sample there is a difference in the present rows")
    return lines


def propose(cursor: Cursor, catalog: Catalog, details: Details) -> t.List[Proposal]:
    """One for each expression whose captured columns all have exactly one candidate."""
    result: t.List[Proposal] = []
    keys: t.Optional[t.Set[t.Tuple[Column, Column]]] = None
    for policy in catalog.policies():
        relation = catalog.relations[policy.relation]
        for slot in ("using", "check"):
            expression = policy.slot(slot)
            if expression is None or not expression.self_comparisons() or not catalog.audited(relation):
                continue
            if keys is None:
                keys = {
                    ((row["relation"], row["name"]), (row["target"], row["target_name"]))
                    for row in rows(cursor, _FOREIGN_KEYS)
                }
            qualified = qualify(expression, relation, catalog, details, keys)
            if qualified is not None:
                result.append(Proposal(relation, policy, slot, expression.text, *qualified))
    return result


def qualify(
    expression: Expression,
    owner: Relation,
    catalog: Catalog,
    details: Details,
    foreign_keys: t.Collection[t.Tuple[Column, Column]],
) -> t.Optional[t.Tuple[str, t.Tuple[str, ...]]]:
    """(the text with the columns that were meant, their names); None where that cannot be told."""
    if not tree.faithful(expression.text):
        return None
    holder = tree.parse(expression.text)
    names: t.List[str] = []
    changed = 0
    outermost: t.Dict[str, t.Optional[Relation]] = {owner.name: owner}
    for comparison, own, outer in list(_self_comparisons(holder.val, {}, outermost, catalog)):
        side = tree.uncast(comparison.rexpr)
        alias, column = tree.names(side)
        inner = own.get(alias)
        if inner is None or None in outer.values():
            return None
        around = t.cast("t.Dict[str, Relation]", outer)
        found = _candidate(inner, column, around, details, foreign_keys)
        if found is None:
            return None
        side.fields = tree.parse(f"{tree.quote(found[0])}.{tree.quote(found[1])}").val.fields
        names.append(f"{around[found[0]].short}.{found[1]}")
        changed += 1
    if not changed or changed < len(expression.self_comparisons()):
        return None
    return tree.show(holder.val), tuple(dict.fromkeys(names))


def _candidate(
    inner: Relation,
    column: str,
    outer: t.Mapping[str, Relation],
    details: Details,
    foreign_keys: t.Collection[t.Tuple[Column, Column]],
) -> t.Optional[t.Tuple[str, str]]:
    """(alias, column) of the only column of the tables around that can have been meant: the one of the same name, else
    the one that a foreign key ties to the inner table's column."""
    kind = details.columns.get(inner.oid, {})[column].type if column in details.columns.get(inner.oid, {}) else None
    same, tied = [], []
    for alias, relation in outer.items():
        for name, other in details.columns.get(relation.oid, {}).items():
            if other.type != kind:
                continue
            pair = ((inner.oid, column), (relation.oid, name))
            if pair in foreign_keys or pair[::-1] in foreign_keys:
                tied.append((alias, name))
            if name == column:
                same.append((alias, name))
    if len(same) == 1:
        # A key that says otherwise: ``t.id = id`` is more likely ``t.id = parts.trip_id`` than ``t.id = parts.id``.
        doubtful = tied and same[0] not in tied and outer[same[0][0]].oid != inner.oid
        return None if doubtful else same[0]
    return tied[0] if not same and len(tied) == 1 else None


_Scope = t.Dict[str, t.Optional[Relation]]


def _self_comparisons(
    node: tree.Node, own: _Scope, outer: _Scope, catalog: Catalog
) -> t.Iterator[t.Tuple[tree.Node, _Scope, _Scope]]:
    """(comparison, the tables of its sub-select by alias, those around it); None for what is no table."""
    if tree.kind(node) == "SelectStmt":
        outer = {**outer, **own}
        own = {}
        for item in from_items(node.fromClause or ()):
            table = None
            if tree.kind(item) == "RangeVar" and item.schemaname:
                table = catalog.by_name(item.schemaname, item.relname)
            own[alias_of(item)] = table
    sides = tree.equality(node)
    if sides is not None and own:
        side = tree.uncast(sides[1])
        if sides[0] == sides[1] and tree.kind(side) == "ColumnRef" and len(tree.names(side)) == 2:
            yield node, own, outer
    for child in tree.children(node):
        yield from _self_comparisons(child, own, outer, catalog)


def count(cursor: Cursor, catalog: Catalog, proposals: t.Sequence[Proposal]) -> None:
    """Adds to each proposal how many of the table's rows each text lets through, for whom that differs.

    Both are evaluated by the session itself, which runs no functions of users: every table is read in full, as after a
    repair.
    """
    reading = strict.StrictReading(cursor, catalog)
    for proposal in proposals:
        if catalog.relations[proposal.relation.oid].estimated_rows == 0 and not _any_row(cursor, proposal.relation):
            proposal.not_counted = "the table is empty"
            continue
        sample = compare.users(cursor, catalog, {proposal.relation.oid}, count=USERS)
        held = set(proposal.policy.roles)
        for who in catalog.classes:
            if not who.settable or (0 not in held and held.isdisjoint(who.held | {who.oid})):
                continue
            if proposal.relation.schema not in who.schemas:
                continue
            for user in sample:
                try:
                    written, total = reading.admitted(who, user, proposal.relation, proposal.written)
                    qualified, _total = reading.admitted(who, user, proposal.relation, proposal.qualified)
                except strict.NotComputed as error:
                    proposal.not_counted = str(error)
                    break
                if written != qualified:
                    proposal.rows.append(
                        {
                            "role": who.name,
                            "user": user.words,
                            "written": written,
                            "qualified": qualified,
                            "of": total,
                        }
                    )


def _any_row(cursor: Cursor, relation: Relation) -> bool:
    cursor.execute(f"select exists (select from {relation.qualified})")
    return bool(cursor.fetchone()[0])


def applied(catalog: Catalog, proposals: t.Sequence[Proposal]) -> Catalog:
    """The catalog as if the policies had been written with the qualified columns."""
    texts = {(proposal.policy.oid, proposal.slot): proposal.qualified for proposal in proposals}

    def expression(policy: Policy, slot: str) -> t.Optional[Expression]:
        present = policy.slot(slot)
        text = texts.get((policy.oid, slot))
        return present if text is None or present is None else dataclasses.replace(present, text=text)

    relations = dict(catalog.relations)
    for oid in {proposal.relation.oid for proposal in proposals}:
        relations[oid] = dataclasses.replace(
            relations[oid],
            policies=[
                dataclasses.replace(policy, using=expression(policy, "using"), check=expression(policy, "check"))
                for policy in relations[oid].policies
            ],
        )
    return dataclasses.replace(catalog, relations=relations, uses={})
