# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of Celery's broker."""

from __future__ import annotations

import pytest

from wheels_ops.services import broker


@pytest.mark.parametrize(
    ("url", "port"), [("redis://host/0", 6379), ("rediss://host:7000/0", 7000), ("unix:///run/redis.sock?db=1", 0)]
)
def test_the_port_of_a_url(url: str, port: int) -> None:
    assert broker.port(url) == port
