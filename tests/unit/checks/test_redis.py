# SPDX-License-Identifier: GPL-3.0-or-later
"""The grading of the Redis check: with answers made up for each limit and each refusal."""

from __future__ import annotations

import dataclasses
import socket
import typing as t

import pytest
import redis as library

from wheels_ops.checks import redis as redis_check
from wheels_ops.core.results import OpsError
from wheels_ops.health.thresholds import Thresholds
from wheels_ops.services import redis_errors

INFO: t.Dict[str, t.Any] = {
    "redis_version": "7.0.15",
    "used_memory": 500,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "keyspace_hits": 3,
    "keyspace_misses": 1,
    "evicted_keys": 4,
    "expired_keys": 5,
    "connected_clients": 6,
    "role": "master",
    "loading": 0,
    "rdb_last_bgsave_status": "ok",
    "aof_last_write_status": "ok",
}
URL = "redis://:s3cret@redis.internal:6379/0"


class Wire:
    """Stands in for a connection: what each command is answered with, an exception where it is refused."""

    def __init__(self, info: t.Any = None, *, ping: t.Any = True, probe: t.Any = 0, keys: t.Any = ()) -> None:
        self.answers = {"info": INFO if info is None else info, "ping": ping, "probe": probe}
        self.keys: t.Any = keys
        self.commands: t.List[t.Any] = []
        self.closed = False

    def _answer(self, name: str) -> t.Any:
        self.commands.append(name)
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ping(self) -> t.Any:
        return self._answer("ping")

    def info(self) -> t.Any:
        return self._answer("info")

    def execute_command(self, *words: str) -> t.Any:
        assert words[0] == "SETRANGE" and words[2:] == ("0", "")
        return self._answer("probe")

    def scan_iter(self, *, count: int, _type: str) -> t.Iterator[bytes]:
        assert _type == "STRING"
        self.commands.append("scan")
        if isinstance(self.keys, Exception):
            raise self.keys
        return iter([key for key, _ttl in self.keys])

    def pipeline(self, *, transaction: bool) -> Pipe:
        return Pipe(dict(self.keys))

    def close(self) -> None:
        self.closed = True


class Pipe:
    def __init__(self, times: t.Dict[bytes, int]) -> None:
        self.times, self.asked = times, t.cast("t.List[bytes]", [])

    def pttl(self, key: bytes) -> None:
        self.asked.append(key)

    def execute(self) -> t.List[int]:
        return [self.times[key] for key in self.asked]


def measured(monkeypatch: pytest.MonkeyPatch, wire: Wire, **options: t.Any) -> t.Any:
    def from_url(url: str, **settings: t.Any) -> Wire:
        assert (url, settings["socket_timeout"], settings["socket_connect_timeout"]) == (URL, 5.0, 5.0)
        assert settings["retry"].get_retries() == 0
        return wire

    monkeypatch.setattr(library.Redis, "from_url", from_url)
    check = redis_check.check(URL, **options)
    assert wire.closed
    return check


def test_a_healthy_server_and_what_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check = measured(monkeypatch, Wire(keys=[(b"user_profile:1", 5000), (b"other", -1)]))
    assert (check.name, check.status, check.value, check.unit, check.remedy) == (
        "redis",
        "ok",
        0,
        "keys without expiry",
        "",
    )
    assert check.message.startswith("Redis 7.0.15 answers in ") and check.message.endswith(
        " ms and takes writes; every cache key expires."
    )
    facts = {key: value for key, value in check.details.items() if key != "latency_ms"}
    assert facts == {
        "version": "7.0.15",
        "used_memory_bytes": 500,
        "maxmemory_percent": None,
        "maxmemory_policy": "noeviction",
        "hit_rate_percent": 75.0,
        "evicted_keys": 4,
        "expired_keys": 5,
        "connected_clients": 6,
        "role": "master",
        "writes": "accepted",
        "scanned": 2,
    }
    assert check.thresholds == {}


def test_without_a_question_there_is_no_hit_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    check = measured(monkeypatch, Wire({**INFO, "keyspace_hits": 0, "keyspace_misses": 0}))
    assert check.details["hit_rate_percent"] is None


