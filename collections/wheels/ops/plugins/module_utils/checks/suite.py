# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All checks of a host, side by side: what ``health_info``, the health monitor and the proof of a playbook run."""

from __future__ import annotations

import time
import typing as t

from ..core.options import choices
from ..health import check as health
from ..health import scores
from ..health.subjects import NAMES, REGISTRY, Subject
from ..services.manager import open_manager
from ..services.model import parse_services
from . import celery, cors, cpu, database, disk, http, memory, redis, rls, services, tts, websocket
from .context import HostContext, Options, View

__all__ = ["SUBJECTS", "WEBSOCKET_PATHS", "HostContext", "Options", "View", "run", "scores_of"]

#: Every subject, in the order of a report.
SUBJECTS: t.Tuple[str, ...] = NAMES
#: name -> what measures it. The files are imported by name, as Ansible sends only what it can see imported to a host.
MEASURES: t.Mapping[str, t.Callable[[HostContext, Options], health.Check]] = {
    module.__name__.rpartition(".")[2]: module.measure
    for module in (celery, cors, cpu, database, disk, http, memory, redis, rls, services, tts, websocket)
}
#: Where releases have the chat's socket, where nobody named its path: the later ones first.
WEBSOCKET_PATHS = websocket.PATHS


def run(options: Options, view: t.Optional[View] = None) -> t.Dict[str, t.Any]:
    """Measures and gives ``status``, ``checks`` (in report order), names by outcome, ``scores``, ``duration_ms`` and
    the time. Seen from outside, a subject that needs the host is ``skipped``.
    """
    if options.subjects:
        choices("subjects", options.subjects, SUBJECTS)
    start = time.monotonic()
    context = HostContext(
        parse_services(options.services) if options.services else (),
        lambda: open_manager(**options.manager_arguments()),
        view,
    )
    calls = _calls(options, context)
    selected = {name: calls[name] for name in SUBJECTS if name in options.subjects}
    checks = health.measure(selected, timeout=options.timeout)
    return {
        "status": health.overall(checks),
        "checks": [check.as_dict() for check in checks],
        "failing": [check.name for check in checks if check.status not in ("ok", "skipped")],
        "not_measured": [check.name for check in checks if check.status == "skipped"],
        "left_out": [name for name in SUBJECTS if name not in options.subjects],
        "scores": scores_of(checks, scope=options.scope),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "duration_ms": round((time.monotonic() - start) * 1000, 1),
    }


def scores_of(checks: t.Iterable[health.Check], *, scope: str = "host") -> t.Dict[str, t.Optional[float]]:
    """The scores of one look at a host. Stability is that of a day, of which one look knows nothing: None.

    What was not asked for does not count. Where something that was asked for could not be measured there is no score:
    the rest alone would look better than the host may be.
    """
    checks = list(checks)
    unknown = {check.name for check in checks if check.status == "unknown"}
    measured = {check.name: check for check in checks if check.status not in ("skipped", "unknown")}

    def value(name: str, detail: str) -> t.Optional[float]:
        if name not in measured:
            return None
        number = measured[name].details.get(detail) if detail else measured[name].value
        return float(number) if isinstance(number, (int, float)) else None

    def score(name: str, function: t.Callable[..., t.Optional[float]]) -> t.Optional[float]:
        inputs = [(subject.name, each) for subject in REGISTRY for each in subject.scores if each.score == name]
        if unknown & {subject for subject, _input in inputs}:
            return None
        return function(
            **{
                each.argument: value(subject, each.detail if scope == "host" else each.services_detail or each.detail)
                for subject, each in inputs
            }
        )

    return {
        "performance": score("performance", scores.performance),
        "stability": None,
        "user_experience": score("user_experience", scores.user_experience),
    }


def _calls(options: Options, context: HostContext) -> t.Dict[str, t.Callable[[], health.Check]]:
    """name -> the check of it, for every subject of the registry."""
    return {subject.name: _call(subject, options, context) for subject in REGISTRY}


def _call(subject: Subject, options: Options, context: HostContext) -> t.Callable[[], health.Check]:
    if context.view.outside and subject.needs_host:
        return lambda: health.Check(name=subject.name, status="skipped", message="Not checked: needs the host.")
    missing = next((need for need in subject.needs if not all(getattr(options, name) for name in need.options)), None)
    if missing is None:
        return lambda: MEASURES[subject.name](context, options)
    message = f"Not measured: no {missing.what} is given. Set {missing.variables}."
    return lambda: health.Check(name=subject.name, status="skipped", message=message)
