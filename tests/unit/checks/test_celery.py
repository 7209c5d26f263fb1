# SPDX-License-Identifier: GPL-3.0-or-later
"""How the celery check grades what it sees: the broker's answers are given, the status, the message and the remedy are
looked at.
"""

from __future__ import annotations

import json
import time
import typing as t

import pytest
import redis

from wheels_ops.checks import celery
from wheels_ops.core.results import OpsError
from wheels_ops.health.thresholds import Thresholds
from wheels_ops.services.celery_workers import BUSY, CONSUMING, HUNG, STOPPED, UNCLEAR, Silence

STATS = {"pid": 7, "uptime": 60, "pool": {"max-concurrency": 4}, "total": {"demo": 9}, "rusage": {"maxrss": 51200}}


class Broker:
    """What Redis and the workers would say."""

    def __init__(self) -> None:
        self.nodes: t.Dict[str, t.Any] = {"one@host": STATS}
        self.counts: t.Dict[str, int] = {"unacked": 0}
        self.silent: t.List[Silence] = []
        self.heartbeat: t.Optional[str] = json.dumps(
            {"at": time.time() - 3, "pid": 5, "host": "h", "last_sent": "x", "factor": 1, "other": "no"}
        )
        self.throttle: t.Dict[str, str] = {}
        self.beats: t.Union[t.Dict[int, t.List[str]], Exception] = {}
        self.bound = ["celery", ""]
        self.error: t.Optional[Exception] = None
        self.closed = 0
        self.timeout = 0.0
        self.waited: t.List[float] = []

    def ping(self) -> None:
        if self.error:
            raise self.error

    def get(self, key: str) -> t.Optional[str]:
        assert key == "pam:beat:heartbeat"
        return self.heartbeat

    def type(self, key: str) -> str:
        return "hash" if self.throttle else "none"

    def hgetall(self, key: str) -> t.Dict[str, str]:
        return self.throttle

    def ttl(self, key: str) -> int:
        return 55

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    state = Broker()

    class Watch:
        def __init__(self, client: t.Any, port: int) -> None:
            assert (client, port) == (state, 6390)

        def wait(self, seconds: float) -> None:
            state.waited.append(seconds)

        def silent(self) -> t.List[Silence]:
            return state.silent

    def workers(client: t.Any, *, timeout: float, wanted: t.Callable[[t.Dict[str, t.Any]], bool]) -> t.Dict[str, t.Any]:
        state.enough = [count for count in range(4) if wanted(dict.fromkeys(map(str, range(count))))]  # type: ignore[attr-defined]  # read by one test
        return state.nodes

    def beats_of(url: str, _members: t.Collection[int]) -> t.Dict[int, t.List[str]]:
        assert url.endswith("127.0.0.1:6390/0")
        if isinstance(state.beats, Exception):
            raise state.beats
        return state.beats

    def connect(url: str, *, timeout: float) -> Broker:
        state.timeout = timeout
        return state

    monkeypatch.setattr(celery.broker, "connect", connect)
    monkeypatch.setattr(celery.broker, "workers", workers)
    monkeypatch.setattr(celery.broker, "queues", lambda client, named: sorted({*named, *state.bound}))
    monkeypatch.setattr(celery.broker, "waiting_tasks", lambda client, named: state.counts)
    monkeypatch.setattr(celery.celery_workers, "Watch", Watch)
    monkeypatch.setattr(celery.gates, "beats_of", beats_of)
    return state


def check(**options: t.Any) -> t.Any:
    return celery.check("redis://:word@127.0.0.1:6390/0", **{"timeout": 2.0, **options})