@pytest.mark.parametrize(
    ("used", "status", "over"),
    [
        (650, "ok", 0),
        (651, "warning", 65),
        (750, "warning", 65),
        (751, "critical", 75),
        (850, "critical", 75),
        (851, "emergency", 85),
    ],
)
def test_the_share_of_maxmemory_is_graded(monkeypatch: pytest.MonkeyPatch, used: int, status: str, over: int) -> None:
    check = measured(
        monkeypatch, Wire({**INFO, "used_memory": used, "maxmemory": 1000}, keys=[(b"user_profile:1", 100)])
    )
    assert check.status == status and check.details["maxmemory_percent"] == used / 10
    assert check.thresholds == {"warning": 65, "critical": 75, "emergency": 85}
    if status != "ok":
        assert check.message == f"Redis uses {used / 10:.0f} % of its maxmemory, over {over} %."
        assert check.remedy == "cache_purge"


def test_where_no_key_is_ours_nothing_is_said_to_be_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        measured(monkeypatch, Wire({**INFO, "used_memory": 800, "maxmemory": 1000}, keys=[(b"other", -1)])).remedy == ""
    )


def test_the_limit_of_memory_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {**INFO, "used_memory": 800, "maxmemory": 1000}
    assert measured(monkeypatch, Wire(full), thresholds=Thresholds(90)).status == "ok"
    check = measured(monkeypatch, Wire(full), thresholds=Thresholds(1, 2, 3))
    assert check.status == "emergency" and check.thresholds["warning"] == 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_cache_that_may_evict_is_full_and_works(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    check = measured(monkeypatch, Wire({**INFO, "used_memory": 1000, "maxmemory": 1000, "maxmemory_policy": policy}))
    assert check.status == "ok" and check.details["maxmemory_percent"] == 100


def test_keys_that_never_expire_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        (b"user_profile:1", -1),
        (b"pam:cache:x", -1),
        (b"budget_summary:1", 1),
        (b"user_settings:1", -2),
        (b"celery-task-meta-1", -1),
    ]
    check = measured(monkeypatch, Wire(keys=keys))
    assert (check.status, check.value, check.message, check.remedy) == (
        "warning",
        2,
        "2 cache keys never expire.",
        "cache_purge",
    )
    few = measured(
        monkeypatch, Wire(keys=[(f"user_profile:{number}".encode(), -1) for number in range(1300)]), max_keys=1000
    )
    assert few.value == 1000 == few.details["scanned"]
    mine = measured(monkeypatch, Wire(keys=keys), prefixes=("celery-",))
    assert mine.value == 1


#: Under these the backend caches; a key of another kind may live for ever.
PREFIXES = [
    "pam:cache:",
    "user_profile:",
    "user_trips:",
    "trip_details:",
    "user_social_groups:",
    "user_social_posts:",
    "marketplace_listings:",
    "user_purchase_history:",
    "user_wishlists:",
    "personalized_recommendations:",
    "financial_travel_insights:",
    "social_travel_connections:",
    "comprehensive_user_context:",
    "user_calendar_events:",
    "user_settings:",
    "expenses:",
    "budget_summary:",
    "fuel_stations:",
    "user_analytics:",
    "response:",
    "conversation_history:",
    "user_context:",
    "recent_conversation:",
    "recent_conversations:",
    "context:",
    "calendar_events:",
    "travel_events:",
    "user_preferences:",
    "user_insights:",
    "web_search:",
    "web_search_ctx:",
    "script_analysis:",
]


def test_every_kind_of_key_that_the_backend_caches_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [(f"{prefix}1".encode(), -1) for prefix in PREFIXES]
    assert measured(monkeypatch, Wire(keys=keys)).value == len(PREFIXES) == 32
    for key in keys:
        assert measured(monkeypatch, Wire(keys=[key])).value == 1, key


def test_the_worst_finding_begins_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {**INFO, "used_memory": 760, "maxmemory": 1000}
    check = measured(monkeypatch, Wire(full, keys=[(b"user_profile:1", -1)]))
    assert (check.status, check.message) == (
        "critical",
        "Redis uses 76 % of its maxmemory, over 75 %; 1 cache keys never expire.",
    )


