# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Database: reachable, writable, and with every table and column that the backend uses."""

from __future__ import annotations

import time
import typing as t

from ..database import connect
from ..health.check import Check, Finding, conclude
from .context import HostContext, Options

#: Tables and the columns of them that the backend reads or writes; their lack is what "missing tables" was.
REQUIRED: t.Mapping[str, t.Sequence[str]] = {
    "affiliate_sales": (
        # the account pages and track_purchase
        "id",
        "user_id",
        "product_name",
        "product_url",
        "amount",
        "commission",
        "status",
        "category",
        "created_at",
        # Stripe
        "session_id",
        "customer_email",
        "amount_total",
        "currency",
        "affiliate_id",
        # Digistore24
        "digistore24_order_id",
        "digistore24_product_id",
        "commission_rate",
        "sale_date",
        "affiliate_network",
        "payment_method",
        "billing_type",
        "pay_sequence_no",
        "is_test_mode",
        "ipn_received_at",
        "address_first_name",
        "address_last_name",
        "address_street_name",
        "address_street_number",
        "address_city",
        "address_state",
        "address_zipcode",
        "address_phone_no",
        "thank_you_validated",
        "updated_at",
    ),
    "user_wishlists": ("id", "user_id", "product_id", "product_name", "price", "category", "notes", "created_at"),
}


def check(
    dsn: str, *, required: t.Optional[t.Mapping[str, t.Sequence[str]]] = None, schema: str = "public", timeout: int = 10
) -> Check:
    """Connects, asks one question, and compares the catalog with what is ``required``.

    ``critical`` where the server gives no session or no answer, takes no writes, or lacks a table or a column.
    """
    import psycopg2

    wanted = REQUIRED if required is None else required
    try:
        facts = _ask(dsn, wanted, schema, timeout)
    except connect.Unavailable as error:
        return conclude("database", [Finding("critical", str(error))], fine="", unit="missing")
    except psycopg2.Error as error:
        return conclude(
            "database",
            [Finding("critical", str(connect.server_error("The database does not answer", error)))],
            fine="",
            unit="missing",
        )
    present = facts.pop("present")
    tables = [name for name in wanted if name not in present]
    columns = [
        f"{name}.{column}"
        for name, names in wanted.items()
        if name in present
        for column in names
        if column not in present[name]
    ]
    findings = []
    if facts["standby"]:
        findings.append(
            Finding("critical", "the server is a standby and takes no writes: give the address of the primary")
        )
    elif facts["read_only"]:
        findings.append(
            Finding(
                "critical",
                "the database takes no writes (default_transaction_read_only is on): find out who turned it on, a full"
                " disk does",
            )
        )
    if tables:
        findings.append(Finding("critical", f"missing tables: {', '.join(tables)}", "sql_script"))
    if columns:
        findings.append(Finding("critical", f"missing columns: {', '.join(columns)}", "sql_script"))
    return conclude(
        "database",
        findings,
        fine=f"PostgreSQL {facts['version']} answers, every table is there",
        value=len(tables) + len(columns),
        unit="missing",
        details={**facts, "missing_tables": tables, "missing_columns": columns},
    )


def _ask(dsn: str, tables: t.Iterable[str], schema: str, timeout: int) -> t.Dict[str, t.Any]:
    """``version``, ``latency_ms``, ``standby``, ``read_only``, and ``present``: the columns of each table that is
    there.
    """
    start = time.monotonic()
    connection = connect.connect(dsn, connect_timeout=timeout)
    try:
        connection.set_session(readonly=True)
        with connection.cursor() as cursor:
            cursor.execute("select set_config('statement_timeout', %s, true)", (f"{timeout * 1000}",))
            cursor.execute(
                "select pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on',"
                " current_setting('server_version')"
            )
            standby, read_only, version = cursor.fetchall()[0]
            # Not information_schema, which hides what the session's role may not use.
            cursor.execute(
                "select c.relname, coalesce(array_agg(a.attname::text) filter (where a.attname is not null), '{}')"
                " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
                " left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
                " where n.nspname = %s and c.relname = any(%s) and c.relkind in ('r', 'p', 'v', 'f') group by 1",
                (schema, list(tables)),
            )
            present = dict(cursor.fetchall())
    finally:
        connection.close()
    latency = round((time.monotonic() - start) * 1000, 1)
    return {"version": version, "latency_ms": latency, "standby": standby, "read_only": read_only, "present": present}


def measure(_context: HostContext, options: Options) -> Check:
    return check(options.database_dsn, required=options.database_tables)
