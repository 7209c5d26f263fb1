# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who else rotates a log: other policies of logrotate, a container engine. And how often logrotate runs at all."""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
import typing as t
from pathlib import Path

from ...core.results import OpsError

_SCRIPTS = frozenset({"postrotate", "prerotate", "firstaction", "lastaction", "preremove"})
#: Names of policies that logrotate passes over (``tabooext``).
_TABOO = re.compile(r".*(?:,v|~|\.(?:bak|cfsaved|disabled|dpkg-\w+|rpm(?:save|orig|new)|swp|ucf-\w+))")
#: Logs that a container engine rotates and reads back itself: by where they lie, whose they are, and what to set.
_ENGINES: t.Tuple[t.Tuple[t.Pattern[str], str, str], ...] = (
    (
        re.compile(r"\A/var/lib/docker/containers/|/containers/[^/]+/(?:[^/]*-json\.log|local-logs/)"),
        "Docker",
        'Set "log-opts": {"max-size": "50m", "max-file": "5"} in /etc/docker/daemon.json, and make the container anew.',
    ),
    (
        re.compile(r"/[a-z]+-containers/[^/]+/userdata/"),
        "Podman",
        "Set log_size_max in the section [containers] of /etc/containers/containers.conf, and make the container anew.",
    ),
    (
        re.compile(r"\A/var/log/(?:pods|containers)/"),
        "Kubernetes",
        "Set containerLogMaxSize and containerLogMaxFiles in the configuration of the kubelet.",
    ),
)
_UNITS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")


def require_no_container(path: str) -> None:
    """Raises ``OpsError`` for a log, or a pattern of logs, that a container engine keeps."""
    for pattern, engine, hint in _ENGINES:
        if pattern.search(path):
            raise OpsError(f"{path} is a log of a container: {engine} rotates it, and reads it back.", hint=hint)


def log_patterns(text: str) -> t.List[str]:
    """The logs and patterns that a policy of logrotate names."""
    found: t.List[str] = []
    inside = script = False
    for line in map(str.strip, text.splitlines()):
        first = line.partition(" ")[0]
        if script:
            script = first != "endscript"
        elif line.startswith("#"):
            continue
        elif inside:
            script = first in _SCRIPTS
            inside = "}" not in line
        else:
            head, brace, tail = line.partition("{")
            if head.startswith(("/", '"', "'")):
                try:
                    found += shlex.split(head)
                except ValueError:
                    found += head.split()
            inside = bool(brace) and "}" not in tail
    return found


#: One place of a pattern: the characters that it allows, or with True all but these. None is ``*``.
_Place = t.Optional[t.Tuple[t.FrozenSet[str], bool]]
_WITHIN_A_NAME = (frozenset("/"), True)
_END: t.Tuple[t.FrozenSet[str], bool] = (frozenset(), False)
_PLACE = re.compile(r"\*+|\?|\[[!^]?\][^\]]*\]|\[[!^]?[^\]]+\]|\\(.)|(.)", re.DOTALL)


def _places(pattern: str) -> t.List[_Place]:
    places: t.List[_Place] = []
    for match in _PLACE.finditer(pattern):
        token = match[0]
        if token.startswith("*"):
            places.append(None)
        elif token == "?":
            places.append((frozenset("/"), True))
        elif match[1] or match[2]:
            places.append((frozenset(match[1] or match[2]), False))
        else:
            negated = token[1] in "!^"
            body = token[2 if negated else 1 : -1]
            chars: t.Set[str] = set()
            for low, high in re.findall(r"(.)(?:-(.))?", body, re.DOTALL):
                chars |= {chr(code) for code in range(ord(low), ord(high or low) + 1)}
            places.append((frozenset(chars | {"/"}) if negated else frozenset(chars), negated))
    return places


def _share(one: t.Tuple[t.FrozenSet[str], bool], other: t.Tuple[t.FrozenSet[str], bool]) -> bool:
    """Whether two places have a character in common."""
    if one[1] and other[1]:
        return True
    if one[1] or other[1]:
        allowed, forbidden = (other[0], one[0]) if one[1] else (one[0], other[0])
        return bool(allowed - forbidden)
    return bool(one[0] & other[0])


