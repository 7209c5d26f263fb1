# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one redactor: takes secrets out of whatever is shown or kept, and leaves everything else as it is.

Two ways lead to a secret, and both are gone for every text. Its place: the password of a URL, a parameter such as
``password=`` or ``token=``, a connection string of libpq, a header. Its value: the caller gives the secrets that it was
given itself (``secrets_of``), and each is hidden in every spelling (as it is, percent-encoded, escaped), wherever it
stands.
"""

from __future__ import annotations

import json
import re
import typing as t
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit

from .secret_words import (
    HIDDEN,
    KEY_VARIABLE,
    QUERY_NAME,
    WORDS,
    hide_arguments,
    hide_keys,
    hide_words,
    is_query_secret,
)

#: Stands for a password where a hint shows how an address is written.
PLACEHOLDER = "PASSWORD"
#: So few letters stand in every other word: such a secret is hidden by its place alone.
SHORT = 6

_NAME = re.compile(
    rf"(?:[\w.-]*[_.-])?{WORDS}|[\w.-]*(?:password|passwd|secret|token|apikey)|auth|authorization|cookie|set-cookie"
    rf"|pgpass|pass"
    rf"|{KEY_VARIABLE}|x-(?:amz|goog)-(?:signature|credential)",
    re.IGNORECASE,
)
#: The same inside a text, from the beginning of a word. Anchored there, so that a text of one long word takes linear
#: time.
_NAMED = (
    rf"(?<![\w.%-])(?:[\w.-]*[_.-])?{WORDS}|(?<![\w.%-])[\w.-]*(?:password|passwd|secret|token|apikey)|(?<!"
    rf"[\w.%-])pgpass|\b{KEY_VARIABLE}"
)
#: Punctuation that ends a sentence around a value rather than the value.
_TAIL = re.compile(r"[)\]},.;:!]*$")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: Before a scheme: the beginning of another URL, not a part of the one that goes on.
_BREAK = frozenset(";,|([{<>='\"` \t\r\n")
#: Schemes whose path and query may hold an ``@`` that ends no password.
_WEB = frozenset({"http", "https", "ws", "wss", "ftp", "file", "git", "ssh", "socks5", "socks5h"})
#: What stands alone before their ``@`` is a token (a DSN of Sentry) more often than the name of a user.
_TOKENS = frozenset({"http", "https", "ws", "wss"})
#: Nothing, or hosts with or without a port; punctuation of the sentence may follow.
_HOSTS = re.compile(
    r"(?:(?:[\w.%-]+|\[[0-9A-Fa-f:.%\w]+\])(?::\d+)?(?:[;,](?=[\w\[])|$|(?=[)\]},.;:!']+$)))*[)\]},.;:!']*"
)
_PORTED = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):\d+")

_ASSIGNED = re.compile(
    rf"(?P<name>{_NAMED})(?P<sign>=)(?P<value>'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|[^\s'\"]\S*)", re.IGNORECASE
)
#: libpq allows room around the sign; elsewhere that is a comparison in SQL or in code.
_LIBPQ = re.compile(r"\b(?:host|hostaddr|dbname|user|port|sslmode|service)\s*=", re.IGNORECASE)
_SPACED = re.compile(
    r"(?P<name>\b(?:ssl)?password)(?P<sign>\s+=\s*|\s*=\s+)(?P<value>'(?:[^'\\]|\\.)*'|[^\s']\S*)", re.IGNORECASE
)
#: A variable of an environment file, or of a shell: what a difference of such a file shows.
_VARIABLE = re.compile(
    rf"^(?P<name>[+ -]?(?:export |Environment=['\"]?)?(?=\w*{WORDS}=|{KEY_VARIABLE}=)[A-Z_][A-Z0-9_]*)(?P<sign>=)"
    r"(?P<value>'[^'\n]*'|\"[^\"\n]*\"|\S+)",
    re.MULTILINE | re.IGNORECASE,
)
_SETTING = re.compile(r"^(?P<lead>\s*(?:export\s+)?)(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)$", re.MULTILINE)
#: Values of variables that can be no secret.
_HARMLESS = re.compile(
    r"|[-+]?\d{1,9}(?:\.\d+)?[A-Za-z]{0,2}|true|false|yes|no|on|off|none|\*\*\*.*|/(?:[\w.-]+/)+[\w.-]+(?::/[\w./-]+)*",
    re.IGNORECASE,
)
_QUOTED_KEY = re.compile(
    rf"(?P<name>(?P<mark>['\"])(?:[\w.-]*[_.-])?(?:{WORDS}|authorization|cookie|set-cookie|apikey|pgpass)(?P=mark))"
    rf"(?P<sign>\s*:\s*)"
    r"(?P<value>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<name>\b(?:(?:proxy-)?authorization|(?<!set-)cookie|x-[\w-]*(?:token|key|secret)|apikey|api-key))"
    r"(?P<sign>['\"]?\s*:\s*(?:(?:bearer|basic|digest|token|api-?key|jwt|negotiate|ntlm|oauth|hawk|signature|aws4-"
    r"[\w-]+)\s+)?)"
    r"(?P<value>(?:'[^'\n]*'|[\w-]+=(?:\"[^\"\n]*\"|[^\s,'\"]*)(?:,\s*[\w-]+=(?:\"[^\"\n]*\"|[^\s,'\"]*))+|\"[^\"\n]*\""
    r"|[^\s'\"]+(?<=;)(?:\s*[\w.-]+=[^\s'\"]*(?:(?<=;)|\b))+|[^\s'\"]+))",
    re.IGNORECASE,
)
#: With its attributes, which may have no value, and further cookies behind a comma: the rest of the line.
_SET_COOKIE = re.compile(
    r"(?P<name>\bset-cookie2?)(?P<sign>['\"]?\s*:\s*)(?P<value>'[^'\n]*'|\"[^\"\n]*\"|(?:[^\n'\"]|(?<==)\"[^\"\n]*\")+)"
    r"|(?P<pair>'set-cookie'|\"set-cookie\")(?P<comma>,\s*)(?:'[^'\n]*'|\"[^\"\n]*\")",
    re.IGNORECASE,
)
#: The end of a signature of AWS outside of a URL.
_SIGNATURE = re.compile(r"(?P<name>\bSignature)(?P<sign>=)(?P<value>[0-9A-Za-z%+/=]{16,200})")
_QUERY_PARAMETER = re.compile(rf"(?P<name>[?&]{QUERY_NAME})(?P<sign>=)(?P<value>[^\s&'\"#]+)", re.IGNORECASE)
#: Words of prose have small letters only.
_BEARER = re.compile(
    r"\b(?P<name>Bearer|bearer|BEARER)(?P<sign>\s+)(?P<value>(?![a-z]+\b(?![=.\w-]))(?!\w+=\")[A-Za-z0-9._~+/-]{4,}=*)"
)
_BASIC = re.compile(
    r"\b(?P<name>Basic)(?P<sign>\s+)(?P<value>(?=\S*[A-Z])(?=\S*[a-z0-9])[A-Za-z0-9+/]{7,}={0,2})(?![\w-])"
)
_SQL = re.compile(
    r"(?P<name>\bpassword)(?P<sign>\s+(?:E|U&)?)(?P<value>'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)",
    re.IGNORECASE | re.DOTALL,
)
#: A URL inside a parameter of another one, as a whole percent-encoded.
_ENCODED_URL = re.compile(
    r"(?P<name>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}%3A%2F%2F(?:(?!%3A|%40|%2F)[^\s&'\"]){0,200}%3A)(?P<value>(?:(?!%40)[^\s&'\"]){1,400})(?=%40)",
    re.IGNORECASE,
)
_ENCODED_WORD = re.compile(
    rf"(?P<name>(?:%3F|%26|[?&])(?:[\w.-]{{0,60}}{WORDS}|{QUERY_NAME}))(?P<sign>%3D)(?P<value>(?:(?!%26)[^\s&'\"])+)",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether the value under this name is a secret: ``password``, ``SECRET_KEY``, ``X-Ops-Token``; not
    ``token_file``.
    """
    return _NAME.fullmatch(unquote(name)) is not None


