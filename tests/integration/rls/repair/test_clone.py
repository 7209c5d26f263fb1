# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of functions that ask who calls them: they are told, as inside them it would be their owner."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops import rls

CREW = """
create table public.crew(id int primary key, ship int, login name); alter table crew enable row level security;
insert into crew values (1, 1, 'authenticated'), (2, 1, 'x'), (3, 2, 'anon'), (4, 2, 'user');
{function}
create policy p on crew using (login = 'user' or public.aboard({argument}));
grant select on crew to anon, authenticated;
"""
BODIES: t.Dict[str, t.Tuple[str, str]] = {
    "sql": (
        "create function public.aboard(s int) returns boolean language sql stable as $$ select exists"
        " (select 1 from public.crew c where c.ship = s and c.login = current_user) $$;",
        "ship",
    ),
    "numbered": (
        "create function public.aboard(int) returns boolean language sql stable as $$ select exists"
        " (select 1 from public.crew c where c.ship = $1 and current_role = c.login) $$;",
        "ship",
    ),
    "plpgsql": (
        "create function public.aboard(s int) returns boolean language plpgsql stable as $$ declare who name := current_user;"
        " begin -- the user, current_user\n return exists (select 1 from public.crew c where c.ship = s and c.login = who"
        " and who::text <> 'current_user'); end $$;",
        "ship",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_copy_is_told_who_calls(server: servers.Postgres, tmp_path: Path, name: str) -> None:
    function, argument = BODIES[name]
    with db.database(server, CREW.format(function=function, argument=argument)) as connection:
        before = db.snapshot(connection)
        plan = rls.plan(connection, rls.audit(connection))
        assert plan.needs_review == []
        rls.apply(connection, plan, undo_path=tmp_path / "undo.sql")
        seen = {
            role: [row for (row,) in db.see(connection, "select id from crew order by id", role=role)]
            for role in ("anon", "authenticated")
        }
        assert seen == {"anon": [3, 4], "authenticated": [1, 2, 4]}
        rls.undo(connection, tmp_path / "undo.sql")
        assert db.snapshot(connection) == before


@pytest.mark.parametrize(
    ("function", "argument", "word"),
    [
        (
            "create function public.aboard(s int default 1) returns boolean language sql stable as $$ select exists"
            " (select 1 from public.crew c where c.ship = s and c.login = current_user) $$;",
            "ship",
            "current_user",
        ),
        (
            "create function public.aboard(s int) returns boolean language sql stable as $$ select exists"
            " (select 1 from public.crew c where c.ship = s and c.login = user) $$;",
            "ship",
            "user",
        ),
        (
            "create function public.aboard(s int) returns boolean language sql stable begin atomic select exists"
            " (select 1 from public.crew c where c.ship = s and c.login = current_user); end;",
            "ship",
            "current_user",
        ),
        (
            "create function public.aboard(s int) returns boolean language sql stable begin atomic select exists"
            " (select 1 from public.crew c where c.ship = s and pg_has_role(c.login, 'usage')); end;",
            "ship",
            "pg_has_role",
        ),
        (
            "create function public.aboard(s int) returns boolean language sql stable as $$ select exists"
            " (select 1 from public.crew c where c.ship = s and c.login = current_user) $$;",
            "s => ship",
            "names of arguments",
        ),
    ],
    ids=["default", "user", "atomic", "atomic call", "named"],
)
def test_copy_that_cannot_be_told_is_refused(
    postgres: servers.Postgres, function: str, argument: str, word: str
) -> None:
    with db.database(postgres, CREW.format(function=function, argument=argument)) as connection:
        plan = rls.plan(connection, rls.audit(connection))
        assert plan.empty and word in plan.needs_review[0]["reason"]


def test_words_in_strings_and_comments_are_no_question(postgres: servers.Postgres) -> None:
    function = (
        "create function public.aboard(s int) returns boolean language sql stable as $$ select exists /* the user */"
        " (select 1 from public.crew c where c.ship = s and c.login = 'user') -- not current_user\n $$;"
    )
    with db.database(postgres, CREW.format(function=function, argument="ship")) as connection:
        assert rls.plan(connection, rls.audit(connection)).needs_review == []
