# SPDX-License-Identifier: GPL-3.0-or-later
"""Random schemas with policies that read each other, from a seed; small enough to read, and to be shrunk."""

from __future__ import annotations

import copy
import random
import re
import typing as t
from dataclasses import dataclass, field

#: People of the API. Nobody (a request without a user id) is asked as well.
PEOPLE = tuple(f"0000000{n}-0000-4000-8000-000000000000" for n in (1, 2, 3))
ROLES = ("anon", "authenticated", "fuzz_editor")

#: Every table has the same columns, so that any expression fits any table.
COLUMNS = "id int primary key, owner uuid, other uuid, ref int, grp int, flag boolean, note text"

#: A query of more tables than this takes PostgreSQL seconds to plan.
LARGEST = 60

_NAMES = ("trips", "people", "notes", "teams", "User", 'odd "name', "sélection", "order", "a.b", "x" * 63)


@dataclass
class Group:
    """``a and b`` or ``a or b``; the parts are SQL or groups, so that a failing schema can be made smaller part by
    part.
    """

    word: str
    parts: t.List[t.Union[str, Group]]

    def sql(self) -> str:
        words = [part if isinstance(part, str) else part.sql() for part in self.parts]
        return "(" + f" {self.word} ".join(words) + ")" if words else "true"


@dataclass
class Policy:
    table: str
    name: str
    command: str
    roles: str
    permissive: bool
    using: t.Optional[Group]
    check: t.Optional[Group]

    def sql(self, schema: str) -> str:
        kind = "permissive" if self.permissive else "restrictive"
        words = (
            f'create policy "{self.name}" on {schema}.{quote(self.table)} as {kind} for {self.command} to {self.roles}'
        )
        if self.using:
            words += f" using {self.using.sql()}"
        if self.check:
            words += f" with check {self.check.sql()}"
        return words


@dataclass
class Table:
    name: str
    secured: bool = True
    forced: bool = False
    rows: t.List[str] = field(default_factory=list)


@dataclass
class View:
    name: str
    sql: str
    invoker: bool


@dataclass
class Schema:
    seed: int
    name: str
    tables: t.List[Table]
    views: t.List[View]
    functions: t.List[t.Tuple[str, str]]
    policies: t.List[Policy]

    def statements(self) -> t.List[str]:
        """Everything that makes the schema, rows included."""
        found = [f"create schema {self.name}", f"grant usage on schema {self.name} to {', '.join(ROLES)}"]
        for table in self.tables:
            found.append(f"create table {self.name}.{quote(table.name)} ({COLUMNS})")
            if table.rows:
                found.append(f"insert into {self.name}.{quote(table.name)} values {', '.join(table.rows)}")
        for view in self.views:
            found.append(
                f"create view {self.name}.{quote(view.name)}{' with (security_invoker = true)' if view.invoker else ''}"
                f" as {view.sql}"
            )
        found += [sql for _, sql in self.functions]
        for table in self.tables:
            if table.secured:
                found.append(f"alter table {self.name}.{quote(table.name)} enable row level security")
            if table.forced:
                found.append(f"alter table {self.name}.{quote(table.name)} force row level security")
        found += [policy.sql(self.name) for policy in self.policies]
        found.append(f"grant all on all tables in schema {self.name} to {', '.join(ROLES)}")
        return found

    def text(self) -> str:
        """As a case: SQL that a person can read and load after the Supabase shim."""
        return f"-- seed {self.seed}\n" + "".join(f"{statement};\n" for statement in self.statements())

    def smaller(self) -> t.Iterator[Schema]:
        """Every schema that lacks one thing of this one, the largest things first."""
        for number in range(len(self.policies)):
            one = copy.deepcopy(self)
            del one.policies[number]
            yield one
        for kind in ("views", "functions", "tables"):
            for number in range(len(getattr(self, kind))):
                one = copy.deepcopy(self)
                del getattr(one, kind)[number]
                yield one
        for number, policy in enumerate(self.policies):
            for slot in ("using", "check"):
                for path in _paths(getattr(policy, slot)):
                    one = copy.deepcopy(self)
                    _remove(getattr(one.policies[number], slot), path)
                    yield one
            if policy.using and policy.check:
                one = copy.deepcopy(self)
                one.policies[number].check = None
                yield one
        for number, table in enumerate(self.tables):
            if table.forced:
                one = copy.deepcopy(self)
                one.tables[number].forced = False
                yield one
            for row in range(len(table.rows)):
                one = copy.deepcopy(self)
                del one.tables[number].rows[row]
                yield one


