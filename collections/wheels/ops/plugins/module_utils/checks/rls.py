# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Row-level security: which policies recurse, as the server itself says."""

from __future__ import annotations

import typing as t

from ..database import connect
from ..health.check import Check, Finding, conclude, unknown
from ..rls.model.roles import API_ROLES
from .context import HostContext, Options


def check(dsn: str, *, schemas: t.Optional[t.Sequence[str]] = None, timeout: int = 20) -> Check:
    """Asks the server to prepare every command on every table as every role; counts the tables that answer 42P17.

    ``critical`` also where the server gives no session: what recurses there, nobody can say, and the application cannot
    ask either.
    """
    from ..rls.audit import oracle

    try:
        connection = connect.connect(dsn, connect_timeout=min(timeout, 10))
    except connect.Unavailable as error:
        return conclude("rls", [Finding("critical", str(error))], fine="", unit="recursive tables")
    try:
        report = oracle.probe(connection, schemas=schemas, statement_timeout_ms=timeout * 1000)
    finally:
        connection.close()
    # Whatever else a rewriter refuses (a rule that allows no RETURNING) is no recursion.
    failing = [failure for failure in report.failing if failure.recursive]
    tables = sorted({failure.relation for failure in failing})
    # Service roles that hosted databases keep to themselves matter to nobody; the API's roles, or nobody at all, do.
    if not tables and report.unasked and (not report.checked or not set(API_ROLES).isdisjoint(report.unasked)):
        why = (
            f"The session may not become {', '.join(report.unasked)}, so that not everything could be asked: connect as"
            " the owner of the tables."
        )
        return unknown("rls", why, checked=report.checked, unasked=report.unasked)
    return Check(
        name="rls",
        status="critical" if tables else "ok",
        value=len(tables),
        unit="recursive tables",
        message=(
            f"Infinite recursion (42P17) in {', '.join(tables)}."
            if tables
            else f"No policy recurses ({report.checked} accesses asked)."
        ),
        remedy="rls_repair" if tables else "",
        details={
            "checked": report.checked,
            "failing": [
                {"relation": each.relation, "role": each.role, "command": each.command, "sqlstate": each.sqlstate}
                for each in failing[:100]
            ],
            "failing_total": len(failing),
        },
    )


def measure(_context: HostContext, options: Options) -> Check:
    return check(options.database_dsn, schemas=options.schemas)
