# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Roles that row-level security treats alike, so that one of them stands for all."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ...core.results import OpsError
from .transactions import Cursor, rows

#: The roles with which the API of Supabase and PostgREST asks for its users.
API_ROLES = ("anon", "authenticated")
#: Those that every project of Supabase has, in the order in which people ask about them.
SUPABASE_ROLES = (*API_ROLES, "service_role")
#: The role that speaks for its class, where the class has one of them.
WELL_KNOWN = ("authenticated", "anon", "authenticator")


@dataclass(frozen=True, eq=False)
class RoleClass:
    """Roles under row-level security that hold the same policy roles and own the same tables.

    ``held``: every role (oid) out of those named by policies or owning relations whose privileges the class has.
    ``schemas``: those into which the class may look. ``settable``: whether the session may ``SET ROLE`` to ``name``,
    without which the server cannot be asked.
    """

    name: str
    oid: int
    members: t.Tuple[str, ...]
    held: t.FrozenSet[int]
    schemas: t.FrozenSet[str]
    settable: bool


_ROLES = """
with named as (
  select unnest(coalesce(%(named)s::oid[], array(select unnest(polroles) from pg_policy))) as oid
  union select relowner from pg_class where relkind in ('r', 'p') and relrowsecurity
)
select r.oid::bigint, r.rolname as name,
       (current_setting('is_superuser')::boolean or pg_has_role(session_user, r.oid, %(set)s)) as settable,
       coalesce(array_agg(n.oid::bigint) filter (where n.oid <> 0 and pg_has_role(r.oid, n.oid, 'USAGE')), '{}') as held,
       array(select s.nspname from pg_namespace s
              where has_schema_privilege(r.oid, s.oid, 'USAGE') and s.nspname !~ '^pg_') as schemas
  from pg_roles r left join named n on true
 where not r.rolsuper and not r.rolbypassrls and r.rolname !~ '^pg_'
 group by r.oid, r.rolname
 order by r.rolname
"""


def role_classes(
    cursor: Cursor, only: t.Optional[t.Sequence[str]] = None, *, named: t.Optional[t.Collection[int]] = None
) -> t.List[RoleClass]:
    """The classes of all roles that are subject to row-level security, or each of the roles ``only`` on its own.
    ``named``: the roles (oids) that policies are for, by default those of the present policies.

    Superusers and roles with BYPASSRLS are left out: no policy applies to them.
    """
    values = {
        "set": "SET" if cursor.connection.server_version >= 160000 else "MEMBER",
        "named": None if named is None else sorted(named),
    }
    records = rows(cursor, _ROLES, values)
    if only is not None:
        cursor.execute("select rolname from pg_catalog.pg_roles where rolname = any(%s)", (list(only),))
        missing = sorted(set(only) - {name for (name,) in cursor.fetchall()})
        if missing:
            raise OpsError(f"There is no role {', '.join(missing)}.", hint="Name roles of this server.")
        return [_class([row]) for row in records if row["name"] in only]
    groups: t.Dict[t.Tuple[t.Tuple[int, ...], t.Tuple[str, ...]], t.List[t.Dict[str, t.Any]]] = {}
    for row in records:
        groups.setdefault((tuple(sorted(row["held"])), tuple(sorted(row["schemas"]))), []).append(row)
    return sorted((_class(group) for group in groups.values()), key=lambda role_class: role_class.name)


def _class(group: t.List[t.Dict[str, t.Any]]) -> RoleClass:
    def rank(row: t.Dict[str, t.Any]) -> t.Tuple[bool, int, str]:
        return (
            not row["settable"],
            WELL_KNOWN.index(row["name"]) if row["name"] in WELL_KNOWN else len(WELL_KNOWN),
            row["name"],
        )

    spokesman = min(group, key=rank)
    return RoleClass(
        name=spokesman["name"],
        oid=spokesman["oid"],
        members=tuple(row["name"] for row in group),
        held=frozenset(spokesman["held"]),
        schemas=frozenset(spokesman["schemas"]),
        settable=bool(spokesman["settable"]),
    )
