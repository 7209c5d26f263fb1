# SPDX-License-Identifier: GPL-3.0-or-later
"""The emergency procedure for the database: bounded retries, the replica, the restart request, and back again."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from tests.support import servers
from tests.support.backend_env import postgres_url, running_backend
from tests.support.health_app import HEALTHY_SQL, REPORT_FILES, TOKEN, Relay, health_app
from tests.support.waiting import wait_until

QUICK = {"HEALTH_CHECK_INTERVAL": "0.3", "HEALTH_CHECK_TIMEOUT": "0.5", "MONITORING_INTERVAL": "0.5"}


def requests_of(state: Path) -> t.List[str]:
    return sorted(json.loads(path.read_text())["kind"] for path in (state / "requests").glob("*.json"))


def test_reads_go_to_the_replica_and_come_back(tmp_path: Path, postgres: servers.Postgres) -> None:
    primary, replica = postgres.database(supabase=True), postgres.database(supabase=True)
    for dsn in (primary, replica):
        postgres.psql(dsn, sql=HEALTHY_SQL)
    relay = Relay(postgres.port)
    try:
        url = postgres_url(primary).replace(f":{postgres.port}/", f":{relay.port}/")
        with health_app(
            QUICK,
            state=tmp_path,
            DATABASE_URL=url,
            DATABASE_REPLICA_URL=postgres_url(replica),
            DATABASE_RESTART_AFTER="2",
        ) as app:
            assert app.check("database:connection") == "pass"
            relay.refuse()
            wait_until(lambda: app.health()["sections"]["database"]["state"] == "read_only", timeout=30)
            document = app.health()
            assert document["checks"]["database:connection"][0]["status"] == "warn"
            assert document["overall_status"] == "critical" and "database:alert" in document["checks"], (
                "administrators are told at once"
            )
            assert app.request("GET", "/readyz").status == 200, "reads work: traffic may come"
            assert document["sections"]["database"]["attempts"] >= 4
            wait_until(
                lambda: requests_of(tmp_path) == ["alert", "restart"],
                timeout=30,
                what="one alert and one restart request",
            )
            relay.open()
            wait_until(lambda: app.health()["sections"]["database"]["state"] == "ok", timeout=30)
            wait_until(lambda: app.health()["overall_status"] == "healthy", timeout=30)
            assert requests_of(tmp_path) == ["alert", "restart"]
            assert "-> read_only" in app.logged() and "The database answers again" in app.logged()
    finally:
        relay.close()


def test_the_backends_own_pool_follows(postgres: servers.Postgres, redis_server: servers.Redis) -> None:
    """In the backend: profile reads work from the replica while the primary is away, and go back to it."""
    primary = postgres.database(supabase=True)
    relay = Relay(postgres.port)
    try:
        url = postgres_url(primary).replace(f":{postgres.port}/", f":{relay.port}/")
        with running_backend(
            "incident",
            primary,
            redis_server.url,
            patched=(*REPORT_FILES, "wheels_ops"),
            install_block=True,
            WHEELS_OPS_TOKEN=TOKEN,
            DATABASE_URL=url,
            DATABASE_REPLICA_URL=postgres_url(primary),
            HEALTH_CHECK_INTERVAL="0.3",
            HEALTH_CHECK_TIMEOUT="0.5",
        ) as backend:

            def state() -> str:
                found = backend.request("GET", "/api/v1/system/health", headers={"X-Ops-Token": TOKEN}).json()
                return str(found["sections"].get("database", {}).get("state"))

            def database_up() -> bool:
                return bool(backend.request("GET", "/health/detailed", timeout=40).status == 200)

            wait_until(lambda: state() == "ok", timeout=30)
            assert database_up()
            relay.refuse()
            wait_until(lambda: state() == "read_only", timeout=30)
            wait_until(database_up, timeout=40)
            relay.open()
            wait_until(lambda: state() == "ok", timeout=30)
            wait_until(database_up, timeout=40)
    finally:
        relay.close()


def test_an_address_with_parameters_of_other_drivers(tmp_path: Path, postgres: servers.Postgres) -> None:
    """As SQLAlchemy, libpq and poolers write it: asyncpg would hand each of these to the server, which refuses it."""
    dsn = postgres.database(supabase=True)
    postgres.psql(dsn, sql=HEALTHY_SQL)
    url = postgres_url(dsn).replace("postgresql://", "postgresql+asyncpg://")
    query = "ssl=prefer&prepared_statement_cache_size=0&pgbouncer=true&channel_binding=prefer&connect_timeout=5&application_name=pam"
    with health_app(QUICK, state=tmp_path, DATABASE_URL=f"{url}?{query}") as app:
        assert app.check("database:connection") == "pass"
        names = postgres.psql(dsn, sql="select application_name from pg_stat_activity where application_name = 'pam'")
        assert "pam" in str(names)


def test_the_primary_is_found_again_without_the_retry_library(tmp_path: Path, postgres: servers.Postgres) -> None:
    dsn = postgres.database(supabase=True)
    postgres.psql(dsn, sql=HEALTHY_SQL)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "tenacity.py").write_text("raise ImportError('not here')\n")
    relay = Relay(postgres.port)
    try:
        url = postgres_url(dsn).replace(f":{postgres.port}/", f":{relay.port}/")
        with health_app(QUICK, state=tmp_path, PYTHONPATH=str(hidden), DATABASE_URL=url) as app:
            relay.refuse()
            wait_until(lambda: app.check("database:connection") == "fail", timeout=30)
            wait_until(lambda: app.health()["sections"]["database"]["attempts"] >= 2, timeout=30)
            relay.open()
            wait_until(lambda: app.check("database:connection") == "pass", timeout=30)
    finally:
        relay.close()