def overlap(one: str, other: str) -> bool:
    """Whether two patterns of glob(7) can match the same path. ``*`` and ``?`` match no slash."""
    # What stands behind the end shares a character with nothing.
    ours, theirs = [*_places(one), _END], [*_places(other), _END]

    @functools.cache
    def from_here(left: int, right: int) -> bool:
        place, counterpart = ours[left], theirs[right]
        if place is _END and counterpart is _END:
            return True
        if place is None:
            return from_here(left + 1, right) or (
                (counterpart is None or _share(counterpart, _WITHIN_A_NAME)) and from_here(left, right + 1)
            )
        if counterpart is None:
            return from_here(left, right + 1) or (_share(place, _WITHIN_A_NAME) and from_here(left + 1, right))
        return _share(place, counterpart) and from_here(left + 1, right + 1)

    return from_here(0, 0)


def others(own: Path, *, main: str = "") -> t.List[Path]:
    """The files that logrotate reads beside a policy: those in its directory, and ``main``."""
    entries = sorted(own.parent.iterdir()) if own.parent.is_dir() else []
    read = [entry for entry in entries if entry != own and entry.is_file() and not _TABOO.fullmatch(entry.name)]
    return ([Path(main)] if main and os.path.isfile(main) else []) + read


def conflicts(paths: t.Sequence[str], policies: t.Sequence[Path]) -> t.Tuple[t.Dict[str, t.List[str]], t.List[str]]:
    """Which logs of ``paths`` other policies name already, by policy: logrotate then drops one of the two. And a
    sentence for each policy that may name the same log one day.
    """
    taken: t.Dict[str, t.List[str]] = {}
    sentences = []
    ours = {path: set(glob.glob(path)) for path in paths}
    for policy in policies:
        try:
            patterns = log_patterns(policy.read_text(encoding="utf-8", errors="surrogateescape"))
        except OSError:
            continue
        for path, pattern in ((path, pattern) for path in paths for pattern in patterns):
            common = ours[path] & set(glob.glob(pattern))
            if common or path == pattern:
                taken.setdefault(str(policy), []).extend(sorted(common) or [path])
            elif overlap(path, pattern):
                literal = next((name for name in (path, pattern) if glob.escape(name) == name), "")
                if literal:
                    taken.setdefault(str(policy), []).append(literal)
                else:
                    sentences.append(
                        f"{policy} rotates {pattern}, which can match the same log as {path}: logrotate would drop one of"
                        " the two."
                    )
    return {policy: list(dict.fromkeys(logs)) for policy, logs in taken.items()}, sentences


def slower_than_hourly(root: str = "/") -> str:
    """What runs logrotate, in words, where that is not every hour; empty where it is.

    Read from the files of systemd and cron, as systemd need not run.
    """
    if os.access(os.path.join(root, "etc/cron.hourly/logrotate"), os.X_OK):
        return ""
    moments = _calendar(root)
    if any(re.match(r"(?:hourly|minutely)\Z|(?:.*\s)?\*:", moment) for moment in moments):
        return ""
    if moments:
        return f"logrotate.timer has OnCalendar={', '.join(moments)}"
    if os.path.exists(os.path.join(root, "etc/cron.daily/logrotate")):
        return "cron runs it daily"
    return "nothing runs it"


def _calendar(root: str) -> t.List[str]:
    """The moments of ``logrotate.timer`` and its drop-ins: the first directory wins, an empty value clears."""
    directories = [os.path.join(root, place) for place in _UNITS]
    unit = next((path for path in (f"{place}/logrotate.timer" for place in directories) if os.path.exists(path)), "")
    drop_ins: t.Dict[str, str] = {}
    for directory in directories:
        for path in glob.glob(f"{glob.escape(directory)}/logrotate.timer.d/*.conf"):
            drop_ins.setdefault(os.path.basename(path), path)
    moments: t.List[str] = []
    for path in filter(None, [unit, *(drop_ins[name] for name in sorted(drop_ins))]):
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _equals, value = line.partition("=")
            if name.strip() == "OnCalendar":
                moments = [*moments, value.strip()] if value.strip() else []
    return moments
