# SPDX-License-Identifier: GPL-3.0-or-later
"""app/wheels_ops/env.py: what a variable must be, what stands in for it, and what the log says."""

from __future__ import annotations

import math
import re
import types
import typing as t

import pytest

from tests.app.wheels_ops.conftest import Leaves
from tests.support.collection import COLLECTION


@pytest.mark.parametrize(
    ("text", "number", "report"),
    [
        (None, 20.0, ""),
        ("", 20.0, ""),
        ("  ", 20.0, ""),
        ("7.5", 7.5, ""),
        (" 600 ", 600.0, ""),
        ("1", 1.0, ""),
        ("0.9", 20.0, "must be a number, between 1 and 600, got '0.9'. Using 20."),
        ("601", 20.0, "got '601'"),
        ("nan", 20.0, "got 'nan'"),
        ("inf", 20.0, "got 'inf'"),
        ("-5", 20.0, "got '-5'"),
        ("twenty", 20.0, "got 'twenty'"),
        ("1_0", 10.0, ""),
        ("9" * 400, 20.0, "got '999"),
    ],
)
def test_number(
    leaves: Leaves, monkeypatch: pytest.MonkeyPatch, text: t.Optional[str], number: float, report: str
) -> None:
    monkeypatch.delenv("A_LIMIT", raising=False)
    if text is not None:
        monkeypatch.setenv("A_LIMIT", text)
    assert [leaves.env.number("A_LIMIT", 20.0, 1, 600) for _ in range(3)] == [number] * 3
    lines = leaves.logged()
    assert len(lines) == bool(report), "a wrong value is reported once"
    assert all(line.startswith("A_LIMIT ") and report in line and len(line) < 160 for line in lines)


def test_number_without_an_upper_bound_is_finite(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_LIMIT", "1e400")
    assert math.isfinite(leaves.env.number("A_LIMIT", 3))
    assert leaves.logged() == ["A_LIMIT must be a number, at least 0, got '1e400'. Using 3."]


def test_integer_takes_no_fraction(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SIZE", "64.0")
    assert leaves.env.integer("A_SIZE", 400) == 64
    monkeypatch.setenv("A_SIZE", "64.5")
    assert leaves.env.integer("A_SIZE", 400) == 400
    assert leaves.logged() == ["A_SIZE must be a whole number, at least 0, got '64.5'. Using 400."]


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize(
    ("text", "flag"),
    [
        (None, None),
        ("", None),
        *((word, True) for word in ("1", "true", "Yes", " ON ")),
        *((w, False) for w in ("0", "FALSE", "no", "off")),
        ("perhaps", None),
        ("2", None),
    ],
)
def test_flag(
    leaves: Leaves, monkeypatch: pytest.MonkeyPatch, text: t.Optional[str], flag: t.Optional[bool], default: bool
) -> None:
    monkeypatch.delenv("A_SWITCH", raising=False)
    if text is not None:
        monkeypatch.setenv("A_SWITCH", text)
    assert leaves.env.flag("A_SWITCH", default) is (default if flag is None else flag)
    wrong = [f"A_SWITCH must be true or false, got '{text}'. Using {str(default).lower()}."]
    assert leaves.logged() == (wrong if text in ("perhaps", "2") else [])


def test_names_and_paths(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_NAMES", raising=False)
    assert leaves.env.names("SOME_NAMES", ("email", "default")) == ["email", "default"]
    monkeypatch.setenv("SOME_NAMES", " one,, two ,")
    assert leaves.env.names("SOME_NAMES", ("email",)) == ["one", "two"]
    monkeypatch.setenv("SOME_NAMES", "")
    assert leaves.env.names("SOME_NAMES", ("email",)) == [], "set to nothing: no entries"
    monkeypatch.setenv("SOME_PATHS", "/var/log:/srv/a, b:")
    assert leaves.env.paths("SOME_PATHS", ["/"]) == ["/var/log", "/srv/a, b"]


def test_settings_are_asked_where_the_environment_is_silent(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_LIMIT", raising=False)
    settings = types.SimpleNamespace(A_LIMIT=7, A_SWITCH=False, A_TEXT="edge")
    monkeypatch.setattr(leaves.config, "settings", settings, raising=False)
    assert leaves.env.number("A_LIMIT", 20, settings=True) == 7 and leaves.env.number("A_LIMIT", 20) == 20
    assert leaves.env.flag("A_SWITCH", True, settings=True) is False
    assert leaves.env.text("A_TEXT", settings=True) == "edge" and leaves.env.text("A_TEXT", "none") == "none"
    monkeypatch.setenv("A_LIMIT", "9")
    assert leaves.env.number("A_LIMIT", 20, settings=True) == 9
    monkeypatch.setattr(leaves.config, "get_settings", lambda: types.SimpleNamespace(A_TEXT="newer"), raising=False)
    assert leaves.env.text("A_TEXT", settings=True) == "newer"


def test_settings_that_cannot_be_read_leave_the_default(leaves: Leaves, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> t.Any:
        raise ValueError("SECRET_KEY=the-secret is too short")

    monkeypatch.delenv("A_LIMIT", raising=False)
    monkeypatch.setattr(leaves.config, "get_settings", broken, raising=False)
    assert [leaves.env.number("A_LIMIT", 20, settings=True) for _ in range(2)] == [20, 20]
    assert leaves.logged() == ["A_LIMIT cannot be read from the settings: ValueError."]


def test_no_other_file_of_the_package_reads_numbers_or_lists() -> None:
    """``float(os.environ...)``, ``int(os.environ...)`` and ``os.environ....split`` have one home."""
    reading = re.compile(r"(float|int)\(\s*os\.environ|os\.environ\.get\([^()]*\)\s*\.(split|strip\(\)\.lower)")
    readers = [
        path.name
        for path in (COLLECTION / "roles/backend_patches/files/app/wheels_ops").rglob("*.py")
        if reading.search(path.read_text())
    ]
    assert readers == []
