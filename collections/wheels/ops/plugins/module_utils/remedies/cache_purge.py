# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removes cache keys from a Redis that Celery shares: SCAN in measured slices, one atomic look and UNLINK a key, never
a protected key.
"""

from __future__ import annotations

import contextlib
import re
import time
import typing as t
from dataclasses import dataclass, field

from ..core.options import choices, in_range, no_empty_entry
from ..core.results import OpsError, Result
from ..services import broker, redis_errors

#: What other parts of the backend and Celery keep in the same database. Named one by one in ``unprotect``, or never
#: touched.
PROTECTED: t.Tuple[str, ...] = (
    "_kombu.*",
    "unacked*",
    "celery*",
    "_celery*",
    "celery-task-meta-*",
    "celery-taskset-meta-*",
    "*.reply.celery.pidbox",
    "*\x06\x16*",
    "redbeat*",
    "email",
    "default",
    "maintenance",
    "analytics",
    "cleanup",
    "notifications",
    "rate_limit:*",
    "security_event:*",
    "threats:*",
    "severity_count:*",
    "blocked_ip:*",
    "blocked_user:*",
    "sess:*",
    "session:*",
)
TYPES: t.Tuple[str, ...] = ("string", "list", "set", "zset", "hash", "stream")
#: Looks at each key and removes it in one step, so that a key that was refreshed meanwhile stays. Gives the keys
#: that were taken, those left as ``_LEFT`` says, and the bytes.
_SCRIPT = """
local mode, types, idle, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local take, kind_differs, expires, in_use, bytes = 0, 0, 0, 0, 0
for _, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then
    kind = nil
  elseif not string.find(types, ',' .. kind .. ',', 1, true) then
    kind_differs = kind_differs + 1
  elseif ttl == '1' and redis.call('TTL', key) ~= -1 then
    expires = expires + 1
  elseif idle > 0 and redis.call('OBJECT', 'IDLETIME', key) < idle then
    in_use = in_use + 1
  else
    take = take + 1
    bytes = bytes + (redis.call('MEMORY', 'USAGE', key) or 0)
    if mode == 'unlink' then redis.call('UNLINK', key) end
  end
end
return {take, kind_differs, expires, in_use, bytes}
"""
_LEFT = ("type", "expires", "in_use")


@dataclass(frozen=True)
class Options:
    """What is removed. A key is taken when it is under one of ``prefixes`` or matches one of ``patterns`` (Redis
    globs), and all else holds:

    it is of one of ``types``; it was not read or written for ``idle_time`` seconds; with ``missing_ttl`` it never
    expires by itself; no protected pattern matches it. ``max_keys`` and ``max_seconds`` bound one run (0: no bound).
    ``slice_ms`` is what one step may take.
    """

    prefixes: t.Tuple[str, ...] = ()
    patterns: t.Tuple[str, ...] = ()
    idle_time: int = 0
    missing_ttl: bool = False
    types: t.Tuple[str, ...] = ("string",)
    protect: t.Tuple[str, ...] = ()
    unprotect: t.Tuple[str, ...] = ()
    max_keys: int = 0
    max_seconds: float = 300.0
    slice_ms: float = 5.0
    timeout: float = 5.0


@dataclass
class _Count:
    keys: int = 0
    bytes: int = 0


@dataclass
class _Tally:
    """What a run saw: by the caller's pattern what was taken, and why other keys were left."""

    taken: t.Dict[str, _Count] = field(default_factory=dict)
    left: t.Dict[str, int] = field(default_factory=lambda: {"protected": 0, "type": 0, "expires": 0, "in_use": 0})
    scanned: int = 0
    slices: int = 0
    longest_ms: float = 0.0
    complete: bool = True
    moved: int = 0

    @property
    def keys(self) -> int:
        return sum(count.keys for count in self.taken.values())

    @property
    def bytes(self) -> int:
        return sum(count.bytes for count in self.taken.values())


def glob_to_regex(pattern: str) -> str:
    """A Redis glob (``*``, ``?``, ``[a-z]``, ``[^a]``, backslash) as a regular expression for the whole key."""
    out, index = [], 0
    while index < len(pattern):
        character = pattern[index]
        if character == "*":
            out.append(".*")
        elif character == "?":
            out.append(".")
        elif character == "\\" and index + 1 < len(pattern):
            index += 1
            out.append(re.escape(pattern[index]))
        elif character == "[" and "]" in pattern[index + 1 :]:
            end = pattern.index("]", index + 1)
            inner = pattern[index + 1 : end]
            negated = inner.startswith("^")
            inner = "".join(word if word == "-" else re.escape(word) for word in (inner[1:] if negated else inner))
            out.append(f"[{'^' if negated else ''}{inner}]" if inner else "(?!)")
            index = end
        else:
            out.append(re.escape(character))
        index += 1
    return f"(?:{''.join(out)})"


