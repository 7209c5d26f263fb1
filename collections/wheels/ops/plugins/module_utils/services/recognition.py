# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a service is, by the command that it executes and never by its name."""

from __future__ import annotations

import os
import re
import shlex
import typing as t

API, WORKER, BEAT, REDIS, POSTGRES, FRONT_END = "api", "celery_worker", "celery_beat", "redis", "postgres", "front_end"
_SERVERS = frozenset({"uvicorn", "gunicorn", "hypercorn", "daphne", "granian", "fastapi"})
#: Programs that pass requests on to a service behind them; their sockets are never the service's own.
FRONT_ENDS = (
    *("nginx", "angie", "haproxy", "caddy", "traefik", "envoy", "apache2", "httpd", "lighttpd", "h2o"),
    *("varnishd", "hitch", "pound", "cloudflared"),
)
_PROGRAMS: t.Mapping[str, str] = {
    **dict.fromkeys(("redis-server", "valkey-server", "keydb-server"), REDIS),
    **dict.fromkeys(("postgres", "postmaster"), POSTGRES),
    **dict.fromkeys(FRONT_ENDS, FRONT_END),
}
#: What comes before the program that a service is about.
_WRAPPERS = frozenset({"env", "exec", "nice", "ionice", "nohup", "dumb-init", "tini", "runuser", "sudo", "setpriv"})
#: ``module:attribute`` of an ASGI application, also of a factory.
_APPLICATION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(?:\(\))?")


def words_of(command: t.Sequence[str]) -> t.List[str]:
    """The words of a command with those of what it hands to a shell (``sh -c '...'``)."""
    words: t.List[str] = []
    for word in command:
        if re.search(r"\s", word):
            try:
                words += words_of([part for part in shlex.split(word) if part != word])
            except ValueError:
                words += word.split()
        else:
            words.append(word.rstrip(";"))
    return words


def kind_of(command: t.Sequence[str]) -> str:
    """One of the kinds above; empty for anything else."""
    words = words_of(command)
    names = [os.path.basename(word.rstrip(":")) for word in words]
    if not names:
        return ""
    first = next((name for name in names if name not in _WRAPPERS), "")
    if first in _PROGRAMS:
        return _PROGRAMS[first]
    for name in names:
        if name in _PROGRAMS and _PROGRAMS[name] in (REDIS, POSTGRES):
            return _PROGRAMS[name]
        if name in ("celery", "[celeryd", "[celery"):
            following = names[names.index(name) + 1 :]
            if name == "celery":
                return next((kind for word, kind in (("worker", WORKER), ("beat", BEAT)) if word in following), "")
            return BEAT if "beat" in "".join(following[:1]) or name == "[celery" else WORKER
        if name in _SERVERS:
            return API
    return ""


def with_beat(command: t.Sequence[str]) -> bool:
    """Whether a worker is its own beat (``-B``)."""
    return kind_of(command) == WORKER and bool({"-B", "--beat"} & set(words_of(command)))


def application_of(command: t.Sequence[str]) -> str:
    """``app.main:app`` as an ASGI server was told; empty where it was not."""
    words = words_of(command)
    start = next((index for index, word in enumerate(words) if os.path.basename(word) in _SERVERS), None)
    if start is None:
        return ""
    return next((word for word in words[start + 1 :] if _APPLICATION.fullmatch(word)), "")


def option_of(command: t.Sequence[str], *names: str) -> str:
    """The value of an option: ``--port 8000``, ``--port=8000``, ``-b :8000``; empty where it is not given."""
    words = words_of(command)
    for word, following in zip(words, [*words[1:], ""]):
        name, sign, value = word.partition("=")
        if name in names:
            return value if sign else following
    return ""


def sourced_files(command: t.Sequence[str]) -> t.List[str]:
    """The files that a shell reads variables from before it starts the program: ``. /etc/api.env``."""
    words = words_of(command)
    return [
        following for word, following in zip(words, words[1:]) if word in (".", "source") and following.startswith("/")
    ]
