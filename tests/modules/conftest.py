# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of ``test_tts_engine*``."""

from __future__ import annotations

from tests.support.edge_fixtures import edge as edge
from tests.support.edge_fixtures import edge_server as edge_server
