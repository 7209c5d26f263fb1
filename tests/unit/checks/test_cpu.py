# SPDX-License-Identifier: GPL-3.0-or-later
"""How busy the host or its services are, how long its event loop stalls, and what is said of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import types
import typing as t
from pathlib import Path

import pytest
import requests

from tests.support import transport
from tests.support.container_host import REPOSITORY
from tests.support.waiting import wait_until
from wheels_ops.checks import cpu
from wheels_ops.checks.context import HostContext, Options
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check
from wheels_ops.health.thresholds import Thresholds
from wheels_ops.host import memory_pressure, processes

URL = "http://backend:8000"
CPU, RESPONSE = Thresholds(70, 85), Thresholds(500, 1000)
TICKS = os.sysconf("SC_CLK_TCK")


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: t.List[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cpu, "time", clock)
    return clock


def _files(monkeypatch: pytest.MonkeyPatch, contents: t.Dict[str, str]) -> None:
    def opened(path: str, **_: t.Any) -> io.StringIO:
        if path not in contents:
            raise FileNotFoundError(2, "No such file or directory", path)
        return io.StringIO(contents[path])

    for module in (cpu, memory_pressure, processes):
        monkeypatch.setattr(module, "open", opened, raising=False)


def test_ticks_of_the_host_are_those_of_all_cpus_without_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    """user nice system idle iowait irq softirq steal guest guest_nice: guests are in user already (proc(5))."""
    _files(
        monkeypatch,
        {"/proc/stat": "cpu  1 20 300 4000 50000 600000 7000000 80000000 5 6\ncpu0 9 9 9 9 9 9 9 9 9 9\n"},
    )
    assert cpu._host_ticks() == (87_600_321, 87_654_321)


def test_ticks_of_processes_are_those_of_user_and_system(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "{} (a ) name) S 1 2 3 4 5 6 7 8 9 10 {} {} 500 600 20 0 1 0 99"
    _files(monkeypatch, {"/proc/7/stat": line.format(7, 30, 4), "/proc/9/stat": line.format(9, 200, 1000)})
    assert cpu._process_ticks([7]) == 34
    assert cpu._process_ticks([7, 8, 9]) == 1234
    assert cpu._process_ticks([]) == 0


def test_pressure_is_the_share_of_the_last_ten_seconds(tmp_path: Path) -> None:
    path = tmp_path / "cpu"
    path.write_text(
        "some avg10=12.34 avg60=5.00 avg300=1.00 total=7\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n",
    )
    assert cpu.pressure(str(path)) == 12.34
    for content in ("", "nothing\n", "some avg10=much avg60=1\n", "some avg10="):
        path.write_text(content)
        assert cpu.pressure(str(path)) is None
    assert cpu.pressure(str(tmp_path / "absent")) is None


def test_pressure_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    _files(monkeypatch, {"/proc/pressure/cpu": "some avg10=3.50 avg60=5.00 avg300=1.00 total=7\n"})
    assert cpu.pressure() == 3.5


class Application:
    """Serves a heavy request until the last of the light ones is there; each of these takes its milliseconds."""

    def __init__(self, clock: Clock, milliseconds: t.Sequence[float], heavy: t.Optional[Exception] = None) -> None:
        self.clock, self.milliseconds, self.heavy = clock, list(milliseconds), heavy
        self.paths: t.List[str] = []
        self.ended = threading.Event()

    def __call__(self, request: requests.PreparedRequest) -> transport.Answer:
        assert request.url is not None and request.url.startswith(URL)
        path = request.url[len(URL) :]
        self.paths.append(path)
        if path == "/heavy":
            assert self.ended.wait(30)
            if self.heavy:
                raise self.heavy
        else:
            self.clock.now += self.milliseconds.pop(0) / 1000
            if not self.milliseconds:
                self.milliseconds.append(0)
                self.ended.set()
        return 200, "", {}


@pytest.mark.parametrize("milliseconds", [[9000, 100, 700, 200], [0, 700, 100], [3, 1, 700]])
def test_a_stall_is_the_longest_light_answer_while_the_heavy_one_is_served(
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    milliseconds: t.List[float],
) -> None:
    """The first one pays for the connection's set-up and does not count."""
    application = Application(clock, milliseconds)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    sent = transport.answer(monkeypatch, application)
    assert cpu.stall_ms(URL, "/heavy", "/light") == pytest.approx(700)
    assert {request["proxies"].get("http") for request in sent} == {None}
    assert application.paths[0] == "/light" and application.paths.count("/heavy") == 1


