# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is open, or never works, though no policy recurses: without these findings a clean audit would not mean clean.

Only what a role of the API (``anon``, ``authenticated``) can reach counts: a database without these roles has no
finding here but for policies that can never do what they say.
"""

from __future__ import annotations

import re
import typing as t

from ..model import tree
from ..model.catalog import COMMANDS, Catalog, Policy, Relation
from ..model.findings import Finding
from ..model.roles import API_ROLES
from ..model.transactions import Cursor, rows

#: The part of a token that its own user may change (supabase.auth.updateUser).
_USER_METADATA = re.compile(r"\buser_metadata\b|\braw_user_meta_data\b")
#: A column that marks a row as deleted.
_MARK = re.compile(r"deleted|removed|archived")
#: A policy on storage.objects that asks for the bucket and for nothing else lets everybody list its files.
_BUCKET_ONLY = re.compile(r"^\(?bucket_id = '([^']*)'::text\)?$")

#: Privileges of the API's roles on every table and view of their schemas, strongest last.
_PRIVILEGES = """
select c.oid::bigint as relation, r.rolname::text as role,
       array_remove(array[case when has_table_privilege(r.oid, c.oid, 'SELECT') then 'select' end,
                          case when has_table_privilege(r.oid, c.oid, 'INSERT') then 'insert' end,
                          case when has_table_privilege(r.oid, c.oid, 'UPDATE') then 'update' end,
                          case when has_table_privilege(r.oid, c.oid, 'DELETE') then 'delete' end], null) as privileges
  from unnest(%(relations)s::oid[]) as c(oid), pg_catalog.pg_roles r
 where r.rolname = any(%(roles)s::text[]) and has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE')
