# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What earlier runs of ``memory_trim`` measured: a rung that did not help is foretold, and one that costs a process is
not taken again in vain.
"""

from __future__ import annotations

import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from ...core.results import OpsError
from ...state import documents
from ...state.restarts import require_writable

#: A service that has grown back this soon (seconds) after its restart would do so again: another restart is no cure.
REGROWTH = 600.0


@dataclass(frozen=True)
class Note:
    """One rung's outcome. Bytes; ``time`` in seconds since the epoch. ``processes``: those that it left.

    ``whole``: all that it could replace was.
    """

    time: float
    freed: int
    used_after: int
    processes: t.Tuple[int, ...] = ()
    whole: bool = True

    @property
    def age(self) -> float:
        """Seconds since; a clock that was put back makes it 0."""
        return max(0.0, time.time() - self.time)

    @property
    def when(self) -> str:
        return time.strftime("at %Y-%m-%d %H:%M:%S", time.localtime(self.time))

    def grown(self, bytes_in_use: int, min_gain: int) -> bool:
        """Whether so much more is used now that the outcome says nothing any more; a twentieth more is no growth."""
        return bytes_in_use >= self.used_after + max(min_gain, self.used_after // 20)


class Notes:
    """``memory.json`` in the state directory: the last outcome of each rung for a service and the subject whose share
    it was to lower.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "memory.json"

    def require_writable(self) -> None:
        """Raises ``OpsError`` where an outcome could not be kept; touches nothing."""
        require_writable(self.path.parent)

    def _all(self) -> t.Dict[str, t.Any]:
        try:
            return documents.load(self.path, hint="It is written again.") or {}
        except OpsError:
            return {}  # damaged, or not ours to read: as if nothing was known

    @staticmethod
    def _key(rung: str, target: str, subject: str) -> str:
        return f"{rung}\t{target}\t{subject}"

    def last(self, rung: str, target: str, subject: str) -> t.Optional[Note]:
        entry = self._all().get(self._key(rung, target, subject))
        if not isinstance(entry, dict):
            return None
        try:
            if not documents.number(entry["time"]):
                return None
            return Note(
                float(entry["time"]),
                int(entry["freed"]),
                int(entry["used_after"]),
                tuple(map(int, entry["processes"])),
                bool(entry["whole"]),
            )
        except (KeyError, OverflowError, TypeError, ValueError):
            return None

    def keep(self, rung: str, target: str, subject: str, note: Note) -> None:
        """Raises ``OpsError`` where it cannot be written."""
        every = self._all()
        every[self._key(rung, target, subject)] = asdict(note)
        # Subjects come and go with cgroups; the newest say what there is now.
        whole = [item for item in every.items() if isinstance(item[1], dict) and documents.number(item[1].get("time"))]
        newest = sorted(whole, key=lambda item: -float(item[1]["time"]))[:200]
        try:
            documents.write(self.path, dict(newest))
        except OSError as error:
            raise OpsError(
                f"The state directory {self.path.parent} cannot be written: {error.strerror}.",
                hint="Run as root, or set state_dir.",
            ) from None
