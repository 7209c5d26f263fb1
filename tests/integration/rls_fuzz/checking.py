# SPDX-License-Identifier: GPL-3.0-or-later
"""One random schema: what everyone can do before, the repair, what everyone can do after, what the definition says, and
the undo.
"""

from __future__ import annotations

import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from tests.integration.rls_fuzz import evaluator
from tests.integration.rls_fuzz.evaluator import Endless, Evaluator, Name, Original, show
from tests.integration.rls_fuzz.generator import PEOPLE, ROLES, Schema, quote
from wheels_ops import rls
from wheels_ops.core.results import OpsError
from wheels_ops.database import schema_snapshot

RECURSION = "42P17"
DENIED = "42501"

#: Runs each statement as a user of the API, undoes it, and tells what came of it: a result, a number of rows, or an
#: SQLSTATE.
_ATTEMPT = """
create or replace function pg_temp.attempt(who text, claims text, grp text, statements text[]) returns text[] language plpgsql as $$
declare found text[] := '{}'; statement text; said text; touched bigint;
begin
  foreach statement in array statements loop
    begin
      perform set_config('request.jwt.claims', claims, true);
      perform set_config('fuzz.grp', grp, true);
      perform set_config('role', who, true);
      if statement like 'select%' then execute statement into said;
      else execute statement; get diagnostics touched = row_count; said := touched::text; end if;
      raise exception using errcode = 'WO000', message = coalesce(said, '');
    exception when others then
      found := found || case sqlstate when 'WO000' then sqlerrm else sqlstate end;
    end;
  end loop;
  return found;
end $$
"""


class Access(t.NamedTuple):
    """One statement of one user: ``row`` is the id that it is about, 0 where it is about all rows."""

    role: str
    person: t.Optional[str]
    table: Name
    variant: str
    row: int

    @property
    def path(self) -> t.Tuple[str, Name, str]:
        return self.role, self.table, self.variant


