# SPDX-License-Identifier: GPL-3.0-or-later
"""The fixes that only make policies faster: the same rows, nothing left for a second run, never a recursion, taken back
exactly.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

ALL = ("recursion", "initplan", "indexes", "multiple_permissive")
SLOW = """
create table rooms(id int primary key, owner uuid, members uuid[], topic int, "Group" int);
alter table rooms enable row level security;
create policy mine on rooms for select using (auth.uid() = owner);
create policy shared on rooms for select using (auth.uid() = any (members) or "Group" in (select r."Group" from rooms r where r.owner = auth.uid()));
create policy nested on rooms for update using (owner = (select (select auth.uid())));
create policy sampled on rooms for delete using (id in (select id from rooms tablesample system (100)) and owner = auth.uid());
"""
#: The INSERT policy may read the table only as long as its SELECT policy holds no sub-select.
GUARDED = """
create table members(id int primary key, person uuid, team int);
alter table members enable row level security;
create policy s on members for select using (person = auth.uid());
create policy i on members for insert with check (team in (select m.team from members m where m.person = auth.uid()));
create policy d on members for delete using (person = auth.uid());
"""


def one_plan(connection: t.Any) -> rls.Plan:
    return rls.plan(connection, rls.audit(connection), fix=ALL, allow_unbounded=True)


def seen(connection: t.Any, query: str) -> t.List[t.Any]:
    return [db.see(connection, query, user=person) for person in (*db.PEOPLE, db.OUTSIDER)]


def indexes(connection: t.Any) -> t.List[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select indexdef from pg_indexes where schemaname = 'public' and indexname like '%_rls_idx' order by 1"
        )
        return [definition.partition("USING btree ")[2] for (definition,) in cursor.fetchall()]


def test_all_at_once_and_nothing_for_a_second_run(server: servers.Postgres, tmp_path: Path) -> None:
    with db.database(server, SLOW) as connection:
        db.fill(connection)
        with connection.cursor() as cursor:
            cursor.execute("update rooms set members = array[(select owner from rooms order by random() limit 1)]")
        before = db.snapshot(connection)
        named = {finding.object for finding in rls.audit(connection).findings if finding.kind == "unindexed_column"}
        assert named == {
            "public.rooms.owner",
            'public.rooms."Group"',
        }, "neither a word of the language nor the array is a column to look up by"
        plan = one_plan(connection)
        assert "TABLESAMPLE" in str(plan.needs_review)
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")

        texts = {policy[1]: policy[5] for policy in db.snapshot(connection)}
        assert len(texts) == 3, "two permissive policies of one command became one"
        assert texts["nested"].count("SELECT") == 1
        assert sorted(indexes(connection)) == ['("Group")', "(owner)"]
        again = one_plan(connection)
        assert again.statements == again.indexes == []
        rows = seen(connection, "select id from rooms order by id")
        with connection.cursor() as cursor:
            cursor.execute('select id, owner::text, members::text, "Group" from rooms order by id')
            everything = cursor.fetchall()
        for person, visible in zip((*db.PEOPLE, db.OUTSIDER), rows):
            groups = {group for _id, owner, _members, group in everything if owner == person}
            assert [number for (number,) in visible] == [
                number
                for number, owner, members, group in everything
                if owner == person or person in members or group in groups
            ]
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before and indexes(connection) == []


def test_a_wrap_that_would_recurse_is_left_out(server: servers.Postgres, tmp_path: Path) -> None:
    with db.database(server, GUARDED) as connection:
        db.fill(connection)
        with connection.cursor() as cursor:
            cursor.execute("grant all on members to authenticated")
        found = rls.audit(connection)
        assert found.failing == [] and "latent_recursion" in {finding.kind for finding in found.findings}
        rows = seen(connection, "select id from members order by id")
        plan = one_plan(connection)
        assert any("keeps its bare identity calls" in warning for warning in plan.warnings)
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert rls.audit(connection).failing == []
        texts = {policy[1]: policy[5] for policy in db.snapshot(connection)}
        assert "SELECT" not in texts["s"] and "SELECT" in texts["d"]
        assert seen(connection, "select id from members order by id") == rows
        again = one_plan(connection)
        assert again.statements == again.indexes == []
        # The proof that the guard was needed: by hand it breaks.
        with connection.cursor() as cursor:
            cursor.execute("alter policy s on members using (person = (select auth.uid()))")
        assert {failure.command for failure in rls.audit(connection).failing} == {
            "insert",
            "insert_returning",
            "upsert",
        }


@pytest.mark.parametrize("fix", ALL)
def test_one_fix_alone_changes_no_row(postgres: servers.Postgres, tmp_path: Path, fix: str) -> None:
    with db.database(
        postgres,
        GUARDED.replace("create policy i", "create policy s2 on members for select using (team = 3); create policy i"),
    ) as connection:
        db.fill(connection)
        rows = seen(connection, "select id from members order by id")
        before = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection), fix=(fix,))
        assert plan.empty is (fix == "recursion")
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        assert seen(connection, "select id from members order by id") == rows
        assert rls.plan(connection, rls.audit(connection), fix=(fix,)).empty
        if not plan.empty:
            rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before and indexes(connection) == []
