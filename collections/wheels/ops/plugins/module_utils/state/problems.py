# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The life of a problem over runs: suspected, begun, being treated, escalated, ended.

A problem is a subject whose check fails. ``update`` is pure: it takes what one run measured and did, and gives the open
problems and their changes. History and alerts follow the changes, so that a fault that lasts for a day is one problem
with a count and not a record a minute. ``update_file`` keeps the problems in ``problems.json`` of the state directory.
"""

from __future__ import annotations

import dataclasses
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ..core.results import OpsError
from ..host.files import make_directories
from . import documents, lock

FILE = "problems.json"

SUSPECTED, BEGUN, TREATED, ESCALATED = "suspected", "begun", "being treated", "escalated"
_STATES = (SUSPECTED, BEGUN, TREATED, ESCALATED)
ENDED, WORSENED = "ended", "worsened"
#: Changes that people are told of.
ALERTED: t.FrozenSet[str] = frozenset({BEGUN, ESCALATED, WORSENED, ENDED})

#: Outcomes of a remedy that ran and did not help.
UNSUCCESSFUL: t.FrozenSet[str] = frozenset({"partly", "failed"})
#: A remedy that did not help as often is not tried again before the problem has ended.
MAX_FAILURES = 2
#: As many problems are kept; there are fewer subjects.
_MAX = 200
_SEVERITY = {"unknown": 1, "warning": 1, "critical": 2, "emergency": 3}
_HINT = "Move the file away: problems then begin anew, and people are told of them again."

Check = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Attempt:
    """One step of a run: a remedy for ``subjects``, and its outcome as ``RecoveryResult`` has it.

    ``waits``: it was refused for now and may begin later.
    """

    remedy: str
    subjects: t.Tuple[str, ...]
    outcome: str = ""
    waits: bool = False
    reason: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Problem:
    """Times are in seconds since the epoch. ``runs`` counts those that found it, ``failures`` by remedy those that did
    not help; a restart is counted as ``service_restart NAME`` for each service that is still down, too.

    ``worst`` is the highest status so far. ``reason`` says why a person is needed, ``advice`` what that person does.
    """

    subject: str
    status: str = ""
    message: str = ""
    state: str = BEGUN
    since: float = 0.0
    changed: float = 0.0
    runs: int = 0
    worst: str = ""
    reason: str = ""
    advice: str = ""
    failures: t.Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What happened to a problem in a run: one of the states, ``worsened`` or ``ended``.

    ``repaired_by``: the remedies of the run after which it ended. ``at_once``: it began and ended in the same run.
    """

    kind: str
    problem: Problem
    at: float
    repaired_by: t.Tuple[str, ...] = ()
    at_once: bool = False

    def as_json(self) -> t.Dict[str, t.Any]:
        """What the history keeps of it."""
        entry: t.Dict[str, t.Any] = {
            "subject": self.problem.subject,
            "change": self.kind,
            "status": self.problem.status,
            "since": self.problem.since,
            "runs": self.problem.runs,
        }
        if self.kind == ESCALATED:
            entry["reason"] = self.problem.reason
        if self.repaired_by:
            entry["repaired_by"] = list(self.repaired_by)
        return entry


@dataclass(frozen=True)
class Problems:
    """``stopped`` says why no remedy is begun any more, empty where the loop goes on. ``pending`` are alerts that could
    not be delivered yet, as their sender keeps them.
    """

    problems: t.Tuple[Problem, ...] = ()
    stopped: str = ""
    pending: t.Tuple[t.Mapping[str, t.Any], ...] = ()

    def by_subject(self) -> t.Dict[str, Problem]:
        return {problem.subject: problem for problem in self.problems}

    def exhausted(self, remedy: str, subjects: t.Collection[str], limit: int = MAX_FAILURES) -> bool:
        """Whether a remedy did not help ``limit`` times for every one of the subjects; 0 for any number of tries."""
        by_subject = self.by_subject()
        return bool(limit and subjects) and all(
            subject in by_subject and by_subject[subject].failures.get(remedy, 0) >= limit for subject in subjects
        )


