# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Brings filesystems and budgeted directories under their targets: source after source, oldest file first, never an
open or a protected one.
"""

from __future__ import annotations

import collections
import fnmatch
import heapq
import itertools
import operator
import os
import re
import stat
import time
import typing as t
from dataclasses import dataclass, field

from ...checks.disk import directory_bytes, filesystem
from ...core import units
from ...core.options import absolute_path, choice, choices, in_range, number
from ...core.results import OpsError, Result
from ...host import attributes, open_files
from ...host.files import sync_filesystem
from ...host.safe_tree import Directory, Seen, Tree, require_safe
from . import sources as disk_sources

#: Candidates that are held in memory at once. Where there are more, the tree is walked again for the next oldest.
BATCH = 100_000
#: The filesystem is asked again after so many removals: others write meanwhile.
_REFRESH_FILES = 512
#: Names that ``diff`` lists.
_SHOWN = 200
#: ``files`` and ``core_dumps`` are removed by us, file by file; the others by the program that they belong to.
KINDS: t.Tuple[str, ...] = ("files", "core_dumps", "journal", "packages", "backups")
_AGES: t.Tuple[str, ...] = ("atime", "mtime", "ctime")


@dataclass(frozen=True)
class Source:
    """Files below ``path`` that may go: older than ``age`` seconds by the newest of ``age_by``, of at least
    ``min_size`` bytes on disk, with a name that one of ``patterns`` matches and none of ``exclude``, which
    also keeps directories from being entered. The ``keep_newest`` newest of them stay. ``remove_empty``: also empty
    directories and dangling links, as old.
    """

    path: str
    age: float = 0.0
    age_by: t.Tuple[str, ...] = _AGES
    patterns: t.Tuple[str, ...] = ("*",)
    exclude: t.Tuple[str, ...] = ()
    keep_newest: int = 0
    min_size: int = 0
    recurse: bool = True
    remove_empty: bool = False
    kind: str = "files"
    optional: bool = False

    @property
    def times(self) -> t.List[str]:
        """The fields of a status by which a file is old."""
        return [f"st_{name}_ns" for name in self.age_by]

    @property
    def moment(self) -> t.Callable[[os.stat_result], int]:
        """Gives the time (ns) by which a file of a status is old: the newest."""
        found = [operator.attrgetter(name) for name in self.times]
        return found[0] if len(found) == 1 else lambda status: max([get(status) for get in found])


@dataclass
class Target:
    """What is to be reached: ``percent`` and ``inodes_percent`` at most, ``free_bytes`` at least, on the filesystem of
    ``filesystem``; or for ``directories`` together ``percent`` of ``budget`` bytes at most.
    """

    filesystem: str = ""
    directories: t.Tuple[str, ...] = ()
    budget: int = 0
    percent: t.Optional[float] = None
    inodes_percent: t.Optional[float] = None
    free_bytes: t.Optional[int] = None
    device: int = 0
    used: int = 0
    available: int = 0
    files_used: int = 0
    files_total: int = 0

    @property
    def name(self) -> str:
        return self.filesystem or ":".join(self.directories)

    def measure(self) -> None:
        if self.directories:
            self.used = sum(directory_bytes(path) for path in self.directories)
            return
        found = os.statvfs(self.filesystem)
        self.device = os.stat(self.filesystem).st_dev
        self.used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.available = found.f_bavail * found.f_frsize
        self.files_used, self.files_total = found.f_files - found.f_ffree, found.f_files

    def refresh(self) -> None:
        """Measures again. Where less is free than what went, the filesystem may not have given it back yet (btrfs, xfs):
        it is asked to first.
        """
        expected = self.used
        self.measure()
        if self.filesystem and self.used > expected:
            sync_filesystem(self.filesystem)
            self.measure()

    def freed(self, count: int, files: int = 1) -> None:
        """Takes what was removed, or in check mode would be, into account."""
        self.used -= count
        self.available += count
        self.files_used -= files

    def share(self) -> float:
        return 100.0 * self.used / max(1, self.budget if self.directories else self.used + self.available)

    def inodes_share(self) -> float:
        return 100.0 * self.files_used / self.files_total if self.files_total else 0.0

    def met(self) -> bool:
        return (
            (self.percent is None or self.share() <= self.percent)
            and (self.inodes_percent is None or self.inodes_share() <= self.inodes_percent)
            and (self.free_bytes is None or self.available >= self.free_bytes)
        )

    def concerns(self, path: str, device: int) -> bool:
        if self.directories:
            return any(
                path == entry or path.startswith(entry.rstrip("/") + "/") or entry.startswith(path + "/")
                for entry in self.directories
            )
        return device == self.device

    def as_dict(self) -> t.Dict[str, t.Any]:
        shown: t.Dict[str, t.Any] = {"percent": round(self.share(), 2), "used_bytes": self.used, "met": self.met()}
        if self.directories:
            return {**shown, "budget_bytes": self.budget}
        return {**shown, "available_bytes": self.available, "inodes_percent": round(self.inodes_share(), 2)}


@dataclass
class _Tally:
    """What one source gave."""

    files: int = 0
    bytes: int = 0
    candidates: int = 0
    skipped: t.Counter[str] = field(default_factory=collections.Counter)
    names: t.List[str] = field(default_factory=list)
    #: Empty directories and dangling links that went.
    directories: int = 0
    links: int = 0
    #: By directory: its status before a file was taken from it, and in check mode how many would be.
    taken: t.Dict[open_files.Identity, t.Tuple[os.stat_result, int]] = field(default_factory=dict)


#: A file that may go: its time (ns) and inode, both negated, its bytes, name and directory. A bare tuple, as there may
#: be 100,000 of them.
_Candidate = t.Tuple[int, int, int, str, Directory]


def _any_of(patterns: t.Sequence[str]) -> t.Optional[t.Callable[[str], object]]:
    """Whether one of the patterns matches a name; None where there are none."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match if patterns else None


