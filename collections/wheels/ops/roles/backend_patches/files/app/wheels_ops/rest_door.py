# SPDX-License-Identifier: MIT
"""The database through Supabase's REST interface, for a backend that has no ``DATABASE_URL``.

``SUPABASE_URL`` with ``SUPABASE_KEY`` or ``SUPABASE_SERVICE_ROLE_KEY``; ``SUPABASE_REPLICA_URL`` names one that serves
reads while the first is away. Nothing is written, and no row is asked for: ``limit=0`` has the server plan a statement,
which tells whether a table is there and whether its policies recurse.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import typing as t
import urllib.error
import urllib.request
from urllib.parse import quote

#: Tables and policies change rarely: in between one table is asked, for whether the database answers at all.
TABLES_EVERY_SECONDS = 60.0
_LARGEST = 65_536


class DoorClosed(ConnectionError):
    """The interface, or the database behind it, does not answer; or it refuses the key."""


class RestDoor:
    """Stands where the guard keeps a connection to PostgreSQL."""

    def __init__(self, url: str, key: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._headers = {"apikey": key, "Authorization": f"Bearer {key}", "Accept": "application/json"}
        self._tables: t.Tuple[float, t.List[str], t.List[str]] = (float("-inf"), [], [])

    @classmethod
    def of(cls, name: str, timeout: float) -> t.Optional[RestDoor]:
        """The interface that a variable names; None where it, or the key, is not set."""
        url = os.environ.get(name, "").strip()
        key = (os.environ.get("SUPABASE_KEY") or os.environ.get("SUPABASE_SERVICE_ROLE_KEY") or "").strip()
        return cls(url, key, timeout) if url.startswith(("https://", "http://")) and key else None

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None:
        """There is no connection to end: each question has its own."""

    async def facts(self, tables: t.Sequence[str]) -> t.Tuple[float, t.List[str], t.List[str]]:
        """(milliseconds of a question, missing tables, tables whose policies recurse). Raises ``DoorClosed``."""
        asked, missing, recursive = self._tables
        started = time.perf_counter()
        first = await self.state(tables[0] if tables else "profiles")
        milliseconds = 1000 * (time.perf_counter() - started)
        if time.monotonic() - asked >= TABLES_EVERY_SECONDS:
            states = dict(zip(tables, [first, *await asyncio.gather(*(self.state(name) for name in tables[1:]))]))
            missing = sorted(name for name, state in states.items() if state == "missing")
            recursive = sorted(name for name, state in states.items() if state == "recursive")
            self._tables = (time.monotonic(), missing, recursive)
        return milliseconds, missing, recursive

    async def state(self, table: str) -> str:
        """``there``, ``missing`` or ``recursive``."""
        status, code = await asyncio.to_thread(self._get, f"/rest/v1/{quote(table, safe='')}?select=*&limit=0")
        if code == "42P17":
            return "recursive"
        if code in ("PGRST205", "42P01"):
            return "missing"
        if code == "42501" or status < 400:  # a right that this key lacks says that the table is there
            return "there"
        if status in (401, 403):
            raise DoorClosed("the key of SUPABASE_KEY is refused")
        raise DoorClosed(f"the REST interface answers {status} {code}".rstrip())

    def _get(self, path: str) -> t.Tuple[int, str]:
        """(status, the code of PostgREST or PostgreSQL in an error's body). Raises ``DoorClosed``."""
        request = urllib.request.Request(self.url + path, headers=self._headers)  # noqa: S310 - http and https alone
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310 - as above
                return answer.status, ""
        except urllib.error.HTTPError as error:
            with error:
                try:
                    document = json.loads(error.read(_LARGEST))
                except (ValueError, OSError):
                    document = None
            return error.code, str(document.get("code") or "") if isinstance(document, dict) else ""
        except OSError as error:
            raise DoorClosed(f"the REST interface does not answer: {type(error).__name__}") from None