def test_light_answers_follow_each_other_at_a_distance(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A check that asks without a pause is the load that it measures."""
    waits: t.List[float] = []
    real = cpu.concurrent.futures.wait

    def wait(futures: t.Any, timeout: float) -> t.Any:
        waits.append(timeout)
        return real(futures, 0.001)

    monkeypatch.setattr(cpu.concurrent.futures, "wait", wait)
    transport.answer(monkeypatch, Application(clock, [1] * 5))
    cpu.stall_ms(URL, "/heavy", "/light")
    assert len(waits) >= 3 and set(waits) == {0.05}


@pytest.mark.parametrize("heavy", [False, True])
def test_an_application_that_does_not_answer_stalls_for_no_known_time(
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    heavy: bool,
) -> None:
    error = requests.ConnectionError("refused")

    def refuse(request: requests.PreparedRequest) -> transport.Answer:
        raise error

    transport.answer(monkeypatch, Application(clock, [1, 1], error) if heavy else refuse)
    with pytest.raises(OpsError, match=f"{URL} does not answer: ConnectionError"):
        cpu.stall_ms(URL, "/heavy", "/light")


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_a_proxy_answers_for_a_backend_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, status: int
) -> None:
    transport.answer(monkeypatch, lambda request: (status, "", {}))
    with pytest.raises(OpsError, match=f"{URL}/light answers {status}"):
        cpu.stall_ms(URL, "/heavy", "/light")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> t.Callable[..., Check]:
    """Checks a host of four cores on which so many percent of all CPU time were used within two seconds."""

    def measured(
        *,
        host_percent: float = 0.0,
        services_percent: float = 0.0,
        stall: t.Union[float, Exception, None] = None,
        yielding: float = 0.0,
        steal: float = 0.0,
        throttled: int = 0,
        **options: t.Any,
    ) -> Check:
        whole = 4 * TICKS * 2
        readings = iter([(5000, 90_000), (5000 + whole * host_percent / 100, 90_000 + whole)])
        ticks = iter([700, 700 + whole * services_percent / 100])

        def stalled(base_url: str, heavy: str, light: str, **_: t.Any) -> float:
            assert (base_url, heavy, light) == (URL, "/heavy", "/light")
            clock.now += 0.5
            if isinstance(stall, Exception):
                raise stall
            assert stall is not None
            return stall

        monkeypatch.setattr(cpu, "_host_ticks", lambda: next(readings))
        monkeypatch.setattr(cpu, "_process_ticks", lambda pids: next(ticks) if list(pids) == [7, 9] else 0)
        quotas = iter([{"/web": (100, 7)}, {"/web": (120, 7 + throttled)}])
        monkeypatch.setattr(cpu.cpu_time, "look", lambda pids: list(pids))
        monkeypatch.setattr(cpu.cpu_time, "shares", lambda before, after: (yielding, steal))
        monkeypatch.setattr(cpu.cpu_time, "quotas", lambda pids: next(quotas))
        monkeypatch.setattr(cpu.cpu_time, "pressure", lambda pids: {"/web": 4.0})
        monkeypatch.setattr(cpu, "stall_ms", stalled)
        monkeypatch.setattr(cpu, "pressure", lambda: 1.5)
        monkeypatch.setattr(cpu, "holders", lambda pids: ["hog (process 11)"])
        monkeypatch.setattr(
            cpu,
            "os",
            types.SimpleNamespace(cpu_count=lambda: 4, sysconf=os.sysconf, getloadavg=lambda: (1.0, 2.0, 3.0)),
        )
        if stall is not None:
            options = {"base_url": URL, "heavy": "/heavy", "light": "/light", **options}
        return cpu.check(iter([7, 9]), **options)

    return measured


@pytest.mark.parametrize(
    ("percent", "status", "remedy"),
    [(70, "ok", ""), (70.5, "warning", "celery_throttle"), (85.5, "critical", "celery_throttle")],
)
def test_the_host_is_graded(
    host: t.Callable[..., Check],
    clock: Clock,
    percent: float,
    status: str,
    remedy: str,
) -> None:
    check = host(host_percent=percent, services_percent=40)
    assert (check.name, check.status, check.remedy, check.value, check.unit) == ("cpu", status, remedy, percent, "%")
    assert check.message == f"{percent:.1f} % CPU."
    assert check.thresholds == {"warning": 70, "critical": 85, "emergency": None}
    assert check.details == {
        "host_percent": percent,
        "services_percent": 40,
        "load": (1.0, 2.0, 3.0),
        "cores": 4,
        "pressure_avg10": 1.5,
        "yielding_percent": 0.0,
        "steal_percent": 0.0,
        "throttled_percent": {"/web": 0.0},
        "groups_pressure_avg10": {"/web": 4.0},
        "stall_ms": None,
    }
    assert clock.slept == [2.0]


@pytest.mark.parametrize(
    ("host_percent", "services_percent", "held", "remedy"),
    [
        (95, 5, True, ""),
        (70, 20, True, ""),
        (69, 20, False, "managed_files"),
        (95, 60, False, "managed_files"),
        (30, 5, False, "managed_files"),
    ],
)
def test_a_slow_answer_is_not_blamed_on_the_backend_while_others_hold_the_processor(
    host: t.Callable[..., Check], host_percent: float, services_percent: float, held: bool, remedy: str
) -> None:
    check = host(host_percent=host_percent, services_percent=services_percent, stall=1500, scope="services")
    others = host_percent - services_percent
    words = f"other processes than the services hold {others:.0f} % of the CPU, most of it hog (process 11)."
    assert (check.status, check.remedy, words in check.message) == ("critical", remedy, held)


def test_services_that_end_meanwhile_use_no_less_than_nothing(host: t.Callable[..., Check]) -> None:
    check = host(services_percent=-5, scope="services")
    assert (check.value, check.message, check.details["services_percent"]) == (0.0, "0.0 % CPU.", 0.0)


def test_the_holders_of_the_processor_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes: on a busy machine others may hold more."""
    with subprocess.Popen([sys.executable, "-m", "tests.support.hog"], cwd=REPOSITORY) as hog:
        try:
            monkeypatch.setattr(processes, "pids", lambda: [hog.pid, os.getppid()])
            wait_until(lambda: any(f"(process {hog.pid})" in each for each in cpu.holders([])), what="the hog")
            assert not any(f"(process {hog.pid})" in each for each in cpu.holders([hog.pid]))
        finally:
            hog.kill()


def test_what_yields_is_not_counted_so_that_the_relief_ends_the_alarm(host: t.Callable[..., Check]) -> None:
    assert host(host_percent=99).status == "critical"
    check = host(host_percent=99, yielding=80)
    assert (check.status, check.value, check.remedy, check.details["host_percent"]) == ("ok", 19, "", 19)
    assert check.message == "19.0 % CPU; another 80.0 % is used by processes that yield (nice, idle class)."


@pytest.mark.parametrize(("percent", "steal", "remedy"), [(90, 40, ""), (90, 10, "celery_throttle")])
def test_steal_is_named_and_no_remedy_of_this_host_for_it(
    host: t.Callable[..., Check], percent: float, steal: float, remedy: str
) -> None:
    check = host(host_percent=percent, steal=steal)
    assert (check.status, check.remedy) == ("critical", remedy)
    assert f"of which {steal:.1f} % went to other guests" in check.message


@pytest.mark.parametrize(("throttled", "status"), [(2, "ok"), (3, "warning"), (11, "critical")])
def test_a_quota_that_throttles_is_seen(host: t.Callable[..., Check], throttled: int, status: str) -> None:
    """Of 20 periods; a quota keeps a service from the CPU although the host is idle."""
    check = host(host_percent=10, throttled=throttled)
    assert (check.status, check.remedy) == (status, "")
    assert check.details["throttled_percent"] == {"/web": throttled * 5.0}
    assert ("/web used up its CPU quota" in check.message) is (status != "ok")


@pytest.mark.parametrize(("percent", "status"), [(70, "ok"), (70.5, "warning"), (85.5, "critical")])
def test_the_services_are_graded_in_percent_of_all_cores(
    host: t.Callable[..., Check],
    percent: float,
    status: str,
) -> None:
    check = host(host_percent=99, services_percent=percent, scope="services")
    assert (check.status, check.value, check.details["host_percent"]) == (status, percent, 99)
    assert check.message == f"{percent:.1f} % CPU."


def test_limits_of_the_caller_count(host: t.Callable[..., Check]) -> None:
    check = host(host_percent=6, thresholds=Thresholds(2, 5))
    assert (check.status, check.thresholds) == ("critical", {"warning": 2, "critical": 5, "emergency": None})
    check = host(stall=6, response=Thresholds(2, 5))
    assert (check.status, check.thresholds) == ("critical", {"warning": 2, "critical": 5, "emergency": None})


def test_the_sample_is_as_long_as_was_asked_for(host: t.Callable[..., Check], clock: Clock) -> None:
    host(sample_s=0.25)
    host(stall=100)  # half a second is over
    host(stall=100, sample_s=0.1)
    assert clock.slept == [0.25, 1.5, 0]


def test_a_longer_measurement_does_not_make_services_busier(host: t.Callable[..., Check]) -> None:
    assert host(services_percent=40, sample_s=4.0).details["services_percent"] == 20


def test_percentages_have_one_digit(host: t.Callable[..., Check]) -> None:
    check = host(host_percent=12.3456, services_percent=65.4321)
    assert (check.value, check.details["host_percent"], check.details["services_percent"]) == (12.3, 12.3, 65.4)


@pytest.mark.parametrize(
    ("stall", "status", "remedy"),
    [(500, "ok", ""), (500.6, "warning", "managed_files"), (1000.6, "critical", "managed_files")],
)
def test_a_stall_is_graded_as_a_response_time(
    host: t.Callable[..., Check],
    stall: float,
    status: str,
    remedy: str,
) -> None:
    check = host(host_percent=30, stall=stall)
    assert (check.status, check.remedy, check.value, check.unit) == (status, remedy, round(stall), "ms stall")
    assert check.thresholds == {"warning": 500, "critical": 1000, "emergency": None}
    assert check.details["stall_ms"] == stall
    for words in ("30.0 % CPU", f"/light takes up to {stall:.0f} ms while /heavy is served"):
        assert words in check.message


@pytest.mark.parametrize(
    ("percent", "stall", "status", "remedy", "subject"),
    [
        (80, 2000, "critical", "celery_throttle", "/light"),
        (90, 700, "critical", "celery_throttle", "90.0 %"),
        (80, 10, "warning", "celery_throttle", "80.0 %"),
    ],
)
def test_the_worse_of_use_and_stall_counts(
    host: t.Callable[..., Check],
    percent: float,
    stall: float,
    status: str,
    remedy: str,
    subject: str,
) -> None:
    check = host(host_percent=percent, stall=stall)
    assert (check.status, check.remedy) == (status, remedy)
    assert check.message.startswith(subject), check.message


@pytest.mark.parametrize(
    ("percent", "status", "remedy", "first"),
    [(10, "unknown", "", URL), (75, "unknown", "", URL), (90, "critical", "celery_throttle", "90.0 %")],
)
def test_an_application_that_does_not_answer_hides_no_busy_host(
    host: t.Callable[..., Check],
    percent: float,
    status: str,
    remedy: str,
    first: str,
) -> None:
    check = host(
        host_percent=percent,
        stall=OpsError(f"{URL} does not answer: ConnectionError.", hint="The http check says more."),
    )
    assert (check.status, check.remedy, check.value, check.unit) == (status, remedy, percent, "%")
    assert check.message.startswith(first)
    assert f"{URL} does not answer" in check.message and f"{percent:.1f} % CPU" in check.message
    assert check.details["stall_ms"] is None


@pytest.mark.parametrize("known", [True, False])
def test_the_use_of_services_that_nobody_names_is_not_there(
    host: t.Callable[..., Check], monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Zero would say that they use nothing."""
    result = host(host_percent=10, services_percent=5)
    monkeypatch.setattr(cpu, "check", lambda pids, **_options: result)

    def pids() -> t.Dict[str, t.Set[int]]:
        if known:
            return {"web": {7, 9}}
        raise OpsError("systemctl does not answer.")

    context = t.cast("HostContext", types.SimpleNamespace(pids=pids))
    check = cpu.measure(context, Options())
    assert check.details["services_percent"] == (5.0 if known else None)
    assert check.details["host_percent"] == 10.0


@pytest.mark.parametrize("options", [{"base_url": URL}, {"heavy": "/heavy"}])
def test_without_a_url_and_a_heavy_request_the_use_alone_is_measured(
    host: t.Callable[..., Check],
    options: t.Dict[str, str],
) -> None:
    assert host(host_percent=30, **options).message == "30.0 % CPU."


def test_a_kernel_that_counts_no_core_or_no_tick(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(cpu, "_host_ticks", lambda: (7, 9))
    monkeypatch.setattr(cpu, "_process_ticks", lambda pids: int(clock.now - 1000) * TICKS)
    monkeypatch.setattr(
        cpu,
        "os",
        types.SimpleNamespace(cpu_count=lambda: None, sysconf=os.sysconf, getloadavg=os.getloadavg),
    )
    check = cpu.check([7])
    assert (check.status, check.value, check.details["cores"], check.details["services_percent"]) == ("ok", 0, 1, 100)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(OpsError):
        cpu.check([], base_url="backend:8000", heavy="/heavy")