def redact_url(url: str) -> str:
    """One URL without its secrets: ``redis://user:***@host:6379/0``.

    What is no URL, or cannot be read, is not shown at all.
    """
    if _SCHEME.match(url) is None:
        return HIDDEN
    pieces = [_url(piece, whole=True) for piece in _pieces(url)]
    return "".join(pieces) if all(_is_readable(piece) for piece in pieces) else HIDDEN


def _is_readable(url: str) -> bool:
    """Whether a URL, already without its password, has an address and a port that can be read.

    Only one host has a port that can be told.
    """
    try:
        parts = urlsplit(url)
        return bool(re.search(r"[;,]", parts.netloc)) or parts.port is None or parts.port >= 0
    except ValueError:
        return False


def url_problem(error: ValueError) -> str:
    """Why a URL cannot be read, without the part of it that Python or redis-py quote: it may be a piece of the
    password.
    """
    reason = str(error)
    return reason if reason.startswith("Invalid value for") else re.sub(r"'[^']*'|\"[^\"]*\"", f"'{HIDDEN}'", reason)


def redact(text: str, secrets: t.Sequence[str] = (), *, source: bool = False) -> str:
    """A text without secrets. ``secrets``: values that are to be hidden wherever they stand, the longest first
    (``secrets_of``).

    ``source``: the text is the content of a file, in which ``token=token`` is code: of assignments only variables of an
    environment go.
    """
    for secret in secrets:
        text = _without(text, secret)
    if source and is_environment(text):
        return redact_environment(text)
    if "%" in text:
        text = _ENCODED_URL.sub(lambda match: f"{match['name']}{HIDDEN}", text)
        text = _ENCODED_WORD.sub(_hide, text)
    if "://" in text:
        text = _urls(text)
    text = hide_keys(text)
    if "=" in text:
        text = _QUERY_PARAMETER.sub(_hide_parameter, text)
        text = _SIGNATURE.sub(_hide, text)
        text = _VARIABLE.sub(_hide, text) if source else _ASSIGNED.sub(_hide_assigned, text)
        if not source and _LIBPQ.search(text):
            text = _SPACED.sub(_hide, text)
    if ":" in text and not source:
        text = _QUOTED_KEY.sub(_hide, text)
        text = _HEADER.sub(_hide, text)
    if not source:
        text = _BEARER.sub(_hide, text)
        text = _BASIC.sub(_hide, text)
        text = _SET_COOKIE.sub(_hide_cookies, text)
        text = hide_words(text)
    return _SQL.sub(_hide, text) if "assword" in text or "ASSWORD" in text else text


