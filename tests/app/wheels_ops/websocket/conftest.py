# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend of the tests of sessions and of the long poll."""

from __future__ import annotations

import typing as t

import pytest

from tests.support.websocket_backend import SocketBackend, socket_backend


@pytest.fixture(scope="module")
def backend() -> t.Iterator[SocketBackend]:
    limits: t.Dict[str, t.Any] = {
        "WEBSOCKET_MAX_PER_USER": 0,
        "WEBSOCKET_MAX_PER_ADDRESS": 0,
        "WEBSOCKET_ACCEPT_RATE": 0,
    }
    with socket_backend(WEBSOCKET_HEARTBEAT_INTERVAL=0.5, WEBSOCKET_CONNECTION_TIMEOUT=5, **limits) as server:
        yield server
