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
from ..model.catalog import COMMANDS, Catalog, Function, Policy, Relation
from ..model.findings import Finding
from ..model.roles import API_ROLES
from ..model.transactions import Cursor, rows

#: The part of a token that its own user may change (supabase.auth.updateUser).
_USER_METADATA = re.compile(r"\buser_metadata\b|\braw_user_meta_data\b")
#: A column that marks a row as deleted.
_MARK = re.compile(r"deleted|removed|archived")
#: A policy on storage.objects that asks for the bucket and for nothing else lets everybody list its files.
_BUCKET_ONLY = re.compile(r"^\(?bucket_id = '([^']*)'::text\)?$")

#: Names of columns that hold what opens other doors, or what the law protects most.
_SECRETS = (
    "^(.*_)?(password|passwd|passphrase|secret|api_?key|private_key|(access|refresh|session|bearer|oauth)_token|otp"
    "|recovery_code|ssn|social_security(_number)?|tax_id|national_id|passport(_number|_id)?|credit_card|card_number"
    "|cv[vc]|iban|bank_account|medical_record|health_record)(_hash)?$"
)
#: What a function reads by a name alone; names with a schema are followed by a dot.
_UNQUALIFIED = re.compile(
    r"\b(?:from|join|update|into)\s+(?:only\s+)?(?!select\b|lateral\b)[a-z_]\w*(?![\w.(]|\s*\()", re.IGNORECASE
)
_SESSION = re.compile(r"\bcurrent_setting\s*\(|\bauth\.(?:uid|role|email|jwt)\s*\(|\bcurrent_user\b", re.IGNORECASE)
#: What Supabase calls the publication that it broadcasts.
_BROADCAST = "supabase_realtime"
#: A queue's tables belong to the extension, and are open like any other where a role of the API has rights.
_QUEUES = "pgmq"

#: Privileges of the API's roles on every table and view of their schemas, strongest last.
_PRIVILEGES = """
select c.oid::bigint as relation, r.rolname::text as role,
       array_remove(array[case when has_any_column_privilege(r.oid, c.oid, 'SELECT') then 'select' end,
                          case when has_any_column_privilege(r.oid, c.oid, 'INSERT') then 'insert' end,
                          case when has_any_column_privilege(r.oid, c.oid, 'UPDATE') then 'update' end,
                          case when has_table_privilege(r.oid, c.oid, 'DELETE') then 'delete' end], null) as privileges
  from unnest(%(relations)s::oid[]) as c(oid), pg_catalog.pg_roles r
 where r.rolname = any(%(roles)s::text[])
   and (has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE') or has_table_privilege(r.oid, c.oid, 'DELETE'))
"""

_MATERIALIZED = """
select r.ev_class::bigint as relation, array_agg(distinct d.refobjid::bigint) as reads
  from pg_catalog.pg_rewrite r join pg_catalog.pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
 where d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class and r.ev_class = any(%(relations)s::oid[])
 group by r.ev_class
"""

_BECOMES = """
select u.rolname::text as role, r.rolname::text as becomes, r.oid::bigint as oid, r.rolsuper or r.rolbypassrls as exempt
  from pg_catalog.pg_roles u, pg_catalog.pg_roles r
 where u.rolname = any(%(roles)s::text[]) and (r.rolsuper or r.rolbypassrls or r.oid = any(%(owners)s::oid[]))
   and pg_has_role(u.oid, r.oid, 'MEMBER') and (u.oid = r.oid or not u.rolsuper)
 order by 1, 2
"""

_SECRET_COLUMNS = """
select a.attrelid::bigint as relation, a.attname::text as name
  from pg_catalog.pg_attribute a
 where a.attnum > 0 and not a.attisdropped and a.attname ~* %(names)s
   and (a.attrelid = any(%(open)s::oid[])
        or a.attacl is not null and exists (
             select from aclexplode(a.attacl) g left join pg_catalog.pg_roles r on r.oid = g.grantee
              where g.privilege_type = 'SELECT' and (g.grantee = 0 or r.rolname = any(%(roles)s::text[]))))
 order by 1, 2
"""

_LEAKPROOF = """
select pg_catalog.format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as signature
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where p.proleakproof and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and (%(schemas)s::text[] is null or n.nspname = any(%(schemas)s::text[]))
   and not exists (select from pg_catalog.pg_depend d
                    where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
 order by 1
"""

