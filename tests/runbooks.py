# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts at the head of each runbook in docs/runbooks, from where they stand once: the registry of subjects, the
docstrings of the checks, the recovery plan and the alert rules. ``make docs`` writes them; the rest is written by hand.
"""

from __future__ import annotations

import re
import textwrap
import typing as t
from pathlib import Path

import yaml

from tests.new_check import BEGIN, COLLECTION, END, HEADINGS, REPOSITORY, UNWRITTEN, facts_of, sentence_of
from wheels_ops.health.subjects import NAMES, REGISTRY, Subject
from wheels_ops.remedies import plan
from wheels_ops.report import runbooks

DIRECTORY = REPOSITORY / "docs/runbooks"
RULES = REPOSITORY / COLLECTION / "roles/monitoring/files/prometheus/wheels-ops.rules.yml"


def rules() -> t.Dict[str, t.Dict[str, t.Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def texts() -> t.Dict[Path, str]:
    """Every runbook as it must be. A page that does not exist is not made: a person begins it."""
    written = {}
    for name in (*runbooks.PAGES, "index"):
        path = DIRECTORY / f"{name}.md"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            head, begin, rest = text.partition(BEGIN)
            _old, end, tail = rest.partition(END)
            if not begin or not end:
                raise SystemExit(f"{path.relative_to(REPOSITORY)} must have the lines {BEGIN} and {END}.")
            written[path] = f"{head}{BEGIN}\n\n{facts(name)}\n\n{END}{tail}"
    return written


def facts(name: str) -> str:
    if name == "index":
        return _index()
    lines = _alert(name) if name in runbooks.ALERTS else _check(next(each for each in REGISTRY if each.name == name))
    return "\n".join(
        line
        for fact in lines
        for line in textwrap.wrap(
            f"- {fact}", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    )


def _check(subject: Subject) -> t.Iterator[str]:
    yield sentence_of(subject)
    yield from facts_of(subject, remedies=False)
    # In the order of the plan, with what carries each out.
    wanted = [each for each in plan.REMEDIES if set(each.modules) & set(subject.remedies)]
    if wanted:
        words = [
            f"`{each.name}` ("
            + ", ".join(
                f"[{module}](../../{COLLECTION}/plugins/modules/{module}.py)"
                for module in each.modules
                if module in subject.remedies
            )
            + ")"
            for each in wanted
        ]
        yield f"Remedies, in this order: {', '.join(words)}"
        after = list(dict.fromkeys(plan.next_step(each.name) for each in wanted))
        yield f"Where they do not help: {' '.join(filter(None, after))}"
    alerts = [f"[{name}]({name}.md)" for name, rule in rules().items() if "wheels_ops_check_severity" in rule["expr"]]
    yield f'Alerts: {", ".join(alerts)}, each with the label `check="{subject.name}"`'


def _alert(name: str) -> t.Iterator[str]:
    rule = rules().get(name)
    if rule is None:
        yield "Sent by: the recovery itself, not by a rule of Prometheus"
        return
    yield f"Rule: `{rule['expr']}`"
    yield f"Fires after: {rule['for']}" if rule.get("for") else "Fires after: at once"
    yield f"Severity: {rule['labels']['severity']}"
    yield f"Starts a recovery: {'yes' if rule['labels'].get('wheels_ops') == 'recover' else 'no'}"


def _index() -> str:
    titles = {subject.name: subject.title for subject in REGISTRY}
    lines = ["| Check | Alert rules and alerts |", "| --- | --- |"]
    checks = [f"[{titles[name]}]({name}.md)" for name in NAMES]
    alerts = [f"[{name}]({name}.md)" for name in runbooks.ALERTS]
    rows = max(len(checks), len(alerts))
    for number in range(rows):
        cells = [column[number] if number < len(column) else "" for column in (checks, alerts)]
        lines.append(f"| {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def unwritten() -> t.List[str]:
    """Names of pages that lack a heading or still have the words of the stub."""
    incomplete = []
    for name in runbooks.PAGES:
        path = DIRECTORY / f"{name}.md"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) != HEADINGS or UNWRITTEN in text:
            incomplete.append(name)
    return incomplete
