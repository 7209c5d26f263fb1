# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applies a plan in one transaction, proves inside it that nothing else changed, and takes it back from a script."""

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
from ..audit import audits, callgraph, oracle
from ..audit.simulate import Simulator
from ..model import catalog, policies
from ..model.catalog import Catalog
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection, Cursor, set_local, transaction
from . import compare, strict
from .plans import Plan

RETRIES = 5
#: Any number that no one else uses: two repairs of one database wait for each other.
_LOCK = 0x776F7073
_MARK = "-- wheels.ops rls undo: "
_BUSY = ("55P03", "40P01", "40001")


class Broken(OpsError):
    """The repair would have changed or left something that it must not; it was rolled back."""


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
    """Applies a plan with its proof in one transaction; in check mode that transaction is rolled back.

    ``undo_path`` receives the undo script, on disk before anything is applied. From the first lock on a table to the
    end the transaction gets ``lock_timeout_ms`` in all, so that no writer waits longer; where a lock is not to be had
    it is tried again ``retries`` times, later each time. Gives the result of a module: changed, before, after, actions,
    msg, diff. Raises ``OpsError`` (``Broken`` where the proof fails); then nothing was changed.
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
        for attempt in range(retries + 1):
            try:
                proof = _once(connection, plan, check_mode, statement_timeout_ms, lock_timeout_ms)
                break
            except OpsError as error:
                if error.details.get("sqlstate") not in _BUSY or attempt == retries:
                    if undo_path is not None and not check_mode:
                        with contextlib.suppress(OSError):
                            undo_path.unlink()
                    raise
                sleep(min(5.0, 0.1 * 2**attempt))
        if undo_path is not None and not check_mode:
            # Now that the policies have their final text an undo can tell whether someone changed them since.
            _write(undo_path, undo_script(plan, run_id, proof.pop("fingerprint")))
    proof.pop("fingerprint", None)
    # The planner counts a sub-select that it replaces as still there; where the new text has none, what it gave up on
    # works as well.
    still = proof.pop("still_failing", None)
    review = [one for one in plan.needs_review if still is None or one["object"] in still]
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


def _once(
    connection: Connection, plan: Plan, check_mode: bool, statement_timeout_ms: int, lock_timeout_ms: int
) -> t.Dict[str, t.Any]:
    import psycopg2

    with transaction(
        connection, read_only=False, statement_timeout_ms=statement_timeout_ms, lock_timeout_ms=lock_timeout_ms
    ) as cursor:
        try:
            cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (_LOCK,))
            before = catalog.read(cursor, schemas=plan.schemas, roles=plan.roles)
            _same_as_planned(plan, before)
            old = Simulator(before)
            subjects, texts = _subjects(cursor, plan, before, old)
            seen = compare.measure(cursor, before, subjects, texts)
            relations = {relation.qualified: relation for relation in before.relations.values()}
            recursive = [
                (who, user, relations[name])
                for who, user, name in subjects
                if seen[who.name, user, name].state == oracle.RECURSION
            ]
            due = strict.read(cursor, before, recursive)
            for statement in plan.statements[: len(plan.statements) - plan.locking]:
                cursor.execute(statement)
            # Whoever wants the table queues up behind us, while we wait for it and while we hold it: both count.
            deadline = time.monotonic() + lock_timeout_ms / 1000
            set_local(cursor, lock_timeout=max(1, lock_timeout_ms // 2))
            for statement in plan.statements[len(plan.statements) - plan.locking :]:
                _bounded(cursor, deadline)
                cursor.execute(statement)
            _bounded(cursor, deadline)
            proof = _prove(cursor, plan, before, old, deadline)
            _bounded(cursor, deadline)
            now = compare.measure(cursor, before, subjects, texts)
            proof.update(_compare(plan, before, seen, now))
            proof["strict_reading"] = strict.report(due, {key: now[key].rows for key in due if not now[key].state})
            if check_mode:
                return proof
        except psycopg2.errors.QueryCanceled as error:
            raise Broken(
                f"The repair and its proof take longer than lock_timeout ({lock_timeout_ms} ms), for which writers may"
                " be made to wait.",
                hint="Nothing was changed. Raise lock_timeout, or run it at a quieter time.",
                sqlstate=error.pgcode,
            ) from error
        except psycopg2.errors.DeadlockDetected as error:
            raise OpsError(
                "Deadlock detected; PostgreSQL aborted this transaction.",
                hint="Nothing was changed. Run again.",
                sqlstate=error.pgcode,
            ) from error
        except (psycopg2.errors.LockNotAvailable, psycopg2.OperationalError):
            raise
        except psycopg2.Error as error:
            raise Broken(
                f"PostgreSQL refuses a statement of the repair: {error.pgcode}"
                f" {(error.diag.message_primary or str(error)).strip()}",
                hint="Nothing was changed. "
                + ("Connect as the tables' owner or a superuser." if error.pgcode == "42501" else "Please report it."),
                sqlstate=error.pgcode,
                statement=_text(cursor),
            ) from error
        try:
            cursor.connection.commit() if not connection.autocommit else cursor.execute("commit")
        except psycopg2.OperationalError as error:
            raise OpsError(
                "The connection was lost during COMMIT: the repair is either done in full or not at all.",
                hint="Run again: it finds out, and does what is left to do.",
            ) from error
        return proof


def _text(cursor: Cursor) -> str:
    query = cursor.query or b""
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query)


def _bounded(cursor: Cursor, deadline: float) -> None:
    """What is left of the time for which the locks may be held."""
    left = int((deadline - time.monotonic()) * 1000)
    set_local(cursor, statement_timeout=max(1, left))


def _same_as_planned(plan: Plan, now: Catalog) -> None:
    """Nobody may have changed what the plan was made from."""
    for change in plan.changes:
        relation = now.by_name(change.relation.schema, change.relation.name)
        present = {policy.name: policies.original(policy) for policy in (relation.policies if relation else ())}
        for policy in change.before:
            if present.get(policy.name) != policies.original(policy):
                raise OpsError(
                    f'The policy "{policy.name}" of {change.relation.qualified} was changed since the plan was made.',
                    hint="Nothing was changed. Audit and plan again.",
                )


def _touched(plan: Plan) -> t.Set[str]:
    return {change.relation.qualified for change in plan.changes}


def _subjects(
    cursor: Cursor, plan: Plan, before: Catalog, old: Simulator
) -> t.Tuple[t.List[t.Tuple[t.Any, compare.User, str]], t.Dict[str, str]]:
    """Who is looked through and at what: every relation whose rows depend on a policy that changes."""
    touched = {relation.oid for relation in before.relations.values() if relation.qualified in _touched(plan)}
    sample = compare.users(cursor, before, touched)
    pairs = []
    depending: t.Set[int] = set()
    for who in before.classes:
        if not who.settable:
            continue
        for relation in before.relations.values():
            if relation.schema not in who.schemas or not (relation.secured or relation.kind == "v"):
                continue
            reached = relation.oid in touched or any(
                use.policy.relation in touched for use, _ignored in old.reached(who, relation, "select", set())
            )
            if reached:
                pairs.append((who, relation))
                depending.add(relation.oid)
    texts = compare.queries(cursor, before, depending)
    return [(who, user, relation.qualified) for who, relation in pairs for user in sample], texts


def _prove(cursor: Cursor, plan: Plan, before: Catalog, old: Simulator, deadline: float) -> t.Dict[str, t.Any]:
    """Asks the server and the simulation again: nothing fails but what is left to a person, and no working access reads
    other policies.
    """
    now = catalog.read(cursor, schemas=plan.schemas, roles=plan.roles)
    _bounded(cursor, deadline)
    asked = oracle.ask(cursor, now.classes, schemas=plan.schemas)
    failing = audits.explain(now, asked, audits.predict(now))
    failed_before = [
        (who, relation, variant)
        for who, relation, variant in audits.accesses(before)
        if old.check(who, relation, variant)
    ]
    known = {(who.name, relation.qualified, variant) for who, relation, variant in failed_before}
    # A policy that was split names roles that no policy named before, so that a class of then may be several now:
    # compare in the names of then.
    then = {member: who.name for who in before.classes for member in who.members}
    members = {who.name: who.members for who in now.classes}
    recursive = {
        (then.get(member, member), failure.relation, failure.command)
        for failure in failing
        if failure.recursive
        for member in members.get(failure.role, (failure.role,))
    }
    if recursive - known:
        raise Broken(
            f"The repair would make accesses fail that work: {_list(recursive - known)}.",
            hint="Nothing was changed. Please report it.",
            failing=sorted(recursive - known),
        )
    if recursive - plan.left:
        raise Broken(
            f"The repair would leave recursion: {_list(recursive - plan.left)}.",
            hint="Nothing was changed. Please report it.",
            failing=sorted(recursive - plan.left),
        )
    looping = {
        (then.get(member, member), one.relation.qualified, one.variant)
        for one in callgraph.runtime(now, audits.accesses(now))
        for member in members.get(one.role, (one.role,))
    }
    if looping - plan.left:
        raise Broken(
            f"The repair would leave recursion through functions: {_list(looping - plan.left)}.",
            hint="Nothing was changed. Please report it.",
            failing=sorted(looping - plan.left),
        )
    _unchanged(plan, before, old, now)
    return {
        "failing_before": len(known),
        "possible_54001": len(looping),
        "failing_after": len(recursive),
        "checked": asked.checked,
        "other_errors": [failure.as_dict() for failure in failing if not failure.recursive],
        "fingerprint": fingerprint(now, _touched(plan)),
        "still_failing": {relation for _role, relation, _variant in recursive | looping},
    }


def _unchanged(plan: Plan, before: Catalog, old: Simulator, now: Catalog) -> None:
    """D1, statically: the expressions that working accesses draw in are the very same texts. Rewordings that keep the
    meaning (initplan, unwrapped, merged policies) are left to the data comparison.
    """
    reworded = {change.relation.qualified for change in plan.changes if set(change.reasons) - {"recursion"}}
    guarded = {
        (change.relation.qualified, name): roles for change in plan.changes for name, roles in change.guarded.items()
    }
    new = Simulator(now)
    graph = callgraph.CallGraph(before)

    def drawn(simulator: Simulator, read: Catalog) -> t.Dict[str, t.Set[t.Tuple[t.Any, ...]]]:
        result: t.Dict[str, t.Set[t.Tuple[t.Any, ...]]] = {}
        seen: t.Dict[str, t.Set[t.Tuple[int, int, str]]] = {}
        for who, relation, variant in audits.accesses(before):
            if old.check(who, relation, variant) or (graph.any and graph.check(who, relation, variant)):
                continue
            here = read.by_name(relation.schema, relation.name)
            if here is None:
                raise AssertionError("a defect: here is missing")
            for use, context in simulator.reached(who, here, variant, seen.setdefault(who.name, set())):
                expression = use.policy.slot(use.slot)
                table = read.relations[use.policy.relation].qualified
                others = guarded.get((table, use.policy.name), frozenset())
                if read is not before and not others.isdisjoint(_role_names(read, context.user)):
                    continue
                if expression is not None and table not in reworded:
                    entry = (table, context.command, use.policy.permissive, context.user, expression.text)
                    result.setdefault(who.name, set()).add(entry)
        return result

    was, is_now = drawn(old, before), drawn(new, now)
    different = [name for name in set(was) | set(is_now) if was.get(name) != is_now.get(name)]
    if different:
        tables = sorted({entry[0] for name in different for entry in was.get(name, set()) ^ is_now.get(name, set())})
        raise Broken(
            f"The repair would change policies that working accesses of {', '.join(sorted(different))} draw in:"
            f" {', '.join(tables)}.",
            hint="Nothing was changed. Please report it.",
        )


def _role_names(read: Catalog, user: int) -> t.Set[str]:
    """The roles whose policies apply to a user."""
    return {read.role_name(oid) for oid in read.held.get(user, frozenset()) | {user}}


def _compare(
    plan: Plan, before: Catalog, was: t.Dict[compare.Key, compare.Seen], now: t.Dict[compare.Key, compare.Seen]
) -> t.Dict[str, t.Any]:
    """D1, by the data: whoever saw rows before sees the same rows."""
    compared = 0
    differences = []
    opened: t.Dict[str, int] = {}
    reworded: t.Dict[str, t.List[int]] = {}
    meant = _meant(plan, before)
    for key, seen in was.items():
        after = now.get(key)
        if after is None:
            continue
        if (key[0], key[2]) in meant and seen.state not in ("42P17", "54001"):
            counts = reworded.setdefault(key[2], [0, 0])
            counts[0], counts[1] = counts[0] + seen.rows, counts[1] + after.rows
            continue
        if seen.state in ("42P17", "54001"):
            opened[key[2]] = opened.get(key[2], 0) + after.rows
            continue
        compared += 1
        if seen[:3] != after[:3]:
            differences.append(f"{key[0]} ({key[1].words}) saw {_told(seen)} in {key[2]}, now {_told(after)}")
    if differences:
        raise Broken(
            f"The repair would change what is visible in {len(differences)} of {compared} comparisons, the first:"
            f" {differences[0]}.",
            hint="Nothing was changed. Please report it.",
            differences=differences[:50],
        )
    # Class 22 is about the data: the condition came from the policy, and would fail there for the same value.
    ours = [
        seen.context
        for seen in now.values()
        if seen.state[:2] != "22" and any(function["name"] in seen.context for function in plan.functions)
    ]
    if ours:
        raise Broken(
            f"A function of the repair fails: {ours[0].splitlines()[0]}",
            hint="Nothing was changed. Please report it.",
            contexts=ours[:20],
        )
    errors = sorted(
        {
            f"{key[2]} as {key[0]}: {seen.state}"
            for key, seen in now.items()
            if seen.state and was[key].state != seen.state
        }
    )
    found: t.Dict[str, t.Any] = {"comparisons": compared, "now_visible": opened, "unmasked": errors}
    if reworded:
        found["reworded"] = {
            table: {"before": counts[0], "after": counts[1]} for table, counts in sorted(reworded.items())
        }
    return found


def _meant(plan: Plan, before: Catalog) -> t.Set[t.Tuple[str, str]]:
    """The reads (role, relation) whose rows are to be others, as a policy is to mean something else."""
    simulator = Simulator(before)
    return {
        (who.name, relation.qualified)
        for who, relation, variant in audits.accesses(before)
        if plan.reworded
        and variant == "select"
        and any(use.policy.oid in plan.reworded for use, _ignored in simulator.reached(who, relation, variant, set()))
    }


def _told(seen: compare.Seen) -> str:
    return (
        f"the error {seen.state}"
        if seen.state
        else f"{seen.rows} rows (digest {hashlib.sha256(seen.digest.encode()).hexdigest()[:8]})"
    )


def _list(accesses: t.Collection[t.Tuple[str, str, str]]) -> str:
    found = [f"{variant} of {relation} as {role}" for role, relation, variant in sorted(accesses)]
    return "; ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


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
    found = {}
    for relation in read.relations.values():
        if relation.qualified in tables:
            for policy in relation.policies:
                content = json.dumps(policies.original(policy).__dict__, sort_keys=True, default=list)
                found[f"{relation.qualified} {policy.quoted}"] = hashlib.sha256(content.encode()).hexdigest()
    return found


def undo_script(plan: Plan, run_id: str = "", after: t.Optional[t.Dict[str, str]] = None) -> str:
    """The SQL that takes a plan back, for ``undo`` and for psql alike."""
    if plan.catalog is None:
        raise AssertionError("a defect: plan.catalog is missing")
    head = {
        "run": run_id,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "database": plan.catalog.database,
        "tables": sorted(_touched(plan)),
        "after": after or {},
    }
    lines = [_MARK + json.dumps(head, sort_keys=True)]
    lines += [
        f"-- Restores the policies of {', '.join(sorted(_touched(plan)))} exactly as they were. psql -X -v"
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
            if error.details.get("sqlstate") not in _BUSY or attempt == retries:
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
    import psycopg2

    begin = "BEGIN;\n"
    before, _ignored, inside = body.partition(begin)
    with transaction(
        connection, read_only=False, statement_timeout_ms=statement_timeout_ms, lock_timeout_ms=lock_timeout_ms
    ) as cursor:
        cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (_LOCK,))
        read = catalog.read(cursor)
        if read.database != head["database"]:
            raise OpsError(
                f"The undo script belongs to the database {head['database']}, this is {read.database}.",
                hint="Connect to that one.",
            )
        now = fingerprint(read, head["tables"])
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
        statements = inside.rpartition("COMMIT;")[0]
        try:
            if statements:
                cursor.execute(statements.replace("SET LOCAL lock_timeout = '5s';\n", "", 1))
        except psycopg2.errors.LockNotAvailable:
            raise
        except psycopg2.Error as error:
            raise OpsError(
                f"The repair cannot be undone: {(error.diag.message_primary or str(error)).strip()}",
                hint="Nothing was changed. It was undone already, or the tables are gone.",
                sqlstate=error.pgcode,
            ) from error
        after = catalog.read(cursor)
        restored = fingerprint(after, head["tables"]) != now
        if not check_mode:
            cursor.connection.commit() if not connection.autocommit else cursor.execute("commit")
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
    result.before, result.after = {"policies": now}, {"policies": fingerprint(after, head["tables"])}
    result.actions = [{"action": "restore policies", "target": table, "changed": restored} for table in head["tables"]]
    return result.as_dict()


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
