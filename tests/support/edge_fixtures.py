# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake edge endpoint, once in a session."""

from __future__ import annotations

import typing as t

import pytest

from tests.support import tts_backend


@pytest.fixture(scope="session")
def edge_server() -> t.Iterator[tts_backend.FakeEdge]:
    with tts_backend.fake_edge() as made:
        yield made


@pytest.fixture
def edge(edge_server: tts_backend.FakeEdge) -> tts_backend.FakeEdge:
    """The endpoint, well, with an empty record."""
    edge_server.mode("ok")
    (edge_server.directory / "seen.jsonl").unlink(missing_ok=True)
    return edge_server
