# SPDX-License-Identifier: GPL-3.0-or-later
"""What the backend's dashboard says of checks that are not made; the page itself is seen in
``test_dashboard_browser.py``.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import types
import typing as t
from pathlib import Path

import pytest

from tests.support.collection import REPOSITORY
from tests.support.health_app import TOKEN, HealthApp, health_app
from tests.support.recovery_run import append_run
from tests.support.waiting import wait_until
from wheels_ops.state import history
from wheels_ops.state.history import HistoryRecord

Modules = t.Callable[[str], types.ModuleType]


def test_every_check_passes_only_where_every_check_was_made(app_modules: Modules) -> None:
    dashboard = app_modules("wheels_ops.dashboard")
    states = {"redis:connection": ("pass", None)}
    assert "None: every check passes." in dashboard._alerts(states, {})
    shown = dashboard._alerts(states, {f"check-{number}": "why" for number in range(4)})
    assert "Healthy, 4 not checked." in shown
    assert "every check passes" not in shown
    assert "Nothing has been checked yet." in dashboard._alerts({}, {})


def test_a_reason_is_text_and_no_markup(app_modules: Modules) -> None:
    dashboard = app_modules("wheels_ops.dashboard")
    assert "<td>&lt;img&gt;</td>" in dashboard._not_checked({"a:b": "<img>"})
    assert dashboard._not_checked({}) == ""


def test_up_for_is_the_age_of_the_process(app_modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the age of the page's own file, which is read with the first request for it."""
    dashboard = app_modules("wheels_ops.dashboard")
    api = types.SimpleNamespace(
        api=types.SimpleNamespace(application=types.SimpleNamespace(version="1")), helper=lambda _name: None
    )
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    started = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(dashboard.time, "time", lambda: started + 90)
    assert "<dt>Up for</dt><dd>90 seconds</dd>" in dashboard._place(api)


def test_runbooks_are_linked_by_the_page_of_each_check(app_modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check that the page names leads to a runbook that exists, where an address is set."""
    dashboard = app_modules("wheels_ops.dashboard")
    pages = {path.stem for path in (REPOSITORY / "docs/runbooks").glob("*.md")}
    checks = {name for name in dashboard.WORDS if ":" in name}
    assert checks and {name: dashboard.runbook(name) for name in checks if dashboard.runbook(name) not in pages} == {}
    monkeypatch.setenv("WHEELS_OPS_RUNBOOK_URL", "https://docs.example.com/{name}.html")
    assert 'href="https://docs.example.com/rls.html"' in dashboard._runbook_link("database:policies")
    monkeypatch.setenv("WHEELS_OPS_RUNBOOK_URL", "javascript:alert(1)")
    assert dashboard._runbook_link("disk:utilization") == ""


def rows_of(page: str) -> t.List[t.List[t.Tuple[str, str]]]:
    """Class and text of the cells of each row."""
    rows = re.findall(r"<tr>(<td.*?)</tr>", page)
    return [re.findall(r'<td(?: class="([^"]*)")?>(.*?)</td>', row) for row in rows]


def test_the_last_recovery_actions_are_what_the_writers_write(app_modules: Modules, tmp_path: Path) -> None:
    """The records come from the standalone recovery and from the keys of the playbooks' tasks."""
    append_run(tmp_path)
    append_run(tmp_path, skipped=["database", "rls"])
    append_run(tmp_path, failing=["redis"])
    history.append(
        tmp_path / history.FILE, HistoryRecord(action="maintenance", subject="disk", outcome="1 file rotated.")
    )
    entries = [json.loads(line) for line in (tmp_path / history.FILE).read_text().splitlines()]
    rows = rows_of(app_modules("wheels_ops.dashboard")._recovery(entries))
    assert [(row[1][1], row[2][1], row[4], row[5][1]) for row in rows] == [
        ("recover", "redis", ("ok", "healthy"), "4.2 s"),
        ("recover", "redis", ("warn", "healthy, 2 not checked"), "4.2 s"),
        ("recover", "redis", ("bad", "not healthy"), "4.2 s"),
        ("maintenance", "disk", ("", "1 file rotated."), ""),
    ]


LOGIN = "/api/v1/system/dashboard/login"
FORM = f"token={TOKEN}".encode()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[HealthApp]:
    tokens = tmp_path_factory.mktemp("etc") / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    with health_app(WHEELS_OPS_TOKEN="", WHEELS_OPS_TOKEN_FILE=str(tokens)) as running:
        yield running


def session_of(app: HealthApp) -> str:
    return app.request("POST", LOGIN, data=FORM).headers["set-cookie"].partition(";")[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "10.0.0.7:8000", "Origin": "https://ops.example", "Sec-Fetch-Site": "same-origin"}, 303),
        ({"Host": "ops.example", "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "ops.example", "Origin": "https://evil.example", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "ops.example", "Origin": "https://evil.example"}, 403),
        ({"Host": "ops.example", "Origin": "https://ops.example"}, 303),
    ],
)
def test_sign_in_behind_a_proxy_that_rewrites_the_host(app: HealthApp, headers: t.Dict[str, str], status: int) -> None:
    answer = app.request("POST", LOGIN, data=FORM, more=headers)
    assert answer.status == status
    if status == 403:
        assert answer.headers["content-type"].startswith("text/html") and b"proxy_set_header Host" in answer.body


