# SPDX-License-Identifier: GPL-3.0-or-later
"""There is a runbook for each check and each alert, each is complete, and its facts are those of today."""

from __future__ import annotations

from tests import runbooks as pages
from wheels_ops.health.subjects import NAMES
from wheels_ops.report import runbooks


def test_each_check_and_each_alert_has_its_runbook() -> None:
    """The set is compared with the registry and the rules in both directions."""
    assert {path.stem for path in pages.DIRECTORY.glob("*.md")} == {*NAMES, *pages.rules(), "WheelsOpsProblem", "index"}
    assert set(runbooks.PAGES) == {*NAMES, *pages.rules(), "WheelsOpsProblem"}


def test_runbooks_are_complete() -> None:
    assert pages.unwritten() == []


def test_facts_are_those_of_today() -> None:
    stale = [path.name for path, text in pages.texts().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run make docs"
