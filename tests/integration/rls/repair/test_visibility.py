# SPDX-License-Identifier: GPL-3.0-or-later
"""What users will see is told before the change, and is what they see after it."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.rls.repair import compare, verification

#: Rings, an invoker view, other tables under row-level security, RESTRICTIVE ones, joins.
CHOSEN = ("03_", "04_", "07_", "09_", "12_", "17_")


def count(connection: t.Any, key: compare.Key) -> t.Union[int, str]:
    """The rows that the user counts, or the SQLSTATE that he gets, as PostgREST would ask."""
    role, user, relation = key
    claims = json.dumps({**dict(user.claims), "role": role})
    with connection.cursor() as cursor:
        cursor.execute("begin")
        try:
            cursor.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            cursor.execute(f"set local role {role}")
            cursor.execute(f"select count(*) from {relation}")
            return int(cursor.fetchone()[0])
        except Exception as error:
            return str(getattr(error, "pgcode", ""))
        finally:
            cursor.execute("rollback")


@pytest.mark.parametrize(
    "case", [case for case in db.CASES if case.stem.startswith(CHOSEN)], ids=lambda case: case.stem
)
def test_users_see_what_was_told(postgres: servers.Postgres, case: Path) -> None:
    with db.database(postgres, case.read_text()) as connection:
        db.fill(connection)
        plan = rls.plan(connection, rls.audit(connection))
        verified = verification.verify(connection, plan, statement_timeout_ms=60_000, lock_timeout_ms=1_000)
        rls.apply(connection, plan)
        told = {key: seen.state or seen.rows for key, seen in verified.seen.items()}
        assert verified.told["unmeasured"] == []
        assert told == {key: count(connection, key) for key in told}
        assert any(told.values()), "the case shows something to somebody"


TABLES = """
create table public.teams (id int primary key, owner uuid);
create table public.members (team int, person uuid);
alter table teams enable row level security; alter table members enable row level security;
create policy m on members for select to authenticated
  using (team in (select m.team from members m where m.person = auth.uid()));
"""


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (
            "create function public.mine(t int) returns boolean language sql stable as"
            " 'select exists (select 1 from members where team = t)';"
            "create policy t on teams for select to authenticated using (exists (select from members m"
            " where m.team = teams.id) and mine(id))",
            "public.mine reads members",
        ),
        (
            "create policy t on teams for select to authenticated using (exists (select 1 from members m"
            " where m.team = teams.id for update))",
            "locks rows",
        ),
        (
            "create policy t on teams for select to authenticated using (exists (select 1 from only members m"
            " where m.team = teams.id))",
            "ONLY",
        ),
    ],
    ids=["function", "for update", "only"],
)
def test_what_cannot_be_told_is_named(postgres: servers.Postgres, policy: str, word: str) -> None:
    with db.database(postgres, TABLES + policy) as connection:
        db.fill(connection)
        plan = rls.plan(connection, rls.audit(connection))
        result = rls.apply(connection, plan, check_mode=True)
        assert any(word in reason for reason in result["after"]["unmeasured"]), result["after"]["unmeasured"]
        assert "could not be made beforehand" in result["msg"]
