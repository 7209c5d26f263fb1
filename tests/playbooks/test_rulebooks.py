# SPDX-License-Identifier: GPL-3.0-or-later
"""Structure of the rulebooks for Event-Driven Ansible; ``test_recover.py`` runs the whole loop where it can."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.sandbox.binaries import REPOSITORY

COLLECTION = REPOSITORY / "collections/wheels/ops"
RULEBOOKS = sorted((COLLECTION / "extensions/eda/rulebooks").glob("*.yml"))
DOCUMENTATION = (REPOSITORY / "docs/event-driven.md").read_text()
DURATION = re.compile(r"^\d+ (seconds|minutes|hours)$")
#: Rulesets: what they must and may have.
RULESET = {"name", "hosts", "execution_strategy", "sources", "rules"}
RULE = {"name", "condition", "throttle", "action"}
#: What of an event may be a variable of a playbook, and the condition that makes it harmless text: no template, no
#: pattern of hosts, no option.
FROM_EVENT = {
    "{{ event.payload.commonLabels.host }}": (
        'event.payload.commonLabels.host is match("[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")'
    )
}


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
            (action,) = rule["action"]
            if action == "debug":
                assert "event" not in rule["action"]["debug"]["msg"], "what somebody sent would be printed"
                continue
            assert action == "run_playbook"
            assert set(rule) == RULE
            # A throttle by an attribute that the sender chooses freely would be none: the condition has it fixed, or
            # it is what the playbook takes as the one host that it touches.
            assert DURATION.match(rule["throttle"]["once_within"])
            for attribute in rule["throttle"]["group_by_attributes"]:
                fixed = re.search(rf'{re.escape(attribute)} == "\w+"', rule["condition"])
                assert fixed or FROM_EVENT[f"{{{{ {attribute} }}}}"] in rule["condition"], attribute
            playbook = rule["action"]["run_playbook"]
            collection, _dot, name = playbook["name"].rpartition(".")
            assert collection == "wheels.ops"
            assert (COLLECTION / f"playbooks/{name}.yml").is_file()
            # What an alert says would be templated by Ansible: it would be code.
            for text in strings(playbook):
                if "event" in text or "{{" in text:
                    assert FROM_EVENT[text] in rule["condition"], text
            assert [key for key, value in playbook["extra_vars"].items() if "event" in value] == [
                "wheels_ops_alert_host"
            ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("here", "PLAY [Recover]"),
        ("there", "The alert is about a host that is none of backend"),
        ("all", "The alert is about a host that is none of backend"),
        ("backend", "The alert is about a host that is none of backend"),
        ("he*", "The alert is about a host that is none of backend"),
    ],
)
def test_recover_keeps_to_the_host_of_the_alert(tmp_path: t.Any, name: str, words: str) -> None:
    """Of two hosts that cannot be reached it tries the one that is named; a group or a pattern is no host."""
    (tmp_path / "hosts.yml").write_text(
        "backend: {hosts: {here: {ansible_python_interpreter: /none}, other: {}},"
        " vars: {ansible_connection: local, ansible_shell_executable: /none}}"
    )
    status, output = _recover(tmp_path, "-e", f"wheels_ops_alert_host={name}")
    assert status != 0, output
    assert words in output, output
    assert "other" not in output.partition("PLAY [Recover]")[2], output
    assert ("PLAY [Recover]" in output) == (name == "here")


def test_a_group_is_no_host_of_an_alert_where_the_limit_leaves_out_localhost(tmp_path: Path) -> None:
    """The plays on localhost are skipped then, as under a rulebook whose hosts do not name it."""
    (tmp_path / "hosts.yml").write_text("backend: {hosts: {here: {ansible_connection: local}}}")
    status, output = _recover(tmp_path, "--limit", "all", "-e", "wheels_ops_alert_host=backend")
    assert status != 0, output
    assert "The alert is about a host that is none of the run" in output, output
    assert "Reach this host" not in output, output


def test_the_limit_of_a_rulebook_leaves_localhost_in() -> None:
    for path in RULEBOOKS:
        for ruleset in yaml.safe_load(path.read_text()):
            assert "localhost" in ruleset["hosts"].split(",")


def _recover(directory: Path, *words: str) -> t.Tuple[int, str]:
    """The status of ``recover`` with the inventory of a directory, and what it printed, with white space folded."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, "-i", str(directory / "hosts.yml"), "playbooks/recover.yml", *words],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_HOME": str(directory / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())
