# SPDX-License-Identifier: GPL-3.0-or-later
"""The remedy ``sql_script`` on a real server: transactions, ledger, locks, errors, check mode, and its end in the
middle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import pam_database as pam
from tests.support import servers
from tests.support.pam_database import ANNA, OCEAN, ask, query
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError, Result
from wheels_ops.database import connect as connections
from wheels_ops.database.scripts import ADVISORY_LOCK, Limits, Script, read_script, sql_script

LEDGER = "wheels_private.sql_scripts"
MODULE = pam.REPOSITORY / "collections/wheels/ops/plugins/modules/sql_script.py"


@pytest.fixture(params=["postgres", "newest_postgres"])
def server(request: pytest.FixtureRequest) -> servers.Postgres:
    found: servers.Postgres = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def dsn(postgres: servers.Postgres) -> str:
    return postgres.database()


def run(dsn: str, *scripts: Script, **options: t.Any) -> Result:
    return sql_script(lambda: connections.connect(dsn), scripts, **options)


@pytest.mark.parametrize("generation", pam.GENERATIONS)
def test_the_fixes_through_the_remedy(server: servers.Postgres, generation: str) -> None:
    dsn = pam.create(server, generation)
    fixes = read_script(str(pam.FIXES))
    before, policies = pam.snapshot(dsn), pam.policies(dsn)

    would = run(dsn, fixes, check_mode=True)
    assert would.changed
    assert pam.snapshot(dsn) == before, "check mode changes nothing"
    did = run(dsn, fixes, run_id="night-1")
    assert did.changed
    assert set(would.actions[0]) == set(did.actions[0])
    without_identity = lambda action: {key: value for key, value in action.items() if key not in ("duration_ms",)}  # noqa: E731 - used twice, right here
    assert without_identity(would.actions[0]) == without_identity(did.actions[0])
    assert would.diff == did.diff and "policy" in did.diff[0]["before"]
    kinds = {(change["kind"], change["change"]) for change in did.actions[0]["catalog"]}
    assert {
        ("policy", "dropped"),
        ("policy", "created"),
        ("table", "created"),
        ("function", "created"),
        ("index", "created"),
        ("trigger", "created"),
    } <= kinds
    assert ask(dsn, ANNA, f"select count(*) from group_trips where id = '{OCEAN}'") == [1]
    assert query(dsn, f"select name, state, checksum, run_id, duration_ms > 0 from {LEDGER}") == [
        (fixes.name, "applied", fixes.checksum, "night-1", True)
    ]

    for check_mode in (True, False):
        again = run(dsn, fixes, check_mode=check_mode)
        assert not again.changed and again.actions[0]["action"] == "keep" and again.diff == []
        assert set(again.actions[0]) == set(did.actions[0])
    would = run(dsn, fixes, state="undone", check_mode=True)
    assert would.changed and pam.policies(dsn) != policies
    undone = run(dsn, fixes, state="undone")
    assert undone.changed and undone.after[fixes.name]["state"] == "undone"
    assert pam.policies(dsn) == policies
    assert {key: value for key, value in pam.snapshot(dsn).items() if "wheels_private" not in key[1]} == before
    assert not run(dsn, fixes, state="undone").changed
    assert run(dsn, fixes).changed, "what was undone is applied again"


def test_what_a_script_leaves_in_its_session_stays_there(dsn: str) -> None:
    """As dumps do: a search_path, a role, a temporary table.

    Check mode runs all in one session and must not mix them up.
    """
    query(dsn, "create schema app; grant all on schema app, public to pg_monitor")
    first = Script(
        "1",
        "set search_path = app; create table one (i int); create temp table two (i int); set row_security = off; set"
        " role pg_monitor",
    )
    second = Script(
        "2",
        "create table two (i int); create table three as select current_user::text, current_setting('row_security') as"
        " secured",
    )
    would, did = run(dsn, first, second, check_mode=True), run(dsn, first, second)
    assert [action["catalog"] for action in would.actions] == [action["catalog"] for action in did.actions]
    assert {change["name"] for change in did.actions[1]["catalog"] if change["kind"] == "table"} == {
        "public.two",
        "public.three",
    }
    assert query(dsn, "select secured from public.three") == [("on",)]


def test_a_second_script_sees_the_first_in_check_mode(dsn: str) -> None:
    first, second = Script("1", "create table a (i int)"), Script("2", "insert into a values (1), (2)")
    would = run(dsn, first, second, check_mode=True)
    assert [action["rows"] for action in would.actions] == [0, 2]
    assert query(dsn, f"select to_regclass('a'), to_regclass('{LEDGER}')") == [(None, None)]
    assert [action["rows"] for action in run(dsn, first, second).actions] == [0, 2]


def test_a_look_without_a_rehearsal_runs_nothing_and_waits_for_nobody(dsn: str) -> None:
    query(dsn, "create table a (i int)")
    first, second = (
        Script("1", "lock table a; insert into a values (1)", undo="delete from a"),
        Script("2", "insert into nowhere values (1)"),
    )
    holder = psycopg2.connect(dsn)
    holder.cursor().execute("lock table a; select pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
    look = run(dsn, first, second, check_mode=True, rehearse=False)
    holder.close()
    assert (
        look.changed
        and [(action["action"], action["changed"], action["catalog"]) for action in look.actions]
        == [("apply", True, [])] * 2
    )
    assert query(dsn, f"select to_regclass('{LEDGER}'), (select count(*) from a)") == [(None, 0)]
    did = run(dsn, first, rehearse=False)
    assert query(dsn, "select i from a") == [(1,)], "a real run is not kept from anything"
    assert set(did.actions[0]) == set(look.actions[0])
    assert not run(dsn, first, check_mode=True, rehearse=False).changed
    with pytest.raises(OpsError, match="a command of psql"):
        run(dsn, Script("3", "\\i other.sql"), check_mode=True, rehearse=False)
    with pytest.raises(OpsError, match="takes no writes"):
        run(f"{dsn} options='-c default_transaction_read_only=on'", first, check_mode=True, rehearse=False)


def test_a_changed_script_is_applied_again_and_a_failing_one_leaves_nothing(dsn: str) -> None:
    run(dsn, Script("a", "create table a (i int)"))
    assert run(dsn, Script("a", "create table if not exists a (i int); create table b (i int)")).changed
    with pytest.raises(OpsError) as caught:
        run(
            dsn,
            Script("c", "create table c (i int)"),
            Script("d", "create table d (i int);\n\n-- why\ninsert into d\nvalues (1),\n  ('x');"),
        )
    assert "d, line 6, statement 2 of 2" in str(caught.value)
    assert (
        caught.value.details["line"] == 6
        and caught.value.details["sqlstate"] == "22P02"
        and caught.value.details["statement"].startswith("insert into d")
    )
    assert query(dsn, "select to_regclass('c') is not null, to_regclass('d') is not null") == [(True, False)]
    assert [row[0] for row in query(dsn, f"select name from {LEDGER} order by id")] == ["a", "a", "c"]


def test_a_script_that_always_runs_is_a_change_only_when_something_differs(dsn: str) -> None:
    script = Script(
        "always",
        "create table if not exists a (i int); insert into a select 1 where not exists (select from a)",
        always_run=True,
    )
    assert run(dsn, script).changed
    again = run(dsn, script)
    assert not again.changed and again.actions[0]["action"] == "apply"
    assert query(dsn, f"select count(*) from {LEDGER}") == [(2,)]
    query(dsn, "delete from a")
    assert run(dsn, script, check_mode=True).changed
    assert run(dsn, script).changed
    query(dsn, "drop table a")
    assert run(dsn, script).changed


def test_the_undo_that_belongs_to_what_was_applied(dsn: str) -> None:
    run(dsn, Script("a", "create table a (i int)", undo="drop table a"))
    run(dsn, Script("a", "create table a (i int)", undo="select 1/0"), state="undone")
    assert query(dsn, "select to_regclass('a')") == [(None,)]
    run(dsn, Script("b", "create table b (i int)"))
    with pytest.raises(OpsError, match="no undo script"):
        run(dsn, Script("b", "create table b (i int)"), state="undone")


def test_variables_are_bound(dsn: str) -> None:
    script = Script(
        "v",
        "create table v as select current_setting('wheels_ops.who', true) as who, current_setting('wheels_ops.none',"
        " true) as none",
    )
    hostile = "'; drop table v; --\n\\ $$ %s é"
    run(dsn, script, variables={"who": hostile})
    assert query(dsn, "select who, coalesce(none, '') from v") == [(hostile, "")]
    with pytest.raises(OpsError, match="cannot be a variable's name"):
        run(dsn, script, variables={"a b": "x"})


def test_a_held_lock_is_waited_for_with_backoff_and_then_reported(dsn: str) -> None:
    query(dsn, "create table busy (i int)")
    holder = psycopg2.connect(dsn)
    holder.cursor().execute("lock table busy in access share mode")
    waits: t.List[float] = []
    limits = Limits(lock_timeout_ms=50, retries=3, retry_delay=0.4)
    script = Script("x", "create table made (i int); alter table busy add column j int")
    with pytest.raises(OpsError) as caught:
        run(dsn, script, limits=limits, sleep=waits.append)
    assert (
        caught.value.details["sqlstate"] == "55P03"
        and caught.value.details["attempts"] == 4
        and caught.value.details["line"] == 1
    )
    assert len(waits) == 3 and all(0.2 * 2**n <= wait <= 0.4 * 2**n for n, wait in enumerate(waits))
    assert query(dsn, "select to_regclass('made')") == [(None,)]

    def release(wait: float) -> None:
        holder.rollback()

    assert run(dsn, script, limits=limits, sleep=release).actions[0]["attempts"] == 2
    holder.close()


def test_two_runners_apply_it_once(dsn: str) -> None:
    script = Script("x", "create table x (i int); insert into x values (1); select pg_sleep(0.2)")
    results: t.List[bool] = []
    threads = [threading.Thread(target=lambda: results.append(run(dsn, script).changed)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    assert query(dsn, "select count(*) from x") == [(1,)] == query(dsn, f"select count(*) from {LEDGER}")


def test_writers_are_neither_lost_nor_held_up(postgres: servers.Postgres) -> None:
    """While the fixes are applied and undone, people of the API go on joining in; every write that was acknowledged is
    there.
    """
    dsn = pam.create(postgres)
    query(dsn, "create table beats (n int primary key)")
    done = threading.Event()
    written: t.List[int] = []
    errors: t.List[str] = []

    def write(offset: int) -> None:
        connection = psycopg2.connect(dsn)
        connection.autocommit = True
        number = offset
        with connection.cursor() as cursor:
            cursor.execute("set role service_role")
            while not done.is_set():
                number += 1
                try:
                    cursor.execute(
                        "insert into group_trips (created_by, trip_name) values (%s, %s)", (ANNA, str(number))
                    )
                    written.append(number)
                except psycopg2.Error as error:
                    errors.append(str(error.pgcode))
        connection.close()

    writers = [threading.Thread(target=write, args=(n * 1_000_000,)) for n in range(3)]
    for writer in writers:
        writer.start()
    fixes = read_script(str(pam.FIXES))
    for _ in range(3):
        run(dsn, fixes)
        run(dsn, fixes, state="undone")
    done.set()
    for writer in writers:
        writer.join()
    assert errors == []
    assert query(dsn, "select count(*) from group_trips where trip_name ~ '^[0-9]+$'") == [(len(written),)]
    assert written


@pytest.mark.parametrize("kill", ["client", "server"])
def test_killed_in_the_middle_leaves_the_old_state_or_the_new(
    postgres: servers.Postgres, kill: str, tmp_path: Path
) -> None:
    dsn = pam.create(postgres)
    before = pam.snapshot(dsn)
    text = pam.FIXES.read_text()
    # The fixes, then a statement that waits for us: everything is done, nothing is committed.
    script = tmp_path / "fixes.sql"
    script.write_text(text + "\nselect pg_advisory_lock(77);\n")
    gate = psycopg2.connect(dsn)
    gate.cursor().execute("select pg_advisory_lock(77)")
    program = f"""
