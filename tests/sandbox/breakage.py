# SPDX-License-Identifier: GPL-3.0-or-later
"""The incidents that lie outside the backend's files: database, cache, disk.

The others (memory, speech, WebSocket, CORS, CPU) are in the incident release itself, for the reasons of production.
"""

from __future__ import annotations

import os
import time
import typing as t
from pathlib import Path

import psycopg2
import redis as redis_client
from psycopg2 import sql

from tests.sandbox.layout import Facts, Sandbox

MEGABYTE = 1000 * 1000
#: Old temporary files: name and size.
TEMPORARY = {"upload-3f2a.part": 20 * MEGABYTE, "tts-cache-77.wav": 20 * MEGABYTE, "report-export.csv": 18 * MEGABYTE}
#: Over the report's 50 MB.
BIG_LOG = 66 * MEGABYTE


def load(facts: Facts, *files: Path) -> None:
    """Runs SQL files in the database ``pam``; the backend's own login gets its password afterwards."""
    connection = psycopg2.connect(facts.database_dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for file in files:
            cursor.execute(file.read_text())
        cursor.execute(
            sql.SQL("alter role authenticator login password {}").format(sql.Literal(facts.app_database_password))
        )
    connection.close()


def database(_facts: Facts, *, reset: t.Callable[[], None]) -> None:
    """Incident 3: recursive policies, missing tables."""
    reset()


def cache(facts: Facts) -> None:
    """Incident 8: the application's own keys without expiry, beside keys of others that must never be touched."""
    connection = redis_client.Redis.from_url(facts.redis_url)
    connection.flushdb()
    pipe = connection.pipeline()
    for number in range(400):
        pipe.set(f"user_profile:{number}", '{"name": "someone"}')
        pipe.set(f"response:/api/v1/trips/{number}:", '{"trips": []}')
    pipe.set("sess:of-another-application", "untouched")
    pipe.execute()


def disk(sandbox: Sandbox) -> None:
    """Incident 7: a log over 50 MB and temporary files of last week, inside the sandbox."""
    line = b"2025-07-30T02:11:07Z INFO pam request served path=/api/v1/pam/chat status=200 duration_ms=812\n"
    with open(sandbox.log / "access.log", "wb") as file:
        block = line * 10000
        for _ in range(BIG_LOG // len(block)):
            file.write(block)
    last_week = time.time() - 7 * 86400
    for name, size in TEMPORARY.items():
        path = sandbox.tmp / name
        path.write_bytes(os.urandom(4096) * (size // 4096))
        os.utime(path, (last_week, last_week))
