# SPDX-License-Identifier: GPL-3.0-or-later
"""Structure of the rulebooks for Event-Driven Ansible; docs/event-driven.md says what was tried with
the real engine.
"""

from __future__ import annotations

import re
import typing as t

import pytest
import yaml

from tests.sandbox.binaries import REPOSITORY

COLLECTION = REPOSITORY / "collections/wheels/ops"
RULEBOOKS = sorted((COLLECTION / "extensions/eda/rulebooks").glob("*.yml"))
DOCUMENTATION = (REPOSITORY / "docs/event-driven.md").read_text()
DURATION = re.compile(r"^\d+ (seconds|minutes|hours)$")
#: Rulesets: what they must and may have.
RULESET, RULE = {"name", "hosts", "sources", "rules"}, {"name", "condition", "throttle", "action"}


def strings(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)
    else:
        yield str(value)


def test_there_are_rulebooks() -> None:
    assert [path.name for path in RULEBOOKS] == ["recover.yml"]


@pytest.mark.parametrize("path", RULEBOOKS, ids=lambda path: path.stem)
def test_a_rulebook_is_whole_and_harmless(path: t.Any) -> None:
    for ruleset in yaml.safe_load(path.read_text()):
        assert set(ruleset) == RULESET
        for source in ruleset["sources"]:
            (arguments,) = (value for key, value in source.items() if key != "name")
            # Who listens to everybody without a token lets everybody start playbooks.
            assert arguments["token"] == "{{ wheels_ops_eda_token }}"
            assert "default('127.0.0.1')" in arguments["host"]
            for variable in re.findall(r"wheels_ops_\w+", str(arguments)):
                assert f"`{variable}`" in DOCUMENTATION, "a variable that nobody is told of"
        assert len({rule["name"] for rule in ruleset["rules"]}) == len(ruleset["rules"])
        for rule in ruleset["rules"]:
            assert set(rule) == RULE
            # A throttle by an attribute that the sender chooses freely would be none: the condition has it fixed.
            assert DURATION.match(rule["throttle"]["once_within"])
            for attribute in rule["throttle"]["group_by_attributes"]:
                assert re.search(rf'{re.escape(attribute)} == "\w+"', rule["condition"]), attribute
            assert list(rule["action"]) == ["run_playbook"]
            action = rule["action"]["run_playbook"]
            name = action["name"].rpartition(".")
            assert name[0] == "wheels.ops"
            assert (COLLECTION / f"playbooks/{name[2]}.yml").is_file()
            # What an alert says would be templated by Ansible: it would be code.
            assert not [text for text in strings(action) if "event" in text or "{{" in text]
