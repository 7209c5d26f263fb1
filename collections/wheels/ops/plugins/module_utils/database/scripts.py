# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applies SQL scripts: each in one transaction, one runner at a time, written down in a ledger inside the database.

A script is plain SQL, the same file that a person can paste into an SQL editor. It is read with PostgreSQL's own parser
before anything runs, so that a script which could not be taken back as a whole (transaction control, ``VACUUM``, psql's
commands) is refused with its line. Values reach it as settings (``current_setting('wheels_ops.NAME')``), bound by the
driver; its text is never edited.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..core.results import OpsError, Result
from . import schema_snapshot
from .connect import PRIVATE_SCHEMA, TRANSIENT, server_error, translated
from .connect import from_params as from_connection_params

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

LEDGER = f"{PRIVATE_SCHEMA}.sql_scripts"
#: Any constant will do, as long as every release and `critical_database_fixes.sql` use the same one.
ADVISORY_LOCK = 2003332211
#: Longest wait between two attempts, in seconds.
MAX_BACKOFF = 30.0
#: How much of a failing statement goes into the message.
EXCERPT = 400

#: Command tags that count rows which were written.
_WRITING = ("INSERT", "UPDATE", "DELETE", "MERGE", "COPY")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,50}\Z")
_BODY_LINE = re.compile(r"PL/pgSQL function inline_code_block line (\d+)")
_DOLLAR = re.compile(r"\$(?:[A-Za-z_][A-Za-z_0-9]*)?\$")

#: Statement types that end, or cannot run inside, the one transaction.
_REFUSED: t.Dict[str, str] = {
    "TransactionStmt": "transaction control; the script runs in one transaction that is not its own",
    "VacuumStmt": "VACUUM cannot run inside a transaction; let autovacuum do it, or run it apart",
    "CreatedbStmt": "CREATE DATABASE cannot run inside a transaction",
    "DropdbStmt": "DROP DATABASE cannot run inside a transaction",
    "CreateTableSpaceStmt": "CREATE TABLESPACE cannot run inside a transaction",
    "DropTableSpaceStmt": "DROP TABLESPACE cannot run inside a transaction",
    "AlterSystemStmt": "ALTER SYSTEM cannot run inside a transaction",
    "CheckPointStmt": "CHECKPOINT has no place in a script of changes",
}


@dataclass(frozen=True)
class Script:
    """One script: its name in the ledger, its text, and the text that takes it back ("" when there is none).

    With ``always_run`` it runs even when the ledger knows it; that is a change when the catalog differs afterwards or a
    statement wrote rows. What a DO block did to rows cannot be seen from outside and does not count.
    """

    name: str
    text: str
    undo: str = ""
    always_run: bool = False

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Statement:
    """One statement of a script and the line, counted from 1, on which it begins."""

    sql: str
    line: int


@dataclass(frozen=True)
class Limits:
    """How long a lock and a statement may take (milliseconds), and how often and how patiently a lost
    race is repeated.
    """

    lock_timeout_ms: int = 5000
    statement_timeout_ms: int = 300_000
    retries: int = 5
    retry_delay: float = 0.5


def read_script(path: str, *, undo_path: str = "", name: str = "", always_run: bool = False) -> Script:
    """Reads a script and its undo script; without ``undo_path``, ``X.undo.sql`` beside ``X.sql`` is taken when it
    exists.
    """
    file = Path(path)
    undo_file = Path(undo_path) if undo_path else file.with_suffix(".undo.sql")
    return Script(
        name=name or file.name,
        text=_read(file),
        undo=_read(undo_file) if undo_path or undo_file.exists() else "",
        always_run=always_run,
    )


def split(text: str, *, name: str) -> t.List[Statement]:
    """The script's statements, in order. Raises ``OpsError`` with the line for what cannot run in one transaction."""
    import pglast
    from pglast.parser import ParseError

    try:
        trees = pglast.parse_sql(text)
    except ParseError as error:
        message, index = (error.args + (0,))[:2]
        line = text.count("\n", 0, index or 0) + 1
        if (index or 0) < len(text) and text[index or 0] == "\\":
            raise OpsError(
                f"{name}, line {line}: a command of psql ({text[index:].splitlines()[0].strip()}) is not SQL.",
                hint="Only psql itself understands it. Give further files as further scripts.",
                script=name,
                line=line,
            ) from None
        raise OpsError(f"{name}, line {line}: {message}.", hint="Nothing was run.", script=name, line=line) from None
    statements = []
    for raw in trees:
        start = raw.stmt_location or 0
        piece = text[start : start + raw.stmt_len] if raw.stmt_len else text[start:]
        lead = len(piece) - len(_without_leading_comments(piece))
        statement = Statement(piece[lead:].rstrip(), text.count("\n", 0, start + lead) + 1)
        reason = _refusal(raw.stmt)
        if reason:
            raise OpsError(
                f"{name}, line {statement.line}: {reason}.",
                hint="Take the statement out; nothing was run.",
                script=name,
                line=statement.line,
                statement=_excerpt(statement.sql),
            )
        statements.append(statement)
    if not statements:
        raise OpsError(f"{name} holds no statement.", hint="Check that the right file was given.", script=name)
    return statements


