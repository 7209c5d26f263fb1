# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the backend asks of the host: one JSON file each in ``requests`` of the state directory, written by the health API.

The backend's user owns that directory, so nothing in it is trusted: it is reached through one descriptor, links are not followed,
and of a request only known keys are taken, as short texts.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import typing as t
from pathlib import Path

from ..core.redaction import redact
from ..core.results import OpsError, Result

KINDS = ("recover", "restart", "alert")
KEYS = ("time", "kind", "reason", "requested_by", "service")
#: Bytes of a request, characters of each of its texts, and how many are looked at in one run.
MAX_BYTES, MAX_TEXT, MAX_REQUESTS = 65_536, 200, 100
#: Entries of the directory of any kind.
MAX_ENTRIES = 10_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def handle(directory: Path, done: t.Sequence[str] = (), *, check_mode: bool = False) -> Result:
    """Reads what is pending, oldest first, and takes the files of the ids ``done`` away.

    ``extra`` has ``requests`` and ``refused``, both without those that are done; an entry's ``id`` is the name of its file without
    ``.json``. Raises ``OpsError`` for an id that cannot be one and for a directory that cannot be read or changed.
    """
    for name in done:
        if not _ID.fullmatch(name):
            raise OpsError(f"{name[:100]!r} is no id of a request.", hint="Give ids as this module returned them.")
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return Result(
            msg="Nothing is asked for.",
            before={"pending": 0},
            after={"pending": 0},
            extra={"requests": [], "refused": []},
        )
    except OSError as error:
        raise OpsError(
            f"Cannot read {directory}: {error.strerror}.", hint="It is a directory that the backend's user owns."
        ) from error
    requests: t.List[t.Dict[str, t.Any]] = []
    refused: t.List[t.Dict[str, t.Any]] = []
    actions: t.List[t.Dict[str, t.Any]] = []
    try:
        names = _names(descriptor)
        for name in names:
            if name[:-5] in done:
                actions.append({"action": "take", "target": str(directory / name), "changed": True})
                if not check_mode:
                    _unlink(descriptor, name, directory)
            elif len(requests) + len(refused) < MAX_REQUESTS:
                found = _read(descriptor, name)
                (refused if "why" in found else requests).append({"id": name[:-5], **found})
    finally:
        os.close(descriptor)
    return Result(
        changed=bool(actions),
        msg=f"{len(requests)} requests are pending, {len(refused)} cannot be read, {len(actions)} taken away.",
        before={"pending": len(names)},
        after={"pending": len(names) - len(actions)},
        actions=actions,
        extra={"requests": requests, "refused": refused},
    )


def _names(descriptor: int) -> t.List[str]:
    """The names that may be requests, oldest first; of a directory that somebody filled up, no more than are looked at in some runs."""
    names = []
    with os.scandir(descriptor) as entries:
        for entry in itertools.islice(entries, MAX_ENTRIES):
            if entry.name.endswith(".json") and _ID.fullmatch(entry.name[:-5]):
                names.append(entry.name)
    return sorted(names)


def _unlink(descriptor: int, name: str, directory: Path) -> None:
    try:
        os.unlink(name, dir_fd=descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OpsError(f"Cannot remove {directory / name}: {error.strerror}.") from error


def _read(descriptor: int, name: str) -> t.Dict[str, t.Any]:
    """The known keys of one request, or ``why`` it is none."""
    try:
        # Not to wait for the other end of a named pipe.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
    except OSError as error:
        return {"why": error.strerror}
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return {"why": "Not a regular file"}
        if status.st_nlink > 1:
            # The other name may be a file of root's, which its owner could not read.
            return {"why": f"It has {status.st_nlink} names"}
        text = os.read(file, MAX_BYTES + 1)
    finally:
        os.close(file)
    if len(text) > MAX_BYTES:
        return {"why": f"More than {MAX_BYTES} bytes"}
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {"why": "Not JSON"}
    if not isinstance(entry, dict) or entry.get("kind") not in KINDS:
        return {"why": f"Its kind is none of {', '.join(KINDS)}"}
    # Shown on a terminal and kept in the history: no control characters, no secret.
    return {key: _plain(str(entry.get(key, ""))) for key in KEYS}


def _plain(text: str) -> str:
    return redact("".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT]))
