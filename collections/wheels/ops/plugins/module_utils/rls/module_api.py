# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules rls_info and rls_repair do with their parameters."""

from __future__ import annotations

import contextlib
import datetime
import typing as t
from pathlib import Path

from ..core.options import in_range
from ..core.results import OpsError, Result
from ..database import connect, scripts
from .audit.audits import Audit, audit
from .model.transactions import Connection, Rehearsal
from .repair.apply import apply, undo
from .repair.plans import Plan, plan


def arguments() -> t.Dict[str, t.Dict[str, t.Any]]:
    """The options that both modules share."""
    return {
        **connect.argument_spec(),
        "schemas": {"type": "list", "elements": "str"},
        "roles": {"type": "list", "elements": "str"},
        "lock_timeout": {"type": "float", "default": 5},
        "statement_timeout": {"type": "float", "default": 60},
    }


def _timeouts(params: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    timeouts = {f"{name}_ms": int(params[name] * 1000) for name in ("lock_timeout", "statement_timeout")}
    for name, value in timeouts.items():
        hint = "Without a limit a busy table would hold everything up."
        in_range(name[:-3], value / 1000, 0, unit="seconds", above=True, hint=hint)
    return timeouts


def info(params: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """The audit as a module's result."""
    with contextlib.closing(connect.from_params(params)) as connection:
        found = audit(connection, schemas=params["schemas"], roles=params["roles"], **_timeouts(params))
    state = summary(found)
    return Result(before=state, after=state, msg=sentence(found), extra=found.as_dict()).as_dict()


def repair(params: t.Mapping[str, t.Any], *, check_mode: bool) -> t.Dict[str, t.Any]:
    """Audit, plan and apply, or undo, as a module's result."""
    timeouts = _timeouts(params)
    with contextlib.closing(connect.from_params(params)) as connection:
        if params["state"] == "undone":
            if not params["undo_path"]:
                raise OpsError("undo_path is missing.", hint="Name the script that rls_repair returned as `undo`.")
            return undo(connection, Path(params["undo_path"]), check_mode=check_mode, force=params["force"], **timeouts)
        asked: Connection = connection
        made = _plan(asked, params, timeouts)
        if check_mode and params["after_scripts"] and not made.empty:
            variables = {name: str(value) for name, value in params["after_variables"].items()}
            limits = scripts.Limits(
                lock_timeout_ms=timeouts["lock_timeout_ms"], statement_timeout_ms=timeouts["statement_timeout_ms"]
            )
            scripts.rehearse(
                connection, scripts.from_entries(params["after_scripts"]), variables=variables, limits=limits
            )
            asked = Rehearsal(connection)
            made = _plan(asked, params, timeouts)
        path = (
            None
            if made.empty
            else Path(
                params["undo_path"]
                or Path(params["undo_dir"]) / undo_name(made.catalog.database if made.catalog else "")
            )
        )
        result = apply(asked, made, check_mode=check_mode, undo_path=path, run_id=params["run_id"], **timeouts)
    result["plan"] = made.as_dict()
    return result


def _plan(connection: Connection, params: t.Mapping[str, t.Any], timeouts: t.Mapping[str, t.Any]) -> Plan:
    return plan(
        connection,
        audit(connection, schemas=params["schemas"], roles=params["roles"], **timeouts),
        fix=params["fix"],
        allow_unbounded=params["allow_unbounded"],
        accept_captured_columns=params["accept_captured_columns"],
        helper_schema=params["helper_schema"],
        owner=params["owner"],
        **timeouts,
    )


def undo_name(database: str) -> str:
    """A file name for the undo script of a run that starts now."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in database)
    return f"rls-{safe}-{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S%fZ}.sql"


def summary(found: Audit) -> t.Dict[str, t.Any]:
    """The audit in numbers."""
    kinds: t.Dict[str, int] = {}
    for finding in found.findings:
        kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    return {
        "checked": found.checked,
        "failing": len(found.failing),
        "tables": found.tables,
        "policies": found.policies,
        "findings": kinds,
    }


def sentence(found: Audit) -> str:
    """The audit in one sentence."""
    tables = sorted({failure.relation for failure in found.failing})
    failing = (
        f"{len(found.failing)} of {found.checked} accesses fail ({', '.join(tables)})"
        if tables
        else f"all {found.checked} accesses are accepted"
    )
    unasked = f" The session may not become {', '.join(found.unasked)}: predicted only." if found.unasked else ""
    return f"{found.tables} tables, {found.policies} policies: {failing}; {len(found.findings)} findings.{unasked}"