def _expanded(schema: Schema, name: str, above: t.Tuple[str, ...]) -> int:
    """How many tables a query of ``name`` comes to, when a policy's reference to a table above it is cut."""
    if name in above:
        return 1
    for view in schema.views:
        if view.name == name:
            return 1 + _references(schema, view.sql, (*above, name)) if view.invoker else 1
    found = 1
    for policy in schema.policies:
        if policy.table == name and (not above or policy.command in ("select", "all")):
            for group in (policy.using, policy.check):
                found += _references(schema, group.sql(), (*above, name)) if group else 0
                if found > LARGEST:
                    return found
    return found


def _references(schema: Schema, sql: str, above: t.Tuple[str, ...]) -> int:
    names = [table.name for table in schema.tables] + [view.name for view in schema.views]
    # A name that is followed by a dot is a column's.
    return sum(
        len(re.findall(re.escape(f"{schema.name}.{quote(name)}") + r"(?!\.)", sql)) * _expanded(schema, name, above)
        for name in names
    )


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _paths(group: t.Optional[Group]) -> t.List[t.Tuple[int, ...]]:
    found: t.List[t.Tuple[int, ...]] = []
    if group is None or len(group.parts) <= 1 and not any(isinstance(part, Group) for part in group.parts):
        return found
    for number, part in enumerate(group.parts):
        if len(group.parts) > 1:
            found.append((number,))
        if isinstance(part, Group):
            found += [(number, *path) for path in _paths(part)]
    return found


def _remove(group: Group, path: t.Tuple[int, ...]) -> None:
    for step in path[:-1]:
        part = group.parts[step]
        assert isinstance(part, Group)
        group = part
    del group.parts[path[-1]]


