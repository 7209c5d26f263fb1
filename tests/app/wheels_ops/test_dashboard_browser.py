# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard in a real headless browser: sign in, read, charts, dark mode, small screen, sign out;
and its session.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sqlite3
import time
import typing as t
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.support import browser as browsers
from tests.support.health_app import OTHER_TOKEN, TOKEN, HealthApp, health_app
from tests.support.waiting import wait_until
from wheels_ops.state import history
from wheels_ops.state.history import HistoryRecord

PAGE = "/api/v1/system/dashboard"
HISTORY = (
    HistoryRecord(
        action="recover", trigger="timer", before=("memory",), after=(), not_checked=("rls",), duration_s=1.5
    ),
    HistoryRecord(action="service_restart", trigger="api", subject="<img src=x>", outcome="failed"),
)


def fill(directory: Path) -> None:
    """A day of samples with a gap of two hours, as the store would have written it."""
    with sqlite3.connect(directory / "metrics.sqlite") as database:
        database.executescript(
            "create table metric (id integer primary key, name text not null unique);create table sample (step integer"
            " not null, metric integer not null, slot integer not null, low real not null, high real not null, total"
            " real not null, count integer not null, last real not null, primary key (step, metric, slot)) without"
            " rowid;"
        )
        now = int(time.time()) // 30
        for number, (name, base) in enumerate(
            {"memory_percent": 55.0, "cpu_percent": 30.0, "response_p95_ms": 350.0, "error_rate": 0.4}.items(), 1
        ):
            database.execute("insert into metric values (?, ?)", (number, name))
            rows = []
            for back in range(2870, 2, -1):
                if 1200 < back < 1440:
                    continue
                value = base * (1 + 0.3 * ((back // 60) % 7) / 7 + 0.05 * (back % 5))
                rows.append((30, number, now - back, value, value, value, 1, value))
            database.executemany("insert into sample values (?, ?, ?, ?, ?, ?, ?, ?)", rows)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[HealthApp]:
    state = tmp_path_factory.mktemp("state")
    fill(state)
    for record in HISTORY:
        history.append(state / history.FILE, record)
    with health_app(
        state=state, MONITORING_INTERVAL="0.5", HEALTH_CHECK_INTERVAL="0.5", REDIS_URL="redis://127.0.0.1:9/0"
    ) as running:
        yield running


def sign_in(page: browsers.Page, token: str) -> None:
    page.evaluate(
        f"document.querySelector('#token').value = {json.dumps(token)}; document.querySelector('form button').click()"
    )


def test_in_a_real_browser(app: HealthApp, tmp_path: Path) -> None:
    if browsers.program() is None:
        pytest.skip("no Chromium on this machine")
    shots = Path(os.environ.get("WHEELS_OPS_SCREENSHOTS") or tmp_path)
    with browsers.browser() as chromium:
        page = chromium.page(app.url + PAGE)
        assert page.evaluate("document.querySelector('h1').textContent") == "Sign in"
        sign_in(page, "wrong token")
        wait_until(
            lambda: page.evaluate("document.querySelector('[role=alert]')?.textContent") == "That token is not valid."
        )
        sign_in(page, OTHER_TOKEN)
        wait_until(lambda: page.evaluate("document.querySelector('h1').textContent") == "System health")
        text = page.evaluate("document.body.innerText")
        for words in (
            "Overall health",
            "Performance",
            "Stability",
            "User experience",
            "Active alerts",
            "Values and thresholds",
            "Last recovery actions",
        ):
            assert words in text, words
        assert "redis:connection" in text and "Critical" in text, "what is broken is shown"
        assert "service_restart" in text and "<img src=x>" in text, "the history is shown as text"
        assert "healthy, 1 not checked" in text and "1.5 s" in text
        assert page.evaluate("document.querySelectorAll('main img').length") == 0
        charts = page.evaluate(
            "[...document.querySelectorAll('svg')].map(s => [s.getAttribute('aria-label'),"
            " s.querySelector('.curve').getAttribute('d')])"
        )
        assert len(charts) >= 6
        memory = next(path for label, path in charts if label.startswith("Memory:"))
        assert memory.count("M") >= 2 and memory.count("L") > 300, "a gap in the samples is a gap in the line"
        assert all(" now " in label and "highest" in label for label, _ in charts), "each chart has a text alternative"
        assert page.evaluate("document.cookie") == "", "no script can read the session"
        assert (
            page.evaluate(
                "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin)).length"
            )
            == 0
        )
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.evaluate("[...document.querySelectorAll('th')].every(h => h.scope)") is True
        assert page.evaluate("[...document.querySelectorAll('input')].every(i => i.hidden || i.labels.length)") is True
        before = page.evaluate("document.querySelector('main p').textContent")
        page.evaluate("new Promise(done => setTimeout(done, 1100))")
        page.evaluate("load()")
        assert page.evaluate("document.querySelector('main p').textContent") != before, "it refreshes itself in place"
        for name, mode, width in (("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])
            page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=1700, deviceScaleFactor=1, mobile=width < 500
            )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"no sideways scrolling at {width}"
            )
            assert contrast(page) >= 4.5, mode
            assert page.evaluate(
                "[...document.querySelectorAll('[data-l=\"What to do now\"]')].every(e =>"
                " e.getBoundingClientRect().right <= innerWidth)"
            ), f"what to do is read without scrolling sideways at {width}"
            page.screenshot(shots / f"dashboard-{name}.png")
        said = [line for line in page.console() if "status of 401" not in line]
        assert said == [], "nothing of the page itself is refused by its policy"
        page.evaluate("document.querySelector('header form button').click()")
        wait_until(lambda: page.evaluate("document.querySelector('h1').textContent") == "Sign in")
        page.screenshot(shots / "dashboard-sign-in.png")


def numbers(label: str) -> t.List[float]:
    """now, lowest and highest of a chart's text alternative; nan for what is not measured now."""
    return [
        float("nan") if word == "–" else float(word.replace(",", ""))
        for word in re.findall(r"(?:now|lowest|highest) (–|[0-9][0-9,.]*)", label)
    ]


def test_what_is_not_checked_is_no_health(app: HealthApp) -> None:
    """The application of this file has no database; while that is noted, its page says so with the reason."""

    def said() -> str:
        return app.request("GET", PAGE, token=TOKEN).body.decode()

    wait_until(lambda: "neither DATABASE_URL nor SUPABASE_URL with its key is set" in said())
    notes = app.request("GET", "/api/v1/system/health", token=TOKEN).json()["notes"]
    assert "database:connection: neither DATABASE_URL nor SUPABASE_URL with its key is set" in notes
    page = said()
    assert "None: every check passes." not in page
    assert f'</b><span class="soft">{len(notes)} not checked</span>' in page
    assert (
        "Database <code>database:connection</code></th>"
        "<td>neither DATABASE_URL nor SUPABASE_URL with its key is set</td></tr>"
    ) in page
    metrics = app.request("GET", "/api/v1/system/metrics", token=TOKEN).body.decode()
    assert 'pam_health_check_skipped{check="database:connection"} 1' in metrics
    assert 'pam_health_check{check="database:connection"}' not in metrics


def test_now_lies_between_lowest_and_highest(app: HealthApp) -> None:
    """Also before the half minute that it belongs to has been stored; and the extremes are those of samples, not of
    half minutes.
    """
    for _ in range(5):
        labels = re.findall(r'aria-label="([^"]*)"', app.request("GET", PAGE, token=TOKEN).body.decode())
        assert len(labels) >= 5, labels
        for label in labels:
            now, lowest, highest = numbers(label)
            assert lowest <= now <= highest or math.isnan(now), label
        assert sum(not math.isnan(numbers(label)[0]) for label in labels) >= 4, labels
        time.sleep(0.4)
    report = app.request("GET", "/api/v1/system/performance/report?hours=24", token=TOKEN).json()["metrics_summary"][
        "error_rate"
    ]
    shown = numbers(next(label for label in labels if label.startswith("Failed requests")))
    assert shown[1:] == pytest.approx([report["min"], report["max"]], abs=0.06)


def contrast(page: browsers.Page) -> float:
    """The smallest WCAG contrast of any text against its background on the page."""
    return float(
        page.evaluate("""(() => {
            const parse = c => c.match(/[0-9.]+/g).map(Number);
            const lum = c => { const v = parse(c).slice(0, 3).map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
                               return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
            const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (parse(c)[3] !== 0) return c; }
                                return 'rgb(255,255,255)'; };
            let worst = 99;
            for (const e of document.querySelectorAll('main *, header *')) {
                if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
                const style = getComputedStyle(e), ink = e.namespaceURI.endsWith('svg') ? style.fill : style.color;
                const [a, b] = [lum(ink), lum(back(e))].sort((x, y) => y - x);
                worst = Math.min(worst, (a + .05) / (b + .05));
            }
            return worst; })()""")
    )


def login(app: HealthApp, token: str, **headers: str) -> t.Tuple[int, str]:
    answer = app.request("POST", PAGE + "/login", data=urlencode({"token": token}).encode(), more=headers)
    return answer.status, answer.headers.get("set-cookie", "")


def test_the_session_cookie(app: HealthApp) -> None:
    status, cookie = login(app, TOKEN)
    assert status == 303
    name, _, rest = cookie.partition("=")
    value, *attributes = [part.strip() for part in rest.split(";")]
    assert {"HttpOnly", "SameSite=Strict", f"Path={PAGE}"} <= set(attributes) and "Secure" not in attributes
    assert TOKEN not in value
    assert "Secure" in login(app, TOKEN, X_Forwarded_Proto="https")[1]

    def shown(session: str) -> bool:
        return b"Overall health" in app.request("GET", PAGE, Cookie=f"{name}={session}").body

    assert shown(value)
    expiry, nonce, mac = value.split(".")
    assert (
        not shown(f"{int(expiry) + 1}.{nonce}.{mac}")
        and not shown(f"{expiry}.{nonce}.{'0' * 64}")
        and not shown("")
        and not shown("...")
    )
    assert not shown(f"1.{nonce}.{mac}")
    for path in ("admin/debug", "performance/report", "monitoring/status"):
        assert app.request("GET", f"/api/v1/system/{path}", Cookie=cookie).status == 401, (
            "the session opens the page and nothing else"
        )
    assert app.request("POST", "/api/v1/system/monitoring/stop", Cookie=cookie).status == 401


def test_a_foreign_page_cannot_sign_anyone_in(app: HealthApp) -> None:
    assert login(app, TOKEN, Origin="https://evil.example")[0] == 403
    assert login(app, TOKEN, Sec_Fetch_Site="cross-site")[0] == 403
    assert login(app, TOKEN, Origin=app.url, Sec_Fetch_Site="same-origin")[0] == 303
    assert login(app, "")[0] == 401
    assert app.request("POST", PAGE + "/login", data=b"token=" + b"x" * 20000).status == 401


def test_the_policy_of_the_page(app: HealthApp) -> None:
    first, second = (app.request("GET", PAGE, token=TOKEN) for _ in range(2))
    policy = first.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy
        and "unsafe" not in policy
        and "http" not in policy
        and "frame-ancestors 'none'" in policy
    )
    assert policy != second.headers["content-security-policy"], "a nonce is used once"
    for needle in (b"http://", b"https://", b" style=", b" onclick", b'<link rel="stylesheet'):
        assert needle not in first.body


def test_tries_are_limited_in_an_app_of_its_own() -> None:
    with health_app() as app:
        statuses = [login(app, f"guess {number}")[0] for number in range(30)]
        assert statuses[0] == 401 and statuses[-1] == 429
        assert login(app, TOKEN)[0] == 303


def test_page_says_where_since_when_and_what_to_do(app: HealthApp) -> None:
    wait_until(lambda: app.check("redis:connection") == "fail")
    page = app.request("GET", PAGE, token=TOKEN).body.decode()
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page))
    assert facts["Machine"] == socket.gethostname()
    assert facts["Answered by"] == f"the only worker, process {app.process.pid}"
    assert facts["Release"] and re.fullmatch(r"\d+ (seconds|minutes)", facts["Up for"])
    row = re.search(r'<tr><td class="bad">Critical</td><td>Redis <code>redis:connection</code></td>(.*?)</tr>', page)
    assert row is not None and "What to do now" in row[1] and "playbooks/recover.yml" in row[1]
    since = app.request("GET", "/api/v1/system/health", token=TOKEN).json()["checks"]["redis:connection"][0]["since"]
    assert since[:19].replace("T", " ") in row[1]


def test_events_are_marked_in_each_chart_and_listed(app: HealthApp) -> None:
    page = app.request("GET", PAGE, token=TOKEN).body.decode()
    charts = re.findall(r"<svg .*?</svg>", page)
    assert len(charts) >= 6
    assert all("<title>restart: service started</title>" in chart for chart in charts)
    assert "<td>restart</td><td>service started</td>" in page


def test_thresholds_are_on_the_scale(app: HealthApp) -> None:
    """Also those that the curve is far from."""
    page = app.request("GET", PAGE, token=TOKEN).body.decode()
    slow = next(chart for chart in re.findall(r"<svg .*?</svg>", page) if 'aria-label="Response time' in chart)
    assert 'class="lw"' in slow and 'class="lc"' in slow and ">500<" in slow and ">1,000<" in slow
