# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of the policy engine: audit, plan, and the policies that a repair leaves behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
import uuid
from pathlib import Path

import psycopg2

from tests.bench.harness import Pair, benchmark
from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.rls.audit import oracle

TABLES, POLICIES_EACH = 1_000, 5
#: 1,000 tables x 9 ways x (anon, authenticated, and the class of all other roles).
ROLES = ("anon", "authenticated")
TRIPS, PARTS = 200_000, 1_000_000

Connection = t.Any


def large(cursor: t.Any) -> None:
    """1,000 tables with 5,000 policies: of each ten one reads itself, eight read the last one, which reads none."""
    statements = []
    for number in range(TABLES):
        cursor.execute(
            f"create table t{number}(id int primary key, owner uuid, parent int, open boolean); alter table t{number}"
            " enable row level security"
        )
    for number in range(TABLES):
        name, inner = f"t{number}", f"t{number if number % 10 == 0 else number - number % 10 + 9}"
        lookup = (
            f" or exists (select 1 from {inner} x where x.id = {name}.parent and x.owner = auth.uid())"
            if inner != name or number % 10 == 0
            else ""
        )
        statements.append(
            f"create policy p1 on {name} for select using (owner = auth.uid(){lookup});create policy p2 on {name} for"
            f" insert to authenticated with check (owner = auth.uid());create policy p3 on {name} for update to"
            f" authenticated using (owner = auth.uid()) with check (owner = auth.uid());create policy p4 on {name} for"
            f" delete to authenticated using (owner = auth.uid());create policy p5 on {name} for select to anon using"
            " (open);"
        )
        if number % 100 == 99:
            cursor.execute("".join(statements))
            statements = []


@contextlib.contextmanager
def large_database(
    fill: t.Callable[[t.Any], None] = large,
) -> t.Iterator[t.Tuple[servers.Postgres, Connection]]:
    # The subtransactions of 5,000 policies take more locks than a small server is set up for only while tables are
    # made.
    with servers.postgres(settings=["max_locks_per_transaction=1024"]) as server, db.database(server) as connection:
        with connection.cursor() as cursor:
            fill(cursor)
            cursor.execute("analyze")
        yield server, connection


def entangled(cursor: t.Any) -> None:
    """As ``large``, as grown schemas are: sub-selects in 80 % of the policies, 100 functions that policies call and 100
    views. Of each ten tables the first two read each other, and the rest leads to tables that read none.
    """
    statements = [
        f"create table t{number}(id int primary key, owner uuid, parent int, open boolean); alter table t{number} enable"
        " row level security;"
        for number in range(TABLES)
    ]
    for number in range(0, TABLES, 10):
        statements.append(
            f"create function f{number}(wanted int) returns boolean language sql stable security definer set search_path"
            f" = '' as $$ select exists (select 1 from public.t{number + 9} x where x.id = wanted) $$;"
            f"create view v{number} as select a.id, b.owner from t{number} a join t{number + 5} b on b.id = a.parent;"
        )
    for number in range(TABLES):
        name, place = f"t{number}", number % 10
        inner = f"t{number + 1 - 2 * place if place < 2 else number - place + 9}"
        lookup = f"exists (select 1 from {inner} x where x.id = {name}.parent and x.owner = auth.uid())"
        if place == 9:
            lookup = "(parent = any (array(select (auth.jwt() ->> 'team')::int)))"
        statements.append(
            f"create policy p1 on {name} for select using (owner = auth.uid() or {lookup});create policy p2 on {name} for"
            f" insert to authenticated with check (owner = (select auth.uid()) and f{number - place}(parent));create"
            f" policy p3 on {name} for update to authenticated using (owner = auth.uid() or {lookup}) with check (owner ="
            f" (select auth.uid()));create policy p4 on {name} for delete to authenticated using ({lookup});create policy"
            f" p5 on {name} for select to anon using (open);"
        )
    for start in range(0, len(statements), 100):
        cursor.execute("".join(statements[start : start + 100]))


