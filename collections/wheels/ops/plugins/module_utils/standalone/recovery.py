# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``scripts/automated_recovery.py``: what the playbook ``recover`` does, on the host itself: check, remedy, verify.

Both carry out the plan of ``remedies/plan.py`` and write one history; both can be used beside each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import typing as t
from dataclasses import replace
from enum import Enum

from ..checks import suite
from ..core.options import choices
from ..core.results import OpsError, Result
from ..core.version import VERSION
from ..database import scripts as sql_script
from ..health.subjects import NAMES
from ..health.thresholds import DEFAULTS, LOG_MAX_BYTES, MEMORY_RESTART
from ..remedies import cache_purge, celery_throttle, cpu_relief, plan, recovery_state, service_restart, tts_engine
from ..remedies import policy as policies
from ..remedies.disk import cleanup
from ..remedies.logs import rotate
from ..remedies.memory import trim
from ..remedies.recovery_results import RecoveryResult, attempts_of, brief, verify
from ..report import alerts, recovery_text, report
from ..rls import module_api as rls_entry
from ..services.model import parse_services
from ..services.service_processes import service_pids
from ..state import deployments, history, lock
from ..state import holder as holders
from ..state import requests as recovery_requests
from ..state.history import HistoryRecord
from ..state.ops_token import token_of
from . import program_output
from .settings import Settings, load

Report = t.Dict[str, t.Any]
Health = t.Mapping[str, t.Any]
PREFIX = deployments.RECOVER_PREFIX
MAX_HISTORY = 100
#: Calls of the backend's own clearing in one run: it allows five a minute (``docs/health-api.md``).
_CLEAR_CALLS = 4


class RecoveryAction(Enum):
    """The remedies of ``plan.REMEDIES``, in their order."""

    LOG_ROTATION = plan.LOG_ROTATION
    DISK_CLEANUP = plan.DISK_CLEANUP
    CPU_RELIEF = plan.CPU_RELIEF
    CPU_RELIEF_END = plan.CPU_RELIEF_END
    SERVICE_RESTART = plan.SERVICE_RESTART
    DATABASE_REPAIR = plan.DATABASE_REPAIR
    CACHE_CLEAR = plan.CACHE_CLEAR
    BACKGROUND_THROTTLE = plan.BACKGROUND_THROTTLE
    SPEECH_ENGINE = plan.SPEECH_ENGINE
    MEMORY_CLEANUP = plan.MEMORY_CLEANUP
    DEPLOY = plan.DEPLOY


