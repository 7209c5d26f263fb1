# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an error of Redis means, and what a person does about it: one translation for everything that talks to a Redis
of the user.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ..core.redaction import redact_url
from ..core.results import OpsError


@dataclass(frozen=True)
class WriteRefusal:
    """Why Redis takes no writes: what its code means, what a person does, and the module that does it (empty: none)."""

    meaning: str
    advice: str
    remedy: str = ""


#: By the code of the answer (redis.io/docs/latest/develop/reference/protocol-spec, "Simple errors").
WRITE_REFUSALS: t.Mapping[str, WriteRefusal] = {
    "OOM": WriteRefusal(
        "its memory is full and nothing may be evicted",
        "remove what is not needed, or raise maxmemory",
        "cache_purge",
    ),
    "MISCONF": WriteRefusal(
        "it cannot save its data to disk",
        "free space on its disk, or correct the rights of its directory",
        "disk_cleanup",
    ),
    "READONLY": WriteRefusal("it is a replica", "give the URL of the primary"),
    "NOREPLICAS": WriteRefusal("too few replicas are connected (min-replicas-to-write)", "bring the replicas back"),
    "LOADING": WriteRefusal("it still loads its data", "wait: a restart would begin anew"),
    "MASTERDOWN": WriteRefusal(
        "its primary is gone and it may not serve what it has", "bring the primary back, or promote this one"
    ),
    "CLUSTERDOWN": WriteRefusal("the cluster is down", "bring the missing nodes back"),
    "TRYAGAIN": WriteRefusal("the cluster moves these keys to another node", "wait until it is done"),
}
#: Codes of a node of a cluster for keys that it does not hold, or not all of (redis.io, "Cluster specification").
_CLUSTER = frozenset({"CROSSSLOT", "MOVED", "ASK"})
#: Classes of redis-py whose text has lost the code.
_CLASSES: t.Mapping[str, str] = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
}


def code(error: BaseException) -> str:
    """The code with which Redis refuses writes (``OOM``, ``MISCONF``, ...); empty for any other error."""
    class_code = next((_CLASSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _CLASSES), "")
    first = (getattr(error, "status_code", None) or str(error).partition(" ")[0]).upper()
    return class_code or (first if first in WRITE_REFUSALS else "")


def answered(error: BaseException) -> bool:
    """Whether the server lives and said no, so that a restart of it would change nothing."""
    return kind(error) != "silent"


def unserved(error: BaseException) -> str:
    """What is the matter with a server that gave us no service, as the end of a sentence about it."""
    text, error_kind = str(error).rstrip("."), kind(error)
    if error_kind == "silent":
        return f"does not answer: {text}"
    if error_kind == "clients":
        return f"has no connection free ({text}): close some, or raise maxclients"
    if error_kind == "cluster":
        return f"is a node of a cluster, on which Celery does not work ({text}): give a Redis without cluster mode"
    if error_kind == "command":
        return f"lacks a command ({text}): it is too old, or rename-command took it away"
    if error_kind == "busy":
        return f"is busy with a script ({text}): wait for it, or end it with SCRIPT KILL"
    return f"answers with an error: {text}; check the user and the database in its URL"


def missing_right(error: BaseException) -> str:
    """The right that a NOPERM names, as ``ACL SETUSER`` takes it (``+config|get``, ``~*``, ``&*``); empty for any other
    error.

    Redis 7 names the subcommand ("the 'config|get' command"), Redis 6 only the command.
    """
    import redis

    text = str(error)
    if isinstance(error, redis.exceptions.ResponseError) and "EXEC without MULTI" in text:
        return "+multi"  # redis-py opened the transaction and was refused
    aborted = isinstance(error, redis.exceptions.ExecAbortError) and "NOPERM" in text
    if not aborted and not isinstance(error, redis.exceptions.NoPermissionError):
        return ""
    command = re.search(r"run the '([^']+)' command", text)
    if command:
        return f"+{command[1].lower()}"
    return "&*" if "channel" in text else "~*" if "key" in text else "+@all"