def sql_script(
    connect: t.Callable[[], Connection],
    scripts: t.Sequence[Script],
    *,
    state: str = "applied",
    variables: t.Optional[t.Mapping[str, str]] = None,
    limits: t.Optional[Limits] = None,
    run_id: str = "",
    check_mode: bool = False,
    rehearse: bool = True,
    sleep: t.Callable[[float], None] = time.sleep,
) -> Result:
    """Brings every script to ``state`` (``applied``, or ``undone`` in reverse order).

    Each script runs in a transaction of its own, together with its line in the ledger, under one advisory lock:
    whatever happens, it is there as a whole or not at all. In check mode all of them run in one transaction that is
    rolled back, so that the second sees what the first would have done.

    Args:
        connect: gives a new connection; called once per attempt.
        variables: names and values that scripts read with ``current_setting('wheels_ops.NAME', true)``.
        run_id: written into the ledger, to find the run again.
        rehearse: in check mode, run the scripts and roll them back; else they are read and judged, and the ledger alone
        says what would be run.

    Returns:
        ``actions``: one per script, in the order worked on: ``action`` (apply, undo, keep), ``target``, ``changed``,
        ``checksum``, ``statements``, ``rows``, ``duration_ms``, ``attempts``, and ``catalog``, what became different in
        the database. ``before`` and ``after`` give state and checksum of each script in the ledger.

    Raises:
        OpsError: with ``script``, ``line``, ``statement`` and ``sqlstate``. What earlier scripts did is kept; the
        failing one left nothing.
    """
    limits = limits or Limits()
    names = [script.name for script in scripts]
    if len(set(names)) != len(names):
        raise OpsError(
            "Two scripts have the same name.", hint="Give each a name of its own: the ledger knows them by it."
        )
    for name in variables or {}:
        if not _VARIABLE.match(name):
            raise OpsError(f"{name!r} cannot be a variable's name.", hint="Use letters, digits and underscores.")
    ordered = list(scripts) if state == "applied" else list(reversed(scripts))
    # Every file is read and judged before the first one runs.
    for script in ordered:
        split(script.text, name=script.name)
        if script.undo:
            split(script.undo, name=f"undo of {script.name}")
    run = _Run(connect, state, dict(variables or {}), limits, run_id, check_mode, sleep, rehearse or not check_mode)
    result = Result()
    batches = [ordered] if check_mode else [[script] for script in ordered]
    for batch in batches:
        for action, was, now, diff in run.batch(batch):
            result.actions.append(action)
            result.changed = result.changed or bool(action["changed"])
            result.before[str(action["target"])], result.after[str(action["target"])] = was, now
            if diff:
                result.diff.append(diff)
    result.msg = _message(result, state, check_mode)
    return result


def rehearse(
    connection: Connection,
    scripts: t.Sequence[Script],
    *,
    variables: t.Optional[t.Mapping[str, str]] = None,
    limits: t.Optional[Limits] = None,
) -> None:
    """Runs those scripts that a real run would apply, and leaves the transaction open: whatever is asked next on the
    connection sees what they do.
    """
    _Run(lambda: connection, "applied", dict(variables or {}), limits or Limits(), "", True, time.sleep).open(
        connection, scripts
    )


Outcome = t.Tuple[t.Dict[str, t.Any], t.Dict[str, t.Any], t.Dict[str, t.Any], t.Optional[t.Dict[str, str]]]


