# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that every test may use. Servers are real and start once in a session."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import servers


@pytest.fixture(scope="session")
def postgres() -> t.Iterator[servers.Postgres]:
    """The machine's PostgreSQL (Debian 12: 15). Take a database of your own with ``postgres.database()``."""
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def newest_postgres() -> t.Iterator[servers.Postgres]:
    """The newest PostgreSQL that wheels offer (no pgcrypto, no uuid-ossp)."""
    with servers.postgres(newest=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> t.Iterator[servers.Redis]:
    with servers.redis() as server:
        yield server


@pytest.fixture
def redis(redis_server: servers.Redis) -> servers.Redis:
    """The session's Redis, emptied."""
    redis_server.cli("FLUSHALL")
    return redis_server
