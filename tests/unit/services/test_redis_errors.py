# SPDX-License-Identifier: GPL-3.0-or-later
"""What Redis says, read: its errors, its configuration file, its keys. Files and errors are given; a real server counts in one test."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest
from redis import exceptions as errors

from tests.support import servers
from tests.support.servers import Redis
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError
from wheels_ops.remedies.service_restart import count_lost
from wheels_ops.services import broker, redis_config, redis_errors

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


def test_a_configuration_file_is_read_as_redis_reads_it(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("save 60 10000\nAPPENDONLY yes\n")
    (tmp_path / "last-a.conf").write_text("dbfilename a.rdb\n")
    (tmp_path / "last-b.conf").write_text('dbfilename "b c.rdb"\n')
    file = tmp_path / "redis.conf"
    file.write_text(
        f"# appendonly no\n\n  appendonly no\nsave 3600 1\nport 6379\ndir {tmp_path}\ninclude"
        f" {tmp_path}/more.conf\ninclude {tmp_path}/last-*.conf\n"
    )
    files: t.List[str] = []
    assert redis_config.read(str(file), files=files) == {
        "appendonly": "yes",
        "save": "3600 1 60 10000",
        "dir": str(tmp_path),
        "dbfilename": "b c.rdb",
    }
    assert [Path(name).name for name in files] == ["redis.conf", "more.conf", "last-a.conf", "last-b.conf"]
    file.write_text('save 3600 1\nsave ""\n')
    assert redis_config.read(str(file)) == {"save": ""}
    file.write_text('save ""\nsave 60 1\n')
    assert redis_config.read("/redis.conf", root=str(tmp_path)) == {"save": "60 1"}


def test_a_file_that_is_none_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        redis_config.read(str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        redis_config.read(str(tmp_path / "pipe"))
    (tmp_path / "quote").write_text('dir "open\n')
    with pytest.raises(ValueError, match="quotation"):
        redis_config.read(str(tmp_path / "quote"))
    (tmp_path / "circle").write_text(f"include {tmp_path}/circle\nappendonly yes\n")
    assert redis_config.read(str(tmp_path / "circle"))["appendonly"] == "yes"


@pytest.mark.parametrize(
    ("now", "differences", "lost"),
    [
        ("no", {}, ""),
        ("no", {"appendonly": ("no", "yes")}, "turns appendonly on"),
        ("yes", {"appendonly": ("yes", "no")}, ""),
        ("no", {"dir": ("/a", "/b")}, "says dir /b, it runs with /a"),
        ("no", {"dbfilename": ("a", "b")}, "says dbfilename b"),
        ("no", {"appenddirname": ("a", "b")}, ""),
        ("yes", {"appenddirname": ("a", "b")}, "says appenddirname b"),
        ("no", {"save": ("60 1", "")}, ""),
    ],
)
def test_what_the_next_start_would_not_read(now: str, differences: t.Dict[str, t.Tuple[str, str]], lost: str) -> None:
    outlook = redis_config.Outlook({"appendonly": now}, differences)
    assert (lost in outlook.why_lost()) if lost else outlook.why_lost() == ""
    assert outlook.certain is (set(differences) <= {"save"})
    assert not redis_config.Outlook({"appendonly": now}, unknown="a reason").certain


def test_the_newest_dumps_stay(tmp_path: Path) -> None:
    dump = tmp_path / "dump.rdb"
    names = []
    for number in range(6):
        replacement = tmp_path / "temp"
        replacement.write_text(f"dump {number}")
        replacement.chmod(0o640)
        replacement.rename(dump)  # as Redis does
        names.append(redis_config.set_aside(str(tmp_path), "dump.rdb", now=1e9 + number))
        assert redis_config.set_aside(str(tmp_path), "dump.rdb", now=1e9 + number) == names[-1], (
            "again within the second"
        )
    copies = sorted(path for path in tmp_path.iterdir() if path != dump)
    assert [str(path) for path in copies] == names[-3:]
    assert [path.read_text() for path in copies] == ["dump 3", "dump 4", "dump 5"] and copies[
        0
    ].stat().st_mode & 0o777 == 0o640


def test_what_is_no_dump_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "dump.rdb").symlink_to(tmp_path / "secret")
    with pytest.raises(OpsError, match="no regular file"):
        redis_config.set_aside(str(tmp_path), "dump.rdb")
    with pytest.raises(OpsError, match="could not be set aside: No such file"):
        redis_config.set_aside(str(tmp_path), "other.rdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.rdb", "secret"]


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ({"celery": 5, "unacked": 2}, {"celery": 7, "unacked": 0}, 0),
        ({"celery": 5, "unacked": 2}, {"celery": 4, "unacked": 2}, 1),
        ({"celery": 5}, {"celery": 9}, 0),
        ({"feed": 9}, {"feed": 2}, 0),
        ({"feed": 9}, {}, 9),
        ({"feed": 9, "celery": 1}, {"celery": 10}, 9),
        ({"celery": 3, "shop:unacked (database 2)": 4}, {"celery": 3}, 4),
    ],
)
def test_what_a_restart_lost(before: t.Dict[str, int], after: t.Dict[str, int], lost: int) -> None:
    """Tasks move between their queues; what else is a list may be taken from, but does not vanish."""
    assert count_lost(before, after, {"celery"}) == lost


def test_depths_of_queues_of_every_application_in_a_database(redis: Redis) -> None:
    client = broker.connect(redis.url)
    for prefix in ("", "shop:"):
        redis.cli("SADD", f"{prefix}_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
        redis.cli("SADD", f"{prefix}_kombu.binding.celery.pidbox", "\x06\x16\x06\x16one@host.celery.pidbox")
        redis.cli("RPUSH", f"{prefix}celery", "1", "2")
        redis.cli("RPUSH", f"{prefix}celery\x06\x167", "3")
        redis.cli("HSET", f"{prefix}unacked", "tag", "message")
    redis.cli("RPUSH", "feed", "no task")
    redis.cli("SET", "email", "no list")
    redis.cli("RPUSH", "abc.reply.celery.pidbox", "an answer")
    redis.cli("-n", "2", "RPUSH", "a\nb\x06\x162", "task")
    assert broker.prefixes(client) == ["", "shop:"]
    assert broker.queues(client, ["email"]) == ["celery", "email", "shop:celery"]
    assert broker.waiting_tasks(client, broker.queues(client, ["email"])) == {
        "celery": 3,
        "shop:celery": 3,
        "unacked": 2,
    }
    assert broker.count_tasks(client) == {
        "unacked": 1,
        "celery": 3,
        "shop:celery": 3,
        "shop:unacked": 1,
        "feed": 1,
        "a\\nb (database 2)": 1,
    }
    assert broker.databases(client) == [0, 2]
    client.close()


def test_what_waits_in_a_server_in_cluster_mode_is_counted_over_its_slots() -> None:
    with servers.redis(options=["--cluster-enabled", "yes"]) as server:
        server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: "cluster_state:ok" in server.cli("CLUSTER", "INFO"), what="the cluster")
        server.cli("RPUSH", "celery", "1", "2")
        server.cli("RPUSH", "email", "1")
        server.cli("HSET", "unacked", "tag", "message")
        client = broker.connect(server.url)
        assert broker.count_tasks(client) == {"unacked": 1, "celery": 2, "email": 1}
        client.close()


@pytest.mark.parametrize(
    ("url", "port"), [("redis://host/0", 6379), ("rediss://host:7000/0", 7000), ("unix:///run/redis.sock?db=1", 0)]
)
def test_the_port_of_a_url(url: str, port: int) -> None:
    assert broker.port(url) == port
