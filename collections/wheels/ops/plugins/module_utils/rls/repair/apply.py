# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applies a plan that was verified, in one transaction that holds its locks for as short a time as possible, and undoes
it from a script.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import time
import typing as t
from pathlib import Path

from ...core.results import OpsError, Result
from ...host.files import make_directories, write_atomically
from ..audit import audits, oracle
from ..model import catalog, policies, tree
from ..model.catalog import Catalog, Policy
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection, Cursor, Row, transaction
from . import locks
from .plans import Plan
from .verification import (
    Broken,
    ChangedSince,
    Verified,
    described,
    explained,
    preparations,
    state_query,
    touched,
    verify,
)

RETRIES = 5
_MARK = "-- wheels.ops rls undo: "
_BUSY = ("55P03", "40P01", "40001")


def apply(
    connection: Connection,
    plan: Plan,
    *,
    check_mode: bool = False,
    undo_path: t.Optional[Path] = None,
    run_id: str = "",
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    retries: int = RETRIES,
    sleep: t.Callable[[float], None] = time.sleep,
) -> t.Dict[str, t.Any]:
    """Verifies a plan, then, unless in check mode, changes the policies in one transaction.

    ``undo_path`` receives the undo script, on disk before anything is applied. ``lock_timeout_ms`` is the time in which
    the locks must be had (others wait for a small part of it, see ``locks``), and for which they are held at most;
    where they are not to be had it is all tried again ``retries`` times, later each time. Gives the result of a module:
    changed, before, after, actions, msg, diff. Raises ``OpsError`` (``Broken`` where the verification fails); then
    nothing was changed.
    """
    result = Result(diff=t.cast(t.List[t.Dict[str, t.Any]], plan.diff()))
    result.before = {"failing": None}
    if plan.empty:
        result.msg = (
            "Nothing to repair."
            if not plan.needs_review
            else f"{len(plan.needs_review)} need a person; nothing was changed."
        )
        result.after = {"failing": len(plan.left)}
        result.before = dict(result.after)
        result.extra = {"needs_review": plan.needs_review, "undo": ""}
        return result.as_dict()
    if undo_path is not None and not check_mode:
        _write(undo_path, undo_script(plan, run_id))
    proof: t.Dict[str, t.Any] = {}
    if plan.statements:
        timeouts: t.Dict[str, t.Any] = {
            "statement_timeout_ms": statement_timeout_ms,
            "lock_timeout_ms": lock_timeout_ms,
        }
        for attempt in range(retries + 1):
            try:
                verified = verify(connection, plan, **timeouts)
                proof = verified.told
                after = {} if check_mode else _change(connection, plan, verified, **timeouts)
                break
            except OpsError as error:
                again = isinstance(error, (ChangedSince, audits.Disagreement)) or error.details.get("sqlstate") in _BUSY
                if not again or attempt == retries:
                    if undo_path is not None and not check_mode:
                        with contextlib.suppress(OSError):
                            undo_path.unlink()
                    raise
                sleep(min(5.0, 0.1 * 2**attempt))
        if undo_path is not None and not check_mode:
            # Now that the policies have their final text an undo can tell whether someone changed them since.
            _write(undo_path, undo_script(plan, run_id, after))
    # The planner counts a sub-select that it replaces as still there; where the new text has none, what it gave up on
    # works as well.
    still = proof.pop("still_failing", None)
    review = [entry for entry in plan.needs_review if still is None or entry["object"] in still]
    if plan.indexes and not check_mode:
        _build_indexes(connection, plan)
    result.changed = True
    result.before = {"failing": proof.get("failing_before", len(plan.left)), "possible_54001": plan.runtime_before}
    result.after = {
        "failing": proof.get("failing_after", len(plan.left)),
        **{k: v for k, v in proof.items() if not k.startswith("failing_")},
    }
    result.actions = [
        {
            "action": "change policy",
            "target": f"{change.relation.qualified}: {', '.join(policy.name for policy in change.before)}",
            "changed": True,
        }
        for change in plan.changes
    ]
    result.actions += [
        {"action": "create function", "target": function["signature"], "changed": True} for function in plan.functions
    ]
    result.actions += [{"action": "create index", "target": statement, "changed": True} for statement in plan.indexes]
    verb = "would be changed" if check_mode else "changed"
    compared = _compared(proof)
    if proof.get("unmeasured"):
        compared += f", {len(proof['unmeasured'])} could not be made beforehand"
    result.msg = (
        f"{len(plan.changes)} policies {verb}, {len(plan.functions)} functions: failing accesses"
        f" {result.before['failing']} -> {result.after['failing']}, {compared}."
    )
    if review:
        result.msg += f" {len(review)} need a person."
    result.extra = {
        "needs_review": review,
        "undo": str(undo_path) if undo_path is not None and not check_mode else "",
        "warnings_rls": plan.warnings,
    }
    return result.as_dict()


