# SPDX-License-Identifier: GPL-3.0-or-later
"""The grading of the database check: a server that refuses us is critical, what was never asked is unknown."""

from __future__ import annotations

import typing as t

import psycopg2
import pytest

from tests.support.servers import Postgres
from tests.support.waiting import free_port
from wheels_ops import health, postgres
from wheels_ops.checks import database, rls, suite
from wheels_ops.results import OpsError

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
    assert check.details == {"version": version, "standby": False, "read_only": False, "missing_tables": [], "missing_columns": []}


@pytest.mark.parametrize(
    ("tables", "tables_missing", "columns_missing", "message"),
    [
        (["wanted (id int, name text)"], ["other"], [], "Missing tables: other."),
        (["wanted (id int)", "other (id int)"], [], ["wanted.name"], "Missing columns: wanted.name."),
        (["wanted (id int)"], ["other"], ["wanted.name"], "Missing tables: other; missing columns: wanted.name."),
        ([], ["wanted", "other"], [], "Missing tables: wanted, other."),
        (["wanted (id int, name text)", "other (id int); alter table other drop column id"], [], ["other.id"], "Missing columns: other.id."),
    ],
)
def test_what_is_missing_is_named(postgres: Postgres, tables: t.List[str], tables_missing: t.List[str], columns_missing: t.List[str], message: str) -> None:
    check = database.check(make(postgres, *tables), required=TABLES)
    assert (check.status, check.remedy, check.message) == ("critical", "sql_script", message)
    assert (check.details["missing_tables"], check.details["missing_columns"]) == (tables_missing, columns_missing)
    assert check.value == len(tables_missing) + len(columns_missing)


def test_the_tables_of_the_backend_are_asked_for_by_default(postgres: Postgres) -> None:
    check = database.check(make(postgres))
    assert check.details["missing_tables"] == list(database.REQUIRED) == ["affiliate_sales", "user_wishlists"]
    assert database.check(make(postgres), required={}).status == "ok"


#: What the backend reads and writes, by hand from its code.
COLUMNS = {
    "affiliate_sales": """
        id user_id product_name product_url amount commission status category created_at session_id customer_email amount_total
        currency affiliate_id digistore24_order_id digistore24_product_id commission_rate sale_date affiliate_network
        payment_method billing_type pay_sequence_no is_test_mode ipn_received_at address_first_name address_last_name
        address_street_name address_street_number address_city address_state address_zipcode address_phone_no
        thank_you_validated updated_at
    """,
    "user_wishlists": """
        id user_id product_id product_name price category notes created_at
    """,
}


def test_every_column_of_the_backend_is_asked_for(postgres: Postgres) -> None:
    dsn = make(postgres, "affiliate_sales ()", "user_wishlists ()")
    wanted = {f"{table}.{column}" for table, columns in COLUMNS.items() for column in columns.split()}
    assert set(database.check(dsn).details["missing_columns"]) == wanted and len(wanted) == 42


def test_a_view_counts_and_a_table_of_another_schema_does_not(postgres: Postgres) -> None:
    dsn = make(postgres)
    postgres.psql(dsn, sql="create schema elsewhere; create table elsewhere.other (id int); create view wanted as select 1 as id, 'x' as name")
    assert database.check(dsn, required=TABLES).details["missing_tables"] == ["other"]
    assert database.check(dsn, required={"other": ["id"]}, schema="elsewhere").status == "ok"


def test_a_database_that_takes_no_writes_is_critical(postgres: Postgres) -> None:
    """Hosted databases are made read only when their disk is full."""
    dsn = make(postgres, "wanted (id int, name text)")
    postgres.psql(dsn, sql="do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$")
    assert "read-only" in refusal(postgres, dsn, "create table x (id int)"), "the witness"
    check = database.check(dsn, required=TABLES)
    assert (check.status, check.remedy, check.details["read_only"]) == ("critical", "", True)
    assert check.message.startswith("The database takes no writes (default_transaction_read_only is on)") and check.message.endswith("; missing tables: other.")


def refusal(server: Postgres, dsn: str, sql: str) -> str:
    try:
        server.psql(dsn, sql=sql)
    except AssertionError as error:
        return str(error)
    return ""


