# SPDX-License-Identifier: GPL-3.0-or-later
"""How a connection is asked for, and what is said when there is none."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import typing as t

import pytest

from tests.support.waiting import free_port
from wheels_ops.core.results import OpsError
from wheels_ops.database import connect


@pytest.mark.parametrize(
    ("dsn", "libpq"),
    [
        ("host=a dbname=b", "host=a dbname=b"),
        ("", ""),
        ("postgresql://u:p@h:1/d?sslmode=require", "postgresql://u:p@h:1/d?sslmode=require"),
        ("postgresql+asyncpg://u:p%40@h:1/d", "postgresql://u:p%40@h:1/d"),
        (
            "postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0",
            "postgresql://u@h/d?sslmode=require",
        ),
        ("postgres+psycopg2://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
    ],
)
def test_the_url_of_the_backend_is_understood(dsn: str, libpq: str) -> None:
    assert connect.libpq_dsn(dsn) == libpq


def test_another_database_is_refused() -> None:
    with pytest.raises(OpsError, match="mysql"):
        connect.libpq_dsn("mysql+pymysql://u@h/d")


@pytest.mark.parametrize(
    ("dsn", "hint"),
    [
        ("host=127.0.0.1 port={port} user=u password=hunter2 dbname=d", "is the server running"),
        ("postgresql://u:hunter2@127.0.0.1:{port}/d", "is the server running"),
        ("postgresql+asyncpg://u:hunter2@127.0.0.1:{port}/d", "is the server running"),
        ("host=name.invalid password=hunter2", "name resolution"),
        ("garbage hunter2", "cannot be read"),
        ("postgresql://u:hunter2@[bad/d", "cannot be read"),
        ("host=/nonexistent password=hunter2", "no server socket"),
    ],
)
def test_no_connection_says_what_to_do_and_no_secret(dsn: str, hint: str) -> None:
    with pytest.raises(OpsError) as caught:
        connect.connect(dsn.format(port=free_port()))
    assert hint in str(caught.value)
    assert "hunter2" not in str(caught.value) + repr(caught.value.details)
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def refusing(sqlstate: str, message: str) -> t.Iterator[int]:
    """The port of a server that answers every start with this FATAL, as PostgreSQL does (protocol 3: ErrorResponse)."""
    fields = b"SFATAL\0VFATAL\0C" + sqlstate.encode() + b"\0M" + message.encode() + b"\0\0"

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    ("sqlstate", "message", "hint"),
    [
        ("57P03", "the database system is starting up", "wait until pg_isready"),
        ("57P03", "the database system is in recovery mode", "recovers from a crash: wait"),
        ("57P03", "the database system is not yet accepting connections", "is starting: wait"),
        ("57P03", "the database system is shutting down", "is being stopped"),
        ("55000", 'database "pam" is not currently accepting connections', "datallowconn"),
        ("53300", "MaxClientsInSessionMode: max clients reached", "The pooler has no connection free"),
        ("08P01", "no more connections allowed (max_client_conn)", "The pooler has no connection free"),
        ("53100", "could not extend file: No space left on device", "The disk of the server is full"),
        ("28000", 'role "x" is not permitted to log in', "grant it LOGIN"),
    ],
)
def test_a_server_that_admits_nobody_is_no_wrong_address(sqlstate: str, message: str, hint: str) -> None:
    with refusing(sqlstate, message) as port, pytest.raises(connect.Unavailable) as caught:
        connect.connect(f"postgresql://u:hunter2@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable")
    assert (
        hint in str(caught.value) and "Check host, port" not in str(caught.value) and "hunter2" not in str(caught.value)
    )