def is_environment(text: str) -> bool:
    """Whether a text is an environment file: assignments and comments, nothing else."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return "\n" in text and bool(lines) and all(_SETTING.match(line) for line in lines)


def redact_environment(text: str, other: str = "") -> str:
    """An environment file with the names of its variables, and of their values only those that can be no secret:
    numbers, switches, paths.

    A value that ``other``, the same file at another time, has differently under this name is marked as another one.
    """
    before = {match["name"]: match["value"] for match in _SETTING.finditer(other)}

    def shown(match: t.Match[str]) -> str:
        plain = match["value"].strip("'\"")
        if _HARMLESS.fullmatch(plain) and not is_secret(match["name"]):
            return match[0]
        mark = match["value"][0] if match["value"][:1] in ("'", '"') else ""
        differs = match["name"] in before and before[match["name"]] != match["value"]
        return f"{match['lead']}{match['name']}={mark}{HIDDEN}{' (another value)' if differs else ''}{mark}"

    return _SETTING.sub(shown, text)


def redact_diff(diff: t.Any, secrets: t.Sequence[str] = ()) -> t.Any:
    """What ``--diff`` prints: entries with ``before`` and ``after``, each the content of a file, or with ``prepared``,
    lines of ``diff -u``.
    """
    if isinstance(diff, (list, tuple)):
        return [redact_diff(entry, secrets) for entry in diff]
    if not isinstance(diff, dict):
        return redact_value(diff, secrets, source=True)
    before, after = str(diff.get("before") or ""), str(diff.get("after") or "")
    redacted = {**diff}
    if is_environment(after) and (is_environment(before) or not before):
        redacted["after"] = redact_environment(after, before)
    elif is_environment(before) and not after:
        redacted["before"] = redact_environment(before)
    if isinstance(diff.get("prepared"), str):
        redacted["prepared"] = _redact_unified(diff["prepared"])
    return redact_value(redacted, secrets, source=True)


def _redact_unified(text: str) -> str:
    """The lines of ``diff -u`` of one environment file without its values; of any other file as they are."""
    lines = text.splitlines(keepends=True)
    body = [not line.startswith(("--- ", "+++ ", "@@")) and line[:1] in "+- " for line in lines]
    if not is_environment("".join(line[1:] for line, inside in zip(lines, body) if inside)):
        return text
    old = "".join(line[1:] for line, inside in zip(lines, body) if inside and line[0] == "-")
    return "".join(
        line[0] + redact_environment(line[1:], old if line[0] == "+" else "") if inside else line
        for line, inside in zip(lines, body)
    )


def redact_value(value: t.Any, secrets: t.Sequence[str] = (), *, source: bool = False) -> t.Any:
    """A copy of anything that JSON knows, every text in it redacted; under the name of a secret no text is left, and no
    value of a header.
    """
    if isinstance(value, str):
        return redact(value, secrets, source=source)
    if isinstance(value, dict):
        return {_key(key, secrets): _entry(key, entry, secrets, source) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_value(entry, secrets, source=source) for entry in hide_arguments(value)]
    return value


def secrets_of(*values: t.Any) -> t.List[str]:
    """Every secret in options that were given, the longest first: passwords of URLs and connection strings, tokens of
    queries, values of headers.
    """
    words: t.Set[str] = set()
    for value in values:
        _collect(value, words)
    return sorted((word for word in words if word and word != HIDDEN), key=lambda word: (-len(word), word))


def _pieces(urls: str) -> t.List[str]:
    """The URLs of a list, each with the sign that ends it: ``sentinel://a;sentinel://b``."""
    return re.split(r"(?<=[;,|])(?=[A-Za-z][A-Za-z0-9+.-]*://)", urls)


