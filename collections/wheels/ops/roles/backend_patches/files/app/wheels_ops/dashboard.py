# SPDX-License-Identifier: MIT
"""The dashboard page ``/api/v1/system/dashboard``, for whoever is woken at night: which machine and release this is,
what is wrong and since when, what to do now, then every check, values against thresholds, 24 hours as charts, recovery.

Made on the server as one HTML page with inline SVG: no external asset, a Content-Security-Policy that allows nothing
but this page's own style and script by nonce. The ops token goes in by a form and is not kept: the session is a cookie
(HttpOnly, SameSite=Strict) with its expiry and a MAC under a key derived from the token, so it works in every worker
and ends when the token is withdrawn. It opens this page only; nothing that changes anything accepts it.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import math
import os
import secrets
import socket
import time
import typing as t
from datetime import datetime, timezone
from urllib.parse import parse_qs, urlsplit

COOKIE = "wheels_ops_session"
SESSION_SECONDS = 8 * 3600
#: metric, title, unit, whether the chart starts at 0 and ends at 100
CHARTS = (
    ("memory_percent", "Memory", "%"),
    ("cpu_percent", "CPU", "%"),
    ("disk_percent", "Disk", "%"),
    ("response_p95_ms", "Response time (95th percentile)", "ms"),
    ("error_rate", "Failed requests", "%"),
    ("process_memory_mb", "Memory of this process", "MB"),
    ("loop_lag_ms", "Event-loop lag", "ms"),
    ("active_connections", "WebSocket connections", ""),
)
#: Metrics of the table that have no thresholds of their own.
MORE_VALUES = (
    "requests_per_second",
    "response_p95_ms",
    "cache_hit_rate",
    "db_query_ms",
    "db_pool_in_use",
    "celery_queue_depth",
    "celery_queue_age_s",
    "load_1m",
)
#: Names for people; of others the own name is shown with blanks.
WORDS = {
    "memory_percent": "Memory",
    "cpu_percent": "CPU",
    "disk_percent": "Disk space",
    "disk_inodes_percent": "Disk inodes",
    "process_memory_mb": "Memory of this process",
    "response_time_ms": "Mean response time",
    "response_p95_ms": "Response time, 95th percentile",
    "error_rate": "Failed requests",
    "active_connections": "WebSocket connections",
    "loop_lag_ms": "Longest stall of the event loop",
    "loop_blocked_percent": "Event loop blocked",
    "requests_per_second": "Requests a second",
    "cache_hit_rate": "Reads that the cache answered",
    "db_query_ms": "Database query",
    "db_pool_in_use": "Database connections in use",
    "celery_queue_depth": "Waiting tasks",
    "celery_queue_age_s": "Oldest waiting task",
    "load_1m": "Load average, one minute",
    "database:connection": "Database",
    "database:tables": "Tables of the database",
    "database:policies": "Row policies of the database",
    "redis:connection": "Redis",
    "redis:write": "Writes to Redis",
    "celery:queues": "Queues of background tasks",
    "celery:beat": "Scheduler of background tasks",
    "celery:workers": "Workers of background tasks",
    "cors:preflight": "Browsers of the front ends (CORS)",
    "tts:engines": "Speech",
    "websocket:heartbeat": "WebSocket heartbeat",
    "websocket:connections": "WebSocket connections",
    "process:stability": "Restarts and crash loops",
    "process:memory": "Memory of this process",
    "memory:utilization": "Memory",
    "cpu:utilization": "CPU",
    "disk:utilization": "Disk space",
    "disk:inodes": "Disk inodes",
    "http:responseTime": "Response time",
    "http:errorRate": "Failed requests",
    "eventloop:lag": "Longest stall of the event loop",
    "eventloop:blocked": "Event loop blocked",
    "monitoring:samples": "Monitoring",
}
#: What to do now, by the part before the colon, or by the whole name.
TO_DO = {
    "database:connection": "Is PostgreSQL up, and reachable from here? Then: playbooks/recover.yml.",
    "database:tables": "Run playbooks/deploy.yml: it creates the missing tables.",
    "database:policies": "Run playbooks/deploy.yml: it replaces the recursive policies.",
    "redis": "Is Redis up, and its disk not full? Users see slower answers meanwhile. Then: playbooks/recover.yml.",
    "celery": "Are the workers and beat running? playbooks/recover.yml starts what is stopped.",
    "cors": "Compare the origin that users come from with ADDITIONAL_CORS_ORIGINS, and their headers with"
    " ADDITIONAL_CORS_HEADERS.",
    "tts": "Text is shown meanwhile. Is espeak-ng installed, and Edge reachable?",
    "websocket": "Restart this service: playbooks/recover.yml.",
    "process": "See the log from the last start on, then playbooks/rollback.yml if a deployment is the cause.",
    "memory": "See the largest routes in performance/report; playbooks/recover.yml recycles the workers.",
    "cpu": "See which process is busy on this machine; background work is slowed down already.",
    "disk": "Run playbooks/recover.yml: it cleans up and rotates logs. Or enlarge the file system.",
    "http": "See the slowest and the failing routes in performance/report.",
    "eventloop": "Move the call that is named here into a thread.",
    "monitoring": "POST monitoring/start, or restart the service.",
}
#: The page of the runbooks for a check, where it has another name than the part before the colon.
RUNBOOKS = {"database:policies": "rls", "process": "services", "eventloop": "cpu", "monitoring": "WheelsOpsRunStopped"}
#: Variables in which hosts and builds say which release runs.
RELEASE_VARIABLES = ("RELEASE", "GIT_COMMIT", "RENDER_GIT_COMMIT", "SOURCE_VERSION", "HEROKU_SLUG_COMMIT")
_THRESHOLDS_OF = {"response_p95_ms": "response_time_ms"}
#: Time, and mean, lowest and highest value of half a minute.
Point = t.Tuple[float, float, float, float]
#: Time, kind (restart, deployment, recovery) and words of what happened.
Event = t.Tuple[float, str, str]
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 150, 44, 22


# -- session -----------------------------------------------------------------------------------------------------------


def _key(token: str) -> bytes:
    return hashlib.sha256(b"wheels.ops dashboard session\0" + token.encode()).digest()


def seal(token: str, now: float) -> str:
    """A session value for a token: expiry, nonce, MAC."""
    body = f"{int(now) + SESSION_SECONDS}.{secrets.token_hex(8)}"
    return f"{body}.{hmac.new(_key(token), body.encode(), hashlib.sha256).hexdigest()}"


def opens(session: str, tokens: t.Sequence[str], now: float) -> bool:
    """Whether a session value was made with a token that is still valid, and has not expired."""
    body, _ignored, mac = session.rpartition(".")
    expiry = body.partition(".")[0]
    # A browser sends any bytes in a cookie: other alphabets have digits as well, and a number may be of any length.
    if not session.isascii() or not expiry.isdigit() or len(expiry) > 12 or int(expiry) < now:
        return False
    valid = False
    for token in tokens:
        valid |= hmac.compare_digest(hmac.new(_key(token), body.encode(), hashlib.sha256).hexdigest(), mac)
    return valid


def _cookie(headers: t.Mapping[str, str]) -> str:
    for part in headers.get("cookie", "").split(";"):
        name, _ignored, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _set_cookie(value: str, age: int, secure: bool) -> str:
    return (
        f"{COOKIE}={value}; Path=/api/v1/system/dashboard; Max-Age={age}; HttpOnly;"
        f" SameSite=Strict{'; Secure' if secure else ''}"
    )


def same_origin(headers: t.Mapping[str, str]) -> bool:
    """Whether a form was sent by our own page, from what the browser says of it."""
    site = headers.get("sec-fetch-site", "")
    if site:  # what a page cannot set; a proxy in front may have rewritten the Host that the Origin is compared with
        return site in ("same-origin", "none")
    origin = headers.get("origin", "")
    return not origin or urlsplit(origin).netloc == headers.get("host", "")


# -- handlers ----------------------------------------------------------------------------------------------------------


async def show(request: t.Any, caller: str, api: t.Any) -> t.Any:
    if not api.tokens.all():
        return _page(
            api,
            403,
            "Refused",
            "<p>No ops token is configured on this server. Set <code>WHEELS_OPS_TOKEN</code> or"
            " <code>WHEELS_OPS_TOKEN_FILE</code>.</p>",
        )
    if not caller and not opens(_cookie(request.headers), api.tokens.all(), time.time()):
        return _page(api, 200, "Sign in", _form())
    series = await _series(api)
    history = await api.asyncio.to_thread(api.read_history, 100)
    events = await _events(api, history)
    return _page(api, 200, "System health", _body(api, series, history, events), refresh=True)


async def login(request: t.Any, api: t.Any) -> t.Any:
    if not api.tokens.all():
        return await show(request, "", api)
    if not same_origin(request.headers):
        return _foreign_form(api)
    fields = parse_qs((await api.read_body(request)).decode("utf-8", "replace"), max_num_fields=5)
    presented = (fields.get("token") or [""])[0].strip()
    if not api.tokens.match(presented):
        limited = api.api.limited(api.client_of(request))
        api.logger.warning(f"🛡️ audit: dashboard sign-in refused, from {api.client_of(request)}")
        reason = "Too many tries. Wait a minute." if limited else "That token is not valid."
        return _page(api, 429 if limited else 401, "Sign in", _form(reason))
    api.logger.info(
        f"🛡️ audit: dashboard sign-in by token {api.tokens.match(presented)[:12]} from {api.client_of(request)}"
    )
    cookie = _set_cookie(seal(presented, time.time()), SESSION_SECONDS, api.is_secure(request))
    return api.Answer(303, b"", {"Location": "/api/v1/system/dashboard", "Set-Cookie": cookie}, "text/plain")


def _foreign_form(api: t.Any) -> t.Any:
    return _page(
        api,
        403,
        "Refused",
        '<p class="box bad" role="alert">The form was not sent by this page, as far as the browser says. Behind a proxy that'
        " changes the Host header, let it pass the original one on (nginx: <code>proxy_set_header Host $host</code>).</p>"
        '<p><a href="/api/v1/system/dashboard">Back to the sign-in</a></p>',
    )


async def logout(request: t.Any, api: t.Any) -> t.Any:
    if not same_origin(request.headers):
        return _foreign_form(api)
    return api.Answer(
        303,
        b"",
        {"Location": "/api/v1/system/dashboard", "Set-Cookie": _set_cookie("", 0, api.is_secure(request))},
        "text/plain",
    )


async def _series(api: t.Any) -> t.Dict[str, t.List[Point]]:
    """metric -> points of the last 24 hours, from the store or else from memory."""
    names = [name for name, _ignored, _ignored in CHARTS]
    monitor = api.performance_monitor
    if monitor.store is not None:
        try:
            series = await monitor.store.series(names, 24)
        except Exception as error:  # a busy or broken file: what is in memory is shown
            api.logger.warning(f"📊 The metrics history did not answer: {type(error).__name__}")
        else:
            return dict(series)
    recent = {name: monitor.rings[name].since(time.time() - 86400) for name in names if name in monitor.rings}
    return {name: [(at, mean, mean, mean) for at, mean in rows] for name, rows in recent.items()}


async def _events(api: t.Any, history: t.List[t.Mapping[str, t.Any]]) -> t.List[Event]:
    """Starts of the service, deployments and recoveries of the last 24 hours, oldest first."""
    events: t.List[Event] = []
    store = api.performance_monitor.store
    if store is not None:
        try:
            events += [(at, "restart", "service started") for at in await store.starts(24)]
        except Exception as error:  # a busy or broken file: the charts have no marks of starts then
            api.logger.warning(f"📊 The metrics history did not answer: {type(error).__name__}")
    for entry in history:
        try:
            at = datetime.fromisoformat(str(entry.get("time")).replace("Z", "+00:00")).timestamp()
        except ValueError:
            continue
        action = str(entry.get("action", ""))
        kind = "deployment" if action in ("deploy", "rollback") else "recovery"
        if at >= time.time() - 86400:
            events.append((at, kind, f"{action}: {entry.get('outcome', '')}"[:80]))
    return sorted(events)[-60:]


# -- the page ----------------------------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#1b1f24;--soft:#57606a;--line:#d0d7de;--ok:#1a7f37;
--warn:#8a5a00;--bad:#b42318;
--accent:#0b5cad;--grid:#e4e8ec}
@media(prefers-color-scheme:dark){:root{--bg:#0e1116;--card:#171b22;--text:#e6edf3;--soft:#9aa4af;--line:#30363d;
--ok:#4ac26b;--warn:#e3b341;
--bad:#ff7b72;--accent:#6cb6ff;--grid:#262c34}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,sans-serif}
header,main{max-width:1200px;margin:0 auto;padding:1rem}header{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;
align-items:center;
justify-content:space-between}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .6rem}a{color:var(--accent)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;list-style:none;margin:0;
padding:0}
.card,figure,.box{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem;margin:0}
.card b{display:block;font-size:1.9rem;line-height:1.2}.soft{color:var(--soft);font-size:.9rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.8rem}
figcaption{font-weight:600;margin-bottom:.3rem}svg{width:100%;height:auto;display:block}
.ok{color:var(--ok)}.warn{color:var(--warn)}.bad{color:var(--bad)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
.grid{stroke:var(--grid)}.axis{fill:var(--soft);font-size:11px}.curve{fill:none;stroke:var(--accent);stroke-width:1.8;
stroke-linecap:round}.lw{stroke:var(--warn);
stroke-dasharray:5 4}line.er{stroke:var(--soft);stroke-dasharray:1 3}line.ed{stroke:var(--accent)}line.ev{stroke:var(--ok)}
span.er{border-bottom:2px dotted var(--soft)}span.ed{border-bottom:2px solid var(--accent)}
span.ev{border-bottom:2px solid var(--ok)}
svg title{fill:var(--text)}.place{display:flex;flex-wrap:wrap;gap:.4rem 2rem}.place dt{color:var(--soft);font-size:.9rem}.place dd{margin:0;
font-weight:600;overflow-wrap:anywhere}code{color:var(--soft);font-size:.8rem;white-space:nowrap}
@media(max-width:40rem){.stack thead{display:none}.stack tr{display:block;padding:.5rem 0;
border-bottom:1px solid var(--line)}.stack td,.stack th,.stack td.n{display:block;border:0;padding:.1rem 0;text-align:left}
.stack td[data-l]::before{content:attr(data-l)': ';color:var(--soft)}}.lc{stroke:var(--bad);stroke-dasharray:2 3}
button,input{font:inherit;padding:.5rem .8rem;border-radius:.4rem;border:1px solid var(--line);background:var(--card);
color:var(--text)}
button{background:var(--accent);color:var(--card);border-color:var(--accent);cursor:pointer}
button.plain{background:none;color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}form.sign{display:grid;gap:.7rem;max-width:26rem}
.tools{display:flex;gap:.8rem;
align-items:center;flex-wrap:wrap}
"""
_SCRIPT = """
const box=document.getElementById('auto');let timer=0;
function set(){clearInterval(timer);if(box.checked)timer=setInterval(load,15000)}
async function load(){if(document.hidden)return;try{const a=await fetch(location.pathname,{credentials:'same-origin'});
if(a.status===401||a.status===403)return location.reload();if(!a.ok)return;
const s=await a.text(),i=s.indexOf('<main>'),j=s.lastIndexOf('</main>');
const d=new DOMParser().parseFromString(s.slice(i,j),'text/html');
if(d.getElementById('token'))return location.reload();
document.querySelector('main').replaceChildren(...d.querySelector('main').childNodes)}catch(e){}}
box.addEventListener('change',set);set();
"""


