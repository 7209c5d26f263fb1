# SPDX-License-Identifier: GPL-3.0-or-later
"""What a script may hold, and that statements and their lines are found."""

from __future__ import annotations

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.database.scripts import Script, split, sql_script


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("select 1;\n\\i other.sql\n", 2, "a command of psql (\\i other.sql)"),
        ("select 'é';\n\\echo x", 2, "a command of psql"),
        ("begin;\nselect 1;\ncommit;", 1, "transaction control"),
        ("select 1;\n\n/* a /* b */ c */\n-- d\n  commit;", 5, "transaction control"),
        ("select 1;\nsavepoint a", 2, "transaction control"),
        ("analyze;\nvacuum analyze;", 2, "VACUUM"),
        ("create index concurrently on a (b);", 1, "CONCURRENTLY"),
        ("drop index concurrently a;", 1, "CONCURRENTLY"),
        ("reindex (concurrently) table a;", 1, "REINDEX CONCURRENTLY"),
        ("create database a;", 1, "CREATE DATABASE"),
        ("alter system set work_mem = '1MB'", 1, "ALTER SYSTEM"),
        ("select 1;\ncopy a from stdin;", 2, "COPY"),
        ("select 1;\nselec 2;", 2, "syntax error"),
        ("-- nothing\n", None, "holds no statement"),
        ("", None, "holds no statement"),
    ],
)
def test_what_cannot_be_one_transaction_is_refused_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(OpsError) as caught:
        split(text, name="x.sql")
    assert reason in str(caught.value)
    assert caught.value.details.get("line") == line
    assert caught.value.hint


def test_statements_and_lines() -> None:
    text = (
        "-- begin; vacuum;\nselect 'a;b', $$c;d$$, $x$ commit; $x$;\n\n"
        "create function f() returns int language sql begin atomic select 1; select 2; end;\n"
        "do $$ begin perform 1; commit; end $$ ;;\ncopy a to '/tmp/x';\nselect \"é;\""
    )
    found = split(text, name="x")
    assert [(statement.line, statement.sql.split()[0]) for statement in found] == [
        (2, "select"),
        (4, "create"),
        (5, "do"),
        (6, "copy"),
        (7, "select"),
    ]
    assert found[-1].sql == 'select "é;"'


def test_every_script_is_judged_before_a_connection_is_made() -> None:
    def connect() -> None:
        raise AssertionError("connected")

    with pytest.raises(OpsError, match="line 1"):
        sql_script(connect, [Script("a", "select 1"), Script("b", "vacuum")])  # type: ignore[arg-type]  # never called
    with pytest.raises(OpsError, match="undo of a"):
        sql_script(connect, [Script("a", "select 1", undo="commit")])  # type: ignore[arg-type]  # never called
    with pytest.raises(OpsError, match="same name"):
        sql_script(connect, [Script("a", "select 1"), Script("a", "select 2")])  # type: ignore[arg-type]  # never called
