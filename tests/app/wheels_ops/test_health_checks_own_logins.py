# SPDX-License-Identifier: GPL-3.0-or-later
"""An application whose own login is broken is not healthy from outside either, although every server answers us."""

from __future__ import annotations

import pytest

from tests.support import servers
from tests.support.backend_env import postgres_url
from tests.support.health_app import HEALTHY_SQL, health_app
from wheels_ops.checks import suite

QUICK = {"HEALTH_CHECK_INTERVAL": "0.5", "HEALTH_CHECK_TIMEOUT": "1", "MONITORING_INTERVAL": "0.5"}


@pytest.mark.parametrize("broken", [False, True])
def test_a_broken_login_of_the_application_is_critical(
    postgres: servers.Postgres, redis: servers.Redis, broken: bool
) -> None:
    dsn = postgres.database(supabase=True)
    postgres.psql(dsn, sql=HEALTHY_SQL)
    url = postgres_url(dsn)
    theirs = url.replace("postgres@", "nobody-here@") if broken else url
    assert (theirs != url) is broken
    with health_app(QUICK, DATABASE_URL=theirs, REDIS_URL=redis.url, ENVIRONMENT="production") as app:
        options = suite.Options(
            subjects=("database", "redis", "http"),
            base_url=f"http://127.0.0.1:{app.port}",
            http_paths=("/livez",),
            database_dsn=dsn,
            database_tables={},
            redis_url=redis.url,
        )
        found = {check["name"]: check for check in suite.run(options)["checks"]}
        answered = app.request("GET", "/api/v1/system/health").json()["checks"]["database:connection"][0]["status"]
    assert answered == ("fail" if broken else "pass"), "the witness"
    assert found["database"]["status"] == found["redis"]["status"] == "ok"
    application = found["http"]["details"]["application"]
    if broken:
        assert found["http"]["status"] == "critical" and application["http_status"] == 503
        assert (
            "database:connection is critical" in found["http"]["message"]
            and "check DATABASE_URL" in found["http"]["message"]
        )
    else:
        assert application["status"] == "ok", found["http"]["message"]
