# SPDX-License-Identifier: GPL-3.0-or-later
"""Which conditions have a least fixpoint, and what is said of the comparison with it."""

from __future__ import annotations

import pytest

from wheels_ops.rls.repair import strict
from wheels_ops.rls.repair.compare import User

ROWS = "SELECT 1 FROM public.t WHERE t.a = b"


@pytest.mark.parametrize(
    ("text", "monotone"),
    [
        ("a = b", True),
        (f"EXISTS ({ROWS})", True),
        (f"a OR EXISTS ({ROWS})", True),
        ("a IN (SELECT t.a FROM public.t)", True),
        ("a = (SELECT auth.uid())", True),
        ("NOT a", True),
        (f"NOT EXISTS ({ROWS})", False),
        ("a NOT IN (SELECT t.a FROM public.t)", False),
        ("a <> ALL (SELECT t.a FROM public.t)", False),
        ("(SELECT count(*) FROM public.t) = 0", False),
        (f"CASE WHEN EXISTS ({ROWS}) THEN false ELSE true END", False),
        (f"(EXISTS ({ROWS})) IS FALSE", False),
        ("coalesce((SELECT t.a FROM public.t), true)", False),
        ("EXISTS (SELECT 1 FROM public.t LEFT JOIN public.u ON true WHERE u.a IS NULL)", False),
        ("EXISTS (SELECT 1 FROM public.t GROUP BY a HAVING count(*) < 2)", False),
        ("EXISTS (SELECT 1 FROM public.t EXCEPT SELECT 1 FROM public.u)", False),
        ("a IN (SELECT t.a FROM public.t ORDER BY 1 LIMIT 1)", False),
    ],
)
def test_monotone_refuses_what_more_rows_could_take_away(text: str, monotone: bool) -> None:
    assert strict.monotone(text) is monotone


def test_report_adds_up_a_table_and_says_why_it_cannot() -> None:
    anna, ben = User((("sub", "anna"),)), User((("sub", "ben"),))
    read: strict.Strict = {
        ("authenticated", anna, "public.a"): 2,
        ("authenticated", ben, "public.a"): 3,
        ("authenticated", anna, "public.b"): 4,
        ("authenticated", anna, "public.c"): "a policy calls a function",
    }
    visible = {
        ("authenticated", anna, "public.a"): 4,
        ("authenticated", ben, "public.a"): 3,
        ("authenticated", anna, "public.b"): 4,
        ("authenticated", anna, "public.c"): 1,
        ("authenticated", anna, "public.d"): 1,
    }
    told = strict.report(read, visible)
    assert [(entry["table"], entry["visible"], entry["strict"], entry["extra"]) for entry in told] == [
        ("public.a", 7, 5, 2),
        ("public.b", 4, 4, 0),
        ("public.c", 1, None, None),
        ("public.d", 1, None, None),
    ]
    assert told[0]["message"] == "public.a: 2 of 7 visible rows go beyond the strict reading."
    assert told[1]["message"] == "public.b: grants nothing beyond the strict reading."
    assert "a policy calls a function" in told[2]["message"] and "was not asked for" in told[3]["message"]
