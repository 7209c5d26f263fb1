# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The data comparison: what a sample of users sees through every table whose policies a repair touches, before and
after.

Both measurements belong to the snapshot of one REPEATABLE READ transaction, so that concurrent writers cannot make a
difference, and both are made before a policy is changed (see ``visibility``).
"""

from __future__ import annotations

import json
import re
import typing as t
import uuid
from dataclasses import dataclass

from ..model.catalog import Catalog, Relation
from ..model.roles import RoleClass
from ..model.transactions import Cursor, rows, set_local

#: Tables above this size are compared by a sample of their rows, so that the proof does not hold locks for long.
LARGE_BYTES = 1024 * 1024
SAMPLE_ROWS = 2_000
USERS = 8

_IS_UUID = " and {column}::text ~* '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$'"
#: Identities in a policy's text: a column compared with auth.uid(), a claim, or a setting. Wrapped or not, cast or not.
_WRAPPED = r"(?:\( SELECT )?\(*"
_UID = re.compile(rf"(?P<column>\w+|\"[^\"]+\")\)?(?:::\w+)? = {_WRAPPED}auth\.(?P<what>uid|email)\(\)")
_UID_LEFT = re.compile(
    r"auth\.(?P<what>uid|email)\(\)(?: AS \w+)?\)?(?:\)*::\w+)? = \(?(?:[\w\"]+\.)?(?P<column>\w+|\"[^\"]+\")"
)
_CLAIM = re.compile(
    rf"(?P<column>\w+|\"[^\"]+\")\)?(?:::\w+)? = {_WRAPPED}auth\.jwt\(\)(?: AS jwt\))? ->> '(?P<what>\w+)'"
)
_SETTING = re.compile(rf"(?P<column>\w+|\"[^\"]+\")\)?(?:::\w+)? = {_WRAPPED}current_setting\('(?P<what>[\w.]+)'")
_FUNCTION = re.compile(
    rf"(?P<column>\w+|\"[^\"]+\")\)?(?:::\w+)? (?:= |= ANY \(+|IN ){_WRAPPED}(?P<function>[\w\"]+\.[\w\"]+)\("
)
_ASKED_SETTING = re.compile(r"current_setting\(\s*'([\w.]+)'")
_ASKED_CLAIM = re.compile(r"->>\s*'(\w+)'")


@dataclass(frozen=True)
class User:
    """Somebody to look through: claims of the token and settings of the session."""

    claims: t.Tuple[t.Tuple[str, str], ...] = ()
    settings: t.Tuple[t.Tuple[str, str], ...] = ()

    @property
    def words(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in (*self.claims, *self.settings)) or "nobody"


class Seen(t.NamedTuple):
    """What one query gave: rows and a digest of which, or the SQLSTATE with which it failed, and where."""

    rows: int
    digest: str
    state: str
    context: str = ""


Key = t.Tuple[str, User, str]

_MEASURE = """
do $wheels_ops$
declare
  ask json := current_setting('wheels_ops.ask')::json;
  answer text[] := '{}';
  item record; setting record; seen bigint; digest text; state text; context text;
begin
  for item in select x.number, x.role, x.settings, x.query
                from json_to_recordset(ask) as x(number integer, role text, settings json, query text) loop
    begin
      for setting in select key, value from json_each_text(item.settings) loop
        perform set_config(setting.key, setting.value, true);
      end loop;
      perform set_config('role', item.role, true);
      execute item.query into seen, digest;
      raise exception using errcode = 'WOPS0';
    exception
      when sqlstate 'WOPS0' then answer := array_append(answer, json_build_array(item.number, seen, digest, '')::text);
      when lock_not_available then raise;
      when others then
        get stacked diagnostics state = returned_sqlstate, context = pg_exception_context;
        answer := array_append(answer, json_build_array(item.number, 0, '', state, context)::text);
    end;
  end loop;
  perform set_config('wheels_ops.answer', '[' || array_to_string(answer, ',') || ']', true);
