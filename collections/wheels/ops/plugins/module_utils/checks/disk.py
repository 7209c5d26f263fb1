# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Disk: filesystems, directories that have a budget, and logs that have grown too large."""

from __future__ import annotations

import glob
import os
import stat
import typing as t

from ..core.results import OpsError
from ..health.check import Check
from ..health.thresholds import DEFAULTS, LOG_MAX_BYTES, Thresholds, worst
from ..host import attributes
from .context import HostContext, Options


def filesystem(path: str) -> t.Dict[str, t.Any]:
    """Use of the filesystem that holds ``path``: percent of what users may fill, as df shows it, and
    percent of inodes.
    """
    try:
        status = os.statvfs(path)
    except OSError as error:
        raise OpsError(f"Cannot look at the filesystem of {path}: {error.strerror}.") from error
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    available = status.f_bavail * status.f_frsize
    inodes = 100.0 * (status.f_files - status.f_ffree) / status.f_files if status.f_files else 0.0
    return {
        "percent": 100.0 * used / max(1, used + available),
        "inodes_percent": inodes,
        "used_bytes": used,
        "available_bytes": available,
    }


def directory_bytes(path: str) -> int:
    """Bytes on disk below a directory, on its own filesystem, links not followed; every hard-linked file once."""
    total = 0
    visited: t.Set[t.Tuple[int, int]] = set()
    try:
        device = os.lstat(path).st_dev
    except OSError as error:
        raise OpsError(f"Cannot look at {path}: {error.strerror}.") from error
    waiting = [path]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue  # removed meanwhile, or not ours to read: what cannot be seen cannot be cleaned either
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                if status.st_dev == device:
                    waiting.append(entry.path)
            elif (status.st_dev, status.st_ino) not in visited:
                visited.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def large_logs(patterns: t.Iterable[str], limit: int = LOG_MAX_BYTES) -> t.Dict[str, int]:
    """Regular files matching ``patterns`` whose bytes on disk are over ``limit``."""
    sizes = {}
    for pattern in patterns:
        for path in glob.glob(pattern):
            try:
                status = os.lstat(path)
            except OSError:
                continue
            on_disk = min(status.st_size, status.st_blocks * 512)
            if stat.S_ISREG(status.st_mode) and on_disk > limit:
                sizes[path] = on_disk
    return sizes


def check(
    filesystems: t.Sequence[str],
    *,
    budgets: t.Optional[t.Mapping[str, int]] = None,
    logs: t.Sequence[str] = (),
    log_max_bytes: int = LOG_MAX_BYTES,
    thresholds: t.Optional[Thresholds] = None,
) -> Check:
    """The worst of: each filesystem's percent (bytes and inodes) and whether it is read-only, each budgeted directory's
    percent, logs over the limit.

    ``budgets`` maps a set of directories, joined by ``:``, to the bytes that they may hold together.
    """
    limits = thresholds or DEFAULTS["disk"]
    details: t.Dict[str, t.Any] = {"filesystems": {}, "budgets": {}}
    shares: t.Dict[str, float] = {}
    read_only: t.List[str] = []
    for path in filesystems:
        use = filesystem(path)
        details["filesystems"][path] = use
        shares[path] = max(use["percent"], use["inodes_percent"])
        if attributes.is_filesystem_read_only(path):
            read_only.append(path)
    for paths, budget in (budgets or {}).items():
        used = sum(directory_bytes(path) for path in paths.split(":"))
        shares[paths] = 100.0 * used / budget
        details["budgets"][paths] = {"percent": round(shares[paths], 1), "used_bytes": used, "budget_bytes": budget}
    large = large_logs(logs, log_max_bytes)
    details["large_logs"] = large
    if not shares and not logs:
        raise OpsError("There is no disk to measure.", hint="Name a filesystem, a budget or logs.")
    fullest = max(shares, key=lambda name: shares[name]) if shares else ""
    status = worst(
        [
            *(limits.status(share) for share in shares.values()),
            "warning" if large else "ok",
            "critical" if read_only else "ok",
        ]
    )
    use = details["filesystems"].get(fullest, {})
    by_inodes = bool(use) and use["inodes_percent"] > use["percent"]
    message = f"{fullest} is {shares[fullest]:.1f} % full" if fullest else "no filesystem was asked for"
    if by_inodes:
        message = (
            f"{fullest} has used {use['inodes_percent']:.1f} % of its inodes ({use['percent']:.1f} % of its bytes)"
        )
        if limits.status(use["inodes_percent"]) != "ok":
            message += ": delete many small files"
    if large:
        message += (
            f"; {len(large)} log{'s' if len(large) > 1 else ''} over {log_max_bytes / 1e6:.0f} MB:"
            f" {', '.join(sorted(large))}"
        )
    if read_only:
        message = (
            f"{', '.join(read_only)} is mounted read-only, as the kernel does after an error of the disk: look at dmesg;"
            f" {message}"
        )
    out_of_inodes = by_inodes and limits.status(use["inodes_percent"]) != "ok"
    return Check(
        name="disk",
        status=status,
        value=round(shares[fullest], 1) if fullest else None,
        unit="%",
        thresholds=limits.as_dict(),
        message=message + ".",
        # Neither can change what is read-only, and a rotation frees no inode.
        remedy="" if status == "ok" or read_only else "log_rotate" if large and not out_of_inodes else "disk_cleanup",
        details=details,
    )


def measure(_context: HostContext, options: Options) -> Check:
    return check(
        options.filesystems,
        budgets=options.disk_budgets,
        logs=options.logs,
        log_max_bytes=options.log_max_bytes,
        thresholds=options.limits("disk"),
    )