def _name_filter(source: Source) -> t.Optional[t.Callable[[str], object]]:
    """Whether a name is one of a source's; None where every name is."""
    return None if "*" in source.patterns else _any_of(source.patterns)


def parse_source(given: t.Mapping[str, t.Any]) -> Source:
    """A source from a caller's dictionary; ages and sizes with units. Raises ``OpsError`` for nonsense."""
    kind = str(given.get("kind") or "files")
    choice("kind of a source", kind, KINDS)
    named = str(given.get("path") or disk_sources.PLACES.get(kind, ""))
    if not named:
        raise OpsError("path of a source of files must not be empty.", hint="Name its directory.")
    # The programs that own the other kinds clear them; what may not be cleaned as a whole may be cleared so.
    path = (
        require_safe(named, "path of a source")
        if kind in ("files", "core_dumps")
        else absolute_path("path of a source", named)
    )
    names = {
        key: tuple(given.get(key) or default)
        for key, default in (("patterns", ("*",)), ("exclude", ()), ("age_by", _AGES))
    }
    for pattern in names["patterns"] + names["exclude"]:
        if not pattern or "/" in pattern or ".." in pattern:
            raise OpsError(
                f"patterns of {path} must be patterns for a name, got {pattern!r}.",
                hint="Use *, ? and [a-z]; directories belong into path.",
            )
    choices(f"age_by of {path}", names["age_by"], _AGES)
    if kind == "core_dumps" and not given.get("patterns"):
        names["patterns"] = ("core*",)
    keep = int(given.get("keep_newest") or 0)
    in_range(f"keep_newest of {path}", keep, 0, 1_000_000)
    return Source(
        path=path,
        age=units.duration(given.get("age") or 0, f"age of {path}"),
        age_by=names["age_by"],
        patterns=names["patterns"],
        exclude=names["exclude"],
        keep_newest=keep,
        min_size=units.size(given.get("min_size") or 0, f"min_size of {path}"),
        recurse=given.get("recurse") is not False,
        remove_empty=bool(given.get("remove_empty")),
        kind=kind,
        optional=not given.get("path"),
    )