_BROADCAST_TABLES = """
select c.oid::bigint as relation
  from pg_catalog.pg_publication p join pg_catalog.pg_class c on p.puballtables or exists (
       select from pg_catalog.pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid)
 where p.pubname = %(name)s and c.relkind in ('r', 'p') and not c.relrowsecurity
"""

_VOLATILE = """
select p.oid::bigint,
       pg_catalog.format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as signature
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where p.oid = any(%(oids)s::oid[]) and p.provolatile = 'v'
"""


def from_catalog(read: Catalog) -> t.List[Finding]:
    """Those that the catalog alone tells."""
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
    return [*result, *_functions_of_policies(read)]


def findings(cursor: Cursor, read: Catalog) -> t.List[Finding]:
    """Those for which the server is asked: what can be reached, and by whom."""
    return [
        *_reachable(cursor, read),
        *_roles(cursor, read),
        *_leakproof(cursor, read),
        *_broadcast(cursor, read),
        *_volatile(cursor, read),
    ]


def _details(relation: Relation, **more: t.Any) -> t.Dict[str, t.Any]:
    return {"table": relation.qualified, **more}


def _queried(relation: Relation) -> bool:
    """Whether what is open there depends on privileges alone, or on whose rights a view has."""
    if relation.extension and relation.schema != _QUEUES:
        return False
    if relation.kind in ("r", "p"):
        return not relation.secured and not relation.policies
    return relation.kind in ("m", "f") or (relation.kind == "v" and not relation.invoker)


def _reachable(cursor: Cursor, read: Catalog) -> t.List[Finding]:
    """Tables without row-level security, and views that run with their owner's rights, on which a role of the API has
    rights.
    """
    classes = {member: who for who in read.classes for member in who.members if member in API_ROLES}
    schemas = {schema for who in classes.values() for schema in who.schemas}
    candidates = [
        relation
        for relation in read.relations.values()
        if relation.schema in schemas and read.audited(relation) and _queried(relation)
    ]
    views = {relation.oid: _below(read, relation) for relation in candidates if relation.kind == "v"}
    frozen = [relation.oid for relation in candidates if relation.kind == "m"]
    for row in rows(cursor, _MATERIALIZED, {"relations": frozen}) if frozen else ():
        views[row["relation"]] = {below for oid in row["reads"] for below in _tables(read, oid)}
    result: t.List[Finding] = []
    open_tables: t.List[int] = []
    asked = {relation.oid for relation in candidates} | {oid for below in views.values() for oid in below}
    rights: t.Dict[int, t.Dict[str, t.List[str]]] = {}
    values: t.Dict[str, t.Any] = {"relations": sorted(asked), "roles": sorted(classes)}
    for row in rows(cursor, _PRIVILEGES, values) if candidates else ():
        rights.setdefault(row["relation"], {})[row["role"]] = row["privileges"]
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
        if relation.kind in ("v", "m"):
            result += _view(read, relation, views.get(relation.oid, set()), rights, told, details)
        elif relation.kind == "f":
            why = f"No policy can protect a foreign table, so that every row is open: {told}."
            statement = f"REVOKE ALL ON {relation.qualified} FROM {_names(reachable)};"
            result.append(Finding("foreign_table_exposed", relation.qualified, why, statement, details=details))
        else:
            open_tables.append(relation.oid)
            why = f"Row-level security is off, so that every row is open: {told}."
            statement = (
                f"ALTER TABLE {relation.qualified} ENABLE ROW LEVEL SECURITY; -- and policies for who may see what"
            )
            result.append(Finding("table_without_rls", relation.qualified, why, statement, details=details))
    return [*result, *_secret_columns(cursor, read, open_tables, classes)]


def _names(roles: t.Iterable[str]) -> str:
    return ", ".join(tree.quote(role) for role in sorted(roles))


