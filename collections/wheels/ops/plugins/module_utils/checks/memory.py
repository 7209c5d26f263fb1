# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Memory: of the host as the kernel sees it, of the container around us, and of every service against its own limit and
that of its cgroup.
"""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ..core.options import in_range
from ..core.results import OpsError
from ..health.check import Check
from ..health.thresholds import DEFAULTS, Thresholds, worst
from ..host import memory_pressure, processes
from .context import HostContext, Options

MEBIBYTE = 1024 * 1024
#: Percent of ten seconds in which all tasks of a scope waited for memory (PSI full): pressure, much of it, and what
#: systemd-oomd ends processes for.
STALLS = Thresholds(memory_pressure.STALLED, 30, 60)


def resident_bytes(pids: t.Iterable[int]) -> int:
    """Resident bytes of several processes, of the same service.

    Anonymous and shared memory counts by its share (PSS), so that what the processes share counts once. Of programs and
    libraries the pages of the process that has most of them count, once: their PSS would rise and fall with whatever
    else runs on the machine.
    """
    total = files = 0
    for pid in pids:
        try:
            rollup = processes.kilobytes(pid, "smaps_rollup")
            parts = [rollup[name] for name in ("Pss_Anon", "Pss_Shmem")]  # older kernels know only the sum
            files = max(files, processes.kilobytes(pid, "status")["RssFile"])
            total += sum(parts)
        except (OSError, KeyError):
            try:
                proportional = processes.kilobytes(pid, "smaps_rollup").get("Pss", 0)
            except OSError:
                proportional = 0
            try:
                total += proportional or processes.kilobytes(pid, "status").get("VmRSS", 0)
            except OSError:
                continue  # it ended meanwhile
    return (total + files) * 1024


def check(
    services: t.Mapping[str, t.Collection[int]],
    limits_mb: t.Mapping[str, float],
    *,
    scope: str = "host",
    thresholds: t.Optional[Thresholds] = None,
    proc: str = "/proc",
    root: str = "",
) -> Check:
    """The worst of the host's percentage, that of the container around us, and of each service's share of its limits;
    and where the kernel says that tasks wait for memory (``STALLS``), that, whatever the percentages are. ``value`` is
    the highest percentage.

    ``services`` gives the processes of each, ``limits_mb`` its limit in MiB; a limit of the service's own cgroup counts
    too. ``scope`` ``services`` leaves the host out, for a machine that serves others too. ``proc`` and ``root`` are
    given by tests.
    """
    limits = thresholds or DEFAULTS["memory"]
    details: t.Dict[str, t.Any] = {"services": {}, "stalls": memory_pressure.stalls(f"{proc}/pressure/memory")}
    shares: t.Dict[str, float] = {}
    stalled: t.Dict[str, t.Optional[float]] = {}
    if scope == "host":
        machine = memory_pressure.host(proc)
        details["host"] = {
            "percent": round(machine.percent, 1),
            "total_bytes": machine.limit_bytes,
            "available_bytes": machine.limit_bytes - machine.used_bytes,
        }
        shares["the host"], stalled["the host"] = machine.percent, machine.stalled
        container = memory_pressure.cgroup(proc=proc, root=root)
        if container is not None:
            details["container"] = container.as_dict()
            shares["the container"], stalled["the container"] = container.percent, container.stalled
    groups: t.Dict[str, memory_pressure.Scope] = {}
    for name, members in services.items():
        around = memory_pressure.cgroup(min(members), proc=proc, root=root) if members else None
        if around is not None:
            groups[name] = around
            shares[f"{name} in its cgroup"], stalled[f"{name} in its cgroup"] = around.percent, around.stalled
        elif members:  # nothing limits it, and it may wait for memory all the same
            own = memory_pressure.own_directory(min(members), proc=proc, root=root)
            waits_here = memory_pressure.stalls(f"{own}/memory.pressure") if own else None
            stalled[f"{name} in its cgroup"] = (waits_here or {}).get("full_avg10")
    details["cgroups"] = {name: group.as_dict() for name, group in groups.items()}
    stopped: t.List[str] = []
    for name, limit in limits_mb.items():
        in_range(f"The memory limit of {name}", limit, 0, unit="MiB", above=True)
        pids = list(services.get(name, ()))
        used = resident_bytes(pids)
        percent = 100.0 * used / (limit * MEBIBYTE)
        if pids:
            shares[name] = percent
        else:
            stopped.append(name)
        details["services"][name] = {
            "percent": round(percent, 1),
            "resident_bytes": used,
            "limit_bytes": int(limit * MEBIBYTE),
            "processes": len(pids),
        }
    if not shares and stopped:
        raise OpsError(f"{', '.join(stopped)} does not run: its memory cannot be measured.", hint="Start it.")
    if not shares:
        raise OpsError(
            "There is no memory to measure.", hint="Give memory limits for services, or let the host be measured."
        )
    highest = max(shares, key=lambda name: shares[name])
    by_share = worst(limits.status(share) for share in shares.values())
    waits = {
        name: percent for name, percent in stalled.items() if percent is not None and STALLS.status(percent) != "ok"
    }
    longest = max(waits, key=lambda name: waits[name], default="")
    status = worst([by_share, STALLS.status(waits[longest])]) if waits else by_share
    message = f"{highest} uses {shares[highest]:.1f} % of its memory" + (
        "." if by_share == "ok" else f", over {_crossed(limits, shares[highest]):g} %."
    )
    if stopped:
        status = worst([status, "unknown"])
        message += f" The memory of {', '.join(stopped)}, which does not run, was not measured."
    if waits:
        message = f"All tasks of {longest} waited for memory {waits[longest]:.1f} % of the last 10 s. {message}"
    return Check(
        name="memory",
        status=status,
        value=round(shares[highest], 1),
        unit="%",
        thresholds=limits.as_dict(),
        message=message,
        remedy="memory_trim" if by_share != "ok" or waits else "",
        details=details,
    )


def measure(context: HostContext, options: Options) -> Check:
    """Where nothing answers for the services, the host is measured all the same; that of the services is unknown."""
    missing = ""
    services: t.Mapping[str, t.Collection[int]] = {}
    try:
        services = context.pids()
    except OpsError as error:
        if options.scope != "host":
            raise
        missing = str(error)
    result = check(
        services,
        {} if missing else options.memory_limits_mb,
        scope=options.scope,
        thresholds=options.limits("memory"),
    )
    if not missing:
        return result
    return replace(
        result,
        status=worst([result.status, "unknown"]),
        message=f"{result.message} The memory of the services was not measured: {missing}".lstrip(),
    )


def _crossed(limits: Thresholds, value: float) -> float:
    return max(
        (limit for limit in (limits.warning, limits.critical, limits.emergency) if limit is not None and value > limit),
        default=0.0,
    )
