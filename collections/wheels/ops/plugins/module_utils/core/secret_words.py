# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The names under which secrets stand, and secrets that follow their name as a word does, not behind ``=`` or in a URL.

``password: x`` of YAML and of logs, ``requirepass x``, ``AUTH user x``, ``--password x``, ``redis-cli -a x``, JSON Web
Tokens and private keys. Prose has the same names, so what follows one is kept where it is plainly a word of the
sentence: ``AUTH failed``, ``refuses the password: set the right one``. In doubt it is hidden: a word too few in a
message harms less than a password too many. Only ``redaction`` calls this.
"""

from __future__ import annotations

import base64
import binascii
import re
import typing as t

HIDDEN = "***"

#: How the name of a secret ends: ``sslpassword``, ``SECRET_KEY``, ``X-Ops-Token``, but not ``token_file`` or
#: ``max_tokens``.
WORDS = (
    r"(?:password|passwd|passphrase|pwd|pass|secret|token|jwt|credentials?"
    r"|(?:api|access|secret|private|encryption|signing|service[_-]?role|anon|supabase|ops|license|webhook|master"
    r"|hmac|storage|account"
    r"|stripe|openai|anthropic|google|gemini|mapbox|sendgrid|twilio|paypal|aws|azure|firebase)[_-]?key"
    r"|dsn[_-]?key|(?:amz|goog)-signature)"
)
#: Keys of variables of an environment that open nothing. Names in small letters (``cache_key``) are columns and
#: arguments.
_OPEN_KEYS = (
    r"(?:PUBLIC|PRIMARY|FOREIGN|SORT|PARTITION|ROUTING|CACHE|SSL|TLS|REDIS|GROUP|HEARTBEAT|UNACKED"
    r"|OBSERVER|THROTTLE|HOST)"
)
#: ``STRIPE_KEY``, ``PAYPAL_CLIENT_KEY``: case counts.
KEY_VARIABLE = rf"(?-i:(?![A-Z0-9_]*(?<![A-Z0-9]){_OPEN_KEYS}_KEY\b)[A-Z][A-Z0-9_]*_KEY)"
#: Parameters of a query that are secrets there, and ordinary words anywhere else.
QUERY_NAME = r"(?:key|sig|signature|code|x-(?:amz|goog)-credential)"
#: Values of such a parameter that are none: a status, a count.
_QUERY_HARMLESS = re.compile(r"\d{1,4}|\*\*\*.*", re.IGNORECASE)

#: What follows a name in a sentence. A secret that is one of these words protects nothing.
_PROSE_WORDS = """
    a above absent after again against an and another any are as at authentication be because before below
    both but by called can cannot change changed check command commands correct cram-md5 default differ
    differs does either empty expired expires failed fails false file for from given has have hidden if in
    include incorrect instead into invalid is it its less login longer masked masterauth may mechanism method
    missing more must needed needs neither never nil no none nopass not null of off omit on once only or over
    password permission plain present prompt redacted refused refuses rejected required requirepass requires
    rule same-origin scram-sha-256 set shorter should so succeeded successful such takes than that the their
    them then there this to token too true try unchanged undefined under unknown unless until use used user
    uses via was were when where which while who with without wrong xoauth2 yes you your
