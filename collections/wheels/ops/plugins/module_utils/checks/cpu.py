# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""CPU: how busy the host or its services are, and whether the application's event loop stalls."""

from __future__ import annotations

import concurrent.futures
import os
import time
import typing as t
from dataclasses import replace

from ..core.results import OpsError
from ..health.check import Check
from ..health.thresholds import DEFAULTS, Thresholds, worst
from ..host import cpu_time, memory_pressure, processes
from .context import HostContext, Options
from .http import require_url

#: Percent of a quota's periods in which it was used up. A judgement: now and then a burst meets its quota; one that
#: does so half of the time is slowed down all the time.
THROTTLED = Thresholds(10, 50)
#: Percent from which processes that yield, or other guests, are worth a word.
_WORTH_A_WORD = 1.0
#: What a proxy answers for a backend that does not: its time says nothing of the backend.
_ANSWERS_OF_A_PROXY = (502, 503, 504)
#: Percent of the CPU from which others than the services hold it, where they also have more than these.
_HELD = 50.0
#: Seconds in which it is measured which processes those are.
_LOOK = 0.2
#: How often the light endpoint is asked while the heavy one runs.
_PROBE_EVERY = 0.05


def _host_ticks() -> t.Tuple[int, int]:
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def _process_ticks(pids: t.Iterable[int]) -> int:
    every = (processes.stat(pid) for pid in pids)
    return sum(facts.user + facts.system for facts in every if facts is not None)  # None: it ended meanwhile


def holders(services: t.Collection[int]) -> t.List[str]:
    """The two processes that use the most CPU now, other than the services, as a person knows them."""
    pids = [pid for pid in processes.pids() if pid not in services and pid != os.getpid()]
    before, start = {pid: _process_ticks([pid]) for pid in pids}, time.monotonic()
    time.sleep(_LOOK)
    per_percent = os.sysconf("SC_CLK_TCK") * max(time.monotonic() - start, 0.001) / 100
    used = {pid: (_process_ticks([pid]) - ticks) / per_percent for pid, ticks in before.items()}
    busiest = sorted(used, key=lambda pid: (-used[pid], pid))[:2]
    return [f"{processes.program(pid)} (process {pid})" for pid in busiest if used[pid] >= _WORTH_A_WORD]


def pressure(path: str = "/proc/pressure/cpu") -> t.Optional[float]:
    """The share of the last ten seconds in which something waited for a CPU (PSI some avg10), None where the kernel
    does not say.
    """
    return (memory_pressure.stalls(path) or {}).get("some_avg10")


def stall_ms(base_url: str, heavy: str, light: str, *, timeout: float = 15.0) -> float:
    """The longest answer of a light endpoint, in ms, while a heavy one is served: what a stalled event loop costs
    others.
    """
    import requests

    def ask(path: str) -> float:
        start = time.monotonic()
        try:
            with requests.Session() as session:
                session.trust_env = False  # a proxy of the environment must not answer for the backend
                status = session.get(base_url + path, timeout=timeout).status_code
        except requests.RequestException as error:
            raise OpsError(
                f"{base_url} does not answer: {type(error).__name__}.", hint="The http check says more."
            ) from error
        if status in _ANSWERS_OF_A_PROXY:
            raise OpsError(f"{base_url}{path} answers {status}.", hint="The http check says more.")
        return (time.monotonic() - start) * 1000

    ask(light)  # the first answer pays for the connection's set-up on the server
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(ask, heavy)
        longest = 0.0
        while True:
            is_done = running.done()
            longest = max(longest, ask(light))
            if is_done:
                running.result()
                return longest
            concurrent.futures.wait([running], timeout=_PROBE_EVERY)