def parse_target(given: t.Mapping[str, t.Any]) -> Target:
    """A target from a caller's dictionary. Raises ``OpsError`` for nonsense."""
    directories = tuple(
        os.path.realpath(absolute_path("directories of a target", str(path))) for path in given.get("directories") or ()
    )
    place = str(given.get("filesystem") or "")
    if bool(directories) == bool(place):
        raise OpsError("A target must have either filesystem or directories.", hint="Give one of them.")
    target = Target(filesystem=absolute_path("filesystem", place) if place else "", directories=directories)
    for key in ("percent", "inodes_percent"):
        value = given.get(key)
        if value is not None:
            share = number(f"{key} of the target {target.name}", value)
            in_range(f"{key} of the target {target.name}", share, 0, 100, unit="percent", above=True)
            setattr(target, key, share)
    if given.get("free_bytes") is not None:
        target.free_bytes = units.size(given["free_bytes"], f"free_bytes of the target {target.name}")
    if directories:
        target.budget = units.size(given.get("budget") or 0, f"budget of the target {target.name}")
        if not target.budget or target.inodes_percent is not None or target.free_bytes is not None:
            raise OpsError(
                f"The target {target.name} needs a budget and takes only percent beside it.",
                hint="For example budget: 150MB, percent: 75.",
            )
        target.percent = 100.0 if target.percent is None else target.percent
    elif given.get("budget") or (
        target.percent is None and target.inodes_percent is None and target.free_bytes is None
    ):
        raise OpsError(
            f"The target {target.name} does not say what is to be reached.",
            hint="Give percent, inodes_percent or free_bytes; budget is for directories.",
        )
    return target