class AutomatedRecovery:
    """One loop: check, remedy, verify. ``dry_run`` changes nothing; ``only`` limits which remedies are tried."""

    def __init__(
        self,
        settings: t.Optional[Settings] = None,
        *,
        dry_run: bool = False,
        ignore_cooldown: bool = False,
        only: t.Collection[str] = (),
        lock_force: str = "",
    ) -> None:
        configuration = settings if settings is not None else load()
        # The monitor's deadline is not the recovery's: nobody waits for its answer.
        self.settings = replace(
            configuration, checks=replace(configuration.checks, timeout=configuration.recovery.timeout)
        )
        self.options = self.settings.recovery
        self.dry_run = dry_run
        self.ignore_cooldown = ignore_cooldown
        self.only = set(only)
        self.lock_force = lock_force
        #: Set where the run is told to end: the remedy that is under way is finished, none is begun.
        self.stopping = False
        self.max_history = MAX_HISTORY
        self.notes: t.List[str] = []
        self.recovery_history: t.List[RecoveryResult] = []
        self.thresholds = self._thresholds()
        #: All but the deployment, which only the playbook does.
        self.recovery_actions: t.Dict[RecoveryAction, t.Callable[[Health, plan.Step], Result]] = {
            RecoveryAction.LOG_ROTATION: self._rotate_logs,
            RecoveryAction.DISK_CLEANUP: self._clean_disk,
            RecoveryAction.CPU_RELIEF: self._relieve_cpu,
            RecoveryAction.CPU_RELIEF_END: self._relieve_cpu,
            RecoveryAction.SERVICE_RESTART: self._restart_services,
            RecoveryAction.DATABASE_REPAIR: self._repair_database,
            RecoveryAction.CACHE_CLEAR: self._clear_cache,
            RecoveryAction.BACKGROUND_THROTTLE: self._throttle,
            RecoveryAction.SPEECH_ENGINE: self._install_speech,
            RecoveryAction.MEMORY_CLEANUP: self._trim_memory,
        }

    def _thresholds(self) -> t.Dict[str, t.Any]:
        limits = {name: self.settings.checks.thresholds.get(name, DEFAULTS[name]) for name in ("memory", "disk")}
        return {
            "memory_critical": limits["memory"].critical,
            "disk_critical": limits["disk"].critical,
            "service_restart_memory": MEMORY_RESTART,
            "max_log_size_mb": LOG_MAX_BYTES // 1_000_000,
        }

    async def check_and_recover(self) -> Report:
        """The loop; gives the report without any secret.

        Raises ``OpsError`` where another run or an interrupted deployment holds the host.
        """
        return await asyncio.to_thread(self.run)

    def run(self) -> Report:
        start = time.monotonic()
        before, confirmed = self._confirmed(suite.run(self.settings.checks))
        steps = self._plan(before, confirmed)
        requests = recovery_requests.handle(self.settings.state_dir / "requests").extra
        results: t.List[RecoveryResult] = []
        after = before
        run_id = f"{PREFIX}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        if before["failing"] or any(not step.refused for step in steps):
            with self._held(run_id, before["failing"]):
                results = self._remedies(before, steps)
                if not self.dry_run and any(each.changed for each in results):
                    after = suite.run(self.settings.checks)
            verify(results, after["checks"], check_mode=self.dry_run)
        self.recovery_history = (self.recovery_history + results)[-self.max_history :]
        outcome = self._follow(before, after, results, steps)
        report = t.cast(Report, self.settings.scrubbed(self._report(before, after, results, steps, run_id)))
        report["problems"] = [change.as_json() for change in outcome.changes]
        report["alerts"] = list(outcome.delivered)
        tried = any(result.outcome in plan.TRIED for result in results)
        if not self.dry_run and (outcome.changes or tried or requests["requests"] or requests["refused"]):
            self._note(report, requests, round(time.monotonic() - start, 1))
        return report

    def _follow(
        self, before: Health, after: Health, results: t.Sequence[RecoveryResult], steps: t.Sequence[plan.Step]
    ) -> alerts.Outcome:
        """The problems after this run; whoever is to be told of a change is told."""
        attempts = [
            *attempts_of(results),
            *(plan.attempt_of(step) for step in steps if not step.remedy),
        ]
        outcome = alerts.record(
            self.settings.state_dir,
            self.settings.scrubbed(before["checks"]),
            self.settings.scrubbed(after["checks"]),
            [
                replace(each, reason=self.settings.scrubbed(each.reason), advice=self.settings.scrubbed(each.advice))
                for each in attempts
            ],
            self.settings.alerts,
            socket.gethostname(),
            max_failures=self._policy().max_failures,
            check_mode=self.dry_run,
            runbook_url=self.settings.runbook_url,
        )
        self.notes += outcome.warnings
        return outcome

    def _confirmed(self, health: Health) -> t.Tuple[Health, t.List[str]]:
        """(the health with what fails measured once more, the names that failed twice). See ``plan.confirm``."""
        names = plan.to_confirm(health["checks"], self._policy())
        if not names:
            return health, list(health["failing"])
        time.sleep(self._policy().confirm_after)
        again = suite.run(replace(self.settings.checks, subjects=tuple(names)))
        checks = plan.confirm(health["checks"], again["checks"])
        merged = {
            **health,
            "checks": checks,
            "failing": plan.failing(checks),
            "status": report.worst([check["status"] for check in checks if check["status"] != "skipped"]),
            "measured_at": again["measured_at"],
            "duration_ms": round(health["duration_ms"] + again["duration_ms"], 1),
        }
        return merged, plan.failing(checks)

    def _policy(self) -> plan.Policy:
        return policies.parse(
            self.options.policy,
            policies.Policy(**{name: getattr(self.options, name) for name in policies.RANGES}),
            remedies=plan.NAMES,
            subjects=NAMES,
            name="recovery.policy",
        )

    def _plan(self, health: Health, confirmed: t.Sequence[str]) -> t.List[plan.Step]:
        options, policy = self.options, self._policy()
        services = self.settings.checks.services
        state, warnings = recovery_state.read(
            self.settings.state_dir,
            services,
            policy,
            confirmed=set(confirmed) if policy.confirm_after else None,
            ignore_cooldown=self.ignore_cooldown,
        )
        self.notes += warnings
        means = {
            plan.LOG_ROTATION: options.log_directories,
            plan.DISK_CLEANUP: options.disk_sources,
            plan.SERVICE_RESTART: services,
            plan.DATABASE_REPAIR: self.settings.checks.database_dsn,
            plan.CACHE_CLEAR: options.cache_prefixes or os.path.exists(options.token_file),
            plan.BACKGROUND_THROTTLE: self.settings.checks.redis_url,
        }
        permissions = {
            plan.DATABASE_REPAIR: options.repair_database,
            plan.BACKGROUND_THROTTLE: options.throttle,
            plan.CPU_RELIEF: options.relieve_cpu,
            plan.SPEECH_ENGINE: options.install_speech,
        }
        allowed = plan.Allowed(
            services=services,
            unavailable={name for name, present in means.items() if not present},
            forbidden={name for name, permitted in permissions.items() if not permitted},
            only=self.only,
            ignore_cooldown=self.ignore_cooldown,
            policy=policy,
            caller=plan.PROGRAM,
        )
        return plan.plan(health["checks"], allowed, state)

    @contextlib.contextmanager
    def _held(self, run_id: str, failing: t.Sequence[str]) -> t.Iterator[None]:
        """The lock and the journal of what changes this host, which the playbooks take as well."""
        state, holder = str(self.settings.state_dir), holders.name_of(os.getpid())
        begun = deployments.begin(
            state,
            run_id,
            kind=deployments.RECOVER,
            holder=holder,
            failing=failing,
            force=self.lock_force,
            check_mode=self.dry_run,
        )
        self.notes += begun.warnings
        try:
            with contextlib.nullcontext() if self.dry_run else lock.heartbeat(self.settings.state_dir, holder):
                yield
        finally:
            deployments.end(
                state, begun.extra["deployment_id"], holder=holder, state=deployments.FINISHED, check_mode=self.dry_run
            )

    def _remedies(self, before: Health, steps: t.Sequence[plan.Step]) -> t.List[RecoveryResult]:
        """Carries out the steps, one after the other; what no remedy is known for is no result."""
        results = []
        for step in steps:
            if not step.remedy:
                continue
            result = RecoveryResult(
                action=step.remedy, timestamp=deployments.now(), checks=list(step.subjects), advice=step.advice
            )
            results.append(result)
            if step.refused:
                result.refuse(step.refused, step.advice, waits=bool(step.waits_until))
                continue
            if self.stopping:
                result.refuse("The run was told to end before it was begun.")
                continue
            try:
                outcome = self.recovery_actions[RecoveryAction(step.remedy)](before, step)
            except OpsError as error:
                # What was done before the error is among its details.
                result.changed = bool(error.details.get("changed"))
                result.fail(str(error))
                result.details = {
                    key: error.details[key] for key in ("before", "after", "actions", "refused") if key in error.details
                }
            except Exception as error:  # one remedy that breaks must not keep the others from being tried
                result.fail(f"{type(error).__name__}: {error}")
            else:
                result.changed, result.message = outcome.changed, outcome.msg
                result.details = {
                    "before": outcome.before,
                    "after": outcome.after,
                    "actions": outcome.actions,
                    **outcome.extra,
                }
        return results

    def _rotate_logs(self, _before: Health, _step: plan.Step) -> Result:
        return rotate.run_with(
            {
                "paths": [f"{directory.rstrip('/')}/*.log" for directory in self.options.log_directories],
                "max_size": self.options.log_max_size,
                "keep": self.options.log_keep,
                "allow_loss": self.options.log_allow_loss,
                "reopen": list(self.options.log_reopen),
            },
            check_mode=self.dry_run,
        )

    def _clean_disk(self, _before: Health, _step: plan.Step) -> Result:
        return cleanup.run(
            self.options.disk_sources,
            self.options.disk_targets,
            protect=self.options.disk_protect,
            check_mode=self.dry_run,
        )

    def _relieve_cpu(self, _before: Health, step: plan.Step) -> Result:
        checks = self.settings.checks
        pids = service_pids(checks.services, checks.open_manager)
        options = cpu_relief.Options(
            state="normal" if step.remedy == plan.CPU_RELIEF_END else "relieved",
            protect=tuple(self.options.relief_protect),
            protected_pids=pids,
            min_percent=self.options.relief_min_percent,
            revert_after=self.options.relief_seconds,
            state_dir=str(self.settings.state_dir),
        )
        return cpu_relief.run(options, check_mode=self.dry_run)

    def _restart_services(self, _before: Health, step: plan.Step) -> Result:
        checks = self.settings.checks
        options = service_restart.Options(
            only_if=("failed", "stopped", "unhealthy"),
            max_restarts=self.options.max_restarts,
            min_healthy_time=self.options.min_healthy_time,
            healthy_deadline=self.options.healthy_deadline,
            wait_timeout=self.options.wait_timeout,
            allow_task_loss=self.options.allow_task_loss,
            reason="automated recovery",
            state_dir=str(self.settings.state_dir),
        )
        services = plan.remaining_services(checks.services, step.without)
        manager = checks.open_manager()
        return service_restart.run(parse_services(services), manager, options, check_mode=self.dry_run)

    def _repair_database(self, before: Health, _step: plan.Step) -> Result:
        dsn = self.settings.checks.database_dsn
        scripts = [
            {
                "path": path,
                "undo_path": undo if os.path.exists(undo := path[: -len(".sql")] + ".undo.sql") else "",
                "always_run": True,
            }
            for path in self.options.database_scripts
            if path.endswith(".sql")
        ]
        limits = {"lock_timeout": 5.0, "statement_timeout": 300.0, "retries": 5, "retry_delay": 0.5, "run_id": ""}
        total = Result()
        if scripts:
            total = sql_script.from_params(
                {"dsn": dsn, "scripts": scripts, "state": "applied", "variables": {}, **limits}, check_mode=self.dry_run
            )
        repaired = rls_entry.repair(
            {
                "dsn": dsn,
                "schemas": None,
                "roles": None,
                "state": "repaired",
                "fix": ["recursion"],
                "helper_schema": "rls_ops",
                "owner": None,
                "allow_unbounded": self.options.rls_allow_unbounded,
                "accept_captured_columns": self.options.rls_accept_captured_columns,
                "after_scripts": scripts if self.dry_run else [],
                "after_variables": {},
                "undo_dir": str(self.settings.state_dir / "undo"),
                "undo_path": None,
                "force": False,
                **limits,
            },
            check_mode=self.dry_run,
        )
        details = {check["name"]: check["details"] for check in before["checks"]}
        if not scripts and (
            details.get("database", {}).get("missing_tables") or details.get("database", {}).get("missing_columns")
        ):
            total.msg = "Missing tables are made by scripts, and none is configured (recovery.database_scripts)."
        return Result(
            changed=total.changed or repaired["changed"],
            before={"scripts": total.before, "policies": repaired["before"]},
            after={"scripts": total.after, "policies": repaired["after"]},
            actions=[*total.actions, *repaired["actions"]],
            msg=f"{total.msg} {repaired['msg']}".strip(),
        )

    def _clear_cache(self, before: Health, _step: plan.Step) -> Result:
        """The repaired ``clear_expired()`` itself, by the health API; without one, the prefixes that the configuration
        gives away.
        """
        eternal = next(int(check["value"] or 0) for check in before["checks"] if check["name"] == "redis")
        checks = self.settings.checks
        if self.options.cache_prefixes:
            options = cache_purge.Options(prefixes=tuple(self.options.cache_prefixes), missing_ttl=True)
            return cache_purge.run(checks.redis_url, options, check_mode=self.dry_run)
        token = token_of("", self.options.token_file)
        action = {
            "action": "clear",
            "target": "/api/v1/system/cache/clear",
            "changed": True,
            "keys_without_expiry": eternal,
        }
        if self.dry_run:
            return Result(
                changed=True,
                before={"keys_without_expiry": eternal},
                actions=[action],
                msg=f"{eternal} keys without an expiry would get one.",
            )
        remaining, calls = eternal, 0
        # One call ends after 25 s, and the next one goes on where it ended.
        while calls < _CLEAR_CALLS:
            self._call_clear(token, first=not calls)
            calls += 1
            count = suite.run(replace(checks, subjects=("redis",)))["checks"][0]["value"]
            fewer = count is not None and count < remaining
            remaining = count if count is not None else remaining
            if not count or not fewer:
                break
        return Result(
            changed=remaining != eternal,
            before={"keys_without_expiry": eternal},
            after={"keys_without_expiry": remaining},
            actions=[action],
            msg=f"Keys without an expiry: {eternal} before, {remaining} now.",
        )

    def _call_clear(self, token: str, *, first: bool) -> None:
        """Raises ``OpsError`` where the backend does not do it; after the first call a refusal only ends the work."""
        import requests

        base_url = self.settings.checks.base_url
        try:
            answer = requests.post(
                f"{base_url}/api/v1/system/cache/clear?cache_type=redis",
                headers={"X-Ops-Token": token},
                timeout=60,
            )
        except requests.RequestException as error:
            if not first:
                return
            raise OpsError(
                f"The health API of {base_url} does not answer: {type(error).__name__}.",
                hint="The http check says more.",
            ) from None
        if answer.status_code != 200 and first:
            raise OpsError(
                f"The health API refuses to clear the cache ({answer.status_code}).",
                hint=f"Compare the token in {self.options.token_file}.",
            )

    def _throttle(self, _before: Health, _step: plan.Step) -> Result:
        return celery_throttle.run(
            self.settings.checks.redis_url,
            level=self.options.throttle_level,
            expires_s=self.options.throttle_seconds,
            reason="automated recovery",
            check_mode=self.dry_run,
        )

    def _install_speech(self, _before: Health, _step: plan.Step) -> Result:
        # It needs neither the network nor the backend's environment; the chain of a deployed backend ends with it.
        return tts_engine.run(tts_engine.Options(engines=("espeak",), primary="fallback"), check_mode=self.dry_run)

    def _trim_memory(self, _before: Health, step: plan.Step) -> Result:
        checks = self.settings.checks
        token = self.options.token_file if os.path.exists(self.options.token_file) else ""
        limits = checks.thresholds.get("memory")
        return trim.run_with(
            {
                "services": plan.remaining_services(checks.services, step.without),
                "service_manager": checks.service_manager,
                "supervisor_socket": checks.supervisor_socket,
                "supervisor_username": checks.supervisor_username,
                "supervisor_password": checks.supervisor_password,
                "scope": checks.scope,
                "memory_limits_mb": dict(checks.memory_limits_mb),
                "thresholds": limits.as_dict() if limits else {},
                "target": self.options.memory_target or None,
                "base_url": checks.base_url if token else "",
                "token_file": token,
                "redis_url": checks.redis_url,
                "allow_restart": self.options.allow_restart,
                "protect": list(self.options.memory_protect),
                "max_restarts": self.options.max_restarts,
                "state_dir": str(self.settings.state_dir),
            },
            check_mode=self.dry_run,
        )

    def _report(
        self,
        before: Health,
        after: Health,
        results: t.Sequence[RecoveryResult],
        steps: t.Sequence[plan.Step],
        run_id: str,
    ) -> Report:
        actions = [result for result in results if result.changed]
        # What has no remedy here, and where it is to be had.
        tried = {name for result in results for name in result.checks}
        problems = [check for check in after["checks"] if not program_output.is_quiet(check)]
        return {
            "timestamp": deployments.now(),
            "run_id": run_id,
            "dry_run": self.dry_run,
            "issues_detected": [
                program_output.issue(check) for check in before["checks"] if not program_output.is_quiet(check)
            ],
            "recovery_actions_taken": 0 if self.dry_run else len(actions),
            "recovery_actions_planned": len(actions) if self.dry_run else 0,
            "successful_recoveries": sum(bool(result.success) and result.changed for result in results),
            "failed_recoveries": sum(result.outcome in ("failed", "partly") for result in results),
            "refused_recoveries": sum(bool(result.refused) for result in results),
            "recovery_results": [result.as_dict() for result in results],
            "without_remedy": [
                RecoveryResult("", refused=step.refused, checks=list(step.subjects), advice=step.advice).as_dict()
                for step in steps
                if not step.remedy
            ],
            "remaining": [{**program_output.issue(check), "tried": check["name"] in tried} for check in problems],
            "system_health_summary": _summary(after),
            "status": after["status"],
            "before": _outcome(before),
            "after": _outcome(after),
            "notes": [*self.settings.notes, *self.notes],
            "settings": self.settings.source,
        }

    def _note(self, report: Report, requests: t.Mapping[str, t.Any], duration_s: float) -> None:
        """The record of the playbook recover, with what became of each remedy; then the requests that led to it are
        taken away.
        """
        state = self.settings.state_dir
        kinds = [request["kind"] for request in requests["requests"]]
        results = [brief(each) for each in report["recovery_results"]]
        history.append(
            state / history.FILE,
            HistoryRecord(
                run_id=report["run_id"],
                trigger="api" if "recover" in kinds else "backend" if kinds else program_output.trigger(),
                requests=tuple(requests["requests"]),
                host=socket.gethostname(),
                action="recover",
                before=tuple(report["before"]["failing"]),
                after=tuple(report["after"]["failing"]),
                not_checked=tuple(report["after"]["not_measured"]),
                errors=tuple(
                    f"{each['action']}: {each['message']}"
                    for each in results
                    if each["outcome"] in ("failed", "partly")
                ),
                results=tuple(results),
                duration_s=duration_s,
                problems=tuple(report["problems"]),
            ),
        )
        ids = [entry["id"] for entry in (*requests["requests"], *requests["refused"])]
        if ids:
            recovery_requests.handle(state / "requests", ids)

    def get_recovery_history(self, limit: t.Optional[int] = None) -> t.List[t.Dict[str, t.Any]]:
        """What became of each remedy, the newest run first, over all runs."""
        entries = []
        for record in history.read(self.settings.state_dir / history.FILE, self.max_history):
            for each in record.results:
                if all(isinstance(each.get(key), str) for key in ("timestamp", "action", "outcome", "message")):
                    entries.append({"details": None, **each})
        return entries[:limit]


