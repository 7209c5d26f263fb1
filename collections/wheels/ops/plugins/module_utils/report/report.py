# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of a run: what was wrong, what was done, what is left; as text for a terminal and as one HTML page."""

from __future__ import annotations

import html
import json
import textwrap
import typing as t

from ..health.subjects import report_rows
from ..health.thresholds import worst

Health = t.Mapping[str, t.Any]

#: How a message of a check that was not made begins.
_NOT_MEASURED = "Not measured: "
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
            reason = message[len(_NOT_MEASURED) :] if message.startswith(_NOT_MEASURED) else message
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
    parts = []
    for check in checks:
        value = check["value"]
        if isinstance(value, float):
            value = f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
        parts.append(f"{value} {check['unit']}".strip() if value is not None else "no answer")
    return ", ".join(parts)


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


def remaining(after: Health) -> t.List[str]:
    """One line for everything that is not healthy now, with the remedy where one is known."""
    return [
        f"{check['name']}: {check['status']}: {check['message']}"
        + (f" Remedy: {check['remedy']}." if check.get("remedy") else "")
        for check in after.get("checks", [])
        if check["status"] not in ("ok", "skipped")
    ]


_STYLE = """
:root{color-scheme:light dark;--ok:#1a7f37;--warning:#9a6700;--critical:#c11c2d;--unknown:#7a3ea8;--line:#8884}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
.status{font-weight:600}.ok{color:var(--ok)}.warning{color:var(--warning)}.critical,.emergency{color:var(--critical)}.unknown{color:var(--unknown)}
pre{overflow:auto;background:#8881;padding:1rem}@media(prefers-color-scheme:dark){:root{--ok:#4ac26b;--warning:#d4a72c;--critical:#ff8182;--unknown:#c297ff}}
"""


def page(
    before: Health, after: Health, remedies: t.Mapping[str, str], *, title: str, facts: t.Mapping[str, str]
) -> str:
    """The whole report as one HTML page without any outside asset. Everything measured is escaped."""
    status = str(after.get("status", "unknown"))
    labels = {
        **facts,
        **{
            name.replace("_", " "): str(value)
            for name, value in (after.get("scores") or {}).items()
            if value is not None
        },
    }
    problems = [_element("li", line) for line in remaining(after)]
    missed = [_element("li", f"{', '.join(names)}: {reason}") for reason, names in not_measured(after).items()]
    missed += [_element("li", f"{name}: left out on purpose") for name in after.get("left_out") or []]
    incidents = [
        [
            _element("td", row["number"]),
            _element("th", row["incident"], scope="row"),
            _badge(row["before"]),
            _element("td", row["before_value"]),
            _element("td", row["done"]),
            _badge(row["after"]),
            _element("td", row["after_value"]),
        ]
        for row in rows(before, after, remedies)
    ]
    checks = [
        [
            _element("th", check["name"], scope="row"),
            _badge(check["status"]),
            _element("td", check["message"]),
            _element("td", f"{check['duration_ms']:.0f} ms"),
        ]
        for check in after.get("checks", [])
    ]
    everything = json.dumps({"before": before, "after": after}, indent=1, default=str)
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"{_element('title', title)}<style>{_STYLE}</style>{_element('h1', title)}",
        (
            f'<p>Now: <strong class="{html.escape(status)}">{html.escape(status)}</strong>.'
            f" {html.escape(summary(after))}</p>"
        ),
        f"<ul>{''.join(_element('li', f'{name}: {value}') for name, value in labels.items())}</ul>",
        _table(("#", "incident", "before", "measured", "what was done", "after", "measured"), incidents),
        f"<h2>What is left</h2><ul>{''.join(problems)}</ul>"
        if problems
        else "<p>Nothing that was measured is left to do.</p>",
        f"<h2>What was not measured</h2><ul>{''.join(missed)}</ul>" if missed else "",
        "<h2>Every check, now</h2>",
        _table(("check", "status", "message", "took"), checks),
        f"<details><summary>All that was measured</summary>{_element('pre', everything)}</details></html>\n",
    ]
    return "\n".join(parts)


def _element(tag: str, content: str, **attributes: str) -> str:
    words = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{words}>{html.escape(content)}</{tag}>"


def _badge(status: str) -> str:
    return f'<td class="status {html.escape(status)}">{html.escape(status)}</td>'


def _table(titles: t.Sequence[str], content: t.Sequence[t.Sequence[str]]) -> str:
    head = "".join(_element("th", title, scope="col") for title in titles)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in content)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
