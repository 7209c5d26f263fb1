# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of a run: what was wrong, what was done, what is left, as text for a terminal. ``page.py`` has it
as one HTML page.
"""

from __future__ import annotations

import re
import textwrap
import typing as t

from ..core.units import quantity
from ..health.subjects import report_rows
from ..health.thresholds import worst

Health = t.Mapping[str, t.Any]

#: How a message of a check that was not made begins.
_NOT_MEASURED = re.compile(r"\ANot (?:measured|checked): ")
_COLOURS = {"ok": "32", "warning": "33", "unknown": "35", "critical": "31", "emergency": "31;1", "skipped": "2"}


def summary(health: Health) -> str:
    """The outcome of one look in one or two sentences: what fails, how many are healthy, and what was not measured,
    with the reasons.

    Only where everything that was asked for was measured is *everything* healthy. ``left_out`` are subjects that
    somebody chose not to have.
    """
    checks = health.get("checks", [])
    failing = [check["name"] for check in checks if check["status"] not in ("ok", "skipped")]
    healthy = sum(check["status"] == "ok" for check in checks)
    skipped = not_measured(health)
    left_out = health.get("left_out") or []
    counts = f"{healthy} healthy" if healthy or failing else "Nothing was measured"
    if healthy and not failing and not skipped:
        counts = f"Everything is healthy ({healthy} checks)"
    if skipped:
        reasons = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in skipped.items())
        counts += f", {sum(map(len, skipped.values()))} skipped: {reasons}"
    if left_out:
        counts += f"; {len(left_out)} left out on purpose: {', '.join(left_out)}"
    if not failing:
        return f"{counts}."
    return f"Not healthy: {', '.join(failing)}." + (f" {counts}." if skipped or left_out else "")


def not_measured(health: Health) -> t.Dict[str, t.List[str]]:
    """reason -> the checks that were not made for it. The reason is the first sentence of their message."""
    reasons: t.Dict[str, t.List[str]] = {}
    for check in health.get("checks", []):
        if check["status"] == "skipped":
            message = check["message"]
            reason = _NOT_MEASURED.sub("", message, count=1)
            reasons.setdefault(reason.partition(". ")[0].rstrip(".") or "no reason is given", []).append(check["name"])
    return reasons


def rows(before: Health, after: Health, remedies: t.Mapping[str, str]) -> t.List[t.Dict[str, str]]:
    """One row an incident: status and measured value before, what was done, status and measured value after.

    ``remedies`` says in words what was done, by check name. A subject that both runs left out has no row; one that was
    asked for and that a run did not measure is ``skipped`` there. A check that the registry does not have (another
    release measured it) has a row of its own name.
    """
    table = []
    registered = report_rows()
    subjects = dict.fromkeys(check["name"] for health in (before, after) for check in health.get("checks", []))
    for _number, _title, names in registered:
        for name in names:
            subjects.pop(name, None)
    for number, title, names in [*registered, *(("", name, (name,)) for name in subjects)]:
        first, last = (_pick(health, names) for health in (before, after))
        if not first and not last:
            continue
        table.append(
            {
                "number": number,
                "incident": title,
                "before": _status(first),
                "before_value": _value(first),
                "done": (
                    "; ".join(dict.fromkeys(remedies[name] for name in names if remedies.get(name)))
                    or ("-" if _status(first) in ("ok", "skipped") else "nothing")
                ),
                "after": _status(last),
                "after_value": _value(last),
            }
        )
    return table


def _pick(health: Health, names: t.Sequence[str]) -> t.List[t.Mapping[str, t.Any]]:
    """The checks of an incident that were made, or those that were not where none was."""
    checks = [check for check in health.get("checks", []) if check["name"] in names]
    return [check for check in checks if check["status"] != "skipped"] or checks


def _status(checks: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    return worst(check["status"] for check in checks) if checks else "-"


def _value(checks: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    if all(check["status"] == "skipped" for check in checks):
        return "not measured" if checks else ""
    return ", ".join(quantity(check["value"], check["unit"]) for check in checks)


def text(before: Health, after: Health, remedies: t.Mapping[str, str], *, colour: bool = False, width: int = 34) -> str:
    """The table for a terminal."""
    columns = (
        ("number", "#", 1),
        ("incident", "incident", 17),
        ("before", "before", 9),
        ("before_value", "measured", 24),
        ("done", "what was done", width),
        ("after", "after", 9),
        ("after_value", "measured", 24),
    )
    lines = [
        "  ".join(title.ljust(size) for _key, title, size in columns).rstrip(),
        "  ".join("-" * size for _key, _title, size in columns),
    ]
    for row in rows(before, after, remedies):
        cells = [textwrap.wrap(row[key], size) or [""] for key, _title, size in columns]
        for number in range(max(len(cell) for cell in cells)):
            parts = []
            for (key, _title, size), cell in zip(columns, cells):
                part = (cell[number] if number < len(cell) else "").ljust(size)
                if colour and key in ("before", "after") and part.strip():
                    part = f"\033[{_COLOURS.get(part.strip(), '0')}m{part}\033[0m"
                parts.append(part)
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def listing(health: Health) -> str:
    """One health result for a terminal: a line a check."""
    return "\n".join(
        f"{check['status']:9}  {check['name']:10}  {check['message']}" for check in health.get("checks", [])
    )


def _sentence(text: str) -> str:
    return text if text[-1:] in (".", "?", "!") else f"{text}."


def remaining(after: Health) -> t.List[str]:
    """One line for everything that is not healthy now, with the remedy where one is known."""
    return [
        f"{check['name']}: {check['status']}: {_sentence(str(check['message']))}"
        + (f" Remedy: {check['remedy']}." if check.get("remedy") else "")
        for check in after.get("checks", [])
        if check["status"] not in ("ok", "skipped")
    ]
