# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What earlier runs left in the state directory, as the recovery plan takes it."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..state import deployments, documents, history, problems, restarts
from . import cpu_relief
from .plan import Blocked, Policy, State, Try, exhausted_services

#: As many records are looked at: those of a day with one run in a minute.
RECORDS = 1500


def read(
    directory: Path,
    services: t.Sequence[t.Mapping[str, t.Any]],
    policy: Policy,
    *,
    confirmed: t.Optional[t.Collection[str]] = None,
    ignore_cooldown: bool = False,
) -> t.Tuple[State, t.List[str]]:
    """(the state of now, sentences about what was passed over). Raises ``OpsError`` where the state cannot be read."""
    warnings = []
    path = directory / history.FILE
    records, damaged = history.read_and_count(path, RECORDS)
    if damaged:
        warnings.append(f"{damaged} lines of {path} are damaged and were passed over.")
    try:
        relief_ends = cpu_relief.ends_at(directory)
    except OpsError as error:
        relief_ends = 0.0
        warnings.append(f"Whether a lowered priority has to be restored is unknown: {error}")
    try:
        open_problems = problems.read(directory)
    except documents.Damaged as error:
        # The run that ends sets it aside.
        open_problems = problems.Problems()
        warnings.append(str(error))
    book = restarts.Ledger(directory)
    blocked = {
        name: Blocked("restarting it did not help", 0.0)
        for name in exhausted_services(open_problems, policy.max_failures)
        if not ignore_cooldown
    }
    for service in services:
        reason, until = book.blocked_until(
            str(service["name"]), max_restarts=policy.max_restarts, window=policy.window, cooldown=0
        )
        if reason:
            blocked[str(service["name"])] = Blocked(reason, until)
    try:
        drifted = tuple(deployments.drifted(deployments.Journal(str(directory))))
    except OpsError as error:
        drifted = ()
        warnings.append(f"Whether the files are as the deployment left them is unknown: {error}")
    state = State(
        now=time.time(),
        tries=tries_of(records),
        confirmed=confirmed,
        restarts=blocked,
        relief_ends=relief_ends,
        problems=open_problems,
        drifted=drifted,
    )
    return state, warnings


def tries_of(records: t.Iterable[history.HistoryRecord]) -> t.List[Try]:
    """Every remedy that the history names with its outcome, in the order of the records; those without a time are
    passed over.
    """
    return [
        Try(str(result.get("action")), record.seconds, str(result.get("outcome")))
        for record in records
        if record.seconds is not None
        for result in record.results
    ]
