# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""CORS as a browser meets it: real preflights from the origins that must pass, and from some that must not.

The rules are those of the Fetch standard (CORS check, CORS-preflight fetch): a browser goes on only after an ok status
(200 to 299), an ``Access-Control-Allow-Origin`` that is byte for byte the origin (never ``*`` where cookies go along),
credentials exactly ``true``, the method allowed by name unless it is GET, HEAD or POST, every header allowed by name.
"""

from __future__ import annotations

import concurrent.futures
import time
import typing as t
import urllib.parse
from dataclasses import asdict, dataclass, field

from ..core import options
from ..core.results import OpsError
from ..health.check import Check
from .context import HostContext, Options
from .http import require_url

#: The origin of nobody (RFC 2606: .example never resolves); and what a lax pattern lets through.
FOREIGN = "https://evil.example"
#: What the front end's preflights ask for: its own headers and those of Supabase's client.
REQUEST_HEADERS: t.Tuple[str, ...] = ("authorization", "content-type", "apikey", "x-client-info")
#: Methods that need no permission in a preflight answer (Fetch standard: CORS-safelisted methods).
_SAFE_METHODS = ("GET", "HEAD", "POST")
_UNANSWERED = "no answer: "
_UNRESOLVED = "its name cannot be resolved"


@dataclass(frozen=True)
class Exchange:
    """One preflight or one simple request and what a browser would make of it."""

    kind: str
    origin: str
    method: str
    status: t.Optional[int]
    expected: str
    passed: bool
    why: str = ""
    duration_ms: float = 0.0
    headers: t.Dict[str, str] = field(default_factory=dict)


def variants(origin: str) -> t.List[str]:
    """Origins that look like an allowed one and are not: what prefix, suffix, unescaped-dot and case-blind matching let
    through.
    """
    parts = urllib.parse.urlsplit(origin)
    host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    origins_to_try = [
        f"{parts.scheme}://{host}.evil.example{port}",
        f"{parts.scheme}://evil{host}{port}",
        f"{'http' if parts.scheme == 'https' else 'https'}://{host}{port}",
        f"{parts.scheme}://{host}:{(parts.port or 443) + 1}",
    ]
    if "." in host:
        origins_to_try.append(f"{parts.scheme}://{host.replace('.', 'x', 1)}{port}")
    return [FOREIGN, "null", *origins_to_try]


def preflight(
    session: t.Any,
    url: str,
    origin: str,
    *,
    method: str,
    headers: t.Sequence[str],
    allowed: bool,
    credentials: bool,
    timeout: float,
    verify: bool = True,
) -> Exchange:
    """One OPTIONS request as a browser sends it, and whether its answer is the one that is right for this origin."""
    import requests

    request_headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Dest": "empty",
    }
    if headers:
        # A browser sends them lower case and sorted, separated by a comma without a space.
        request_headers["Access-Control-Request-Headers"] = ",".join(sorted(header.lower() for header in headers))
    expected = "allowed" if allowed else "refused"
    start = time.monotonic()
    try:
        reply = session.request(
            "OPTIONS", url, headers=request_headers, timeout=timeout, allow_redirects=False, verify=verify
        )
    except requests.exceptions.RequestException as error:
        return Exchange("preflight", origin, method, None, expected, False, _UNANSWERED + _silence(error), _ms(start))
    why = (
        _granted(reply, origin, method=method, headers=headers, credentials=credentials)
        if allowed
        else _refused(reply, origin)
    )
    return Exchange("preflight", origin, method, reply.status_code, expected, not why, why, _ms(start), _shown(reply))


def simple(
    session: t.Any, url: str, origin: str, *, allowed: bool, credentials: bool, timeout: float, verify: bool = True
) -> Exchange:
    """A plain GET across origins: there is no preflight, the answer's own headers decide whether the
    page may read it.
    """
    import requests

    expected = "allowed" if allowed else "refused"
    start = time.monotonic()
    try:
        reply = session.get(
            url,
            headers={"Origin": origin, "Sec-Fetch-Mode": "cors"},
            timeout=timeout,
            allow_redirects=False,
            verify=verify,
            stream=True,
        )
        reply.close()
    except requests.exceptions.RequestException as error:
        return Exchange("request", origin, "GET", None, expected, False, _UNANSWERED + _silence(error), _ms(start))
    why = _origin_and_credentials(reply, origin, credentials=credentials) if allowed else _refused(reply, origin)
    if (
        not why
        and "origin" not in _words(reply, "Vary")
        and _header(reply, "Access-Control-Allow-Origin") not in ("", "*")
    ):
        why = "Vary does not name Origin: a cache would give one site's answer to another"
    return Exchange("request", origin, "GET", reply.status_code, expected, not why, why, _ms(start), _shown(reply))


def _ms(start: float) -> float:
    return round((time.monotonic() - start) * 1000, 1)


def _header(reply: t.Any, name: str) -> str:
    return str(reply.headers.get(name, ""))


def _words(reply: t.Any, name: str) -> t.List[str]:
    return [word.strip().lower() for word in _header(reply, name).split(",") if word.strip()]


def _shown(reply: t.Any) -> t.Dict[str, str]:
    return {
        name.lower(): value
        for name, value in reply.headers.items()
        if name.lower().startswith("access-control-") or name.lower() == "vary"
    }


def _origin_and_credentials(reply: t.Any, origin: str, *, credentials: bool) -> str:
    allowed_origin = _header(reply, "Access-Control-Allow-Origin")
    if not allowed_origin:
        return "Access-Control-Allow-Origin is missing"
    if allowed_origin != origin and not (allowed_origin == "*" and not credentials):
        return f"Access-Control-Allow-Origin is {allowed_origin!r}, not the origin"
    if credentials and _header(reply, "Access-Control-Allow-Credentials") != "true":
        return f"Access-Control-Allow-Credentials is {_header(reply, 'Access-Control-Allow-Credentials')!r}, not 'true'"
    return ""


def _granted(reply: t.Any, origin: str, *, method: str, headers: t.Sequence[str], credentials: bool) -> str:
    """What keeps a browser from going on after this preflight; empty where nothing does."""
    if not 200 <= reply.status_code <= 299:
        return f"status {reply.status_code}: {reply.text[:80].strip()!r}"
    wrong = _origin_and_credentials(reply, origin, credentials=credentials)
    if wrong:
        return wrong
    methods = [word.strip() for word in _header(reply, "Access-Control-Allow-Methods").split(",")]
    if method not in methods and method not in _SAFE_METHODS and not ("*" in methods and not credentials):
        return f"the method {method} is not in Access-Control-Allow-Methods"
    permitted = _words(reply, "Access-Control-Allow-Headers")
    missing = [header for header in headers if header.lower() not in permitted]
    # The asterisk never covers Authorization, and nothing at all where credentials go along.
    if "*" in permitted and not credentials:
        missing = [header for header in missing if header.lower() == "authorization"]
    if missing:
        return f"not in Access-Control-Allow-Headers: {', '.join(missing)}"
    return ""


def _refused(reply: t.Any, origin: str) -> str:
    """What a foreign site would be given; empty where it gets nothing.

    The status does not matter: only headers let a page read.
    """
    allowed_origin = _header(reply, "Access-Control-Allow-Origin").strip()
    with_cookies = _header(reply, "Access-Control-Allow-Credentials") == "true"
    if allowed_origin == origin:
        return f"the foreign origin {origin} is reflected{' with credentials' if with_cookies else ''}"
    if allowed_origin == "*":
        return "any origin is allowed (*)" + (", and credentials are promised too" if with_cookies else "")
    if allowed_origin and origin in [word.strip() for word in allowed_origin.split(",")]:
        return f"the foreign origin {origin} is listed in Access-Control-Allow-Origin"
    return ""


def validate(
    base_url: str,
    origins: t.Sequence[str],
    foreign: t.Sequence[str],
    methods: t.Sequence[str],
    headers: t.Sequence[str],
    timeout: float,
) -> None:
    """Refuses what no browser could send; nothing is sent yet."""
    require_url(base_url)
    options.not_empty("origins", origins, hint="Give at least one origin that the backend has to allow.")
    for origin in origins:
        options.origin("origins", origin)
    for origin in foreign:
        options.origin("foreign_origins", origin)
    both = sorted(set(origins) & set(foreign))
    if both:
        raise OpsError(
            f"origins and foreign_origins must not overlap, got {', '.join(both)} in both.",
            hint="Remove it from one of them.",
        )
    options.tokens("methods", methods)
    options.tokens("headers", headers)
    options.not_empty("methods", methods, hint="For example [GET, POST].")
    options.in_range("timeout", timeout, 0, 300, unit="seconds", above=True)


def _silence(error: Exception) -> str:
    """Why there was no answer, in words for people; the library's own text nests the same exception three times."""
    import requests

    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return "the certificate or TLS does not hold"
    if isinstance(error, requests.exceptions.Timeout):
        return "nothing came in time"
    for mark, words in (
        ("Connection refused", "the connection is refused: nothing listens there"),
        ("Name or service", _UNRESOLVED),
        ("name resolution", _UNRESOLVED),
        ("resolve", _UNRESOLVED),
        ("No route", "there is no route to it"),
        ("unreachable", "its network cannot be reached"),
        ("reset by peer", "it broke the connection off"),
        ("Remote end closed", "it broke the connection off"),
    ):
        if mark in text:
            return words
    return type(error).__name__


