# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The short part of a change of policies: the locks, and what is done while they are held.

Whoever wants to read a table queues up behind a session that waits for its lock, so that one is waited for only
``QUEUE_MS`` at a time; then everything is given back and the queue let pass. All locks are taken at once, in the same
order by everyone, and none is waited for while they are held: there is no deadlock that PostgreSQL had to find.
"""

from __future__ import annotations

import random
import time
import typing as t

from ...core.results import OpsError
from ..model import tree
from ..model.transactions import Cursor, set_local

#: Any number that no one else uses: two repairs of one database wait for each other.
ADVISORY = 0x776F7073
#: For how long others may queue up behind a lock that is not to be had.
QUEUE_MS = 25
#: Between two attempts, at first and at most.
PAUSES_S = (0.02, 0.2)

# What a verification is made from, in one value. Rows that hold much are told by their oid and the transaction that
# wrote them; those that the repair itself writes (grants) by their content. The helpers are ours.
_ROWS = "coalesce(sum(hashtextextended(concat_ws(' ', {columns}), 0)::numeric), 0)"
_STATE = " || ' ' || ".join(
    f"(select {_ROWS.format(columns=columns)} from {source})"
    for columns, source in (
        ("oid, xmin", "pg_catalog.pg_policy"),
        ("oid, xmin", "pg_catalog.pg_rewrite"),
        (
            "c.oid, c.relname, n.nspname, c.relkind, c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.reloptions",
            "pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_'"
            " and n.nspname <> 'information_schema'",
        ),
        (
            "p.oid, p.proname, p.proowner, p.prosecdef, p.provolatile, p.proconfig, p.prosrc",
            "pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace"
            " where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', {helpers})",
        ),
        ("oid, rolname, rolsuper, rolbypassrls", "pg_catalog.pg_roles where rolname <> {owner}"),
        (
            "m.roleid, m.member",
            "pg_catalog.pg_auth_members m join pg_catalog.pg_roles r on r.oid = m.roleid where r.rolname <> {owner}",
        ),
    )
)


def state_query(*, helper_schema: str, owner: str) -> str:
    """The query for a digest of everything in the catalog on which a prediction rests; ``owner``: the role that the
    repair makes.
    """
    return "select " + _STATE.format(helpers=tree.literal(helper_schema), owner=tree.literal(owner))


def acquire(cursor: Cursor, tables: t.Sequence[str], *, patience_ms: int) -> float:
    """Locks the tables (qualified) against everybody, or raises ``psycopg2.errors.LockNotAvailable`` when
    ``patience_ms`` are over. Gives the moment (``time.monotonic()``) since which others wait.
    """
    import psycopg2

    statement = f"lock table only {', only '.join(sorted(tables))} in access exclusive mode"
    deadline = time.monotonic() + patience_ms / 1000
    pause = PAUSES_S[0]
    queue = min(QUEUE_MS, max(1, patience_ms // 2))
    cursor.execute("savepoint wheels_ops_locks")
    while True:
        started = time.monotonic()
        set_local(cursor, lock_timeout=queue, statement_timeout=queue)
        try:
            cursor.execute(statement)
            return started
        except (psycopg2.errors.LockNotAvailable, psycopg2.errors.QueryCanceled) as error:
            cursor.execute("rollback to savepoint wheels_ops_locks")
            if time.monotonic() + pause > deadline:
                if isinstance(error, psycopg2.errors.LockNotAvailable):
                    raise
                raise OpsError(
                    f"Another session holds a lock: {', '.join(sorted(tables))}",
                    hint="Wait for it (pg_stat_activity shows it), or raise lock_timeout.",
                    sqlstate="55P03",
                ) from error
        # Not in step with others that do the same.
        time.sleep(random.uniform(0.5, 1.0) * pause)
        pause = min(PAUSES_S[1], pause * 1.5)