def test_everything_answers(broker: Broker) -> None:
    found = check()
    assert (found.name, found.status, found.value, found.unit, found.remedy) == ("celery", "ok", 0, "waiting tasks", "")
    assert found.thresholds == {"warning": 1000, "critical": 10_000, "emergency": None}
    assert found.details["workers"] == {
        "one@host": {"pid": 7, "uptime_s": 60, "concurrency": 4, "tasks_done": {"demo": 9}, "max_rss_kb": 51200},
    }
    assert found.details["silent"] == [] and found.details["bound_queues"] == ["celery"] and broker.waited == []
    assert broker.closed == 1


@pytest.mark.parametrize(
    ("counts", "status", "remedy"),
    [
        ({"celery": 1000}, "ok", ""),
        ({"celery": 1001}, "warning", "celery_throttle"),
        ({"celery": 600, "email": 401}, "warning", "celery_throttle"),
        ({"celery": 10_000}, "warning", "celery_throttle"),
        ({"celery": 10_001}, "critical", "celery_throttle"),
        ({"unacked": 20_000}, "ok", ""),
    ],
)
def test_what_waits_is_graded_and_what_is_worked_on_is_not(
    broker: Broker, counts: t.Dict[str, int], status: str, remedy: str
) -> None:
    broker.counts = {"unacked": 0, **counts}
    found = check()
    assert (found.status, found.remedy) == (status, remedy)
    assert found.value == sum(counts.get(name, 0) for name in ("celery", "email"))
    assert found.message == (
        f"1 workers answer, beat is alive, {found.value} tasks wait."
        if status == "ok"
        else f"{found.value} tasks wait."
    )
    assert found.details["queues"] == broker.counts


def test_what_nobody_says(broker: Broker) -> None:
    broker.heartbeat, broker.nodes = None, {}
    found = celery.check("redis://127.0.0.1:6390/0")
    assert found.message == "0 of 1 workers answer; beat gives no sign of life." and broker.timeout == 4.0
    check(timeout=0.5)
    assert broker.timeout == 2.0 and broker.waited == [1.0, 0.5]


def test_limits_of_the_caller(broker: Broker) -> None:
    broker.counts = {"celery": 6}
    assert check(waiting=Thresholds(5, 7)).status == "warning"
    assert check(waiting=Thresholds(6, 7)).status == "ok"


@pytest.mark.parametrize(("expected", "enough"), [(0, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3])])
def test_it_asks_until_as_many_answer_as_are_expected(broker: Broker, expected: int, enough: t.List[int]) -> None:
    check(expect_workers=expected)
    assert broker.enough == enough  # type: ignore[attr-defined]  # set by the fixture


@pytest.mark.parametrize(
    ("silent", "status", "remedy"),
    [
        ([], "critical", "service_restart"),
        ([Silence(STOPPED, "reason", 9)], "critical", "service_restart"),
        ([Silence(HUNG, "reason", 9, True)], "critical", "service_restart"),
        ([Silence(BUSY, "reason", 9, True)], "warning", ""),
        ([Silence(CONSUMING, "reason", 9, True)], "ok", ""),
        ([Silence(CONSUMING, "reason", 9, True), Silence(HUNG, "other", 8, True)], "ok", ""),
        ([Silence(BUSY, "reason", 9, True), Silence(HUNG, "other", 8, True)], "warning", ""),
        ([Silence(UNCLEAR, "reason")], "warning", ""),
        # Busy with a task that may take its time is no fault; with one that takes longer it is.
        ([Silence(BUSY, "reason", 9, True, 12.0)], "ok", ""),
        ([Silence(BUSY, "reason", 9, True, 3600.0)], "ok", ""),
        ([Silence(BUSY, "reason", 9, True, 3601.0)], "warning", ""),
        ([Silence(BUSY, "reason", 9, True, 31.0, 30.0)], "warning", ""),
        ([Silence(BUSY, "reason", 9, True, 12.0), Silence(HUNG, "other", 8, True)], "ok", ""),
        ([Silence(HUNG, "other", 8, True), Silence(BUSY, "reason", 9, True)], "warning", ""),
    ],
)
def test_nobody_answers(broker: Broker, silent: t.List[Silence], status: str, remedy: str) -> None:
    broker.nodes, broker.silent = {}, silent
    found = check()
    assert (found.status, found.remedy) == (status, remedy)
    assert "0 of 1 workers answer" in found.message and all(entry.why in found.message for entry in silent)
    assert found.details["silent"] == [
        {"pid": entry.pid, "verdict": entry.verdict, "why": entry.why} for entry in silent
    ]
    assert broker.waited == [1.0]