def _compared(proof: t.Mapping[str, t.Any]) -> str:
    """What the comparison of rows came to, in words."""
    if proof.get("comparisons"):
        return f"{proof['comparisons']} comparisons without a difference"
    visible = {table: count for table, count in proof.get("now_visible", {}).items() if count}
    if visible:
        rows = ", ".join(f"{count} of {table}" for table, count in sorted(visible.items()))
        return f"no access worked before that could be compared; rows that the sampled users see now: {rows}"
    return "there were no rows to compare"


def _change(
    connection: Connection, plan: Plan, verified: Verified, *, statement_timeout_ms: int, lock_timeout_ms: int
) -> t.Dict[str, str]:
    """Changes the policies. With the locks held there are two round trips: in the first one the catalog is compared
    with the one that was verified, the policies are changed and read back, and the server is asked for the accesses
    that they apply to; the second one is COMMIT. Gives the fingerprint of the changed tables' policies.
    """
    import psycopg2

    tables = sorted(touched(plan))
    timeouts: t.Dict[str, t.Any] = {"statement_timeout_ms": statement_timeout_ms, "lock_timeout_ms": lock_timeout_ms}
    with transaction(connection, read_only=False, one_moment=False, **timeouts) as cursor, explained(cursor):
        cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (locks.ADVISORY,))
        for statement in preparations(plan):
            cursor.execute(statement)
        asked, ask = oracle.these(verified.due)
        batch = [
            _setting(cursor, "statement_timeout", str(lock_timeout_ms)),
            f"select pg_catalog.set_config('wheels_ops.state', ({state_query(plan)}), true)",
            *plan.statements[len(plan.statements) - plan.locking :],
            _setting(cursor, "wheels_ops.ask", asked),
            ask,
            f"select pg_catalog.current_setting('wheels_ops.state'), ({oracle.ANSWER}),"
            f" ({catalog.policies_as_json(tables, _names(plan))})",
        ]
        locks.acquire(cursor, tables, patience_ms=lock_timeout_ms)
        try:
            cursor.execute(";\n".join(batch))
            state, answer, policies_now = cursor.fetchone()
        except psycopg2.errors.QueryCanceled as error:
            raise Broken(
                f"The change takes longer than lock_timeout ({lock_timeout_ms} ms), for which readers and writers may"
                " be made to wait.",
                hint="Nothing was changed. Raise lock_timeout, or run it at a quieter time.",
                sqlstate=error.pgcode,
            ) from error
        if state != verified.state:
            raise ChangedSince(
                "The catalog was changed while the plan was verified.", hint="Nothing was changed. Run again."
            )
        _check_policies(plan, verified, policies_now)
        _check_accepted(oracle.failures(verified.due, answer))
        _commit(connection, cursor)
    _ask_later(connection, plan, verified, **timeouts)
    return {**fingerprint(verified.catalog, tables), **_fingerprint(policies_now)}


def _setting(cursor: Cursor, name: str, value: str) -> str:
    text: bytes = cursor.mogrify("select pg_catalog.set_config(%s, %s, true)", (name, value))
    return text.decode()


