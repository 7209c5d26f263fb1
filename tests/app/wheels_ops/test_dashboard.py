# SPDX-License-Identifier: GPL-3.0-or-later
"""What the backend's dashboard says of checks that are not made; the page itself is seen in ``test_dashboard_browser.py``."""

from __future__ import annotations

import types
import typing as t

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