def escape_glob(text: str) -> str:
    """Text that a Redis glob matches as it stands."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


def _matcher(patterns: t.Sequence[str]) -> t.Pattern[str]:
    return re.compile("|".join(glob_to_regex(pattern) for pattern in patterns) or "(?!)", re.S)


def validate(options: Options) -> None:
    """Refuses nonsense; nothing is asked of Redis yet."""
    if not options.prefixes and not options.patterns:
        raise OpsError(
            "Neither a prefix nor a pattern is named.",
            hint="Name what may be removed, for example prefixes: ['user_profile:'].",
        )
    no_empty_entry(
        "prefixes", options.prefixes, reason="it would match every key", hint="Name the prefixes of the cache."
    )
    for pattern in options.patterns:
        if not re.match(r"(?:[^*?\[\\]|\\.)", pattern):
            raise OpsError(
                f"The pattern {pattern!r} does not begin with a letter of its own.",
                hint="It would reach keys of everyone. Begin it with the cache's prefix.",
            )
    choices("types", options.types, TYPES)
    no_empty_entry("protect", options.protect, hint="Name the keys that are to stay, for example session:*.")
    unknown = [pattern for pattern in options.unprotect if pattern not in PROTECTED]
    if unknown:
        raise OpsError(
            f"unprotect must contain only protected patterns, got {', '.join(unknown)}.",
            hint=f"Name one of these exactly: {', '.join(map(repr, PROTECTED))}.",
        )
    in_range("idle_time", options.idle_time, 0, 10 * 365 * 86400, unit="seconds")
    in_range("max_keys", options.max_keys, 0, 10**9)
    in_range("max_seconds", options.max_seconds, 0, 86400, unit="seconds")
    in_range("slice_ms", options.slice_ms, 0.5, 100, unit="ms")
    in_range("timeout", options.timeout, 0.1, 300, unit="seconds")
    shield = _matcher([pattern for pattern in PROTECTED if pattern not in options.unprotect])
    for wanted in (*options.prefixes, *options.patterns):
        literal = re.sub(r"[*?\[].*", "", wanted, flags=re.S) if wanted in options.patterns else wanted
        if shield.fullmatch(literal) or shield.fullmatch(literal + "x"):
            guard = next(
                pattern
                for pattern in PROTECTED
                if _matcher([pattern]).fullmatch(literal) or _matcher([pattern]).fullmatch(literal + "x")
            )
            raise OpsError(
                f"{wanted!r} lies within the protected {guard!r}.",
                hint=f"If that is really meant, set unprotect: [{guard!r}].",
            )


def run(url: str, options: Options, *, check_mode: bool = False) -> Result:
    """Removes what the options name, or in check mode counts it; see the module's documentation for the result."""
    import redis

    validate(options)
    try:
        with contextlib.closing(broker.connect(url, timeout=options.timeout)) as client:
            if not broker.in_cluster(client):
                return _run([client], options, check_mode)
            with contextlib.ExitStack() as stack:
                nodes = [
                    stack.enter_context(contextlib.closing(node))
                    for node in broker.primaries(client, url, timeout=options.timeout)
                ]
                if not nodes:
                    raise OpsError("The cluster has no slots.", hint="Give its nodes slots: CLUSTER ADDSLOTSRANGE.")
                return _run(nodes, options, check_mode, cluster=True)
    except redis.exceptions.RedisError as error:
        if "LFU" in str(error):
            raise OpsError(
                "idle_time cannot be used here: the server evicts by frequency (LFU) and keeps no idle times.",
                hint="Leave idle_time out.",
            ) from None
        raise redis_errors.explain(
            error, url, hint="Start it, or correct url. What was removed stays removed; run it again."
        ) from None


def _facts(nodes: t.Sequence[t.Any]) -> t.Dict[str, t.Any]:
    return {
        "key_count": sum(int(node.dbsize()) for node in nodes),
        "used_memory_bytes": sum(int(node.info("memory")["used_memory"]) for node in nodes),
    }