def _outcome(health: Health) -> t.Dict[str, t.Any]:
    return {key: health[key] for key in ("status", "failing", "not_measured", "left_out", "checks")}


def _summary(after: Health) -> t.Dict[str, t.Any]:
    """The summary of the first version; what was not measured is not there."""
    detailed = {check["name"]: program_output.detailed(check) for check in after["checks"]}

    def part(names: t.Sequence[str], **further: t.Any) -> t.Dict[str, t.Any]:
        bad = [detailed[name] for name in names if name in detailed and detailed[name]["healthy"] is False]
        measured = any(not detailed[name]["skipped"] for name in names if name in detailed)
        section: t.Dict[str, t.Any] = {"healthy": not bad if measured else None, "needs_recovery": bool(bad)}
        if bad and any(each["status"] == "unknown" for each in bad):
            section["error"] = "; ".join(each["message"] for each in bad)
        return {**section, **{key: value for key, value in further.items() if value is not None}}

    memory, disk, cpu = (detailed.get(name, {}) for name in ("memory", "disk", "cpu"))
    large = (disk.get("details") or {}).get("large_logs")
    pids = {
        name: entry["pid"]
        for name, entry in ((detailed.get("services", {}).get("details") or {}).get("services") or {}).items()
    }
    bad = [
        detailed[name]["message"]
        for name in ("database", "rls")
        if name in detailed and detailed[name]["healthy"] is False
    ]
    skipped = not any(name in detailed and not detailed[name]["skipped"] for name in ("database", "rls"))
    summary = {
        "memory": part(
            ["memory"],
            current_percent=memory.get("memory_percent"),
            available_gb=memory.get("available_memory_gb"),
            threshold=(memory.get("thresholds") or {}).get("warning"),
        ),
        "disk": part(
            ["disk"],
            current_percent=disk.get("disk_percent"),
            free_gb=disk.get("free_space_gb"),
            threshold=(disk.get("thresholds") or {}).get("warning"),
        ),
        "logs": (
            {
                "healthy": not large,
                "needs_recovery": bool(large),
                "large_log_files": len(large),
                "large_logs": large,
            }
            if large is not None
            else part([])
        ),
        "services": part(
            ["services", "http", "celery"],
            process_memory_percent=memory.get("value"),
            process_cpu_percent=cpu.get("process_cpu_percent"),
            pids=pids or None,
        ),
        "database": part(
            ["database", "rls"],
            detected_issues=bad,
            note="" if bad else "Not measured." if skipped else "No issue was found.",
        ),
    }
    summary["logs"]["threshold_mb"] = LOG_MAX_BYTES // 1_000_000
    return summary


