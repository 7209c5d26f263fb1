# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lowers the priority of CPU-intensive processes for a time, so that the services get the CPU, and restores it exactly.

Measured beside four CPU hogs on two cores: plain 0.35 to 0.41 of the throughput without them, nice 19 0.81 to 1.0,
SCHED_IDLE 0.9 to 1.0. Both work among the processes of one control group only; across groups the groups' own weights
decide, and the result says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..core.options import choice, in_range, no_empty_entry, regular_expression
from ..core.results import OpsError, Result
from ..host import processes
from ..host.cpu_time import autogroup, control_group
from ..host.files import write_atomically
from ..state import documents, restarts

#: Keeps its priority: what carries the host, and what the services themselves need.
PROTECTED = r"^(?:\[|/?(?:\S*/)?(?:systemd\S*|init|sshd\S*|dbus\S*|postgres\S*|redis-server|supervisord|nginx\S*|haproxy|rsyslogd|cron|agetty|login)(?::|\s|$))"

#: The capability's number, capabilities(7).
_CAP_SYS_NICE = 23
#: What yields, in the state directory.
_FILE = "cpu_relief.json"


@dataclass(frozen=True)
class Options:
    """``demote``: regular expressions of command lines whose priority may be lowered; everything that is not protected
    where there are none.

    ``protect``: further expressions that may not. ``min_percent``: of one core, over ``sample_s`` seconds. ``method``:
    ``idle`` (SCHED_IDLE: runs only when nobody else wants the core) or ``nice`` (19). ``revert_after`` seconds later
    the next run of this module puts it back, 0 never does by itself.
    """

    state: str = "relieved"
    demote: t.Tuple[str, ...] = ()
    protect: t.Tuple[str, ...] = ()
    protected_pids: t.FrozenSet[int] = frozenset()
    method: str = "idle"
    sample_s: float = 5.0
    min_percent: float = 25.0
    revert_after: float = 3600.0
    state_dir: str = ""


def validate(options: Options) -> None:
    """Refuses nonsense before anything is measured."""
    choice("state", options.state, ("relieved", "normal"))
    choice("method", options.method, ("idle", "nice"))
    in_range("sample_s", options.sample_s, 0.2, 60, unit="seconds")
    in_range("min_percent", options.min_percent, 1, 100, unit="percent")
    in_range("revert_after", options.revert_after, 0, 7 * 86400, unit="seconds")
    for name, expressions in (("demote", options.demote), ("protect", options.protect)):
        hint = f"Name a part of the command line, or leave {name} out."
        no_empty_entry(name, expressions, reason="it would match every process", hint=hint)
        for expression in expressions:
            regular_expression(name, expression)


def cpu_seconds() -> t.Dict[int, t.Tuple[float, float]]:
    """User and system seconds of every process, with its start time in ticks to tell it from another of the same
    number.
    """
    every = ((pid, processes.stat(pid)) for pid in processes.pids())
    return {pid: (facts.cpu_seconds, float(facts.start)) for pid, facts in every if facts is not None}


def consumers(sample_s: float) -> t.List[t.Dict[str, t.Any]]:
    """What every process used over a sample, most first: ``pid``, ``percent`` of one core, ``command``.

    Not over its life: over now.
    """
    before, start = cpu_seconds(), time.monotonic()
    time.sleep(sample_s)
    after, took = cpu_seconds(), time.monotonic() - start
    result = []
    for pid, (seconds, start_ticks) in after.items():
        earlier = before.get(pid, (0.0, start_ticks))
        if earlier[1] == start_ticks and seconds > earlier[0]:
            command = " ".join(processes.command_line(pid)) or f"[{pid}]"
            result.append(
                {
                    "pid": pid,
                    "percent": round(100 * (seconds - earlier[0]) / took, 1),
                    "command": command[:300],
                    "born": start_ticks,
                }
            )
    return sorted(result, key=lambda entry: -t.cast(float, entry["percent"]))


def _set_autogroup(pid: int, nice: int) -> None:
    with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
        file.write(str(nice))


def scheduling(pid: int) -> t.Dict[int, t.Dict[str, int]]:
    """Policy and nice of every thread of a process."""
    threads = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                thread = int(entry)
                threads[thread] = {
                    "policy": os.sched_getscheduler(thread),
                    "nice": os.getpriority(os.PRIO_PROCESS, thread),
                }
    return threads


def _apply(thread: int, policy: int, nice: int) -> None:
    os.sched_setscheduler(thread, policy, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, thread, nice)