def _page(api: t.Any, status: int, title: str, body: str, *, refresh: bool = False) -> t.Any:
    nonce = secrets.token_urlsafe(16)
    tools = ""
    if refresh:
        tools = (
            '<div class="tools"><label><input type="checkbox" id="auto" checked> Refresh every 15 seconds</label><form'
            ' method="post" action="/api/v1/system/dashboard/logout"><button class="plain">Sign'
            " out</button></form></div>"
        )
    content = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width,initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style'
        f' nonce="{nonce}">{_STYLE}</style></head><body>'
        f"<header><h1>{html.escape(title)}</h1>{tools}</header><main>{body}</main>"
        + (f'<script nonce="{nonce}">{_SCRIPT}</script>' if refresh else "")
        + "</body></html>"
    )
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:;"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Vary": "Cookie",
    }
    return api.Answer(status, content, headers, "text/html; charset=utf-8")


def _form(problem: str = "") -> str:
    message = f'<p class="bad" role="alert" id="problem">{html.escape(problem)}</p>' if problem else ""
    described = ' aria-describedby="problem" aria-invalid="true"' if problem else ""
    return (
        f'<form class="sign box" method="post" action="/api/v1/system/dashboard/login">{message}<input type="text"'
        ' name="username" value="ops" autocomplete="username" hidden><label for="token">Ops token</label><input'
        ' id="token" name="token" type="password" autocomplete="current-password" required'
        f" autofocus{described}><button>Sign in</button></form>"
    )


