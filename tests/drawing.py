# SPDX-License-Identifier: GPL-3.0-or-later
"""The drawing of docs/architecture.md: the floors of the library as tests/unit/test_imports.py has them, with what is
above and below. ``make docs`` writes it.
"""

from __future__ import annotations

import html
import typing as t

from tests.unit.test_imports import FLOORS

#: What is in a room, in two or three words.
CAPTIONS: t.Mapping[str, str] = {
    "standalone": "the two programs",
    "remedies": "disk, logs, memory, restart, plan",
    "report": "before and after, alerts, metrics",
    "checks": "one file a subject; suite.py runs them",
    "rls": "audit, model, repair",
    "services": "managers, readiness, broker",
    "state": "lock, journal, history",
    "database": "connections, scripts",
    "health": "registry, thresholds, scores",
    "host": "/proc, files, processes",
    "core": "results, options, units, redaction",
}
ABOVE: t.Tuple[t.Tuple[str, str], ...] = (
    ("inventory", "group_vars, vault"),
    ("playbooks/", "or AWX, or a rulebook"),
    ("roles/", "steps of a deployment"),
    ("plugins/modules", "arguments, one call"),
)
BELOW: t.Tuple[t.Tuple[str, str], ...] = (
    ("the backend", "FastAPI, Celery"),
    ("systemd, supervisord", "units and processes"),
    ("PostgreSQL, Redis", "tables, policies, keys"),
    ("STATE_DIR", "lock, deployments, history"),
)
WIDTH, MARGIN, GAP, HEIGHT, STEP = 880, 20, 16, 50, 74
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.n{font-weight:600;font-size:14px}.s{fill:#57606a}"
    "rect{fill:#fff;stroke:#8c959f}.f{fill:#f6f8fa;stroke:#d0d7de}.l{fill:#ddf4ff;stroke:#54aeff}"
    "path{stroke:#57606a;fill:none;stroke-width:1.5}marker path{fill:#57606a;stroke:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9aa4af}rect{fill:#161b22;stroke:#6e7681}"
    ".f{fill:#0d1117;stroke:#30363d}.l{fill:#0c2d48;stroke:#388bfd}path{stroke:#9aa4af}marker path{fill:#9aa4af}}"
)


def _box(x: float, y: float, width: float, name: str, caption: str, css: str = "") -> str:
    middle = x + width / 2
    kind = f' class="{css}"' if css else ""
    return (
        f'<rect{kind} x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>'
        f'<text class="n" x="{middle:.0f}" y="{y + 21:.0f}" text-anchor="middle">{html.escape(name)}</text>'
        f'<text class="s" x="{middle:.0f}" y="{y + 39:.0f}" text-anchor="middle">{html.escape(caption)}</text>'
    )


def _row(boxes: t.Sequence[t.Tuple[str, str]], y: float, left: float, right: float, css: str = "") -> t.List[str]:
    width = (right - left - GAP * (len(boxes) - 1)) / len(boxes)
    return [_box(left + number * (width + GAP), y, width, name, text, css) for number, (name, text) in enumerate(boxes)]


def _arrow(x: float, y: float, x2: float, y2: float) -> str:
    return f'<path d="M{x:.0f} {y:.0f}L{x2:.0f} {y2:.0f}" marker-end="url(#a)"/>'


def svg() -> str:
    """The drawing, readable in light and dark."""
    missing = set().union(*FLOORS) ^ set(CAPTIONS)
    if missing:
        raise SystemExit(f"tests/drawing.py: CAPTIONS and FLOORS differ in {', '.join(sorted(missing))}.")
    left, right = MARGIN, WIDTH - MARGIN
    shapes = _row(ABOVE, MARGIN, left, right)
    width = (right - left - GAP * 3) / 4
    for number in range(3):
        end = left + number * (width + GAP) + width
        shapes.append(_arrow(end, MARGIN + HEIGHT / 2, end + GAP - 2, MARGIN + HEIGHT / 2))
    top = MARGIN + HEIGHT + 44
    frame = 34 + STEP * len(FLOORS)
    shapes.append(f'<rect class="f" x="{left}" y="{top}" width="{right - left}" height="{frame}" rx="8"/>')
    shapes.append(
        f'<text class="s" x="{right - 14}" y="{top + 22}" text-anchor="end">plugins/module_utils: a room imports only'
        " from floors below it</text>"
    )
    shapes.append(_arrow(right - width / 2, MARGIN + HEIGHT, right - width / 2, top - 2))
    shapes.append(
        f'<text class="s" x="{left + 14}" y="{top - 16}">timer or cron, on a host without Ansible</text>'
        + _arrow(left + 130, top - 11, left + 130, top + 32)
    )
    for number, floor in enumerate(FLOORS):
        y = top + 34 + number * STEP
        rooms = [(room, CAPTIONS[room]) for room in sorted(floor)]
        shapes += _row(rooms, y, left + 14, right - 14, "l")
        if number + 1 < len(FLOORS):
            shapes.append(_arrow(WIDTH / 2, y + HEIGHT, WIDTH / 2, y + STEP - 2))
    bottom = top + frame + 36
    shapes += _row(BELOW, bottom, left, right)
    shapes.append(_arrow(WIDTH / 2, top + frame, WIDTH / 2, bottom - 2))
    shapes.append(f'<text class="s" x="{WIDTH / 2 + 12:.0f}" y="{bottom - 13}">measures, changes, verifies</text>')
    height = bottom + HEIGHT + MARGIN
    marker = (
        '<defs><marker id="a" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-label="Playbooks, roles and modules above the library, whose rooms import downward only, above the'
        f' host">\n<style>{_STYLE}</style>{marker}\n' + "\n".join(shapes) + "\n</svg>\n"
    )
