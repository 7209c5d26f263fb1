# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Findings beyond the recursion itself."""

from __future__ import annotations

import typing as t

from .catalog import Catalog
from .findings import Finding
from .oracle import Failure
from .session import Cursor


def recursion(read: Catalog, failing: t.Sequence[Failure]) -> t.List[Finding]:
    """One finding for every relation and path, with the roles and commands that meet it."""
    groups: t.Dict[t.Tuple[str, t.Tuple[str, ...], str], t.List[Failure]] = {}
    for failure in failing:
        groups.setdefault((failure.relation, tuple(failure.witness), failure.sqlstate), []).append(failure)
    found = []
    for (relation, path, state), members in groups.items():
        commands = sorted({member.command for member in members})
        roles = sorted({role for member in members for role in member.roles})
        details = {"table": relation, "commands": commands, "roles": roles, "path": list(path), "sqlstate": state}
        if members[0].recursive:
            why = f"{', '.join(commands)} fail for {', '.join(roles)} with {members[0].message!r}: {' -> '.join(path) or 'through a rule'}."
            found.append(Finding("recursion", relation, why, "-- python3 -m wheels_ops rls repair, or the module rls_repair", details=details))
        else:
            why = f"{', '.join(commands)} fail for {', '.join(roles)} with {state}: {members[0].message}"
            found.append(Finding("rewrite_error", relation, why, details=details))
    return found


def lint(cursor: Cursor, read: Catalog) -> t.List[Finding]:
    return []
