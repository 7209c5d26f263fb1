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
        report = audit(connection, schemas=params["schemas"], roles=params["roles"], **_timeouts(params))
    state = summary(report)
    return Result(before=state, after=state, msg=sentence(report), extra=report.as_dict()).as_dict()


def repair(params: t.Mapping[str, t.Any], *, check_mode: bool) -> t.Dict[str, t.Any]:
    """Audit, plan and apply, or undo, as a module's result."""
    timeouts = _timeouts(params)
    with contextlib.closing(connect.from_params(params)) as connection:
        if params["state"] == "undone":
            if not params["undo_path"]:
                raise OpsError("undo_path is missing.", hint="Name the script that rls_repair returned as `undo`.")
            return undo(connection, Path(params["undo_path"]), check_mode=check_mode, force=params["force"], **timeouts)
        session: Connection = connection
        repair_plan = _plan(session, params, timeouts)
        if check_mode and params["after_scripts"] and not repair_plan.empty:
            variables = {name: str(value) for name, value in params["after_variables"].items()}
            limits = scripts.Limits(
                lock_timeout_ms=timeouts["lock_timeout_ms"], statement_timeout_ms=timeouts["statement_timeout_ms"]
            )
            scripts.rehearse(
                connection, scripts.from_entries(params["after_scripts"]), variables=variables, limits=limits
            )
            session = Rehearsal(connection)
            repair_plan = _plan(session, params, timeouts)
        path = (
            None
            if repair_plan.empty
            else Path(
                params["undo_path"]
                or Path(params["undo_dir"]) / undo_name(repair_plan.catalog.database if repair_plan.catalog else "")
            )
        )
        result = apply(session, repair_plan, check_mode=check_mode, undo_path=path, run_id=params["run_id"], **timeouts)
    result["plan"] = repair_plan.as_dict()
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


def summary(report: Audit) -> t.Dict[str, t.Any]:
    """The audit in numbers."""
    kinds: t.Dict[str, int] = {}
    for finding in report.findings:
        kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    return {
        "checked": report.checked,
        "failing": len(report.failing),
        "tables": report.tables,
        "policies": report.policies,
        "findings": kinds,
    }


def sentence(report: Audit) -> str:
    """The audit in one sentence."""
    tables = sorted({failure.relation for failure in report.failing})
    failing = (
        f"{len(report.failing)} of {report.checked} accesses fail ({', '.join(tables)})"
        if tables
        else f"all {report.checked} accesses are accepted"
    )
    unasked = f" The session may not become {', '.join(report.unasked)}: predicted only." if report.unasked else ""
    return f"{report.tables} tables, {report.policies} policies: {failing}; {len(report.findings)} findings.{unasked}"
