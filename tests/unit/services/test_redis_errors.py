# SPDX-License-Identifier: GPL-3.0-or-later
"""What Redis says, read: its errors, given here."""

from __future__ import annotations

import pytest
from redis import exceptions as errors

from wheels_ops.services import redis_errors

URL = "redis://user:word@10.0.0.1:6379/3"


@pytest.mark.parametrize(
    ("error", "kind", "said", "hint"),
    [
        (
            errors.NoPermissionError("User ops has no permissions to run the 'config|get' command"),
            "permission",
            "to run CONFIG GET (NOPERM)",
            "+config|get",
        ),
        (
            errors.NoPermissionError("this user has no permissions to run the 'info' command or its subcommand"),
            "permission",
            "to run INFO (NOPERM)",
            "+info",
        ),
        (errors.NoPermissionError("No permissions to access a key"), "permission", "to use this key (NOPERM)", "~*"),
        (
            errors.NoPermissionError("this user has no permissions to access one of the channels used as arguments"),
            "permission",
            "this channel (NOPERM)",
            "&*",
        ),
        (errors.NoPermissionError("in other words"), "permission", "NOPERM", "+@all"),
        (errors.ResponseError("EXEC without MULTI"), "permission", "to run MULTI (NOPERM)", "+multi"),
        (
            errors.ExecAbortError(
                "Transaction discarded because of: NOPERM this user has no permissions to run the 'exec' command"
            ),
            "permission",
            "to run EXEC (NOPERM)",
            "+exec",
        ),
        (
            errors.ConnectionError("max number of clients reached"),
            "clients",
            "has no connection free: max number of clients",
            "maxclients",
        ),
        (
            errors.AuthenticationError("invalid username-password pair or user is disabled."),
            "password",
            "refuses the password",
            "user and password",
        ),
        (
            errors.AuthenticationError("Authentication required."),
            "password",
            "asks for a password",
            "user and password",
        ),
        (errors.BusyLoadingError("Redis is loading the dataset in memory"), "loading", "still loads its data", "Wait"),
        (
            errors.ReadOnlyError("You can't write against a read only replica."),
            "replica",
            "read-only replica",
            "primary",
        ),
        (errors.ResponseError("BUSY Redis is busy running a script."), "busy", "busy with a script", "SCRIPT KILL"),
        (
            errors.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
            "refused",
            "refuses to write: MISCONF",
            "disk",
        ),
        (errors.OutOfMemoryError("command not allowed"), "refused", "refuses to write", "maxmemory"),
        (
            errors.ResponseError("CROSSSLOT Keys in request don't hash to the same slot"),
            "cluster",
            "a node of a cluster",
            "without cluster mode",
        ),
        (errors.MovedError("12182 127.0.0.1:7001"), "cluster", "a node of a cluster", "cache_purge"),
        (
            errors.ResponseError("SELECT is not allowed in cluster mode"),
            "cluster",
            "SELECT is not allowed",
            "without cluster mode",
        ),
        (
            errors.ResponseError("unknown command 'UNLINK', with args beginning with: 'a'"),
            "command",
            "lacks a command: unknown command 'UNLINK'",
            "rename-command",
        ),
        (
            errors.ResponseError("DB index is out of range"),
            "error",
            "answers with an error: DB index",
            "database in the URL",
        ),
        (
            errors.ConnectionError("Error 111 connecting. Connection refused."),
            "silent",
            "does not answer: Error 111",
            "Look whether it runs",
        ),
        (
            errors.TimeoutError("Timeout reading from socket"),
            "silent",
            "does not answer: Timeout",
            "Look whether it runs",
        ),
    ],
)
def test_an_error_says_what_it_means_and_what_to_do(error: errors.RedisError, kind: str, said: str, hint: str) -> None:
    found = redis_errors.explain(error, URL)
    assert found.details["redis_error"] == kind == redis_errors.kind(error)
    assert said in found.message and hint in found.hint and "10.0.0.1" in found.message and "word@" not in str(found)
    assert redis_errors.answered(error) is (kind != "silent")
    assert redis_errors.missing_right(error) == found.details.get("missing_right", "")


def test_the_caller_says_what_to_do_where_nobody_answers() -> None:
    found = redis_errors.explain(errors.ConnectionError("gone."), URL, hint="Start it.", silent="does not work")
    assert found.message.endswith("does not work: gone.") and found.hint == "Start it."
    assert redis_errors.explain(errors.BusyLoadingError("x"), URL, hint="Start it.").hint != "Start it."
