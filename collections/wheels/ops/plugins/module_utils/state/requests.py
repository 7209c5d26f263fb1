# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the backend asks of the host: one JSON file each in ``requests`` of the state directory, written by the health
API.

The backend's user owns that directory, so nothing in it is trusted: it is reached through one descriptor, links are not
followed, and of a request only known keys are taken, as short texts.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.redaction import redact
from ..core.results import OpsError, Result
from . import documents

KINDS = ("recover", "restart", "alert")
#: Bytes of a request, characters of each of its texts, and how many are looked at in one run.
MAX_BYTES, MAX_TEXT, MAX_REQUESTS = 65_536, 200, 100
#: Entries of the directory of any kind.
MAX_ENTRIES = 10_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Request:
    """One request, as the health API writes it (``write_request`` of ``app/api/v1/system_health.py``); ``id`` names its
    file.
    """

    id: str
    kind: str
    time: str = ""
    reason: str = ""
    requested_by: str = ""
    service: str = ""

    @classmethod
    def from_json(cls, identifier: str, text: bytes) -> Request:
        """The known keys of a file, each a short text of one line without secrets.

        Raises ``ValueError`` that says why it is no request.
        """
        if len(text) > MAX_BYTES:
            raise ValueError(f"More than {MAX_BYTES} bytes")
        try:
            entry = documents.parse(text)
        except ValueError:
            raise ValueError("Not JSON") from None
        if not isinstance(entry, dict) or entry.get("kind") not in KINDS:
            raise ValueError(f"Its kind is none of {', '.join(KINDS)}")
        # Shown on a terminal and kept in the history: no control characters, no secret.
        keys = ("kind", "time", "reason", "requested_by", "service")
        return cls(id=identifier, **{key: _plain(str(entry.get(key, ""))) for key in keys})

    def as_json(self) -> t.Dict[str, str]:
        return asdict(self)


def handle(directory: Path, completed: t.Sequence[str] = (), *, check_mode: bool = False) -> Result:
    """Reads what is pending, oldest first, and takes the files of the ids ``completed`` away.

    ``extra`` has ``requests`` and ``refused``, both without those that are done; an entry's ``id`` is the name of its
    file without ``.json``. Raises ``OpsError`` for an id that cannot be one and for a directory that cannot be read or
    changed.
    """
    for name in completed:
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
            if name[:-5] in completed:
                actions.append({"action": "take", "target": str(directory / name), "changed": True})
                if not check_mode:
                    _unlink(descriptor, name, directory)
            elif len(requests) + len(refused) < MAX_REQUESTS:
                try:
                    requests.append(Request.from_json(name[:-5], _content(descriptor, name)).as_json())
                except ValueError as error:
                    refused.append({"id": name[:-5], "why": str(error)})
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
    """The names that may be requests, oldest first; of a directory that somebody filled up, no more than are looked at
    in some runs.
    """
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


def _content(descriptor: int, name: str) -> bytes:
    """The first bytes of one file, one more than a request may have.

    Raises ``ValueError`` that says why they are not read.
    """
    try:
        # Not to wait for the other end of a named pipe.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
    except OSError as error:
        raise ValueError(error.strerror) from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("Not a regular file")
        if status.st_nlink > 1:
            # The other name may be a file of root's, which its owner could not read.
            raise ValueError(f"It has {status.st_nlink} hard links")
        return os.read(file, MAX_BYTES + 1)
    finally:
        os.close(file)


def _plain(text: str) -> str:
    return redact("".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT]))