@pytest.mark.parametrize(
    "value", ["\u00b2.a.b", "9" * 5000 + ".a.b", "1\u00b9.0.\u00e9", "", ".", "..", "99999999999.x.\u00ff"]
)
def test_any_bytes_in_the_cookie_are_a_sign_in(app: HealthApp, value: str) -> None:
    answer = app.request("GET", "/api/v1/system/dashboard", more={"Cookie": f"wheels_ops_session={value}"})
    assert answer.status == 200 and b'id="token"' in answer.body


def test_session_ends_when_its_token_is_taken_away_also_by_a_copy_of_the_same_age() -> None:
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name) / "tokens"
        tokens.write_text(f"{TOKEN}\n")
        with health_app(WHEELS_OPS_TOKEN="", WHEELS_OPS_TOKEN_FILE=str(tokens)) as app:
            cookie = {"Cookie": session_of(app)}
            assert b"Sign out" in app.request("GET", "/api/v1/system/dashboard", more=cookie).body
            age = tokens.stat().st_mtime_ns
            tokens.write_text("another-token-of-tests-x\n")
            os.utime(tokens, ns=(age, age))
            wait_until(
                lambda: b'id="token"' in app.request("GET", "/api/v1/system/dashboard", more=cookie).body,
                what="the sign-in instead of the page",
            )


def test_tries_are_counted_together_where_addresses_are_forged() -> None:
    """Each from an address of its own, as the proxy in front is made to say; a valid token is not held up by them."""
    with health_app() as app:
        statuses = [
            app.request("GET", "/metrics", token="wrong", X_Forwarded_For=f"192.0.2.{number}").status
            for number in range(230)
        ]
        assert set(statuses[:200]) == {401} and statuses[-1] == 429
        assert app.request("GET", "/metrics", token=TOKEN).status == 200


def test_a_body_that_does_not_come_is_refused_and_no_failed_try(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "def shorten():\n"
        "    while not hasattr(sys.modules.get('app.api.v1.system_health'), 'BODY_SECONDS'): time.sleep(0.01)\n"
        "    sys.modules['app.api.v1.system_health'].BODY_SECONDS = 0.3\n"
        "threading.Thread(target=shorten, daemon=True).start()\n"
    )
    with health_app(PYTHONPATH=str(tmp_path)) as app, socket.create_connection(("127.0.0.1", app.port)) as peer:
        peer.settimeout(30)
        peer.sendall(f"POST {LOGIN} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\ntoken=".encode())
        assert b" 408 " in peer.recv(4096).partition(b"\r\n")[0]
        assert "Internal error" not in app.logged() and "sign-in refused" not in app.logged()
