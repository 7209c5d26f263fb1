# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Transactions in which the server is asked: always bounded in time, read only unless something is applied."""

from __future__ import annotations

import contextlib
import typing as t

from ...core.results import OpsError

STATEMENT_TIMEOUT_MS = 60_000
LOCK_TIMEOUT_MS = 5_000

#: psycopg2 is imported where it is used, so its classes have no names here.
Connection = t.Any
Cursor = t.Any
Row = t.Dict[str, t.Any]


def rows(cursor: Cursor, query: str, values: t.Optional[t.Mapping[str, t.Any]] = None) -> t.List[Row]:
    """Runs a query and gives its rows as dictionaries."""
    cursor.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor.fetchall()]


def set_local(cursor: Cursor, /, **settings: t.Any) -> None:
    """``SET LOCAL`` with bound values; numbers of ``*_timeout`` settings are milliseconds."""
    for name, value in settings.items():
        cursor.execute("select pg_catalog.set_config(%s, %s, true)", (name, str(value)))


class Rehearsal:
    """A connection with an open transaction that will be rolled back: what is asked through it sees what was done in it
    so far.

    Given in the place of a connection, its transactions are savepoints of that one, and none of them can be committed.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self.connection, name)

    @contextlib.contextmanager
    def savepoint(self, *, read_only: bool) -> t.Iterator[Cursor]:
        with self.connection.cursor() as cursor:
            cursor.execute("savepoint wheels_ops_rehearsal")
            try:
                if read_only:
                    set_local(cursor, transaction_read_only="on")
                yield cursor
            finally:
                if not self.connection.closed:
                    # Settings go back as well.
                    cursor.execute("rollback to savepoint wheels_ops_rehearsal")


@contextlib.contextmanager
def transaction(
    connection: Connection,
    *,
    read_only: bool,
    one_moment: bool = True,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> t.Iterator[Cursor]:
    """One REPEATABLE READ transaction; it is rolled back at the end unless the caller has committed it.

    Everything that is read in it belongs to one moment, unless ``one_moment`` is false: then every statement sees what
    others have committed, as is needed once a lock was waited for. ``search_path`` is empty, so that PostgreSQL qualifies every
    name that it prints and nobody's objects can shadow those of ``pg_catalog``.
    """
    import psycopg2
    from psycopg2 import extensions

    rehearsal = isinstance(connection, Rehearsal)
    if not rehearsal and connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE:
        raise OpsError(
            "The connection is inside a transaction.",
            hint="Commit or roll it back first, or give a connection of its own.",
        )
    if rehearsal:
        with _translated(), connection.savepoint(read_only=read_only) as cursor:
            set_local(cursor, statement_timeout=statement_timeout_ms, lock_timeout=lock_timeout_ms, search_path="")
            yield cursor
        return
    cursor = connection.cursor()
    level = "repeatable read" if one_moment else "read committed"
    mode = f"isolation level {level}, read " + ("only" if read_only else "write")
    try:
        with _translated():
            # With autocommit off psycopg2 sends BEGIN itself, before this statement.
            cursor.execute(("begin transaction " if connection.autocommit else "set transaction ") + mode)
            set_local(cursor, statement_timeout=statement_timeout_ms, lock_timeout=lock_timeout_ms, search_path="")
            yield cursor
    finally:
        if not connection.closed:
            with contextlib.suppress(psycopg2.Error):
                connection.rollback() if not connection.autocommit else cursor.execute("rollback")
            with contextlib.suppress(psycopg2.Error):
                cursor.close()


@contextlib.contextmanager
def _translated() -> t.Iterator[None]:
    import psycopg2

    try:
        yield
    except psycopg2.errors.LockNotAvailable as error:
        raise OpsError(
            f"Another session holds a lock: {_first_line(error)}",
            hint="Wait for it (pg_stat_activity shows it), or raise lock_timeout.",
            sqlstate=error.pgcode,
        ) from error
    except psycopg2.errors.QueryCanceled as error:
        raise OpsError(
            f"PostgreSQL cancelled the statement: {_first_line(error)}",
            hint="Raise statement_timeout, or name fewer schemas.",
            sqlstate=error.pgcode,
        ) from error
    except psycopg2.OperationalError as error:
        raise OpsError(
            f"The connection to PostgreSQL was lost: {_first_line(error)}", hint="Nothing was changed. Run again."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
