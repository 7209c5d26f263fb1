# SPDX-License-Identifier: GPL-3.0-or-later
"""Both servers, one after the other."""

from __future__ import annotations

import pytest

from tests.support import servers


@pytest.fixture(params=["postgres", "newest_postgres"])
def server(request: pytest.FixtureRequest) -> servers.Postgres:
    """The machine's PostgreSQL, then the newest."""
    found: servers.Postgres = request.getfixturevalue(request.param)
    return found