class Cleanup:
    """One run over sources and targets."""

    def __init__(
        self,
        sources: t.Sequence[Source],
        targets: t.Sequence[Target],
        *,
        protect: t.Sequence[str] = (),
        check_mode: bool = False,
        now: t.Optional[float] = None,
        batch: int = BATCH,
    ) -> None:
        self.sources = sources
        self.targets = targets
        self.protect = [absolute_path("protect", path) for path in protect]
        self.check_mode = check_mode
        self.now = time.time() if now is None else now
        self.batch = batch
        self._seen: t.Optional[open_files.Open] = None
        self._since_refresh = 0

    def unmet(self, path: str, device: int) -> t.List[Target]:
        return [target for target in self.targets if target.concerns(path, device) and not target.met()]

    def wanted(self, path: str, device: int) -> bool:
        """Whether something of a source is still to go: always without targets, else while one that concerns it is not
        met, as the filesystem says itself.
        """
        if not self.targets or self.unmet(path, device):
            return True
        if self.check_mode or not self._since_refresh:
            return False
        self._refresh()
        return bool(self.unmet(path, device))

    def _refresh(self) -> None:
        self._since_refresh = 0
        for target in self.targets:
            if target.filesystem:
                target.refresh()

    def clean(self, source: Source) -> _Tally:
        """Takes from one source until nothing is left of it, or every target that it concerns is met."""
        if source.kind not in ("files", "core_dumps"):
            return self._clear(source)
        tally = _Tally()
        if source.optional and not os.path.isdir(source.path):
            return tally  # the usual place of core dumps, on a host that has none
        with Tree(source.path, protect=self.protect, recurse=source.recurse) as tree:
            if not self.wanted(source.path, tree.device):
                return tally
            attributes.require_writable(source.path)
            kept = self._newest(tree, source) if source.keep_newest else frozenset()
            after = (-1, -1)
            while self.wanted(source.path, tree.device):
                tally.skipped.clear()
                batch, more = self._oldest(tree, source, after, kept, tally)
                tally.candidates += len(batch)
                if batch:
                    after = -batch[0][0], -batch[0][1]
                while batch and self.wanted(source.path, tree.device):
                    self._take(tree, source, batch.pop(), tally)
                if not more:
                    break
            if source.remove_empty and self.wanted(source.path, tree.device):
                self._take_leftovers(tree, source, tally)
        return tally

    def _until(self, source: Source) -> int:
        return int((self.now - source.age) * 1e9)

    def _take_leftovers(self, tree: Tree, source: Source, tally: _Tally) -> None:
        """Takes empty directories and dangling links, also those that have become empty just now."""
        for reason in ("empty_directory", "dangling_link"):
            tally.skipped.pop(reason, None)
        tree.skipped.clear()
        leftovers = tree.leftovers(
            named=_name_filter(source),
            excluded=_any_of(source.exclude),
            until=self._until(source),
            by=source.times,
            seen=tally.taken,
        )
        tally.skipped.update(tree.skipped)
        tally.candidates += len(leftovers)
        for leftover in leftovers:
            if not self.wanted(source.path, tree.device):
                break
            outcome = tree.remove_leftover(leftover, dry=self.check_mode)
            if outcome != "removed":
                tally.skipped[outcome] += 1
                continue
            is_link = stat.S_ISLNK(leftover.status.st_mode)
            tally.links += is_link
            tally.directories += not is_link
            tally.bytes += leftover.size
            path = tree.path_of(leftover.directory, leftover.name)
            if len(tally.names) < _SHOWN:
                tally.names.append(path if is_link else path + "/")
            self._account(tree, source, path, leftover.size)

    def _account(self, tree: Tree, source: Source, path: str, size: int) -> None:
        """Takes into account for every target that something of a source went."""
        for target in self.targets:
            if target.concerns(path, tree.device) or (target.directories and target.concerns(source.path, tree.device)):
                target.freed(size)
        self._since_refresh += 1
        if self._since_refresh >= _REFRESH_FILES and not self.check_mode:
            self._refresh()

    def _clear(self, source: Source) -> _Tally:
        """Has the program that owns a source clear it, no more than the targets lack, and measures that."""
        tally = _Tally()
        if not source.optional and not os.path.isdir(source.path):
            raise MissingDirectory(source.path, source.kind)
        if not os.path.isdir(source.path) or not self.wanted(source.path, os.stat(source.path).st_dev):
            return tally
        attributes.require_writable(source.path)
        device = os.stat(source.path).st_dev

        def account(name: str, size: int, files: int) -> None:
            for target in self.targets:
                if target.concerns(name, device):
                    target.freed(size, files)

        foreseen = disk_sources.foresee(source.kind, source.path, source.age, source.keep_newest)
        tally.candidates = len(foreseen)
        chosen: t.List[t.Tuple[str, int]] = []
        for name, size in foreseen:
            if source.kind not in disk_sources.WHOLE and not self.wanted(name, device):
                break
            chosen.append((name, size))
            account(name, size, 1)
        if chosen and not self.check_mode:
            disk_sources.clear(source.kind, source.path, source.age, [name for name, _size in chosen])
        for name, size in chosen:
            if not self.check_mode and os.path.lexists(name):
                tally.skipped["kept"] += 1
                account(name, -size, -1)
                continue
            tally.files += 1
            tally.bytes += size
            tally.names += [name] if len(tally.names) < _SHOWN else []
        return tally

    def _newest(self, tree: Tree, source: Source) -> t.FrozenSet[t.Tuple[int, int]]:
        moment_of, least, count = source.moment, source.min_size, source.keep_newest

        def newest(walk: t.Iterator[Seen]) -> t.List[t.Tuple[int, int]]:
            return heapq.nlargest(
                count,
                (
                    (moment_of(status), status.st_ino)
                    for _directory, _name, status in walk
                    if status.st_blocks * 512 >= least
                ),
            )

        found = tree.gather(newest, named=_name_filter(source), excluded=_any_of(source.exclude), by=source.times)
        return frozenset(heapq.nlargest(count, itertools.chain.from_iterable(found)))

    def _oldest(
        self, tree: Tree, source: Source, after: t.Tuple[int, int], kept: t.FrozenSet[t.Tuple[int, int]], tally: _Tally
    ) -> t.Tuple[t.List[_Candidate], bool]:
        """The oldest ``batch`` files after a key, the newest of them first, and whether there are more."""
        moment_of, least, size = source.moment, source.min_size, self.batch

        def oldest(walk: t.Iterator[Seen]) -> t.Tuple[t.List[_Candidate], bool, int]:
            """The oldest, whether there are more, and how many are kept for being among the newest."""
            heap: t.List[_Candidate] = []
            more = False
            spared = 0
            for directory, name, status in walk:
                moment, inode, blocks = moment_of(status), status.st_ino, status.st_blocks * 512
                if blocks < least or (moment, inode) <= after:
                    continue
                if kept and (moment, inode) in kept:
                    spared += 1
                    continue
                # A heap's first is its smallest: with the key negated, the newest, which is the one to give way.
                if len(heap) < size:
                    heap.append((-moment, -inode, blocks, name, directory))
                    if len(heap) == size:
                        heapq.heapify(heap)
                    continue
                more = True
                if -moment >= heap[0][0]:
                    heapq.heappushpop(heap, (-moment, -inode, blocks, name, directory))
            return heap, more, spared

        found = tree.gather(
            oldest,
            named=_name_filter(source),
            excluded=_any_of(source.exclude),
            until=self._until(source),
            by=source.times,
        )
        tally.skipped.update(tree.skipped)
        spared = sum(part[2] for part in found)
        if spared:
            tally.skipped["kept"] += spared
        batch = sorted(itertools.chain.from_iterable(part[0] for part in found))
        return batch[-size:], len(batch) > size or any(part[1] for part in found)

    def _is_open(self, identity: open_files.Identity) -> t.Optional[bool]:
        """What /proc says of a file on which the kernel gives no lease; None where processes cannot be looked into."""
        if self._seen is None:
            self._seen = open_files.open_files()
        return True if self._seen.of(identity) else None if self._seen.unreadable else False

    def _take(self, tree: Tree, source: Source, candidate: _Candidate, tally: _Tally) -> None:
        moment, inode, size, name, directory = candidate
        parent = tree.descriptor_of(directory)
        try:
            if parent is None:
                raise FileNotFoundError
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if source.remove_empty and (directory.device, directory.inode) not in tally.taken:
                tally.taken[directory.device, directory.inode] = os.fstat(parent), 0
        except OSError:
            tally.skipped["changed"] += 1
            return
        if (source.moment(status), status.st_ino) != (-moment, -inode):
            outcome = "changed"
        else:
            outcome = tree.remove(parent, name, status, is_open=self._is_open, dry=self.check_mode)
        if outcome != "removed":
            tally.skipped[outcome] += 1
            return
        tally.files += 1
        tally.bytes += size
        if source.remove_empty and self.check_mode:
            above, count = tally.taken[directory.device, directory.inode]
            tally.taken[directory.device, directory.inode] = above, count + 1
        path = tree.path_of(directory, name)
        if len(tally.names) < _SHOWN:
            tally.names.append(path)
        self._account(tree, source, path, size)


