# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a failing schema smaller while it fails in the same way."""

from __future__ import annotations

import time

from tests.integration.rls_fuzz.checking import Checker, Outcome
from tests.integration.rls_fuzz.generator import Schema


def shrink(
    checker: Checker, schema: Schema, outcome: Outcome, *, seconds: float = 120.0, allow_unbounded: bool = True
) -> Schema:
    """Takes away one thing after the other: policies, views, tables, parts of conditions, rows.

    Ends after ``seconds`` with the best so far.
    """
    deadline = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < deadline:
        progress = False
        for smaller in schema.smaller():
            if time.monotonic() > deadline:
                break
            if checker.check(smaller, allow_unbounded=allow_unbounded).kind == outcome.kind:
                schema, progress = smaller, True
                break
    return schema
