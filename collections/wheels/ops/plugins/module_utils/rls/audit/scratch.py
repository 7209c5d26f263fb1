# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Migrations in a database of their own, audited after each file, so that every finding has the file that brought it."""

from __future__ import annotations

import contextlib
import secrets
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ...core.results import OpsError
from ...database import connect
from ..model import tree
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection
from .audits import Audit, audit

#: What Supabase gives every project and migrations count on: roles, auth.users, and the readers of the token.
SUPABASE_ROLES = ("anon", "authenticated", "service_role")
SUPABASE = """
create schema auth;
create schema extensions;
create table auth.users (id uuid primary key, email text unique, raw_app_meta_data jsonb default '{}', raw_user_meta_data jsonb default '{}',
  created_at timestamptz default now(), updated_at timestamptz default now());
create function auth.uid() returns uuid language sql stable as
  $f$ select nullif(coalesce(current_setting('request.jwt.claim.sub', true), (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')), '')::uuid $f$;
create function auth.role() returns text language sql stable as
  $f$ select nullif(coalesce(current_setting('request.jwt.claim.role', true), (current_setting('request.jwt.claims', true)::jsonb ->> 'role')), '') $f$;
create function auth.email() returns text language sql stable as
  $f$ select nullif(coalesce(current_setting('request.jwt.claim.email', true), (current_setting('request.jwt.claims', true)::jsonb ->> 'email')), '') $f$;
create function auth.jwt() returns jsonb language sql stable as $f$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $f$;
grant usage on schema public, auth, extensions to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant execute on functions to anon, authenticated, service_role;
"""


@dataclass
class Loaded:
    """The audit after the last file; ``introduced`` names for each finding's identity the file after which it was first there."""

    audit: Audit
    introduced: t.Dict[t.Tuple[str, str], str] = field(default_factory=dict)
    errors: t.List[str] = field(default_factory=list)


def load(
    dsn: str,
    files: t.Sequence[Path],
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    supabase: bool = False,
    keep_going: bool = False,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> Loaded:
    """Loads the files in order into a scratch database of the server behind ``dsn`` and drops it again.

    Raises ``OpsError`` where a statement fails, unless ``keep_going``, and where a file cannot be read.
    """
    texts = [(path, _read(path)) for path in files]
    timeouts = {"statement_timeout_ms": statement_timeout_ms, "lock_timeout_ms": lock_timeout_ms}
    with _database(dsn, supabase) as connection:
        known: t.Dict[t.Tuple[str, str], str] = {}
        errors: t.List[str] = []
        found: t.Optional[Audit] = None
        for path, text in texts:
            failed = [f"{path}:{line}: {message}" for line, message in _execute(connection, text)]
            if failed and not keep_going:
                raise OpsError(
                    f"{failed[0]}", hint="Give every migration that it needs, in order, or --keep-going.", errors=failed
                )
            errors += failed
            last = path == texts[-1][0]  # a later file may make the schema
            found = audit(connection, schemas=schemas, roles=roles, absent_schemas=not last, **timeouts)
            known = {finding.identity: known.get(finding.identity, str(path)) for finding in found.findings}
    if found is None:
        raise AssertionError("a defect: found is missing")
    return Loaded(found, known, errors)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OpsError(f"Cannot read {path}: {error}.", hint="Give SQL files in UTF-8.") from error


@contextlib.contextmanager
def _database(dsn: str, supabase: bool) -> t.Iterator[Connection]:
    import psycopg2

    name = f"wheels_ops_scratch_{secrets.token_hex(4)}"
    with contextlib.closing(connect.connect(dsn)) as server:
        server.autocommit = True
        made: t.List[str] = []
        with server.cursor() as cursor, connect.translated("Making a scratch database"):
            cursor.execute(f"create database {tree.quote(name)}")
        try:
            if supabase:
                with server.cursor() as cursor, connect.translated("Making Supabase's roles"):
                    for role in SUPABASE_ROLES:
                        cursor.execute("select true from pg_catalog.pg_roles where rolname = %s", (role,))
                        if cursor.fetchone() is None:
                            cursor.execute(
                                f"create role {role} nologin" + (" bypassrls" if role == "service_role" else "")
                            )
                            made.append(role)
            with contextlib.closing(connect.connect(dsn, dbname=name)) as connection:
                connection.autocommit = True
                if supabase:
                    with connection.cursor() as cursor, connect.translated("Making Supabase's schema"):
                        cursor.execute(SUPABASE)
                yield connection
        finally:
            with server.cursor() as cursor:
                cursor.execute(f"drop database if exists {tree.quote(name)}")
                for role in made:
                    with contextlib.suppress(psycopg2.Error):
                        cursor.execute(f"drop role {role}")


def _execute(connection: Connection, text: str) -> t.List[t.Tuple[int, str]]:
    """Runs a file statement by statement; gives (line, message) of those that failed."""
    import psycopg2
    from pglast import split
    from pglast.parser import ParseError

    try:
        places = list(split(text, with_parser=True, only_slices=True))
    except ParseError as error:
        location = int(getattr(error, "location", 0) or 0)
        return [(text.count("\n", 0, location) + 1, f"cannot be parsed: {error.args[0]}")]
    failed = []
    with connection.cursor() as cursor:
        for place in places:
            statement = text[place]
            try:
                cursor.execute(statement)
            except psycopg2.Error as error:
                start = place.start + len(statement) - len(statement.lstrip())
                failed.append((text.count("\n", 0, start) + 1, (error.diag.message_primary or str(error)).strip()))
                if connection.info.transaction_status not in (0,):
                    cursor.execute("rollback")
        cursor.execute("reset all; reset role")
    return failed