def kind(error: BaseException) -> str:
    """What kind of answer it is, or that there was none.

    ``permission``, ``password``, ``loading``, ``busy``, ``replica``, ``refused`` (it cannot write now), ``clients``
    (all connections are taken), ``cluster`` (it is a node of one, and what was asked is not in its slots, or in several),
    ``command`` (it does not know one), ``error`` (another answer) or ``silent``.
    """
    import redis

    text = str(error)
    word = (getattr(error, "status_code", None) or text.partition(" ")[0]).upper()
    if missing_right(error):
        return "permission"
    if "max number of clients" in text:
        return "clients"  # a connection error for redis-py, yet the server's own answer
    if isinstance(error, redis.exceptions.AuthenticationError):
        return "password"
    refusal = code(error)
    if refusal:
        return {"LOADING": "loading", "READONLY": "replica"}.get(refusal, "refused")
    if word == "BUSY":
        return "busy"
    # redis-py has taken the code from the text of these.
    names = {base.__name__ for base in type(error).__mro__}
    if word in _CLUSTER or names & {"MovedError", "AskError", "ClusterCrossSlotError"} or "cluster mode" in text:
        return "cluster"
    if "unknown command" in text or "unknown subcommand" in text.lower():
        return "command"
    if isinstance(error, redis.exceptions.ResponseError):
        return "error"
    return "silent"


def explain(error: BaseException, url: str, *, hint: str = "", silent: str = "does not answer") -> OpsError:
    """The error as one of ours. Where the server does not answer at all, ``silent`` says so and ``hint`` what to do;
    the URL is shown without its password.

    ``details`` has ``redis_error`` (see ``kind``), and for NOPERM ``missing_right``.
    """
    where, error_kind, text = redact_url(url), kind(error), str(error).rstrip(".")
    if error_kind == "permission":
        right = missing_right(error)
        run = (
            f"run {right[1:].replace('|', ' ').upper()}"
            if right[0] == "+"
            else "use this key"
            if right == "~*"
            else "use this channel"
        )
        return OpsError(
            f"Redis at {where} does not allow its user to {run} (NOPERM): the right {right} is missing.",
            hint=f"Grant it (ACL SETUSER USER {right}), or give a URL with a user that has it.",
            redis_error=error_kind,
            missing_right=right,
        )
    if error_kind == "password":
        asks = "asks for a password" if "required" in text.lower() else "refuses the password"
        return OpsError(
            f"Redis at {where} {asks}.", hint="Give the right user and password in the URL.", redis_error=error_kind
        )
    refused = WRITE_REFUSALS.get(code(error))
    messages = {
        "loading": (
            f"Redis at {where} still loads its data.",
            "Wait until it has: INFO persistence shows how far it is.",
        ),
        "busy": (
            f"Redis at {where} is busy with a script: {text}.",
            "Wait for the script, or end it with SCRIPT KILL.",
        ),
        "replica": (f"Redis at {where} is a read-only replica.", "Give the URL of the primary."),
        "refused": (
            f"Redis at {where} refuses to write: {text}.",
            f"{refused.advice[0].upper()}{refused.advice[1:]}." if refused else "",
        ),
        "clients": (
            f"Redis at {where} has no connection free: {text}.",
            "Close connections that nobody needs, or raise maxclients.",
        ),
        "cluster": (
            f"Redis at {where} is a node of a cluster, and cannot do this with keys of several slots or nodes: {text}.",
            "Only cache_purge works on a cluster. Celery needs a Redis without cluster mode.",
        ),
        "command": (
            f"Redis at {where} lacks a command: {text}.",
            "It may be too old (6.2 or newer is needed), or rename-command in its configuration took it away.",
        ),
        "error": (f"Redis at {where} answers with an error: {text}.", "Look at the user and the database in the URL."),
        "silent": (
            f"Redis at {where} {silent}: {text}.",
            hint or "Look whether it runs, and whether the URL is right.",
        ),
    }
    message, advice = messages[error_kind]
    return OpsError(message, hint=advice, redis_error=error_kind)
