# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of a recovery: sections in their order, advice only for what still fails."""

from __future__ import annotations

import typing as t

from wheels_ops.report import recovery_text


def check(status: str) -> t.Dict[str, str]:
    return {"name": "disk", "status": status, "message": "Full.", "remedy": ""}


RESULT = {
    "action": "disk_cleanup",
    "checks": ["disk"],
    "refused": "",
    "outcome": "partly",
    "message": "Cleaned.",
    "advice": "Find what fills it.",
}


def test_lines_give_advice_only_for_what_is_left() -> None:
    left = recovery_text.lines([check("critical")], [check("critical")], [RESULT])
    assert left[-2:] == ["What to do next", "  Find what fills it."]
    fixed = recovery_text.lines([check("critical")], [check("ok")], [RESULT])
    assert "What to do next" not in fixed and fixed[-1] == "  partly   disk_cleanup (disk): Cleaned."
    assert recovery_text.lines([check("ok")], [check("ok")], []) == []


def test_waiting_is_in_utc() -> None:
    assert (recovery_text.waiting(0), recovery_text.waiting(60)) == ("", "1970-01-01T00:01:00Z")
