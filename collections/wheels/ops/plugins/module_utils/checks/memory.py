# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Memory: of the host as the kernel sees it, and of every service against its own limit."""

from __future__ import annotations

import typing as t

from ..health import Check
from ..results import OpsError
from ..thresholds import DEFAULTS, Thresholds, worst

MEBIBYTE = 1024 * 1024


def host_percent(meminfo: str = "/proc/meminfo") -> t.Tuple[float, int, int]:
    """What is not available, in percent, with total and available bytes.

    MemAvailable is the kernel's own estimate of what can be had without swapping: page cache counts as available.
    """
    values = {}
    with open(meminfo, encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values.get("MemAvailable", values["MemFree"])
    return 100.0 * (total - available) / total, total, available


def resident_bytes(pids: t.Iterable[int]) -> int:
    """Resident bytes of several processes; pages that they share are counted once, by their share (PSS), where readable."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            try:
                with open(f"/proc/{pid}/status", encoding="ascii") as file:
                    total += next((int(line.split()[1]) for line in file if line.startswith("VmRSS:")), 0) * 1024
            except OSError:
                continue  # it ended meanwhile
    return total


def check(
    services: t.Mapping[str, t.Iterable[int]],
    limits_mb: t.Mapping[str, float],
    *,
    scope: str = "host",
    thresholds: t.Optional[Thresholds] = None,
) -> Check:
    """The worst of the host's percentage and of each service's share of its limit.

    ``services`` gives the processes of each, ``limits_mb`` its limit in MiB; ``scope`` ``services`` leaves the host out, for
    a machine that serves others too.
    """
    limits = thresholds or DEFAULTS["memory"]
    details: t.Dict[str, t.Any] = {"services": {}}
    shares: t.Dict[str, float] = {}
    if scope == "host":
        percent, total, available = host_percent()
        details["host"] = {"percent": round(percent, 1), "total_bytes": total, "available_bytes": available}
        shares["the host"] = percent
    for name, limit in limits_mb.items():
        if limit <= 0:
            raise OpsError(f"The memory limit of {name} is {limit} MiB.", hint="Give a positive number.")
        pids = list(services.get(name, ()))
        used = resident_bytes(pids)
        shares[name] = 100.0 * used / (limit * MEBIBYTE)
        details["services"][name] = {"percent": round(shares[name], 1), "resident_bytes": used, "limit_bytes": int(limit * MEBIBYTE), "processes": len(pids)}
    if not shares:
        raise OpsError("There is no memory to measure.", hint="Give memory limits for services, or let the host be measured.")
    highest = max(shares, key=lambda name: shares[name])
    status = worst(limits.status(share) for share in shares.values())
    return Check(
        name="memory",
        status=status,
        value=round(shares[highest], 1),
        unit="%",
        thresholds=limits.as_dict(),
        message=f"{highest} uses {shares[highest]:.1f} % of its memory" + ("." if status == "ok" else f", over {_crossed(limits, shares[highest]):g} %."),
        remedy="" if status == "ok" else "memory_trim",
        details=details,
    )


def _crossed(limits: Thresholds, value: float) -> float:
    return max((limit for limit in (limits.warning, limits.critical, limits.emergency) if limit is not None and value > limit), default=0.0)
