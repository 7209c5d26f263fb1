# SPDX-License-Identifier: GPL-3.0-or-later
"""The grading of the database check: a server that refuses us is critical, what was never asked is unknown."""

from __future__ import annotations

import typing as t

import psycopg2
import pytest

from tests.support.answers import Clock
from wheels_ops.checks import database, rls
from wheels_ops.checks.context import HostContext, Options
from wheels_ops.core.results import OpsError
from wheels_ops.database import connect as postgres
from wheels_ops.health import check as health

TABLES = {"wanted": ["id", "name"], "other": ["id"]}


#: What the backend reads and writes, by hand from its code.
COLUMNS = {
    "affiliate_sales": (
        """
        id user_id product_name product_url amount commission status category created_at session_id customer_email amount_total
        currency affiliate_id digistore24_order_id digistore24_product_id commission_rate sale_date affiliate_network
        payment_method billing_type pay_sequence_no is_test_mode ipn_received_at address_first_name address_last_name
        address_street_name address_street_number address_city address_state address_zipcode address_phone_no
        thank_you_validated updated_at
    """
    ),
    "user_wishlists": (
        """
        id user_id product_id product_name price category notes created_at
    """
    ),
}


class Session:
    """Stands in for a connection to a server that holds ``tables``; notes what it is asked."""

    def __init__(self, tables: t.Dict[str, t.List[str]], *, standby: bool = False, read_only: bool = False) -> None:
        self.answers: t.List[t.List[t.Any]] = [
            [(standby, read_only, "15.6")],
            [(name, columns) for name, columns in tables.items()],
        ]
        self.questions: t.List[t.Tuple[str, t.Any]] = []
        self.options: t.Dict[str, t.Any] = {}
        self.closed = False

    def set_session(self, **options: t.Any) -> None:
        self.options = options

    def cursor(self) -> Session:
        return self

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        """The connection is closed, not the cursor."""

    def execute(self, question: str, words: t.Any = None) -> None:
        self.questions.append((question, words))

    def fetchall(self) -> t.List[t.Any]:
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True


def asked(monkeypatch: pytest.MonkeyPatch, session: Session, **options: t.Any) -> health.Check:
    opened: t.List[t.Any] = []

    def connect(dsn: str, **settings: t.Any) -> Session:
        opened.append((dsn, settings))
        return session

    monkeypatch.setattr(database.connect, "connect", connect)
    check = database.check("host=h", **options)
    assert opened == [("host=h", {"connect_timeout": options.get("timeout", 10)})]
    assert session.closed and session.options == {"readonly": True}, "the check cannot change anything"
    return check


def test_a_complete_database_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    session = Session({"wanted": ["id", "name", "more"], "other": ["id"]})
    monkeypatch.setattr(database, "time", clock)

    def close() -> None:
        session.closed = True
        clock.now += 2.5

    monkeypatch.setattr(session, "close", close)
    check = asked(monkeypatch, session, required=TABLES)
    assert (check.name, check.status, check.value, check.unit, check.remedy) == ("database", "ok", 0, "missing", "")
    assert check.message == "PostgreSQL 15.6 answers, every table is there."
    assert check.details == {
        "version": "15.6",
        "latency_ms": 2500.0,
        "standby": False,
        "read_only": False,
        "missing_tables": [],
        "missing_columns": [],
    }


def test_what_the_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session({})
    asked(monkeypatch, session, required=TABLES, schema="elsewhere", timeout=3)
    (limit, seconds), (_facts, _none), (_catalog, words) = session.questions
    assert limit == "select set_config('statement_timeout', %s, true)"
    assert "statement_timeout" in limit and seconds == ("3000",) and words == ("elsewhere", ["wanted", "other"])
    session = Session({})
    asked(monkeypatch, session)
    assert session.questions[0][1] == ("10000",) and session.questions[2][1] == (
        "public",
        ["affiliate_sales", "user_wishlists"],
    )


@pytest.mark.parametrize(
    ("tables", "tables_missing", "columns_missing", "message"),
    [
        ({"wanted": ["id", "name"]}, ["other"], [], "Missing tables: other."),
        ({"wanted": ["id"], "other": ["id"]}, [], ["wanted.name"], "Missing columns: wanted.name."),
        (
            {"wanted": []},
            ["other"],
            ["wanted.id", "wanted.name"],
            "Missing tables: other; missing columns: wanted.id, wanted.name.",
        ),
        ({}, ["wanted", "other"], [], "Missing tables: wanted, other."),
    ],
)
def test_what_is_missing_is_critical(
    monkeypatch: pytest.MonkeyPatch,
    tables: t.Dict[str, t.List[str]],
    tables_missing: t.List[str],
    columns_missing: t.List[str],
    message: str,
) -> None:
    check = asked(monkeypatch, Session(tables), required=TABLES)
    assert (check.status, check.remedy, check.message, check.unit) == ("critical", "sql_script", message, "missing")
    assert (check.details["missing_tables"], check.details["missing_columns"]) == (tables_missing, columns_missing)
    assert check.value == len(tables_missing) + len(columns_missing)