def _key(key: t.Any, secrets: t.Sequence[str]) -> t.Any:
    return (
        redact(key, secrets)
        if isinstance(key, str) and ("://" in key or any(word in key for word in secrets if len(word) >= SHORT))
        else key
    )


def _entry(key: t.Any, value: t.Any, secrets: t.Sequence[str], source: bool) -> t.Any:
    if key == "headers" and isinstance(value, dict):
        return dict.fromkeys(value, HIDDEN)
    if isinstance(value, str) and value and isinstance(key, str) and is_secret(key):
        return HIDDEN
    return redact_value(value, secrets, source=source)


def _without(text: str, secret: str) -> str:
    """The text without one secret in any spelling.

    One of a few letters goes where a URL or a connection string has it.
    """
    if len(secret) < SHORT:
        return text.replace(f":{secret}@", f":{HIDDEN}@").replace(f"password={secret}", f"password={HIDDEN}")
    for spelling in _spellings(secret):
        if spelling in text:
            # A password that is a word of small letters ("postgres") stands in other words.
            text = (
                re.sub(rf"(?<![A-Za-z0-9]){spelling}(?![A-Za-z0-9])", HIDDEN, text)
                if secret.isalpha()
                else text.replace(spelling, HIDDEN)
            )
    return text


def _spellings(secret: str) -> t.List[str]:
    """As it is, percent-encoded in several habits, and as JSON, Python and libpq escape it; the longest first."""
    encoded = {quote(secret, safe=""), quote_plus(secret), quote(secret)}
    escaped = {
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        re.sub(r"(['\\])", r"\\\1", secret),
    }
    lower = {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), word) for word in encoded}
    return sorted({secret, *encoded, *lower, *escaped, secret.replace("'", "''")}, key=len, reverse=True)


def _hide(match: t.Match[str]) -> str:
    value = match["value"]
    mark = value[0] if value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1 else ""
    return f"{match['name']}{match['sign']}{mark}{HIDDEN}{mark}"


def _hide_cookies(match: t.Match[str]) -> str:
    if match["pair"]:
        return f"{match['pair']}{match['comma']}{match['pair'][0]}{HIDDEN}{match['pair'][0]}"
    return _hide(match)


def _hide_parameter(match: t.Match[str]) -> str:
    value = match["value"]
    if not is_query_secret(match["name"][1:], value):
        return match[0]
    tail = _TAIL.search(value)
    return f"{match['name']}={HIDDEN}{tail[0] if tail and tail[0] != value else ''}"