@pytest.mark.parametrize(
    ("error", "code", "remedy"),
    [
        (
            library.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            "OOM",
            "cache_purge",
        ),
        (
            library.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist"),
            "MISCONF",
            "disk_cleanup",
        ),
        (library.ReadOnlyError("You can't write against a read only replica."), "READONLY", ""),
        (library.ResponseError("NOREPLICAS Not enough good replicas to write."), "NOREPLICAS", ""),
        (library.exceptions.ClusterDownError("The cluster is down"), "CLUSTERDOWN", ""),
        (library.BusyLoadingError("Redis is loading the dataset in memory"), "LOADING", ""),
        (library.exceptions.MasterDownError("Link with MASTER is down"), "MASTERDOWN", ""),
    ],
)
def test_a_refused_write_is_critical_and_names_what_helps(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, remedy: str
) -> None:
    check = measured(monkeypatch, Wire(probe=error, keys=[(b"user_profile:1", 10)]))
    refused = redis_errors.WRITE_REFUSALS[code]
    assert (check.status, check.remedy, check.details["writes"]) == ("critical", remedy, f"refused: {code}")
    assert check.message == f"Redis refuses writes ({code}): {refused.meaning}; {refused.advice}."
    assert "takes writes" not in check.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (library.BusyLoadingError("Redis is loading the dataset in memory"), "LOADING"),
        (library.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF"),
        (library.exceptions.MasterDownError("Link with MASTER is down"), "MASTERDOWN"),
    ],
)
def test_a_ping_that_is_refused_is_no_silence(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    wire = Wire(ping=error, probe=AssertionError("asked already"))
    check = measured(monkeypatch, wire)
    assert (
        check.status == "critical"
        and check.message.startswith(f"Redis refuses writes ({code})")
        and check.details["version"] == "7.0.15"
    )
    assert ("scan" in wire.commands) is (code == "MISCONF"), "a server that still loads is not searched"
    assert check.remedy != "service_restart", "a restart would begin anew"


def test_a_full_server_is_as_bad_as_its_share_says(monkeypatch: pytest.MonkeyPatch) -> None:
    oom = library.exceptions.OutOfMemoryError("command not allowed")
    check = measured(
        monkeypatch, Wire({**INFO, "used_memory": 1060, "maxmemory": 1000}, probe=oom, keys=[(b"user_profile:1", -1)])
    )
    assert (check.status, check.remedy) == ("emergency", "cache_purge")
    assert check.message.startswith(
        "Redis refuses writes (OOM, 106 % of maxmemory in use): "
    ) and check.message.endswith("; 1 cache keys never expire.")
    assert "never expire" in check.message and "uses 106 %" not in check.message, "one reason is told once"
    assert measured(monkeypatch, Wire({**INFO, "maxmemory": 1000}, probe=oom)).remedy == "", (
        "nothing of the cache's is there to be purged"
    )


@pytest.mark.parametrize(
    ("info", "writes"),
    [
        ({}, "not tried"),
        ({"loading": None}, "not tried"),
        ({"role": "slave"}, "refused: READONLY"),
        ({"loading": 1}, "refused: LOADING"),
        ({"used_memory": 1000, "maxmemory": 1000}, "refused: OOM"),
        ({"used_memory": 999, "maxmemory": 1000}, "not tried"),
        ({"used_memory": 1000, "maxmemory": 1000, "maxmemory_policy": "allkeys-lru"}, "not tried"),
    ],
)
def test_a_user_who_may_not_write_learns_what_info_tells(
    monkeypatch: pytest.MonkeyPatch, info: t.Dict[str, t.Any], writes: str
) -> None:
    denied = library.exceptions.NoPermissionError("this user has no permissions to run the 'setrange' command")
    told = {name: value for name, value in {**INFO, **info}.items() if value is not None}
    check = measured(monkeypatch, Wire(told, probe=denied))
    assert check.details["writes"] == writes
    assert (check.status in ("critical", "emergency")) is (
        writes.startswith("refused") or info.get("used_memory") == 999
    )
    assert "takes writes;" not in check.message and check.status != "ok", (
        "a write that was not tried is none that succeeded"
    )
    assert ("could not be tried: grant +setrange" in check.message) is (writes == "not tried")


def test_a_right_that_is_missing_is_named_and_nothing_is_called_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = library.exceptions.NoPermissionError("no permissions")
    check = measured(monkeypatch, Wire(denied))
    assert (check.status, check.message, check.remedy) == ("unknown", "The user may not ask for INFO: grant +info.", "")
    check = measured(monkeypatch, Wire(keys=denied))
    assert (check.status, check.value) == ("unknown", None) and "grant +scan and +pttl" in check.message


@pytest.mark.parametrize("command", ["ping", "select"])
def test_a_user_who_may_not_even_ask_is_no_server_that_is_down(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    denied = library.exceptions.NoPermissionError(f"this user has no permissions to run the '{command}' command")
    with pytest.raises(OpsError, match=rf"the right \+{command} is missing"):
        measured(monkeypatch, Wire(ping=denied))


@pytest.mark.parametrize("name", ["rdb_last_bgsave_status", "aof_last_write_status"])
def test_a_save_that_failed_is_a_warning(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check = measured(monkeypatch, Wire({**INFO, name: "err"}))
    assert (check.status, check.message) == (
        "warning",
        f"Redis cannot save its data ({name} is err): a restart would lose it.",
    )
    refused = measured(monkeypatch, Wire({**INFO, name: "err"}, probe=library.ResponseError("MISCONF x")))
    assert name not in refused.message


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (
            library.ConnectionError("Error 111 connecting to redis.internal:6379. Connection refused."),
            "does not answer: Error 111",
            "service_restart",
        ),
        (library.TimeoutError("Timeout connecting to server"), "does not answer: Timeout", "service_restart"),
        (
            library.AuthenticationError("invalid username-password pair or user is disabled."),
            "refuses the password (invalid username-password pair",
            "",
        ),
        (library.AuthenticationError("Authentication required."), "wants a password: check the one in its URL", ""),
        (
            library.ConnectionError("max number of clients reached"),
            "has no connection free (max number of clients reached)",
            "",
        ),
        (
            library.ResponseError("unknown command 'PING'"),
            "lacks a command (unknown command 'PING'): it is too old, or rename-command took it away",
            "",
        ),
        (
            library.ResponseError("DB index is out of range"),
            "answers with an error: DB index is out of range; check",
            "",
        ),
        (
            library.ResponseError("DENIED Redis is running in protected mode."),
            "answers with an error: DENIED Redis is running in protected mode; ",
            "",
        ),
        (
            library.ResponseError("BUSY Redis is busy running a script."),
            "is busy with a script (BUSY Redis is busy running a script): wait for it",
            "",
        ),
    ],
)
def test_who_does_not_let_us_in_is_critical(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, remedy: str
) -> None:
    check = measured(monkeypatch, Wire(ping=error))
    assert (check.status, check.value, check.remedy, check.details) == ("critical", None, remedy, {})
    assert check.message.startswith("Redis at redis://:***@redis.internal:6379/0 " + words)


def test_a_server_that_is_gone_in_between_is_critical(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = library.ConnectionError("Connection closed by server.")
    assert measured(monkeypatch, Wire(gone)).status == "critical"
    assert measured(monkeypatch, Wire(probe=gone)).status == "critical"
    assert measured(monkeypatch, Wire(keys=gone)).status == "critical"


@pytest.mark.parametrize(
    "inner", [socket.gaierror(-2, "Name or service not known"), PermissionError(13, "Permission denied")]
)
def test_what_is_our_fault_is_unknown(monkeypatch: pytest.MonkeyPatch, inner: Exception) -> None:
    error = library.ConnectionError("Error connecting.")
    error.__cause__ = inner
    with pytest.raises(OpsError, match="cannot be asked: Error connecting. Check host"):
        measured(monkeypatch, Wire(ping=error))


@pytest.mark.parametrize("url", ["nonsense://h", "redis://h/eins", "redis://h:port/0"])
def test_a_url_that_is_none_is_our_fault(url: str) -> None:
    with pytest.raises(OpsError):
        redis_check.check(url)


#: What each refusal means and what helps, by hand: a person reads these words in the middle of the night.
REFUSALS = {
    "OOM": (
        "its memory is full and nothing may be evicted",
        "remove what is not needed, or raise maxmemory",
        "cache_purge",
    ),
    "MISCONF": (
        "it cannot save its data to disk",
        "free space on its disk, or correct the rights of its directory",
        "disk_cleanup",
    ),
    "READONLY": ("it is a replica", "give the URL of the primary", ""),
    "NOREPLICAS": ("too few replicas are connected (min-replicas-to-write)", "bring the replicas back", ""),
    "LOADING": ("it still loads its data", "wait: a restart would begin anew", ""),
    "MASTERDOWN": (
        "its primary is gone and it may not serve what it has",
        "bring the primary back, or promote this one",
        "",
    ),
    "CLUSTERDOWN": ("the cluster is down", "bring the missing nodes back", ""),
    "TRYAGAIN": ("the cluster moves these keys to another node", "wait until it is done", ""),
}


def test_what_a_refusal_means_and_what_helps() -> None:
    assert {code: dataclasses.astuple(refused) for code, refused in redis_errors.WRITE_REFUSALS.items()} == REFUSALS
    assert redis_check.WRITE_PROBE == ("SETRANGE", "pam:cache:wheels-ops-write-probe", "0", "")


@pytest.mark.parametrize(
    ("info", "tried", "code"),
    [
        ({}, False, ""),
        (INFO, False, ""),
        ({**INFO, "loading": 1}, False, "LOADING"),
        ({**INFO, "loading": 1}, True, ""),
        ({**INFO, "role": "slave"}, False, "READONLY"),
        ({**INFO, "maxmemory": 500}, False, "OOM"),
        ({**INFO, "maxmemory": 501}, False, ""),
        ({**INFO, "maxmemory": 500, "maxmemory_policy": "allkeys-lru"}, False, ""),
        ({"used_memory": 5, "maxmemory": 5}, False, "OOM"),
    ],
)
def test_what_info_tells_of_refused_writes(info: t.Dict[str, t.Any], tried: bool, code: str) -> None:
    assert redis_check._refusal_by(info, tried) == code


def test_what_info_does_not_tell_is_nothing() -> None:
    facts = redis_check._facts({"redis_version": "7", "used_memory": 1, "connected_clients": 2})
    assert facts == {
        "version": "7",
        "used_memory_bytes": 1,
        "maxmemory_percent": None,
        "maxmemory_policy": "noeviction",
        "hit_rate_percent": None,
        "evicted_keys": 0,
        "expired_keys": 0,
        "connected_clients": 2,
        "role": "",
    }
    assert redis_check._facts({**INFO, "keyspace_hits": 2, "keyspace_misses": 1})["hit_rate_percent"] == 66.7
    assert redis_check._facts({}) == {}


def test_no_more_keys_are_looked_at_than_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wire, "pipeline", lambda _self, transaction: Pipe({b"user_profile:1": 5}))
    keys = [(b"other", 5)] * 200_600
    assert measured(monkeypatch, Wire(keys=keys)).details["scanned"] == 200_000
    assert measured(monkeypatch, Wire(keys=keys[:1200]), max_keys=600).details["scanned"] == 1000
    client = Wire(keys=[*keys[:20_000], (b"user_profile:1", 5)])
    assert redis_check.remedy_helps("OOM", client) is False
    assert redis_check.remedy_helps("OOM", Wire(keys=[*keys[:19_999], (b"user_profile:1", 5)])) is True
    assert redis_check.remedy_helps("OOM", Wire(keys=library.ConnectionError("gone"))) is False
    assert redis_check.remedy_helps("MISCONF", client) is True


def test_only_the_first_sentence_of_a_refused_password_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    error = library.AuthenticationError("WRONGPASS invalid username-password pair. More of it")
    check = measured(monkeypatch, Wire(ping=error))
    assert "refuses the password (WRONGPASS invalid username-password pair): check the one in its URL" in check.message