class Generator:
    """One schema from one seed: the same seed gives the same schema."""

    def __init__(self, seed: int, *, invoker_views: bool = True) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.invoker_views = invoker_views
        self.schema = f"fuzz_{seed}"
        self.names: t.List[str] = []
        self.sources: t.List[str] = []
        self.functions: t.List[t.Tuple[str, str]] = []
        self.budget = 0

    def make(self) -> Schema:
        """Draws until a schema is small enough: PostgreSQL expands the policies of every reference anew, and its
        planner grows with that.
        """
        while True:
            self.functions = []
            self.budget = self.random.choice((2, 2, 3, 3, 4, 5, 6))
            schema = self._draw()
            if all(_expanded(schema, table.name, ()) <= LARGEST for table in schema.tables):
                return schema

    def _draw(self) -> Schema:
        pick = self.random
        self.names = pick.sample(_NAMES, pick.choice((2, 2, 3, 3, 4, 5)))
        tables = [Table(name, pick.random() < 0.92, pick.random() < 0.15, self._rows()) for name in self.names]
        self.sources = list(self.names)
        views = []
        for number in range(pick.choice((0, 0, 0, 1, 2))):
            base = pick.choice(self.names)
            condition = pick.choice(("", " where grp > 1", " where flag", " where owner is not null"))
            views.append(
                View(
                    f"view_{number}",
                    f"select * from {self._full(base)}{condition}",
                    self.invoker_views and pick.random() < 0.7,
                )
            )
            self.sources.append(f"view_{number}")
        if pick.random() < 0.25:
            self._definer()
        self._identities([table for table in tables if not table.secured])
        policies = []
        for name in self.names:
            for number in range(pick.choice((1, 1, 2, 2, 3))):
                policies.append(self._policy(name, number))
        return Schema(self.seed, self.schema, tables, views, self.functions, policies)

    def _rows(self) -> t.List[str]:
        pick = self.random
        people = [f"'{person}'" for person in PEOPLE] + ["null"]
        return [
            f"({number}, {pick.choice(people)}, {pick.choice(people)}, {pick.choice((1, 2, 3, 4, 5, 'null'))},"
            f" {pick.choice((1, 2, 3, 'null'))}, {pick.choice(('true', 'false', 'null'))}, '{pick.choice('abc')}')"
            for number in range(1, pick.choice((3, 4, 5, 6)) + 1)
        ]

    def _definer(self) -> None:
        base = self.random.choice(self.names)
        self.functions.append(
            (
                "known",
                (
                    f"create function {self.schema}.known(n int) returns boolean language sql stable security definer"
                    f" set search_path = '' as $$ select exists (select 1 from {self._full(base)} d where d.id = n and"
                    " d.owner = auth.uid()) $$"
                ),
            )
        )

    def _identities(self, open_tables: t.Sequence[Table]) -> None:
        """Functions of one's own that say who asks: in SQL and PL/pgSQL, of one value and of many, with and without a
        table that anybody may read.
        """
        pick = self.random
        setting = "nullif(current_setting('fuzz.grp', true), '')::int"
        wanted = {
            "my_grp": ("int", "sql", f"select {setting}"),
            "my_person": ("uuid", "plpgsql", "declare me uuid; begin me := auth.uid(); return me; end"),
            "my_grps": ("int[]", "sql", f"select array[{setting}, 3]"),
            "my_rows": ("setof int", "sql", "select 2 union all select 4 where auth.uid() is not null"),
        }
        if open_tables:
            table = self._full(pick.choice(open_tables).name)
            wanted["open_rows"] = ("setof int", "sql", f"select o.id from {table} o where o.owner = auth.uid()")
        for name, (returns, language, body) in wanted.items():
            if pick.random() < 0.5:
                rights = " security definer" if pick.random() < 0.3 else ""
                self.functions.append(
                    (
                        name,
                        f"create function {self.schema}.{name}() returns {returns} language {language} stable{rights}"
                        f" set search_path = '' as $$ {body} $$",
                    )
                )

    def _identity(self, dot: str) -> t.List[str]:
        """Conditions of one row on who asks that are no ``auth.uid()``."""
        settings = (
            f"{dot}grp = nullif(current_setting('fuzz.grp', true), '')::int",
            f"{dot}grp = any (string_to_array(current_setting('fuzz.grp', true), ',')::int[])",
            f'{dot}note = "left"(current_user::text, 1)',
            f'({dot}owner = auth.uid() or {dot}note = "left"(current_user::text, 1))',
            f"{dot}grp = case when current_user = 'anon' then 1 else 2 end",
            f"{dot}grp < (select 3 where current_user <> 'anon')",
        )
        calls = {
            "my_grp": (f"{dot}grp = {self.schema}.my_grp()", f"{dot}grp > {self.schema}.my_grp()"),
            "my_person": (f"{dot}owner = {self.schema}.my_person()",),
            "my_grps": (f"{dot}grp = any ({self.schema}.my_grps())",),
            "my_rows": (f"{dot}ref in (select {self.schema}.my_rows())",),
            "open_rows": (f"{dot}ref in (select o from {self.schema}.open_rows() o)",),
        }
        return [*settings, *(text for name, _ in self.functions for text in calls.get(name, ()))]

    def _policy(self, table: str, number: int) -> Policy:
        pick = self.random
        command = pick.choice(("select", "select", "select", "all", "all", "insert", "update", "delete"))
        permissive = pick.random() < 0.85
        using = self._expression(table) if command != "insert" else None
        check = (
            self._expression(table)
            if command in ("all", "update", "insert") and (command == "insert" or pick.random() < 0.5)
            else None
        )
        roles = pick.choice(
            (
                "public",
                "public",
                "public",
                "authenticated",
                "authenticated",
                "anon",
                "fuzz_editor",
                "anon, authenticated",
            )
        )
        return Policy(table, f"{command} {number}", command, roles, permissive, using, check)

    def _expression(self, table: str) -> Group:
        pick = self.random
        parts: t.List[t.Union[str, Group]] = []
        for _ in range(pick.choice((1, 2, 2, 3))):
            draw = pick.random()
            if draw < 0.4 or self.budget <= 0:
                parts.append(self._atom(""))
            elif draw < 0.9:
                parts.append(self._subquery(table))
            else:
                parts.append(Group(pick.choice(("and", "or")), [self._atom(""), self._subquery(table)]))
        return Group(pick.choice(("or", "or", "and")), parts)

    def _full(self, name: str) -> str:
        return f"{self.schema}.{quote(name)}"

    def _atom(self, alias: str) -> str:
        """A condition on one row, and on who asks."""
        dot = f"{alias}." if alias else ""
        if self.random.random() < 0.3:
            return self.random.choice(self._identity(dot))
        return self.random.choice(
            (
                f"{dot}owner = auth.uid()",
                f"{dot}owner = auth.uid()",
                f"{dot}owner = (select auth.uid())",
                f"{dot}other = auth.uid()",
                f"{dot}flag",
                f"{dot}grp > 1",
                f"{dot}note in ('a', 'b')",
                f"auth.uid() is not null and {dot}flag",
                f"coalesce({dot}flag, false)",
                f"{dot}owner is null",
                f"{dot}grp between 1 and 2",
                "auth.role() = 'authenticated'",
                "(select auth.uid()) is not null",
                f"lower({dot}note) = 'a'",
                f"current_user <> 'anon' and {dot}grp = 1",
                f"auth.uid() in ({dot}owner, {dot}other)",
            )
        )

    def _subquery(self, table: str) -> str:
        pick = self.random
        self.budget -= 1
        own = self._full(table)
        s, s2 = self._full(pick.choice(self.sources)), self._full(pick.choice(self.sources))
        a, b = self._atom("s"), self._atom("z")
        tie = pick.choice(
            (
                f"s.ref = {own}.id",
                f"s.id = {own}.ref",
                f"s.grp = {own}.grp",
                f"s.ref = {own}.id and s.grp = {own}.grp",
                f"s.note = {own}.note",
            )
        )
        negation = pick.choice(("", "", "", "not "))
        shapes: t.List[str] = [
            f"exists (select 1 from {s} s where {tie} and {a})",
            f"exists (select 1 from {s} s where {tie} and s.owner = auth.uid())",
            f"{own}.id in (select s.ref from {s} s where s.owner = auth.uid())",
            f"{own}.ref in (select s.id from {s} s where {a})",
            f"{negation}exists (select 1 from {s} s where {tie})",
            f"{own}.id = any (array(select s.ref from {s} s where {a}))",
            f"{own}.grp not in (select s.grp from {s} s where s.grp is not null and {a})",
            (
                f"exists (select 1 from {s} s join {s2} z on z.ref = s.id where s.owner = auth.uid() and z.grp ="
                f" {own}.grp)"
            ),
            f"exists (select 1 from {s} s, {s2} z where {tie} and z.id = s.ref and {a} and {b})",
            f"exists (select 1 from {s} s left join {s2} z on z.id = s.ref and {b} where {tie} and z.id is null)",
            (
                f"exists (select 1 from {s} s left join {s2} z on z.id = s.ref where {tie} and ({b} or z.owner ="
                " auth.uid()))"
            ),
            (
                f"exists (select 1 from {s} s full join {s2} z on z.id = s.ref where coalesce(s.grp, z.grp) = {own}.grp"
                f" and {a})"
            ),
            (
                f"{own}.id in (select s.ref from {s} s where {a}"
                f" {pick.choice(('union', 'union all', 'except', 'intersect'))} select z.id from {s2} z where {b})"
            ),
            f"exists (with c as (select s.ref, s.grp from {s} s where {a}) select 1 from c where c.ref = {own}.id)",
            (
                f"exists (with c as materialized (select s.* from {s} s) select 1 from c join {s2} z on z.id = c.ref"
                f" where c.owner = auth.uid() and z.grp = {own}.grp)"
            ),
            f"(select count(*) from {s} s where {tie} and {a}) {pick.choice(('> 0', '= 0', '>= 2', '< 2'))}",
            f"{own}.grp >= (select max(s.grp) from {s} s where {a})",
            f"coalesce((select bool_or(s.flag) from {s} s where {tie}), {pick.choice(('true', 'false'))})",
            (
                f"exists (select 1 from {s} s where s.id = {own}.ref and exists (select 1 from {s2} z where z.ref ="
                " s.id and z.owner = auth.uid()))"
            ),
            f"exists (select 1 from {s} s where {tie} and s.id in (select z.ref from {s2} z where {b}))",
            f"({own}.ref, {own}.grp) in (select s.id, s.grp from {s} s where {a})",
            f"{own}.id in (select s.ref from {s} s where {a} group by s.ref having count(*) >= 1)",
            f"{own}.ref in (select s.id from {s} s where {a} order by s.id limit 2)",
            f"exists (select 1 from (select q.* from {s} q where q.flag) s where {tie} and {a})",
            (
                f"exists (select 1 from {s} s cross join lateral (select z.grp from {s2} z where z.ref = s.id and {b})"
                f" l where {tie} and l.grp > 0)"
            ),
            f"(select s.owner from {s} s where s.id = {own}.ref) = auth.uid()",
            (
                f"exists (select distinct s.grp from {s} s where {tie} and auth.uid() = any (array(select z.owner from"
                f" {s2} z where z.ref = s.id)))"
            ),
            f"(select count(s) from {s} s where {tie}) > 0",
            f"{own}.owner <> all (select s.owner from {s} s where s.owner is not null and s.ref = {own}.ref)",
            f"case when {own}.flag then exists (select 1 from {s} s where {tie}) else {own}.owner = auth.uid() end",
            f"exists (select 1 from {s} s where {tie} and (s.owner = auth.uid() or s.other = auth.uid()))",
            f"exists (select 1 from {s} as s (a, b, c, d, e, f, g) where d = {own}.id and b = auth.uid())",
        ]
        if any(name == "known" for name, _ in self.functions):
            shapes.append(f"{self.schema}.known({own}.ref)")
        return pick.choice(shapes)
