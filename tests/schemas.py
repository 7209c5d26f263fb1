# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSON schemas (draft 2020-12) of what the product writes, for ``docs/schemas/``. ``make docs`` writes them.

Keys, types and words come from the types that the writers use; only descriptions and units stand here. A field without
a description, or a description without a field, stops the generation.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import typing as t
from pathlib import Path

from wheels_ops.health.check import Check
from wheels_ops.health.subjects import NAMES
from wheels_ops.health.thresholds import STATUSES, Thresholds
from wheels_ops.remedies.recovery_results import RecoveryResult
from wheels_ops.rls.audit.oracle import VARIANTS, Failure
from wheels_ops.rls.model.findings import KINDS, SEVERITIES, Finding
from wheels_ops.standalone.program_output import OVERALL, SEVERITY
from wheels_ops.state import problems
from wheels_ops.state.history import HistoryRecord

DIRECTORY = Path(__file__).resolve().parents[1] / "docs/schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = t.Dict[str, t.Any]

#: The statuses of a check that fails.
_BAD = [status for status in STATUSES if status not in ("ok", "skipped")]
_STAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"


def _field(description: str, **schema: t.Any) -> Schema:
    return {"description": description, **schema}


def _text(description: str, **schema: t.Any) -> Schema:
    return _field(description, type="string", **schema)


def _word(description: str, words: t.Iterable[str]) -> Schema:
    return _field(description, enum=list(words))


def _count(description: str) -> Schema:
    return _field(description, type="integer", minimum=0)


def _number(description: str, **schema: t.Any) -> Schema:
    return _field(description, type="number", **schema)


def _flag(description: str) -> Schema:
    return _field(description, type="boolean")


def _list(description: str, items: Schema) -> Schema:
    return _field(description, type="array", items=items)


def _texts(description: str) -> Schema:
    return _list(description, {"type": "string"})


def _any_object(description: str) -> Schema:
    return _field(description, type="object")


def _names(description: str) -> Schema:
    return _list(description, {"enum": list(NAMES)})


def _time(description: str) -> Schema:
    return _text(f"{description} UTC, for example 2025-07-30T02:11:00Z.", pattern=_STAMP)


def _object(properties: t.Mapping[str, Schema], *, optional: t.Collection[str] = (), strict: bool = True) -> Schema:
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": dict(properties),
        "additionalProperties": not strict,
    }


_SIMPLE: t.Mapping[t.Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    t.Any: {},
}


def _of_type(hint: t.Any) -> Schema:
    """The schema of a type as ``json.dumps`` writes its values."""
    if hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    origin, arguments = t.get_origin(hint), t.get_args(hint)
    if origin is t.Union:
        return {"type": [_of_type(each)["type"] for each in arguments]} | {
            key: value for each in arguments for key, value in _of_type(each).items() if key != "type"
        }
    if origin in (list, tuple):
        return {"type": "array", "items": _of_type(arguments[0])}
    if origin in (dict, collections.abc.Mapping):
        values = _of_type(arguments[1])
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    raise SystemExit(f"The schemas do not know the type {hint}: add it to tests/schemas.py.")


def _of_class(
    kind: type,
    descriptions: t.Mapping[str, str],
    *,
    replace: t.Optional[t.Mapping[str, Schema]] = None,
    without: t.Collection[str] = (),
) -> t.Dict[str, Schema]:
    """The properties of a dataclass; ``replace`` narrows the type of a field."""
    hints = t.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind) if each.name not in without]
    if set(names) != set(descriptions):
        wrong = ", ".join(sorted(set(names) ^ set(descriptions)))
        raise SystemExit(f"{kind.__name__}: tests/schemas.py must describe its fields and no others: {wrong}.")
    narrowed = replace or {}
    return {
        name: {"description": descriptions[name], **(narrowed[name] if name in narrowed else _of_type(hints[name]))}
        for name in names
    }


