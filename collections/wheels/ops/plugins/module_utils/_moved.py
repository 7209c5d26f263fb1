# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names that ``import wheels_ops`` had in release 1.0, for programs that use them. They go with release 2.0."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import typing as t
import warnings

#: Name in 1.0: name now, both below ``wheels_ops``.
MOVED: t.Dict[str, str] = {
    "audio": "host.audio",
    "catalog": "database.schema_snapshot",
    "disk_sources": "remedies.disk.sources",
    "extents": "host.extents",
    "heap": "host.heap",
    "history": "state.history",
    "holders": "host.open_files",
    "log_archive": "remedies.logs.archive",
    "log_policy": "remedies.logs.logrotate",
    "ops_token": "state.ops_token",
    "performance": "report.performance",
    "postgres": "database.connect",
    "pressure": "host.memory_pressure",
    "process": "host.processes",
    "programs": "host.subprocesses",
    "recovery_requests": "state.requests",
    "redaction": "core.redaction",
    "remedies.blocks": "host.marked_blocks",
    "remedies.deployment": "state.deployments",
    "remedies.disk_cleanup": "remedies.disk.cleanup",
    "remedies.log_rotate": "remedies.logs.rotate",
    "remedies.memory_notes": "remedies.memory.notes",
    "remedies.memory_rungs": "remedies.memory.steps",
    "remedies.memory_trim": "remedies.memory.trim",
    "remedies.sql_script": "database.scripts",
    "results": "core.results",
    "rls.audits": "rls.audit.audits",
    "rls.bodies": "rls.model.function_bodies",
    "rls.callgraph": "rls.audit.callgraph",
    "rls.catalog": "rls.model.catalog",
    "rls.changes": "rls.repair.apply",
    "rls.clone": "rls.repair.clone",
    "rls.compare": "rls.repair.compare",
    "rls.cut": "rls.repair.hitting_set",
    "rls.details": "rls.model.column_details",
    "rls.entry": "rls.module_api",
    "rls.findings": "rls.model.findings",
    "rls.formats": "rls.audit.formats",
    "rls.lints": "rls.audit.lints",
    "rls.oracle": "rls.audit.oracle",
    "rls.owner": "rls.repair.owner",
    "rls.performance": "rls.repair.speed_fixes",
    "rls.plans": "rls.repair.plans",
    "rls.policies": "rls.model.policies",
    "rls.reread": "rls.model.deparse_roundtrip",
    "rls.rewrite": "rls.repair.rewrite",
    "rls.roles": "rls.model.roles",
    "rls.scratch": "rls.audit.scratch",
    "rls.session": "rls.model.transactions",
    "rls.simulate": "rls.audit.simulate",
    "rls.strict": "rls.repair.strict",
    "rls.tree": "rls.model.tree",
    "rls.wrap": "rls.model.wrap",
    "safe_tree": "host.safe_tree",
    "scores": "health.scores",
    "services.ledger": "state.restarts",
    "services.members": "services.service_processes",
    "services.processes": "host.processes",
    "standalone.results": "standalone.program_output",
    "thresholds": "health.thresholds",
    "units": "core.units",
}


class _Redirect(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by its present name, and gives it out under the old one too."""

    def find_spec(
        self,
        fullname: str,
        path: t.Optional[t.Sequence[str]],
        target: t.Optional[types.ModuleType] = None,
    ) -> t.Optional[importlib.machinery.ModuleSpec]:
        package, _dot, name = fullname.partition(".")
        if package != "wheels_ops" or name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        present = f"wheels_ops.{MOVED[name.partition('.')[2]]}"
        warnings.warn(f"{name} is {present} now; the old name goes with 2.0.", DeprecationWarning, stacklevel=2)
        sys.modules[name] = importlib.import_module(present)


def redirect() -> None:
    """Lets the old names be imported. After every other finder: what exists is found first."""
    if not any(isinstance(finder, _Redirect) for finder in sys.meta_path):
        sys.meta_path.append(_Redirect())
