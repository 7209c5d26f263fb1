# SPDX-License-Identifier: GPL-3.0-or-later
"""Schemas of the kinds that people report. Each says in its last lines who sees which rows and what comes of a write;
that is evaluated by a superuser, whom no policy touches, and compared with what the repaired policies give.

``:one`` to ``:five`` are people, ``:user`` who asks and ``:number`` his number; ``-- see TABLE: CONDITION``,
``-- try WHO RESULT: STATEMENT`` (rows, or an SQLSTATE), ``-- untouched TABLE``, ``-- owner ROLE``.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

REPORTS = sorted((Path(__file__).parent / "reports").glob("*.sql"))
NUMBERS = ("one", "two", "three", "four", "five")
#: Loads as a superuser and gives everything to the role that repairs, as in a hosted database.
HAND_OVER = """
do $$ begin if not exists (select from pg_roles where rolname = '{role}') then create role {role} login {rights}; end if; end $$;
grant anon, authenticated, service_role to {role};
grant usage, create on schema public to {role}; grant usage on schema auth, storage to {role};
grant select on all tables in schema storage to {role};
do $$ declare item record; begin
  execute format('grant create on database %I to {role}', current_database());
  for item in select oid::regclass as name from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' loop
    execute format('alter table %s owner to {role}', item.name); end loop;
  for item in select oid::regprocedure as name from pg_proc where pronamespace = 'public'::regnamespace loop
    execute format('alter function %s owner to {role}', item.name); end loop;
end $$;
grant all on all tables in schema public to anon, authenticated;
"""


def filled(text: str, user: int = 0) -> str:
    values = {name: f"'{person}'::uuid" for name, person in zip(NUMBERS, db.PEOPLE)}
    values.update(user=f"'{(*db.PEOPLE, db.OUTSIDER)[user]}'::uuid", number=str(user + 1))
    return re.sub(r"(?<!:):([a-z]+)\b", lambda word: values.get(word[1], word[0]), text)


def visible(connection: t.Any, table: str, user: int) -> t.List[t.Any]:
    query = f"select set_config('app.clerk', '{user + 1}', true); select to_jsonb(x) from {table} x"
    return sorted(map(str, db.see(connection, query, user=(*db.PEOPLE, db.OUTSIDER)[user])))


def outcome(connection: t.Any, statement: str, person: str) -> str:
    try:
        return str(db.see(connection, statement, user=person)[0][0])
    except psycopg2.Error as error:
        return str(error.pgcode)


@pytest.mark.parametrize("rights", ["superuser", "bypassrls"])
@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.stem)
def test_report(postgres: servers.Postgres, tmp_path: Path, report: Path, rights: str) -> None:
    text = report.read_text()
    owner = re.search(r"^-- owner (\w+)$", text, re.MULTILINE)
    if owner and rights == "bypassrls":
        pytest.skip("the owner whom the policies bind is the point of it")
    role = owner[1] if owner else "rls_deployer" if rights == "bypassrls" else "postgres"
    hand_over = HAND_OVER.format(role=role, rights=rights if role == "rls_deployer" else "")
    if role == "postgres":
        hand_over = "grant all on all tables in schema public to anon, authenticated;"
    with db.database(postgres, filled(text) + hand_over) as admin:
        repairing = psycopg2.connect(admin.dsn, user="rls_deployer" if rights == "bypassrls" else "postgres")
        repairing.autocommit = True
        try:
            before = db.snapshot(admin)
            plan = rls.plan(repairing, rls.audit(repairing))
            assert plan.needs_review == [] and not plan.empty
            rls.apply(repairing, plan, undo_path=tmp_path / "undo.sql")
            present = rls.audit(repairing)
            assert not present.failing
            assert not [finding for finding in present.findings if finding.kind == "possible_54001"]
            checked = 0
            for table, condition in re.findall(r"^-- see ([\w.]+): (.*)$", text, re.MULTILINE):
                for user in range(len(NUMBERS) + 1):
                    with admin.cursor() as cursor:
                        cursor.execute(
                            f"select to_jsonb(x) from {table} x where x.ctid in (select ctid from {table}"
                            f" where {filled(condition, user)})"
                        )
                        assert visible(admin, table, user) == sorted(str(row) for row in cursor.fetchall()), (
                            table,
                            user,
                        )
                        checked += 1
            for name, result, statement in re.findall(r"^-- try (\w+) (\w+): (.*)$", text, re.MULTILINE):
                person = db.PEOPLE[NUMBERS.index(name)]
                assert outcome(admin, filled(statement), person) == result, statement
            assert checked
            for table in re.findall(r"^-- untouched (\S+)$", text, re.MULTILINE):
                assert [row for row in db.snapshot(admin) if row[0] == table] == [
                    row for row in before if row[0] == table
                ]
            rls.undo(repairing, tmp_path / "undo.sql")
            assert db.snapshot(admin) == before
        finally:
            repairing.close()
            if role != "postgres":
                with admin.cursor() as cursor:
                    cursor.execute(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}")