def update(
    problems: Problems,
    before: t.Sequence[Check],
    after: t.Sequence[Check],
    attempts: t.Sequence[Attempt],
    now: float,
    *,
    confirmed: bool = True,
    max_failures: int = MAX_FAILURES,
) -> t.Tuple[Problems, t.List[Change]]:
    """(the problems after a run, what changed). ``before`` and ``after`` are the checks of both health runs; a subject
    that was not measured keeps its problem.

    Without ``confirmed`` (one measurement) a new failure is only suspected; the next run that finds it begins the
    problem. A host that is worse after remedies than before them stops the loop until everything passes again.
    """
    open_problems = problems.by_subject()
    changes: t.List[Change] = []
    failed_before = {check["name"]: check for check in before if check["status"] in _SEVERITY}
    helped = {
        subject: tuple(
            dict.fromkeys(each.remedy for each in attempts if subject in each.subjects and each.outcome == "done")
        )
        for each in attempts
        for subject in each.subjects
    }
    for check in after:
        subject = str(check["name"])
        problem = open_problems.get(subject)
        if check["status"] not in _SEVERITY:
            at_once = problem is None and confirmed and subject in failed_before
            if at_once:
                problem = _begin(failed_before[subject], now, BEGUN)
            if problem is not None:
                open_problems.pop(subject, None)
                if problem.state != SUSPECTED or confirmed:
                    ended = dataclasses.replace(problem, changed=now, runs=problem.runs + 1)
                    changes.append(Change(ENDED, ended, now, helped.get(subject, ()), at_once))
            continue
        new = problem is None
        if problem is None:
            problem = _begin(check, now, BEGUN if confirmed else SUSPECTED)
        problem, kinds = _next(problem, check, attempts, after, now, new=new, max_failures=max_failures)
        open_problems[subject] = problem
        changes += [Change(kind, problem, now) for kind in kinds]
    stopped = problems.stopped
    if not open_problems:
        stopped = ""
    elif any(each.outcome in ("done", "partly", "failed") for each in attempts):
        stopped = stopped or _worse(before, after)
    return dataclasses.replace(problems, problems=tuple(open_problems.values())[:_MAX], stopped=stopped), changes


def _begin(check: Check, now: float, state: str) -> Problem:
    return Problem(
        subject=str(check["name"]),
        status=str(check["status"]),
        message=str(check.get("message") or ""),
        state=state,
        since=now,
        changed=now,
        worst=str(check["status"]),
    )


def _next(
    problem: Problem,
    check: Check,
    attempts: t.Sequence[Attempt],
    after: t.Sequence[Check],
    now: float,
    *,
    new: bool,
    max_failures: int,
) -> t.Tuple[Problem, t.List[str]]:
    """(the problem after a run that found it, its changes)."""
    mine = [attempt for attempt in attempts if problem.subject in attempt.subjects]
    failures = dict(problem.failures)
    for attempt in mine:
        if attempt.outcome in UNSUCCESSFUL:
            down = _down(after) if attempt.remedy == "service_restart" and problem.subject == "services" else ()
            for key in (attempt.remedy, *(f"{attempt.remedy} {name}" for name in down)):
                failures[key] = failures.get(key, 0) + 1
    state = problem.state
    if state == SUSPECTED and not new:
        state = BEGUN
    reason, advice = problem.reason, problem.advice
    hopeless = [attempt for attempt in mine if _is_hopeless(attempt, failures, max_failures)]
    if mine and len(hopeless) == len(mine) and state != SUSPECTED:
        state = ESCALATED
        reason = " ".join(dict.fromkeys(_why(attempt, failures, max_failures) for attempt in hopeless))
        advice = " ".join(dict.fromkeys(attempt.advice for attempt in hopeless if attempt.advice))
    elif any(attempt.outcome in UNSUCCESSFUL for attempt in mine) and state == BEGUN:
        state = TREATED
    status = str(check["status"])
    worst = max(problem.worst, status, key=lambda name: _SEVERITY.get(name, 0))
    kinds = [BEGUN] if state != SUSPECTED and (new or problem.state == SUSPECTED) else []
    if state != problem.state and state in (TREATED, ESCALATED):
        kinds.append(state)
    if not kinds and _SEVERITY.get(worst, 0) > _SEVERITY.get(problem.worst, 0):
        kinds = [WORSENED]
    return (
        dataclasses.replace(
            problem,
            status=status,
            message=str(check.get("message") or ""),
            state=state,
            changed=now if kinds else problem.changed,
            runs=problem.runs + 1,
            worst=worst,
            reason=reason,
            advice=advice,
            failures=failures,
        ),
        kinds,
    )


def _is_hopeless(attempt: Attempt, failures: t.Mapping[str, int], max_failures: int) -> bool:
    """Whether waiting does not help: it was refused for good, or did not help often enough."""
    if attempt.outcome == "refused":
        return not attempt.waits
    if attempt.outcome == "nothing":
        return True
    return bool(max_failures) and failures.get(attempt.remedy, 0) >= max_failures


