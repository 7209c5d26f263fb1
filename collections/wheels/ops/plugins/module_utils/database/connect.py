# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Connecting to PostgreSQL: one place for the options, the session's settings and the words of an error.

Whatever the server or libpq says is translated into an ``OpsError`` that tells a person what to do next. A password or
a whole connection string never appears in a message.
"""

from __future__ import annotations

import contextlib
import re
import typing as t
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ..core.redaction import HIDDEN, redact, secrets_of
from ..core.results import OpsError

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

APPLICATION_NAME = "wheels.ops"
#: Schema of what we keep in a database. The API must not expose it, and no role but ours gets USAGE on it.
PRIVATE_SCHEMA = "wheels_private"

#: What libpq says where no server was asked, for a reason of our own: the DSN, the name, a right of ours.
_NEVER_ASKED: t.Tuple[str, ...] = (
    "could not translate host name",
    "could not parse",
    "invalid ",
    'missing "="',
    "permission denied",
    "root certificate file",
    "certificate file",
    "service file",
    "definition of service",
    "could not match",
)

#: Lost a race, not an argument: worth trying again (lock_not_available, deadlock_detected, serialization_failure).
TRANSIENT = frozenset({"55P03", "40P01", "40001"})

#: What libpq says when it cannot connect (it gives no SQLSTATE then), and what to do about it.
_CONNECT_HINTS: t.Tuple[t.Tuple[str, str], ...] = (
    (
        "could not translate host name",
        "The host name is not known here: check the host in the DSN and this machine's name resolution.",
    ),
    ("connection refused", "Nothing listens there: is the server running, and are host and port right?"),
    (
        "timeout expired",
        (
            "No answer in time: a firewall, a wrong address, or a sleeping server. Check from this machine with:"
            " pg_isready -h HOST -p PORT"
        ),
    ),
    (
        "network is unreachable",
        "No route to it. An IPv6-only database (Supabase's direct address) needs IPv6 here, or the pooler's address.",
    ),
    ("no such file or directory", "There is no server socket: give a host, or start the server."),
    (
        "password authentication failed",
        "User or password is wrong. Through Supabase's pooler the user is postgres.PROJECT.",
    ),
    ("no password supplied", "The server wants a password: put it in the DSN, PGPASSWORD or ~/.pgpass."),
    (
        "peer authentication failed",
        "Over the socket the operating system's user must match: give host=127.0.0.1, or become that user.",
    ),
    (
        "no pg_hba.conf entry",
        "The server does not admit this user from this address: add a line to pg_hba.conf or use an admitted address.",
    ),
    ("does not support ssl", "The server has no TLS: use sslmode=prefer, or turn TLS on there."),
    ("certificate", "TLS could not be verified: check sslmode and sslrootcert."),
    ("too many connections", "The server has no free connection: close some, or raise max_connections."),
    ("too many clients", "The server has no free connection: close some, or raise max_connections."),
    ("remaining connection slots", "The server has no free connection: close some, or raise max_connections."),
    ("tenant or user not found", "The pooler does not know that user: it is postgres.PROJECT at Supabase's pooler."),
    ("max clients reached", "The pooler has no connection free: close some, or raise its pool size."),
    ("max_client_conn", "The pooler has no connection free: close some, or raise its pool size."),
    ("is starting up", "The server is starting: wait until pg_isready says so."),
    ("in recovery mode", "The server recovers from a crash: wait until pg_isready says so, and see its log for why."),
    ("not yet accepting connections", "The server is starting: wait until pg_isready says so."),
    (
        "not accepting connections",
        "The server or this database admits nobody: see its log, and datallowconn of the database.",
    ),
    (
        "not currently accepting connections",
        "The server or this database admits nobody: see its log, and datallowconn of the database.",
    ),
    ("is shutting down", "The server is being stopped: start it when it is meant to run."),
    ("no space left on device", "The disk of the server is full: free space on it."),
    ("is not permitted to log in", "The role may not log in: grant it LOGIN, or give another user."),
    ("does not exist", "User or database does not exist there: check both in the DSN."),
    ("invalid", "The DSN cannot be read: give postgresql://USER@HOST:PORT/DATABASE or 'host=… dbname=…'."),
    ('missing "="', "The DSN cannot be read: give postgresql://USER@HOST:PORT/DATABASE or 'host=… dbname=…'."),
)

_SQLSTATE_HINTS: t.Dict[str, str] = {
    "42501": "The role lacks a privilege: connect as the owner of the objects, or as a superuser.",
    "25006": "The server or the transaction is read only: connect to the primary.",
    "55P03": (
        "Another session holds the lock. See who in pg_locks and pg_stat_activity, then run again, or raise"
        " lock_timeout."
    ),
    "57014": "It took longer than statement_timeout: raise it, or find out why with pg_stat_activity.",
    "40P01": "Two sessions waited for each other: run it again.",
    "53300": "The server has no free connection: close some, or raise max_connections.",
    "57P01": "The server was stopped while it worked. Nothing of the transaction was kept: start it and run again.",
    "57P03": "The server is starting or stopping: wait until pg_isready says that it accepts connections.",
}


class Unavailable(OpsError):
    """The server was asked and gave no session: it refused, has none free, or did not answer.

    Any other ``OpsError``: it was never asked.
    """


def argument_spec() -> t.Dict[str, t.Dict[str, t.Any]]:
    """The connection options of every module that talks to PostgreSQL; the fragment ``postgres`` documents them."""
    return {
        "dsn": {"type": "str", "no_log": True},
        "login_host": {"type": "str"},
        "login_port": {"type": "int"},
        "login_user": {"type": "str"},
        "login_password": {"type": "str", "no_log": True},
        "login_db": {"type": "str"},
        "connect_timeout": {"type": "int", "default": 10},
    }


def from_params(params: t.Mapping[str, t.Any]) -> Connection:
    """A connection from a module's parameters, as ``argument_spec`` names them."""
    return connect(
        params.get("dsn") or "",
        host=params.get("login_host"),
        port=params.get("login_port"),
        user=params.get("login_user"),
        password=params.get("login_password"),
        dbname=params.get("login_db"),
        connect_timeout=params.get("connect_timeout") or 10,
    )


