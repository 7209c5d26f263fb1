# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Columns, indexes and names that only planning a repair needs."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .catalog import Catalog
from .transactions import Cursor, rows

#: Their value depends on who runs the function or on its search_path, both of which a SECURITY DEFINER function
#: changes.
IDENTITY_BOUND = frozenset(
    """current_user current_role user current_schema current_schemas row_security_active pg_has_role has_table_privilege
    has_column_privilege has_any_column_privilege has_schema_privilege has_function_privilege has_database_privilege has_sequence_privilege
    has_type_privilege has_language_privilege has_server_privilege has_tablespace_privilege has_foreign_data_wrapper_privilege
    has_parameter_privilege has_largeobject_privilege to_regclass to_regproc to_regprocedure to_regtype to_regrole to_regnamespace to_regoper
    to_regoperator to_regcollation pg_table_is_visible pg_type_is_visible pg_function_is_visible set_config query_to_xml cursor_to_xml
    table_to_xml schema_to_xml database_to_xml ts_stat pg_my_temp_schema""".split()  # noqa: SIM905 - one name in a line each would hide the rest
)
SYSTEM_COLUMNS = frozenset(("tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"))


@dataclass(frozen=True)
class Column:
    name: str
    number: int
    type: str


@dataclass(frozen=True)
class FunctionDetails:
    """A function as CREATE FUNCTION needs it."""

    arguments: str
    identity: str
    result: str
    volatility: str
    strict: bool
    parallel: str
    cost: float
    sqlbody: t.Optional[str]


@dataclass
class Details:
    """``columns`` by relation and name; ``leading`` the first columns of each relation's usable indexes;
    ``plain_types`` the types of users whose input runs no code of users (enums); ``volatile`` the functions
    (schema, name; and by oid) that are VOLATILE; ``identity_bound`` those of
    ``IDENTITY_BOUND`` by oid; ``open_schemas`` the roles under row-level security that may create objects in a
    schema.
    """

    columns: t.Dict[int, t.Dict[str, Column]] = field(default_factory=dict)
    leading: t.Dict[int, t.FrozenSet[str]] = field(default_factory=dict)
    plain_types: t.FrozenSet[t.Tuple[str, str]] = frozenset()
    volatile: t.FrozenSet[t.Tuple[str, str]] = frozenset()
    volatile_oids: t.FrozenSet[int] = frozenset()
    identity_bound: t.Dict[int, str] = field(default_factory=dict)
    functions: t.Dict[int, FunctionDetails] = field(default_factory=dict)
    schemas: t.FrozenSet[str] = frozenset()
    open_schemas: t.Dict[str, t.List[str]] = field(default_factory=dict)


_COLUMNS = """
select attrelid::bigint as relation, attname as name, attnum::integer as number, format_type(atttypid, null) as type
  from pg_attribute where attrelid = any(%(relations)s::oid[]) and attnum > 0 and not attisdropped order by attrelid, attnum
"""

_LEADING = """
select i.indrelid::bigint as relation, array_agg(distinct a.attname::text) as names
  from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
 where i.indrelid = any(%(relations)s::oid[]) and i.indisvalid and i.indpred is null
 group by i.indrelid
"""


_FUNCTIONS = """
select oid::bigint, pg_get_function_arguments(oid) as arguments, pg_get_function_identity_arguments(oid) as identity,
       pg_get_function_result(oid) as result, provolatile::text as volatility, proisstrict as strict,
       case proparallel when 's' then 'SAFE' when 'r' then 'RESTRICTED' else 'UNSAFE' end as parallel, procost as cost, {body} as sqlbody
  from pg_proc where oid = any(%(oids)s::oid[]) and prokind = 'f'
"""

_SCHEMAS = """
select n.nspname as schema,
       array(select r.rolname::text from pg_roles r where not r.rolsuper and not r.rolbypassrls and r.rolname !~ '^pg_'
                and not pg_has_role(r.oid, n.nspowner, 'USAGE') and has_schema_privilege(r.oid, n.oid, 'CREATE')
                and r.rolname <> current_user order by 1) as roles
  from pg_namespace n where n.nspname !~ '^pg_'
"""


def read(cursor: Cursor, catalog: Catalog, relations: t.Optional[t.Collection[int]] = None) -> Details:
    """The details of every relation that a policy belongs to or reads (or of those given)."""
    if relations is None:
        relations = set()
        for policy in catalog.policies():
            relations.add(policy.relation)
            for part in (policy.using, policy.check):
                relations.update(part.relations if part else ())
    values = {"relations": sorted(relations)}
    details = Details()
    for row in rows(cursor, _COLUMNS, values):
        details.columns.setdefault(row["relation"], {})[row["name"]] = Column(row["name"], row["number"], row["type"])
    details.leading = {row["relation"]: frozenset(row["names"]) for row in rows(cursor, _LEADING, values)}
    cursor.execute(
        "select n.nspname, t.typname from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace"
        " where t.typtype = 'e'"
    )
    details.plain_types = frozenset((schema, name) for schema, name in cursor.fetchall())
    cursor.execute(
        "select p.oid::bigint, n.nspname, p.proname from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid ="
        " p.pronamespace where p.provolatile = 'v'"
    )
    volatile = cursor.fetchall()
    details.volatile = frozenset((schema, name) for _oid, schema, name in volatile)
    details.volatile_oids = frozenset(oid for oid, _schema, _name in volatile)
    cursor.execute(
        "select oid::bigint, proname from pg_catalog.pg_proc where pronamespace = 'pg_catalog'::regnamespace and"
        " proname = any(%s)",
        (sorted(IDENTITY_BOUND),),
    )
    details.identity_bound = dict(cursor.fetchall())
    called: t.Set[int] = set()
    for policy in catalog.policies():
        for part in (policy.using, policy.check):
            called |= part.functions if part else set()
    body = "pg_get_function_sqlbody(oid)" if catalog.version >= 140000 else "null::text"
    for row in rows(cursor, _FUNCTIONS.format(body=body), {"oids": sorted(called & set(catalog.functions))}):
        oid = row.pop("oid")
        details.functions[oid] = FunctionDetails(**row)
    schemas = {row["schema"]: row["roles"] for row in rows(cursor, _SCHEMAS)}
    details.schemas, details.open_schemas = frozenset(schemas), schemas
    return details