end
$wheels_ops$
"""


def users(cursor: Cursor, catalog: Catalog, touched: t.Collection[int], *, count: int = USERS) -> t.List[User]:
    """Users out of the data of the touched tables, an outsider whom no row knows, and nobody."""
    around = set(touched)
    for oid in touched:
        for policy in catalog.relations[oid].policies:
            for expression in (policy.using, policy.check):
                around.update(expression.relations if expression else ())
    bindings: t.Dict[t.Tuple[str, str], t.Set[str]] = {}
    accounts = False
    for oid in around & set(catalog.relations):
        for policy in catalog.relations[oid].policies:
            for expression in (policy.using, policy.check):
                accounts = accounts or bool(expression and "auth.uid()" in expression.text)
                for kind, pattern in (("claim", _UID), ("claim", _UID_LEFT), ("claim", _CLAIM), ("setting", _SETTING)):
                    for match in pattern.finditer(expression.text if expression else ""):
                        setting = (
                            {"uid": "sub"}.get(match["what"], match["what"])
                            if pattern in (_UID, _UID_LEFT)
                            else match["what"]
                        )
                        bindings.setdefault((kind, setting), set()).add(match["column"].strip('"'))
                for binding, column in _through_functions(catalog, expression.text if expression else ""):
                    bindings.setdefault(binding, set()).add(column)
    values = {
        # auth.uid() fails for a subject that is no uuid, so that a user of that name would see nothing but the error.
        binding: _values(cursor, around, columns, count, uuids=accounts and binding == ("claim", "sub"))
        for binding, columns in sorted(bindings.items())
    }
    found_users: t.List[User] = []
    for number in range(count):
        claims: t.List[t.Tuple[str, str]] = []
        settings: t.List[t.Tuple[str, str]] = []
        for (kind, setting), groups in values.items():
            if number < len(groups):
                (claims if kind == "claim" else settings).append((setting, groups[number]))
        if claims or settings:
            found_users.append(User(tuple(claims), tuple(settings)))
    outsider = str(uuid.UUID(int=0x0DD))
    return [
        *found_users,
        User((("sub", outsider),), tuple((setting, outsider) for (kind, setting) in values if kind == "setting")),
        User(),
    ]


def _through_functions(catalog: Catalog, text: str) -> t.Iterator[t.Tuple[t.Tuple[str, str], str]]:
    """((kind, name), column) of identities that a function of users gives: what its body asks for."""
    for found in _FUNCTION.finditer(text):
        for function in catalog.functions.values():
            if function.qualified != found["function"]:
                continue
            column = found["column"].strip('"')
            for setting in _ASKED_SETTING.findall(function.source):
                if not setting.startswith("request."):
                    yield ("setting", setting), column
            for claim in _ASKED_CLAIM.findall(function.source):
                yield ("claim", claim), column
            if "auth.uid()" in function.source:
                yield ("claim", "sub"), column


def _values(
    cursor: Cursor, relations: t.Collection[int], columns: t.Collection[str], count: int, *, uuids: bool
) -> t.List[str]:
    """Values of those columns, those first that occur in most tables; ``uuids``: no others."""
    places = rows(
        cursor,
        "select format('%%I.%%I', n.nspname, c.relname) as relation, quote_ident(a.attname) as column from"
        " pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid join pg_catalog.pg_namespace n on"
        " n.oid = c.relnamespace where c.oid = any(%(relations)s::oid[]) and c.relkind in ('r', 'p') and a.attname ="
        " any(%(columns)s) and a.attnum > 0 and not a.attisdropped and has_table_privilege(c.oid, 'SELECT') order by"
        " 1, 2",
        {"relations": sorted(relations), "columns": sorted(columns)},
    )
    counts: t.Dict[str, int] = {}
    for place in places:
        # The first rows suffice: a sample, not a statistic. A table that fails to be read is one of those to be
        # repaired.
        cursor.execute("savepoint wheels_ops_values")
        try:
            cursor.execute(
                f"select distinct v from (select {place['column']}::text as v from {place['relation']} where"
                f" {place['column']} is not null{_IS_UUID.format(column=place['column']) if uuids else ''} limit 500) s"
                f" order by v limit {4 * count}"
            )
            for (value,) in cursor.fetchall():
                counts[value] = counts.get(value, 0) + 1
        except Exception as error:
            if getattr(error, "pgcode", None) not in ("42P17", "42501", "54001"):
                raise
        # Rolled back where it succeeded as well, which gives the lock back.
        cursor.execute("rollback to savepoint wheels_ops_values")
        cursor.execute("release savepoint wheels_ops_values")
    return [value for value, _ignored in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][:count]


class Counting:
    """The queries that count and identify the visible rows of some relations; of a large table it is the same sample of
    its rows in each of them.
    """

    def __init__(self, cursor: Cursor, catalog: Catalog, relations: t.Collection[int]) -> None:
        sizes = rows(
            cursor,
            "select oid::bigint, pg_relation_size(oid) as size from pg_catalog.pg_class where oid ="
            " any(%(oids)s::oid[]) and relkind = 'r'",
            {"oids": sorted(relations)},
        )
        self._samples = {
            row["oid"]: _sample(cursor, catalog.relations[row["oid"]]) for row in sizes if row["size"] > LARGE_BYTES
        }

    def direct(self, relation: Relation) -> str:
        """The query that reads the relation itself."""
        return self.query(relation, f"{relation.qualified} AS v WHERE true", "v")

    def query(self, relation: Relation, source: str, alias: str) -> str:
        """The same for what stands behind FROM and WHERE."""
        if relation.kind == "v":
            identity = f"{alias}::text"
        elif relation.oid in self._samples:
            identity = f"{alias}.ctid::text"
            source += f" AND {alias}.ctid = any ({self._samples[relation.oid]})"
        else:
            identity = f"{alias}.tableoid::text || {alias}.ctid::text"
        return f"select count(*), coalesce(sum(hashtextextended({identity}, 0)::numeric), 0)::text from {source}"


def _sample(cursor: Cursor, relation: Relation) -> str:
    cursor.execute(
        f"select coalesce(array_agg(s.ctid), '{{}}')::text from (select ctid from only {relation.qualified} tablesample"
        f" system (5) repeatable (1) limit {SAMPLE_ROWS}) s"
    )
    return f"'{cursor.fetchone()[0]}'::tid[]"


def identify(who: RoleClass, user: User) -> t.Dict[str, str]:
    """The settings that make a session that user's, as PostgREST makes them (the old form, one for each claim, as
    well).
    """
    claims = {**dict(user.claims), "role": who.name}
    settings = {"request.jwt.claims": json.dumps(claims), **dict(user.settings)}
    for name, value in claims.items():
        if re.fullmatch(r"[A-Za-z_]\w*", name):
            settings[f"request.jwt.claim.{name}"] = value
    return settings


class Question(t.NamedTuple):
    """``query`` (of ``Counting``) asks for ``relation`` (qualified) as a user of a role."""

    who: RoleClass
    user: User
    relation: str
    query: str

    @property
    def key(self) -> Key:
        return self.who.name, self.user, self.relation


def measure(cursor: Cursor, catalog: Catalog, questions: t.Sequence[Question]) -> t.Dict[Key, Seen]:
    """Runs the queries as those roles and users, in one round trip; nothing that they do stays."""
    if not questions:
        return {}
    asked = [
        {
            "number": number,
            "role": question.who.name,
            "settings": identify(question.who, question.user),
            "query": question.query,
        }
        for number, question in enumerate(questions)
    ]
    # Compiling these short queries would take longer than running them.
    set_local(cursor, jit="off")
    set_local(cursor, search_path=", ".join(f'"{name}"' for name in catalog.search_path))
    try:
        cursor.execute("select pg_catalog.set_config('wheels_ops.ask', %s, true)", (json.dumps(asked),))
        cursor.execute(_MEASURE)
        cursor.execute("select pg_catalog.current_setting('wheels_ops.answer')")
        answer = json.loads(cursor.fetchone()[0])
    finally:
        if cursor.connection.info.transaction_status != 3:  # not in a failed transaction
            set_local(cursor, search_path="")
    return {
        questions[number].key: Seen(count, digest or "", state, *context)
        for number, count, digest, state, *context in answer
    }
