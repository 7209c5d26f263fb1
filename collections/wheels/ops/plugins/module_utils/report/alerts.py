# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Alerts to people: when a problem begins, escalates, gets worse or ends, and never a run.

Receivers: a webhook (generic JSON), Slack's incoming webhooks, Alertmanager's API v2, e-mail and syslog. What cannot be
delivered is kept with the problems and tried again by the next runs, with back-off, for a day; a receiver that fails
never hides the problem, nor keeps the others from being told.

HTTP is sent with ``requests`` and urllib3's ``Retry``, e-mail with ``smtplib``, syslog with ``logging.handlers``.
Apprise was looked at: it has no Alertmanager, and brings five further packages onto each host.
"""

from __future__ import annotations

import dataclasses
import email.message
import email.utils
import logging
import logging.handlers
import os
import smtplib
import socket
import ssl
import sys
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ..core.options import choice, headers, in_range, known_keys, not_empty, url
from ..core.redaction import redact_value, secrets_of
from ..core.results import OpsError
from ..state import lock
from ..state.documents import number
from ..state.problems import (
    ALERTED,
    BEGUN,
    ENDED,
    ESCALATED,
    MAX_FAILURES,
    SUSPECTED,
    WORSENED,
    Attempt,
    Change,
    Check,
    Problem,
    Problems,
    read,
    update,
    update_file,
)
from . import runbooks

WEBHOOK, SLACK, ALERTMANAGER, EMAIL, SYSLOG = "webhook", "slack", "alertmanager", "email", "syslog"
TYPES: t.Tuple[str, ...] = (WEBHOOK, SLACK, ALERTMANAGER, EMAIL, SYSLOG)
#: Seconds after which an alert that could not be delivered is given up.
EXPIRES = 86_400.0
#: Pauses between tries of later runs: doubled from the first to the last.
_FIRST_PAUSE, _LAST_PAUSE = 60.0, 3600.0
#: Tries within one run, and the pause before the second one; urllib3 doubles it.
_TRIES, _PAUSE = 3, 0.5
_MAX_PENDING = 200
#: Alertmanager resolves by itself what nobody renews; every run of the recovery renews what is open.
_RENEW_WITHIN = 86_400.0
_KINDS: t.Mapping[str, t.Tuple[t.Tuple[type, ...], str]] = {
    "headers": ((dict,), "an object"),
    "to": ((list, tuple, str), "a list of addresses"),
    "timeout": ((int, float), "a number of seconds"),
}
_TITLES = {BEGUN: "Problem", ESCALATED: "A person is needed", WORSENED: "Worse", ENDED: "Resolved"}


@dataclass(frozen=True)
class Receiver:
    """One receiver of alerts. ``url`` and ``headers`` are for those that speak HTTP, ``server`` (HOST:PORT) to
    ``starttls`` for e-mail; syslog takes ``server`` or, without it, ``/dev/log``.

    ``minimum``: problems that never were as bad are not told. ``timeout`` in seconds, for each try.
    """

    type: str
    name: str = ""
    url: str = ""
    headers: t.Mapping[str, str] = field(default_factory=dict)
    server: str = ""
    sender: str = ""
    to: t.Tuple[str, ...] = ()
    username: str = ""
    password: str = ""
    tls: str = "starttls"
    minimum: str = "warning"
    timeout: float = 10.0

    @property
    def title(self) -> str:
        """What messages call it; without any secret."""
        return self.name or self.type


def parse(entries: t.Sequence[t.Mapping[str, t.Any]]) -> t.Tuple[Receiver, ...]:
    """The receivers of a configuration. Raises ``OpsError`` for the first that cannot work."""
    return tuple(_receiver(f"alerts[{number}]", entry) for number, entry in enumerate(entries))


def _receiver(name: str, entry: t.Any) -> Receiver:
    if not isinstance(entry, dict):
        raise OpsError(f"{name} must be an object.", hint="It looks like {type: webhook, url: https://...}.")
    known_keys(name, entry, [each.name for each in dataclasses.fields(Receiver)])
    values = {key: value for key, value in entry.items() if value is not None}
    kind = str(values.get("type", ""))
    choice(f"{name}.type", kind, TYPES)
    for key, value in values.items():
        kinds, words = _KINDS.get(key, ((str,), "a text"))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise OpsError(f"{name}.{key} must be {words}.", hint="docs/alerts.md has an example of each type.")
    if isinstance(values.get("to"), str):
        values["to"] = [values["to"]]
    receiver = Receiver(**{**values, "to": tuple(map(str, values.get("to", ())))})
    choice(f"{name}.minimum", receiver.minimum, ("warning", "critical"))
    choice(f"{name}.tls", receiver.tls, ("starttls", "tls", "none"))
    in_range(f"{name}.timeout", receiver.timeout, 0.1, 120, unit="seconds")
    if kind in (WEBHOOK, SLACK, ALERTMANAGER):
        url(f"{name}.url", receiver.url)
        headers(f"{name}.headers", receiver.headers)
    if kind == EMAIL:
        _address(f"{name}.server", receiver.server, 25)
        not_empty(f"{name}.to", receiver.to, hint="Name at least one address.")
        not_empty(f"{name}.sender", receiver.sender, hint="Name the address that the mails come from.")
        for text in (receiver.sender, *receiver.to):
            if "@" not in text or any(character in text for character in "\r\n"):
                raise OpsError(f"{name} has an address without an @.", hint="For example oncall@example.com.")
        if receiver.username and receiver.tls == "none" and not _is_local(receiver.server):
            raise OpsError(
                f"{name} would send the password to {receiver.server} in clear text.",
                hint=f"Set {name}.tls to starttls or tls.",
            )
    if kind == SYSLOG and receiver.server:
        _address(f"{name}.server", receiver.server, 514)
    return receiver


def _address(name: str, server: str, default: int) -> t.Tuple[str, int]:
    host, _colon, port = server.rpartition(":") if ":" in server else (server, "", str(default))
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise OpsError(f"{name} must be HOST:PORT, got {server!r}.", hint=f"For example mail.example.com:{default}.")
    return host.strip("[]"), int(port)


def _is_local(server: str) -> bool:
    return server.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Outcome:
    """What became of the problems in a run. ``delivered`` and ``warnings`` are sentences without secrets."""

    problems: Problems
    changes: t.Tuple[Change, ...] = ()
    delivered: t.Tuple[str, ...] = ()
    warnings: t.Tuple[str, ...] = ()


def record(
    directory: Path,
    before: t.Sequence[Check],
    after: t.Sequence[Check],
    attempts: t.Sequence[Attempt],
    receivers: t.Sequence[Receiver],
    host: str,
    *,
    confirmed: bool = True,
    max_failures: int = MAX_FAILURES,
    check_mode: bool = False,
    runbook_url: str = "",
) -> Outcome:
    """Updates the problems of a host by what a run measured and did, and tells the receivers of the changes.

    An alert is kept in the file before it is sent, so that a run that is killed in between loses none. Where the file
    cannot be written (a full disk is one of the problems) the receivers are told all the same, and again by the next
    run. Raises nothing.
    """
    now = time.time()

    def step(present: Problems) -> t.Tuple[Problems, t.List[Change]]:
        problems, changes = update(
            present, before, after, attempts, now, confirmed=confirmed, max_failures=max_failures
        )
        return enqueue(problems, changes, receivers, host, now, runbook_url), changes

    try:
        problems, changes, warnings = update_file(directory, step, check_mode=check_mode)
        if check_mode:
            return Outcome(problems, tuple(changes), (), tuple(warnings))
        delivered, failures = deliver(directory, receivers, host, now, runbook_url)
    except (OpsError, OSError) as error:
        problems, changes = step(_readable(directory))
        delivered, failures, _results = _send(problems.pending, receivers, now)
        warnings = [f"The problems could not be kept, so they are told again by the next run: {error}"]
    hidden = secrets_of([dataclasses.asdict(each) for each in receivers])
    return Outcome(
        problems,
        tuple(changes),
        tuple(redact_value(delivered, hidden)),
        tuple(redact_value([*warnings, *failures], hidden)),
    )


def enqueue(
    problems: Problems,
    changes: t.Sequence[Change],
    receivers: t.Sequence[Receiver],
    host: str,
    now: float,
    runbook_url: str = "",
) -> Problems:
    """The problems with an alert for each change and each receiver that it reaches."""
    alerts = [alert_of(change, host, runbook_url) for change in changes if _is_told(change)]
    entries = [
        {
            "id": f"{receiver.title} {alert['id']} {alert['event']} {now:.3f}",
            "receiver": receiver.title,
            "alert": alert,
            "created": now,
            "tries": 0,
            "next": 0.0,
        }
        for receiver in receivers
        for alert in alerts
        if _reaches(receiver, alert)
    ]
    return dataclasses.replace(problems, pending=(*problems.pending, *entries)[-_MAX_PENDING:])


def deliver(
    directory: Path, receivers: t.Sequence[Receiver], host: str, now: float, runbook_url: str = ""
) -> t.Tuple[t.List[str], t.List[str]]:
    """(what was delivered, warnings): sends what is pending and due. Raises nothing that a receiver does.

    Alertmanager is told of every open problem each time, as it expects; people are told of changes only.
    """
    with lock.exclusive(directory / ".alerts.lock", "sends alerts"):
        problems = read(directory)
        delivered, warnings, results = _send(problems.pending, receivers, now)
        for receiver in receivers:
            if receiver.type == ALERTMANAGER and not any(text.startswith(f"{receiver.title} ") for text in warnings):
                failure = _renew(receiver, problems.problems, host, now, runbook_url)
                if failure:
                    warnings.append(f"{receiver.title} was not renewed ({failure}).")
        if results:
            update_file(directory, lambda present: (_settled(present, results), []))
    return delivered, warnings


def _send(
    pending: t.Sequence[t.Mapping[str, t.Any]], receivers: t.Sequence[Receiver], now: float
) -> t.Tuple[t.List[str], t.List[str], t.Dict[str, t.Optional[t.Mapping[str, t.Any]]]]:
    """(what was delivered, warnings, what becomes of each entry by its id: None for those that leave)."""
    delivered: t.List[str] = []
    warnings: t.List[str] = []
    results: t.Dict[str, t.Optional[t.Mapping[str, t.Any]]] = {}
    by_title = {receiver.title: receiver for receiver in receivers}
    broken: t.Set[str] = set()
    for entry in pending:
        key, alert, receiver = str(entry.get("id")), entry.get("alert"), by_title.get(str(entry.get("receiver")))
        created = entry.get("created")
        if receiver is None or not isinstance(alert, dict) or not number(created):
            results[key] = None  # its receiver was configured once
        elif now - t.cast(float, created) > EXPIRES:
            results[key] = None
            warnings.append(f"{receiver.title} could not be told for a day; given up: {alert.get('title')}.")
        elif receiver.title in broken or float(entry.get("next") or 0) > now:
            continue
        else:
            failure = _deliver(receiver, alert)
            results[key] = None
            if not failure:
                delivered.append(f"{receiver.title}: {alert.get('title')}")
                continue
            broken.add(receiver.title)
            tries = int(entry.get("tries") or 0) + 1
            pause = min(_LAST_PAUSE, _FIRST_PAUSE * 2.0 ** min(tries - 1, 20))
            results[key] = {**entry, "tries": tries, "next": now + pause}
            warnings.append(f"{receiver.title} was not told ({failure}); a later run tries again.")
    return delivered, warnings, results


def _readable(directory: Path) -> Problems:
    try:
        return read(directory)
    except OpsError:
        return Problems()


def _settled(problems: Problems, results: t.Mapping[str, t.Optional[t.Mapping[str, t.Any]]]) -> Problems:
    """The problems without what was delivered or given up."""
    entries = [results.get(str(entry.get("id")), entry) for entry in problems.pending]
    return dataclasses.replace(problems, pending=tuple(entry for entry in entries if entry is not None))


def _is_told(change: Change) -> bool:
    """What was never told does not end for people, unless a run has begun and ended it: they learn that it was
    repaired.
    """
    return change.kind in ALERTED and (change.kind != ENDED or change.problem.state != SUSPECTED)


def _reaches(receiver: Receiver, alert: t.Mapping[str, t.Any]) -> bool:
    return receiver.minimum == "warning" or alert["worst"] in ("critical", "emergency")


def alert_of(change: Change, host: str, runbook_url: str = "") -> t.Dict[str, t.Any]:
    """The generic form, which the webhook sends as it is. Times are in UTC. People get the runbook only where it has an
    address that they can open.
    """
    problem = change.problem
    title = f"{_TITLES[change.kind]}: {problem.subject} on {host}"
    parts = [problem.message]
    if change.kind == ESCALATED:
        parts += [problem.reason, problem.advice]
    if change.kind == ENDED:
        by = f" Repaired by {', '.join(change.repaired_by)}." if change.repaired_by else ""
        parts = [f"It lasted {_duration(change.at - problem.since)}.{by}"]
    text = " ".join(f"{part.rstrip('.')}." for part in parts if part)
    runbook = runbooks.address(problem.subject, runbook_url)
    if runbook_url and change.kind != ENDED:
        text += f" Runbook: {runbook}"
    return {
        "version": 1,
        "event": {BEGUN: "begun", ESCALATED: "escalated", WORSENED: "worsened", ENDED: "ended"}[change.kind],
        "id": f"{host}/{problem.subject}/{int(problem.since)}",
        "host": host,
        "subject": problem.subject,
        "status": "ok" if change.kind == ENDED else problem.status,
        "worst": problem.worst,
        "title": title,
        "text": f"{title}. {text}",
        "message": problem.message,
        "reason": problem.reason,
        "advice": problem.advice,
        "runbook": runbook,
        "since": _stamp(problem.since),
        "at": _stamp(change.at),
        "runs": problem.runs,
        "repaired_by": list(change.repaired_by),
    }


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0.0, seconds)))


def _duration(seconds: float) -> str:
    minutes = int(max(0.0, seconds) // 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes} minutes" if minutes > 1 else "a minute"
    return f"{minutes // 60} hours" if minutes < 2880 else f"{minutes // 1440} days"


def _deliver(receiver: Receiver, alert: t.Mapping[str, t.Any]) -> str:
    """Why a receiver was not told; empty where it was."""
    try:
        if receiver.type == EMAIL:
            return _again(lambda: _mail(receiver, alert))
        if receiver.type == SYSLOG:
            return _again(lambda: _log(receiver, alert))
        return _post(receiver, _body(receiver, alert))
    except Exception as error:  # whatever a receiver does: the problem itself is reported all the same
        return f"{type(error).__name__}: {error}"


def _again(send: t.Callable[[], None]) -> str:
    for attempt in range(_TRIES):
        try:
            send()
        except (OSError, smtplib.SMTPException) as error:
            final = isinstance(error, (smtplib.SMTPAuthenticationError, smtplib.SMTPRecipientsRefused))
            if final or attempt == _TRIES - 1:
                return f"{type(error).__name__}: {error}"
            time.sleep(_PAUSE * 2**attempt)
        else:
            return ""
    return ""


def _body(receiver: Receiver, alert: t.Mapping[str, t.Any]) -> t.Any:
    if receiver.type == SLACK:
        mark = {"begun": ":warning:", "escalated": ":rotating_light:", "worsened": ":small_red_triangle:"}
        # Slack's markup: these three characters are written as entities.
        text = alert["text"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return {"text": f"{mark.get(alert['event'], ':white_check_mark:')} {text}"}
    if receiver.type == ALERTMANAGER:
        ends = alert["at"] if alert["event"] == "ended" else _stamp(time.time() + _RENEW_WITHIN)
        return [_alertmanager(alert, ends)]
    return alert


def _alertmanager(alert: t.Mapping[str, t.Any], ends: str) -> t.Dict[str, t.Any]:
    """https://github.com/prometheus/alertmanager: api/v2/openapi.yaml, postableAlert. Labels identify an alert, so they
    do not change while a problem lasts.
    """
    return {
        "labels": {"alertname": "WheelsOpsProblem", "host": alert["host"], "subject": alert["subject"]},
        "annotations": {
            "summary": alert["title"],
            "description": alert["text"],
            "status": alert["status"],
            "advice": alert["advice"],
            # The name by which Grafana and others link it. One that was queued by an earlier release has none.
            "runbook_url": alert.get("runbook", ""),
        },
        "startsAt": alert["since"],
        "endsAt": ends,
    }


def _renew(receiver: Receiver, problems: t.Sequence[Problem], host: str, now: float, runbook_url: str) -> str:
    """Why Alertmanager was not told that the open problems go on; empty where it was."""
    alerts = [
        alert_of(Change(BEGUN, problem, now), host, runbook_url) for problem in problems if problem.state != SUSPECTED
    ]
    body = [_alertmanager(alert, _stamp(now + _RENEW_WITHIN)) for alert in alerts if _reaches(receiver, alert)]
    if not body:
        return ""
    try:
        return _post(receiver, body)
    except Exception as error:  # whatever a receiver does: the problem itself is reported all the same
        return f"{type(error).__name__}: {error}"


def _post(receiver: Receiver, body: t.Any) -> str:
    import requests
    import urllib3.util
    from requests.adapters import HTTPAdapter

    place = receiver.url
    if receiver.type == ALERTMANAGER and not place.rstrip("/").endswith("/api/v2/alerts"):
        place = f"{place.rstrip('/')}/api/v2/alerts"
    retry = urllib3.util.Retry(
        total=_TRIES - 1,
        backoff_factor=_PAUSE,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        try:
            answer = session.post(
                place, json=body, headers=dict(receiver.headers), timeout=receiver.timeout, allow_redirects=False
            )
        except requests.RequestException as error:
            # Its text has the URL, which may be a secret.
            return f"{type(error).__name__}"
    return "" if answer.status_code < 300 else f"it answered {answer.status_code}"


def _mail(receiver: Receiver, alert: t.Mapping[str, t.Any]) -> None:
    message = email.message.EmailMessage()
    message["Subject"] = f"[{alert['host']}] {alert['title']}"
    message["From"], message["To"] = receiver.sender, ", ".join(receiver.to)
    message["Date"] = email.utils.formatdate(localtime=False)
    # Mails of one problem are one thread.
    thread = f"<{alert['id'].replace('/', '.')}@{socket.gethostname()}>"
    message["Message-ID"] = thread if alert["event"] == "begun" else email.utils.make_msgid()
    if alert["event"] != "begun":
        message["In-Reply-To"] = message["References"] = thread
    message["Auto-Submitted"] = "auto-generated"
    rows = [("Host", "host"), ("Check", "subject"), ("Status", "status"), ("Since", "since"), ("What to do", "advice")]
    message.set_content(
        f"{alert['text']}\n\n" + "".join(f"{title}: {alert[key]}\n" for title, key in rows if alert[key])
    )
    host, port = _address("server", receiver.server, 25)
    context = ssl.create_default_context()
    if receiver.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=receiver.timeout, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=receiver.timeout)
    with server:
        if receiver.tls == "starttls":
            server.starttls(context=context)
        if receiver.username:
            server.login(receiver.username, receiver.password)
        server.send_message(message)


def _log(receiver: Receiver, alert: t.Mapping[str, t.Any]) -> None:
    address: t.Union[str, t.Tuple[str, int]] = (
        _address("server", receiver.server, 514) if receiver.server else "/dev/log"
    )
    if isinstance(address, str) and not os.path.exists(address):
        raise OSError(f"there is no {address}")
    level = {"begun": logging.WARNING, "escalated": logging.CRITICAL, "worsened": logging.ERROR}
    # One line, whatever the text is: a second one would be somebody else's entry.
    text = " ".join(f"wheels-ops: {alert['text']}".split())
    record = logging.LogRecord("wheels-ops", level.get(alert["event"], logging.INFO), "", 0, text, None, None)
    handler = _Syslog(address, facility=logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.append_nul = False
    try:
        handler.emit(record)
    finally:
        handler.close()


class _Syslog(logging.handlers.SysLogHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """The library prints an error and goes on; here it is the receiver's."""
        error = sys.exc_info()[1]
        raise OSError(str(error)) from error