def test_a_queue_that_is_too_long_stays_what_it_is_beside_a_silent_worker(broker: Broker) -> None:
    broker.nodes, broker.silent, broker.counts = {}, [Silence(BUSY, "reason", 9, True)], {"celery": 20_000}
    found = check()
    assert (found.status, found.remedy) == ("critical", "celery_throttle")


@pytest.mark.parametrize(
    ("silent", "shown"),
    [
        ([Silence(BUSY, "a", 7, True), Silence(BUSY, "b", 9, True)], [9]),  # 7 is the one that answered
        ([Silence(BUSY, "a"), Silence(BUSY, "b")], [0]),  # neither is seen: one of them answered
        ([Silence(BUSY, "a")], []),
        ([Silence(BUSY, "a", 7, True), Silence(BUSY, "b")], [0]),
        ([Silence(BUSY, "a", 9, True), Silence(BUSY, "b")], [9]),  # the one that answered is on another host
    ],
)
def test_one_that_answered_is_not_taken_for_a_silent_one(
    broker: Broker, silent: t.List[Silence], shown: t.List[int]
) -> None:
    broker.silent = silent
    found = check(expect_workers=2)
    assert [entry["pid"] for entry in found.details["silent"]] == shown
    assert found.status == ("warning" if shown else "critical")


@pytest.mark.parametrize("expect", [True, False])
def test_beat(broker: Broker, expect: bool) -> None:
    broker.heartbeat = None
    found = check(expect_beat=expect)
    assert (found.status, found.remedy) == (("warning", "service_restart") if expect else ("ok", ""))
    assert ("beat gives no sign of life" in found.message) is expect
    assert found.details["beat"] == {} and "alive" not in found.message
    broker.beats = OpsError("not allowed")
    assert check(expect_beat=expect).details["beat"] == {}
    broker.beats = {9: ["beat"]}
    found = check(expect_beat=expect)
    assert found.status == "ok" and found.details["beat"] == {"source": "process", "pids": [9]}


@pytest.mark.parametrize("heartbeat", [True, False])
def test_two_beats_are_named_with_both_processes(broker: Broker, heartbeat: bool) -> None:
    broker.heartbeat = broker.heartbeat if heartbeat else None
    broker.beats = {9: ["celery", "-A", "demo", "beat"], 4: ["celery", "-A", "demo", "worker", "-B"]}
    found = check()
    assert found.status == "critical" and found.remedy == ""
    assert "beat runs 2 times" in found.message and "process 4 (celery -A demo worker -B)" in found.message
    assert "process 9" in found.message and found.details["beat"]["pids"] == [4, 9]


def test_a_host_without_worker_and_beat_is_asked_for_neither(broker: Broker) -> None:
    broker.nodes, broker.heartbeat, broker.counts = {}, None, {"email": 3, "unacked": 0}
    found = check(expect_workers=0, expect_beat=False)
    assert (found.status, found.message) == ("ok", "No worker is expected here, 3 tasks wait.")


@pytest.mark.parametrize("text", ["no JSON", "{}", '{"at": "x"}', "[1]"])
def test_a_heartbeat_that_cannot_be_read_is_a_heartbeat(broker: Broker, text: str) -> None:
    broker.heartbeat = text
    found = check()
    assert found.status == "ok" and found.details["beat"] == {"source": "heartbeat", "readable": False}


