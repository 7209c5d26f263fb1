# SPDX-License-Identifier: GPL-3.0-or-later
"""Alerts are told when a problem begins, escalates or ends, to real receivers: an HTTP server that fails on purpose, an
SMTP server, a socket of syslog and Alertmanager itself.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import shutil
import socket
import subprocess
import typing as t
import urllib.request
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.support.hook import Hook
from tests.support.waiting import free_port, wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.report import alerts
from wheels_ops.state import problems
from wheels_ops.state.problems import Attempt

TOKEN = "T0000/B0000/marked-hook-secret"
Checks = t.List[t.Dict[str, t.Any]]


def checks(status: str, subject: str = "disk") -> Checks:
    return [{"name": subject, "status": status, "message": f"{subject} is {status} <at> 97 %."}]


REFUSED = Attempt("", ("disk",), "refused", reason="No remedy is known for it.", advice="Find what fills the disk.")


@pytest.fixture
def hook() -> t.Iterator[Hook]:
    with Hook() as receiver:
        yield receiver


def run(
    state: Path, status: str, receivers: t.Sequence[t.Mapping[str, t.Any]], *attempts: Attempt, before: str = ""
) -> alerts.Outcome:
    measured = checks(status)
    earlier = checks(before) if before else measured
    return alerts.record(state, earlier, measured, attempts, alerts.parse(receivers), "web1")


def test_webhook_is_told_of_changes_and_not_of_runs(tmp_path: Path, hook: Hook) -> None:
    receivers = [{"type": "webhook", "url": hook.url, "headers": {"X-Key": "k"}}]
    for _number in range(20):
        run(tmp_path, "critical", receivers, REFUSED)
    run(tmp_path, "ok", receivers, Attempt("disk_cleanup", ("disk",), "done"), before="critical")
    run(tmp_path, "ok", receivers)
    assert [body["event"] for body in hook.bodies] == ["begun", "escalated", "ended"]
    begun, escalated, ended = hook.bodies
    assert (begun["host"], begun["subject"], begun["status"]) == ("web1", "disk", "critical")
    assert (escalated["reason"], escalated["advice"]) == ("No remedy is known for it.", "Find what fills the disk.")
    assert (ended["status"], ended["runs"], ended["repaired_by"]) == ("ok", 21, ["disk_cleanup"])
    assert len({body["id"] for body in hook.bodies}) == 1
    assert {headers["X-Key"] for headers in hook.headers} == {"k"}


def test_alerts_link_the_runbook(tmp_path: Path, hook: Hook) -> None:
    template = "https://docs.example.com/{name}.html"
    receivers = alerts.parse([{"type": kind, "name": kind, "url": hook.url} for kind in ("webhook", "slack")])
    measured = checks("critical")
    alerts.record(tmp_path / "with", measured, measured, [], receivers, "web1", runbook_url=template)
    webhook, slack = hook.bodies
    assert webhook["runbook"] == "https://docs.example.com/disk.html"
    assert slack["text"].endswith("Runbook: https://docs.example.com/disk.html")
    alerts.record(tmp_path / "without", measured, measured, [], receivers, "web1")
    assert hook.bodies[2]["runbook"] == "docs/runbooks/disk.md" and "Runbook" not in hook.bodies[3]["text"]


def test_receiver_that_fails_is_tried_again_at_once(tmp_path: Path, hook: Hook) -> None:
    hook.fail = 2
    outcome = run(tmp_path, "critical", [{"type": "webhook", "url": hook.url}])
    assert ([body["event"] for body in hook.bodies], outcome.warnings) == (["begun"], ())
    assert problems.read(tmp_path).pending == ()


def test_receiver_that_is_away_is_told_by_a_later_run(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_PAUSE", 0.0)
    hook.fail = 3
    receivers = [{"type": "webhook", "url": hook.url}]
    outcome = run(tmp_path, "critical", receivers)
    assert outcome.warnings == ("webhook was not told (it answered 503); a later run tries again.",)
    assert [problem.subject for problem in outcome.problems.problems] == ["disk"], "the problem itself is not hidden"
    run(tmp_path, "critical", receivers)
    assert hook.bodies == [], "it is not due yet"
    monkeypatch.setattr(alerts, "_FIRST_PAUSE", 0.0)
    later = problems.read(tmp_path)
    problems.write(tmp_path, problems.Problems(later.problems, pending=({**later.pending[0], "next": 0.0},)))
    run(tmp_path, "critical", receivers)
    assert [body["event"] for body in hook.bodies] == ["begun"]


def test_one_broken_receiver_keeps_no_other_from_being_told(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_PAUSE", 0.0)
    nobody = f"http://127.0.0.1:{free_port()}/{TOKEN}"
    receivers = [
        {"type": "slack", "name": "chat", "url": nobody},
        {"type": "syslog", "server": "no-such-host.invalid:514"},
        {"type": "webhook", "url": hook.url},
    ]
    outcome = run(tmp_path, "critical", receivers)
    assert [body["event"] for body in hook.bodies] == ["begun"]
    assert outcome.delivered == ("webhook: Problem: disk on web1",)
    assert [warning.partition(" ")[0] for warning in outcome.warnings] == ["chat", "syslog"]
    assert TOKEN not in str(outcome.warnings)


def test_alert_survives_a_run_that_is_killed_before_it_is_sent(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_arguments: t.Any) -> t.NoReturn:
        raise KeyboardInterrupt

    receivers = [{"type": "webhook", "url": hook.url}]
    with monkeypatch.context() as patch:
        patch.setattr(alerts, "deliver", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "critical", receivers)
    run(tmp_path, "critical", receivers)
    assert [body["event"] for body in hook.bodies] == ["begun"]


def test_state_that_cannot_be_written_hides_no_problem(tmp_path: Path, hook: Hook) -> None:
    place = tmp_path / "state"
    place.write_text("a file where the directory belongs")
    outcome = run(place, "critical", [{"type": "webhook", "url": hook.url}])
    assert [body["event"] for body in hook.bodies] == ["begun"]
    assert "could not be kept" in outcome.warnings[0]


def test_alert_that_nobody_takes_for_a_day_is_given_up(tmp_path: Path, hook: Hook) -> None:
    alert = {"receiver": "webhook", "id": "1", "alert": {"title": "Problem: disk"}, "created": 1.0, "tries": 9}
    problems.write(tmp_path, problems.Problems(pending=(alert, {**alert, "receiver": "gone", "id": "2"})))
    outcome = run(tmp_path, "ok", [{"type": "webhook", "url": hook.url}])
    assert outcome.warnings == ("webhook could not be told for a day; given up: Problem: disk.",)
    assert (hook.bodies, problems.read(tmp_path).pending) == ([], ())


def test_minimum_leaves_out_what_never_was_as_bad(tmp_path: Path, hook: Hook) -> None:
    receivers = [{"type": "webhook", "url": hook.url, "minimum": "critical"}]
    run(tmp_path, "warning", receivers)
    assert hook.bodies == []
    run(tmp_path, "critical", receivers)
    run(tmp_path, "ok", receivers)
    assert [body["event"] for body in hook.bodies] == ["worsened", "ended"]


def test_slack_gets_a_text_with_its_entities(tmp_path: Path, hook: Hook) -> None:
    run(tmp_path, "critical", [{"type": "slack", "url": hook.url}])
    assert hook.bodies == [{"text": ":warning: Problem: disk on web1. disk is critical &lt;at&gt; 97 %."}]


def test_check_mode_tells_nobody(tmp_path: Path, hook: Hook) -> None:
    receivers = alerts.parse([{"type": "webhook", "url": hook.url}])
    down = checks("critical")
    outcome = alerts.record(tmp_path, down, down, [], receivers, "web1", check_mode=True)
    assert [change.kind for change in outcome.changes] == [problems.BEGUN]
    assert (hook.bodies, list(tmp_path.iterdir())) == ([], [])


class Mailbox:
    """What the SMTP server got, and who may send."""

    def __init__(self) -> None:
        self.mails: t.List[email.message.EmailMessage] = []
        self.logins: t.List[t.Tuple[bytes, bytes]] = []

    async def handle_DATA(self, _server: t.Any, _session: t.Any, envelope: t.Any) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append(message)
        return "250 OK"

    def login(self, _server: t.Any, _session: t.Any, _envelope: t.Any, _mechanism: str, data: t.Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"marked-mail-secret", handled=False)


@pytest.fixture
def mailbox() -> t.Iterator[t.Tuple[Mailbox, str]]:
    box = Mailbox()
    port = free_port()
    server = Controller(
        box, hostname="127.0.0.1", port=port, authenticator=box.login, auth_require_tls=False, auth_required=True
    )
    server.start()
    yield box, f"127.0.0.1:{port}"
    server.stop()


def mail_receiver(server: str, password: str = "marked-mail-secret") -> t.Dict[str, t.Any]:
    return {
        "type": "email",
        "server": server,
        "sender": "pam@example.com",
        "to": ["oncall@example.com"],
        "username": "pam",
        "password": password,
        "tls": "none",
    }


def test_mails_of_one_problem_are_one_thread(tmp_path: Path, mailbox: t.Tuple[Mailbox, str]) -> None:
    box, server = mailbox
    run(tmp_path, "critical", [mail_receiver(server)], REFUSED)
    run(tmp_path, "ok", [mail_receiver(server)])
    subjects = [mail["Subject"] for mail in box.mails]
    assert subjects == [
        "[web1] Problem: disk on web1",
        "[web1] A person is needed: disk on web1",
        "[web1] Resolved: disk on web1",
    ]
    assert {mail["In-Reply-To"] for mail in box.mails[1:]} == {box.mails[0]["Message-ID"]}
    assert "What to do: Find what fills the disk." in box.mails[1].get_content()


def test_mail_server_that_refuses_the_password_is_a_warning(tmp_path: Path, mailbox: t.Tuple[Mailbox, str]) -> None:
    box, server = mailbox
    outcome = run(tmp_path, "critical", [mail_receiver(server, "marked-wrong-secret")])
    assert (box.mails, set(box.logins)) == ([], {(b"pam", b"marked-wrong-secret")})
    assert "SMTPAuthenticationError" in outcome.warnings[0]
    assert "marked-wrong-secret" not in str(outcome.warnings)


def test_syslog_gets_one_line_for_a_change(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(20)
        receivers = [{"type": "syslog", "server": f"127.0.0.1:{listener.getsockname()[1]}"}]
        measured = checks("critical")
        measured[0]["message"] = "disk is full\n<13>forged: line"
        alerts.record(tmp_path, measured, measured, [], alerts.parse(receivers), "web1")
        line = listener.recv(4096)
    # daemon (3) and warning (4): RFC 5424, 6.2.1
    assert line.startswith(b"<28>wheels-ops: Problem: disk on web1.")
    assert b"\n" not in line


@contextlib.contextmanager
def alertmanager(words: t.Sequence[str], log: t.BinaryIO) -> t.Iterator[None]:
    process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not shutil.which("prometheus-alertmanager"), reason="prometheus-alertmanager is not installed")
def test_alertmanager_has_the_alert_until_the_problem_ends(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "alertmanager.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    words = [
        "prometheus-alertmanager",
        f"--config.file={tmp_path}/alertmanager.yml",
        f"--storage.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    base = f"http://127.0.0.1:{port}"

    def active() -> t.List[t.Dict[str, t.Any]]:
        with urllib.request.urlopen(f"{base}/api/v2/alerts?active=true", timeout=10) as answer:
            return t.cast("t.List[t.Dict[str, t.Any]]", json.load(answer))

    def ready() -> bool:
        try:
            return active() == []
        except OSError:
            return False

    with (tmp_path / "log").open("wb") as log, alertmanager(words, log):
        wait_until(ready, what="Alertmanager answers")
        receivers = [{"type": "alertmanager", "url": base}]
        state = tmp_path / "state"
        run(state, "critical", receivers, REFUSED)
        run(state, "critical", receivers, REFUSED)
        (alert,) = wait_until(active, what="the alert is there")
        assert alert["labels"] == {"alertname": "WheelsOpsProblem", "host": "web1", "subject": "disk"}
        assert alert["annotations"]["advice"] == "Find what fills the disk."
        assert run(state, "ok", receivers).warnings == ()
        wait_until(lambda: active() == [], what="the alert is resolved")


@pytest.mark.parametrize(
    ("receiver", "words"),
    [
        ({"type": "pager"}, "alerts\\[0\\].type must be one of"),
        ({"type": "webhook"}, "alerts\\[0\\].url must be an http"),
        ({"type": "webhook", "url": "ftp://host/"}, "alerts\\[0\\].url must be an http"),
        ({"type": "webhook", "url": "http://h/", "retries": 3}, "unknown keys: retries"),
        ({"type": "webhook", "url": "http://h/", "timeout": 0}, "alerts\\[0\\].timeout"),
        ({"type": "webhook", "url": "http://h/", "timeout": "9"}, "must be a number of seconds"),
        ({"type": "webhook", "url": "http://h/", "headers": {"A\n": "b"}}, "alerts\\[0\\].headers"),
        ({"type": "email", "server": "mail", "sender": "a@b", "to": []}, "alerts\\[0\\].to must not be empty"),
        ({"type": "email", "server": "mail:x", "sender": "a@b", "to": ["a@b"]}, "must be HOST:PORT"),
        ({"type": "email", "server": "mail", "sender": "a@b", "to": ["a\nBcc: x@y"]}, "without an @|address"),
        (
            {"type": "email", "server": "m:25", "sender": "a@b", "to": ["a@b"], "username": "u", "tls": "none"},
            "clear text",
        ),
        ("slack", "must be an object"),
    ],
)
def test_receiver_that_cannot_work_is_refused_by_name(receiver: t.Any, words: str) -> None:
    with pytest.raises(OpsError, match=words):
        alerts.parse([receiver])