def text(content: Report) -> str:
    """For a person: what was wrong, what was done about it, what is left."""
    was, now = content["before"], content["after"]
    if not was["failing"] and not content["recovery_results"]:
        return "\n".join(
            [f"{report.summary(was).rstrip('.')}; nothing was done.", *(f"note: {each}" for each in content["notes"])]
        )
    results = [*content["recovery_results"], *content["without_remedy"]]
    lines = recovery_text.lines(was["checks"], now["checks"], results, check_mode=content["dry_run"])
    if content["dry_run"]:
        return "\n".join([*lines, "Nothing was changed.", *(f"note: {each}" for each in content["notes"])])
    if not now["failing"]:
        lines.append(f"Now: {report.summary(now)}" if now["not_measured"] else "Everything is healthy now.")
        if now["left_out"] and not now["not_measured"]:
            lines.append(f"Left out on purpose: {', '.join(now['left_out'])}.")
    return "\n".join([*lines, *(f"note: {each}" for each in content["notes"])])


async def main(settings: t.Optional[Settings] = None) -> Report:
    return await AutomatedRecovery(settings).check_and_recover()


def parser() -> argparse.ArgumentParser:
    program_parser = argparse.ArgumentParser(
        prog="automated_recovery.py",
        description=(
            "Runs all health checks on this host, applies the remedies of the recovery plan in their order, and"
            " verifies the result; as the playbook recover does."
        ),
        epilog=(
            "Exit status: 0 everything is healthy (now), 1 a warning is left or a remedy failed, 2 something critical"
            " is left, 3 unknown or another run holds the host; with --dry-run that of the present state."
            " Secrets belong into the configuration (/etc/wheels-ops/monitor.json, mode 0600) or into REDIS_URL and"
            " DATABASE_URL, never onto a command line."
        ),
    )
    program_parser.add_argument(
        "--config", default="", metavar="FILE", help="configuration to read instead of /etc/wheels-ops/monitor.json"
    )
    program_parser.add_argument(
        "--dry-run",
        "--check",
        action="store_true",
        dest="dry_run",
        help="show what would be done, and change nothing",
    )
    program_parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    program_parser.add_argument(
        "--output", default="", metavar="FILE", help="also write the JSON there, as a whole, readable by its owner only"
    )
    program_parser.add_argument(
        "--only",
        default="",
        metavar="ACTION,...",
        help=f"try only these of: {', '.join(action.value for action in RecoveryAction)}",
    )
    program_parser.add_argument(
        "--now",
        action="store_true",
        help="do not wait for the cool-down of a remedy that was just tried; the budget of restarts holds",
    )
    program_parser.add_argument(
        "--repair-database", action="store_true", help="allow this run to repair the database's tables and policies"
    )
    program_parser.add_argument(
        "--lock-force",
        default="",
        metavar="HOLDER",
        help="take the lock of this host from the holder of this id, which a refused run names",
    )
    program_parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION} (wheels.ops)")
    program_parser.add_argument(
        "--history", type=int, metavar="N", help="show the last N remedies that were tried, and do nothing else"
    )
    return program_parser