def check(
    base_url: str,
    origins: t.Sequence[str],
    method: t.Union[str, t.Sequence[str]] = "POST",
    headers: t.Sequence[str] = ("authorization", "content-type"),
    *,
    path: str = "/api/v1/pam/chat",
    foreign_origins: t.Optional[t.Sequence[str]] = None,
    credentials: bool = True,
    simple_path: str = "",
    timeout: float = 5.0,
    validate_certs: bool = True,
    parallel: int = 4,
) -> Check:
    """Preflights ``path`` from every origin with every method, and from foreign origins, which must get nothing.

    ``foreign_origins`` None tries look-alikes of the first origin (see ``variants``). ``simple_path`` adds a plain GET
    across origins. ``critical`` where a foreign origin may read an answer or an allowed one may not; ``value`` is the
    share of right answers in percent. Few paths are asked on purpose: the backend locks out an address that asks for
    more than 20 different ones in a minute.
    """
    import requests

    methods = [method] if isinstance(method, str) else list(dict.fromkeys(method))
    validate(base_url, origins, foreign_origins or [], methods, headers, timeout)
    options.url_path("path", path)
    if simple_path:
        options.url_path("simple_path", simple_path)
    origins = list(dict.fromkeys(origins))
    others = list(dict.fromkeys(foreign_origins or []))
    if foreign_origins is None:
        others = [name for name in variants(origins[0]) if name not in origins]
    url = base_url.rstrip("/") + "/" + path.lstrip("/")
    jobs: t.List[t.Callable[[], Exchange]] = []
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment must not answer for the backend
        session.cookies.set_policy(_no_cookies())
        common = {"credentials": credentials, "timeout": timeout, "verify": validate_certs}
        for origin, allowed in [*((name, True) for name in origins), *((name, False) for name in others)]:
            for verb in methods if allowed else methods[:1]:
                jobs.append(
                    _job(preflight, session, url, origin, method=verb, headers=list(headers), allowed=allowed, **common)
                )
            if simple_path:
                plain = base_url.rstrip("/") + "/" + simple_path.lstrip("/")
                jobs.append(_job(simple, session, plain, origin, allowed=allowed, **common))
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
            exchanges = [future.result() for future in [pool.submit(job) for job in jobs]]
    return _judged(url, exchanges)


