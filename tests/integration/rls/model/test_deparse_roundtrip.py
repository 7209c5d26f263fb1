# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts that PostgreSQL reads back into another tree than the one from which it wrote them: kept and restored exactly
all the same.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import psycopg2
import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls
from wheels_ops.rls.model.deparse_roundtrip import same_tree

TABLE = (
    'create table m (id int primary key, a uuid, b uuid, c int, d int, "É x" text, f boolean, ts timestamptz);'
    "create table n (id int primary key, m int, who uuid);"
)
#: Conditions with a list of their own on the left of another one.
CONDITIONS = (
    "auth.uid() in (a, b) or exists (select from n where n.m = m.id)",
    "(select auth.uid()) in (a, b, (select n.who from n limit 1)) or f",
    "c in (d, id, 3)",
    "c in (d, id, 3, 4) or f",
    "c in (d, 5) or f or c = 9",
    "c not in (d, id, 3, 4) and f",
    "c + 1 in (d * 2, id) or f",
    "\"É x\" in ('a(''x', a::text, b::text) or f",
    "c between 1 and d and f",
    "c not between 1 and d or f",
    "now() between ts and ts + interval '1 day' and f",
    "(c, d) = (1, 2) and f",
    "(a, c) <> (b, d) or f",
    "case when c in (d, id) or f then c between 1 and 2 and f else f end",
    "not (c in (d, id) or f) and (f or c between 3 and 4)",
    "exists (select from n where auth.uid() in (n.who, m.b) or m.f) and f",
)
#: These survive as they are, and must not be touched.
PLAIN = (
    "c = d or c = id or f",
    "c >= d and c <= id and f",
    "f or c between 3 and 4",
    "c between symmetric d and 3 and f",
    "c = any (array[d, id]) or f",
)


def _stored(cursor: t.Any) -> t.Tuple[str, str]:
    """The policy's text, and its tree without the places of the words in the text."""
    cursor.execute(
        "select pg_get_expr(polqual, polrelid), regexp_replace(polqual::text, ':location -?\\d+', '', 'g') from"
        " pg_policy where polname = 'p'"
    )
    found: t.Tuple[str, str] = cursor.fetchone()
    return found


@pytest.mark.parametrize("condition", CONDITIONS + PLAIN)
def test_the_tree_comes_back(server: servers.Postgres, condition: str) -> None:
    with (
        db.database(server, TABLE + f"create policy p on m using ({condition})") as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("set search_path = ''")
        written = _stored(cursor)
        assert (same_tree(written[0]) == written[0]) is (condition in PLAIN)
        cursor.execute(f"alter policy p on public.m using ({same_tree(written[0])})")
        assert _stored(cursor) == written


def test_unknown_lists_stay() -> None:
    text = "((((c = 1) AND (d = 2)) OR ((c = id) AND (d = 4))) OR f)"
    assert same_tree(text) == text


def test_repair_and_undo_keep_such_policies(server: servers.Postgres, tmp_path: Path) -> None:
    """The part that is not cut keeps its text where an access that works draws it in, and everything is restored by the
    undo.
    """
    undo = tmp_path / "undo.sql"
    policies = """
        alter table m enable row level security; alter table n enable row level security;
        create policy p on m for all using (auth.uid() in (a, b) or id in (select n.m from n where n.who = auth.uid()))
          with check (auth.uid() in (a, b) or f);
        create policy q on n for all using (who = auth.uid() or m in (select m.id from m where m.a = auth.uid()))
          with check (id between 1 and 5 and who = auth.uid())"""
    with db.database(server, TABLE + policies) as connection:
        db.fill(connection)
        before = db.snapshot(connection)
        insert = f"insert into m (id, a) values (99, '{db.PEOPLE[0]}')"
        assert db.see(connection, insert, user=db.PEOPLE[0]) == [(1,)]
        plan = rls.plan(connection, rls.audit(connection))
        assert plan.needs_review == []
        assert rls.apply(connection, plan, undo_path=undo)["changed"] is True
        assert rls.audit(connection).failing == []
        assert db.see(connection, insert, user=db.PEOPLE[0]) == [(1,)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            db.see(connection, insert, user=db.OUTSIDER)
        rls.undo(connection, undo)
        assert db.snapshot(connection) == before
