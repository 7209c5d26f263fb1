# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of the history as the product writes them, for the tests of what reads them."""

from __future__ import annotations

import typing as t
from pathlib import Path

from wheels_ops.standalone import recovery
from wheels_ops.standalone.settings import Settings


def append_run(state: Path, *, failing: t.Sequence[str] = (), skipped: t.Sequence[str] = ()) -> None:
    """Let the standalone recovery append the record of a run over a failing Redis that took 4.2 s."""
    after = {"failing": list(failing), "not_measured": list(skipped)}
    made = {
        "run_id": "recover-1",
        "before": {"failing": ["redis"]},
        "after": after,
        "recovery_results": [],
        "problems": [],
    }
    recovery.AutomatedRecovery(Settings(state_dir=state))._note(made, {"requests": [], "refused": []}, 4.2)
