# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Database: reachable, writable, and with every table and column that the backend uses."""

from __future__ import annotations

import time
import typing as t

from .. import postgres
from ..health import Check

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
    ),  # fmt: skip
    "user_wishlists": ("id", "user_id", "product_id", "product_name", "price", "category", "notes", "created_at"),
}


def check(dsn: str, *, required: t.Optional[t.Mapping[str, t.Sequence[str]]] = None, schema: str = "public", timeout: int = 10) -> Check:
    """Connects, asks one question, and compares the catalog with what is ``required``."""
    wanted = REQUIRED if required is None else required
    started = time.monotonic()
    connection = postgres.connect(dsn, connect_timeout=timeout)
    try:
        connection.set_session(readonly=True)
        with connection.cursor() as cursor:
            cursor.execute("select set_config('statement_timeout', %s, true)", (f"{timeout * 1000}",))
            cursor.execute("select pg_is_in_recovery(), current_setting('server_version')")
            recovering, version = cursor.fetchall()[0]
            # Not information_schema, which hides what the session's role may not use.
            cursor.execute(
                "select c.relname, array_agg(a.attname::text) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
                " join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
                " where n.nspname = %s and c.relname = any(%s) and c.relkind in ('r', 'p', 'v', 'f') group by 1",
                (schema, list(wanted)),
            )
            present = dict(cursor.fetchall())
        latency = (time.monotonic() - started) * 1000
    finally:
        connection.close()
    tables = [name for name in wanted if name not in present]
    columns = [f"{name}.{column}" for name, names in wanted.items() if name in present for column in names if column not in present[name]]
    missing = tables + columns
    problems = []
    if tables:
        problems.append(f"missing tables: {', '.join(tables)}")
    if columns:
        problems.append(f"missing columns: {', '.join(columns)}")
    if recovering:
        problems.append("the server is a standby and takes no writes")
    return Check(
        name="database",
        status="critical" if problems else "ok",
        value=len(missing),
        unit="missing",
        message=("; ".join(problems) or f"PostgreSQL {version} answers, every table is there") + ".",
        remedy="sql_script" if problems else "",
        details={"version": version, "latency_ms": round(latency, 1), "missing_tables": tables, "missing_columns": columns, "standby": recovering},
    )