def _word(level: str) -> t.Tuple[str, str]:
    """(class, word) for a status; the word carries the meaning, the colour only helps."""
    return {
        "pass": ("ok", "Healthy"),
        "healthy": ("ok", "Healthy"),
        "info": ("ok", "OK"),
        "warn": ("warn", "Warning"),
        "warning": ("warn", "Warning"),
    }.get(level, ("bad", "Critical" if level in ("fail", "critical") else level.capitalize()))


def _number(value: t.Optional[float], unit: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 or (not unit and value == int(value)) else f"{value:.1f}"
    return f"{text} {unit}".strip()


def _body(
    api: t.Any,
    series: t.Mapping[str, t.List[Point]],
    history: t.List[t.Mapping[str, t.Any]],
    events: t.Sequence[Event] = (),
) -> str:
    monitor = api.performance_monitor
    states = api.board.states()
    notes = dict(api.board.notes)
    moment = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return "".join(
        (
            f'<p class="soft">As of {moment}. Times are UTC.</p>',
            _place(api),
            _alerts(states, notes),
            _scores(api.board.scores(), len(notes)),
            _checks(states),
            _not_checked(notes),
            _values(monitor),
            (
                '<h2>Last 24 hours</h2><p class="soft">Curve: means of half a minute. Dashed line: warning. Dotted'
                ' line: critical. Upright lines: <span class="er">restart</span>, <span class="ed">deployment</span>,'
                ' <span class="ev">recovery</span>, listed below.</p><div class="charts">'
            ),
            *(
                _chart(
                    title,
                    unit,
                    series.get(name, []),
                    monitor.thresholds.get(_THRESHOLDS_OF.get(name, name)),
                    monitor.current.get(name),
                    events,
                )
                for name, title, unit in CHARTS
            ),
            "</div>",
            _event_list(events),
            _recovery(history[:10]),
        )
    )


def named(name: str) -> str:
    """A name for people, as text of HTML, with the one that logs and metrics use."""
    words = WORDS.get(name, name.replace("_", " "))
    return html.escape(words) if words == name else f"{html.escape(words)} <code>{html.escape(name)}</code>"


def to_do(name: str) -> str:
    return TO_DO.get(name, TO_DO.get(name.partition(":")[0], "See the log of this process."))


def runbook(name: str) -> str:
    """The name of the page that says what to do about a check."""
    subject = name.partition(":")[0]
    return RUNBOOKS.get(name, RUNBOOKS.get(subject, subject))


def _runbook_address(page: str) -> str:
    """Where a page of the runbooks is; an address without a place for its name is the same for all. Empty where none
    is configured.
    """
    address = os.environ.get("WHEELS_OPS_RUNBOOK_URL", "")
    return address.replace("{name}", page) if address.startswith(("https://", "http://")) else ""


def _runbook_link(name: str) -> str:
    address = _runbook_address(runbook(name))
    return f' <a href="{html.escape(address)}" rel="noreferrer">Runbook</a>' if address else ""


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


def _since(stamp: str) -> str:
    """``2026-11-30 03:12:09, 14 minutes`` of an ISO time, or nothing."""
    try:
        seconds = time.time() - datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return "–"
    return f"{html.escape(stamp[:19].replace('T', ' '))}, {_ago(seconds)}"


def _up_for() -> str:
    """How long this process runs. This file is read with the first request for the page, long after the start."""
    try:
        import psutil
    except ImportError:
        return "not known: psutil is not installed"
    return _ago(time.time() - psutil.Process().create_time())


def _place(api: t.Any) -> str:
    """Which machine, release and worker answer, for how long, and where it says what to do."""
    release = next((os.environ[name] for name in RELEASE_VARIABLES if os.environ.get(name)), "")
    version = str(getattr(api.api.application, "version", "") or "")
    workers = api.helper("workers")
    worker = workers.describe() if workers is not None else {"scope": "the only worker", "pid": os.getpid()}
    address = _runbook_address("index")
    facts = [
        ("Machine", html.escape(socket.gethostname())),
        ("Release", html.escape(release[:60] or (f"version {version}" if version else "not known"))),
        ("Answered by", f"{html.escape(worker['scope'])}, process {worker['pid']}"),
        ("Up for", f"{_up_for()}"),
    ]
    if address:
        facts.append(("Runbook", f'<a href="{html.escape(address)}" rel="noreferrer">what to do</a>'))
    return '<dl class="box place">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts) + "</dl>"


def _checks(states: t.Mapping[str, t.Tuple[str, t.Any]]) -> str:
    """Each check with its state, also those that pass."""
    rows = []
    for name, (status, check) in sorted(states.items()):
        css, word = _word(status)
        value = getattr(check, "value", None)
        shown = _number(float(value), check.unit) if isinstance(value, (int, float)) else "–"
        rows.append(
            f'<tr><th scope="row">{named(name)}</th><td class="{css}">{word}</td>'
            f'<td class="n" data-l="Value">{shown}</td>'
            f"<td data-l='Since'>{_since(getattr(check, 'since', ''))}</td></tr>"
        )
    if not rows:
        return ""
    head = '<tr><th scope="col">Check</th><th scope="col">State</th><th scope="col" class="n">Value</th>'
    head += '<th scope="col">In this state since</th></tr>'
    return f'<h2>Every check</h2><div class="box wide"><table class="stack"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _event_list(events: t.Sequence[Event]) -> str:
    if not events:
        return '<h2>Restarts, deployments, recoveries</h2><p class="box">None in the last 24 hours.</p>'
    rows = "".join(
        f"<tr><td>{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S}</td><td>{kind}</td>"
        f"<td>{html.escape(text)}</td></tr>"
        for at, kind, text in reversed(events[-20:])
    )
    head = '<tr><th scope="col">Time</th><th scope="col">Kind</th><th scope="col">What</th></tr>'
    return (
        '<h2>Restarts, deployments, recoveries</h2><div class="box'
        f' wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def _scores(scores: t.Mapping[str, t.Any], not_checked: int) -> str:
    css, word = _word(str(scores["overall"]))
    missing = f'<span class="soft">{not_checked} not checked</span>' if not_checked else ""
    cards = [f'<li class="card"><span class="soft">Overall health</span><b class="{css}">{word}</b>{missing}</li>']
    for key, title in (
        ("performance", "Performance"),
        ("stability", "Stability"),
        ("user_experience", "User experience"),
    ):
        value = scores[key]
        css = "soft" if value is None else "ok" if value >= 80 else "warn" if value >= 50 else "bad"
        text = "–" if value is None else f"{value:.0f}"
        note = "not measured yet" if value is None else "of 100"
        cards.append(
            f'<li class="card"><span class="soft">{title}</span><b class="{css}">{text}</b><span'
            f' class="soft">{note}</span></li>'
        )
    return f'<h2>Scores</h2><ul class="cards">{"".join(cards)}</ul>'


def _alerts(states: t.Mapping[str, t.Tuple[str, t.Any]], notes: t.Mapping[str, str]) -> str:
    rows = []
    for name, (status, check) in sorted(states.items(), key=lambda item: item[1][0]):
        if status == "pass":
            continue
        css, word = _word(status)
        rows.append(
            "<tr><td"
            f' class="{css}">{word}</td><td>{named(name)}</td>'
            f"<td>{html.escape(check.output or 'the sample is old')}</td>"
            f'<td data-l="Since">{_since(check.since)}</td>'
            f'<td data-l="What to do now">{html.escape(to_do(name))}{_runbook_link(name)}</td></tr>'
        )
    if not rows and not states:
        return '<h2>Active alerts</h2><p class="box warn">Nothing has been checked yet.</p>'
    if not rows:
        message = f"None. Healthy, {len(notes)} not checked." if notes else "None: every check passes."
        return f'<h2>Active alerts</h2><p class="box ok">{message}</p>'
    head = (
        '<tr><th scope="col">Level</th><th scope="col">Check</th><th scope="col">What</th><th scope="col">Since</th>'
        '<th scope="col">What to do now</th></tr>'
    )
    return (
        '<h2>Active alerts</h2><div class="box'
        f' wide"><table class="stack"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _not_checked(notes: t.Mapping[str, str]) -> str:
    """What nothing is known of, and why: neither healthy nor ill."""
    if not notes:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{named(name)}</th><td>{html.escape(reason)}</td></tr>'
        for name, reason in sorted(notes.items())
    )
    head = '<tr><th scope="col">Check</th><th scope="col">Why not</th></tr>'
    return f'<h2>Not checked</h2><div class="box wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _values(monitor: t.Any) -> str:
    rows = []
    for name in (*monitor.thresholds, *MORE_VALUES):
        metric = monitor.current.get(name)
        if metric is None:
            continue
        limits = monitor.thresholds.get(name, {})
        alert = monitor.active_alerts.get(name)
        css, word = _word(alert.level.value if alert else "info")
        cell = f'<td class="{css}">{word}</td>' if limits else '<td class="soft">no threshold</td>'
        rows.append(
            f'<tr><th scope="row">{named(name)}</th><td'
            f' class="n">{_number(metric.value, metric.unit)}</td><td'
            f' class="n">{_number(limits.get("warning"), metric.unit)}</td><td'
            f' class="n">{_number(limits.get("critical"), metric.unit)}</td>{cell}</tr>'
        )
    head = '<th scope="col">Metric</th><th scope="col" class="n">Now</th><th scope="col" class="n">Warning above</th>'
    head += '<th scope="col" class="n">Critical above</th><th scope="col">State</th>'
    return (
        '<h2>Values and thresholds</h2><div class="box'
        f' wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _chart(
    title: str,
    unit: str,
    points: t.List[Point],
    limits: t.Optional[t.Mapping[str, float]],
    current: t.Any,
    events: t.Sequence[Event] = (),
) -> str:
    """One line over 24 hours; gaps stay gaps. The text alternative says the range, so nothing is told by the picture
    alone.

    ``current`` is the metric's last sample, or None where nothing is measured now; it belongs to the range, also where
    the half minute that it lies in is not stored yet.
    """
    caption = f"<figcaption>{html.escape(title)}{f' ({unit})' if unit else ''}</figcaption>"
    if not points:
        return f'<figure>{caption}<p class="soft">No samples yet.</p></figure>'
    end = max(time.time(), points[-1][0])
    begin = end - 86400
    last = [] if current is None else [current.value]
    lowest = min([*last, *(low for _ignored, _ignored, low, _ignored in points)])
    highest = max([*last, *(high for _ignored, _ignored, _ignored, high in points)])
    points = _thin([point for point in points if point[0] >= begin - 60], 480)
    values = [mean for _ignored, mean, _ignored, _ignored in points]
    # How far it is to a threshold is what one wants to see: each is on the scale.
    highest_shown = max([*values, *(limits or {}).values()])
    top = (100.0 if highest_shown > 10 else 10.0) if unit == "%" else max(highest_shown, 1.0) * 1.05

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - 6) * (at - begin) / 86400

    def y(value: float) -> float:
        return (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 8) * min(value, top) / top

    parts = []
    for share in (0.0, 0.5, 1.0):
        level = y(top * share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 6}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(
            f'<text class="axis" x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{_number(top * share)}</text>'
        )
    for hours in (24, 18, 12, 6, 0):
        at = end - hours * 3600
        anchor = "start" if hours == 24 else "end" if hours == 0 else "middle"
        text = datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M")
        parts.append(f'<text class="axis" x="{x(at):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>')
    for css, limit in zip(("lw", "lc"), (limits or {}).values()):
        if limit <= top:
            parts.append(f'<line class="{css}" x1="{LEFT}" x2="{WIDTH - 6}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>')
            parts.append(
                f'<text class="axis" x="{WIDTH - 8}" y="{max(10.0, y(limit) - 3):.1f}" text-anchor="end">'
                f"{_number(limit)}</text>"
            )
    for at, kind, text in events:
        if begin <= at <= end:
            css = {"restart": "er", "deployment": "ed"}.get(kind, "ev")
            parts.append(
                f'<line class="{css}" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="8" y2="{HEIGHT - BOTTOM}">'
                f"<title>{html.escape(f'{kind}: {text}')}</title></line>"
            )
    path: t.List[str] = []
    previous = 0.0
    for at, value, _ignored, _ignored in points:
        path.append(f"{'L' if path and at - previous <= 600 else 'M'}{x(at):.1f} {y(value):.1f}")
        previous = at
    if len(points) == 1:
        path.append("h1.5")
    parts.append(f'<path class="curve" d="{"".join(path)}"/>')
    summary = (
        f"now {_number(last[0] if last else None, unit)}, lowest {_number(lowest, unit)}, highest"
        f" {_number(highest, unit)} in the last 24 hours"
    )
    label = html.escape(f"{title}: {summary}")
    return (
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        f'<p class="soft">N{html.escape(summary[1:])}</p></figure>'
    )


def _thin(points: t.List[Point], most: int) -> t.List[Point]:
    """At most ``most`` points; of each stretch the highest stays, because peaks are what one looks for."""
    stride = -(-len(points) // most)
    if stride <= 1:
        return points
    return [max(points[start : start + stride], key=lambda point: point[1]) for start in range(0, len(points), stride)]


def _subject(entry: t.Mapping[str, t.Any]) -> str:
    """What a record is about: the checks that failed before the run, or the subject that it names."""
    before = entry.get("before")
    return ", ".join(map(str, before)) if isinstance(before, list) and before else str(entry.get("subject", ""))


def _recovery(history: t.List[t.Mapping[str, t.Any]]) -> str:
    if not history:
        return '<h2>Last recovery actions</h2><p class="box">None yet.</p>'
    rows = []
    for entry in history:
        outcome = str(entry.get("outcome", ""))
        # "healthy, 2 not checked" is not healthy as a whole.
        css = {"healthy": "ok", "not healthy": "bad"}.get(outcome, "warn" if outcome.startswith("healthy,") else "")
        cells = "".join(
            f"<td>{html.escape(text[:200])}</td>"
            for text in (str(entry.get("action", "")), _subject(entry), str(entry.get("trigger", "")))
        )
        duration = entry.get("duration_s")
        rows.append(
            f"<tr><td>{html.escape(str(entry.get('time', ''))[:19].replace('T', ' '))}</td>{cells}<td"
            f' class="{css}">{html.escape(outcome[:200])}</td><td'
            f' class="n">{_number(duration, "s") if isinstance(duration, (int, float)) else ""}</td></tr>'
        )
    titles = ("Time", "Action", "Subject", "Trigger", "Outcome", "Duration")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        '<h2>Last recovery actions</h2><div class="box'
        f' wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