def _commit(connection: Connection, cursor: Cursor) -> None:
    import psycopg2

    try:
        cursor.connection.commit() if not connection.autocommit else cursor.execute("commit")
    except psycopg2.OperationalError as error:
        raise OpsError(
            "The connection was lost during COMMIT: the repair is either done in full or not at all.",
            hint="Run again: it finds out, and does what is left to do.",
        ) from error


def _check_policies(plan: Plan, verified: Verified, rows: t.Sequence[Row]) -> None:
    """PostgreSQL has made of the policies what was verified."""
    names, tables = _names(plan), touched(plan)
    inexact = verified.inexact
    due = {
        (relation.qualified, policy.name): (described(policy, texts=policy.oid not in inexact), policy.oid in inexact)
        for relation in verified.catalog.relations.values()
        if relation.qualified in tables
        for policy in relation.policies
        if policy.name in names
    }
    present = {(row["table"], row["name"]): catalog.policy(row) for row in rows}
    different = sorted(
        f"{key[1]} of {key[0]}"
        for key in {*present, *due}
        if key not in due or key not in present or due[key][0] != described(present[key], texts=not due[key][1])
    )
    if different:
        raise Broken(
            f"PostgreSQL reads policies otherwise than was predicted: {', '.join(different)}.",
            hint="Nothing was changed. Please report it.",
            policies=different,
        )


def _names(plan: Plan) -> t.Set[str]:
    """The policies that the plan changes, makes or drops."""
    before = {policy.name for change in plan.changes for policy in change.before}
    return before | {piece.name for change in plan.changes for piece in change.after}


def _check_accepted(failing: t.Sequence[oracle.Failure]) -> None:
    """Other errors (a rule without RETURNING) were there before, or were hidden by the recursion."""
    recursive = [failure for failure in failing if failure.recursive]
    if recursive:
        names = [f"{failure.command} of {failure.relation} as {failure.role}" for failure in recursive]
        raise Broken(
            f"The server refuses {len(names)} accesses that were predicted to work, the first: {names[0]}.",
            hint="Nothing was changed. Please report it.",
            failing=names,
        )


def _ask_later(
    connection: Connection, plan: Plan, verified: Verified, *, statement_timeout_ms: int, lock_timeout_ms: int
) -> None:
    """Asks for the accesses for which others should not be made to wait, and undoes the change where one is refused."""
    if not verified.later:
        return
    timeouts: t.Dict[str, t.Any] = {"statement_timeout_ms": statement_timeout_ms, "lock_timeout_ms": lock_timeout_ms}
    asked, ask = oracle.these(verified.later)
    with transaction(connection, read_only=True, **timeouts) as cursor:
        cursor.execute(_setting(cursor, "wheels_ops.ask", asked))
        cursor.execute(ask)
        cursor.execute(oracle.ANSWER)
        answer = cursor.fetchone()[0]
    try:
        _check_accepted(oracle.failures(verified.later, answer))
    except Broken:
        with transaction(connection, read_only=False, one_moment=False, **timeouts) as cursor, explained(cursor):
            locks.acquire(cursor, sorted(touched(plan)), patience_ms=lock_timeout_ms)
            cursor.execute(";\n".join(plan.undo))
            _commit(connection, cursor)
        raise


def _build_indexes(connection: Connection, plan: Plan) -> None:
    """CREATE INDEX CONCURRENTLY, each on its own: writers are not blocked.

    One that fails is dropped, not left invalid.
    """
    import psycopg2

    was = connection.autocommit
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for create, drop in zip(plan.indexes, plan.drop_indexes):
                try:
                    cursor.execute(create)
                except psycopg2.Error as error:
                    with contextlib.suppress(psycopg2.Error):
                        cursor.execute(drop)
                    raise OpsError(
                        f"An index could not be built: {(error.diag.message_primary or str(error)).strip()}",
                        hint="The policies are repaired; build the index by hand: " + create,
                        sqlstate=error.pgcode,
                    ) from error
    finally:
        connection.autocommit = was


# -- undo --------------------------------------------------------------------------------------------------------------


def fingerprint(read: Catalog, tables: t.Collection[str]) -> t.Dict[str, str]:
    """A hash of every policy of those tables, to tell whether someone has changed one since."""
    return {
        f"{relation.qualified} {policy.quoted}": _digest(policy)
        for relation in read.relations.values()
        if relation.qualified in tables
        for policy in relation.policies
    }