def run(options: Options, *, check_mode: bool = False) -> Result:
    """Makes consumers yield, or puts everything back. Raises ``OpsError`` where the right is missing."""
    validate(options)
    directory = restarts.state_dir(options.state_dir)
    path = directory / _FILE
    if check_mode:
        restarts.require_writable(directory)
        return _run(options, path, check_mode)
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = os.open(directory / "cpu_relief.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise OpsError(
            f"The state directory {directory} cannot be written: {error.strerror}.",
            hint="Run as root, or set state_dir.",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _run(options, path, check_mode)
    finally:
        os.close(lock)


def _alive(entry: t.Mapping[str, t.Any]) -> bool:
    """Whether the process of an entry still runs: another may have its number now."""
    facts = processes.stat(entry["pid"])
    return facts is not None and facts.start == entry["born"]


def ends_at(directory: Path) -> float:
    """When the first process that yields is due to be put back, in seconds since the epoch; 0 where none is.

    Raises ``OpsError``.
    """
    entries = filter(_alive, _read(directory / _FILE))
    return min((float(entry["until"]) for entry in entries if entry["until"]), default=0.0)


def _run(options: Options, path: Path, check_mode: bool) -> Result:
    entries = list(filter(_alive, _read(path)))
    actions: t.List[t.Dict[str, t.Any]] = []
    expired = [
        entry for entry in entries if options.state == "normal" or (entry["until"] and time.time() >= entry["until"])
    ]
    actions += [_put_back(old, check_mode) for old in expired]
    entries = [entry for entry in entries if entry not in expired]
    top: t.List[t.Dict[str, t.Any]] = []
    if options.state == "relieved":
        top = consumers(options.sample_s)
        pids = {entry["pid"] for entry in entries}
        for consumer in _chosen(top, options):
            if consumer["pid"] not in pids:
                entry: t.Optional[t.Dict[str, t.Any]]
                # Noted before it is changed: whenever this run is killed, what was changed can be put back.
                note = None if check_mode else lambda entry: _write(path, [*entries, entry])
                entry, action = _make_yield(consumer, options, entries, note)
                actions.append(action)
                if entry is not None:
                    entries.append(entry)
    if not check_mode and (expired or path.exists()):
        _write(path, entries)
    count = sum(entry["changed"] for entry in actions)
    was = "would be" if check_mode else "was"
    verb = "restored" if options.state == "normal" else "lowered or restored"
    text = "".join(f"{entry['target']}: {entry['before']} -> {entry['after']}\n" for entry in actions)
    return Result(
        changed=bool(count),
        before={
            "held": len(entries)
            + len(expired)
            - sum(entry["action"] == "yield" and entry["changed"] for entry in actions)
        },
        after={"held": len(entries)},
        actions=actions,
        msg=f"The priority of {count} processes {was} {verb}." if actions else _idle(options),
        diff=(
            [{"before": "", "after": text, "before_header": "scheduling", "after_header": "scheduling"}] if text else []
        ),
        extra={"top": [{key: value for key, value in entry.items() if key != "born"} for entry in top[:10]]},
    )


def _idle(options: Options) -> str:
    if options.state == "normal":
        return "Nothing to do: no process has a lowered priority."
    return f"Nothing to do: no process whose priority may be lowered uses {options.min_percent:g} % of a core or more."


def _chosen(top: t.Sequence[t.Dict[str, t.Any]], options: Options) -> t.List[t.Dict[str, t.Any]]:
    mine = {1, *processes.ancestors(os.getpid()), *options.protected_pids}
    shield = [re.compile(expression) for expression in (PROTECTED, *options.protect)]
    patterns = [re.compile(expression) for expression in options.demote]
    return [
        entry
        for entry in top
        if entry["percent"] >= options.min_percent
        and entry["pid"] not in mine
        and not any(expression.search(entry["command"]) for expression in shield)
        and (not patterns or any(expression.search(entry["command"]) for expression in patterns))
    ]


def _make_yield(
    consumer: t.Dict[str, t.Any],
    options: Options,
    entries: t.Sequence[t.Mapping[str, t.Any]],
    note: t.Optional[t.Callable[[t.Dict[str, t.Any]], None]],
) -> t.Tuple[t.Optional[t.Dict[str, t.Any]], t.Dict[str, t.Any]]:
    """The entry with what the process had before, None where nothing is to be changed, and the action. ``note`` keeps
    the entry before the process is changed; without it (check mode) nothing is.
    """
    pid = consumer["pid"]
    session, session_nice = autogroup(pid)
    # The session of the shell that began this run is that of whoever is at work on the host.
    shared = {autogroup(spared)[0] for spared in {*options.protected_pids, *processes.ancestors(os.getpid())}}
    sessions = {entry["session"] for entry in entries}
    change_session = bool(session) and session not in shared and session not in sessions and session_nice < 19
    before = scheduling(pid)
    groups = {control_group(protected) for protected in options.protected_pids} - {""}
    action: t.Dict[str, t.Any] = {
        "action": "yield",
        "target": f"process {pid}",
        "pid": pid,
        "command": consumer["command"],
        "percent": consumer["percent"],
        "changed": True,
        "before": _shown(before),
        "after": "SCHED_IDLE" if options.method == "idle" else "nice 19",
        # Scheduling compares within one group: a hog in another one yields to its own neighbours only.
        "effective": not groups or control_group(pid) in groups,
    }
    ordinary = {
        thread: state for thread, state in before.items() if state["policy"] in (os.SCHED_OTHER, os.SCHED_BATCH)
    }
    if not ordinary or (options.method == "nice" and all(state["nice"] >= 19 for state in ordinary.values())):
        return None, {**action, "changed": False, "after": action["before"]}
    refusal = OpsError(
        f"Process {pid} may not be changed.", hint="Run as root (become: true): putting it back needs CAP_SYS_NICE."
    )
    if not _privileged() and not _may_be_put_back(pid, ordinary):
        raise refusal
    until = time.time() + options.revert_after if options.revert_after else 0.0
    threads = {str(thread): state for thread, state in ordinary.items()}
    entry = {
        "pid": pid,
        "born": consumer["born"],
        "threads": threads,
        "until": until,
        "session": session if change_session else "",
        "session_nice": session_nice,
    }
    if note is not None:
        note(entry)
        for thread, state in ordinary.items():
            try:
                if options.method == "idle":
                    _apply(thread, os.SCHED_IDLE, state["nice"])
                else:
                    _apply(thread, state["policy"], 19)
            except ProcessLookupError:
                continue
            except PermissionError:
                raise refusal from None
        if change_session:
            with contextlib.suppress(OSError):  # it ended meanwhile
                _set_autogroup(pid, 19)
    return entry, action


def _privileged() -> bool:
    """Whether this process has CAP_SYS_NICE, so that every process may be changed, and put back."""
    return bool(int(processes.status("self").get("CapEff", "0"), 16) >> _CAP_SYS_NICE & 1)


def _may_be_put_back(pid: int, states: t.Mapping[int, t.Mapping[str, int]]) -> bool:
    """Whether one without privileges may both take from a process of theirs and give back: its RLIMIT_NICE says how far
    (setrlimit(2), sched(7)).
    """
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        limit = resource.prlimit(pid, resource.RLIMIT_NICE)[0]
    except (FileNotFoundError, ProcessLookupError):
        return True  # it ended: there is nothing to refuse
    except PermissionError:
        return False
    return limit == resource.RLIM_INFINITY or all(20 - state["nice"] <= limit for state in states.values())


def _put_back(entry: t.Dict[str, t.Any], check_mode: bool) -> t.Dict[str, t.Any]:
    """Every thread as it was; threads that were born since take after the first one."""
    pid, threads = entry["pid"], entry["threads"]
    now = scheduling(pid)
    first = threads.get(str(pid)) or next(iter(threads.values()))
    for thread in now if not check_mode else ():
        state = threads.get(str(thread), first)
        try:
            _apply(thread, state["policy"], state["nice"])
        except ProcessLookupError:
            continue
        except PermissionError:
            raise OpsError(
                f"The priority of process {pid} cannot be restored.",
                hint="Run as root (become: true): it needs CAP_SYS_NICE.",
            ) from None
    if entry["session"] and autogroup(pid)[0] == entry["session"] and not check_mode:
        with contextlib.suppress(OSError):
            _set_autogroup(pid, entry["session_nice"])
    states = {int(thread): state for thread, state in threads.items()}
    return {
        "action": "restore",
        "target": f"process {pid}",
        "pid": pid,
        "changed": True,
        "before": _shown(now),
        "after": _shown(states),
    }


def _shown(states: t.Mapping[int, t.Mapping[str, int]]) -> str:
    names = {os.SCHED_OTHER: "normal", os.SCHED_BATCH: "SCHED_BATCH", os.SCHED_IDLE: "SCHED_IDLE"}
    return ", ".join(
        sorted({f"{names.get(state['policy'], 'real-time')} nice {state['nice']}" for state in states.values()})
    )


def _read(path: Path) -> t.List[t.Dict[str, t.Any]]:
    """What is held; entries that are none are passed over.

    Raises ``OpsError`` for a file that is not a list: what it held would be lost.
    """
    hint = f"Remove {path} when none of its processes runs any more."
    content = documents.content(path, hint=hint)
    if content is None:
        return []
    try:
        entries = documents.parse(content)
    except ValueError as error:
        raise OpsError(f"{path} is damaged: it is no JSON ({error}).", hint=hint) from None
    if not isinstance(entries, list):
        raise OpsError(f"{path} is damaged: it holds {documents.kind(entries)} where a list belongs.", hint=hint)
    return [entry for entry in entries if _whole(entry)]


def _whole(entry: t.Any) -> bool:
    """Whether an entry has what is needed to put its process back."""

    def numbers(value: t.Any, *keys: str) -> bool:
        return isinstance(value, dict) and all(
            isinstance(value.get(key), int) and not isinstance(value.get(key), bool) for key in keys
        )

    return (
        numbers(entry, "pid")
        and documents.number(entry.get("until"))
        and isinstance(entry.get("threads"), dict)
        and bool(entry["threads"])
        and all(name.isdecimal() and numbers(state, "policy", "nice") for name, state in entry["threads"].items())
        and isinstance(entry.get("session"), str)
        and "born" in entry
    )


def _write(path: Path, entries: t.Sequence[t.Dict[str, t.Any]]) -> None:
    write_atomically(path, (json.dumps(list(entries)) + "\n").encode(), mode=0o640)
