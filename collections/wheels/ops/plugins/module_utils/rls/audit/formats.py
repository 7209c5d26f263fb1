# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An audit as text, JSON, SARIF 2.1.0 (code scanning), JUnit XML (test reports), annotations of GitHub's workflows and
GitLab's code quality report."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from dataclasses import dataclass

from ..model.findings import KINDS, Finding
from ..model.roles import SUPABASE_ROLES
from .audits import Audit

_COMMAND = re.compile(r"\((?:SELECT|INSERT|UPDATE|DELETE|ALL) (?=policy \")")
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


@dataclass
class Report:
    """An audit with, for each finding's identity, the migration that introduced it; and the statements that failed to
    load.
    """

    audit: Audit
    introduced: t.Mapping[t.Tuple[str, ...], str]
    errors: t.Sequence[str]
    sentence: str

    def source(self, finding: Finding) -> str:
        return self.introduced.get(finding.identity, "")


def text(report: Report) -> str:
    """For people: one paragraph for each cause of recursion, then one for each other finding."""
    recursive = [finding for finding in report.audit.findings if finding.kind == "recursion"]
    causes: t.Dict[t.FrozenSet[str], t.List[Finding]] = {}
    for finding in recursive:
        causes.setdefault(_policies(cycle(finding.details["path"])), []).append(finding)
    lines: t.List[str] = []
    for findings in causes.values():
        told = min((cycle(finding.details["path"]) for finding in findings), key=_plainness)
        lines += _cause(report, told, findings)
    for finding in report.audit.findings:
        if finding.kind == "recursion":
            continue
        source = report.source(finding)
        lines.append(
            f"{finding.severity.upper():7} {finding.title}: {finding.object}"
            + (f"  [since {source}]" if source else "")
        )
        lines.append(f"        {finding.why}")
        lines += [f"        {line}" for line in finding.statement.splitlines()]
    lines += [f"could not load: {error}" for error in report.errors]
    return "\n".join([*lines, report.sentence]) + "\n"


def cycle(path: t.Sequence[str]) -> t.Tuple[str, ...]:
    """The part of a recursion's path that leads back to its own beginning: the cause that several accesses share."""
    if not path:
        return ("a rule",)
    starts = [number for number, step in enumerate(path[:-1]) if step.partition(" (")[0] == path[-1]]
    return tuple(path[starts[-1] :] if starts else path)


def _policies(steps: t.Sequence[str]) -> t.FrozenSet[str]:
    """What a circle goes through, wherever one enters it and for whatever command a policy is applied."""
    return frozenset(_COMMAND.sub("(", step).replace(", WITH CHECK)", ")") for step in steps[:-1] or steps)


def _plainness(steps: t.Sequence[str]) -> t.Tuple[int, t.Tuple[str, ...]]:
    """Reading is what people look at first."""
    return sum(" (" in step and "(SELECT " not in step for step in steps), tuple(steps)


def _cause(report: Report, steps: t.Sequence[str], findings: t.Sequence[Finding]) -> t.List[str]:
    tables: t.Dict[str, t.Set[str]] = {}
    roles: t.Set[str] = set()
    for finding in findings:
        commands = {command.partition("_")[0].replace("upsert", "insert") for command in finding.details["commands"]}
        tables.setdefault(finding.object, set()).update(commands)
        roles.update(finding.details["roles"])
    sources = sorted({source for source in map(report.source, findings) if source})
    lines = [
        f"{findings[0].severity.upper():7} {findings[0].title}: {' -> '.join(steps)}"
        + (f"  [since {', '.join(sources)}]" if sources else ""),
        f"        These fail with {findings[0].details['sqlstate']} as {named(roles)}:",
    ]
    lines += [f"          {table}: {', '.join(sorted(commands))}" for table, commands in sorted(tables.items())]
    return [*lines, f"        {findings[0].statement}"]


def named(roles: t.Collection[str], most: int = 4) -> str:
    """Roles for people: those of the API first, then ``most`` in all, then a number."""
    order = sorted(
        roles, key=lambda role: (SUPABASE_ROLES.index(role) if role in SUPABASE_ROLES else len(SUPABASE_ROLES), role)
    )
    rest = len(order) - most
    if rest <= 1:
        return ", ".join(order)
    return f"{', '.join(order[:most])} and {rest} others"