def _view(
    read: Catalog,
    view: Relation,
    below: t.Set[int],
    rights: t.Mapping[int, t.Mapping[str, t.Sequence[str]]],
    told: str,
    details: t.Dict[str, t.Any],
) -> t.Iterator[Finding]:
    """What a view (or materialized view) shows that its readers could not see themselves."""
    users = read.by_name("auth", "users")
    revoke = f"REVOKE ALL ON {view.qualified} FROM {_names(details['roles'])};"
    if users is not None and users.oid in below:
        why = f"It reads auth.users with its owner's rights: {told}."
        yield Finding("auth_users_exposed", view.qualified, why, revoke, details=details)
        below = below - {users.oid}
    protected = {oid for oid in below if read.relations[oid].secured and _exempt(read, read.relations[oid], view.owner)}
    tables = ", ".join(sorted(read.relations[oid].short for oid in protected))
    if view.kind == "m":
        past = f" It holds rows of {tables}, past the policies of these tables." if protected else ""
        why = f"No policy can protect a materialized view: {told}.{past}"
        severity = "error" if protected else ""
        yield Finding("materialized_view_exposed", view.qualified, why, revoke, severity, details)
        return
    if protected:
        why = f"It reads {tables} with its owner's rights, past the policies of these tables: {told}."
        statement = (
            f"ALTER VIEW {view.qualified} SET (security_invoker = true);"
            if read.version >= 150000
            else f"-- PostgreSQL 15 and newer: ALTER VIEW {view.qualified} SET (security_invoker = true);"
        )
        yield Finding("view_bypasses_rls", view.qualified, why, statement, details=details)
    hidden = {
        oid
        for oid in below - protected
        if any("select" not in rights.get(oid, {}).get(role, ()) for role in details["roles"])
    }
    if hidden:
        tables = ", ".join(sorted(read.relations[oid].short for oid in hidden))
        why = f"It shows rows of {tables}, which not all of its readers may read: {told}."
        yield Finding("view_as_owner", view.qualified, why, "-- If that is meant, nothing is wrong.", details=details)
    called = sorted(
        read.functions[oid].signature
        for oid in (view.query.functions if view.query else ())
        if oid in read.functions and read.functions[oid].definer
    )
    if called:
        why = f"It calls {', '.join(called)} (SECURITY DEFINER), which reads with its owner's rights: {told}."
        yield Finding("view_calls_definer", view.qualified, why, revoke, details={**details, "functions": called})


def _secret_columns(
    cursor: Cursor, read: Catalog, open_tables: t.Sequence[int], classes: t.Mapping[str, t.Any]
) -> t.Iterator[Finding]:
    if not classes:
        return
    values = {"names": _SECRETS, "open": list(open_tables), "roles": sorted(classes)}
    columns: t.Dict[int, t.List[str]] = {}
    for row in rows(cursor, _SECRET_COLUMNS, values):
        columns.setdefault(row["relation"], []).append(row["name"])
    for oid, names in columns.items():
        relation = read.relations.get(oid)
        if relation is None or not read.audited(relation):
            continue
        if not any(relation.schema in who.schemas for who in classes.values()):
            continue
        listed = ", ".join(tree.quote(name) for name in names)
        how = "the table has no row-level security" if oid in open_tables else "the columns are granted by name"
        why = f"{', '.join(names)}: {how}, and a role of the API may read them."
        statement = f"REVOKE SELECT ({listed}) ON {relation.qualified} FROM PUBLIC, {_names(classes)};"
        details = _details(relation, columns=names)
        yield Finding("sensitive_column", relation.qualified, why, statement, details=details)


def _roles(cursor: Cursor, read: Catalog) -> t.Iterator[Finding]:
    """Roles of the API that no policy binds, by themselves or by whom they may become."""
    tables: t.Dict[int, t.List[str]] = {}
    for relation in read.relations.values():
        if relation.kind in ("r", "p") and relation.secured and not relation.forced and read.audited(relation):
            tables.setdefault(relation.owner, []).append(relation.short)
    if not tables:
        return
    for row in rows(cursor, _BECOMES, {"roles": list(API_ROLES), "owners": sorted(tables)}):
        role, other = row["role"], row["becomes"]
        if row["exempt"]:
            what = "is a superuser or has BYPASSRLS"
            statement = f"ALTER ROLE {tree.quote(role)} NOSUPERUSER NOBYPASSRLS;"
        else:
            mine = sorted(tables[row["oid"]])
            more = f" and {len(mine) - 3} others" if len(mine) > 3 else ""
            what = f"owns {', '.join(mine[:3])}{more}"
            statement = "-- ALTER TABLE ... OWNER TO another role, or FORCE ROW LEVEL SECURITY"
        if role == other:
            why = f"{role} {what}: no policy binds it there."
        else:
            why = f"{role} may become {other}, which {what}: no policy binds it there."
            statement = f"REVOKE {tree.quote(other)} FROM {tree.quote(role)};"
        yield Finding("role_bypasses_rls", role, why, statement, details={"role": role, "becomes": other})