def timed(call: t.Callable[[], t.Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@benchmark(
    "S1",
    what="audit of 1,000 tables and 5,000 policies, seconds after connecting",
    unit="s",
    goal="ours <= 1.5",
    runs=3,
)
@contextlib.contextmanager
def audit_seconds() -> t.Iterator[Pair]:
    with large_database() as (_, connection):
        yield lambda: timed(lambda: rls.audit(connection, roles=ROLES)), None


@benchmark(
    "S1b",
    what="audit of 1,000 tables and 5,000 policies, 80 % with sub-selects, against the bare question to the server",
    unit="s",
    goal="ratio <= 1.5",
    peer="the read-only DO block alone",
    runs=3,
)
@contextlib.contextmanager
def audit_of_entangled() -> t.Iterator[Pair]:
    with large_database(entangled) as (_, connection):
        yield (
            lambda: timed(lambda: rls.audit(connection, roles=ROLES)),
            lambda: timed(lambda: oracle.probe(connection, roles=ROLES)),
        )


@benchmark(
    "S4b",
    what="repair plan of that schema, against its audit",
    unit="s",
    goal="ratio <= 3",
    peer="the audit",
    runs=3,
)
@contextlib.contextmanager
def plan_of_entangled() -> t.Iterator[Pair]:
    with large_database(entangled) as (_, connection):
        found = rls.audit(connection, roles=ROLES)
        assert found.failing

        def ours() -> float:
            made: t.List[rls.Plan] = []
            seconds = timed(lambda: made.append(rls.plan(connection, found)))
            assert made[0].changes
            return seconds

        yield ours, lambda: timed(lambda: rls.audit(connection, roles=ROLES))


@benchmark(
    "S2",
    what="one access asked for: whole audit divided by its accesses, against one psql a check (sample of 60)",
    unit="ms",
    goal="ratio <= 0.00333",
    peer="shell loop with psql",
    runs=3,
)
@contextlib.contextmanager
def against_psql() -> t.Iterator[Pair]:
    with large_database() as (server, connection):

        def ours() -> float:
            found: t.List[rls.Audit] = []
            seconds = timed(lambda: found.append(rls.audit(connection, roles=ROLES)))
            return seconds * 1000 / found[0].checked

        def peer() -> float:
            psql = server.programs.path("psql")
            script = "\n".join(
                f'"{psql}" -X -q -d \'{connection.dsn}\' -c "begin; set local role {role}; prepare c as {statement};'
                ' rollback" >/dev/null 2>&1'
                for role in ROLES
                for number in range(10)
                for statement in (
                    f"select from t{number}",
                    f"insert into t{number} default values",
                    f"delete from t{number} returning id",
                )
            )
            return (
                timed(lambda: subprocess.run(["sh", "-c", script], check=False, env=server.programs.environ()))
                * 1000
                / 60
            )

        yield ours, peer


@benchmark(
    "S3",
    what="memory of a Python that audits 1,000 tables and 5,000 policies (highest resident set)",
    unit="MB",
    goal="ours <= 300",
    runs=3,
)
@contextlib.contextmanager
def memory() -> t.Iterator[Pair]:
    program = (
        "import json, resource, sys, psycopg2; from wheels_ops import rls; c = psycopg2.connect(sys.argv[1]);found ="
        " rls.audit(c, roles=['anon', 'authenticated']); print(json.dumps([found.checked,"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"
    )
    with large_database() as (_, connection):

        def ours() -> float:
            done = subprocess.run(
                [sys.executable, "-c", program, connection.dsn],
                capture_output=True,
                text=True,
                check=True,
                env={"PYTHONPATH": "src:."},
            )
            return float(json.loads(done.stdout)[1]) / 1024

        yield ours, None


#: Selects of one table after the other until a line comes in; prints the longest time that one of them took.
READER = """
import sys, threading, time, psycopg2
connection = psycopg2.connect(sys.argv[1]); connection.autocommit = True
cursor = connection.cursor(); tables = sys.argv[2].split(","); longest = 0.0; number = 0
over = threading.Event(); threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
print("ready", flush=True)
while not over.is_set():
    started = time.perf_counter()
    cursor.execute("select from " + tables[number % len(tables)])
    longest = max(longest, time.perf_counter() - started); number += 1
print(longest, flush=True)
"""
#: One of ten tables reads itself: those are changed. The fifth after it reads another one that nothing reads back.
CHANGED, UNTOUCHED = ([f"t{number}" for number in range(first, TABLES, 10)] for first in (0, 5))


def waits(dsn: str, call: t.Callable[[], t.Any]) -> t.Tuple[float, float]:
    """The longest plain select, in ms, of (the changed tables, the untouched ones) while ``call`` runs."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, dsn, ",".join(tables)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tables in (CHANGED, UNTOUCHED)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        call()
        answers = [float(reader.communicate("\n")[0]) * 1000 for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    return answers[0], answers[1]


def _waits(run: t.Callable[[Connection, rls.Plan, Path], t.Callable[[], t.Any]]) -> t.Iterator[Pair]:
    """``run`` prepares and gives what is to be measured; both waits are those of the same run."""
    with large_database() as (_, connection), tempfile.TemporaryDirectory() as directory:
        undo = Path(directory) / "undo.sql"
        untouched: t.List[float] = []

        def ours() -> float:
            plan = rls.plan(connection, rls.audit(connection, roles=ROLES))
            assert {change.relation.name for change in plan.changes} == set(CHANGED)
            longest, beside = waits(connection.dsn, run(connection, plan, undo))
            untouched.append(beside)
            if undo.exists():
                with contextlib.suppress(rls.OpsError):  # undone already
                    rls.undo(connection, undo)
                undo.unlink()
            return longest

        yield ours, lambda: untouched[-1]


#: 50 ms and 1 ms for each of 100 changed policies.
@benchmark(
    "S8",
    what="1,000 tables, 5,000 policies, 100 repaired: longest select on a changed table during the repair",
    unit="ms",
    goal="difference <= 150",
    peer="on an untouched one",
    runs=3,
)
@contextlib.contextmanager
def repair_waits() -> t.Iterator[Pair]:
    yield from _waits(lambda connection, plan, undo: lambda: rls.apply(connection, plan, undo_path=undo))


@benchmark(
    "S8b",
    what="the same during the undo",
    unit="ms",
    goal="difference <= 150",
    peer="on an untouched one",
    runs=3,
)
@contextlib.contextmanager
def undo_waits() -> t.Iterator[Pair]:
    def prepared(connection: Connection, plan: rls.Plan, undo: Path) -> t.Callable[[], t.Any]:
        rls.apply(connection, plan, undo_path=undo)
        return lambda: rls.undo(connection, undo)

    yield from _waits(prepared)


#: Locks on the users' tables for which a SELECT, INSERT, UPDATE or DELETE would wait, held or asked for.
HINDERING = """
select count(*) from pg_locks l join pg_class c on c.oid = l.relation
 where c.relnamespace = 'public'::regnamespace
   and l.database = (select oid from pg_database where datname = current_database())
   and l.mode not in ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
"""


@benchmark(
    "S9",
    what="the same in check mode: locks seen on any table for which a reader or a writer would wait",
    unit="locks",
    goal="ours == 0",
    runs=1,
)
@contextlib.contextmanager
def check_locks() -> t.Iterator[Pair]:
    with large_database() as (_, connection):
        plan = rls.plan(connection, rls.audit(connection, roles=ROLES))

        def ours() -> float:
            over = threading.Event()
            seen: t.List[int] = []

            def watch() -> None:
                with contextlib.closing(psycopg2.connect(connection.dsn)) as watcher, watcher.cursor() as cursor:
                    while not over.wait(0.002):
                        cursor.execute(HINDERING)
                        seen.extend(count for (count,) in cursor.fetchall())

            watching = threading.Thread(target=watch)
            watching.start()
            try:
                rls.apply(connection, plan, check_mode=True)
            finally:
                over.set()
                watching.join()
            assert len(seen) > 100
            return float(sum(seen))

        yield ours, None


@benchmark(
    "S9b",
    what="the same in check mode: longest select on a table of the plan",
    unit="ms",
    goal="difference <= 50",
    peer="on an untouched one",
    runs=3,
)
@contextlib.contextmanager
def check_waits() -> t.Iterator[Pair]:
    yield from _waits(lambda connection, plan, undo: lambda: rls.apply(connection, plan, check_mode=True))


@benchmark(
    "S4", what="repair plan of a schema with 200 tables and 20 cycles of three", unit="s", goal="ours <= 5", runs=3
)
@contextlib.contextmanager
def plan_seconds() -> t.Iterator[Pair]:
    with servers.postgres(settings=["max_locks_per_transaction=1024"]) as server, db.database(server) as connection:
        with connection.cursor() as cursor:
            for number in range(200):
                cursor.execute(
                    f"create table t{number}(id int primary key, owner uuid, parent int); alter table t{number} enable"
                    " row level security"
                )
            for number in range(200):
                # The first 60 tables form 20 rings of three; the others lead into them.
                ring = number - number % 3
                target = ring + (number + 1) % 3 if number < 60 else number % 60
                cursor.execute(
                    f"create policy p on t{number} for all using (owner = auth.uid() or exists (select 1 from t{target}"
                    f" x where x.id = t{number}.parent and x.owner = auth.uid()))"
                )
        found = rls.audit(connection)
        assert found.failing

        def ours() -> float:
            made: t.List[rls.Plan] = []
            seconds = timed(lambda: made.append(rls.plan(connection, found)))
            assert len(made[0].changes) == 20 and not made[0].needs_review
            return seconds

        yield ours, None


BIG = f"""
create table public.group_trips(id int primary key, created_by uuid, title text, is_public boolean default false);
create table public.group_trip_participants(trip_id int, user_id uuid, role text default 'member', primary key (trip_id, user_id));
insert into group_trips select n, ('00000000-0000-0000-0001-' || lpad((n % 5000)::text, 12, '0'))::uuid, 'trip ' || n from generate_series(1, {TRIPS}) n;
insert into group_trip_participants
  select n % {TRIPS} + 1, ('00000000-0000-0000-0000-' || lpad((n / 56)::text, 12, '0'))::uuid from generate_series(1, {PARTS}) n;
create index on group_trip_participants(user_id); create index on group_trips(created_by);
analyze group_trips; analyze group_trip_participants;
alter table group_trips enable row level security; alter table group_trip_participants enable row level security;
"""
RECURSIVE = """
create policy t on group_trips for select using (exists (select 1 from group_trip_participants p where p.trip_id = group_trips.id and p.user_id = auth.uid()));
create policy p on group_trip_participants for select using (user_id = auth.uid()
  or exists (select 1 from group_trips t where t.id = group_trip_participants.trip_id and t.created_by = auth.uid()));
"""
#: What people write by hand, in the wheels backend as well: a SECURITY DEFINER helper that is asked for every row, ...
BY_ROW = """
create function public.is_participant(trip int, who uuid) returns boolean language plpgsql security definer as
  $$ begin return exists (select 1 from group_trip_participants where trip_id = trip and user_id = who); end $$;
create policy t on group_trips for select using (is_participant(id, auth.uid()));
create policy p on group_trip_participants for select using (user_id = auth.uid() or trip_id in (select id from group_trips where created_by = auth.uid()));
"""
#: ... and the better one of Supabase's documentation: a function that gives the caller's ids.
BY_SET = """
create function public.my_trips() returns setof int language sql stable security definer set search_path = '' as
  $$ select trip_id from public.group_trip_participants where user_id = (select auth.uid()) $$;
create policy t on group_trips for select using (id in (select my_trips()));
create policy p on group_trip_participants for select using (user_id = auth.uid());
"""


def _policy_speed(query: str, hand: str, *, calls: int = 3) -> t.Iterator[Pair]:
    """The fastest of ``calls`` each time: the shorter a query, the more of them it takes until none was disturbed."""
    user = str(uuid.UUID("00000000-0000-0000-0000-000000000777"))
    with (
        servers.postgres(settings=["shared_buffers=256MB", "jit=off"]) as server,
        db.database(server, BIG + RECURSIVE) as ours,
        db.database(server, BIG + hand) as peer,
    ):
        rls.apply(ours, rls.plan(ours, rls.audit(ours)), lock_timeout_ms=60_000)

        def measure(connection: Connection) -> t.Callable[[], float]:
            def once() -> float:
                best = []
                for _ in range(calls):
                    best.append(timed(lambda: db.see(connection, query, user=user)))
                return min(best) * 1000

            return once

        counts = [db.see(connection, query, user=user) for connection in (ours, peer)]
        assert counts[0] == counts[1] and counts[0][0][0] > 0, counts
        yield measure(ours), measure(peer)


@benchmark(
    "S5",
    what="all trips of a user out of 200,000, repaired policy",
    unit="ms",
    goal="ratio <= 1.2",
    peer="helper asked for every row",
    runs=3,
)
@contextlib.contextmanager
def rows_against_row_helper() -> t.Iterator[Pair]:
    yield from _policy_speed("select count(*) from group_trips", BY_ROW)


@benchmark(
    "S6",
    what="all trips of a user out of 200,000, repaired policy",
    unit="ms",
    goal="ratio <= 1.2",
    peer="helper that gives the user's ids",
    runs=3,
)
@contextlib.contextmanager
def rows_against_set_helper() -> t.Iterator[Pair]:
    yield from _policy_speed("select count(*) from group_trips", BY_SET)


@benchmark(
    "S7",
    what="one trip by its id, repaired policy",
    unit="ms",
    goal="ratio <= 1.2",
    peer="helper that gives the user's ids",
    runs=5,
)
@contextlib.contextmanager
def one_row() -> t.Iterator[Pair]:
    # (777 * 56) participations before this user's, so that this trip is one of his.
    yield from _policy_speed("select count(*) from group_trips where id = 43513", BY_SET, calls=100)
