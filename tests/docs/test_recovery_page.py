# SPDX-License-Identifier: GPL-3.0-or-later
"""The blocks of docs/recovery.md are configurations that the product takes, and its lists are complete."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import yaml

from wheels_ops.health.subjects import NAMES
from wheels_ops.remedies import plan, policy
from wheels_ops.report import alerts
from wheels_ops.state import problems

PAGE = (Path(__file__).resolve().parents[2] / "docs/recovery.md").read_text()


def block(variable: str) -> t.Any:
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    return next(entry[variable] for entry in blocks if variable in entry)


def test_receivers_of_the_page_are_taken() -> None:
    filled = [
        {**entry, "url": entry.get("url", "").replace("{{ vault_slack_url }}", "https://hooks.example.com/T0")}
        if "url" in entry
        else entry
        for entry in block("wheels_ops_alerts")
    ]
    assert {receiver.type for receiver in alerts.parse(filled)} == set(alerts.TYPES)


def test_policy_of_the_page_is_taken() -> None:
    values = block("wheels_ops_recovery_policy")
    taken = policy.parse(values, policy.Policy(), remedies=plan.NAMES, subjects=NAMES)
    assert taken.of("memory_cleanup").cooldown == 3600
    assert set(values) == {*policy.RANGES, "remedies", "ask_person", "limits"}


def test_page_names_every_remedy_and_state() -> None:
    missing = [name for name in plan.NAMES if f"`{name}`" not in PAGE]
    states = [problems.SUSPECTED, problems.BEGUN, problems.TREATED, problems.ESCALATED, problems.ENDED]
    assert missing + [state for state in states if f"| {state} |" not in PAGE] == []