def test_the_heartbeat_tells_its_age(broker: Broker) -> None:
    beat = check().details["beat"]
    assert beat.pop("age_s") == pytest.approx(3, abs=2)
    assert beat == {"source": "heartbeat", "pid": 5, "host": "h", "last_sent": "x", "factor": 1}
    broker.heartbeat = json.dumps({"at": time.time() + 500})
    assert check().details["beat"]["age_s"] == 0.0, "a clock that goes before"


def test_the_throttle_is_shown_with_what_is_left_of_it(broker: Broker) -> None:
    assert check().details["throttle"] == {}
    broker.throttle = {"level": "2"}
    assert check().details["throttle"] == {"level": "2", "expires_s": 55}


@pytest.mark.parametrize(
    ("error", "remedy", "said"),
    [
        (redis.ConnectionError("refused"), "service_restart", "does not answer: ConnectionError"),
        (redis.TimeoutError("late"), "service_restart", "does not answer: TimeoutError"),
        (redis.BusyLoadingError("LOADING Redis is loading"), None, "refuses writes (LOADING)"),
        (redis.ResponseError("MISCONF disk"), None, "refuses writes (MISCONF)"),
        (redis.AuthenticationError("WRONGPASS"), "", "refuses the password"),
        (
            redis.ConnectionError("max number of clients reached"),
            "",
            "has no connection free (max number of clients reached)",
        ),
        (
            redis.ResponseError("DB index is out of range"),
            "",
            "answers with an error: DB index is out of range; check the user and the database",
        ),
        (redis.ResponseError("DENIED Redis is running in protected mode."), "", "answers with an error: DENIED"),
        (redis.ResponseError("BUSY Redis is busy running a script."), "", "is busy with a script"),
    ],
)
def test_a_broker_that_does_not_work_is_critical(
    broker: Broker, error: Exception, remedy: t.Optional[str], said: str
) -> None:
    broker.error = error
    found = check()
    assert (found.status, found.value) == ("critical", None) and said in found.message and "word@" not in found.message
    assert (found.name, found.unit) == ("celery", "waiting tasks")
    assert found.remedy == remedy or (remedy is None and found.remedy != "service_restart"), (
        "a worker that is restarted could not write either"
    )
    assert found.details == {"workers": {}, "beat": {}} and broker.closed == 1


@pytest.mark.parametrize(
    ("keys", "ttls", "remedy"),
    [
        (["pam:cache:1"], [5], "cache_purge"),
        (["other", "pam:cache:1"], [-1], "cache_purge"),
        ([b"pam:cache:1"], [-1], "cache_purge"),
        (["celery-task-meta-1"], [], ""),
        ([], [], ""),
        (None, [], ""),
    ],
)
def test_a_full_broker_is_purged_only_where_the_cache_has_a_key(
    broker: Broker, keys: t.Optional[t.List[t.Union[str, bytes]]], ttls: t.List[int], remedy: str
) -> None:
    class Pipeline:
        def pttl(self, key: t.Union[str, bytes]) -> None:
            assert keys and key in keys

        def execute(self) -> t.List[int]:
            return ttls

    def scan(**_options: t.Any) -> t.Iterator[t.Union[str, bytes]]:
        if keys is None:
            raise redis.exceptions.NoPermissionError("scan")
        return iter(keys)

    broker.error = redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
    broker.scan_iter = scan  # type: ignore[attr-defined]  # asked for in this case alone
    broker.pipeline = lambda transaction: Pipeline()  # type: ignore[attr-defined]  # as above
    found = check()
    assert found.status == "critical" and found.remedy == remedy
    assert "refuses writes (OOM): its memory is full and nothing may be evicted" in found.message


def test_a_command_that_this_user_may_not_run_is_no_finding(broker: Broker) -> None:
    broker.error = redis.exceptions.NoPermissionError("User ops has no permissions to run the 'ping' command")
    with pytest.raises(OpsError, match=r"the right \+ping is missing"):
        check()
    assert broker.closed == 1
