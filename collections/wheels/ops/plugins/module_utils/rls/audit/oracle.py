# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks PostgreSQL itself which accesses fail: every role class x relation x command variant, in one round trip.

The error is raised when a query is rewritten, so ``PREPARE`` is enough: nothing is planned, executed or locked against
writers, and no privilege on the table is needed. Each ``PREPARE`` runs in a subtransaction that is always rolled back,
which gives its locks back at once.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict, dataclass, field

from ..model.roles import RoleClass, role_classes
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection, Cursor, rows, transaction

RECURSION = "42P17"

#: The ways in which a table is used that draw in different policies. ``{t}`` is the table, ``{c}`` one of its columns.
#: "blind": the row security of SELECT is not involved, because no column is read.
VARIANTS: t.Dict[str, str] = {
    "select": "select from {t}",
    "select_for_update": "select from {t} for update",
    "insert": "insert into {t} default values",
    "insert_returning": "insert into {t} default values returning {c}",
    "upsert": "insert into {t} default values on conflict ({c}) do update set {c} = default",
    "update_blind": "update {t} set {c} = default",
    "update": "update {t} set {c} = default returning {c}",
    "delete_blind": "delete from {t}",
    "delete": "delete from {t} returning {c}",
}


@dataclass(frozen=True)
class Failure:
    """An access that PostgreSQL refuses while it rewrites the query.

    ``role`` stands for every role in ``roles``; ``relation`` is qualified and quoted as SQL needs it; ``command`` is
    one of ``VARIANTS``. ``witness`` tells in words how the recursion comes about, one step an element. ``reachable`` is
    false where the role lacks the table privilege, so that it would get SQLSTATE 42501 after a repair.
    """

    role: str
    relation: str
    command: str
    sqlstate: str
    message: str
    witness: t.List[str] = field(default_factory=list)
    roles: t.Tuple[str, ...] = ()
    reachable: bool = True

    @property
    def recursive(self) -> bool:
        return self.sqlstate == RECURSION

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {**asdict(self), "roles": list(self.roles), "path": " -> ".join(self.witness)}


@dataclass(frozen=True)
class Probe:
    """What the server answered: the number of accesses asked for and those that it refused.

    ``unasked``: role classes that the session may not ``SET ROLE`` to.
    """

    checked: int
    failing: t.List[Failure]
    unasked: t.List[str] = field(default_factory=list)

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "checked": self.checked,
            "failing": [failure.as_dict() for failure in self.failing],
            "unasked": self.unasked,
        }


RELATIONS = """
select c.oid::bigint, n.nspname as schema, c.relkind::text as kind, format('%%I.%%I', n.nspname, c.relname) as relation,
       (select quote_ident(a.attname) from pg_attribute a
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum limit 1) as "column"
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where (c.relkind in ('r', 'p') and (c.relrowsecurity or c.relhasrules) or c.relkind = 'v')
   and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and (%(schemas)s::text[] is null or n.nspname = any(%(schemas)s::text[]))
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e' and c.relkind = 'v')
 order by n.nspname, c.relname
"""

# The answers leave the block in a setting, the only thing that a DO block in a READ ONLY transaction can leave behind.
# 'WOPS0' is our own SQLSTATE: it undoes the subtransaction of an access that PostgreSQL accepts.
_ASK = """
do $wheels_ops$
declare
  ask json := current_setting('wheels_ops.ask')::json;
  answer text[] := '{}';  -- an array grows in place, a jsonb value would be copied for every failure
  made integer := 0;
  names text[]; statements text[];  -- of the variants
  rel record; who record; way integer; statement text; state text; complaint text;
begin
  begin
    perform set_config('lc_messages', 'C', true);
  exception when insufficient_privilege then null;  -- only a superuser may choose the language of messages
  end;
  select array_agg(x.name order by x.number), array_agg(x.statement order by x.number) into names, statements
    from json_to_recordset(ask->'variants') as x(name text, statement text, number integer);
  for who in select x.name, x.number from json_to_recordset(ask->'roles') as x(name text, number integer) loop
    for rel in select x.relation, x."column", x.kind, x.number, x.without
                 from json_to_recordset(ask->'relations') as x(relation text, "column" text, kind text, number integer, without integer[])
                where who.number <> all (x.without) loop
      for way in 1 .. cardinality(names) loop
        continue when rel.kind = 'v' and names[way] <> 'select' or rel."column" is null and strpos(statements[way], '{c}') > 0;
        statement := replace(replace(statements[way], '{t}', rel.relation), '{c}', coalesce(rel."column", ''));
        made := made + 1;
        begin
          perform set_config('role', who.name, true);
          execute 'prepare wheels_ops_probe as ' || statement;
          execute 'deallocate wheels_ops_probe';
          raise exception using errcode = 'WOPS0';
        exception
          when sqlstate 'WOPS0' then null;
          when lock_not_available then raise;
          when others then
            get stacked diagnostics state = returned_sqlstate, complaint = message_text;
            answer := array_append(answer, json_build_array(who.number, rel.number, names[way], state, complaint)::text);
        end;
      end loop;
    end loop;
  end loop;
  perform set_config('wheels_ops.answer', '{"checked": ' || made || ', "failing": [' || array_to_string(answer, ',') || ']}', true);
end
$wheels_ops$
"""

