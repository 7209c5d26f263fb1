# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of a run as one HTML page: no script, nothing from outside, readable on a phone, in the dark, on paper.

In the order in which a person on call asks: which host and when, what is wrong and since when, what to do about it,
what was done, every check, and the last day.
"""

from __future__ import annotations

import html
import json
import re
import time
import typing as t
from dataclasses import dataclass

from ..core.units import quantity
from ..health.subjects import REGISTRY
from ..health.thresholds import STATUSES
from ..state.history import HistoryRecord
from . import report, runbooks
from .report import Health

_TITLES = {subject.name: subject.title for subject in REGISTRY}
_SCORES = ("performance", "stability", "user_experience")
#: The most serious first; what was not measured before what is healthy.
_ORDER = {status: number for number, status in enumerate(reversed(STATUSES))}
#: The chart: its width in units of its own, the height of a row, and the time it shows.
_WIDTH, _ROW, _DAY = 960, 18, 86_400.0
_STYLE = """
:root{color-scheme:light dark;--ok:#1a7f37;--warning:#9a6700;--critical:#c11c2d;--unknown:#7a3ea8;--skipped:#6e7781;
--line:#8884;--card:#8881}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:1.5rem auto;padding:0 1rem;overflow-wrap:anywhere}
h1{margin:0 0 .25rem;font-size:1.6rem}h2{margin:2rem 0 .5rem;font-size:1.2rem}
.facts{margin:0;opacity:.8}.head{display:flex;flex-wrap:wrap;gap:1rem;align-items:center;justify-content:space-between}
.status{font-weight:600;white-space:nowrap}.ok{color:var(--ok)}.warning{color:var(--warning)}
.critical,.emergency{color:var(--critical)}.unknown{color:var(--unknown)}.skipped{color:var(--skipped)}
.overall{font-size:1.3rem;border:2px solid;border-radius:.5rem;padding:.2rem .8rem}
.card{border-left:.4rem solid;background:var(--card);padding:.6rem .9rem;margin:.6rem 0;border-radius:.25rem}
.card>*{color:CanvasText}.card h3{margin:0;font-size:1rem}.card p{margin:.3rem 0}.card .status{color:inherit}
.scores{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0;padding:0}
.scores div{background:var(--card);padding:.5rem .8rem;border-radius:.25rem}.scores b{display:block;font-size:1.3rem}
table{border-collapse:collapse;width:100%}
thead th{overflow-wrap:normal}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
code,pre{background:var(--card);border-radius:.2rem;padding:.1rem .3rem}pre{overflow:auto;padding:1rem}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:CanvasText}
.fill-ok{fill:var(--ok)}.fill-warning{fill:var(--warning)}.fill-critical,.fill-emergency{fill:var(--critical)}
.fill-unknown{fill:var(--unknown)}.mark{stroke:CanvasText;stroke-width:1.5}
@media(max-width:40rem){thead{display:none}tr{display:block;border-bottom:2px solid var(--line);padding:.4rem 0}
th,td{display:block;border:0;padding:.1rem 0}td[data-label]:not(:empty)::before{content:attr(data-label) ": ";opacity:.7}}
@media(prefers-color-scheme:dark){:root{--ok:#4ac26b;--warning:#d4a72c;--critical:#ff8182;--unknown:#c297ff;
--skipped:#9198a1}}
@media print{body{max-width:none;margin:0}.card,tr{break-inside:avoid}details{display:none}}
"""


@dataclass(frozen=True)
class Past:
    """The last day of a host: records of the monitor, and of what changed it. ``since`` says by check when its problem
    began, in seconds since the epoch.
    """

    measured: t.Sequence[HistoryRecord] = ()
    done: t.Sequence[HistoryRecord] = ()
    since: t.Optional[t.Mapping[str, float]] = None
    now: float = 0.0


def page(
    after: Health,
    *,
    title: str,
    facts: t.Mapping[str, str],
    before: t.Optional[Health] = None,
    remedies: t.Optional[t.Mapping[str, str]] = None,
    past: t.Optional[Past] = None,
    advice: t.Optional[t.Callable[[t.Mapping[str, t.Any]], str]] = None,
    runbook_url: str = "",
) -> str:
    """The whole page. With ``before``, the result of an earlier run, it compares both: ``remedies`` says what was done
    in between, by check. ``advice`` gives what to do about a check where no playbook reaches the host. ``runbook_url``
    is a template of ``runbooks.address``. Everything measured is escaped.
    """
    past = past or Past()
    status = str(after.get("status", "unknown"))
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    measured_at = str(after.get("measured_at") or "")
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"{_element('title', title)}<style>{_STYLE}</style>",
        '<div class="head"><div>',
        _element("h1", title),
        _element("p", ", ".join(filter(None, [words, f"measured {measured_at}" if measured_at else ""])), "facts"),
        "</div>",
        _element("strong", status, f"status overall {status}"),
        "</div>",
        _element("p", report.summary(after)),
        _scores(after),
        _problems(after, past, advice or _command, runbook_url),
        _comparison(before, after, remedies or {}) if before else "",
        _missed(after),
        _checks(after),
        _chart(past),
        "<details><summary>All that was measured</summary>",
        _element("pre", json.dumps({"before": before or {}, "after": after}, indent=1, default=str)),
        "</details></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _scores(after: Health) -> str:
    scores = {"overall health": str(after.get("status", "unknown"))}
    for name in _SCORES:
        value = (after.get("scores") or {}).get(name)
        scores[name.replace("_", " ")] = "not measured" if value is None else f"{value:.0f} of 100"
    tiles = "".join(f"<div>{html.escape(name)}{_element('b', value)}</div>" for name, value in scores.items())
    return f'<div class="scores">{tiles}</div>'


def _problems(after: Health, past: Past, advice: t.Callable[[t.Mapping[str, t.Any]], str], runbook_url: str) -> str:
    failing = [check for check in after.get("checks", []) if check["status"] not in ("ok", "skipped")]
    failing.sort(key=lambda check: _ORDER.get(check["status"], 0))
    if not failing:
        return "<h2>What is wrong</h2><p>Nothing that was measured.</p>"
    cards = []
    for check in failing:
        name = check["name"]
        began = (past.since or {}).get(name)
        since = f", since {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(began))}" if began else ""
        cards.append(
            f'<div class="card {html.escape(check["status"])}">'
            f"<h3>{html.escape(_TITLES.get(name, name))}: "
            f"{_element('span', check['status'], 'status ' + check['status'])}{html.escape(since)}</h3>"
            f"{_element('p', check['message'])}{_advice(check, advice, runbook_url)}</div>"
        )
    return f"<h2>What is wrong</h2>{''.join(cards)}"


def _advice(check: t.Mapping[str, t.Any], advice: t.Callable[[t.Mapping[str, t.Any]], str], runbook_url: str) -> str:
    """What to do next, and where the check is described."""
    text = html.escape(advice(check)) if check.get("remedy") else ""
    # A command stands between backticks.
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", f"What to do: {text} " if text else "")
    place = html.escape(runbooks.address(check["name"], runbook_url))
    runbook = f'<a href="{place}" rel="noreferrer">{place}</a>' if runbook_url else f"<code>{place}</code>"
    return f"<p>{text}Runbook: {runbook}</p>"


def _command(check: t.Mapping[str, t.Any]) -> str:
    """The command that applies the remedy of a check."""
    playbook = "deploy" if check["remedy"] == "managed_files" else "recover"
    return f"`ansible-playbook -i INVENTORY playbooks/{playbook}.yml` ({check['remedy']})."


def _comparison(before: Health, after: Health, remedies: t.Mapping[str, str]) -> str:
    titles = ("#", "incident", "before", "measured before", "what was done", "after", "measured after")
    rows = []
    for row in report.rows(before, after, remedies):
        cells = [
            (row["number"], ""),
            (row["before"], f"status {row['before']}"),
            (row["before_value"], ""),
            (row["done"], ""),
            (row["after"], f"status {row['after']}"),
            (row["after_value"], ""),
        ]
        rows.append((row["incident"], cells))
    return f"<h2>Before and after</h2>{_table(titles, rows, head=1)}"


def _missed(after: Health) -> str:
    lines = [f"{', '.join(names)}: {reason}" for reason, names in report.not_measured(after).items()]
    lines += [f"{name}: left out on purpose" for name in after.get("left_out") or []]
    return f"<h2>What was not measured</h2><ul>{''.join(_element('li', line) for line in lines)}</ul>" if lines else ""


def _checks(after: Health) -> str:
    rows = []
    for check in sorted(after.get("checks", []), key=lambda check: _ORDER.get(check["status"], 0)):
        value = "" if check["status"] == "skipped" else quantity(check["value"], check["unit"])
        cells = [
            (check["status"], f"status {check['status']}"),
            (value, ""),
            (check["message"], ""),
            (quantity(check["duration_ms"], "ms"), ""),
        ]
        rows.append((_TITLES.get(check["name"], check["name"]), cells))
    return f"<h2>Every check</h2>{_table(('check', 'status', 'measured', 'message', 'took'), rows)}"


def _chart(past: Past) -> str:
    """The last day, a row a check; a line marks each time that something was done."""
    points = [(record.seconds, record) for record in past.measured if record.seconds is not None]
    points = sorted((at, record) for at, record in points if past.now - _DAY <= at <= past.now)
    names = [name for name in _TITLES if any(name in record.checks for _at, record in points)]
    if len(points) < 2 or not names:
        return ""

    def x(at: float) -> float:
        return 140 + (_WIDTH - 140) * (at - past.now + _DAY) / _DAY

    shapes = []
    for row, name in enumerate(names):
        shapes.append(f'<text x="0" y="{row * _ROW + 13}">{html.escape(_TITLES[name])}</text>')
        for number, (at, record) in enumerate(points):
            status = record.checks.get(name)
            # A run stands for the time until the next, at most half an hour: what was not measured is not shown.
            until = min(points[number + 1][0] if number + 1 < len(points) else past.now, at + 1800)
            if status in STATUSES and status != "skipped":
                shapes.append(
                    f'<rect class="fill-{status}" x="{x(at):.1f}" y="{row * _ROW + 3}"'
                    f' width="{max(1.0, x(until) - x(at)):.1f}" height="{_ROW - 4}"/>'
                )
    height = len(names) * _ROW
    for record in past.done:
        if record.seconds is not None and past.now - _DAY <= record.seconds <= past.now:
            label = f"{record.action or 'run'} {time.strftime('%H:%M', time.gmtime(record.seconds))}: {record.outcome}"
            position = f"{x(record.seconds):.1f}"
            shapes.append(
                f'<line class="mark" x1="{position}" x2="{position}" y1="0" y2="{height}">'
                f"{_element('title', label)}</line>"
            )
    for hours in (24, 18, 12, 6, 0):
        at = past.now - hours * 3600
        anchor = "start" if hours == 24 else "end" if hours == 0 else "middle"
        stamp = time.strftime("%H:%M", time.gmtime(at))
        shapes.append(f'<text x="{x(at):.1f}" y="{height + 15}" text-anchor="{anchor}">{stamp}</text>')
    marked = f" Lines mark {len(past.done)} runs that changed something or followed a problem." if past.done else ""
    return (
        f"<h2>The last day</h2>{_element('p', f'Green is ok; times in UTC.{marked}')}"
        f'<svg viewBox="0 0 {_WIDTH} {height + 20}" role="img" aria-label="Status of each check over the last day">'
        f"{''.join(shapes)}</svg>"
    )


def _element(tag: str, content: str, classes: str = "") -> str:
    words = f' class="{html.escape(classes)}"' if classes else ""
    return f"<{tag}{words}>{html.escape(content)}</{tag}>"


def _table(
    titles: t.Sequence[str],
    rows: t.Sequence[t.Tuple[str, t.Sequence[t.Tuple[str, str]]]],
    *,
    head: int = 0,
) -> str:
    """A table whose cells name their column, for narrow screens. Each row has a header, in column ``head``."""
    columns = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    others = [title for number, title in enumerate(titles) if number != head]
    body = []
    for header, cells in rows:
        parts = [
            f'<td data-label="{html.escape(title)}"{f""" class="{html.escape(classes)}" """ if classes else ""}>'
            f"{html.escape(text)}</td>"
            for title, (text, classes) in zip(others, cells)
        ]
        parts.insert(head, f'<th scope="row">{html.escape(header)}</th>')
        body.append(f"<tr>{''.join(parts)}</tr>")
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody></table>"