def as_json(report: Report) -> str:
    document = report.audit.as_dict()
    for entry, finding in zip(document["findings"], report.audit.findings):
        entry["introduced_by"] = report.source(finding)
    return (
        json.dumps({"msg": report.sentence, **document, "load_errors": list(report.errors)}, indent=1, default=str)
        + "\n"
    )


def sarif(report: Report) -> str:
    kinds = sorted({finding.kind for finding in report.audit.findings})
    results = []
    for finding in report.audit.findings:
        location: t.Dict[str, t.Any] = {
            "logicalLocations": [{"fullyQualifiedName": finding.object, "kind": "resource"}]
        }
        source = report.source(finding)
        if source:
            location["physicalLocation"] = {"artifactLocation": {"uri": source}, "region": {"startLine": 1}}
        statement = f" Fix: {finding.statement}" if finding.statement else ""
        results.append(
            {
                "ruleId": finding.kind,
                "level": _LEVELS[finding.severity],
                "message": {"text": f"{finding.object}: {finding.why}{statement}"},
                "locations": [location],
                "partialFingerprints": {"finding/v2": "|".join(finding.identity)},
            }
        )
    rules = [
        {
            "id": kind,
            "shortDescription": {"text": KINDS[kind][1]},
            "defaultConfiguration": {"level": _LEVELS[KINDS[kind][0]]},
        }
        for kind in kinds
    ]
    run = {"tool": {"driver": {"name": "wheels.ops rls", "rules": rules}}, "results": results}
    return (
        json.dumps(
            {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}, indent=1
        )
        + "\n"
    )


def junit(report: Report) -> str:
    """One test case for each finding; kinds without one pass.

    Findings of severity info pass as well, with their text.
    """
    # It brings half of urllib along, which no other format needs.
    from xml.sax.saxutils import escape, quoteattr

    cases = []
    failures = 0
    for finding in report.audit.findings:
        source = report.source(finding)
        name = finding.object + (f" (since {source})" if source else "")
        body = escape(f"{finding.why}\n{finding.statement}")
        if finding.severity == "info":
            inner = f"<system-out>{body}</system-out>"
        else:
            failures += 1
            inner = f"<failure type={quoteattr(finding.severity)} message={quoteattr(finding.title)}>{body}</failure>"
        cases.append(
            f"  <testcase classname={quoteattr('rls.' + finding.kind)} name={quoteattr(name)}>{inner}</testcase>"
        )
    for error in report.errors:
        cases.append(
            f'  <testcase classname="rls.load" name={quoteattr(error)}><error message="could not load"/></testcase>'
        )
    present = {finding.kind for finding in report.audit.findings}
    cases += [f'  <testcase classname="rls.{kind}" name="none"/>' for kind in KINDS if kind not in present]
    head = f'<testsuite name="wheels.ops rls" tests="{len(cases)}" failures="{failures}" errors="{len(report.errors)}">'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *cases, "</testsuite>"]) + "\n"


def github(report: Report) -> str:
    """Workflow commands that GitHub shows as annotations (docs.github.com, "Workflow commands for GitHub Actions")."""
    levels = {"error": "error", "warning": "warning", "info": "notice"}
    lines = []
    for finding in report.audit.findings:
        source = report.source(finding)
        place = f"file={_property(source)}," if source else ""
        title = _property(f"{finding.title}: {finding.object}")
        lines.append(f"::{levels[finding.severity]} {place}title={title}::{_data(finding.why)}")
    lines += [f"::error title=could not load::{_data(error)}" for error in report.errors]
    return "\n".join([*lines, report.sentence]) + "\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def gitlab(report: Report) -> str:
    """GitLab's code quality report: a list of issues, each with a fingerprint that stays the same between runs."""
    levels = {"error": "critical", "warning": "major", "info": "info"}
    issues = [
        {
            "description": f"{finding.title}: {finding.object}. {finding.why}",
            "check_name": finding.kind,
            "fingerprint": hashlib.sha256("|".join(finding.identity).encode()).hexdigest(),
            "severity": levels[finding.severity],
            "location": {"path": report.source(finding) or "database", "lines": {"begin": 1}},
        }
        for finding in report.audit.findings
    ]
    return json.dumps(issues, indent=1) + "\n"


WRITERS: t.Dict[str, t.Callable[[Report], str]] = {
    "text": text,
    "json": as_json,
    "sarif": sarif,
    "junit": junit,
    "github": github,
    "gitlab": gitlab,
}
