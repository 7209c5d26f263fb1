# SPDX-License-Identifier: GPL-3.0-or-later
"""An access that works keeps its rows: policies are split by command and by role, or left to a person."""

from __future__ import annotations

import typing as t
from pathlib import Path

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

#: anon reads parts through a policy that recurses for authenticated; the only other reference to cut is not bound to
#: anything.
BY_ROLE = """
create table public.trips(id int primary key, owner uuid, is_public boolean default false);
create table public.parts(id int primary key, trip_id int, user_id uuid);
alter table trips enable row level security; alter table parts enable row level security;
create policy t_anon on trips for select to anon using (is_public);
create policy t_auth on trips for select to authenticated using (owner = auth.uid() or exists (select 1 from parts p where p.trip_id > trips.id));
create policy p_all on parts for {command} to {roles} using (exists (select 1 from trips t where t.id = parts.trip_id)) {check};
comment on policy p_all on parts is 'it''s ours';
"""

#: SELECT of rooms works; INSERT visits rooms again through bans, whose policy reads rooms.
BY_COMMAND = """
create table public.teams(id int primary key, owner uuid);
create table public.members(id int primary key, team_id int, user_id uuid, level int);
alter table teams enable row level security; alter table members enable row level security;
create policy t_read on teams for select to authenticated using (owner = (select auth.uid()));
create policy t_all on teams for all to authenticated using (owner = auth.uid())
  with check (exists (select 1 from members m where m.level > teams.id));
create policy m_all on members for all to authenticated using (team_id in (select t.id from teams t));
"""


def rows(connection: t.Any, tables: t.Sequence[str], role: str) -> t.Dict[t.Tuple[str, str], t.List[t.Any]]:
    return {
        (table, user): sorted(db.see(connection, f"select id from {table}", role=role, user=user))
        for table in tables
        for user in (*db.PEOPLE, db.OUTSIDER, "")
    }


def repair(connection: t.Any, path: Path, **options: t.Any) -> t.Tuple[rls.Plan, t.Dict[str, t.Any]]:
    plan = rls.plan(connection, rls.audit(connection), **options)
    return plan, rls.apply(connection, plan, undo_path=path)


def test_split_by_role(server: servers.Postgres, tmp_path: Path) -> None:
    for roles in ("public", "anon, authenticated"):
        with db.database(server, BY_ROLE.format(command="select", roles=roles, check="")) as connection:
            db.fill(connection)
            before, seen = db.snapshot(connection), rows(connection, ["trips", "parts"], "anon")
            assert any(seen.values())
            plan, result = repair(connection, tmp_path / "undo.sql")
            assert result["after"]["failing"] == 0 and not plan.needs_review
            assert rows(connection, ["trips", "parts"], "anon") == seen
            pieces = {
                name: (command, roles)
                for table, name, command, _, roles, *_ in db.snapshot(connection)
                if table == "public.parts"
            }
            assert len(pieces) == 2
            served = {role for _command, held in pieces.values() for role in held.strip("{}").split(",")}
            assert served.issuperset({"-", "anon"} if roles == "public" else {"anon", "authenticated"})
            assert "authenticated" not in served if roles == "public" else "-" not in served
            assert any("a role made later" in warning for warning in plan.warnings) is (roles == "public")
            assert all(
                comment == "it's ours" for table, *_, comment in db.snapshot(connection) if table == "public.parts"
            )
            rls.undo(connection, tmp_path / "undo.sql")
            assert db.snapshot(connection) == before


def test_role_that_is_made_later_is_one_of_public(server: servers.Postgres, tmp_path: Path) -> None:
    """A policy for PUBLIC that was split still serves it, whether it permits or restricts."""
    for kind in ("permissive", "restrictive"):
        sql = BY_ROLE.format(command="select", roles="public", check="")
        if kind == "restrictive":
            sql = sql.replace("create policy p_all on parts", "create policy p_all on parts as restrictive")
            sql += "create policy p_any on parts using (true);"
        with db.database(server, sql) as connection, connection.cursor() as cursor:
            db.fill(connection)
            seen = rows(connection, ["trips", "parts"], "anon")
            plan, result = repair(connection, tmp_path / "undo.sql")
            assert result["after"]["failing"] == 0 and not plan.needs_review
            assert rows(connection, ["trips", "parts"], "anon") == seen
            try:
                cursor.execute("create role rls_newcomer; grant usage on schema public, auth to rls_newcomer")
                cursor.execute("grant select on trips, parts to rls_newcomer")
                cursor.execute("create policy t_new on trips for select to rls_newcomer using (true)")
                cursor.execute("select count(*) from parts p where exists (select from trips t where t.id = p.trip_id)")
                assert db.see(connection, "select count(*) from parts", role="rls_newcomer") == cursor.fetchall()
                cursor.execute("select count(*) from parts")
                assert cursor.fetchall() != [(0,)]
                # Whoever is a member of anon is served as anon is.
                cursor.execute("drop policy t_new on trips; grant anon to rls_newcomer")
                assert rows(connection, ["trips", "parts"], "rls_newcomer") == seen
            finally:
                cursor.execute("drop owned by rls_newcomer; drop role rls_newcomer")


