# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The backend over HTTP: does it answer, how fast, how often with an error, and what does it say of its own health."""

from __future__ import annotations

import json
import statistics
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ..core import options
from ..core.redaction import redact
from ..core.results import OpsError
from ..health.check import Check, Finding, conclude, is_ours
from ..health.thresholds import DEFAULTS, Thresholds, worst
from . import self_report
from .context import HostContext, Options, View

HEALTH_PATH = Options.health_path
#: The health of a deployed backend comes from samples: what was repaired shows within ten seconds.
SETTLE = 10.0
_AGAIN_AFTER = 1.0
#: Of ten answers the 95th percentile is nearly the slowest: where it is over a limit, so many times more are asked for,
#: for at most so many seconds.
_MORE = 3
_MORE_SECONDS = 5.0
_AGENT = {"User-Agent": "wheels.ops health"}
#: Where the backend has each login from.
_LOGINS: t.Dict[str, str] = {
    "database:connection": "DATABASE_URL",
    "redis:connection": "REDIS_URL",
    "redis:write": "REDIS_URL",
}
#: Longer answers are pages, not documents of health.
_LONGEST = 1_000_000
_LONGEST_WORDS = 400


@dataclass
class _Samples:
    """What came of asking the paths: ``times`` in ms, how many were asked, errors by name, and the last document of
    each path.

    ``elsewhere``: paths that redirect to another host, and which.
    """

    times: t.List[float] = field(default_factory=list)
    asked: int = 0
    errors: t.Dict[str, int] = field(default_factory=dict)
    documents: t.Dict[str, t.Any] = field(default_factory=dict)
    elsewhere: t.Dict[str, str] = field(default_factory=dict)

    def miss(self, name: str) -> None:
        self.errors[name] = self.errors.get(name, 0) + 1


def require_url(base_url: str, path: str = "") -> None:
    """Raises ``OpsError`` for what no request can be made of: that is a reason of our own, not the backend's."""
    options.url("base_url", base_url + path)


def unresolved(base_url: str) -> OpsError:
    """The error for a host name that does not resolve here: nobody was asked."""
    return OpsError(
        f"The host name in {redact(base_url)} does not resolve.",
        hint="Check base_url and this machine's name resolution.",
    )


def check(
    base_url: str,
    *,
    paths: t.Sequence[str] = ("/health",),
    health_path: str = HEALTH_PATH,
    samples: int = 10,
    timeout: float = 10.0,
    settle: float = SETTLE,
    verify: t.Union[bool, str] = True,
    response: t.Optional[Thresholds] = None,
    errors: t.Optional[Thresholds] = None,
    view: t.Optional[View] = None,
) -> Check:
    """Asks every path ``samples`` times over one connection. The value is the 95th percentile of the time to the answer
    in ms; where it is over a limit, more answers are asked for before it counts.

    ``response`` grades that time, ``errors`` the percentage of answers that are no answer or 400 and above. What the
    paths and ``health_path`` (empty: not asked) say of the application's health in JSON counts as well, without what
    the suite measures from outside (``self_report``); where a health is bad, it is asked for again for ``settle``
    seconds. A release without ``health_path`` is no fault: ``details.application`` says so. The few distinct paths keep
    the backend's own address blocking from seeing a scan. Seen from outside (``view``), what the application says of
    the host's resources counts as well; its ops token is sent where nobody else can read it.
    """
    import requests

    for path in (*paths, *([health_path] if health_path else [])):
        require_url(base_url, path)
    view = view or View()
    measured = self_report.MEASURED_FROM_AFAR if view.outside else self_report.MEASURED_OUTSIDE
    slow, wrong = response or DEFAULTS["response_time_ms"], errors or DEFAULTS["error_rate"]
    details: t.Dict[str, t.Any] = {}
    findings: t.List[Finding] = []
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment must not answer for the backend
        session.verify = verify
        sampling = _sample(session, base_url, paths, samples, timeout)
        if slow.status(_percentile(sampling.times) or 0.0) != "ok" and not sampling.errors:
            _sample(session, base_url, paths, _MORE * samples, timeout, sampling, time.monotonic() + _MORE_SECONDS)
        p95 = _percentile(sampling.times)
        rate = 100.0 * sum(sampling.errors.values()) / max(1, sampling.asked)
        if p95 is None:
            findings.append(
                Finding(
                    "critical",
                    f"{base_url} does not answer: {', '.join(sampling.errors) or 'no path is asked for'}",
                    "service_restart",
                )
            )
        else:
            findings += _graded(sampling, p95, rate, slow, wrong)
            findings += _said(sampling.documents, measured, details)
            findings += [
                Finding("ok", f"{path} redirects to {host}, which gave the answers")
                for path, host in sampling.elsewhere.items()
            ]
            if health_path and health_path not in paths:
                if view.ops_token and _is_private(base_url):
                    # Where it redirects to another host, requests leaves this header out.
                    session.headers["Authorization"] = f"Bearer {view.ops_token}"
                findings += _application(session, base_url, health_path, timeout, settle, measured, details)
    return conclude(
        "http",
        findings,
        fine=f"{', '.join(paths)}: {len(sampling.times)} answers, 95 % within {p95 or 0:.0f} ms",
        value=round(p95, 1) if p95 is not None else None,
        unit="ms",
        thresholds=slow.as_dict(),
        details={
            "error_rate_percent": round(rate, 2),
            "errors": sampling.errors,
            "asked": sampling.asked,
            "median_ms": round(statistics.median(sampling.times), 1) if sampling.times else None,
            **details,
        },
    )