def _check() -> t.Dict[str, Schema]:
    limits = _of_class(Thresholds, _LIMITS)
    return _of_class(
        Check,
        {
            "name": "The subject that was measured.",
            "status": "Its grading, worst last. skipped: not measured; unknown: not measurable.",
            "value": "What was measured, in unit; null where there is no single value.",
            "unit": "The unit of value and thresholds, such as percent, ms or seconds.",
            "thresholds": "The limits that graded the value, in its unit; empty where there are none.",
            "message": "The outcome in a sentence, without any secret.",
            "remedy": "The module or step that fixes it; empty where nothing is wrong or none is known.",
            "duration_ms": "How long the check took, in milliseconds.",
            "details": "What else was measured; its keys depend on the subject, units are in their names.",
        },
        replace={
            "name": {"enum": list(NAMES)},
            "status": {"enum": list(STATUSES)},
            "thresholds": _object(limits, optional=list(limits)),
            "duration_ms": {"type": "number", "minimum": 0},
        },
    )


_LIMITS = {
    "warning": "Above it the check is a warning; null for no such limit.",
    "critical": "Above it the check is critical; null for no such limit.",
    "emergency": "Above it the check is an emergency; null for no such limit.",
}


def _score(description: str) -> Schema:
    return _field(
        f"{description}, 0 to 100; null where it could not be computed.",
        type=["number", "null"],
        minimum=0,
        maximum=100,
    )


def _health() -> t.Dict[str, Schema]:
    return {
        "status": _word("The worst status of all that was measured.", STATUSES),
        "checks": _list("One entry for each subject that was asked for, in the order of a report.", _object(_check())),
        "failing": _names("The checks that are neither ok nor skipped."),
        "not_measured": _names("The checks that were skipped."),
        "left_out": _names("The subjects that somebody chose not to have."),
        "scores": _field(
            "The scores of the host (docs/scores.md).",
            **_object(
                {
                    "performance": _score("Performance"),
                    "stability": _score("Stability over the last day"),
                    "user_experience": _score("User experience"),
                }
            ),
        ),
        "measured_at": _time("When the checks were made."),
        "duration_ms": _number("How long all checks took together, in milliseconds.", minimum=0),
    }


def _deployment() -> Schema:
    properties = {
        **_health(),
        "changed": _field("Always false: nothing was changed.", const=False),
        "msg": _text("The outcome in words, with what was not measured and why."),
    }
    # Ansible adds keys of its own to what a task registers.
    return _object(properties, strict=False)


def _issue() -> t.Dict[str, Schema]:
    return {
        "check": _word("The check that fails.", NAMES),
        "issue": _text("The message of the check."),
        "severity": _word("What the first version called the status.", dict.fromkeys(SEVERITY.values())),
        "recommendation": _text("What a person does about it."),
    }


def _unknown() -> Schema:
    """What both programs print where there is no report."""
    return _object({"status": _field("There is no report.", const="unknown"), "msg": _text("Why there is none.")})


def _program(properties: t.Mapping[str, Schema]) -> Schema:
    """A report, or why there is none."""
    return {
        "if": {"required": ["msg"]},
        "then": {"$ref": "#/$defs/no_report"},
        "else": {"$ref": "#/$defs/report"},
        "$defs": {"report": _object(properties), "no_report": _unknown()},
    }