import sys; sys.path.insert(0, {str(pam.REPOSITORY / "src")!r})
from wheels_ops.database import connect as postgres
from wheels_ops.database.scripts import Limits, read_script, sql_script
sql_script(lambda: postgres.connect({dsn!r}), [read_script({str(script)!r})], limits=Limits(lock_timeout_ms=0))
"""
    runner = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    waiting = (
        "select pid from pg_stat_activity where application_name = 'wheels.ops' and wait_event_type = 'Lock' and"
        " datname = current_database()"
    )
    pid = wait_until(lambda: query(dsn, waiting), what="the runner at the gate")[0][0]
    if kill == "client":
        runner.send_signal(signal.SIGKILL)
    else:
        query(dsn, "select pg_terminate_backend(%s)", (pid,))
    runner.wait(20)
    gate.rollback()
    gate.cursor().execute("select pg_advisory_unlock_all()")
    gate.close()
    wait_until(
        lambda: (
            not query(
                dsn,
                "select from pg_stat_activity where application_name = 'wheels.ops' and datname = current_database()",
            )
        ),
        what="its session's end",
    )
    assert pam.snapshot(dsn) == before
    run(dsn, read_script(str(pam.FIXES)))
    assert ask(dsn, ANNA, f"select count(*) from group_trips where id = '{OCEAN}'") == [1]


def test_the_module_itself(postgres: servers.Postgres) -> None:
    """Through the module's own argument handling, as Ansible calls it."""
    dsn = pam.create(postgres)
    arguments = {"dsn": dsn, "scripts": [{"path": str(pam.FIXES)}], "_ansible_diff": True}

    def module(**more: t.Any) -> t.Dict[str, t.Any]:
        done = subprocess.run(
            [sys.executable, str(MODULE)],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **more}}),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(pam.REPOSITORY / "collections")},
        )
        found: t.Dict[str, t.Any] = json.loads(done.stdout)
        return found

    would = module(_ansible_check_mode=True)
    assert would["changed"] and would["actions"][0]["action"] == "apply" and would["diff"], would
    did = module()
    assert did["changed"] and set(did) == set(would)
    assert not module()["changed"]
    assert module(state="undone")["changed"]
    failed = module(dsn="host=127.0.0.1 port=1 dbname=x password=hunter2")
    assert failed["failed"] and "No connection" in failed["msg"] and "hunter2" not in json.dumps(failed)
    failed = module(scripts=[{"content": "select 1"}])
    assert failed["failed"] and "name" in failed["msg"]
    failed = module(scripts=[{"content": "select 1;\nvacuum;", "name": "v"}])
    assert failed["failed"] and failed["line"] == 2