@dataclass
class Outcome:
    """``problem`` is empty when everything holds; ``kind`` is its first word, which stays the same while a schema is
    made smaller.
    """

    problem: str = ""
    failing: int = 0
    cuts: int = 0
    split: int = 0
    unwrapped: int = 0
    review: int = 0
    d1: int = 0
    d2: int = 0
    left: int = 0
    details: t.List[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.problem.split(":")[0]


def statements(table: Name, rows: t.Sequence[int]) -> t.List[t.Tuple[str, int, str]]:
    """(variant, row, SQL) for the nine variants; those that name a row are run for each."""
    name = show(table)
    found = [
        ("select", 0, f"select string_agg(id::text, ',' order by id) from {name}"),
        (
            "select_for_update",
            0,
            f"select string_agg(id::text, ',') from (select id from {name} order by id for update) q",
        ),
        ("update_blind", 0, f"update {name} set note = 'a'"),
        ("delete_blind", 0, f"delete from {name}"),
    ]
    for row in rows:
        found += [
            ("update", row, f"update {name} set grp = grp where id = {row}"),
            ("delete", row, f"delete from {name} where id = {row}"),
        ]
    return found


class Checker:
    """Checks schemas in one database, one after the other."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                "do $$ begin if not exists (select from pg_roles where rolname = 'fuzz_editor') then create role"
                " fuzz_editor; end if; end $$; grant authenticated to fuzz_editor"
            )
        connection.close()

    def check(self, schema: Schema, *, allow_unbounded: bool = True) -> Outcome:
        """Never raises for a defect of what is checked: that is an outcome, which can be shrunk."""
        connection = psycopg2.connect(self.dsn, options="-c statement_timeout=5s -c jit=off")
        try:
            with connection, connection.cursor() as cursor:
                try:
                    for statement in schema.statements():
                        cursor.execute(statement)
                except psycopg2.Error as error:
                    connection.rollback()
                    return Outcome(f"invalid: {error}")
            try:
                return self._check(connection, schema, allow_unbounded)
            except psycopg2.errors.QueryCanceled:
                return Outcome("too large: a query of the trial itself takes too long")
        finally:
            connection.rollback()
            with connection, connection.cursor() as cursor:
                cursor.execute("set client_min_messages = warning")
                cursor.execute(f"drop schema if exists {schema.name} cascade")
                cursor.execute(f"drop schema if exists {schema.name}_ops cascade")
            connection.close()

    def _check(self, connection: t.Any, schema: Schema, allow_unbounded: bool) -> Outcome:
        outcome = Outcome()
        cursor = connection.cursor()
        original = evaluator.read(cursor, schema.name)
        tables = [(schema.name, table.name) for table in schema.tables]
        views = [(schema.name, view.name) for view in schema.views]
        before = self._everything(cursor, tables, views)
        written = schema_snapshot.snapshot(cursor)
        connection.commit()
        failing = {access.path for access, said in before.items() if said == RECURSION}
        outcome.failing = len(failing)
        try:
            found = rls.audit(connection, schemas=[schema.name])
        except OpsError as error:
            outcome.problem = f"audit: {error}"
            return outcome
        said = {(failure.role, failure.relation, failure.command) for failure in found.failing if failure.recursive}
        if bool(said) != bool(failing):
            outcome.problem = f"detection: {len(failing)} accesses fail, the audit says {len(said)}"
            return outcome
        try:
            plan = rls.plan(connection, found, allow_unbounded=allow_unbounded, helper_schema=f"{schema.name}_ops")
        except OpsError as error:
            outcome.problem = f"plan: {error}"
            return outcome
        outcome.cuts, outcome.review = len(plan.cuts), len(plan.needs_review)
        outcome.split = sum(bool(cut.get("split")) for cut in plan.cuts)
        outcome.unwrapped = sum(cut["form"] == "unwrapped" for cut in plan.cuts)
        undo = Path(tempfile.mkstemp(prefix="wops-fuzz-", suffix=".sql")[1])
        try:
            try:
                checked = rls.apply(connection, plan, check_mode=True)
                if self._written(connection) != written:
                    outcome.problem = "check mode: it changed the catalog"
                    return outcome
                applied = rls.apply(connection, plan, undo_path=undo)
            except OpsError as error:
                outcome.problem = f"apply: {error}"
                return outcome
            if bool(checked["changed"]) != bool(applied["changed"]):
                outcome.problem = "check mode: it predicted another result"
                return outcome
            with connection, connection.cursor() as cursor:
                after = self._everything(cursor, tables, views)
            self._compare(connection, original, plan, before, after, failing, outcome, schema)
            if applied["changed"] and not outcome.problem:
                rls.undo(connection, undo)
                now = self._written(connection)
                if now != written:
                    outcome.problem = f"undo: {[key for key in {**written, **now} if written.get(key) != now.get(key)]}"
        finally:
            undo.unlink(missing_ok=True)
        return outcome

    def _written(self, connection: t.Any) -> schema_snapshot.Snapshot:
        with connection, connection.cursor() as cursor:
            return schema_snapshot.snapshot(cursor)

    # -- what everyone can do ---------------------------------------------------------------------------------------

    def _everything(self, cursor: t.Any, tables: t.Sequence[Name], views: t.Sequence[Name]) -> t.Dict[Access, str]:
        cursor.execute(_ATTEMPT)
        found: t.Dict[Access, str] = {}
        work: t.List[t.Tuple[Name, str, int, str]] = []
        for table in tables:
            cursor.execute(f"select id from {show(table)} order by id")
            rows = [row[0] for row in cursor.fetchall()]
            work += [(table, variant, row, sql) for variant, row, sql in statements(table, rows)]
            cursor.execute(
                "select id, format('(%s, %L::uuid, %L::uuid, %L::int, %L::int, %L::boolean, %L)', id + 1000, owner,"
                " other, ref, grp, flag, note), format('(%s, %L::uuid, %L::uuid, %L::int, %L::int, %L::boolean, %L)',"
                f" id, owner, other, ref, grp, flag, note) from {show(table)} order by id"
            )
            for row, fresh, same in cursor.fetchall():
                work.append((table, "insert", row, f"insert into {show(table)} values {fresh}"))
                work.append((table, "insert_returning", row, f"insert into {show(table)} values {fresh} returning id"))
                work.append(
                    (
                        table,
                        "upsert",
                        row,
                        f"insert into {show(table)} as t values {same} on conflict (id) do update set grp = t.grp",
                    )
                )
        work += [
            (view, "select", 0, f"select string_agg(id::text, ',' order by id) from {show(view)}") for view in views
        ]
        for role in ROLES:
            for person in (*PEOPLE, None):
                cursor.execute(
                    "select pg_temp.attempt(%s, %s, %s, %s)",
                    (role, evaluator.claims(role, person), evaluator.group(person), [sql for _, _, _, sql in work]),
                )
                for (table, variant, row, _), said in zip(work, cursor.fetchone()[0]):
                    found[Access(role, person, table, variant, row)] = said
        return found

    # -- what the definition says -----------------------------------------------------------------------------------

    def _compare(
        self,
        connection: t.Any,
        original: Original,
        plan: rls.Plan,
        before: t.Dict[Access, str],
        after: t.Dict[Access, str],
        failing: t.Set[t.Tuple[str, Name, str]],
        outcome: Outcome,
        schema: Schema,
    ) -> None:
        wrong: t.List[str] = []
        for access, said in before.items():
            if access.path not in failing:
                outcome.d1 += 1
                if after[access] != said:
                    wrong.append(f"D1: {access}: {said} -> {after[access]}")
        names = {}
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "select n.nspname, c.relname, format('%%I.%%I', n.nspname, c.relname) from pg_class c"
                " join pg_namespace n on n.oid = c.relnamespace where n.nspname = %s",
                (schema.name,),
            )
            names = {row[2]: (row[0], row[1]) for row in cursor.fetchall()}
            now = evaluator.policies(cursor, schema.name)
        cut: t.Dict[t.Tuple[Name, str, str], t.Set[Name]] = {}
        for one in plan.cuts:
            if one.get("reads"):
                cut.setdefault((names[one["table"]], one["policy"], one["expression"]), set()).update(
                    names[read] for read in one["reads"]
                )

        def cuts(table: Name, policy: evaluator.Policy, slot: str, role: str, command: str) -> t.Set[Name]:
            found = cut.get((table, policy.name, slot), set())
            # A policy that was split keeps its text for some roles and commands: there nothing is cut.
            for piece in now[table] if found else ():
                if (
                    (piece.name == policy.name or piece.name.startswith(policy.name[:40]))
                    and piece.serves(command)
                    and piece.roles & original.held[role]
                ):
                    text = (
                        piece.using
                        if slot == "using" and command != "INSERT"
                        else piece.check
                        if slot == "check"
                        else piece.check or piece.using
                    )
                    if text == (policy.using if slot == "using" else policy.check):
                        return set()
            return found

        residual = {access.path for access in failing_accesses(before, failing) if after[access] == RECURSION}
        outcome.left = len(residual)
        if residual and not plan.needs_review:
            wrong.append(f"residual: {sorted(residual)[0]} still fails and nothing was left for review")
        for role in ROLES:
            for person in (*PEOPLE, None):
                with connection.cursor() as cursor:
                    cursor.execute("set search_path = ''")
                    self._definition(
                        Evaluator(cursor, original, cuts, role, person),
                        before,
                        after,
                        failing,
                        residual,
                        outcome,
                        wrong,
                    )
                connection.rollback()
        if wrong:
            outcome.problem = wrong[0]
            outcome.details = wrong

    def _definition(
        self,
        one: Evaluator,
        before: t.Dict[Access, str],
        after: t.Dict[Access, str],
        failing: t.Set[t.Tuple[str, Name, str]],
        residual: t.Set[t.Tuple[str, Name, str]],
        outcome: Outcome,
        wrong: t.List[str],
    ) -> None:
        expected: t.Dict[t.Tuple[Name, str], t.Any] = {}
        for access in failing_accesses(before, failing):
            if (access.role, access.person) != (one.role, one.person) or access.path in residual:
                continue
            key = (access.table, access.variant)
            if key not in expected:
                one.cursor.execute("savepoint definition")
                try:
                    expected[key] = _expected(one, access.table, access.variant)
                except Endless as error:
                    wrong.append(f"endless: {access}: {error}")
                    expected[key] = None
                    one.cursor.execute("rollback to definition")
                    one.seen.clear()
            if expected[key] is None:
                continue
            said = expected[key].get(access.row, "0") if isinstance(expected[key], dict) else expected[key]
            outcome.d2 += 1
            if after[access] != said:
                wrong.append(f"D2: {access}: the definition says {said!r}, the repaired schema {after[access]!r}")


def failing_accesses(before: t.Dict[Access, str], failing: t.Set[t.Tuple[str, Name, str]]) -> t.Iterator[Access]:
    return (access for access in before if access.path in failing)


def _expected(one: Evaluator, table: Name, variant: str) -> t.Union[str, t.Dict[int, str]]:
    """What the definition says of an access: one outcome, or one for each row (rows that are not in it: "0")."""
    cursor, alias = one.cursor, quote(table[1])

    def rows(columns: str, *conditions: str) -> t.List[t.Tuple[int, bool]]:
        cursor.execute(
            f"select id, ({' and '.join(conditions) or 'true'}) from (select {columns} from {show(table)}) as {alias}"
            " order by id"
        )
        found: t.List[t.Tuple[int, bool]] = cursor.fetchall()
        return found

    if table in one.original.views:
        seen = one.visible(table)
        cursor.execute(f"select coalesce(string_agg(id::text, ',' order by id), '') from {show(seen)}")
        return str(cursor.fetchone()[0])
    read = lambda: one.condition(table, "SELECT", "using")  # noqa: E731 - evaluated only where the variant needs it
    columns = "id, owner, other, ref, grp, flag, note"
    if variant in ("select", "select_for_update"):
        conditions = [read()] + ([one.condition(table, "UPDATE", "using")] if variant == "select_for_update" else [])
        return ",".join(str(row) for row, yes in rows(columns, *conditions) if yes)
    if variant in ("insert", "insert_returning"):
        conditions = [one.condition(table, "INSERT", "check")] + ([read()] if variant == "insert_returning" else [])
        return {
            row - 1000: "1" if yes else DENIED
            for row, yes in rows(columns.replace("id,", "id + 1000 as id,", 1), *conditions)
        }
    if variant == "upsert":
        conditions = [
            one.condition(table, "INSERT", "check"),
            read(),
            one.condition(table, "UPDATE", "using"),
            one.condition(table, "UPDATE", "check"),
        ]
        return {row: "1" if yes else DENIED for row, yes in rows(columns, *conditions)}
    if variant in ("delete", "delete_blind"):
        conditions = [one.condition(table, "DELETE", "using")] + ([read()] if variant == "delete" else [])
        touched = [row for row, yes in rows(columns, *conditions) if yes]
        return str(len(touched)) if variant == "delete_blind" else {row: "1" for row in touched}
    if variant == "update":
        touched = [row for row, yes in rows(columns, one.condition(table, "UPDATE", "using"), read()) if yes]
        allowed = {row for row, yes in rows(columns, one.condition(table, "UPDATE", "check")) if yes}
        return {row: "1" if row in allowed else DENIED for row in touched}
    assert variant == "update_blind"
    touched = [row for row, yes in rows(columns, one.condition(table, "UPDATE", "using")) if yes]
    allowed = {
        row
        for row, yes in rows(columns.replace("note", "'a'::text as note"), one.condition(table, "UPDATE", "check"))
        if yes
    }
    return str(len(touched)) if set(touched) <= allowed else DENIED