def _why(attempt: Attempt, failures: t.Mapping[str, int], max_failures: int) -> str:
    if attempt.outcome == "refused":
        return f"{attempt.remedy}: {attempt.reason}" if attempt.remedy else attempt.reason
    if attempt.outcome == "nothing":
        return f"{attempt.remedy}: there was nothing that it could do."
    return f"{attempt.remedy} did not help {failures.get(attempt.remedy, 0)} times."


def _down(checks: t.Sequence[Check]) -> t.List[str]:
    details = next((check.get("details") or {} for check in checks if check["name"] == "services"), {})
    return [str(name) for name, facts in (details.get("services") or {}).items() if facts.get("status") == "critical"]


def _worse(before: t.Sequence[Check], after: t.Sequence[Check]) -> str:
    """Why the loop stops: what is critical after the remedies and was not before; empty where nothing is."""
    severity = {str(check["name"]): _SEVERITY.get(str(check["status"]), 0) for check in before}
    worse = [
        str(check["name"])
        for check in after
        if _SEVERITY.get(str(check["status"]), 0) >= 2
        and _SEVERITY.get(str(check["status"]), 0) > severity.get(str(check["name"]), 0)
    ]
    return f"After the last remedies this host was worse than before: {', '.join(worse)}." if worse else ""


def read(directory: Path) -> Problems:
    """The open problems of a host. Raises ``OpsError`` for a damaged file."""
    path = directory / FILE
    value = documents.load(path, hint=_HINT)
    if value is None:
        return Problems()
    entries, stopped, pending = value.get("problems"), value.get("stopped", ""), value.get("pending", [])
    if not (isinstance(entries, list) and isinstance(stopped, str) and isinstance(pending, list)):
        raise documents.Damaged(path, "it has another shape", _HINT)
    return Problems(
        problems=tuple(problem for problem in map(_problem, entries[:_MAX]) if problem is not None),
        stopped=stopped,
        pending=tuple(entry for entry in pending if isinstance(entry, dict)),
    )


def _problem(entry: t.Any) -> t.Optional[Problem]:
    """A problem of the file, None where an entry has another shape."""
    if not isinstance(entry, dict) or not isinstance(entry.get("subject"), str) or entry.get("state") not in _STATES:
        return None
    values: t.Dict[str, t.Any] = {"subject": entry["subject"], "state": entry["state"]}
    for name in ("status", "message", "worst", "reason", "advice"):
        values[name] = entry[name] if isinstance(entry.get(name), str) else ""
    for name in ("since", "changed"):
        values[name] = float(entry[name]) if documents.number(entry.get(name)) else 0.0
    values["runs"] = int(entry["runs"]) if documents.number(entry.get("runs")) else 0
    failures = entry.get("failures")
    values["failures"] = {
        str(name): int(count)
        for name, count in (failures if isinstance(failures, dict) else {}).items()
        if documents.number(count)
    }
    return Problem(**values)


def write(directory: Path, problems: Problems) -> None:
    """Replaces the file. Raises ``OpsError`` where it cannot be written."""
    path = directory / FILE
    try:
        documents.write(
            path,
            {
                "problems": [dataclasses.asdict(problem) for problem in problems.problems],
                "stopped": problems.stopped,
                "pending": list(problems.pending),
            },
        )
    except OSError as error:
        raise OpsError(
            f"Cannot write {path}: {error.strerror}.", hint="Name a state directory that this user may write."
        ) from error


def update_file(
    directory: Path, change: t.Callable[[Problems], t.Tuple[Problems, t.List[Change]]], *, check_mode: bool = False
) -> t.Tuple[Problems, t.List[Change], t.List[str]]:
    """(the problems, what changed, sentences about what was passed over). ``change`` gets those of the file.

    One run at a time. A damaged file is set aside, so that it hides no failure: problems begin anew then.
    """
    warnings: t.List[str] = []
    path = directory / FILE

    def present() -> Problems:
        try:
            return read(directory)
        except documents.Damaged as error:
            aside = path.with_name(f"{FILE}.damaged")
            if not check_mode:
                path.replace(aside)
            warnings.append(f"{error} {'It would be' if check_mode else 'It was'} moved to {aside}.")
            return Problems()

    if check_mode:
        return (*change(present()), warnings)
    make_directories(directory)
    with lock.exclusive(directory / f".{FILE}.lock", "updates the problems"):
        problems, changes = change(present())
        write(directory, problems)
    return problems, changes, warnings