def _no_cookies() -> t.Any:
    from http.cookiejar import DefaultCookiePolicy

    return DefaultCookiePolicy(allowed_domains=[])


def _job(call: t.Callable[..., Exchange], *words: t.Any, **options: t.Any) -> t.Callable[[], Exchange]:
    return lambda: call(*words, **options)


def _judged(url: str, exchanges: t.Sequence[Exchange]) -> Check:
    wrong = [exchange for exchange in exchanges if not exchange.passed]
    if exchanges and all(exchange.status is None for exchange in exchanges):
        why = wrong[0].why[len(_UNANSWERED) :]
        if why == _UNRESOLVED:  # nobody was asked
            return Check(
                name="cors",
                status="unknown",
                message=f"{url} was not asked: {why}.",
                details={"url": url, "reflected": [], "exchanges": []},
            )
        return Check(
            name="cors",
            status="critical",
            value=0.0,
            unit="percent",
            message=f"{url} does not answer: {why}.",
            remedy="service_restart",
            details={"url": url, "reflected": [], "exchanges": [asdict(exchange) for exchange in exchanges]},
        )
    leaks = [exchange for exchange in wrong if exchange.expected == "refused" and exchange.status is not None]
    worst_first = [*leaks, *(exchange for exchange in wrong if exchange not in leaks)]
    share = 100.0 * (len(exchanges) - len(wrong)) / len(exchanges)
    message = (
        f"{len(exchanges)} requests of {len({exchange.origin for exchange in exchanges})} origins are answered rightly."
    )
    if wrong:
        first = worst_first[0]
        message = (
            f"{len(wrong)} of {len(exchanges)} answers are wrong; {first.kind} {first.method} from {first.origin}:"
            f" {first.why}."
        )
    return Check(
        name="cors",
        status="critical" if wrong else "ok",
        value=round(share, 1),
        unit="percent",
        message=message,
        remedy="managed_files" if wrong else "",
        details={
            "url": url,
            "reflected": [exchange.origin for exchange in leaks],
            "exchanges": [asdict(exchange) for exchange in exchanges],
        },
    )


def measure(_context: HostContext, options: Options) -> Check:
    return check(options.base_url, options.cors_origins, headers=REQUEST_HEADERS, path=options.cors_path)