def test_a_standby_is_critical_and_no_script_repairs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"version": "15", "latency_ms": 1.0, "standby": True, "read_only": True, "present": {"wanted": ["id", "name"], "other": ["id"]}}
    monkeypatch.setattr(database, "_ask", lambda *_words: dict(facts))
    check = database.check("", required=TABLES)
    assert (check.status, check.remedy) == ("critical", "")
    assert check.message == "The server is a standby and takes no writes: give the address of the primary."


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
    assert {check["name"]: (check["status"], check["value"], check["remedy"]) for check in found["checks"]} == dict.fromkeys(
        ("database", "rls"), ("critical", None, "")
    )
    assert found["status"] == "critical"
    for check in found["checks"]:
        assert check["message"].startswith("No connection to PostgreSQL: ") and words in check["message"], check["message"]


#: What libpq and servers say, and whether the server was asked.
SAID = [
    ('connection to server at "h" (1.2.3.4), port 5432 failed: FATAL:  password authentication failed for user "x"', True),
    ('connection to server at "h", port 5432 failed: FATAL:  sorry, too many clients already', True),
    ('connection to server at "h", port 5432 failed: FATAL:  remaining connection slots are reserved for roles with SUPERUSER', True),
    ('connection to server at "h", port 5432 failed: FATAL:  permission denied for database "x"', True),
    ('connection to server at "h", port 5432 failed: FATAL:  invalid value for parameter "TimeZone": "x"', True),
    ('connection to server at "h", port 5432 failed: Connection refused\n\tIs the server running on that host?', True),
    ('connection to server at "h", port 5432 failed: timeout expired', True),
    ('connection to server at "h", port 5432 failed: fe_sendauth: no password supplied', True),
    ('connection to server at "h", port 5432 failed: server closed the connection unexpectedly', True),
    ('connection to server at "h", port 5432 failed: Network is unreachable', True),
    # Of two hosts one was asked.
    ('could not translate host name "a" to address: Name or service not known\nconnection to server at "b" failed: Connection refused', True),
    ('could not translate host name "h" to address: Name or service not known', False),
    ('connection to server on socket "/run/.s.PGSQL.5432" failed: Permission denied', False),
    ('invalid port number: "x"', False),
    ('invalid sslmode value: "x"', False),
    ('missing "=" after "x" in connection info string', False),
    ('root certificate file "/none" does not exist', False),
    ('definition of service "x" not found', False),
]


@pytest.mark.parametrize(("text", "asked"), SAID)
def test_what_was_never_asked_is_unknown(monkeypatch: pytest.MonkeyPatch, text: str, asked: bool) -> None:
    def connect(*_words: t.Any, **_options: t.Any) -> t.Any:
        raise psycopg2.OperationalError(text)

    monkeypatch.setattr(psycopg2, "connect", connect)
    (check,) = health.measure({"database": lambda: database.check("host=h")})
    assert check.status == ("critical" if asked else "unknown"), check.message
    (check,) = health.measure({"rls": lambda: rls.check("host=h")})
    assert check.status == ("critical" if asked else "unknown"), check.message


@pytest.mark.parametrize("dsn", ["mysql://u:w0rd@h/d", "host=h nonsense", "postgresql://h:port/d", "host=no-such-host.invalid user=u password=w0rd"])
def test_a_dsn_of_which_nothing_can_be_asked_is_our_fault(dsn: str) -> None:
    with pytest.raises(OpsError) as caught:
        database.check(dsn)
    assert not isinstance(caught.value, postgres.Unavailable) and "w0rd" not in str(caught.value)


def test_a_server_that_goes_away_in_between_is_critical(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        closed = False

        def set_session(self, **_options: t.Any) -> None:
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

        def close(self) -> None:
            self.closed = True

    gone = Gone()
    monkeypatch.setattr(database.postgres, "connect", lambda *_words, **_options: gone)
    check = database.check("host=h")
    assert (check.status, check.remedy) == ("critical", "") and gone.closed
    assert check.message.startswith("The database does not answer: server closed the connection")