def _monitor() -> Schema:
    levels = dict.fromkeys(SEVERITY.values())
    summary = {
        "overall_status": _word("The state of the host.", [name for name, _message in OVERALL.values()]),
        "overall_message": _text("The state of the host in a sentence."),
        "total_checks": _count("Checks that were made."),
        "healthy_checks": _count("Checks that passed."),
        "unhealthy_checks": _count("Checks that failed or could not be measured."),
        "skipped_checks": _count("Checks that were not made."),
        "health_percentage": _number("Checks that passed, in percent of those made.", minimum=0, maximum=100),
        "issues_by_severity": _field(
            "Failing checks by severity.", **_object({level: _count(f"Of severity {level}.") for level in levels})
        ),
        "total_issues": _count("Failing checks."),
        "check_duration_seconds": _number("How long the checks took, in seconds.", minimum=0),
    }
    detailed = {
        **_check(),
        "healthy": _field("Whether it passed; null where it was skipped.", type=["boolean", "null"]),
        "severity": _word("What the first version called the status.", dict.fromkeys(SEVERITY.values())),
        "skipped": _flag("Whether it was not made."),
        "issue": _text("The message, where it fails."),
        "recommendation": _text("What a person does about it, where it fails."),
    }
    return _program(
        {
            "timestamp": _text("When the report was written, ISO 8601 with the offset of UTC."),
            "duration_seconds": _number("How long the checks took, in seconds.", minimum=0),
            "summary": _field("The summary of the first version.", **_object(summary)),
            "detailed_results": _field(
                "Each check by its name, with the measures of the first version; units are in their names.",
                type="object",
                propertyNames={"enum": list(NAMES)},
                additionalProperties=_object(detailed, optional=("issue", "recommendation"), strict=False),
            ),
            "issues_found": _list("Every check that fails.", _object(_issue())),
            "recommendations": _texts("What a person does, each once."),
            **_health(),
            "settings": _text("Where the configuration came from: a file, or discovery."),
            "notes": _texts("What a person should know of the run."),
        }
    )


def _recovery() -> Schema:
    result = _of_class(
        RecoveryResult,
        {
            "action": "The remedy; empty for checks that have none.",
            "success": "No error, and the checks that asked for it pass afterwards; null in a dry run.",
            "message": "What became of it, in words.",
            "timestamp": "When it ran, UTC; empty where it did not.",
            "details": "What the remedy returned; its keys depend on the remedy, units are in their names.",
            "changed": "Whether it changed anything; in a dry run whether it would.",
            "refused": "Why it was not begun; empty where it was.",
            "outcome": "done, partly, nothing, failed, refused, or in a dry run would; empty without a remedy.",
            "checks": "The checks that asked for it.",
            "advice": "What a person does where it was refused or did not help.",
            "waits": "It was refused for now and may begin later.",
        },
        replace={
            "outcome": {"enum": ["", "done", "partly", "nothing", "failed", "refused", "would"]},
            "checks": {"type": "array", "items": {"enum": list(NAMES)}},
        },
    )
    measured = {name: _health()[name] for name in ("status", "failing", "not_measured", "left_out", "checks")}
    return _program(
        {
            "timestamp": _text("When the report was written, UTC."),
            "run_id": _text("The run, as the lock and the history name it."),
            "dry_run": _flag("Whether nothing was to be changed."),
            "issues_detected": _list("Every check that failed before.", _object(_issue())),
            "recovery_actions_taken": _count("Remedies that changed something; 0 in a dry run."),
            "recovery_actions_planned": _count("Remedies that would change something; 0 in a real run."),
            "successful_recoveries": _count("Remedies that changed something and helped."),
            "failed_recoveries": _count("Remedies that failed or helped in part only."),
            "refused_recoveries": _count("Remedies that were not begun."),
            "recovery_results": _list("What became of each remedy.", _object(result)),
            "without_remedy": _list("Checks for which there is no remedy here.", _object(result)),
            "remaining": _list(
                "Every check that fails afterwards.",
                _object({**_issue(), "tried": _flag("Whether a remedy was tried for it.")}),
            ),
            "system_health_summary": _any_object("The summary of the first version."),
            "status": _word("The worst status afterwards.", STATUSES),
            "before": _field("The health before.", **_object(measured)),
            "after": _field("The health afterwards.", **_object(measured)),
            "notes": _texts("What a person should know of the run."),
            "settings": _text("Where the configuration came from: a file, or discovery."),
            "problems": _list("The problems that this run changed.", _change()),
            "alerts": _texts("The alerts that were delivered."),
        }
    )


_CHANGES = [problems.BEGUN, problems.TREATED, problems.ESCALATED, problems.WORSENED, problems.ENDED]