def _leakproof(cursor: Cursor, read: Catalog) -> t.Iterator[Finding]:
    schemas = None if read.schemas is None else sorted(read.schemas)
    for row in rows(cursor, _LEAKPROOF, {"schemas": schemas}):
        why = "It runs before the conditions of policies, on rows that its caller may not see."
        statement = f"ALTER FUNCTION {row['signature']} NOT LEAKPROOF;"
        details = {"function": row["signature"]}
        yield Finding("leakproof_function", row["signature"], why, statement, details=details)


def _broadcast(cursor: Cursor, read: Catalog) -> t.Iterator[Finding]:
    for row in rows(cursor, _BROADCAST_TABLES, {"name": _BROADCAST}):
        relation = read.relations.get(row["relation"])
        if relation is not None and read.audited(relation):
            why = f"{_BROADCAST} broadcasts its changes, and row-level security is off: every subscriber gets them."
            statement = f"ALTER TABLE {relation.qualified} ENABLE ROW LEVEL SECURITY; -- and policies"
            yield Finding("realtime_without_rls", relation.qualified, why, statement, details=_details(relation))


def _calls(read: Catalog) -> t.Dict[int, t.List[str]]:
    """For every function (oid) the policies that call it, of tables that were asked about."""
    calls: t.Dict[int, t.List[str]] = {}
    for relation in read.relations.values():
        if read.audited(relation):
            for policy in relation.policies:
                for expression in (policy.using, policy.check):
                    for oid in expression.functions if expression else ():
                        names = calls.setdefault(oid, [])
                        if not names or names[-1] != f"{relation.short}: {policy.name}":
                            names.append(f"{relation.short}: {policy.name}")
    return calls


def _some(names: t.Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def unqualified(function: Function) -> bool:
    """Whether a function reads a table by a name that its caller's search_path decides."""
    return function.body is None and bool(_UNQUALIFIED.search(function.source))


def _functions_of_policies(read: Catalog) -> t.Iterator[Finding]:
    for oid, names in _calls(read).items():
        function = read.functions.get(oid)
        if function is None or function.extension or function.schema == "auth":
            continue
        details = {"function": function.signature, "policies": names}
        if function.volatility == "i" and _SESSION.search(function.source):
            why = (
                f"{_some(names)} call it: it reads the session and is declared IMMUTABLE, so that PostgreSQL may keep"
                " one caller's result for another."
            )
            statement = f"ALTER FUNCTION {function.signature} STABLE;"
            yield Finding("immutable_identity", function.signature, why, statement, details=details)
        if not function.definer and function.search_path is None and unqualified(function):
            why = f"{_some(names)} call it, and its caller's search_path decides which tables it reads."
            statement = (
                f"ALTER FUNCTION {function.signature} SET search_path = '';  -- after qualifying the names in its body"
            )
            yield Finding("function_search_path", function.signature, why, statement, details=details)


def _volatile(cursor: Cursor, read: Catalog) -> t.Iterator[Finding]:
    calls = _calls(read)
    if not calls:
        return
    for row in rows(cursor, _VOLATILE, {"oids": sorted(calls)}):
        names = calls[row["oid"]]
        function = read.functions.get(row["oid"])
        signature = function.signature if function else row["signature"]
        why = f"{_some(names)} call it for every row, and no index helps."
        statement = f"ALTER FUNCTION {signature} STABLE;  -- if it only reads" if function else ""
        details = {"function": signature, "policies": names}
        yield Finding("volatile_function", signature, why, statement, details=details)


def _below(read: Catalog, view: Relation) -> t.Set[int]:
    """The tables that a view reads, also through other views."""
    return {oid for target in (view.query.relations if view.query else ()) for oid in _tables(read, target)}


def _tables(read: Catalog, oid: int) -> t.Set[int]:
    result: t.Set[int] = set()
    seen: t.Set[int] = set()
    pending = [oid]
    while pending:
        current = read.relations.get(pending.pop())
        if current is None or current.oid in seen:
            continue
        seen.add(current.oid)
        if current.query is not None:
            pending += current.query.relations
        else:
            result.add(current.oid)
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
    who = next((candidate for candidate in read.classes if role in candidate.members), None)
    if who is None:
        return []
    memberships = who.held | {who.oid, 0}
    return [
        policy
        for policy in relation.policies
        if policy.permissive and policy.command in ("*", command) and not memberships.isdisjoint(policy.roles)
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
    rights = "; ".join(f"{role} has policies for {', '.join(commands)}" for role, commands in roles.items())
    why = (
        f"{rights}, and none for SELECT: INSERT ... RETURNING (the client's .insert().select()) fails with 42501, UPDATE"
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
