# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Migrations in a database of their own, audited after each file, so that every finding has the file
that brought it.
"""

from __future__ import annotations

import contextlib
import secrets
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ...core.results import OpsError
from ...database import connect
from ..model import tree
from ..model.roles import SUPABASE_ROLES
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection
from .audits import Audit, audit
from .progress import Progress, silent

#: What Supabase gives every project and migrations count on: roles, auth.users, and the readers of the token.
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
_RIGHTS_OF_POSTGRES = """
grant all on schema public, auth, extensions to ROLE;
grant all on all tables in schema auth to ROLE with grant option;
grant all on all functions in schema auth to ROLE with grant option;
alter default privileges for role ROLE in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges for role ROLE in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges for role ROLE in schema public grant execute on functions to anon, authenticated, service_role;
"""


#: What a hosted Supabase's own ``postgres`` may, as which migrations run: it is no superuser.
MIGRATION_ROLE_RIGHTS = "NOSUPERUSER BYPASSRLS CREATEROLE CREATEDB NOLOGIN"


@dataclass
class Loaded:
    """The audit after the last file; ``introduced`` names for each finding's identity the file after which it was first
    there, ``policies`` for each (qualified table, policy) the file that gave it its present text.
    """

    audit: Audit
    introduced: t.Dict[t.Tuple[str, ...], str] = field(default_factory=dict)
    errors: t.List[str] = field(default_factory=list)
    policies: t.Dict[t.Tuple[str, str], str] = field(default_factory=dict)


def load(
    dsn: str,
    files: t.Sequence[Path],
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    supabase: bool = False,
    keep_going: bool = False,
    observe: t.Optional[t.Callable[[Connection, Audit], None]] = None,
    progress: Progress = silent,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> Loaded:
    """Loads the files in order into a scratch database of the server behind ``dsn`` and drops it again.

    ``observe`` is called with the database and its audit before it is dropped. Raises ``OpsError`` where a statement
    fails, unless ``keep_going``, and where a file cannot be read.
    """
    timeouts = {"statement_timeout_ms": statement_timeout_ms, "lock_timeout_ms": lock_timeout_ms}
    with scratch_database(dsn, supabase=supabase) as connection:
        loaded = load_into(
            connection,
            files,
            schemas=schemas,
            roles=roles,
            keep_going=keep_going,
            each=True,
            progress=progress,
            **timeouts,
        )
        if observe is not None:
            observe(connection, loaded.audit)
        return loaded


def load_into(
    connection: Connection,
    files: t.Sequence[Path],
    *,
    schemas: t.Optional[t.Sequence[str]],
    roles: t.Optional[t.Sequence[str]],
    keep_going: bool,
    each: bool,
    progress: Progress = silent,
    **timeouts: t.Any,
) -> Loaded:
    """As ``load``, into a database that is there. ``each`` audits after every file, else after the last alone, which is
    quicker and names no file for a finding.
    """
    texts = [(path, _read(path)) for path in files]
    if not texts:
        raise OpsError(
            "No SQL file is named.", hint="Name the migrations in their order: --sql supabase/migrations/*.sql"
        )
    introduced: t.Dict[t.Tuple[str, ...], str] = {}
    errors: t.List[str] = []
    policies: t.Dict[t.Tuple[str, str], t.Tuple[str, str]] = {}
    for number, (path, text) in enumerate(texts, 1):
        progress(f"{number} of {len(texts)}: {path}")
        failures = [f"{path}:{line}: {message}" for line, message in execute(connection, text)]
        if failures and not keep_going:
            raise OpsError(
                f"{failures[0]}", hint="Give every migration that it needs, in order, or --keep-going.", errors=failures
            )
        errors += failures
        last = number == len(texts)  # a later file may make the schema
        policies = {
            key: policies[key] if policies.get(key, ("",))[0] == definition else (definition, str(path))
            for key, definition in _policies(connection).items()
        }
        if each or last:
            present = audit(connection, schemas=schemas, roles=roles, absent_schemas=not last, **timeouts)
            introduced = {
                finding.identity: introduced.get(finding.identity, str(path) if each else "")
                for finding in present.findings
            }
    return Loaded(present, introduced, errors, {key: path for key, (_definition, path) in policies.items()})


def _policies(connection: Connection) -> t.Dict[t.Tuple[str, str], str]:
    """(qualified table, policy) and a text that changes when the policy does."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_catalog.format('%I.%I', schemaname, tablename), policyname,"
            " pg_catalog.concat_ws('|', permissive, roles, cmd, qual, with_check) from pg_catalog.pg_policies"
        )
        return {(table, name): definition for table, name, definition in cursor.fetchall()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OpsError(f"Cannot read {path}: {error}.", hint="Give SQL files in UTF-8.") from error


@contextlib.contextmanager
def scratch_database(dsn: str, *, supabase: bool, migration_role: bool = False) -> t.Iterator[Connection]:
    """A database of its own on the server behind ``dsn``, dropped at the end, also after an error.

    With ``migration_role`` (and ``supabase``, and a superuser's DSN) the session acts as a role with the rights that a
    hosted Supabase gives to ``postgres``: statements that only a superuser may run fail, as they would there.
    """
    import psycopg2

    name = f"wheels_ops_scratch_{secrets.token_hex(4)}"
    with contextlib.closing(connect.connect(dsn)) as server:
        server.autocommit = True
        databases: t.List[str] = []
        with server.cursor() as cursor, connect.translated("Creating a scratch database"):
            cursor.execute("select rolsuper from pg_catalog.pg_roles where rolname = current_user")
            acting = name if migration_role and supabase and cursor.fetchone() == (True,) else ""
            cursor.execute(f"create database {tree.quote(name)}")
        try:
            with server.cursor() as cursor, connect.translated("Creating Supabase's roles"):
                for role in SUPABASE_ROLES if supabase else ():
                    cursor.execute("select true from pg_catalog.pg_roles where rolname = %s", (role,))
                    if cursor.fetchone() is None:
                        cursor.execute(f"create role {role} nologin" + (" bypassrls" if role == "service_role" else ""))
                        databases.append(role)
                if acting:
                    cursor.execute(f"create role {acting} {MIGRATION_ROLE_RIGHTS}")
                    cursor.execute(f"grant {', '.join(SUPABASE_ROLES)} to {acting}")
                    cursor.execute(f"alter database {tree.quote(name)} owner to {acting}")
            with contextlib.closing(connect.connect(dsn, dbname=name)) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor, connect.translated("Creating Supabase's schema"):
                    if supabase:
                        cursor.execute(SUPABASE)
                    if acting:
                        cursor.execute(_RIGHTS_OF_POSTGRES.replace("ROLE", acting))
                        cursor.execute(f"set session authorization {acting}")
                yield connection
        finally:
            with server.cursor() as cursor:
                cursor.execute(f"drop database if exists {tree.quote(name)}")
                for role in [*databases, *([acting] if acting else [])]:
                    with contextlib.suppress(psycopg2.Error):
                        cursor.execute(f"drop role {role}")


def execute(connection: Connection, text: str) -> t.List[t.Tuple[int, str]]:
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
