# SPDX-License-Identifier: GPL-3.0-or-later
"""How a connection is asked for, and what is said when there is none."""

from __future__ import annotations

import pytest

from tests.support.waiting import free_port
from wheels_ops import postgres
from wheels_ops.results import OpsError


@pytest.mark.parametrize(
    ("dsn", "libpq"),
    [
        ("host=a dbname=b", "host=a dbname=b"),
        ("", ""),
        ("postgresql://u:p@h:1/d?sslmode=require", "postgresql://u:p@h:1/d?sslmode=require"),
        ("postgresql+asyncpg://u:p%40@h:1/d", "postgresql://u:p%40@h:1/d"),
        ("postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0", "postgresql://u@h/d?sslmode=require"),
        ("postgres+psycopg2://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
    ],
)
def test_the_url_of_the_backend_is_understood(dsn: str, libpq: str) -> None:
    assert postgres.libpq_dsn(dsn) == libpq


def test_another_database_is_refused() -> None:
    with pytest.raises(OpsError, match="mysql"):
        postgres.libpq_dsn("mysql+pymysql://u@h/d")


@pytest.mark.parametrize(
    ("dsn", "hint"),
    [
        ("host=127.0.0.1 port={port} user=u password=hunter2 dbname=d", "is the server running"),
        ("postgresql://u:hunter2@127.0.0.1:{port}/d", "is the server running"),
        ("postgresql+asyncpg://u:hunter2@127.0.0.1:{port}/d", "is the server running"),
        ("host=name.invalid password=hunter2", "name resolution"),
        ("garbage hunter2", "cannot be read"),
        ("postgresql://u:hunter2@[bad/d", "cannot be read"),
        ("host=/nonexistent password=hunter2", "no server socket"),
    ],
)
def test_no_connection_says_what_to_do_and_no_secret(dsn: str, hint: str) -> None:
    with pytest.raises(OpsError) as caught:
        postgres.connect(dsn.format(port=free_port()))
    assert hint in str(caught.value)
    assert "hunter2" not in str(caught.value) + repr(caught.value.details)
    assert "\n" not in str(caught.value)