def run(words: t.Optional[t.Sequence[str]] = None) -> int:
    """The command line; gives the exit status."""
    options = parser().parse_args(words)
    settings = None
    try:
        settings = load(options.config)
        if options.repair_database:
            settings = replace(settings, recovery=replace(settings.recovery, repair_database=True))
        only = [word for word in options.only.replace(" ", "").split(",") if word]
        if only:
            choices("--only", only, [action.value for action in RecoveryAction])
        recovery = AutomatedRecovery(
            settings, dry_run=options.dry_run, ignore_cooldown=options.now, only=only, lock_force=options.lock_force
        )
        if options.history is not None:
            entries = recovery.get_recovery_history(max(0, options.history))
            rows = [
                f"{each['timestamp']}  {each['action']:20} {each['outcome']:8} {each['message']}" for each in entries
            ]
            sys.stdout.write(
                (json.dumps(entries, indent=1) if options.json else "\n".join(rows) or "No remedy was tried yet.")
                + "\n"
            )
            return 0
        _end_in_order(recovery)
        # Begun beside another run, this one would act on what that one has fixed meanwhile. A dry run writes nothing,
        # not even a lock.
        with (
            contextlib.nullcontext()
            if options.dry_run
            else program_output.exclusive(settings.state_dir / "recovery.lock", 0)
        ):
            report = recovery.run()
    except OpsError as error:
        return program_output.report_unknown(str(error), settings, as_json=options.json)
    except KeyboardInterrupt:
        return program_output.report_unknown(
            "Interrupted; what was begun is not verified.", settings, as_json=options.json
        )
    except Exception as error:  # exit status 1, that of a traceback, would say: a warning
        return program_output.report_unknown(
            f"Internal error in wheels.ops; please report it: {type(error).__name__}: {error}",
            settings,
            as_json=options.json,
        )
    failure = program_output.write_report(options.output, report)
    sys.stdout.write((json.dumps(report, indent=1, default=str) if options.json else text(report)) + "\n")
    return program_output.exit_status(report["status"]) or (
        1 if report["failed_recoveries"] else 0 if failure else program_output.UNKNOWN
    )


def _end_in_order(recovery: AutomatedRecovery) -> None:
    """A first SIGTERM or Ctrl-C lets the remedy that is under way end, so that no service stays stopped; a second
    breaks off.
    """

    def stop(number: int, _frame: t.Any) -> None:
        recovery.stopping = True
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