def _run(nodes: t.Sequence[t.Any], options: Options, check_mode: bool, *, cluster: bool = False) -> Result:
    """``nodes``: one client, or one for each primary of a cluster."""
    if not cluster and nodes[0].info("replication").get("role") == "slave":
        raise OpsError("This Redis is a replica.", hint="Give the url of the primary.")
    shown = {f"{prefix}*": f"{escape_glob(prefix)}*" for prefix in options.prefixes}
    shown.update({pattern: pattern for pattern in options.patterns})
    tally = _Tally(taken={name: _Count() for name in shown})
    guards = [pattern for pattern in PROTECTED if pattern not in options.unprotect] + list(options.protect)
    queues = {queue for node in nodes for queue in broker.queues(node, ())}
    guards += [escape_glob(queue) for queue in sorted(queues) if queue not in options.unprotect]
    before = _facts(nodes)
    start = time.monotonic()
    patterns = list(shown.values())
    for node in nodes:
        for index, name in enumerate(shown):
            _sweep(
                node,
                name,
                patterns[index],
                _matcher(patterns[:index]),
                _matcher(guards),
                options,
                tally,
                check_mode,
                start,
                cluster=cluster,
            )
    after = {
        "key_count": before["key_count"] - tally.keys,
        "used_memory_bytes": before["used_memory_bytes"] - tally.bytes,
    }
    if not check_mode and tally.keys:
        for node in nodes:
            _wait_for_lazy_free(node)
        after = _facts(nodes)
    actions = [
        {
            "action": "unlink",
            "target": name,
            "changed": bool(count.keys),
            "key_count": count.keys,
            "bytes_freed": count.bytes,
        }
        for name, count in tally.taken.items()
    ]
    verb = "would be removed" if check_mode else "removed"
    count = before["key_count"]
    rest = "" if tally.complete or tally.moved else " Not all was looked at: the limit was reached."
    if tally.moved:
        rest += f" {tally.moved} keys moved to another node meanwhile: run it again."
    return Result(
        changed=bool(tally.keys),
        before=before,
        after=after,
        actions=actions,
        msg=(
            f"{tally.keys} keys ({tally.bytes} bytes) {verb}; {tally.left['protected']} protected keys left"
            f" alone.{rest}"
        ),
        diff=[
            {
                "before_header": "keys",
                "after_header": "keys",
                "before": f"{count} keys\n",
                "after": f"{count - tally.keys} keys\n",
            }
        ],
        extra={
            "key_count": tally.keys,
            "bytes_freed": tally.bytes,
            "left": tally.left,
            "scanned": tally.scanned,
            "slices": tally.slices,
            "complete": tally.complete,
            "longest_slice_ms": round(tally.longest_ms, 2),
            "duration_ms": round((time.monotonic() - start) * 1000, 1),
        },
    )


def _sweep(
    client: t.Any,
    name: str,
    pattern: str,
    earlier: t.Pattern[str],
    shield: t.Pattern[str],
    options: Options,
    tally: _Tally,
    check_mode: bool,
    start: float,
    *,
    cluster: bool,
) -> None:
    """One SCAN over the database for one pattern.

    COUNT follows the time that a slice took, so that a busy or slow server is asked for less at once. Between two
    slices we rest for half of that time: others get the server meanwhile.
    """
    script = client.register_script(_SCRIPT)
    kinds = f",{','.join(options.types)},"
    cursor, size = 0, 200
    while True:
        begun = time.monotonic()
        cursor, keys = client.scan(cursor, match=pattern, count=size)
        scan_ms = (time.monotonic() - begun) * 1000
        tally.scanned += size
        candidates = []
        for key in dict.fromkeys(keys):
            if earlier.fullmatch(key):
                continue  # it was looked at for a pattern before this one
            if shield.fullmatch(key):
                tally.left["protected"] += 1
            else:
                candidates.append(key)
        slowest = scan_ms
        # SCAN may give many keys at once from a table that is being resized: each step is cut to the size of a slice.
        for index in range(0, len(candidates), size):
            part = candidates[index : index + size]
            if options.max_keys:
                part = part[: options.max_keys - tally.keys]
            if not part:
                break
            begun = time.monotonic()
            arguments = [
                "count" if check_mode else "unlink",
                kinds,
                options.idle_time,
                "1" if options.missing_ttl else "0",
            ]
            answers = (
                _key_by_key(client, script, part, arguments, tally) if cluster else script(keys=part, args=arguments)
            )
            slowest = max(slowest, (time.monotonic() - begun) * 1000)
            tally.taken[name].keys += answers[0]
            tally.taken[name].bytes += answers[4]
            for code, count in zip(_LEFT, answers[1:4]):
                tally.left[code] += count
        tally.slices += 1
        tally.longest_ms = max(tally.longest_ms, slowest)
        size = int(min(5000, max(10, size * min(2.0, max(0.3, options.slice_ms / max(slowest, 0.01))))))
        full = bool(options.max_keys) and tally.keys >= options.max_keys
        late = bool(options.max_seconds) and time.monotonic() - start > options.max_seconds
        if cursor == 0:
            return
        if full or late:
            tally.complete = False
            return
        time.sleep(slowest / 2000)


def _key_by_key(
    client: t.Any, script: t.Any, keys: t.Sequence[str], arguments: t.Sequence[t.Any], tally: _Tally
) -> t.List[int]:
    """The script for each key by itself, as those of one node lie in many slots; the sum of its answers.

    A key whose slot moved to another node since it was seen is left to the next run.
    """
    import redis

    sums = [0, 0, 0, 0, 0]
    pipe = client.pipeline(transaction=False)
    for key in keys:
        script(keys=[key], args=arguments, client=pipe)
    for answer in pipe.execute(raise_on_error=False):
        if isinstance(answer, redis.exceptions.RedisError):
            if redis_errors.kind(answer) != "cluster":
                raise answer
            tally.moved += 1
            tally.complete = False
            continue
        sums = [total + count for total, count in zip(sums, answer)]
    return sums


def _wait_for_lazy_free(client: t.Any, timeout: float = 5.0) -> None:
    """UNLINK frees in the background: the memory is measured when that is done."""
    deadline = time.monotonic() + timeout
    while int(client.info("memory").get("lazyfree_pending_objects", 0)) and time.monotonic() < deadline:
        time.sleep(0.05)