def check(
    pids: t.Iterable[int],
    *,
    scope: str = "host",
    sample_s: float = 2.0,
    base_url: str = "",
    heavy: str = "",
    light: str = "/health",
    thresholds: t.Optional[Thresholds] = None,
    response: t.Optional[Thresholds] = None,
) -> Check:
    """The worst of CPU use over ``sample_s`` seconds, of the stall that ``heavy`` causes, and of a quota that throttles
    the given processes.

    ``scope`` ``services`` measures the given processes instead of the host, in percent of all cores. What is used by
    processes that yield to them does not count (``cpu_time``). What the hypervisor gave to other guests does, but no
    remedy on this host is named for it.
    """
    limits, slow = thresholds or DEFAULTS["cpu"], response or DEFAULTS["response_time_ms"]
    members = list(pids)
    if base_url:
        require_url(base_url, light)
    cores = os.cpu_count() or 1
    busy, total = _host_ticks()
    earlier, quotas = cpu_time.look(members), cpu_time.quotas(members)
    ticks, start = _process_ticks(members), time.monotonic()
    stalled, silent = None, ""
    if base_url and heavy:
        try:
            stalled = stall_ms(base_url, heavy, light)
        except OpsError as error:  # the use of the CPU is measured all the same
            silent = str(error).rstrip(".")
    time.sleep(max(0.0, sample_s - (time.monotonic() - start)))
    elapsed = time.monotonic() - start
    busy_after, total_after = _host_ticks()
    yielding, steal = cpu_time.shares(earlier, cpu_time.look(members))
    host = max(0.0, 100.0 * (busy_after - busy) / max(1, total_after - total) - yielding)
    throttled = _throttled(quotas, cpu_time.quotas(members))
    # What ended meanwhile takes its time with it.
    used = max(0, _process_ticks(members) - ticks)
    services = 100.0 * used / os.sysconf("SC_CLK_TCK") / elapsed / cores
    percent = host if scope == "host" else services
    status = limits.status(percent)
    own = limits.status(percent - steal) if scope == "host" else status
    text = f"{percent:.1f} % CPU"
    if scope == "host" and steal >= _WORTH_A_WORD:
        text += f", of which {steal:.1f} % went to other guests of the hypervisor (steal)"
    if scope == "host" and yielding >= _WORTH_A_WORD:
        text += f"; another {yielding:.1f} % is used by processes that yield (nice, idle class)"
    parts = [text]
    if stalled is not None:
        stall = slow.status(stalled)
        # What made the status comes first.
        parts.insert(
            0 if worst([status, stall]) != status else 1,
            f"{light} takes up to {stalled:.0f} ms while {heavy} is served",
        )
        status = worst([status, stall])
    slowed = max(throttled, key=lambda path: throttled[path], default="")
    if slowed and THROTTLED.status(throttled[slowed]) != "ok":
        state = THROTTLED.status(throttled[slowed])
        parts.insert(
            0 if worst([status, state]) != status else 1,
            f"{slowed} used up its CPU quota in {throttled[slowed]:.0f} % of the periods; raise CPUQuota, or lower its"
            " load",
        )
        status = worst([status, state])
    if silent:
        parts.insert(0 if worst([status, "unknown"]) != status else 1, silent)
        status = worst([status, "unknown"])
    # A slow answer says nothing of the application while others hold the processor.
    others = max(0.0, host - services - steal)
    elsewhere = status not in ("ok", "unknown") and others >= max(_HELD, services)
    if elsewhere:
        names = " and ".join(holders(members))
        parts.append(
            f"other processes than the services hold {others:.0f} % of the CPU"
            + (f", most of it {names}" if names else "")
        )
    return Check(
        name="cpu",
        status=status,
        value=round(stalled, 0) if stalled is not None else round(percent, 1),
        unit="ms stall" if stalled is not None else "%",
        thresholds=slow.as_dict() if stalled is not None else limits.as_dict(),
        message="; ".join(parts) + ".",
        remedy=(
            ""
            if status in ("ok", "unknown")
            else "managed_files"
            if stalled is not None and limits.status(percent) == "ok" and slow.status(stalled) != "ok" and not elsewhere
            else ""
            if own == "ok"  # nothing on this host can be made to yield
            else "celery_throttle"
        ),
        details={
            "host_percent": round(host, 1),
            "services_percent": round(services, 1),
            "load": os.getloadavg(),
            "cores": cores,
            "pressure_avg10": pressure(),
            "yielding_percent": round(yielding, 1),
            "steal_percent": round(steal, 1),
            "throttled_percent": {path: round(share, 1) for path, share in throttled.items()},
            "groups_pressure_avg10": cpu_time.pressure(members),
            "stall_ms": stalled,
        },
    )


def _throttled(
    before: t.Mapping[str, t.Tuple[int, int]], after: t.Mapping[str, t.Tuple[int, int]]
) -> t.Dict[str, float]:
    """Percent of the periods between two readings in which a group's quota was used up."""
    shares = {}
    for path, (periods, throttled) in after.items():
        earlier = before.get(path, (periods, throttled))
        if periods > earlier[0]:
            shares[path] = 100.0 * (throttled - earlier[1]) / (periods - earlier[0])
    return shares


def measure(context: HostContext, options: Options) -> Check:
    """Where nothing answers for the services, the host is measured all the same."""
    services: t.Mapping[str, t.Set[int]] = {}
    missing = False
    try:
        services = context.pids()
    except OpsError:
        if options.scope != "host":
            raise
        missing = True
    result = check(
        {pid for group in services.values() for pid in group},
        scope=options.scope,
        base_url=options.base_url,
        heavy=options.stall_path,
        light=options.http_paths[0],
        thresholds=options.limits("cpu"),
        response=options.limits("response_time_ms"),
    )
    return replace(result, details={**result.details, "services_percent": None}) if missing else result