def test_public_where_a_views_owner_reads_through_the_policy(server: servers.Postgres, tmp_path: Path) -> None:
    """The policies apply to the owner, while current_user is whoever reads the view: the roles are named."""
    sql = (
        BY_ROLE.format(command="select", roles="public", check="")
        + "create view parts_of_all as select * from parts; grant create on schema public to authenticated;"
        " alter view parts_of_all owner to authenticated; revoke create on schema public from authenticated;"
        " grant select on parts_of_all to anon;"
    )
    with db.database(server, sql) as connection:
        db.fill(connection)
        seen = rows(connection, ["trips", "parts"], "anon")
        plan, result = repair(connection, tmp_path / "undo.sql")
        assert result["after"]["failing"] == 0 and any("by name" in warning for warning in plan.warnings)
        served = {roles for table, _, _, _, roles, *_ in db.snapshot(connection) if table == "public.parts"}
        assert served and not any("-" in roles.strip("{}").split(",") for roles in served)
        assert rows(connection, ["trips", "parts"], "anon") == seen


def test_split_by_role_and_command(server: servers.Postgres, tmp_path: Path) -> None:
    sql = BY_ROLE.format(command="all", roles="public", check="with check (user_id = auth.uid())")
    with db.database(server, sql) as connection:
        db.fill(connection)
        before, seen = db.snapshot(connection), rows(connection, ["trips", "parts"], "anon")
        _, result = repair(connection, tmp_path / "undo.sql")
        assert result["after"]["failing"] == 0
        assert rows(connection, ["trips", "parts"], "anon") == seen
        found = [
            (command, check)
            for table, _, command, _, _, _, check, _ in db.snapshot(connection)
            if table == "public.parts"
        ]
        assert sorted(command for command, _ in found) == ["a", "d", "d", "r", "r", "w", "w"]
        assert all(check == "(user_id = auth.uid())" for command, check in found if command in "aw")
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


def test_what_works_is_not_touched(server: servers.Postgres, tmp_path: Path) -> None:
    with db.database(server, BY_COMMAND) as connection:
        db.fill(connection)
        found = rls.audit(connection)
        failing = {(failure.relation, failure.command) for failure in found.failing}
        working = [table for table in ("teams", "members") if (f"public.{table}", "select") not in failing]
        assert failing and working
        seen = rows(connection, working, "authenticated")
        plan, result = repair(connection, tmp_path / "undo.sql", allow_unbounded=True)
        assert result["after"]["failing"] == 0, plan.needs_review
        assert rows(connection, working, "authenticated") == seen


def test_roles_that_cannot_be_told_apart_are_left_to_a_person(server: servers.Postgres, tmp_path: Path) -> None:
    """The table's owner is exempt inside the cycle, and is a member of the role for which it fails."""
    sql = """
    do $$ begin if not exists (select from pg_roles where rolname = 'rls_keeper') then create role rls_keeper in role authenticated; end if; end $$;
    create table public.trips(id int primary key, owner uuid);
    create table public.parts(id int primary key, trip_id int, user_id uuid);
    alter table trips enable row level security; alter table parts enable row level security;
    create policy t on trips for select to authenticated using (exists (select 1 from parts p where p.trip_id > trips.id));
    create policy p on parts for select to authenticated using (exists (select 1 from trips t where t.id = parts.trip_id and t.owner = auth.uid()));
    alter table trips owner to rls_keeper; grant all on trips, parts to anon, authenticated, service_role;
    create table public.solo(id int primary key, a int); alter table solo enable row level security;
    create policy s on solo for select to authenticated using (a in (select x.id from solo x where x.a = solo.a));
    """
    with db.database(server, sql) as connection:
        db.fill(connection)
        seen = sorted(db.see(connection, "select id from parts", role="rls_keeper", user=db.PEOPLE[0]))
        plan, result = repair(connection, tmp_path / "undo.sql")
        left = {failure.relation for failure in rls.audit(connection).failing}
        assert "public.solo" not in left  # the rest is repaired
        if left:
            assert {review["object"] for review in plan.needs_review} >= left
            assert all(review["reason"] and review["advice"] for review in plan.needs_review)
        assert result["changed"] is True
        assert sorted(db.see(connection, "select id from parts", role="rls_keeper", user=db.PEOPLE[0])) == seen


