# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of a run: what was wrong, what was done, what is left; as text for a terminal and as one HTML page."""

from __future__ import annotations

import html
import json
import textwrap
import typing as t

from .thresholds import STATUSES, worst

Health = t.Mapping[str, t.Any]

#: The incidents of the report, by the check that measures each, in the report's order.
INCIDENTS: t.Tuple[t.Tuple[str, str, t.Tuple[str, ...]], ...] = (
    ("1", "Memory", ("memory",)),
    ("2", "Text to speech", ("tts",)),
    ("3", "Database", ("database", "rls")),
    ("4", "WebSocket", ("websocket",)),
    ("5", "CORS", ("cors",)),
    ("6", "CPU, slow answers", ("cpu",)),
    ("7", "Disk", ("disk",)),
    ("8", "Cache", ("redis",)),
    ("", "HTTP", ("http",)),
    ("", "Background work", ("celery",)),
    ("", "Services", ("services",)),
)
_COLOURS = {"ok": "32", "warning": "33", "unknown": "35", "critical": "31", "emergency": "31;1", "skipped": "2"}


def rows(before: Health, after: Health, done: t.Mapping[str, str]) -> t.List[t.Dict[str, str]]:
    """One row an incident: status and measured value before, what was done, status and measured value after.

    ``done`` says in words what was done, by check name. A subject that neither run measured has no row.
    """
    table = []
    for number, title, names in INCIDENTS:
        first, last = (_pick(health, names) for health in (before, after))
        if not first and not last:
            continue
        table.append(
            {
                "number": number,
                "incident": title,
                "before": _status(first),
                "before_value": _value(first),
                "done": "; ".join(dict.fromkeys(done[name] for name in names if done.get(name))) or ("-" if _status(first) == "ok" else "nothing"),
                "after": _status(last),
                "after_value": _value(last),
            }
        )
    return table


def _pick(health: Health, names: t.Sequence[str]) -> t.List[t.Mapping[str, t.Any]]:
    return [check for check in health.get("checks", []) if check["name"] in names and check["status"] != "skipped"]


def _status(checks: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    return worst(check["status"] for check in checks) if checks else "-"


def _value(checks: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    shown = []
    for check in checks:
        value = check["value"]
        if isinstance(value, float):
            value = f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
        shown.append(f"{value} {check['unit']}".strip() if value is not None else "no answer")
    return ", ".join(shown)


def text(before: Health, after: Health, done: t.Mapping[str, str], *, colour: bool = False, width: int = 34) -> str:
    """The table for a terminal."""
    columns = (("number", "#", 1), ("incident", "incident", 17), ("before", "before", 9), ("before_value", "measured", 24), ("done", "what was done", width),
               ("after", "after", 9), ("after_value", "measured", 24))  # fmt: skip
    lines = ["  ".join(title.ljust(size) for _key, title, size in columns).rstrip(), "  ".join("-" * size for _key, _title, size in columns)]
    for row in rows(before, after, done):
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
    return "\n".join(f"{check['status']:9}  {check['name']:10}  {check['message']}" for check in health.get("checks", []))


def prometheus(health: Health, *, host: str = "") -> str:
    """One health result in Prometheus' text format, for the textfile collector of node_exporter.

    ``wheels_ops_check_severity`` is 0 for ok, 1 warning, 2 unknown, 3 critical, 4 emergency; skipped checks are left out.
    """

    def label(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    severity, value, seconds = [], [], []
    for check in health.get("checks", []):
        if check["status"] == "skipped":
            continue
        labels = f'check="{label(check["name"])}"' + (f',host="{label(host)}"' if host else "")
        severity.append(f"wheels_ops_check_severity{{{labels}}} {STATUSES.index(check['status']) - 1}")
        seconds.append(f"wheels_ops_check_duration_seconds{{{labels}}} {check['duration_ms'] / 1000:g}")
        if isinstance(check["value"], (int, float)) and not isinstance(check["value"], bool):
            value.append(f'wheels_ops_check_value{{{labels},unit="{label(check["unit"])}"}} {check["value"]:g}')
    lines = ["# HELP wheels_ops_check_severity 0 ok, 1 warning, 2 unknown, 3 critical, 4 emergency.", "# TYPE wheels_ops_check_severity gauge", *severity]
    lines += ["# HELP wheels_ops_check_value What the check measured.", "# TYPE wheels_ops_check_value gauge", *value]
    lines += ["# HELP wheels_ops_check_duration_seconds How long the check took.", "# TYPE wheels_ops_check_duration_seconds gauge", *seconds]
    return "\n".join(lines) + "\n"


def remaining(after: Health) -> t.List[str]:
    """One line for everything that is not healthy now, with the remedy where one is known."""
    return [
        f"{check['name']}: {check['status']}: {check['message']}" + (f" Remedy: {check['remedy']}." if check.get("remedy") else "")
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


def page(before: Health, after: Health, done: t.Mapping[str, str], *, title: str, facts: t.Mapping[str, str]) -> str:
    """The whole report as one HTML page without any outside asset. Everything measured is escaped."""
    status = str(after.get("status", "unknown"))
    named = {**facts, **{name.replace("_", " "): str(value) for name, value in (after.get("scores") or {}).items() if value is not None}}
    left = [_element("li", line) for line in remaining(after)]
    incidents = [
        [
            _element("td", row["number"]), _element("th", row["incident"], scope="row"), _badge(row["before"]), _element("td", row["before_value"]),
            _element("td", row["done"]), _badge(row["after"]), _element("td", row["after_value"]),
        ]
        for row in rows(before, after, done)
    ]  # fmt: skip
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
        f'<p>Now: <strong class="{html.escape(status)}">{html.escape(status)}</strong></p>',
        f"<ul>{''.join(_element('li', f'{name}: {value}') for name, value in named.items())}</ul>",
        _table(("#", "incident", "before", "measured", "what was done", "after", "measured"), incidents),
        f"<h2>What is left</h2><ul>{''.join(left)}</ul>" if left else "<p>Nothing is left to do.</p>",
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
