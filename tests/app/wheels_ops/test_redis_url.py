# SPDX-License-Identifier: GPL-3.0-or-later
"""app/wheels_ops/redis_url.py: one answer for the cache, the health checks and the throttle."""

from __future__ import annotations

import types
import typing as t

import pytest

from tests.app.wheels_ops.conftest import Leaves


class Secret:
    def get_secret_value(self) -> str:
        return "redis://:hidden@settings:6379/0"

    def __str__(self) -> str:
        return "**********"


class Url:
    def __str__(self) -> str:
        return "redis://object:6379/2"


@pytest.mark.parametrize(
    ("setting", "variable", "url"),
    [
        ("redis://settings/0", "redis://environment/0", "redis://settings/0"),
        ("redis://settings/0", None, "redis://settings/0"),
        (None, "redis://environment/0", "redis://environment/0"),
        ("", " redis://environment/0 ", "redis://environment/0"),
        (Url(), None, "redis://object:6379/2"),
        (Secret(), None, "redis://:hidden@settings:6379/0"),
        (None, None, ""),
        (None, "", ""),
    ],
)
def test_configured(
    leaves: Leaves, monkeypatch: pytest.MonkeyPatch, setting: t.Any, variable: t.Optional[str], url: str
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    if variable is not None:
        monkeypatch.setenv("REDIS_URL", variable)
    monkeypatch.setattr(leaves.config, "settings", types.SimpleNamespace(REDIS_URL=setting), raising=False)
    assert leaves.redis_url.configured() == url
    assert leaves.redis_url.default_url() == (url or "redis://localhost:6379")


def test_configured_without_settings_that_can_be_read(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> t.Any:
        raise RuntimeError("redis://:the-password@host/0 is wrong")

    monkeypatch.setattr(leaves.config, "get_settings", broken, raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://environment/0")
    assert leaves.redis_url.configured() == "redis://environment/0"
    assert leaves.logged() == ["REDIS_URL is not read from the settings: RuntimeError"]