def _hide_assigned(match: t.Match[str]) -> str:
    """``name=value`` outside a URL.

    After ``?`` or ``&`` it is a query, where ``&`` ends the value; in a connection string only room does.
    """
    value = match["value"]
    before = match.string[match.start() - 1 : match.start()]
    if value[0] in "'\"":
        return f"{match['name']}={value[0]}{HIDDEN}{value[0]}"
    end = ""
    if before in ("?", "&"):
        value, sign, rest = value.partition("&")
        words = rest.split("&")
        end = sign + "&".join(_pair(word, index < len(words) - 1) for index, word in enumerate(words)) if sign else ""
    tail = _TAIL.search(value)
    first_character = tail[0] if tail and not end and tail[0] != value else ""
    quoted = re.search(r"['\"].*$", value) if before in ("'", '"', "?", "&") else None
    return f"{match['name']}={HIDDEN}{(quoted[0] if quoted else first_character)}{end}"


def _urls(text: str) -> str:
    """Every URL of a text redacted.

    One ends with the word, with the quotation mark that was opened before it, or where another begins.
    """
    starts = [
        match.start() for match in _SCHEME.finditer(text) if match.start() == 0 or text[match.start() - 1] in _BREAK
    ]
    if not starts:
        # A scheme in the middle of a word begins a URL all the same.
        starts = [match.start() for match in _SCHEME.finditer(text)]
    parts = [text[: starts[0]]] if starts else [text]
    for start, following in zip(starts, [*starts[1:], len(text)]):
        end = start + len(t.cast("t.Match[str]", re.match(r"\S*", text[start:following]))[0])
        mark = {"<": ">", "(": ")"}.get(text[start - 1], text[start - 1]) if start else ""
        if mark and mark in "'\"`>)":
            closing = re.compile(rf"(?<!\\){re.escape(mark)}").search(text, start, following)
            end = (
                closing.start()
                if closing and mark in "'\"`"
                else min(end, closing.start())
                if closing and mark == ">"
                else end
            )
        parts += [_url(text[start:end]), text[end:following]]
    return "".join(parts)


def _url(url: str, *, whole: bool = False) -> str:
    """``whole``: the text is the URL alone, so that its end is its own and no punctuation of a sentence."""
    scheme, rest = url.split("://", 1)
    boundary = _authority_end(rest, web=scheme.lower() in _WEB)
    following = rest[boundary:]
    if scheme.lower() in ("redis", "rediss"):
        path = re.match(r"/[^?#;,]*", following)
        if path and not re.fullmatch(r"/\d*[)\]},.:!']*", path[0]):
            # What stands where the database's number belongs may be the rest of a password.
            following = f"/{HIDDEN}{following[path.end() :]}"
    authority = _authority(rest[:boundary])
    if scheme.lower() in _TOKENS and ":" not in authority.rpartition("@")[0] and "@" in authority:
        authority = f"{HIDDEN}@{authority.rpartition('@')[2]}"
    return f"{scheme}://{authority}{_query(following, whole)}"


def _authority_end(rest: str, *, web: bool) -> int:
    """Where path or query begin. A password that is written as it is may hold a character that begins them."""
    end = _first(rest, 0)
    host = rest[:end].rpartition("@")[2]
    plain = _HOSTS.fullmatch(host) is not None
    path, sign, query = rest[end:].partition("?")
    # In a web address, and in the value of a parameter, an ``@`` ends no password.
    if plain and (web or ("@" not in path and (not sign or re.match(r"[\w.%-]+=", query)))):
        return end
    last = rest.rfind("@")
    return end if last < end or (web and "@" in rest[:end]) else _first(rest, last + 1)


def _first(rest: str, start: int) -> int:
    match = re.compile(r"[/?#]").search(rest, start)
    return match.start() if match else len(rest)


def _authority(authority: str) -> str:
    """The part between ``://`` and the path; several hosts, each with a password of its own, are told apart by their
    ports.
    """
    prefix = ""
    while True:
        user, sign, rest = authority.partition("@")
        if not sign:
            return prefix + authority
        item = re.match(rf"({_PORTED.pattern})([;,])(?=[^@:;,]*:[^@]*@)", rest)
        if item is None:
            who, _sign, host = authority.rpartition("@")
            return f"{prefix}{_userinfo(who)}@{host}"
        prefix += f"{_userinfo(user)}@{item[1]}{item[2]}"
        authority = rest[item.end() :]