def test_nothing_is_asked_for_where_nothing_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, Session({}), required={}).status == "ok"


def test_every_column_of_the_backend_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {f"{table}.{column}" for table, columns in COLUMNS.items() for column in columns.split()}
    check = asked(monkeypatch, Session({"affiliate_sales": [], "user_wishlists": []}))
    assert set(check.details["missing_columns"]) == wanted and len(wanted) == 42


def test_a_read_only_database_is_critical_and_a_standby_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"wanted": ["id", "name"], "other": ["id"]}
    check = asked(monkeypatch, Session(whole, read_only=True), required=TABLES)
    assert (check.status, check.remedy, check.value, check.details["read_only"]) == ("critical", "", 0, True)
    assert check.message == (
        "The database takes no writes (default_transaction_read_only is on): find out who turned it on, a full disk does."
    )
    check = asked(monkeypatch, Session(whole, standby=True), required=TABLES)
    assert (check.status, check.remedy, check.details["standby"], check.details["read_only"]) == (
        "critical",
        "",
        True,
        False,
    )


def test_a_standby_is_critical_and_no_script_repairs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "version": "15",
        "latency_ms": 1.0,
        "standby": True,
        "read_only": True,
        "present": {"wanted": ["id", "name"], "other": ["id"]},
    }
    monkeypatch.setattr(database, "_ask", lambda *_words: dict(facts))
    check = database.check("", required=TABLES)
    assert (check.status, check.remedy) == ("critical", "")
    assert check.message == "The server is a standby and takes no writes: give the address of the primary."


#: What libpq and servers say, and whether the server was asked.
SAID = [
    (
        'connection to server at "h" (1.2.3.4), port 5432 failed: FATAL:  password authentication failed for user "x"',
        True,
    ),
    ('connection to server at "h", port 5432 failed: FATAL:  sorry, too many clients already', True),
    (
        (
            'connection to server at "h", port 5432 failed: FATAL:  remaining connection slots are reserved for roles'
            " with SUPERUSER"
        ),
        True,
    ),
    ('connection to server at "h", port 5432 failed: FATAL:  permission denied for database "x"', True),
    ('connection to server at "h", port 5432 failed: FATAL:  invalid value for parameter "TimeZone": "x"', True),
    ('connection to server at "h", port 5432 failed: Connection refused\n\tIs the server running on that host?', True),
    ('connection to server at "h", port 5432 failed: timeout expired', True),
    ('connection to server at "h", port 5432 failed: fe_sendauth: no password supplied', True),
    ('connection to server at "h", port 5432 failed: server closed the connection unexpectedly', True),
    ('connection to server at "h", port 5432 failed: Network is unreachable', True),
    # Of two hosts one was asked.
    (
        (
            'could not translate host name "a" to address: Name or service not known\nconnection to server at "b"'
            " failed: Connection refused"
        ),
        True,
    ),
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
    if asked:
        assert database.check("host=h").name == "database"
    (check,) = health.measure({"rls": lambda: rls.check("host=h")})
    assert check.status == ("critical" if asked else "unknown"), check.message


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://u:w0rd@h/d",
        "host=h nonsense",
        "postgresql://h:port/d",
        "host=no-such-host.invalid user=u password=w0rd",
    ],
)
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
    monkeypatch.setattr(database.connect, "connect", lambda *_words, **_options: gone)
    check = database.check("host=h")
    assert (check.status, check.remedy) == ("critical", "") and gone.closed
    assert check.message.startswith("The database does not answer: server closed the connection")


def test_the_suite_asks_for_the_tables_of_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session({})
    monkeypatch.setattr(database.connect, "connect", lambda dsn, **_options: session)
    options = Options(database_dsn="host=h", database_tables=TABLES)
    found = database.measure(t.cast("HostContext", None), options)
    assert (found.name, found.status, found.message) == ("database", "critical", "Missing tables: wanted, other.")
    assert session.questions[2][1] == ("public", ["wanted", "other"])