# The same for a list of accesses, with the errors alone.
_ASK_THESE = """
do $wheels_ops$
declare
  answer text[] := '{}';
  item record; state text; complaint text;
begin
  for item in select x.number, x.role, x.statement
                from json_to_recordset(current_setting('wheels_ops.ask')::json)
                  as x(number integer, role text, statement text) loop
    begin
      perform set_config('role', item.role, true);
      execute 'prepare wheels_ops_probe as ' || item.statement;
      execute 'deallocate wheels_ops_probe';
      raise exception using errcode = 'WOPS0';
    exception
      when sqlstate 'WOPS0' then null;
      when lock_not_available then raise;
      when others then
        get stacked diagnostics state = returned_sqlstate, complaint = message_text;
        answer := array_append(answer, json_build_array(item.number, state, complaint)::text);
    end;
  end loop;
  perform set_config('wheels_ops.answer', '[' || array_to_string(answer, ',') || ']', true);
end
$wheels_ops$
"""
#: What gives the answer of ``these`` when it has run.
ANSWER = "select pg_catalog.current_setting('wheels_ops.answer')"

#: An access: role, relation (qualified), variant, and a column of the relation, quoted.
Access = t.Tuple[str, str, str, t.Optional[str]]


def probe(
    connection: Connection,
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> Probe:
    """Which accesses PostgreSQL refuses, in a READ ONLY transaction that creates nothing.

    ``connection`` is a psycopg2 connection outside of a transaction. Without ``schemas`` every schema but the system's
    is looked at, without ``roles`` one role of every class. Raises ``OpsError`` when a timeout strikes.
    """
    with transaction(
        connection, read_only=True, statement_timeout_ms=statement_timeout_ms, lock_timeout_ms=lock_timeout_ms
    ) as cursor:
        return ask(cursor, role_classes(cursor, roles), schemas=schemas)


def columns(cursor: Cursor, *, schemas: t.Optional[t.Sequence[str]] = None) -> t.Dict[str, t.Optional[str]]:
    """The relations (qualified) that ``ask`` asks for, each with the column that its statements name."""
    found = rows(cursor, RELATIONS, {"schemas": None if schemas is None else list(schemas)})
    return {row["relation"]: row["column"] for row in found}


def these(accesses: t.Sequence[Access]) -> t.Tuple[str, str]:
    """(the value of the setting ``wheels_ops.ask``, the statement) that ask for the accesses in the order given."""
    asked = [
        {
            "number": number,
            "role": role,
            "statement": VARIANTS[variant].replace("{t}", relation).replace("{c}", column or ""),
        }
        for number, (role, relation, variant, column) in enumerate(accesses)
    ]
    return json.dumps(asked), _ASK_THESE


def failures(accesses: t.Sequence[Access], answer: str) -> t.List[Failure]:
    """What the server said to ``these``."""
    failing = []
    for number, state, complaint in json.loads(answer):
        role, relation, variant, dummy = accesses[number]
        failing.append(Failure(role, relation, variant, state, complaint))
    return failing


def ask(
    cursor: Cursor,
    classes: t.Sequence[RoleClass],
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    relations: t.Optional[t.Collection[int]] = None,
) -> Probe:
    """The probe inside a transaction of the caller; ``relations`` (oids) narrows it down."""
    subjects = [candidate for candidate in classes if candidate.settable]
    unasked = [candidate.name for candidate in classes if not candidate.settable]
    found = rows(cursor, RELATIONS, {"schemas": None if schemas is None else list(schemas)})
    if relations is not None:
        found = [row for row in found if row["oid"] in relations]
    if not subjects or not found:
        return Probe(0, [], unasked)
    # A role that may not look into a schema cannot name a relation there.
    without = {
        schema: [number for number, candidate in enumerate(subjects) if schema not in candidate.schemas]
        for schema in {row["schema"] for row in found}
    }
    question = {
        "roles": [{"name": candidate.name, "number": number} for number, candidate in enumerate(subjects)],
        "relations": [
            {
                "relation": row["relation"],
                "column": row["column"],
                "kind": row["kind"],
                "number": number,
                "without": without[row["schema"]],
            }
            for number, row in enumerate(found)
        ],
        "variants": [
            {"name": name, "statement": statement, "number": number}
            for number, (name, statement) in enumerate(VARIANTS.items())
        ],
    }
    cursor.execute("select pg_catalog.set_config('wheels_ops.ask', %s, true)", (json.dumps(question),))
    cursor.execute(_ASK)
    cursor.execute("select pg_catalog.current_setting('wheels_ops.answer')")
    answer = json.loads(cursor.fetchone()[0])
    failing = [
        Failure(subjects[who].name, found[relation]["relation"], way, state, complaint, roles=subjects[who].members)
        for who, relation, way, state, complaint in answer["failing"]
    ]
    return Probe(answer["checked"], failing, unasked)
