# SPDX-License-Identifier: GPL-3.0-or-later
"""The hand-made cases: found, repaired in check mode and for real, nothing left, taken back exactly."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

#: Accesses that fail as anon, authenticated or service_role (a view's own SELECT included), and those that can end in
#: 54001.
EXPECTED: t.Dict[str, t.Tuple[int, int]] = {
    "01_self_participants": (6, 0),
    "02_mutual_trips": (25, 0),
    "03_three_cycle": (19, 0),
    "04_view": (13, 0),
    "05_sqlfn_invoker": (0, 7),
    "06_plpgsql_invoker": (0, 7),
    "07_admin_users": (21, 0),
    "08_correlated_self": (8, 0),
    "09_restrictive": (8, 0),
    "10_insert_check": (3, 0),
    "11_initplan_wrap": (4, 0),
    "12_join_other_table": (18, 0),
    "13_left_join_setop_cte": (12, 0),
    "14_tautology": (6, 0),
    "15_clean_control": (0, 0),
    "16_anon_only_and_force": (6, 0),
    "17_role_dependent": (12, 0),
    "18_first_generation": (30, 0),
    "19_second_generation": (30, 0),
    "20_third_generation": (24, 0),
    "21_nobody_after_somebody": (6, 0),
    "22_renamed_columns": (14, 0),
    "23_overloaded_function": (0, 7),
}


def runtime(found: rls.Audit) -> int:
    return sum(len(finding.details["commands"]) for finding in found.findings if finding.kind == "possible_54001")


@pytest.mark.parametrize("case", db.CASES, ids=lambda case: case.stem)
def test_case(server: servers.Postgres, case: Path, tmp_path: Path) -> None:
    undo = tmp_path / "undo.sql"
    if "security_invoker" in case.read_text():
        server.require(15, "views with security_invoker")
    with db.database(server, case.read_text()) as connection:
        db.fill(connection)
        named = rls.audit(connection, roles=["anon", "authenticated", "service_role"])
        assert (len(named.failing), runtime(named)) == EXPECTED[case.stem]
        assert all(failure.witness for failure in named.failing)

        before = db.snapshot(connection)
        found = rls.audit(connection)
        plan = rls.plan(connection, found, allow_unbounded=True, accept_captured_columns=True)
        assert plan.needs_review == []
        wanted = bool(found.failing) or bool(runtime(found))

        checked = rls.apply(connection, plan, check_mode=True, undo_path=undo)
        assert checked["changed"] is wanted
        assert db.snapshot(connection) == before and db.helpers(connection) == []
        assert not undo.exists()

        done = rls.apply(connection, plan, check_mode=False, undo_path=undo)
        assert done["changed"] is wanted
        assert checked.keys() == done.keys()
        after = rls.audit(connection)
        assert (after.failing, runtime(after)) == ([], 0)
        assert {finding.identity for finding in after.findings} <= {finding.identity for finding in found.findings}

        again = rls.apply(
            connection,
            rls.plan(connection, after, allow_unbounded=True, accept_captured_columns=True),
            undo_path=tmp_path / "second.sql",
        )
        assert again["changed"] is False
        assert not (tmp_path / "second.sql").exists()

        if wanted:
            assert rls.undo(connection, undo, check_mode=True)["changed"] is True
            assert db.snapshot(connection) != before
            assert rls.undo(connection, undo)["changed"] is True
        assert db.snapshot(connection) == before
        assert db.helpers(connection) == []


@pytest.mark.parametrize(
    "case", [case for case in db.CASES if case.stem[:2] in ("06", "07", "13", "16")], ids=lambda case: case.stem
)
def test_undo_script_works_in_psql(postgres: servers.Postgres, case: Path, tmp_path: Path) -> None:
    undo = tmp_path / "undo.sql"
    with db.database(postgres, case.read_text()) as connection:
        before = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection), allow_unbounded=True, accept_captured_columns=True)
        rls.apply(connection, plan, undo_path=undo)
        assert db.snapshot(connection) != before
        postgres.psql(connection.dsn, file=undo)
        assert db.snapshot(connection) == before


@pytest.mark.parametrize(
    "case", [case for case in db.CASES if case.stem[:2] in ("18", "19", "20")], ids=lambda case: case.stem
)
def test_generations_of_the_backend(server: servers.Postgres, case: Path, tmp_path: Path) -> None:
    """Whichever of the competing migrations is live: who takes part sees the trip, an outsider sees none."""
    with db.database(server, case.read_text()) as connection:
        with connection.cursor() as cursor:
            cursor.execute(
                "insert into group_trips(id, created_by, trip_name) select gen_random_uuid(), %s, 'mine' from"
                " generate_series(1, 3)",
                (db.PEOPLE[0],),
            )
            cursor.execute(
                "insert into group_trip_participants(trip_id, user_id, role) select id, %s, 'participant' from"
                " group_trips limit 1",
                (db.PEOPLE[1],),
            )
        rls.apply(connection, rls.plan(connection, rls.audit(connection)), undo_path=tmp_path / "undo.sql")
        seen = {
            person: db.see(connection, "select count(*) from group_trips", user=person)[0][0]
            for person in (db.PEOPLE[0], db.PEOPLE[1], db.OUTSIDER)
        }
        assert seen == {db.PEOPLE[0]: 3, db.PEOPLE[1]: 1, db.OUTSIDER: 0}
        assert db.see(connection, "select count(*) from group_trip_participants", user=db.OUTSIDER) == [(0,)]
        assert db.see(connection, "select count(*) from group_trip_participants", user=db.PEOPLE[1]) == [(1,)]


def test_ids_that_are_no_uuids(server: servers.Postgres, tmp_path: Path) -> None:
    """A column of text may name others than accounts ("system"): auth.uid() fails for such a subject, which is no fault
    of the repair.
    """
    sql = """
        create table m(id int primary key, trip int, who text, role text); alter table m enable row level security;
        create policy a on m for select using (exists (select 1 from m x where x.who = auth.uid()::text and x.trip = m.trip));
        create policy c on m for delete using (exists (select 1 from m x where x.who = (auth.jwt() ->> 'sub') and x.trip = m.trip));"""
    with db.database(server, sql) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into m select n, n / 2, case when n %% 2 = 0 then 'system' else %s end from generate_series(1,"
            " 6) n",
            (db.PEOPLE[0],),
        )
        done = rls.apply(connection, rls.plan(connection, rls.audit(connection)), undo_path=tmp_path / "undo.sql")
        assert done["changed"] is True
        assert done["after"]["now_visible"]["public.m"] > 0
        assert rls.audit(connection).failing == []
        assert db.see(connection, "select count(*) from m", user=db.PEOPLE[0]) == [(5,)]
        assert db.see(connection, "select count(*) from m", user=db.OUTSIDER) == [(0,)]