def _sample(
    session: t.Any,
    base_url: str,
    paths: t.Sequence[str],
    samples: int,
    timeout: float,
    sampling: t.Optional[_Samples] = None,
    until: float = float("inf"),
) -> _Samples:
    """Asks each path ``samples`` times, or ``until`` that time of the monotonic clock; adds to ``sampling``."""
    import requests

    sampling = sampling or _Samples()
    for path in paths:
        for _ignored in range(samples):
            if time.monotonic() > until:
                break
            start = time.monotonic()
            sampling.asked += 1
            try:
                answer = session.get(base_url + path, timeout=timeout, headers=_AGENT)
            except requests.RequestException as error:
                if is_ours(error):
                    raise unresolved(getattr(error.request, "url", None) or base_url) from None
                sampling.miss(f"{path}: {type(error).__name__}")
                if isinstance(error, (requests.ConnectionError, requests.Timeout)):
                    break  # the next ones would only wait as long
                continue
            sampling.times.append((time.monotonic() - start) * 1000)
            sampling.documents[path] = _document(answer)
            host = urllib.parse.urlsplit(answer.url or base_url).hostname
            if host != urllib.parse.urlsplit(base_url).hostname:
                sampling.elsewhere[path] = str(host)
            if answer.status_code >= 400:
                sampling.miss(f"{path}: {answer.status_code}")
    return sampling


def _percentile(times: t.Sequence[float]) -> t.Optional[float]:
    """The 95th percentile; None where nothing answered."""
    if len(times) > 1:
        return statistics.quantiles(times, n=20, method="inclusive")[18]
    return times[0] if times else None


def _document(answer: t.Any) -> t.Any:
    """The JSON of an answer, or the few words that it is; None where it is a page.

    What begins as JSON and is none, or is too long, is ``Unreadable``.
    """
    said_json = "json" in str(answer.headers.get("Content-Type", "")).lower() or answer.content[:1] in (b"{", b"[")
    if len(answer.content) > _LONGEST:
        reason = f"its answer has {len(answer.content) / 1e6:.1f} MB, too many for a report of health"
        return self_report.Unreadable(reason) if said_json else None
    try:
        return json.loads(answer.content)
    except RecursionError:
        return self_report.Unreadable("its answer has thousands of levels")
    except ValueError:
        if said_json and answer.content:
            return self_report.Unreadable("its answer is no valid JSON")
        return answer.content.decode(errors="replace").strip() if len(answer.content) <= _LONGEST_WORDS else None


def _graded(sampling: _Samples, p95: float, rate: float, slow: Thresholds, wrong: Thresholds) -> t.Iterator[Finding]:
    status = wrong.status(rate)
    if sampling.errors:
        yield Finding(
            status, f"{rate:.0f} % of the answers are errors: {', '.join(sampling.errors)}", "service_restart"
        )
    status = slow.status(p95)
    if status != "ok":
        yield Finding(
            status, f"5 % of the answers take {p95:.0f} ms or longer, over {slow.crossed(p95):g} ms", "service_restart"
        )