def test_unwrapping_where_no_function_may_be_made(server: servers.Postgres, tmp_path: Path) -> None:
    """A second visit that only a FROM-less sub-select makes an error is repaired by taking that away, which changes no
    row.
    """
    sql = """
    create table public.staff(id int primary key, user_id uuid, boss int);
    alter table staff enable row level security;
    create policy s on staff for select to authenticated using (user_id = (select auth.uid()));
    create policy u on staff for update to authenticated using (exists (select 1 from staff x where x.boss > staff.id));
    """
    with db.database(server, sql) as connection:
        db.fill(connection)
        before = db.snapshot(connection)
        seen = rows(connection, ["staff"], "authenticated")
        plan, result = repair(connection, tmp_path / "undo.sql")
        assert [cut["form"] for cut in plan.cuts] == ["unwrapped"] and plan.functions == []
        assert result["after"]["failing"] == 0
        assert rows(connection, ["staff"], "authenticated") == seen
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


def test_what_works_in_the_end_needs_no_person(server: servers.Postgres, tmp_path: Path) -> None:
    """The planner gives up on a policy that serves a role for which it works and a member of that role for which it
    fails; then the last sub-select of the other policy goes, and with it the failure.
    """
    sql = """
    do $$ begin if not exists (select from pg_roles where rolname = 'rls_staff') then create role rls_staff; end if; end $$;
    grant rls_staff to authenticated;
    create table public.trips(id int primary key, owner uuid); create table public.parts(id int primary key, trip_id int, user_id uuid);
    alter table trips enable row level security; alter table parts enable row level security;
    create policy own on parts for select using (user_id = auth.uid());
    create policy shared on parts for select to authenticated using (exists (select 1 from trips t where t.id = parts.trip_id));
    create policy change on parts for update using (trip_id in (select p.trip_id from parts p where p.user_id = auth.uid()));
    create policy t on trips for select using (owner = (select auth.uid()) or id in (select p.trip_id from parts p where p.user_id = auth.uid()));
    """
    with db.database(server, sql) as connection:
        try:
            db.fill(connection)
            plan = rls.plan(connection, rls.audit(connection))
            assert [one["object"] for one in plan.needs_review] == ["public.parts"]
            checked = rls.apply(connection, plan, check_mode=True)
            done = rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
            assert done["needs_review"] == checked["needs_review"] == [] and "person" not in done["msg"]
            assert rls.audit(connection).failing == []
        finally:
            with connection.cursor() as cursor:
                cursor.execute("drop owned by rls_staff cascade")
                cursor.execute("drop role rls_staff")


def test_policy_that_is_rewritten_anyway_asks_for_the_caller_once(server: servers.Postgres, tmp_path: Path) -> None:
    """And only that: what works today keeps its text."""
    sql = """
    create table public.staff(id int primary key, person uuid, team int); alter table staff enable row level security;
    create table public.calm(id int primary key, person uuid); alter table calm enable row level security;
    create policy c on calm for select to authenticated using (person = auth.uid());
    create policy s on staff for select to authenticated
      using (person = auth.uid() or team = current_setting('app.team', true)::int
        or team in (select x.team from staff x where x.person = auth.uid()));
    create policy u on staff for update to authenticated using (team in (select x.team from staff x where x.person = auth.uid()))
      with check (person = auth.uid());
    """
    with db.database(server, sql) as connection:
        db.fill(connection)
        repair(connection, tmp_path / "undo.sql")
        calls: t.Dict[str, t.List[str]] = {"unwrapped_auth": [], "latent_recursion": []}
        present = rls.audit(connection)
        for finding in present.findings:
            calls.setdefault(finding.kind, []).append(finding.object)
        assert calls["unwrapped_auth"] == ["public.calm: c"] and calls["latent_recursion"] == []
        assert present.failing == []
