# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The matrix as one HTML page: no script, no file besides it, readable on a telephone, in the dark and on paper."""

from __future__ import annotations

import typing as t
from html import escape

from .matrix import COMMANDS, DENIED, FAILS, NOTHING, OPEN, PARTLY, WORKS, Cell, Matrix
from .plans import Plan

_CLASSES = {WORKS: "works", OPEN: "open", NOTHING: "none", DENIED: "none", FAILS: "fails", PARTLY: "fails"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #c9c9c9; --soft: #f3f3f3;
  --works: #0b6b2e; --fails: #a8001c; --open: #7a4b00; --none: #595959; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #161616; --line: #4a4a4a; --soft: #232323;
  --works: #79d694; --fails: #ff9aa5; --open: #f2c274; --none: #b4b4b4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { border: 1px solid var(--line); padding: .35rem .5rem; text-align: left; vertical-align: top; }
thead th, tbody th { background: var(--soft); font-weight: 600; }
section { margin: 1.5rem 0; break-inside: avoid; }
.works { color: var(--works); } .fails { color: var(--fails); font-weight: 600; }
.open { color: var(--open); } .none { color: var(--none); }
.changed { outline: 2px solid currentColor; outline-offset: -2px; }
pre { background: var(--soft); border: 1px solid var(--line); padding: .5rem; white-space: pre-wrap; margin: .25rem 0; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; }
.sign { display: flex; flex-wrap: wrap; gap: 2rem; margin-top: 2rem; }
.sign span { border-top: 1px solid var(--ink); padding-top: .25rem; flex: 1 1 12rem; margin-top: 2.5rem; }
@media (max-width: 40rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, th, td, caption { display: block; width: 100%; }
  tr { margin-bottom: .75rem; } td { border-top: 0; } td::before { content: attr(data-command) ": "; color: var(--ink);
    font-weight: 400; }
}
@media print { body { max-width: none; padding: 0; } details { display: block; } a { color: inherit; } }
"""


def page(matrix: Matrix, planned: t.Optional[Plan] = None) -> str:
    """The page; with a plan also the policies and functions before and after."""
    title = f"{'Change of row-level security' if matrix.after is not None else 'Row-level security'}: {matrix.database}"
    first, rest = matrix.ordered()
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in matrix.sentences),
    ]
    one = ("Tables with commands that fail", "Other tables")
    for heading, names in zip(one if matrix.after is None else ("What changes", "What stays as it is"), (first, rest)):
        if names:
            parts.append(f"<h2>{heading}</h2>")
            parts += [_section(matrix, name) for name in names]
    if planned is not None and not planned.empty:
        parts.append("<h2>The statements</h2>")
        for entry in planned.diff():
            parts.append(
                f"<section><h3>{escape(str(entry['before_header']))}</h3><p>Before</p><pre>{escape(entry['before'])}"
                f"</pre><p>After</p><pre>{escape(entry['after'])}</pre></section>"
            )
    if planned is not None and planned.needs_review:
        parts.append("<h2>Left to a person</h2>")
        for review in planned.needs_review:
            parts.append(
                f"<p><strong>{escape(str(review['object']))}</strong>: {escape(str(review['reason']))}"
                f" {escape(str(review['advice']))}</p>"
            )
    parts.append("<h2>The words</h2><dl>")
    parts += [
        f'<dt class="{_CLASSES[word]}">{word}</dt><dd>{escape(what)}</dd>' for word, what in matrix.meanings.items()
    ]
    parts.append("</dl>")
    if matrix.after is not None:
        parts.append('<p class="sign"><span>Name</span><span>Date</span><span>Signature</span></p>')
    return "\n".join([*parts, "</main></body></html>"]) + "\n"


def _section(matrix: Matrix, relation: str) -> str:
    head = "".join(f'<th scope="col">{command}</th>' for command in COMMANDS)
    body = []
    for role, pairs in matrix.rows_of(relation):
        cells = "".join(_cell(command, before, after) for command, (before, after) in zip(COMMANDS, pairs))
        body.append(f'<tr><th scope="row">{escape(role)}</th>{cells}</tr>')
    return (
        f'<section><table><caption>{escape(relation)}</caption><thead><tr><th scope="col">Role</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></section>"
    )


def _cell(command: str, before: t.Optional[Cell], after: t.Optional[Cell]) -> str:
    if before is None and after is None:
        return f'<td data-command="{command}" class="none">–</td>'
    if before is None or after is None or before == after:
        cell = before or after
        inner = _span(cell) if cell is not None else ""
        return f'<td data-command="{command}">{inner}</td>'
    return f'<td data-command="{command}" class="changed">{_span(before)} → {_span(after)}</td>'


def _span(cell: Cell) -> str:
    return f'<span class="{_CLASSES[cell.word]}">{escape(cell.text)}</span>'