def _userinfo(who: str) -> str:
    user, sign, password = who.partition(":")
    if not sign and "%3a" in user.lower():
        user, sign, password = re.split("%3a", user, maxsplit=1, flags=re.IGNORECASE)[0], ":", "x"
    return f"{user}:{HIDDEN}" if sign and password not in ("", PLACEHOLDER) else who


def _query(following: str, whole: bool) -> str:
    """Path, query and fragment, with the values of secret parameters hidden."""
    match = re.search(r"[?#]", following)
    if match is None:
        return following
    words = re.split(r"([?&])", following[match.start() :])
    if words[0][:1] == "#":
        words[:1] = ["", "#", *re.split(r"([?&])", words[0][1:])]
    for index in range(2, len(words), 2):
        # ``;`` parts parameters for some servers, and is a letter of the password for others.
        pieces = re.split(r"(?<=;)(?=[\w.%-]+=)", words[index])
        words[index] = "".join(_pair(piece, whole or index < len(words) - 1) for piece in pieces)
    return following[: match.start()] + "".join(words)


def _pair(word: str, whole: bool) -> str:
    # A token may stand in the fragment after a query. In the value of a secret a ``#`` may as well be a letter of it.
    start = 0
    for part in word.split("#"):
        name, sign, value = part.partition("=")
        if sign and value and (is_secret(unquote_plus(name)) or is_query_secret(unquote_plus(name), value)):
            break
        start += len(part) + 1
    else:
        return word
    value = word[start + len(name) + 1 :]
    tail = _TAIL.search(value)
    first_character = "" if whole or tail is None or tail[0] == value else tail[0]
    return f"{word[:start]}{name}={HIDDEN}{first_character or (';' if value.endswith(';') else '')}"


def _collect(value: t.Any, words: t.Set[str]) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == "headers" and isinstance(entry, dict):
                words.update(str(header) for header in entry.values())
                words.update(
                    part for header in entry.values() for part in str(header).split()[1:] if len(part) >= SHORT
                )
            elif (
                isinstance(key, str)
                and isinstance(entry, (str, int))
                and not isinstance(entry, bool)
                and is_secret(key)
            ):
                words.add(str(entry))
            else:
                _collect(entry, words)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for entry in value:
            _collect(entry, words)
    elif isinstance(value, str):
        _collect_text(value, words)


def _collect_text(text: str, words: t.Set[str]) -> None:
    if "\n" in text or ("://" not in text and "=" not in text):
        # The content of a file is no address.
        return
    if "://" not in text:
        for quoted, plain in re.findall(
            r"(?:password|passwd)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^\s'&]\S*))", text, re.IGNORECASE
        ):
            words.add(re.sub(r"\\(.)", r"\1", quoted or plain))
    _collect_query(text.partition("?")[2] if "?" in text else "", words)
    for piece in _pieces(text):
        rest = piece.split("://", 1)[1] if "://" in piece else ""
        # Whatever _url hides of the authority is a password, also one that is written as it is.
        redacted = _url(piece, whole=True).split("://", 1)[1] if rest else ""
        if f":{HIDDEN}@" not in redacted:
            continue
        head, _sign, tail = redacted.partition(f":{HIDDEN}@")
        if f":{HIDDEN}@" in tail:
            for item in re.findall(r":([^@;,]+)@", rest):
                words.update({item, unquote(item)})
            continue
        tail_start = rest.rfind("@")
        if tail.count("@"):
            tail_start = len(rest) - len(tail) - 1 if rest.endswith(tail) else rest.find("@")
        password = rest[len(head) + 1 : tail_start]
        words.update({password, unquote(password)})


def _collect_query(query: str, words: t.Set[str]) -> None:
    words.update(value for name, value in parse_qsl(query) if is_secret(name) or is_query_secret(name, value))
    for word in query.split("&"):
        name, _sign, value = word.partition("=")
        if value and (is_secret(unquote_plus(name)) or is_query_secret(unquote_plus(name), value)):
            words.update({value, unquote(value)})
