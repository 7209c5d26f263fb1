# SPDX-License-Identifier: GPL-3.0-or-later
"""An audit as text, JSON, SARIF and JUnit, read back by parsers that are not ours."""

from __future__ import annotations

import json
import typing as t
import xml.etree.ElementTree as ElementTree

import pytest

from wheels_ops.rls.audit import formats
from wheels_ops.rls.model.findings import KINDS, Finding

#: What breaks markup, wherever a user can put it: a policy's name and its expression.
ODD = "trips <&> \"odd\" 'name'"
PATH = {"path": [f"{ODD} (SELECT)", ODD], "commands": ["select"], "roles": ["anon"], "sqlstate": "42P17"}
FINDINGS = [
    Finding("recursion", ODD, "it says 'a < b' & \"c\"", "DROP POLICY x;\nCREATE POLICY x;", details=PATH),
    Finding("unwrapped_auth", "public.a", "slow"),
    Finding("nested_wraps", "public.b", "wrapped twice"),
]


class Audited:
    """As much of an audit as the formats ask for."""

    findings: t.ClassVar = FINDINGS

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {"findings": [finding.as_dict() for finding in self.findings], "summary": {}}


@pytest.fixture
def report() -> formats.Report:
    introduced = {FINDINGS[0].identity: "migrations/0002_odd.sql"}
    return formats.Report(t.cast("t.Any", Audited()), introduced, ["0003.sql: syntax <error>"], "3 findings.")


def test_text_has_every_line(report: formats.Report) -> None:
    lines = formats.text(report).splitlines()
    assert lines[0].startswith("ERROR   Infinite recursion in a policy: ") and ODD in lines[0]
    assert lines[0].endswith("[since migrations/0002_odd.sql]")
    assert f"          {ODD}: select" in lines and any("CREATE POLICY x;" in line for line in lines)
    assert any(line.startswith("WARNING") and line.endswith(": public.a") for line in lines)
    assert lines[-2:] == ["could not load: 0003.sql: syntax <error>", "3 findings."]


def test_json_is_complete(report: formats.Report) -> None:
    read = json.loads(formats.as_json(report))
    assert [entry["object"] for entry in read["findings"]] == [ODD, "public.a", "public.b"]
    assert [entry["introduced_by"] for entry in read["findings"]] == ["migrations/0002_odd.sql", "", ""]
    assert (read["msg"], read["load_errors"]) == ("3 findings.", ["0003.sql: syntax <error>"])


def test_sarif_names_rule_level_and_place(report: formats.Report) -> None:
    """Every result's rule is declared, as readers of SARIF ask for."""
    read = json.loads(formats.sarif(report))
    (run,) = read["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert read["version"] == "2.1.0" and {result["ruleId"] for result in run["results"]} == rules
    assert [result["level"] for result in run["results"]] == ["error", "warning", "note"]
    (location,) = run["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "migrations/0002_odd.sql"
    assert location["logicalLocations"][0]["fullyQualifiedName"] == ODD
    prints = [result["partialFingerprints"]["finding/v2"] for result in run["results"]]
    assert len(set(prints)) == len(prints)


def test_junit_counts_what_it_holds(report: formats.Report) -> None:
    """The numbers in its head are those of its cases; an info passes; kinds without a finding pass."""
    suite = ElementTree.fromstring(formats.junit(report))
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == len(KINDS) + 1
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == 2
    assert int(suite.attrib["errors"]) == len(suite.findall("testcase/error")) == 1
    (failure,) = [case for case in cases if case.attrib["classname"] == "rls.recursion"]
    assert failure.attrib["name"] == f"{ODD} (since migrations/0002_odd.sql)"
    assert (failure[0].text or "").startswith("it says 'a < b' & \"c\"")


@pytest.mark.parametrize("name", sorted(formats.WRITERS))
def test_writers_end_with_one_line_break(report: formats.Report, name: str) -> None:
    written = formats.WRITERS[name](report)
    assert written.endswith("\n") and not written.endswith("\n\n")


def test_one_cause_is_one_paragraph() -> None:
    """The same circle entered elsewhere, or met by another command, is no other cause; one through a third is."""

    def entered(path: t.List[str], table: str, command: str) -> Finding:
        details = {"path": path, "commands": [command], "roles": ["anon"], "sqlstate": "42P17"}
        return Finding("recursion", table, "", "-- repair", details=details)

    trips, parts = 'trips ({} policy "t")', 'parts ({} policy "p")'
    audited = Audited()
    audited.findings = [  # type: ignore[misc] # of the instance, not of the class
        entered([trips.format("SELECT"), parts.format("SELECT"), "trips"], "public.trips", "select"),
        entered([parts.format("SELECT"), trips.format("SELECT"), "parts"], "public.parts", "select"),
        entered([parts.format("UPDATE"), trips.format("SELECT"), "parts"], "public.parts", "update"),
        entered(['notes (SELECT policy "n")', parts.format("SELECT"), "notes"], "public.notes", "select"),
    ]
    shown = formats.text(formats.Report(t.cast("t.Any", audited), {}, [], "4 findings."))
    assert shown.count("Infinite recursion") == 2
    assert "          public.parts: select, update\n          public.trips: select\n" in shown
    assert "UPDATE policy" not in shown