def _change() -> Schema:
    return _object(
        {
            "subject": _text("The subject whose check fails."),
            "change": _word("What happened to the problem.", _CHANGES),
            "status": _word("The status of the check.", ["", *_BAD]),
            "since": _number("When it began, in seconds since the epoch."),
            "runs": _count("Runs that found it."),
            "reason": _text("Why a person is needed, where it is escalated."),
            "repaired_by": _texts("The remedies after which it ended."),
        },
        optional=("reason", "repaired_by"),
    )


def _history() -> Schema:
    properties = _of_class(
        HistoryRecord,
        {
            "time": "When the line was written. UTC, for example 2025-07-30T02:11:00Z.",
            "action": "What ran: monitor, recover, maintenance and so on.",
            "trigger": "What started it: timer, manual, scheduled, api, backend and so on.",
            "host": "The name of the host.",
            "run_id": "The run, as the lock names it.",
            "subject": "What it was about, where it was about one thing.",
            "before": "The checks that failed before.",
            "after": "The checks that failed afterwards; not there where nothing was checked.",
            "not_checked": "The checks that were skipped in the last health run.",
            "outcome": "healthy, 'healthy, N not checked', not healthy, or the words of the writer.",
            "errors": "What went wrong.",
            "results": "One object for each remedy.",
            "requests": "The requests of the health API that led to the run.",
            "problems": "One object for each change of a problem.",
            "checks": "The status of each check that was made, by its name.",
            "scores": "The scores of the host, 0 to 100; null where one could not be computed.",
            "started_at": "When the run began. UTC.",
            "awx_schedule": "The schedule of AWX that started the job.",
            "awx_job_id": "The number of the job of AWX that ran it.",
            "duration_s": "How long the run took, in seconds.",
            "bytes_freed": "What was freed on disk, in bytes.",
        },
        without=("extra",),
        replace={
            "time": {"type": "string", "pattern": _STAMP},
            "after": {"type": "array", "items": {"type": "string"}},
            "checks": {"type": "object", "additionalProperties": {"enum": list(STATUSES)}},
            "scores": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "duration_s": {"type": "number", "minimum": 0},
            "bytes_freed": {"type": "number"},
            "awx_job_id": {"type": "number"},
            "problems": {"type": "array", "items": _change()},
        },
    )
    # A writer may add keys of its own, which every reader keeps.
    return _object(properties, optional=[name for name in properties if name not in ("time", "action")], strict=False)


def _alert() -> t.Dict[str, Schema]:
    return {
        "version": _field("The version of this form.", const=1),
        "event": _word("What happened to the problem.", sorted(problems.ALERTED)),
        "id": _text("The same for every alert of one problem: HOST/SUBJECT/SECONDS."),
        "host": _text("The host."),
        "subject": _text("The subject whose check fails."),
        "status": _word("The status of the check; ok where the problem ended.", ["", "ok", *_BAD]),
        "worst": _word("The worst status since it began.", ["", *_BAD]),
        "title": _text("The alert in a few words."),
        "text": _text("The alert in sentences, with the title."),
        "message": _text("The message of the check."),
        "reason": _text("Why a person is needed; empty where none is."),
        "advice": _text("What that person does; empty where nothing is known."),
        "runbook": _text("The runbook of the subject, an address or a path."),
        "since": _time("When the problem began."),
        "at": _time("When this happened."),
        "runs": _count("Runs that found the problem."),
        "repaired_by": _texts("The remedies after which it ended."),
    }


