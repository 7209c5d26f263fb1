# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a database consists of, as text that can be compared: the answer to "what did, or would, this
script change?".
"""

from __future__ import annotations

import re
import typing as t

#: ``(kind, name)`` to its definition. Kinds: schema, table, column, constraint, index, trigger, policy, function, view,
#: sequence, type.
Snapshot = t.Dict[t.Tuple[str, str], str]

#: A list of grants, sorted: the server keeps them in the order in which they were made.
_ACL = r"(select pg_catalog.string_agg(x::text, ', ' order by x::text) from pg_catalog.unnest(\1) x)"

#: Catalog columns of PostgreSQL 13 to 18 only. Extensions' members are left out: they belong to their extension.
_QUERY = re.sub(
    r"<acl (\w+)>",
    _ACL,
    """
with spaces as (
    select oid, nspname, nspacl, nspowner from pg_catalog.pg_namespace
    where nspname !~ '^pg_' and nspname <> 'information_schema'
), rels as (
    select c.*, s.nspname from pg_catalog.pg_class c join spaces s on s.oid = c.relnamespace
    where not exists (select from pg_catalog.pg_depend d
                      where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e')
)
select 'schema', pg_catalog.quote_ident(nspname), 'owner ' || pg_catalog.pg_get_userbyid(nspowner) || coalesce(' grants ' || <acl nspacl>, '')
  from spaces
union all
select case relkind when 'v' then 'view' when 'm' then 'view' when 'S' then 'sequence' else 'table' end,
       pg_catalog.format('%I.%I', nspname, relname),
       pg_catalog.concat_ws(' ', 'owner ' || pg_catalog.pg_get_userbyid(relowner),
           case when relrowsecurity then 'row level security' end, case when relforcerowsecurity then 'forced' end,
           'options ' || reloptions::text, 'grants ' || <acl relacl>,
           case when relkind in ('v', 'm') then pg_catalog.pg_get_viewdef(oid) end)
  from rels where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
union all
select 'column', pg_catalog.format('%I.%I.%I', nspname, relname, attname),
       pg_catalog.concat_ws(' ', pg_catalog.format_type(atttypid, atttypmod), case when attnotnull then 'not null' end,
           case attgenerated when '' then 'default ' else 'generated ' end || pg_catalog.pg_get_expr(adbin, adrelid),
           case when attidentity <> '' then 'identity ' || attidentity::text end, 'grants ' || <acl attacl>)
  from rels join pg_catalog.pg_attribute a on a.attrelid = rels.oid
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where relkind in ('r', 'p', 'f') and attnum > 0 and not attisdropped
union all
select 'constraint', pg_catalog.format('%I on %I.%I', conname, nspname, relname),
       pg_catalog.pg_get_constraintdef(k.oid)
  from rels join pg_catalog.pg_constraint k on k.conrelid = rels.oid where k.contype <> 'n'
union all
select 'index', pg_catalog.format('%I.%I', nspname, relname), pg_catalog.pg_get_indexdef(oid) from rels where relkind in ('i', 'I')
union all
select 'trigger', pg_catalog.format('%I on %I.%I', tgname, nspname, relname), pg_catalog.pg_get_triggerdef(g.oid) || ' enabled ' || tgenabled::text
  from rels join pg_catalog.pg_trigger g on g.tgrelid = rels.oid where not tgisinternal
union all
select 'policy', pg_catalog.format('%I on %I.%I', polname, nspname, relname),
       pg_catalog.concat_ws(' ', case when polpermissive then 'permissive' else 'restrictive' end,
           'for ' || case polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
           'to ' || (select pg_catalog.string_agg(case r when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r)) end, ', ' order by r)
                     from pg_catalog.unnest(polroles) r),
           'using (' || pg_catalog.pg_get_expr(polqual, polrelid) || ')', 'with check (' || pg_catalog.pg_get_expr(polwithcheck, polrelid) || ')')
  from rels join pg_catalog.pg_policy p on p.polrelid = rels.oid
union all
select 'function', pg_catalog.format('%I.%I(%s)', nspname, proname, pg_catalog.pg_get_function_identity_arguments(f.oid)),
       case when prokind = 'a' then 'aggregate' else pg_catalog.pg_get_functiondef(f.oid) end
       || 'owner ' || pg_catalog.pg_get_userbyid(proowner) || coalesce(' grants ' || <acl proacl>, '')
  from pg_catalog.pg_proc f join spaces s on s.oid = f.pronamespace
 where not exists (select from pg_catalog.pg_depend d
                   where d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = f.oid and d.deptype = 'e')
union all
select 'type', pg_catalog.format('%I.%I', nspname, typname),
       coalesce((select 'enum ' || pg_catalog.string_agg(pg_catalog.quote_literal(enumlabel), ', ' order by enumsortorder)
                 from pg_catalog.pg_enum where enumtypid = y.oid), 'domain ' || pg_catalog.format_type(y.typbasetype, y.typtypmod))
  from pg_catalog.pg_type y join spaces s on s.oid = y.typnamespace where y.typtype in ('e', 'd')
""",
)


def snapshot(cursor: t.Any) -> Snapshot:
    """Everything outside the system's schemas, in one query. Runs inside the caller's transaction, so it sees its
    changes.

    Names come out schema-qualified, whatever ``search_path`` a script has set: the setting is put aside for the query.
    """
    cursor.execute("select pg_catalog.current_setting('search_path')")
    search_path = cursor.fetchone()[0]
    cursor.execute("select pg_catalog.set_config('search_path', '', true)")
    cursor.execute(_QUERY)
    objects = {(kind, name): definition for kind, name, definition in cursor.fetchall()}
    cursor.execute("select pg_catalog.set_config('search_path', %s, true)", (search_path,))
    return objects


def difference(
    before: Snapshot, after: Snapshot, *, ignored: t.Callable[[str, str], bool] = lambda kind, name: False
) -> t.List[t.Dict[str, str]]:
    """What was created, changed and dropped: ``kind``, ``name``, ``change``, ``before`` and ``after`` (empty when
    absent).
    """
    lines = []
    for key in sorted(set(before) | set(after)):
        old, new = before.get(key, ""), after.get(key, "")
        if old == new and (key in before) == (key in after) or ignored(*key):
            continue
        change = "created" if key not in before else "dropped" if key not in after else "changed"
        lines.append({"kind": key[0], "name": key[1], "change": change, "before": old, "after": new})
    return lines


def as_text(changes: t.Sequence[t.Mapping[str, str]]) -> t.Tuple[str, str]:
    """The two sides of ``--diff``: one line or block per object."""
    sides = []
    for side in ("before", "after"):
        lines = [f"{change['kind']} {change['name']}: {change[side]}\n" for change in changes if change[side]]
        sides.append("".join(lines))
    return sides[0], sides[1]