@dataclass
class _Run:
    connect: t.Callable[[], Connection]
    state: str
    variables: t.Dict[str, str]
    limits: Limits
    run_id: str
    check_mode: bool
    sleep: t.Callable[[float], None]
    rehearse: bool = True

    def batch(self, scripts: t.Sequence[Script]) -> t.List[Outcome]:
        """One transaction, repeated while it only loses races for locks."""
        for attempt in range(1, self.limits.retries + 2):
            connection = self.connect()
            try:
                outcomes = self._transaction(connection, scripts)
                for outcome in outcomes:
                    outcome[0]["attempts"] = attempt
                return outcomes
            except OpsError as error:
                if error.details.get("sqlstate") not in TRANSIENT or attempt > self.limits.retries:
                    error.details["attempts"] = attempt
                    raise
            finally:
                connection.close()  # rolls back what was not committed
            # Full jitter: two runners that met once must not meet again.
            self.sleep(random.uniform(0.5, 1.0) * min(MAX_BACKOFF, self.limits.retry_delay * 2 ** (attempt - 1)))
        raise AssertionError("the last attempt returns or raises")

    def _transaction(self, connection: Connection, scripts: t.Sequence[Script]) -> t.List[Outcome]:
        outcomes = self.open(connection, scripts)
        with translated("Committing"):
            if self.check_mode:
                connection.rollback()
            else:
                connection.commit()
        return outcomes

    def open(self, connection: Connection, scripts: t.Sequence[Script]) -> t.List[Outcome]:
        """The scripts in a transaction that is neither committed nor rolled back."""
        with connection.cursor() as cursor:
            if not self.rehearse:
                return self._foretell(cursor, scripts)
            with translated("Taking the lock for SQL scripts"):
                self._timeouts(cursor)
                # The transaction's, not the session's: it ends with the transaction, and works through a pooler.
                cursor.execute("select pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
            outcomes = []
            for script in scripts:
                outcomes.append(self._one(cursor, script))
                if self.check_mode:
                    self._forget(cursor)
            return outcomes

    def _foretell(self, cursor: t.Any, scripts: t.Sequence[Script]) -> t.List[Outcome]:
        """What the ledger says would be run, without a lock and without running it."""
        with translated("Asking whether the database takes writes"):
            self._timeouts(cursor)
            cursor.execute("select current_setting('transaction_read_only')")
            refuses = cursor.fetchone()[0] == "on"
        if refuses:
            raise OpsError(
                "The database takes no writes: it is a standby, or its transactions are read-only.",
                hint="Name the primary server in the DSN.",
            )
        outcomes: t.List[Outcome] = []
        for script in scripts:
            was, action, description = self._due(cursor, script)
            if action["changed"]:
                text = self._text(script, was)
                action["statements"] = len(split(text, name=script.name))
            now = (
                {**description, "state": self.state, "checksum": script.checksum}
                if action["changed"]
                else dict(description)
            )
            outcomes.append((action, description, now, None))
        return outcomes

    def _timeouts(self, cursor: t.Any) -> None:
        cursor.execute("select set_config('lock_timeout', %s, true)", (f"{self.limits.lock_timeout_ms}ms",))
        cursor.execute("select set_config('statement_timeout', %s, true)", (f"{self.limits.statement_timeout_ms}ms",))

    def _forget(self, cursor: t.Any) -> None:
        """What a script leaves in its session does not reach the next one, which in a real run has a connection of its
        own.
        """
        with translated("Resetting the session"):
            # psycopg2 reads dates as ISO and sees to it once, when it connects.
            cursor.execute("reset session authorization; reset all; discard temp; set datestyle = iso")
            self._timeouts(cursor)

    def _due(
        self, cursor: t.Any, script: Script
    ) -> t.Tuple[t.Dict[str, t.Any], t.Dict[str, t.Any], t.Dict[str, t.Any]]:
        """The ledger's line on a script, the action that follows from it, and what of the line is shown."""
        was = _last(cursor, script.name)
        undo = self.state == "undone"
        digest = (
            was["state"] == "applied"
            if undo
            else (script.always_run or was["state"] != "applied" or was["checksum"] != script.checksum)
        )
        action: t.Dict[str, t.Any] = {
            "action": ("undo" if undo else "apply") if digest else "keep",
            "target": script.name,
            "changed": digest,
            "checksum": script.checksum,
            "statements": 0,
            "rows": 0,
            "duration_ms": 0.0,
            "catalog": [],
        }
        return was, action, {key: was[key] for key in ("state", "checksum", "applied_at", "run_id")}

    def _text(self, script: Script, was: t.Mapping[str, t.Any]) -> str:
        # The undo script that was current when the script was applied belongs to what is in the database now.
        text = str(was["undo"] or script.undo) if self.state == "undone" else script.text
        if not text:
            raise OpsError(
                f"{script.name} has no undo script.",
                hint=f"Put {Path(script.name).with_suffix('.undo.sql')} beside it, or give undo_path.",
            )
        return text

    def _one(self, cursor: t.Any, script: Script) -> Outcome:
        was, action, description = self._due(cursor, script)
        if not action["changed"]:
            return action, description, dict(description), None
        undo = self.state == "undone"
        text = self._text(script, was)
        label = f"undo of {script.name}" if undo else script.name
        with translated(f"Reading the catalog before {label}"):
            before = schema_snapshot.snapshot(cursor)
        start = time.monotonic()
        statements = split(text, name=label)
        action["rows"] = self._run(cursor, label, statements)
        action["duration_ms"] = round((time.monotonic() - start) * 1000, 1)
        action["statements"] = len(statements)
        with translated(f"Writing {label} into the ledger"):
            # A script may have changed these for itself; its line in the ledger is ours.
            cursor.execute("reset role")
            after = schema_snapshot.snapshot(cursor)
            now = self._write(cursor, script, action)
        action["catalog"] = schema_snapshot.difference(before, after, ignored=_ours)
        if not undo and was["state"] == "applied" and was["checksum"] == script.checksum:
            # It ran again because it always does: that alone changes nothing.
            action["changed"] = bool(action["catalog"] or action["rows"])
        old, new = schema_snapshot.as_text(action["catalog"])
        diff = (
            {"before_header": f"{label}: catalog", "after_header": f"{label}: catalog", "before": old, "after": new}
            if old or new
            else None
        )
        return action, description, now, diff

    def _run(self, cursor: t.Any, label: str, statements: t.Sequence[Statement]) -> int:
        import psycopg2

        with translated("Setting the variables"):
            for name, value in self.variables.items():
                cursor.execute("select set_config(%s, %s, true)", (f"wheels_ops.{name}", value))
        rows = 0
        for number, statement in enumerate(statements, 1):
            try:
                cursor.execute(statement.sql)
            except psycopg2.Error as error:
                line = _error_line(statement, error)
                raise server_error(
                    f"{label}, line {line}, statement {number} of {len(statements)}",
                    error,
                    script=label,
                    line=line,
                    statement=_excerpt(statement.sql),
                    context=error.diag.context or "",
                ) from error
            if (cursor.statusmessage or "").split(" ")[0] in _WRITING:
                rows += max(0, cursor.rowcount)
        with translated(f"{label}, at its end"):
            cursor.execute("set constraints all immediate")
        return rows

    def _write(self, cursor: t.Any, script: Script, action: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
        cursor.execute("select to_regclass(%s)", (LEDGER,))
        if cursor.fetchone()[0] is None:
            cursor.execute(f"create schema if not exists {PRIVATE_SCHEMA}")
            cursor.execute(
                f"""
                create table {LEDGER} (
                    id bigint generated always as identity primary key, name text not null, state text not null check (state in ('applied', 'undone')),
                    checksum text not null, undo text not null, applied_at timestamptz not null default clock_timestamp(),
                    applied_by text not null default session_user, run_id text not null, duration_ms numeric not null, statements integer not null)"""
            )
            cursor.execute(
                f"comment on table {LEDGER} is 'wheels.ops: which SQL scripts were applied, when, by which run'"
            )
            cursor.execute(f"create index on {LEDGER} (name, id)")
            cursor.execute(f"alter table {LEDGER} enable row level security")
            cursor.execute(f"revoke all on {LEDGER} from public")
        cursor.execute(
            f"insert into {LEDGER} (name, state, checksum, undo, run_id, duration_ms, statements) values (%s, %s, %s,"
            " %s, %s, %s, %s) returning applied_at",
            (
                script.name,
                self.state,
                script.checksum,
                script.undo,
                self.run_id,
                action["duration_ms"],
                action["statements"],
            ),
        )
        return {
            "state": self.state,
            "checksum": script.checksum,
            "applied_at": cursor.fetchone()[0].isoformat(),
            "run_id": self.run_id,
        }


def _last(cursor: t.Any, name: str) -> t.Dict[str, t.Any]:
    """What the ledger says of a script; ``state`` is ``absent`` when it never ran."""
    with translated("Reading the ledger"):
        cursor.execute("select to_regclass(%s)", (LEDGER,))
        if cursor.fetchone()[0] is not None:
            cursor.execute(
                f"select state, checksum, applied_at, run_id, undo from {LEDGER} where name = %s order by id desc"
                " limit 1",
                (name,),
            )
            row = cursor.fetchone()
            if row:
                return {
                    "state": row[0],
                    "checksum": row[1],
                    "applied_at": row[2].isoformat(),
                    "run_id": row[3],
                    "undo": row[4],
                }
    return {"state": "absent", "checksum": "", "applied_at": "", "run_id": "", "undo": ""}


def _ours(kind: str, name: str) -> bool:
    """The ledger itself is bookkeeping, not what a script changed."""
    return "sql_scripts" in name and PRIVATE_SCHEMA in name


def _refusal(node: t.Any) -> str:
    kind = type(node).__name__
    if kind in _REFUSED and getattr(node, "is_vacuumcmd", True):  # ANALYZE shares its node with VACUUM
        return _REFUSED[kind]
    if getattr(node, "concurrent", False) and kind in ("IndexStmt", "DropStmt"):
        return "CONCURRENTLY cannot run inside a transaction"
    if kind == "ReindexStmt" and any(option.defname == "concurrently" for option in node.params or ()):
        return "REINDEX CONCURRENTLY cannot run inside a transaction"
    if kind == "CopyStmt" and not node.filename and not node.is_program:
        return "COPY FROM STDIN and TO STDOUT need psql; use INSERT"
    return ""


def _without_leading_comments(text: str) -> str:
    """The text from the first character of SQL on, so that a line number points at the statement and not above it."""
    position = 0
    while True:
        blank = re.match(r"(?:\s+|--[^\n]*(?:\n|\Z))+", text[position:])
        if blank:
            position += blank.end()
        if not text.startswith("/*", position):
            return text[position:]
        depth, position = 1, position + 2
        while depth and position < len(text):  # block comments nest in SQL
            step = {"/*": 1, "*/": -1}.get(text[position : position + 2], 0)
            depth, position = depth + step, position + (2 if step else 1)


def _error_line(statement: Statement, error: t.Any) -> int:
    """The line in the script: of the position that the server names, of the line inside a DO block, else of the
    statement.
    """
    position = error.diag.statement_position
    if position:
        return statement.line + statement.sql.count("\n", 0, int(position) - 1)
    inside = _BODY_LINE.search(error.diag.context or "")
    dollar = _DOLLAR.search(statement.sql)
    if inside and dollar:
        return statement.line + statement.sql.count("\n", 0, dollar.start()) + int(inside.group(1)) - 1
    return statement.line


def _excerpt(sql: str) -> str:
    return sql if len(sql) <= EXCERPT else sql[:EXCERPT] + " …"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OpsError(
            f"{path}: {error.strerror}.", hint="Copy the script to the host first; the role wheels.ops.database does."
        ) from None
    except UnicodeDecodeError:
        raise OpsError(f"{path} is not UTF-8.", hint="Save it as UTF-8.") from None


def _message(result: Result, state: str, check_mode: bool) -> str:
    targets = [str(action["target"]) for action in result.actions if action["changed"]]
    if not targets:
        return (
            f"All {len(result.actions)} scripts are {state} already."
            if len(result.actions) != 1
            else f"{result.actions[0]['target']} is {state} already."
        )
    objects = sum(len(action["catalog"]) for action in result.actions)
    return (
        f"{'Would be' if check_mode else 'Were'} {state}: {', '.join(targets)}; {objects} objects of the catalog"
        f" {'would differ' if check_mode else 'differ'}."
    )


def from_params(params: t.Mapping[str, t.Any], *, check_mode: bool) -> Result:
    """``sql_script`` with the parameters of the module of that name."""
    scripts = from_entries(params["scripts"])
    limits = Limits(
        lock_timeout_ms=round(params["lock_timeout"] * 1000),
        statement_timeout_ms=round(params["statement_timeout"] * 1000),
        retries=params["retries"],
        retry_delay=params["retry_delay"],
    )
    return sql_script(
        lambda: from_connection_params(params),
        scripts,
        state=params["state"],
        limits=limits,
        run_id=params["run_id"],
        check_mode=check_mode,
        rehearse=params.get("rehearse", True),
        variables={name: str(value) for name, value in params["variables"].items()},
    )


def from_entries(entries: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[Script]:
    """The scripts of a module's parameter ``scripts``."""
    return [_script_from_entry(entry) for entry in entries]


def _script_from_entry(entry: t.Mapping[str, t.Any]) -> Script:
    always = bool(entry.get("always_run"))
    if entry.get("content") is None:
        return read_script(
            entry["path"], undo_path=entry.get("undo_path") or "", name=entry.get("name") or "", always_run=always
        )
    if not entry.get("name"):
        raise OpsError(
            "A script that is given as content has no name.",
            hint="Give it one: the ledger knows scripts by their names.",
        )
    return Script(name=entry["name"], text=entry["content"], undo=entry.get("undo_content") or "", always_run=always)