"""
_PROSE = frozenset(_PROSE_WORDS.split())
_DETERMINER = re.compile(
    r"\b(?:a|an|any|each|every|its|no|of|one|other|our|same|that|the|their|this|which|your)\s+$", re.IGNORECASE
)
_SMALL = re.compile(r"[a-z]+(?:-[a-z]+)?")
#: The name of a secret in Ansible, not its value.
_TEMPLATE = re.compile(r"(['\"]?)\{\{.*\}\}\1")
_MARKS = ".,;:!?)]}"

#: A value: in quotation marks, or one word. ``<password>`` stands for one.
_VALUE = r"(?P<value>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|[^\s'\"<|][^\s'\"]*)"
_SECRET_NAME = rf"(?:[\w.-]{{0,60}}[_.-])?{WORDS}|[\w.-]{{0,60}}(?:password|passwd|secret|apikey)"
#: A line of YAML, or the first words of a line of a log. Its value is the rest of the line: passphrases have blanks.
_YAML_LINE = re.compile(
    rf"^(?P<name>[ \t+-]*(?:(?!pass\s*:|(?:\w+-)*allow-credentials)(?:{_SECRET_NAME})))(?P<sign>[ \t]*(?::[ \t]+"
    rf"|=[ \t]*))"
    r"(?P<value>[^\s|>&!{[#][^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_YAML_BLOCK = re.compile(
    rf"^(?P<name>(?P<indent>[ \t]*)(?:- )?(?:{_SECRET_NAME}):[ \t]+[|>][-+]?[ \t]*\n)(?P<value>"
    rf"(?:(?P=indent)[ \t]+\S[^\n]*(?:\n|\Z))+)",
    re.IGNORECASE | re.MULTILINE,
)
#: The same inside a line: ``login failed, password: x``, ``{password: x, user: y}``.
_INLINE = re.compile(
    rf"(?<![\w.%-])(?P<name>(?!pass\s*:|(?:\w+-)*allow-credentials)(?:{_SECRET_NAME}))(?P<sign>:[ \t]*){_VALUE}",
    re.IGNORECASE,
)
#: Settings and commands of Redis, in redis.conf, in an ACL file and as MONITOR or a shell shows them.
_SETTING = re.compile(
    rf"(?P<name>\b(?:requirepass|masterauth|primaryauth|sentinel-pass|(?:ssl|tls)-key(?:-file)?-pass"
    rf"|auth-pass[ \t]+\S+)['\"]?)(?P<sign>[ \t]+){_VALUE}",
    re.IGNORECASE,
)
_COMMAND = re.compile(
    rf"(?P<name>(?:^|(?<=[\s>\"']))(?:(?-i:AUTH)['\"]?|(?:^[ \t]*|(?<=> ))auth))(?P<sign>[ \t]+){_VALUE}"
    r"(?P<second>(?:[ \t]+(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"<|][^\s'\"]*))?)",
    re.IGNORECASE | re.MULTILINE,
)
#: ``user NAME on >x ~*`` of an ACL file, and the same behind ``ACL SETUSER``.
_ACL = re.compile(
    r"(?:(?:^|[:'\"])[ \t]*user|\bsetuser)['\"]?[ \t]+\S+[ \t]+['\"]?(?:on|off|reset\w*|nopass|sanitize-payload"
    r"|[>#<~&%+-]\S+)\b[^\n]*",
    re.IGNORECASE | re.MULTILINE,
)
_ACL_WORD = re.compile(r"(?<=[\s\"'])(?P<sign>[>#<])(?!\s)(?P<value>[^\s\"']+)")
#: Options of programs. ``--password-file x`` names no secret.
_OPTION = re.compile(
    rf"(?P<name>(?<![\w-])--?(?:[\w-]{{0,60}}-)?(?:password|passwd|passphrase|pass|pwd|secret|token|requirepass"
    rf"|masterauth|(?:api|access|secret|private)-?key))"
    rf"(?P<sign>[ \t]+|['\"],?[ \t]+(?=['\"])){_VALUE}",
    re.IGNORECASE,
)
_REDIS_CLI = re.compile(
    rf"(?P<name>\bredis-(?:cli|benchmark)\b[^|;&\n]{{0,400}}?[\s'\"]-a)(?P<sign>['\"],?[ \t]+(?=['\"])|[ \t]+"
    rf"|(?=[^\s,'\"])){_VALUE}"
)
_CURL = re.compile(
    r"(?P<name>\b(?:curl|wget)\b[^|;&\n]{0,400}?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]{1,100}:)(?P<value>[^\s'\"]+)"
)
_RUN = re.compile(r"(?<![\w.-])[\w.-]*eyJ[\w.-]*")
#: Keys that name their issuer: Stripe, OpenAI, GitHub, GitLab, Slack, AWS, Google, SendGrid.
_ISSUED = re.compile(
    r"\b(?:[srp]k_(?:live|test)_\w{8,200}|whsec_\w{8,200}|sk-[\w-]{16,200}|gh[opsru]_\w{20,200}"
    r"|github_pat_\w{20,200}|glpat-[\w-]{16,200}"
    r"|xox[abeprs]-[\w-]{10,200}|(?:AKIA|ASIA)[0-9A-Z]{16}\b|AIza[\w-]{30,60}|SG\.[\w-]{16,100}\.[\w-]{16,100})"
)
_PEM = re.compile(
    r"(?P<name>-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----)(?P<value>.*?)(?P<end>-----END "
    r"(?:[A-Z0-9]+ )*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)


def hide_words(text: str) -> str:
    """A text without the secrets that follow their name. A second time changes nothing."""
    lower = text.lower()
    if "auth" in lower or "requirepass" in lower or "pass" in lower:
        text = _COMMAND.sub(_command, text)
        text = _SETTING.sub(_word, text)
    if "user " in lower or "setuser" in lower:
        text = _ACL.sub(lambda match: _ACL_WORD.sub(rf"\g<sign>{HIDDEN}", match[0]), text)
    if "-" in text:
        text = _OPTION.sub(_word, text)
        text = _REDIS_CLI.sub(_shown, text)
        text = _CURL.sub(lambda match: f"{match['name']}{HIDDEN}", text)
    if ":" in text or "=" in text:
        text = _YAML_BLOCK.sub(lambda match: f"{match['name']}{match['indent']}  {HIDDEN}\n", text)
        text = _YAML_LINE.sub(_line, text)
        text = _INLINE.sub(_inline, text)
    return hide_keys(text)


def hide_keys(text: str) -> str:
    """A text without JSON Web Tokens, issued keys and private keys, which show themselves by their form."""
    if "eyJ" in text:
        text = _RUN.sub(_token, text)
    text = _ISSUED.sub(HIDDEN, text)
    if "PRIVATE KEY-----" in text:
        text = _PEM.sub(lambda match: f"{match['name']}{HIDDEN}{match['end']}", text)
    return text


def hide_arguments(words: t.Sequence[t.Any]) -> t.List[t.Any]:
    """A command as a list of its words, without what follows ``--password`` or the ``-a`` of redis-cli."""
    program = str(words[0]).rpartition("/")[2] if words else ""
    redacted = list(words)
    for index, word in enumerate(words[:-1]):
        if not isinstance(word, str) or not isinstance(words[index + 1], str):
            continue
        if _OPTION.fullmatch(f"{word} x") or (word == "-a" and program in ("redis-cli", "redis-benchmark")):
            redacted[index + 1] = HIDDEN
    return redacted


def is_query_secret(name: str, value: str) -> bool:
    """Whether this parameter of a query, whose name is an ordinary word elsewhere (``key``, ``code``), is a secret."""
    return (
        re.fullmatch(QUERY_NAME, name, re.IGNORECASE) is not None
        and _QUERY_HARMLESS.fullmatch(value.rstrip(_MARKS)) is None
    )


def _is_prose(value: str, before: str, after: str) -> bool:
    """Whether a value is a word of the sentence around it."""
    bare = value.strip("'\"").rstrip(_MARKS).lower()
    if not bare or bare == HIDDEN or bare in _PROSE:
        return True
    if not _DETERMINER.search(before):
        return False
    return value[0] == "(" or bool(_SMALL.fullmatch(value.rstrip(",")) and re.match(r"[ \t]+[a-z]", after))


def _shown(match: t.Match[str], value: str = "") -> str:
    value = value or match["value"]
    mark = value[0] if value[0] in "'\"" and len(value) > 1 and value[-1] == value[0] else ""
    tail = "" if mark else value[len(value.rstrip(_MARKS)) :]
    return f"{match['name']}{match['sign']}{mark}{HIDDEN}{mark}{tail}"


def _around(match: t.Match[str]) -> t.Tuple[str, str]:
    return match.string[max(0, match.start() - 20) : match.start()], match.string[match.end() : match.end() + 20]


def _word(match: t.Match[str]) -> str:
    return match[0] if _is_prose(match["value"], *_around(match)) or match["value"][0] == "-" else _shown(match)


def _inline(match: t.Match[str]) -> str:
    value = match["value"]
    if (
        value.startswith(("//", HIDDEN))
        or _TEMPLATE.fullmatch(value)
        or value in "{[(|>&!="
        or _is_prose(value, *_around(match))
    ):
        return match[0]
    if value[0] in "'\"":
        return _shown(match)
    end = re.search(r"[,;})\]]", value)
    return _shown(match, value[: end.start()]) + value[end.start() :] if end and end.start() else _shown(match)


def _line(match: t.Match[str]) -> str:
    """A whole line of YAML without its comment. A sentence begins with one of the words of prose."""
    value = match["value"].rstrip()
    comment = re.search(r"[ \t]#", value)
    rest = match["value"][comment.start() if comment else len(value) :]
    value = value[: comment.start()] if comment else value
    mark = value[0] if value[0] in "'\"" else ""
    if (
        value.strip("'\"").startswith((HIDDEN, "//"))
        or _TEMPLATE.fullmatch(value)
        or _is_prose(value.split()[0], "", "")
    ):
        return match[0]
    if "=" in match["sign"] and not (value[0] in "'\"" or re.fullmatch(r"[^\s()\[\]]+", value)):
        return match[0]  # an expression of SQL or of a program
    return f"{match['name']}{match['sign']}{mark}{HIDDEN}{mark}{rest}"


def _command(match: t.Match[str]) -> str:
    value, second = match["value"], match["second"].strip()
    rest = match["second"]
    mechanism = value.strip("'\"").upper() in ("LOGIN", "PLAIN", "CRAM-MD5", "XOAUTH2", "NO", "ONE")
    is_account = value.lower() in ("user", "username", "default")
    if _is_prose(value, "", "") and not ((mechanism or is_account) and second):
        return match[0]
    redacted = f"{match['name']}{match['sign']}{value}" if mechanism or is_account else _shown(match)
    if second and not _is_prose(second, "", ""):
        mark = second[0] if second[0] in "'\"" else ""
        rest = rest.replace(second, f"{mark}{HIDDEN}{mark}")
    return redacted + rest


def _token(match: t.Match[str]) -> str:
    """A run of letters without the token in it: ``eyJ`` is ``{"`` in base64, and a header in ASCII follows."""
    run, start = match[0], 0
    for segment in run.split(".")[:-1]:
        for at in (found.start() for found in re.finditer("eyJ", segment)):
            if len(segment) - at >= 8 and _is_header(segment[at : at + 8]):
                return run[: start + at] + HIDDEN + run[len(run.rstrip(".")) :]
        start += len(segment) + 1
    return run


def _is_header(text: str) -> bool:
    try:
        return base64.urlsafe_b64decode(text).decode("ascii").isprintable()
    except (ValueError, binascii.Error):
        return False