def _fingerprint(rows: t.Iterable[Row]) -> t.Dict[str, str]:
    """The same for rows of ``catalog.policies_as_json``."""
    return {f"{row['table']} {row['quoted']}": _digest(catalog.policy(row)) for row in rows}


def _digest(policy: Policy) -> str:
    content = json.dumps(policies.original(policy).__dict__, sort_keys=True, default=list)
    return hashlib.sha256(content.encode()).hexdigest()


def undo_script(plan: Plan, run_id: str = "", after: t.Optional[t.Dict[str, str]] = None) -> str:
    """The SQL that takes a plan back, for ``undo`` and for psql alike."""
    if plan.catalog is None:
        raise AssertionError("a defect: plan.catalog is missing")
    head = {
        "run": run_id,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "database": plan.catalog.database,
        "tables": sorted(touched(plan)),
        "before": fingerprint(plan.catalog, touched(plan)),
        "after": after or {},
    }
    lines = [_MARK + json.dumps(head, sort_keys=True)]
    lines += [
        f"-- Restores the policies of {', '.join(sorted(touched(plan)))} exactly as they were. psql -X -v"
        " ON_ERROR_STOP=1 -f THIS_FILE".replace("\n", " ")
    ]
    lines += [statement + ";" for statement in plan.drop_indexes]
    if plan.undo:
        lines += [
            "BEGIN;",
            "SET LOCAL search_path = '';",
            "SET LOCAL lock_timeout = '5s';",
            *[statement + ";" for statement in plan.undo],
            "COMMIT;",
        ]
    return "\n".join(lines) + "\n"


def undo(
    connection: Connection,
    path: Path,
    *,
    check_mode: bool = False,
    force: bool = False,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    retries: int = RETRIES,
    sleep: t.Callable[[float], None] = time.sleep,
) -> t.Dict[str, t.Any]:
    """Takes a repair back. Refuses, unless ``force``, where a policy of these tables was changed after the repair."""
    try:
        script = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise OpsError(
            f"Cannot read the undo script: {error}.", hint="rls_repair keeps them in undo_dir, one for each run."
        ) from error
    first, _ignored, body = script.partition("\n")
    if not first.startswith(_MARK):
        raise OpsError(f"{path} is not an undo script of ours.", hint="Name one that rls_repair wrote.")
    head = json.loads(first[len(_MARK) :])
    for attempt in range(retries + 1):
        try:
            return _undo_once(connection, head, body, check_mode, force, statement_timeout_ms, lock_timeout_ms)
        except OpsError as error:
            if not (isinstance(error, ChangedSince) or error.details.get("sqlstate") in _BUSY) or attempt == retries:
                raise
            sleep(min(5.0, 0.1 * 2**attempt))
    raise AssertionError("the last attempt returns or raises")


def _undo_once(
    connection: Connection,
    head: t.Dict[str, t.Any],
    body: str,
    check_mode: bool,
    force: bool,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
) -> t.Dict[str, t.Any]:
    tables = head["tables"]
    before, dummy, inside = body.partition("BEGIN;\n")
    statements = inside.rpartition("COMMIT;")[0].replace("SET LOCAL lock_timeout = '5s';\n", "", 1)
    timeouts: t.Dict[str, t.Any] = {"statement_timeout_ms": statement_timeout_ms, "lock_timeout_ms": lock_timeout_ms}
    with transaction(connection, read_only=False, one_moment=False, **timeouts) as cursor:
        cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (locks.ADVISORY,))
        cursor.execute("select current_database()")
        database = cursor.fetchone()[0]
        if database != head["database"]:
            raise OpsError(
                f"The undo script belongs to the database {head['database']}, this is {database}.",
                hint="Connect to that one.",
            )
        now, stamp = _present(cursor, tables)
        _check_as_left(head, now, force)
        after = head.get("before", now) if check_mode else now
        if statements and not check_mode:
            _restore(cursor, tables, statements, stamp, lock_timeout_ms)
            _commit(connection, cursor)
    if statements and not check_mode:
        with transaction(connection, read_only=True, **timeouts) as cursor:
            after, dummy = _present(cursor, tables)
    restored = after != now
    drops = [line for line in before.splitlines() if line.startswith("DROP INDEX")]
    if drops and not check_mode:
        was = connection.autocommit
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for line in drops:
                    cursor.execute(line)
        finally:
            connection.autocommit = was
    result = Result(
        changed=restored or bool(drops),
        msg=f"Policies of {', '.join(head['tables'])} are as they were." if head["tables"] else "Indexes dropped.",
    )
    result.before, result.after = {"policies": now}, {"policies": after}
    result.actions = [{"action": "restore policies", "target": table, "changed": restored} for table in head["tables"]]
    return result.as_dict()