class MissingDirectory(OpsError):
    """A source names a directory that is not there: perhaps mistyped, perhaps not made yet."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(
            f"{path} is no directory.",
            hint=f"Name the directory of the {kind}"
            + (", or take the source out." if kind == "files" else ", or leave path out for the usual one."),
        )


def run(
    sources: t.Sequence[t.Mapping[str, t.Any]],
    targets: t.Sequence[t.Mapping[str, t.Any]] = (),
    *,
    protect: t.Sequence[str] = (),
    release_deleted: t.Sequence[str] = (),
    deleted_min_size: t.Union[str, int] = disk_sources.DELETED_MIN_BYTES,
    check_mode: bool = False,
    want_diff: bool = False,
) -> Result:
    """Cleans; see the module's documentation for the options and the result.

    Everything is validated before anything is touched.
    """
    wanted = [parse_source(source) for source in sources]
    goals = [parse_target(target) for target in targets]
    least = units.size(deleted_min_size, "deleted_min_size")
    if not wanted:
        raise OpsError("No source is named.", hint="Name directories whose old files may go.")
    for goal in goals:
        try:
            goal.measure()
        except OSError as error:
            raise OpsError(
                f"Cannot look at {goal.name}: {error.strerror}.", hint="Name a directory that exists."
            ) from error
    started = time.monotonic()
    before = {goal.name: goal.as_dict() for goal in goals}
    places = sorted({source.path for source in wanted if os.path.isdir(source.path)})
    space_before = {place: filesystem(place)["used_bytes"] for place in places}
    cleanup = Cleanup(wanted, goals, protect=protect, check_mode=check_mode)
    needed = not goals or any(not goal.met() for goal in goals)
    seen = open_files.open_files(mappings=False)
    devices = {os.stat(place).st_dev for place in places} | {goal.device for goal in goals if goal.filesystem}
    nameless = disk_sources.deleted_but_open(devices, seen, least=least, patterns=release_deleted)
    images = disk_sources.deleted_images(devices)
    actions: t.List[t.Dict[str, t.Any]] = []
    names: t.List[str] = []
    refused: t.Dict[str, OpsError] = {}
    warnings: t.List[str] = []
    empty: t.Counter[str] = collections.Counter()
    for source in wanted:
        try:
            if source.kind in ("files", "core_dumps") and not source.optional and not os.path.isdir(source.path):
                raise MissingDirectory(source.path, source.kind)
            tally = cleanup.clean(source)
        except MissingDirectory as error:
            if len(wanted) == 1:
                raise
            warnings.append(str(error))
            continue
        except (OSError, OpsError) as error:
            # The others have their turn.
            refused[source.path] = error if isinstance(error, OpsError) else attributes.explanation(source.path, error)
            continue
        names += tally.names
        empty.update({key: tally.skipped[key] for key in ("empty_directory", "dangling_link")})
        actions.append(
            {
                "action": "delete",
                "target": source.path,
                "kind": source.kind,
                "changed": bool(tally.files or tally.directories or tally.links),
                "files": tally.files,
                "directories": tally.directories,
                "links": tally.links,
                "bytes_freed": tally.bytes,
                "candidates": tally.candidates,
                "skipped": dict(sorted(tally.skipped.items())),
            }
        )
    if warnings and len(warnings) == len(wanted):
        raise OpsError(" ".join(warnings))
    for entry in nameless:
        if needed and disk_sources.releasable(entry, release_deleted) and (check_mode or disk_sources.release(entry)):
            actions.append(
                {
                    "action": "release",
                    "target": entry["path"],
                    "changed": True,
                    "files": 0,
                    "bytes_freed": entry["bytes"],
                    "pid": entry["pid"],
                }
            )
    if not check_mode:
        for goal in goals:
            goal.refresh()
    files, freed = sum(action["files"] for action in actions), sum(action["bytes_freed"] for action in actions)
    missed = [goal.name for goal in goals if not goal.met()]
    verb = "would be removed" if check_mode else "removed"
    msg = (
        f"{files} files ({units.readable(freed)}) {verb}." if needed else "Every target is met; nothing was looked for."
    )
    hollow = {key: sum(action.get(key, 0) for action in actions) for key in ("directories", "links")}
    if any(hollow.values()):
        msg += f" {hollow['directories']} empty directories and {hollow['links']} dangling links {verb}."
    if any(empty.values()):
        msg += (
            f" {empty['empty_directory']} old empty directories and {empty['dangling_link']} dangling links stay:"
            " remove_empty removes them."
        )
    if nameless:
        held = sum(entry["bytes"] for entry in nameless)
        first = nameless[0]
        msg += (
            f" {units.readable(held)} are deleted but still open, most by {first['unit'] or first['command']}"
            f" ({first['pid']}): have it reopen or restart it."
        )
    if images:
        msg += " Behind a loop device, and deleted: " + ", ".join(
            f"{entry['path']} ({units.readable(entry['bytes'])}; losetup --detach /dev/{entry['command']})"
            for entry in images
        )
        msg += "."
    if missed:
        msg += f" Not under its target: {', '.join(missed)}. Name further sources, or grow the disk."
    result = Result(
        changed=any(action["changed"] for action in actions),
        before={"targets": before, "used_bytes": space_before},
        after={
            "targets": {goal.name: goal.as_dict() for goal in goals},
            "used_bytes": {
                place: space_before[place] - freed if check_mode else filesystem(place)["used_bytes"]
                for place in places
            },
        },
        actions=actions,
        msg=msg,
        diff=(
            [{"before_header": "files", "after_header": "files", "before": "\n".join([*names, ""]), "after": ""}]
            if want_diff and names
            else []
        ),
        extra={
            "files": files,
            "bytes_freed": freed,
            "missed": missed,
            "deleted_open": sorted([*nameless, *images], key=lambda entry: -int(entry["bytes"])),
            "unreadable_processes": seen.unreadable,
            "duration_ms": round((time.monotonic() - started) * 1000, 1),
        },
        warnings=warnings,
    )
    if refused:
        first_refusal = next(iter(refused.values()))
        details = {key: value for key, value in result.as_dict().items() if key != "msg"}
        raise OpsError(
            " ".join([*(error.message for error in refused.values()), *warnings]),
            hint=first_refusal.hint,
            refused={path: str(error) for path, error in refused.items()},
            **details,
        )
    return result