def connect(
    dsn: str = "",
    *,
    host: t.Optional[str] = None,
    port: t.Optional[int] = None,
    user: t.Optional[str] = None,
    password: t.Optional[str] = None,
    dbname: t.Optional[str] = None,
    connect_timeout: int = 10,
) -> Connection:
    """A new connection, not in autocommit; single options win over the DSN, and libpq's variables fill what neither
    gives.

    ``dsn`` is libpq's ``key=value`` form or a URL; the driver that SQLAlchemy puts into a URL's scheme
    (``postgresql+asyncpg://``) is dropped, so that the backend's own ``DATABASE_URL`` can be given.

    Raises ``Unavailable`` where the server gives no connection, another ``OpsError`` where it could not be asked, with
    a hint for the usual reasons.
    """
    import psycopg2

    single = {"host": host, "port": port, "user": user, "password": password, "dbname": dbname}
    options: t.Dict[str, t.Any] = {key: value for key, value in single.items() if value is not None}
    options.update(application_name=APPLICATION_NAME, connect_timeout=connect_timeout)
    try:
        connection = psycopg2.connect(libpq_dsn(dsn), **options)
    except psycopg2.Error as error:
        kind = OpsError if isinstance(error, psycopg2.ProgrammingError) or _never_asked(str(error)) else Unavailable
        raise kind(
            "No connection to PostgreSQL:"
            f" {_without_secret(' '.join(str(error).split()), dsn, password).rstrip('.?')}.",
            hint=_connect_hint(str(error)),
            sqlstate=error.pgcode,
        ) from None
    connection.set_client_encoding("UTF8")
    return connection


def libpq_dsn(dsn: str) -> str:
    """The DSN as libpq reads it: no driver in the scheme, none of the parameters that only SQLAlchemy's
    drivers know.
    """
    if "://" not in dsn:
        return dsn
    try:
        parts = urlsplit(dsn)
    except ValueError:  # a bracket in the password, say: libpq judges it
        return dsn
    if parts.scheme.split("+")[0] not in ("postgres", "postgresql"):
        raise OpsError(
            f"The DSN's scheme is {parts.scheme!r}, not postgresql.", hint="Give the address of a PostgreSQL database."
        )
    if "+" not in parts.scheme:
        return dsn
    words = [
        ("sslmode" if key == "ssl" else key, value)
        for key, value in parse_qsl(parts.query)
        if key in ("ssl", "sslmode", "sslrootcert", "options")
    ]
    return urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(words), ""))


@contextlib.contextmanager
def translated(doing: str) -> t.Iterator[None]:
    """Turns an error of the server inside the block into an ``OpsError`` that says what was being done."""
    import psycopg2

    try:
        yield
    except psycopg2.Error as error:
        raise server_error(doing, error) from error


def server_error(doing: str, error: t.Any, **details: t.Any) -> OpsError:
    """The ``OpsError`` for a ``psycopg2.Error``: first line, SQLSTATE, the server's own detail and hint, and ours."""
    diag = getattr(error, "diag", None)
    primary = getattr(diag, "message_primary", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    sqlstate = error.pgcode
    detail = getattr(diag, "message_detail", None)
    if sqlstate is None and "closed" in str(error):
        primary, own = (
            str(error).strip().splitlines()[0],
            "The server went away. Nothing of the transaction was kept: see its log, then run again.",
        )
    else:
        own = _SQLSTATE_HINTS.get(sqlstate or "", "")
    hint = " ".join(word for word in (getattr(diag, "message_hint", None), own) if word)
    message = (
        f"{doing}: {primary}" + (f" ({detail})" if detail else "") + (f" [SQLSTATE {sqlstate}]." if sqlstate else ".")
    )
    return OpsError(message, hint=hint, sqlstate=sqlstate, **details)


def _connect_hint(message: str) -> str:
    low = message.lower()
    return next(
        (hint for words, hint in _CONNECT_HINTS if words in low), "Check host, port, user, password and database."
    )


def _never_asked(message: str) -> bool:
    """Whether a failed connection is our own fault.

    What a server itself says begins with FATAL, whatever words follow.
    """
    low = message.lower()
    return any(words in low for words in _NEVER_ASKED) and not any(
        words in low for words in ("fatal:", "refused", "timeout expired")
    )


def _without_secret(message: str, dsn: str, password: t.Optional[str]) -> str:
    """libpq quotes a DSN that it cannot read, or the part that it stumbles over, with the password in it."""
    secrets = secrets_of(dsn, {"password": password or ""})
    message = message.replace(dsn, "the DSN") if dsn else message
    if "://" in dsn and any(set("@/?#[]:") & set(secret) for secret in secrets if f":{secret}@" in dsn):
        # Not percent-encoded, so that libpq took a piece of it for the host or the port, and names that.
        message = re.sub(r'"[^"]+"', f'"{HIDDEN}"', message)
    return redact(message, secrets)
