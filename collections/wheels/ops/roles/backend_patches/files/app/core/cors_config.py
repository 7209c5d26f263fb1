# SPDX-License-Identifier: MIT
"""Cross-origin resource sharing: one policy, validated when the process starts, applied outside everything else.

``cors_config``       what the rest of the backend asks (origins, methods, headers, the answer to an OPTIONS request).
``CORSMiddleware``    the ASGI layer. It has to be the outermost one: then errors and redirects carry the headers too.
``CORSPolicy``        the policy itself; it cannot be constructed in a state that is unsafe or that never matches.

Rules, from the Fetch standard (https://fetch.spec.whatwg.org/#http-cors-protocol):
an origin is compared byte for byte; a foreign one is never named in a response; every response says ``Vary: Origin``,
because a shared cache would otherwise hand one origin's copy to another; a preflight is answered here, 200 or 403, and
never reaches the routes; a refused preflight says nothing about the policy.

Environment (read once, at start):
``ADDITIONAL_CORS_ORIGINS``   further origins, separated by commas. A bad one stops the start with one line ...
``ADDITIONAL_CORS_HEADERS``   further request headers, separated by commas: those of a tracing library (``traceparent``,
                              ``baggage``, ``sentry-trace``), for example. A bad one stops the start as well ...
``CORS_FAIL_OPEN_START``      ... unless this is true: then it is left out, with an error in the log.
``CORS_ALLOWED_ORIGINS``      the August release's variable (JSON list or commas): good ones are taken, bad ones logged.
``CORS_DEPLOY_PREVIEWS``      false: no Netlify deploy previews of the project's own site.
``ENABLE_LOVABLE_ORIGINS`` / ``DISABLE_LOVABLE_ORIGINS``   the Lovable previews: on outside production, off in it.
``ENABLE_ENHANCED_CORS``      false: Starlette's own middleware with the same policy (if this layer is at fault): refused
                              preflights are then answered 400, and errors carry no CORS headers.
``CORS_DEBUG_ENABLED``        logs every decision (still rate-limited) with the reason.
``CORS_ALLOW_PRIVATE_NETWORK``  true: answers Private Network Access preflights. Browsers no longer need it: Chrome asks
                              the user instead (Local Network Access, since version 142).
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import re
import time
import typing as t
from collections import OrderedDict
from dataclasses import dataclass, fields

from app.core.logging import get_logger
from starlette.responses import Response

try:
    env: t.Any = importlib.import_module("app.wheels_ops.env")
except ImportError:  # copied by hand without app/wheels_ops
    env = None

logger = get_logger(__name__)
if env is None:
    logger.warning("CORS: app/wheels_ops is not installed; variables that cannot be read are not reported")

Scope = t.MutableMapping[str, t.Any]
Message = t.MutableMapping[str, t.Any]
Receive = t.Callable[[], t.Awaitable[Message]]
Send = t.Callable[[Message], t.Awaitable[None]]
ASGIApp = t.Callable[[Scope, Receive, Send], t.Awaitable[None]]
HeaderPair = t.Tuple[bytes, bytes]

# --- the project's own front ends -------------------------------------------------------------------------------------

OWN_ORIGINS = (
    "https://wheelsandwins.com",
    "https://www.wheelsandwins.com",
    "https://wheelz-wins.com",
    "https://www.wheelz-wins.com",
    "https://wheels-wins-landing-page.netlify.app",
    "https://wheels-wins-staging.netlify.app",
    "https://65a8f6b6c9f5d2092be8bfc2--wheels-wins-landing-page.netlify.app",
)
# Known to the August release's staging settings only; a Netlify name that nobody holds can be taken by anybody,
# so production does not trust it.
STAGING_ORIGINS = ("https://staging-wheelsandwins.netlify.app",)
DEVELOPMENT_ORIGINS = (
    *(f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (3000, 8080, 5173)),
    *(f"http://localhost:{port}" for port in (3001, 4000, 5000)),
    *(f"https://localhost:{port}" for port in (3000, 8080)),
)
_LOVABLE = "4fd8d7d4-1c59-4996-a0dd-48be31131e7c"
LOVABLE_ORIGINS = (
    f"https://{_LOVABLE}.lovable.app",
    f"https://id-preview--{_LOVABLE}.lovable.app",
    f"https://{_LOVABLE}.lovableproject.com",
    f"https://preview--{_LOVABLE}.lovable.app",
    f"https://main--{_LOVABLE}.lovable.app",
)
# Netlify serves pull request N of a site as deploy-preview-N--SITE; "--" cannot be part of somebody else's site name.
DEPLOY_PREVIEWS = (r"https://deploy-preview-[0-9]{1,6}--wheels-wins-landing-page\.netlify\.app",)

ALLOWED_METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD")
ALLOWED_HEADERS = (
    "Accept",
    "Accept-Language",
    "Content-Language",
    "Content-Type",
    "Authorization",
    "X-Requested-With",
    "Origin",
    "Access-Control-Request-Method",
    "Access-Control-Request-Headers",
    "Cache-Control",
    "Pragma",
    "X-Supabase-Auth",
    "apikey",
    "X-CSRF-Token",
    "X-Client-Info",
    "X-Request-ID",
    "X-Auth-Type",
)
EXPOSE_HEADERS = ("Content-Range", "X-Content-Range", "X-Request-ID", "X-Response-Time", "Retry-After")
MAX_AGE = 7200  # seconds; Chromium keeps a preflight no longer than this

# --- validation -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_FORBIDDEN_METHODS = {"CONNECT", "TRACE", "TRACK"}
# "Forbidden request-header" of the Fetch standard, without the three that the backend's own list has always named:
# a page can set none of them, so listing one is a misunderstanding.
_FORBIDDEN_REQUEST_HEADERS = {
    "accept-charset",
    "accept-encoding",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "date",
    "dnt",
    "expect",
    "host",
    "keep-alive",
    "referer",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
}
_FORBIDDEN_RESPONSE_HEADERS = {"set-cookie", "set-cookie2"}
# Domains under which anybody gets a name: a pattern must fix the name directly below them.
_SHARED_SUFFIXES = (
    "netlify.app",
    "netlify.com",
    "lovable.app",
    "lovableproject.com",
    "lovable.dev",
    "vercel.app",
    "now.sh",
    "onrender.com",
    "herokuapp.com",
    "github.io",
    "gitlab.io",
    "pages.dev",
    "workers.dev",
    "web.app",
    "firebaseapp.com",
    "azurewebsites.net",
    "azurestaticapps.net",
    "cloudfront.net",
    "amazonaws.com",
    "s3.amazonaws.com",
    "fly.dev",
    "railway.app",
    "surge.sh",
    "glitch.me",
    "repl.co",
    "replit.app",
    "replit.dev",
    "ngrok.io",
    "ngrok.app",
    "ngrok-free.app",
    "trycloudflare.com",
    "loca.lt",
    "supabase.co",
    "blogspot.com",
    "appspot.com",
    "run.app",
    "deno.dev",
    "stackblitz.io",
    "webcontainer.io",
    "codesandbox.io",
    "csb.app",
    "gitpod.io",
    "github.dev",
)
# The same, sold by registries: there "--" is part of the name that somebody bought, and no border.
_REGISTRY_SUFFIXES = (
    "co.uk",
    "org.uk",
    "com.au",
    "net.au",
    "org.au",
    "co.nz",
    "co.jp",
    "com.br",
    "co.za",
    "co.in",
    "com.mx",
    "com.sg",
)
_MAX_AGE_LIMIT = 86_400  # Firefox's cap, the longest of any browser
_LONGEST_ORIGIN = 8 + 253 + 6  # scheme, the longest DNS name, port
_LONGEST_HEADER_LIST = 4096
_MOST_HEADER_NAMES = 64


class CORSPolicyError(ValueError):
    """The policy cannot be used. ``problems`` has one sentence for each reason; ``str()`` joins them in one line."""

    stops_the_start = True  # the layer's absence would be worse than the backend's

    def __init__(self, problems: t.Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("CORS policy refused: " + "; ".join(self.problems))


def _loopback(host: str) -> bool:
    return (
        host == "localhost"
        or host.endswith(".localhost")
        or host == "[::1]"
        or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None
    )


def _shown(text: object, limit: int = 120) -> str:
    """Text from outside in a form that is safe in a log line or JSON: printable ASCII, bounded."""
    raw = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    clean = "".join(c if " " <= c <= "~" else "?" for c in raw[:limit])
    return clean + (f"... ({len(raw)} characters)" if len(raw) > limit else "")


def _address_problem(host: str) -> t.Optional[str]:
    """Why a host that is an IP address would never match. Browsers write each address in one form only, and take every
    host whose last label is a number for an IPv4 address (https://url.spec.whatwg.org/#host-parsing)."""
    try:
        if host.startswith("["):
            if "." in host:
                return "has an IPv6 address with a dotted part, which browsers write in hexadecimal"
            address = ipaddress.IPv6Address(host[1:-1])
            if address.ipv4_mapped is None and str(address) != host[1:-1]:
                return f'has an IPv6 address that browsers shorten: write "[{address}]"'
        elif re.fullmatch(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", host):
            ipaddress.IPv4Address(host)
    except ValueError:
        return "has a host that is no IP address as browsers write it, and no name either"
    return None


def origin_problem(origin: object, environment: str = "production") -> t.Optional[str]:
    """Why ``origin`` cannot be in a policy, or None. Only the exact text that browsers send is of use."""
    if not isinstance(origin, str):
        return f"origin {_shown(origin)} is not text"
    name = f'origin "{_shown(origin)}"'
    if origin == "null":
        return f"{name} stands for every sandboxed page and local file, so it must not be trusted"
    if "*" in origin:
        return f"{name} has a wildcard: list origins one by one, or use a pattern that fixes the registered domain"
    if not origin.isascii():
        return f"{name} is not ASCII: write the host name in its punycode form"
    if "://" not in origin:
        return f'{name} has no scheme: write "https://{_shown(origin)}"'
    if origin != origin.strip():
        return f"{name} has blanks around it"
    lowered = origin.lower()
    if lowered != origin:
        return f'{name} has upper-case letters, which browsers never send: write "{_shown(lowered)}"'
    if origin.endswith("/"):
        return f'{name} ends with a slash and would never match: write "{_shown(origin.rstrip("/"))}"'
    match = _ORIGIN.fullmatch(origin)
    if not match:
        return f"{name} is not of the form scheme://host or scheme://host:port (no path, user, query or trailing dot)"
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if scheme not in _DEFAULT_PORTS:
        return f"{name} is neither https nor http"
    if port == _DEFAULT_PORTS[scheme]:
        return f'{name} names the default port, which browsers never send: write "{scheme}://{host}"'
    if port and int(port) > 65_535:
        return f"{name} has an impossible port"
    if len(host) > 253 or any(len(label) > 63 for label in host.split(".")):
        return f"{name} has a host name longer than DNS allows"
    problem = _address_problem(host)
    if problem:
        return f"{name} {problem}"
    if scheme == "http" and not (environment == "development" or (environment == "staging" and _loopback(host))):
        return f"{name} is http, which anybody on the way can alter: {environment} takes https only"
    return None


def pattern_problem(pattern: object, environment: str = "production") -> t.Optional[str]:
    """Why a regular expression for origins is too wide or broken, or None.

    Accepted is what can be checked by reading from the right: a literal registered domain, at a label border (``.`` or
    Netlify's ``--``), with something that varies on its left.
    """
    if not isinstance(pattern, str):
        return f"pattern {_shown(pattern)} is not text"
    name = f'pattern "{_shown(pattern)}"'
    body = pattern[1:] if pattern.startswith("^") else pattern
    if body.endswith("$") and not body.endswith(r"\$"):
        body = body[:-1]
    try:
        re.compile(body.encode("ascii"))
    except (re.error, UnicodeEncodeError):
        return f"{name} is not a regular expression in ASCII"
    outside = re.sub(r"\[(?:\\.|[^\]\\])*\]", "[]", body)  # classes apart, they have their own rules
    if re.search(r"(?<!\\)(?:\\\\)*\.", outside):
        return f'{name} has a dot that matches any character: write "\\."'
    if "|" in outside or "(?" in outside or re.search(r"\)[*+{?]", outside):
        return f"{name} has alternatives, extensions or repeated groups: write one pattern for each form"
    if re.search(r"\\[DSWsnrtvfxuU0AZbB1-9]", body) or re.search(r"\[[^\]]*[\^/@:?#]", body):
        return f"{name} has a class that matches nearly everything: name the characters that may vary"
    if re.match(r"https?://(?:localhost|127\\\.0\\\.0\\\.1):(?:\[0-9\]|\\d)(?:\+|\{\d(?:,\d)?\})?$", body):
        return (
            None
            if environment in ("development", "staging")
            else f"{name} is for loopback hosts, which {environment} does not trust"
        )
    if not body.startswith("https://"):
        return f'{name} does not begin with "https://"'
    tail = re.search(r"(?:\\[.\-]|[a-z0-9-])*$", body[len("https://") :])
    literal = tail[0].replace("\\", "") if tail else ""
    if literal == body[len("https://") :].replace("\\", ""):
        return origin_problem("https://" + literal, environment)
    if re.search(r"(?:\\[.\-]|[a-z0-9-])*:[0-9]+$", body):
        return f"{name} has a port: list such origins one by one"
    if not re.match(r"\.|--", literal):
        return f"{name} lets the left part of the registered domain vary: fix it from a dot (or Netlify's --) on"
    parent = literal.partition(".")[2]
    if literal.startswith("--") and ("." not in parent or parent in _REGISTRY_SUFFIXES):
        return f'{name} lets the left part of the registered domain vary: "--" is a border only in a name below one'
    for suffix in (*_SHARED_SUFFIXES, *_REGISTRY_SUFFIXES):
        if literal.endswith("." + suffix) and len(literal) <= len(suffix) + 1:
            return f"{name} trusts every site under {suffix}, where anybody gets a name"
    if len([label for label in literal.lstrip(".-").split(".") if label]) < 2:
        return f"{name} does not fix a registered domain"
    return None


@dataclass(frozen=True)
class CORSPolicy:
    """What is shared with whom. Constructing one validates it and raises ``CORSPolicyError`` with every problem found.

    ``environment`` is production, staging or development and decides whether http origins may be listed.
    """

    allow_origins: t.Tuple[str, ...] = ()
    allow_origin_patterns: t.Tuple[str, ...] = ()
    allow_credentials: bool = True
    allow_methods: t.Tuple[str, ...] = ALLOWED_METHODS
    allow_headers: t.Tuple[str, ...] = ALLOWED_HEADERS
    expose_headers: t.Tuple[str, ...] = EXPOSE_HEADERS
    max_age: int = MAX_AGE
    allow_private_network: bool = False
    environment: str = "production"

    def __post_init__(self) -> None:
        for name in ("allow_origins", "allow_origin_patterns", "allow_methods", "allow_headers", "expose_headers"):
            value = getattr(self, name)
            if isinstance(value, (str, bytes)) or not isinstance(value, t.Iterable):
                raise CORSPolicyError([f"{name} is not a list"])
            object.__setattr__(self, name, tuple(dict.fromkeys(value)))
        problems = list(self.problems())
        if problems:
            raise CORSPolicyError(problems)

    @classmethod
    def from_mapping(cls, values: t.Mapping[str, t.Any]) -> CORSPolicy:
        """A policy out of JSON; a pattern may be text or ``{"regex": ..., "doc": ...}``."""
        values = dict(values)
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise CORSPolicyError([f"unknown setting {_shown(name)}" for name in unknown])
        patterns = values.get("allow_origin_patterns", ())
        if isinstance(patterns, t.Iterable) and not isinstance(patterns, str):
            values["allow_origin_patterns"] = [
                entry.get("regex") if isinstance(entry, t.Mapping) else entry for entry in patterns
            ]
        return cls(**values)

    @property
    def any_origin(self) -> bool:
        return "*" in self.allow_origins

    def problems(self) -> t.Iterator[str]:
        """Every reason why this policy must not be used."""
        if self.environment not in ("production", "staging", "development"):
            yield f"environment {_shown(self.environment)} is not production, staging or development"
        if self.any_origin:
            if self.allow_credentials:
                yield 'origin "*" together with credentials: any site could act as the signed-in user'
            if len(self.allow_origins) > 1 or self.allow_origin_patterns:
                yield 'origin "*" beside other origins: they would have no effect'
            if self.allow_private_network:
                yield 'origin "*" together with private network access: any site could reach into the network'
        elif not self.allow_origins and not self.allow_origin_patterns:
            yield "no origin is allowed"
        for origin in self.allow_origins:
            problem = None if origin == "*" else origin_problem(origin, self.environment)
            if problem:
                yield problem
        for pattern in self.allow_origin_patterns:
            problem = pattern_problem(pattern, self.environment)
            if problem:
                yield problem
        for kind in ("allow_methods", "allow_headers", "expose_headers"):
            for value in getattr(self, kind):
                problem = self.name_problem(kind, value, credentials=self.allow_credentials)
                if problem:
                    yield problem
        if not self.allow_methods:
            yield "no method is allowed"
        if (
            isinstance(self.max_age, bool)
            or not isinstance(self.max_age, int)
            or not 0 <= self.max_age <= _MAX_AGE_LIMIT
        ):
            yield f"max_age {_shown(self.max_age)} is not a whole number of seconds between 0 and {_MAX_AGE_LIMIT}"

    @staticmethod
    def name_problem(kind: str, value: object, *, credentials: bool) -> t.Optional[str]:
        """Why a name of a method or header cannot be in ``kind``, or None."""
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            return f"{kind}: {_shown(value)!r} is not a token"
        if value == "*":
            return (
                f'{kind}: "*" is an ordinary name when credentials are allowed, not a wildcard' if credentials else None
            )
        lowered = value.lower()
        if kind == "allow_methods":
            if value.upper() in _FORBIDDEN_METHODS:
                return f"{kind}: browsers never send {value}"
            if value != value.upper():
                return f"{kind}: methods are case-sensitive: write {value.upper()}"
        elif kind == "allow_headers":
            if lowered in _FORBIDDEN_REQUEST_HEADERS or lowered.startswith(("proxy-", "sec-")):
                return f"{kind}: no page can set {value}"
        elif lowered in _FORBIDDEN_RESPONSE_HEADERS:
            return f"{kind}: no page can read {value}"
        return None

    def starlette_arguments(self) -> t.Dict[str, t.Any]:
        """Arguments of ``starlette.middleware.cors.CORSMiddleware`` that express this policy."""
        arguments: t.Dict[str, t.Any] = {
            "allow_origins": list(self.allow_origins),
            "allow_credentials": self.allow_credentials,
            "allow_methods": list(self.allow_methods),
            "allow_headers": list(self.allow_headers),
            "expose_headers": list(self.expose_headers),
            "max_age": self.max_age,
        }
        if self.allow_origin_patterns:
            arguments["allow_origin_regex"] = "|".join(
                f"(?:{pattern.removeprefix('^').removesuffix('$')})" for pattern in self.allow_origin_patterns
            )
        return arguments


# --- decisions --------------------------------------------------------------------------------------------------------

VARY_ACTUAL = b"Origin"
VARY_PREFLIGHT = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
_VARY_PAIR: HeaderPair = (b"vary", VARY_ACTUAL)
_ONLY_VARY: t.Tuple[HeaderPair, ...] = (_VARY_PAIR,)
# What a response from inside may already carry and what we decide alone.
_OURS = frozenset(
    b"access-control-" + name
    for name in (
        b"allow-origin",
        b"allow-credentials",
        b"allow-methods",
        b"allow-headers",
        b"expose-headers",
        b"max-age",
        b"allow-private-network",
        b"request-method",
        b"request-headers",
        b"request-private-network",
    )
)
_REPLACED = _OURS | {b"vary"}


class CORSDecider:
    """A policy made ready for use: lookups in tables of bytes, headers rendered once."""

    def __init__(self, policy: CORSPolicy) -> None:
        self.policy = policy
        self.any_origin = policy.any_origin
        self._patterns = [re.compile(pattern.encode("ascii")) for pattern in policy.allow_origin_patterns]
        self._methods = frozenset(method.encode() for method in policy.allow_methods)
        self._any_method = "*" in policy.allow_methods
        self._header_names = frozenset(name.lower().encode() for name in policy.allow_headers)
        self._any_header = "*" in policy.allow_headers
        self._good_lists: t.Set[bytes] = {b""}
        self.shared: t.Dict[bytes, t.Tuple[HeaderPair, ...]] = {}
        self._from_pattern: t.Dict[bytes, t.Tuple[HeaderPair, ...]] = {}
        self._foreign: t.Set[bytes] = set()  # refused lately
        self._preflights: t.Dict[bytes, t.List[HeaderPair]] = {}
        for origin in policy.allow_origins:
            if origin != "*":
                self.shared[origin.encode()] = self._actual_headers(origin.encode())
        self._anonymous = self._actual_headers(b"*") if self.any_origin else None

    def _actual_headers(self, origin: bytes) -> t.Tuple[HeaderPair, ...]:
        headers = [(b"access-control-allow-origin", origin)]
        if self.policy.allow_credentials:
            headers.append((b"access-control-allow-credentials", b"true"))
        if self.policy.expose_headers:
            headers.append((b"access-control-expose-headers", ", ".join(self.policy.expose_headers).encode()))
        return (*headers, _VARY_PAIR)

    def headers_for(self, origin: bytes) -> t.Optional[t.Tuple[HeaderPair, ...]]:
        """The headers of an actual response to ``origin``, ``Vary`` last; None when it is not allowed."""
        headers = self.shared.get(origin)
        if headers is not None:
            return headers
        if self._anonymous is not None:
            return self._anonymous
        if origin in self._foreign:
            return None
        headers = self._from_pattern.get(origin)
        return headers if headers is not None else self._matched(origin)

    def _matched(self, raw: bytes) -> t.Optional[t.Tuple[HeaderPair, ...]]:
        origin = raw.strip(b" \t")  # optional whitespace around a field value is not part of it
        headers = self.shared.get(origin)
        if (
            headers is None
            and len(origin) <= _LONGEST_ORIGIN
            and any(pattern.fullmatch(origin) for pattern in self._patterns)
        ):
            headers = self._actual_headers(origin)
            if len(self._from_pattern) < 256:  # bounded: an attacker can invent numbers of previews
                self._from_pattern[origin] = headers
        if headers is None and len(raw) <= _LONGEST_ORIGIN:
            if len(self._foreign) >= 256:
                self._foreign.clear()
            self._foreign.add(raw)
        return headers

    def method_allowed(self, method: t.Optional[bytes]) -> bool:
        """Byte for byte: the standard normalises only what browsers send in upper case anyway."""
        if method in self._methods:
            return True
        return self._any_method and method is not None and _TOKEN.fullmatch(method.decode("latin-1")) is not None

    def header_list_allowed(self, line: bytes) -> bool:
        """Whether every name of an Access-Control-Request-Headers value is allowed; empty elements do not count."""
        if line in self._good_lists:
            return True
        if len(line) > _LONGEST_HEADER_LIST:
            return False
        names = line.lower().split(b",")
        if len(names) > _MOST_HEADER_NAMES:
            return False
        for raw in names:
            name = raw.strip(b" \t")
            if name and (name not in self._header_names or name == b"*") and not self._covered_by_star(name):
                return False
        if len(self._good_lists) < 256 and len(line) <= 512:
            self._good_lists.add(line)
        return True

    def _covered_by_star(self, name: bytes) -> bool:
        # Fetch: "*" never covers Authorization, and is no wildcard beside credentials (refused at start).
        return (
            self._any_header
            and name not in (b"*", b"authorization")
            and _TOKEN.fullmatch(name.decode("latin-1")) is not None
        )

    def preflight_headers(self, shared_headers: t.Tuple[HeaderPair, ...], private_network: bool) -> t.List[HeaderPair]:
        """The complete headers of the answer to an allowed preflight."""
        key = shared_headers[0][1]
        cached = self._preflights.get(key)
        if cached is None:
            policy = self.policy
            cached = [pair for pair in shared_headers if pair[0] not in (b"vary", b"access-control-expose-headers")]
            cached += [
                (b"access-control-allow-methods", ", ".join(policy.allow_methods).encode()),
                (b"access-control-allow-headers", ", ".join(policy.allow_headers).encode()),
                (b"access-control-max-age", str(policy.max_age).encode()),
                (b"vary", VARY_PREFLIGHT),
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"2"),
            ]
            if not policy.allow_headers:
                cached = [pair for pair in cached if pair[0] != b"access-control-allow-headers"]
            if len(self._preflights) < 512:
                self._preflights[key] = cached
        if private_network and self.policy.allow_private_network:
            return [(b"access-control-allow-private-network", b"true"), *cached]
        return cached

    def preflight_refusal(
        self, granted: object, method: t.Optional[bytes], lists: t.Sequence[bytes]
    ) -> t.Optional[str]:
        """``origin``, ``method`` or ``header``: the first thing that is not allowed; None when all is."""
        if granted is None:
            return "origin"
        if not self.method_allowed(method):
            return "method"
        if len(lists) == 1:
            return None if self.header_list_allowed(lists[0]) else "header"
        # Several field lines are one list (RFC 9110, 5.3).
        return None if not lists or self.header_list_allowed(b",".join(lists)) else "header"

    def explain(self, origin: bytes) -> str:
        """Why an origin is not allowed, for an operator. Never sent to the page that asked."""
        stripped = origin.strip(b" \t")
        if self.headers_for(stripped) is not None:
            return "allowed"
        text = stripped.decode("latin-1")
        if not text:
            return "empty, or more than one Origin field"
        if text == "null":
            return "null: a sandboxed page, a local file or a redirect across origins"
        if len(text) > _LONGEST_ORIGIN:
            return "longer than any origin can be"
        lowered = text.lower().rstrip("/")
        if lowered.encode("latin-1") in self.shared:
            return "differs from a listed origin in case or a trailing slash; no browser sends this"
        match = _ORIGIN.fullmatch(lowered)
        if not match:
            return "not an origin"
        scheme, host, port = match["scheme"], match["host"], match["port"]
        listed = {
            t.cast("re.Match[str]", _ORIGIN.fullmatch(o))["host"]: o for o in self.policy.allow_origins if o != "*"
        }
        if host in listed:
            if port and port == _DEFAULT_PORTS.get(scheme):
                return "names the default port; no browser sends this"
            return f"the host is listed, with another scheme or port: {listed[host]}"
        for candidate, whole in listed.items():
            if host.endswith("." + candidate):
                return f"a subdomain of {whole}, which is not listed"
            if candidate in host or host.replace("-", "") == candidate.replace("-", ""):
                return f"resembles {whole}"
        return "not listed"


class _Refusal:
    """One refused origin: how often, when (monotonic seconds), as what."""

    __slots__ = ("count", "event", "first", "last", "length", "reason")

    def __init__(self, now: float, length: int) -> None:
        self.count = 0
        self.first = self.last = now
        self.length = length
        self.event = self.reason = ""


class CORSActivity:
    """What was decided: counters, the last refused origins, and log lines. All of it bounded whatever is sent."""

    KEPT = 20
    WINDOW = 60.0  # seconds

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.lines_per_window = 120 if verbose else 10
        self.no_origin = 0
        self.allowed = 0
        self.denied = 0
        self.preflight_allowed = 0
        self.preflight_denied: t.Dict[str, int] = {"origin": 0, "method": 0, "header": 0}
        self.websocket_denied = 0
        self._refused: OrderedDict[bytes, _Refusal] = OrderedDict()
        self._window_end = 0.0
        self._lines = 0
        self._suppressed = 0

    def refused(
        self, event: str, origin: bytes, reason: str, path: str, asked: t.Optional[t.Mapping[str, object]] = None
    ) -> None:
        """Remembers a refusal and logs it, a bounded number of lines a minute: an attack has many."""
        now = time.monotonic()
        key = origin[: _LONGEST_ORIGIN + 1]
        entry = self._refused.get(key)
        if entry is None:
            if len(self._refused) >= self.KEPT:
                self._refused.popitem(last=False)
            self._refused[key] = entry = _Refusal(now, len(origin))
        else:
            self._refused.move_to_end(key)
        entry.count += 1
        entry.last = now
        entry.event = event
        entry.reason = reason
        if now < self._window_end and self._lines >= self.lines_per_window:
            self._suppressed += 1
        elif self._may_log():
            more = {name: _shown(value) for name, value in (asked or {}).items()}
            logger.warning(event, origin=_shown(origin), reason=reason, path=_shown(path), **more, **self._gap())

    def granted(self, event: str, origin: bytes, path: str) -> None:
        """Logs a decision in favour; only called when debugging."""
        if self._may_log():
            logger.info(event, origin=_shown(origin), path=_shown(path), **self._gap())

    def _may_log(self) -> bool:
        now = time.monotonic()
        if now >= self._window_end:
            self._window_end = now + self.WINDOW
            self._lines = 0
        self._lines += 1
        if self._lines > self.lines_per_window:
            self._suppressed += 1
            return False
        return True

    def _gap(self) -> t.Dict[str, int]:
        suppressed, self._suppressed = self._suppressed, 0
        return {"lines_suppressed": suppressed} if suppressed else {}

    def counters(self) -> t.Dict[str, int]:
        return {
            "no_origin": self.no_origin,
            "allowed": self.allowed,
            "denied": self.denied,
            "preflight_allowed": self.preflight_allowed,
            **{f"preflight_denied_{reason}": count for reason, count in self.preflight_denied.items()},
            "websocket_denied": self.websocket_denied,
            "log_lines_suppressed": self._suppressed,
        }

    def last_refused(self, decider: CORSDecider) -> t.List[t.Dict[str, t.Any]]:
        """Newest first, with the explanation; times are seconds since 1970."""
        epoch = time.time() - time.monotonic()
        return [
            {
                "origin": _shown(key, 120) + (f" ({entry.length} bytes)" if entry.length > len(key) else ""),
                "count": entry.count,
                "first_seen": round(epoch + entry.first, 3),
                "last_seen": round(epoch + entry.last, 3),
                "event": entry.event,
                "reason": entry.reason,
                "why": decider.explain(key),
            }
            for key, entry in reversed(self._refused.items())
        ]


# --- configuration of the process -------------------------------------------------------------------------------------


def _flag(name: str, default: bool) -> bool:
    """A switch from the environment."""
    if env is not None:
        return env.flag(name, default)
    switches = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
    return switches.get(os.environ.get(name, "").strip().lower(), default)


def _environment(settings: t.Any) -> str:
    """production, staging or development; whatever is not clearly one of the others is production."""
    for value in (
        getattr(settings, "ENVIRONMENT", None),
        os.environ.get("ENVIRONMENT"),
        getattr(settings, "NODE_ENV", None),
        os.environ.get("NODE_ENV"),
    ):
        text = str(getattr(value, "value", value) or "").strip().lower()
        if text:
            if text in ("development", "dev", "local", "test", "testing"):
                return "development"
            return "staging" if text in ("staging", "stage", "preview") else "production"
    return "production"


def _settings() -> t.Any:
    """The backend's settings; each release has them in its own way, and CORS can do without."""
    try:
        from app.core import config

        getter = getattr(config, "get_settings", None)
        return getter() if getter else getattr(config, "settings", None)
    except Exception as error:  # a broken settings module has its own error message; the policy is then production's
        logger.warning("CORS reads no settings, the environment decides", error=type(error).__name__)
        return None


def _listed(text: str) -> t.List[str]:
    """A JSON list, or entries between commas. Quotes around the whole or around an entry are those that ``docker
    --env-file``, unlike a shell, leaves in the value."""
    text = text.strip().strip("'")
    if text.startswith("["):
        try:
            return [entry for entry in (str(item).strip() for item in json.loads(text)) if entry]
        except ValueError:
            pass
    entries = (entry.strip(" \t\r\n'\"") for entry in text.split(","))
    return [entry for entry in entries if entry]


def build_policy(environment: str) -> t.Tuple[CORSPolicy, t.List[str]]:
    """The policy of this process and the problems that were tolerated. Raises ``CORSPolicyError`` for the others."""
    origins = list(OWN_ORIGINS)
    if environment != "production":
        origins += STAGING_ORIGINS
    if environment == "development":
        origins += DEVELOPMENT_ORIGINS
    if _flag("ENABLE_LOVABLE_ORIGINS", environment != "production") and not _flag("DISABLE_LOVABLE_ORIGINS", False):
        origins += LOVABLE_ORIGINS
    tolerated: t.List[str] = []
    refused: t.List[str] = []
    for name, strict in (
        ("ADDITIONAL_CORS_ORIGINS", not _flag("CORS_FAIL_OPEN_START", False)),
        ("CORS_ALLOWED_ORIGINS", False),
    ):
        for origin in _listed(os.environ.get(name, "")):
            problem = origin_problem(origin, environment)
            if problem is None:
                origins.append(origin)
            else:
                (refused if strict else tolerated).append(f"{name}: {problem}")
    headers = list(ALLOWED_HEADERS)
    for header in _listed(os.environ.get("ADDITIONAL_CORS_HEADERS", "")):
        problem = CORSPolicy.name_problem("allow_headers", header, credentials=True)
        if problem is not None:
            listed = tolerated if _flag("CORS_FAIL_OPEN_START", False) else refused
            listed.append(f"ADDITIONAL_CORS_HEADERS: {problem}")
        elif header.lower() not in {known.lower() for known in headers}:
            headers.append(header)
    if refused:
        raise CORSPolicyError(refused)
    policy = CORSPolicy(
        allow_headers=tuple(headers),
        allow_origins=tuple(origins),
        allow_origin_patterns=DEPLOY_PREVIEWS if _flag("CORS_DEPLOY_PREVIEWS", True) else (),
        allow_private_network=_flag("CORS_ALLOW_PRIVATE_NETWORK", False),
        environment=environment,
    )
    return policy, tolerated


class CORSConfig:
    """What the backend's routes and middlewares ask. The answers all come from one policy."""

    def __init__(self, policy: t.Optional[CORSPolicy] = None) -> None:
        self.environment = policy.environment if policy else _environment(_settings())
        self.debug = _flag("CORS_DEBUG_ENABLED", False)
        self.enhanced = _flag("ENABLE_ENHANCED_CORS", True)
        self.config_problems: t.List[str] = []
        if policy is None:
            policy, self.config_problems = build_policy(self.environment)
        self.policy = policy
        self.decider = CORSDecider(policy)
        self.activity = CORSActivity(verbose=self.debug)
        for problem in self.config_problems:
            logger.error("CORS entry left out", problem=problem)
        logger.info(
            "CORS policy ready",
            environment=self.environment,
            origins=len(policy.allow_origins),
            patterns=len(policy.allow_origin_patterns),
            enhanced=self.enhanced,
        )

    @property
    def origins(self) -> t.List[str]:
        return list(self.policy.allow_origins)

    allowed_origins = origins

    @property
    def allowed_methods(self) -> t.List[str]:
        return list(self.policy.allow_methods)

    @property
    def allowed_headers(self) -> t.List[str]:
        return list(self.policy.allow_headers)

    @property
    def expose_headers(self) -> t.List[str]:
        return list(self.policy.expose_headers)

    def is_origin_allowed(self, origin: t.Optional[str]) -> bool:
        return bool(origin) and self.decider.headers_for(str(origin).encode("latin-1", "replace")) is not None

    def is_websocket_origin_allowed(self, origin: t.Optional[str]) -> bool:
        """CORS does not cover WebSockets; this does. A client that is no browser sends no Origin and is let through:
        the token decides about it."""
        return origin is None or self.is_origin_allowed(origin)

    def get_cors_config_dict(self) -> t.Dict[str, t.Any]:
        """Arguments for Starlette's middleware, which may stay inside the application."""
        return self.policy.starlette_arguments()

    def create_options_response(
        self,
        origin: t.Optional[str] = None,
        requested_method: t.Union[str, bool, None] = None,
        requested_headers: t.Optional[str] = None,
        cache_bust: bool = True,
    ) -> Response:
        """The answer of a route to an OPTIONS request: 200, or 403 without any CORS header.

        The incident release's second argument was ``cache_bust``; a bool in that place is taken for it.
        """
        method = None if isinstance(requested_method, bool) else requested_method
        if isinstance(requested_method, bool):
            cache_bust = requested_method
        allowed_headers = self.decider.headers_for(origin.encode("latin-1", "replace")) if origin else None
        refusal = None
        if origin is not None:
            refusal = self.decider.preflight_refusal(
                allowed_headers,
                method.encode("latin-1", "replace") if method else self.policy.allow_methods[0].encode(),
                [requested_headers.encode("latin-1", "replace")] if requested_headers else [],
            )
        if refusal:
            response = Response(content="CORS preflight denied", status_code=403, media_type="text/plain")
        else:
            response = Response(content="OK", status_code=200, media_type="text/plain")
            if allowed_headers is not None:
                for name, value in self.decider.preflight_headers(allowed_headers, False):
                    if name.startswith(b"access-control-"):
                        response.headers[name.decode()] = value.decode()
        response.headers["Vary"] = VARY_PREFLIGHT.decode()
        if cache_bust:
            response.headers["Cache-Control"] = "no-cache, no-store, must-revalidate"
            response.headers["Pragma"] = "no-cache"
            response.headers["Expires"] = "0"
        return response

    def handle_preflight_request(self, request: t.Any) -> Response:
        """The answer to a preflight that reached a route."""

        def lines(name: str) -> t.List[str]:
            every = getattr(request.headers, "getlist", None)
            line = request.headers.get(name)
            return list(every(name)) if every else [] if line is None else [line]

        origins, methods = lines("origin"), lines("access-control-request-method")
        return self.create_options_response(
            origin=None if not origins else origins[0] if len(origins) == 1 else "",  # two Origin fields are no origin
            requested_method=None if not methods else methods[0] if len(methods) == 1 else ",".join(methods),
            requested_headers=",".join(lines("access-control-request-headers")) or None,
        )

    def log_cors_debug(self, request_origin: t.Optional[str], endpoint: str, allowed: bool) -> None:
        """Called by the backend's own middleware for each request."""
        origin = (request_origin or "").encode("latin-1", "replace")
        if not allowed and request_origin:
            self.activity.refused("CORS origin denied", origin, "origin", endpoint)
        elif self.debug:
            self.activity.granted("CORS origin allowed", origin, endpoint)

    def debug_snapshot(self) -> t.Dict[str, t.Any]:
        """For operators only: the policy, the counters, and the last refused origins with the reason."""
        policy = self.policy
        return {
            "environment": self.environment,
            "enhanced": self.enhanced,
            "debug": self.debug,
            "allow_origins": list(policy.allow_origins),
            "allow_origin_patterns": list(policy.allow_origin_patterns),
            "allow_credentials": policy.allow_credentials,
            "allow_methods": list(policy.allow_methods),
            "allow_headers": list(policy.allow_headers),
            "expose_headers": list(policy.expose_headers),
            "max_age": policy.max_age,
            "config_problems": list(self.config_problems),
            "counters": self.activity.counters(),
            "denied_origins": self.activity.last_refused(self.decider),
        }


# --- the layer --------------------------------------------------------------------------------------------------------


def _merged(headers: t.Iterable[HeaderPair], cors: t.Tuple[HeaderPair, ...]) -> t.List[HeaderPair]:
    """A response's headers with ours in place of whatever a handler or an inner middleware set."""
    merged: t.List[HeaderPair] = []
    vary: t.Optional[t.List[bytes]] = None
    for pair in headers:
        name = pair[0].lower()
        if name not in _REPLACED:
            merged.append(pair)
        elif name == b"vary":
            vary = [*(vary or ()), pair[1]]
    if vary is None:
        merged += cors
        return merged
    merged += cors[:-1]
    names = [name.strip() for value in vary for name in value.split(b",") if name.strip()]
    if b"*" in names:
        merged.append((b"vary", b"*"))
    else:
        others = list(dict.fromkeys(name for name in names if name.lower() != b"origin"))
        merged.append((b"vary", b", ".join([VARY_ACTUAL, *others])))
    return merged


class CORSMiddleware:
    """The outermost ASGI layer: ``CORSMiddleware(app)`` applies ``cors_config``, a second argument is another policy.

    It keeps no state between requests but counters. A WebSocket handshake from a foreign origin is refused (403)
    before the application sees it.
    """

    def __init__(self, app: ASGIApp, policy: t.Optional[CORSPolicy] = None) -> None:
        config = cors_config if policy is None else CORSConfig(policy)
        self.config = config
        self.policy = config.policy
        self.activity = config.activity
        self._decider = config.decider
        self._shared = config.decider.shared
        self._debug = config.debug
        self._refusals = {
            reason: self._refusal(reason, explain=config.environment == "development")
            for reason in ("origin", "method", "header")
        }
        self.app = app
        self._plain = not config.enhanced
        if self._plain:
            from starlette.middleware.cors import CORSMiddleware as StarletteCORSMiddleware

            self.app = t.cast(
                ASGIApp, StarletteCORSMiddleware(t.cast(t.Any, app), **config.policy.starlette_arguments())
            )
            logger.warning("CORS enhanced handling is off, Starlette's middleware applies the policy")

    @staticmethod
    def _refusal(reason: str, explain: bool) -> t.Tuple[int, bytes, t.List[HeaderPair]]:
        """A refused preflight's answer. Only a developer is told which of the three it was."""
        body = b"CORS preflight denied" + (f": this {reason} is not allowed".encode() if explain else b"")
        return (
            403,
            body,
            [
                (b"vary", VARY_PREFLIGHT),
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            if kind == "websocket" and not self._websocket_allowed(scope):
                scope["query_string"] = (
                    b""  # the server logs what it refuses out of this object, and the token is in there
                )
                await receive()  # websocket.connect
                await send({"type": "websocket.close", "code": 1008, "reason": "Origin not allowed"})
                return
            await self.app(scope, receive, send)
            return
        if self._plain:
            await self.app(scope, receive, send)
            return
        activity = self.activity
        origin: t.Optional[bytes] = None
        for name, value in scope["headers"]:
            if name == b"origin" or (len(name) == 6 and name.lower() == b"origin"):
                origin = value if origin is None else b""  # two Origin fields are no origin
        if origin is None:
            activity.no_origin += 1
            cors = _ONLY_VARY
        else:
            granted = self._shared.get(origin) or self._decider.headers_for(origin)
            if scope["method"] == "OPTIONS" and await self._answered(scope, send, origin, granted):
                return
            if granted is None:
                activity.denied += 1
                activity.refused("CORS origin denied", origin, "origin", scope["path"])
                cors = _ONLY_VARY
            else:
                activity.allowed += 1
                cors = granted
                if self._debug:
                    activity.granted("CORS origin allowed", origin, scope["path"])
        started = False

        def send_with_cors(message: Message) -> t.Awaitable[None]:
            # No coroutine of its own: this runs for every chunk of a stream.
            if message["type"] == "http.response.start":
                nonlocal started
                started = True
                message = {**message, "headers": _merged(message.get("headers", ()), cors)}
            return send(message)

        try:
            await self.app(scope, receive, send_with_cors)
        except Exception:
            if not started:
                # An error in a layer outside Starlette's own error handler: without this the server's bare 500 would
                # look like a CORS failure to the page. The error itself still goes to the server's log.
                body = b"Internal Server Error"
                plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": 500, "headers": [*plain, *cors]})
                await send({"type": "http.response.body", "body": body})
            raise

    async def _answered(
        self, scope: Scope, send: Send, origin: bytes, granted: t.Optional[t.Tuple[HeaderPair, ...]]
    ) -> bool:
        """Answers a preflight and says so; any other OPTIONS request belongs to the application."""
        method: t.Optional[bytes] = None
        lists: t.List[bytes] = []
        private_network = False
        has_origin = False
        for raw, value in scope["headers"]:
            name = raw.lower()
            if name == b"access-control-request-method":
                method = None if has_origin else value.strip(b" \t")
                has_origin = True
            elif name == b"access-control-request-headers":
                lists.append(value)
            elif name == b"access-control-request-private-network":
                private_network = value == b"true"
        if not has_origin:
            return False
        refusal = self._decider.preflight_refusal(granted, method, lists)
        if refusal is None and granted is not None:
            self.activity.preflight_allowed += 1
            if self._debug:
                self.activity.granted("CORS preflight allowed", origin, scope["path"])
            status, body, headers = 200, b"OK", self._decider.preflight_headers(granted, private_network)
        else:
            reason = refusal or "origin"
            self.activity.preflight_denied[reason] += 1
            asked = {"requested_method": method or b"", "requested_headers": b",".join(lists)} if self._debug else None
            self.activity.refused("CORS preflight denied (OPTIONS)", origin, reason, scope["path"], asked)
            status, body, headers = self._refusals[reason]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return True

    def _websocket_allowed(self, scope: Scope) -> bool:
        origins = [value for name, value in scope["headers"] if name.lower() == b"origin"]
        if not origins or (len(origins) == 1 and self._decider.headers_for(origins[0]) is not None):
            return True
        self.activity.websocket_denied += 1
        self.activity.refused(
            "CORS origin denied for a WebSocket", b"" if len(origins) > 1 else origins[0], "origin", scope["path"]
        )
        return False


def install(app: t.Any, policy: t.Optional[CORSPolicy] = None) -> None:
    """Puts the layer outside a Starlette or FastAPI application's whole middleware stack; once only."""
    if getattr(app, "_wheels_cors_installed", False):
        return
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: CORSMiddleware(build(), policy)
    app._wheels_cors_installed = True


def _configured() -> CORSConfig:
    try:
        return CORSConfig()
    except CORSPolicyError as error:
        logger.error("CORS policy refused, the backend does not start", problems=error.problems)
        # One line on stderr instead of a traceback through every import.
        raise SystemExit(
            f"{error}. Correct the variable, or set CORS_FAIL_OPEN_START=true to start without it."
        ) from None


cors_config = _configured()