def _present(cursor: Cursor, tables: t.Sequence[str]) -> t.Tuple[t.Dict[str, str], str]:
    """(the fingerprint of the tables' policies, a short digest that tells whether one was written since)."""
    if not tables:
        return {}, ""
    cursor.execute(f"select ({catalog.policies_as_json(tables)}), ({_stamp_query(tables)})")
    rows, stamp = cursor.fetchone()
    return _fingerprint(rows), stamp


def _stamp_query(tables: t.Sequence[str]) -> str:
    oids = ", ".join(f"to_regclass({tree.literal(table)})::oid" for table in tables)
    return (
        "select md5(coalesce(string_agg(concat_ws(' ', oid, xmin), ',' order by oid), '')) from pg_catalog.pg_policy"
        f" where polrelid = any(array[{oids}]::oid[])"
    )


def _check_as_left(head: t.Mapping[str, t.Any], now: t.Mapping[str, str], force: bool) -> None:
    changed = sorted(name for name in set(now) | set(head["after"]) if now.get(name) != head["after"].get(name))
    if head["after"] and changed and not force:
        raise OpsError(
            f"Policies are not as the repair left them: {', '.join(changed)}.",
            hint=(
                "The repair was undone already, or somebody changed them since. Compare them with the script;"
                " force undoes the repair all the same."
            ),
            changed_since=changed,
        )


def _restore(cursor: Cursor, tables: t.Sequence[str], statements: str, stamp: str, lock_timeout_ms: int) -> None:
    """Runs the statements of an undo script with its tables locked, in one round trip."""
    import psycopg2

    batch = [
        _setting(cursor, "statement_timeout", str(lock_timeout_ms)),
        f"select pg_catalog.set_config('wheels_ops.state', ({_stamp_query(tables)}), true)",
        statements.rstrip().rstrip(";"),
        "select pg_catalog.current_setting('wheels_ops.state')",
    ]
    try:
        locks.acquire(cursor, tables, patience_ms=lock_timeout_ms)
        cursor.execute(";\n".join(batch))
        changed = cursor.fetchone()[0] != stamp
    except psycopg2.errors.QueryCanceled as error:
        raise OpsError(
            f"The undo takes longer than lock_timeout ({lock_timeout_ms} ms), for which readers and writers may be made"
            " to wait.",
            hint="Nothing was changed. Raise lock_timeout, or run it at a quieter time.",
            sqlstate=error.pgcode,
        ) from error
    except psycopg2.OperationalError:
        raise
    except psycopg2.Error as error:
        raise OpsError(
            f"The repair cannot be undone: {(error.diag.message_primary or str(error)).strip()}",
            hint="Nothing was changed. It was undone already, or the tables are gone.",
            sqlstate=error.pgcode,
        ) from error
    if changed:
        raise ChangedSince("The policies were changed just now.", hint="Nothing was changed. Run again.")


def _write(path: Path, text: str) -> None:
    """A file that is on disk, whole, when this returns."""
    path = Path(path)
    try:
        make_directories(path.parent)
        write_atomically(path, text.encode())
    except (OSError, OpsError) as error:
        raise OpsError(
            f"Cannot keep the undo script: {error}", hint="Nothing was changed. Give an undo_dir that can be written."
        ) from error
