# SPDX-License-Identifier: GPL-3.0-or-later
"""The database check against a real PostgreSQL: complete, incomplete, read only, and refusing."""

from __future__ import annotations

import typing as t

import pytest

from tests.support.servers import Postgres
from tests.support.waiting import free_port
from wheels_ops.checks import database, suite

TABLES = {"wanted": ["id", "name"], "other": ["id"]}


def make(server: Postgres, *tables: str) -> str:
    dsn = server.database()
    for table in tables:
        server.psql(dsn, sql=f"create table {table}")
    return dsn


def test_everything_is_there(postgres: Postgres) -> None:
    dsn = make(postgres, "wanted (id int, name text, more text)", "other (id int)")
    check = database.check(dsn, required=TABLES)
    assert (check.name, check.status, check.value, check.unit, check.remedy) == ("database", "ok", 0, "missing", "")
    version = postgres.psql(dsn, sql="show server_version")
    assert check.message == f"PostgreSQL {version} answers, every table is there."
    assert check.details.pop("latency_ms") > 0
    assert check.details == {
        "version": version,
        "standby": False,
        "read_only": False,
        "missing_tables": [],
        "missing_columns": [],
    }


@pytest.mark.parametrize(
    ("tables", "tables_missing", "columns_missing", "message"),
    [
        (["wanted (id int, name text)"], ["other"], [], "Missing tables: other."),
        (["wanted (id int)", "other (id int)"], [], ["wanted.name"], "Missing columns: wanted.name."),
        (["wanted (id int)"], ["other"], ["wanted.name"], "Missing tables: other; missing columns: wanted.name."),
        ([], ["wanted", "other"], [], "Missing tables: wanted, other."),
        (
            ["wanted (id int, name text)", "other (id int); alter table other drop column id"],
            [],
            ["other.id"],
            "Missing columns: other.id.",
        ),
    ],
)
def test_what_is_missing_is_named(
    postgres: Postgres, tables: t.List[str], tables_missing: t.List[str], columns_missing: t.List[str], message: str
) -> None:
    check = database.check(make(postgres, *tables), required=TABLES)
    assert (check.status, check.remedy, check.message) == ("critical", "sql_script", message)
    assert (check.details["missing_tables"], check.details["missing_columns"]) == (tables_missing, columns_missing)
    assert check.value == len(tables_missing) + len(columns_missing)


def test_the_tables_of_the_backend_are_asked_for_by_default(postgres: Postgres) -> None:
    check = database.check(make(postgres))
    assert check.details["missing_tables"] == list(database.REQUIRED) == ["affiliate_sales", "user_wishlists"]
    assert database.check(make(postgres), required={}).status == "ok"


def test_a_view_counts_and_a_table_of_another_schema_does_not(postgres: Postgres) -> None:
    dsn = make(postgres)
    postgres.psql(
        dsn,
        sql=(
            "create schema elsewhere; create table elsewhere.other (id int); create view wanted as select 1 as id, 'x'"
            " as name"
        ),
    )
    assert database.check(dsn, required=TABLES).details["missing_tables"] == ["other"]
    assert database.check(dsn, required={"other": ["id"]}, schema="elsewhere").status == "ok"


def test_a_database_that_takes_no_writes_is_critical(postgres: Postgres) -> None:
    """Hosted databases are made read only when their disk is full."""
    dsn = make(postgres, "wanted (id int, name text)")
    postgres.psql(
        dsn,
        sql=(
            "do $$ begin execute format('alter database %I set default_transaction_read_only = on',"
            " current_database()); end $$"
        ),
    )
    assert "read-only" in refusal(postgres, dsn, "create table x (id int)"), "the witness"
    check = database.check(dsn, required=TABLES)
    assert (check.status, check.remedy, check.details["read_only"]) == ("critical", "", True)
    assert check.message.startswith(
        "The database takes no writes (default_transaction_read_only is on)"
    ) and check.message.endswith("; missing tables: other.")


def refusal(server: Postgres, dsn: str, sql: str) -> str:
    try:
        server.psql(dsn, sql=sql)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def refusing(postgres: Postgres) -> t.Iterator[t.Callable[[str], str]]:
    """Gives the DSN for each way in which a server refuses a session."""
    dsn = postgres.database()
    name = dsn.partition("dbname=")[2].split()[0]
    role = f"crowd_{name}"
    postgres.psql(dsn, sql=f"create role {role} login connection limit 0")
    made = {
        "nothing listens": f"host=127.0.0.1 port={free_port()} dbname=x user=x",
        "no such database": postgres.dsn("never_made"),
        "no such user": postgres.dsn(name, "nobody_here"),
        "no connection free": postgres.dsn(name, role),
        "no socket": f"host={postgres.directory}/none dbname=x user=x",
    }
    yield made.__getitem__
    postgres.psql(postgres.dsn(), sql=f"drop role {role}")


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("nothing listens", "Connection refused"),
        ("no such database", 'database "never_made" does not exist'),
        ("no such user", 'role "nobody_here" does not exist'),
        ("no connection free", "too many connections for role"),
        ("no socket", "No such file"),
    ],
)
def test_a_server_that_gives_no_session_is_critical(refusing: t.Callable[[str], str], way: str, words: str) -> None:
    found = suite.run(suite.Options(subjects=("database", "rls"), database_dsn=refusing(way)))
    assert {
        check["name"]: (check["status"], check["value"], check["remedy"]) for check in found["checks"]
    } == dict.fromkeys(("database", "rls"), ("critical", None, ""))
    assert found["status"] == "critical"
    for check in found["checks"]:
        assert check["message"].startswith("No connection to PostgreSQL: ") and words in check["message"], check[
            "message"
        ]
