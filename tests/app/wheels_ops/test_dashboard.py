# SPDX-License-Identifier: GPL-3.0-or-later
"""What the backend's dashboard says of checks that are not made; the page itself is seen in
``test_dashboard_browser.py``.
"""

from __future__ import annotations

import json
import re
import types
import typing as t
from pathlib import Path

from tests.support.recovery_run import append_run
from wheels_ops.state import history
from wheels_ops.state.history import HistoryRecord

Modules = t.Callable[[str], types.ModuleType]


def test_every_check_passes_only_where_every_check_was_made(app_modules: Modules) -> None:
    dashboard = app_modules("wheels_ops.dashboard")
    states = {"redis:connection": ("pass", None)}
    assert "None: every check passes." in dashboard._alerts(states, {})
    shown = dashboard._alerts(states, {f"check-{number}": "why" for number in range(4)})
    assert "Healthy, 4 not checked." in shown
    assert "every check passes" not in shown
    assert "Nothing has been checked yet." in dashboard._alerts({}, {})


def test_a_reason_is_text_and_no_markup(app_modules: Modules) -> None:
    dashboard = app_modules("wheels_ops.dashboard")
    assert "<td>&lt;img&gt;</td>" in dashboard._not_checked({"a:b": "<img>"})
    assert dashboard._not_checked({}) == ""


def rows_of(page: str) -> t.List[t.List[t.Tuple[str, str]]]:
    """Class and text of the cells of each row."""
    rows = re.findall(r"<tr>(<td.*?)</tr>", page)
    return [re.findall(r'<td(?: class="([^"]*)")?>(.*?)</td>', row) for row in rows]


def test_the_last_recovery_actions_are_what_the_writers_write(app_modules: Modules, tmp_path: Path) -> None:
    """The records come from the standalone recovery and from the keys of the playbooks' tasks."""
    append_run(tmp_path)
    append_run(tmp_path, skipped=["database", "rls"])
    append_run(tmp_path, failing=["redis"])
    history.append(
        tmp_path / history.FILE, HistoryRecord(action="maintenance", subject="disk", outcome="1 file rotated.")
    )
    entries = [json.loads(line) for line in (tmp_path / history.FILE).read_text().splitlines()]
    rows = rows_of(app_modules("wheels_ops.dashboard")._recovery(entries))
    assert [(row[1][1], row[2][1], row[4], row[5][1]) for row in rows] == [
        ("recover", "redis", ("ok", "healthy"), "4.2 s"),
        ("recover", "redis", ("warn", "healthy, 2 not checked"), "4.2 s"),
        ("recover", "redis", ("bad", "not healthy"), "4.2 s"),
        ("maintenance", "disk", ("", "1 file rotated."), ""),
    ]
