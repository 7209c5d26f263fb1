# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restart of Redis lost."""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.remedies.service_restart import count_lost


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ({"celery": 5, "unacked": 2}, {"celery": 7, "unacked": 0}, 0),
        ({"celery": 5, "unacked": 2}, {"celery": 4, "unacked": 2}, 1),
        ({"celery": 5}, {"celery": 9}, 0),
        ({"feed": 9}, {"feed": 2}, 0),
        ({"feed": 9}, {}, 9),
        ({"feed": 9, "celery": 1}, {"celery": 10}, 9),
        ({"celery": 3, "shop:unacked (database 2)": 4}, {"celery": 3}, 4),
    ],
)
def test_what_a_restart_lost(before: t.Dict[str, int], after: t.Dict[str, int], lost: int) -> None:
    """Tasks move between their queues; what else is a list may be taken from, but does not vanish."""
    assert count_lost(before, after, {"celery"}) == lost