"""


def findings(cursor: Cursor, read: Catalog) -> t.List[Finding]:
    """All of them. One query, for tables without row-level security and views over protected ones."""
    result: t.List[Finding] = []
    for relation in read.relations.values():
        if not read.audited(relation) or relation.extension:
            continue
        for policy in relation.policies:
            result += _user_metadata(relation, policy)
            result += _bucket_listing(relation, policy)
        if relation.secured:
            result += _no_select_policy(read, relation)
            result += _soft_delete(read, relation)
    return result + _reachable(cursor, read)


def _details(relation: Relation, **more: t.Any) -> t.Dict[str, t.Any]:
    return {"table": relation.qualified, **more}


def _reachable(cursor: Cursor, read: Catalog) -> t.List[Finding]:
    """Tables without row-level security, and views that run with their owner's rights, on which a role of the API has
    rights.
    """
    classes = {member: who for who in read.classes for member in who.members if member in API_ROLES}
    candidates = [
        relation
        for relation in read.relations.values()
        if read.audited(relation)
        and not relation.extension
        and any(relation.schema in who.schemas for who in classes.values())
        and (
            (relation.kind in ("r", "p") and not relation.secured and not relation.policies)
            or (relation.kind == "v" and not relation.invoker and _protected(read, relation))
        )
    ]
    if not candidates:
        return []
    rights: t.Dict[int, t.Dict[str, t.List[str]]] = {}
    values = {"relations": [relation.oid for relation in candidates], "roles": sorted(classes)}
    for row in rows(cursor, _PRIVILEGES, values):
        rights.setdefault(row["relation"], {})[row["role"]] = row["privileges"]
    result = []
    for relation in candidates:
        reachable = {
            role: words
            for role, words in rights.get(relation.oid, {}).items()
            if relation.schema in classes[role].schemas
        }
        if not reachable:
            continue
        told = "; ".join(f"{role} may {', '.join(words)}" for role, words in sorted(reachable.items()))
        details = _details(relation, roles=sorted(reachable), privileges=reachable)
        if relation.kind == "v":
            tables = ", ".join(sorted(read.relations[oid].short for oid in _protected(read, relation)))
            why = f"It reads {tables} with its owner's rights, past the policies of these tables: {told}."
            statement = (
                f"ALTER VIEW {relation.qualified} SET (security_invoker = true);"
                if read.version >= 150000
                else f"-- PostgreSQL 15 and newer: ALTER VIEW {relation.qualified} SET (security_invoker = true);"
            )
            result.append(Finding("view_bypasses_rls", relation.qualified, why, statement, details=details))
        else:
            why = f"Row-level security is off, so that every row is open: {told}."
            statement = (
                f"ALTER TABLE {relation.qualified} ENABLE ROW LEVEL SECURITY; -- and policies for who may see what"
            )
            result.append(Finding("table_without_rls", relation.qualified, why, statement, details=details))
    return result


def _protected(read: Catalog, view: Relation) -> t.Set[int]:
    """The tables with row-level security that a view reads, also through other views, and whose policies do not bind
    its owner.
    """
    result: t.Set[int] = set()
    seen: t.Set[int] = set()
    pending = [view]
    while pending:
        current = pending.pop()
        if current.oid in seen or current.query is None:
            continue
        seen.add(current.oid)
        for oid in current.query.relations:
            below = read.relations.get(oid)
            if below is None:
                continue
            if below.kind == "v":
                pending.append(below)
            elif below.secured and _exempt(read, below, view.owner):
                result.add(oid)
    return result


def _exempt(read: Catalog, table: Relation, role: int) -> bool:
    who = read.roles.get(role)
    if who is not None and (who.superuser or who.bypass):
        return True
    return table.owner == role and not table.forced


def _user_metadata(relation: Relation, policy: Policy) -> t.List[Finding]:
    texts = [expression.text for expression in (policy.using, policy.check) if expression is not None]
    if not any(_USER_METADATA.search(text) for text in texts):
        return []
    why = (
        "Every user can write his own user_metadata: whatever the policy reads there, he can claim. app_metadata is"
        " written by the server alone."
    )
    advice = "-- Read auth.jwt() -> 'app_metadata', or a table that only the server writes."
    details = _details(relation, policy=policy.name)
    return [Finding("user_metadata", f"{relation.qualified}: {policy.name}", why, advice, details=details)]


def _applicable(read: Catalog, relation: Relation, role: str, command: str) -> t.List[Policy]:
    """The permissive policies of a command that apply to a role of the API."""
    who = next((one for one in read.classes if role in one.members), None)
    if who is None:
        return []
    held = who.held | {who.oid, 0}
    return [
        policy
        for policy in relation.policies
        if policy.permissive and policy.command in ("*", command) and not held.isdisjoint(policy.roles)
    ]


def _no_select_policy(read: Catalog, relation: Relation) -> t.List[Finding]:
    """Writes that return or look up rows need a policy for SELECT too; without one they fail or touch nothing."""
    roles: t.Dict[str, t.List[str]] = {}
    for role in API_ROLES:
        if _applicable(read, relation, role, "r"):
            continue
        commands = [COMMANDS[command] for command in ("a", "w", "d") if _applicable(read, relation, role, command)]
        if commands:
            roles[role] = commands
    if not roles:
        return []
    told = "; ".join(f"{role} has policies for {', '.join(commands)}" for role, commands in roles.items())
    why = (
        f"{told}, and none for SELECT: INSERT ... RETURNING (the client's .insert().select()) fails with 42501, UPDATE"
        " and DELETE with a WHERE find no row."
    )
    advice = f"-- CREATE POLICY ... ON {relation.qualified} FOR SELECT TO {', '.join(roles)} USING (...);"
    return [Finding("no_select_policy", relation.qualified, why, advice, details=_details(relation, roles=roles))]


def _soft_delete(read: Catalog, relation: Relation) -> t.List[Finding]:
    """A row that is marked as deleted by an UPDATE must still be visible afterwards, or the UPDATE fails with 42501."""
    roles = []
    for role in API_ROLES:
        visible = _applicable(read, relation, role, "r")
        hiding = [policy for policy in visible if policy.using is not None and _hides_marked(policy.using.text)]
        if visible and len(hiding) == len(visible) and _applicable(read, relation, role, "w"):
            roles.append(role)
    if not roles:
        return []
    why = (
        f"Every SELECT policy of {', '.join(roles)} hides rows that are marked as deleted: the UPDATE that marks one"
        " fails with 42501, as the new row would be invisible to who writes it."
    )
    advice = "-- Mark rows through a SECURITY DEFINER function, or let a row's owner see it when it is marked."
    return [Finding("soft_delete_hidden", relation.qualified, why, advice, details=_details(relation, roles=roles))]


def _hides_marked(text: str) -> bool:
    """Whether a condition can only be true where a column that marks a row as deleted is unset: ``deleted_at IS NULL``,
    ``NOT is_deleted``, ``is_deleted = false``, alone or in an AND."""
    if not _MARK.search(text):
        return False
    return any(_names_mark(conjunct) for conjunct in tree.conjuncts(tree.parse(text).val))


def _names_mark(node: tree.Node) -> bool:
    kind = tree.kind(node)
    negative = (
        (kind == "NullTest" and node.nulltesttype.name == "IS_NULL")
        or (kind == "BoolExpr" and node.boolop.name == "NOT_EXPR")
        or (kind == "BooleanTest" and node.booltesttype.name in ("IS_NOT_TRUE", "IS_FALSE"))
        or (kind == "A_Expr" and tree.equality(node) is not None and "false" in tree.show(node).lower())
    )
    columns = list(tree.of_type(node, "ColumnRef"))
    return negative and len(columns) == 1 and bool(_MARK.search(tree.names(columns[0])[-1]))


def _bucket_listing(relation: Relation, policy: Policy) -> t.List[Finding]:
    if (relation.schema, relation.name) != ("storage", "objects") or policy.using is None:
        return []
    bucket = _BUCKET_ONLY.match(policy.using.text)
    if bucket is None or policy.command not in ("r", "*") or not policy.permissive:
        return []
    if set(policy.role_names).isdisjoint({"public", *API_ROLES}):
        return []
    why = (
        f"{', '.join(policy.role_names)} may list every file of the bucket {bucket[1]}. Files of a public bucket are"
        " served by their address without any policy."
    )
    advice = f"-- If listing is not meant: DROP POLICY {policy.quoted} ON storage.objects;"
    details = _details(relation, policy=policy.name, bucket=bucket[1])
    return [Finding("bucket_listing", f"{relation.qualified}: {policy.name}", why, advice, details=details)]