def _problems() -> Schema:
    problem = _of_class(
        problems.Problem,
        {
            "subject": "The subject whose check fails.",
            "status": "The status in the last run; empty where an earlier release did not write it.",
            "message": "The message of the check.",
            "state": "Where the problem is in its life.",
            "since": "When it began, in seconds since the epoch.",
            "changed": "When its state changed last, in seconds since the epoch.",
            "runs": "Runs that found it.",
            "worst": "The worst status since it began; empty where an earlier release did not write it.",
            "reason": "Why a person is needed; empty where none is.",
            "advice": "What that person does; empty where nothing is known.",
            "failures": "How often each remedy did not help.",
        },
        replace={
            "status": {"enum": ["", *_BAD]},
            "worst": {"enum": ["", *_BAD]},
            "state": {"enum": [problems.SUSPECTED, problems.BEGUN, problems.TREATED, problems.ESCALATED]},
            "runs": {"type": "integer", "minimum": 0},
        },
    )
    pending = {
        "id": _text("The alert and its receiver."),
        "receiver": _text("The receiver, as it is named in messages."),
        "alert": _field("The alert, as a webhook gets it.", **_object(_alert())),
        "created": _number("When it was queued, in seconds since the epoch."),
        "tries": _count("How often it could not be delivered."),
        "next": _number("Not before this it is tried again, in seconds since the epoch."),
    }
    return _object(
        {
            "problems": _list("The open problems.", _object(problem)),
            "stopped": _text("Why no remedy is begun any more; empty where remedies go on."),
            "pending": _list("Alerts that are not delivered yet.", _object(pending)),
        }
    )


def _rls_audit() -> Schema:
    failure = {
        **_of_class(
            Failure,
            {
                "role": "A role that stands for all in roles.",
                "relation": "The table or view, qualified and quoted as SQL needs it.",
                "command": "The access that was asked for.",
                "sqlstate": "The SQLSTATE of PostgreSQL's refusal.",
                "message": "PostgreSQL's message.",
                "witness": "How the recursion comes about, one step an element.",
                "roles": "Every role that is refused in the same way.",
                "reachable": "False where the role lacks the table privilege.",
            },
            replace={"command": {"enum": list(VARIANTS)}},
        ),
        "path": _text("The witness in one line."),
    }
    finding = {
        **_of_class(
            Finding,
            {
                "kind": "The kind of the finding.",
                "object": "The table, policy or function.",
                "why": "Why it matters.",
                "statement": "The SQL that fixes it; empty where only a person can decide.",
                "severity": "error: an access fails or data is open; warning: it will, or is slow; info.",
                "details": "What a program needs; its keys depend on the kind.",
            },
            replace={
                "kind": {"enum": list(KINDS)},
                "severity": {"enum": list(SEVERITIES)},
                # A descriptor that gives a text when it is read.
                "statement": {"type": "string"},
            },
        ),
        "title": _text("What the kind is called."),
        "introduced_by": _text("The migration that introduced it; empty where that is not known."),
    }
    return _object(
        {
            "msg": _text("The outcome in a sentence."),
            "checked": _count("Accesses that were asked for or predicted."),
            "tables": _count("Tables that were read."),
            "policies": _count("Policies that were read."),
            "failing": _list("Accesses that PostgreSQL refuses while it rewrites the query.", _object(failure)),
            "findings": _list("Everything worth a person's attention, most severe first.", _object(finding)),
            "unasked": _texts("Roles that the session may not become: their accesses are predicted."),
            "load_errors": _texts("Statements that could not be loaded."),
        }
    )


def schemas() -> t.Dict[str, Schema]:
    """Every schema by the name of its file."""
    described: t.Dict[str, t.Tuple[str, Schema]] = {
        "health-report": ("before.json, after.json and health.json, and what health_info returns", _deployment()),
        "monitor-report": ("What production_health_monitor.py --json prints", _monitor()),
        "recovery-report": ("What automated_recovery.py --json prints", _recovery()),
        "history-record": ("One line of history.jsonl and monitor.jsonl", _history()),
        "problems": ("problems.json of the state directory", _problems()),
        "alert": ("The body that a webhook gets", _object(_alert())),
        "rls-audit": ("What wheels-ops rls audit --format json prints", _rls_audit()),
    }
    return {
        f"{name}.schema.json": {"$schema": DIALECT, "$id": f"urn:wheels-ops:schema:{name}", "title": title, **schema}
        for name, (title, schema) in described.items()
    }


def texts() -> t.Dict[Path, str]:
    return {DIRECTORY / name: json.dumps(schema, indent=1) + "\n" for name, schema in schemas().items()}
