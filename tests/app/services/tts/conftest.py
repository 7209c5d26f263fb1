# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched speech files in one release and the fake edge endpoint, each once in a session."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import tts_backend
from tests.support.edge_fixtures import edge as edge
from tests.support.edge_fixtures import edge_server as edge_server


@pytest.fixture(scope="session")
def tree() -> t.Iterator[tts_backend.Tree]:
    with tts_backend.tree(patience=4) as made:
        yield made