def _is_private(base_url: str) -> bool:
    """Whether nobody between here and there can read what is sent."""
    parts = urllib.parse.urlsplit(base_url)
    return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost")


def _said(
    documents: t.Mapping[str, t.Any], measured: t.Collection[str], details: t.Dict[str, t.Any]
) -> t.Iterator[Finding]:
    """What the paths themselves say: an answer 200 that calls itself unhealthy is none that a user is helped with."""
    for path, document in documents.items():
        report = self_report.read(document, measured)
        if report is None:
            continue
        details.setdefault("said", {})[path] = {
            "status": report.status,
            "reasons": list(report.reasons),
            "left_out": list(report.left_out),
        }
        if report.status != "ok":
            says = ":" if isinstance(document, self_report.Unreadable) else " says:"
            yield Finding(report.status, f"{path}{says} {', '.join(report.reasons)}")


def _application(
    session: t.Any,
    base_url: str,
    path: str,
    timeout: float,
    settle: float,
    measured: t.Collection[str],
    details: t.Dict[str, t.Any],
) -> t.List[Finding]:
    """The health of a deployed backend, asked for until it is well or ``settle`` seconds have passed."""
    deadline = time.monotonic() + settle
    while True:
        findings, details["application"] = _ask_application(session, base_url, path, timeout, measured)
        if all(finding.status == "ok" for finding in findings) or time.monotonic() + _AGAIN_AFTER > deadline:
            return findings
        time.sleep(_AGAIN_AFTER)


def _ask_application(
    session: t.Any, base_url: str, path: str, timeout: float, measured: t.Collection[str]
) -> t.Tuple[t.List[Finding], t.Dict[str, t.Any]]:
    """One look at the application's own health: findings, and what stands of it in the details."""
    import requests

    facts: t.Dict[str, t.Any] = {"path": path, "http_status": None, "status": "unknown", "reasons": [], "left_out": []}
    try:
        answer = session.get(base_url + path, timeout=timeout, headers=_AGENT)
    except requests.RequestException as error:
        facts["status"] = "critical"
        return [Finding("critical", f"{path} gives no answer: {type(error).__name__}", "service_restart")], facts
    code = facts["http_status"] = answer.status_code
    report = self_report.read(_document(answer), measured)
    if code < 500 and (code >= 300 or report is None):
        # A release before the deployment, or one whose firewall knows no such path: nothing is known, and nothing is
        # wrong.
        facts["status"] = "not deployed" if code == 404 else "not readable"
        problem = "is not there" if code == 404 else "says nothing of health" if code < 300 else "refuses us"
        return [Finding("ok", f"the application's own health is not known: {path} {problem} ({code})")], facts
    if report is not None:
        facts.update(status=report.status, reasons=list(report.reasons), left_out=list(report.left_out))
    if report is None or (code >= 500 and report.status == "ok" and not report.left_out):
        facts["status"] = "critical"
        return [
            Finding(
                "critical",
                f"{path} answers {code}"
                + (" without a reason" if report is None else " although every check in it passes"),
            )
        ], facts
    if report.status == "ok":
        return [], facts
    # 503 of an application says that it cannot serve, unless what is not well in it is measured from outside.
    status = worst([report.status, "critical"]) if code >= 500 and not report.left_out else report.status
    facts["status"] = status
    text = f"the application itself says ({path}, {code}): {', '.join(report.reasons)}"
    login = next(
        (variable for part, variable in _LOGINS.items() if any(reason.startswith(part) for reason in report.reasons)),
        "",
    )
    return [Finding(status, text + (f"; check {login} in its environment" if login else ""))], facts


def measure(context: HostContext, options: Options) -> Check:
    return check(
        options.base_url,
        paths=options.http_paths,
        health_path=options.health_path,
        settle=min(SETTLE, options.timeout / 2),
        response=options.limits("response_time_ms"),
        errors=options.limits("error_rate"),
        view=context.view,
    )
