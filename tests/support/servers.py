# SPDX-License-Identifier: GPL-3.0-or-later
"""Real PostgreSQL and Redis servers in a temporary directory, on free ports, for as long as a test needs them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import pytest
import redis as redis_client

from tests.sandbox import binaries, unprivileged
from tests.support.waiting import free_port, port_open, wait_until

SHIM = Path(__file__).with_name("supabase_shim.sql")


@dataclass
class Postgres:
    """A running server. ``database()`` makes a fresh database and gives its DSN (user ``postgres``, superuser)."""

    programs: binaries.Programs
    directory: Path
    port: int
    process: subprocess.Popen[bytes]
    _names: t.Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @functools.cached_property
    def major(self) -> int:
        with contextlib.closing(psycopg2.connect(self.dsn())) as connection:
            return int(connection.server_version) // 10000

    def require(self, major: int, what: str) -> None:
        """Skips the test on an older server: none that the suite chooses by itself is."""
        if self.major < major:
            pytest.skip(f"PostgreSQL {self.major} has no {what}")

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"host=127.0.0.1 port={self.port} dbname={database} user={user}"

    def database(self, *, supabase: bool = False) -> str:
        """The DSN of a new, empty database; ``supabase`` loads the roles, schema and functions of Supabase."""
        name = f"test_{os.getpid()}_{next(self._names)}"
        connection = psycopg2.connect(self.dsn())
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'create database "{name}"')
        connection.close()
        if supabase:
            self.psql(self.dsn(name), file=SHIM)
        return self.dsn(name)

    def psql(self, dsn: str, *, sql: str = "", file: t.Optional[Path] = None, check: bool = True) -> str:
        """Runs psql, the witness that shares no code with ours; gives its output (tuples only, unaligned)."""
        words = [self.programs.path("psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn]
        words += ["-f", str(file)] if file else ["-c", sql]
        done = subprocess.run(words, capture_output=True, text=True, env=self.programs.environ(), check=False)
        if check and done.returncode:
            raise AssertionError(f"psql: {done.stderr}")
        return done.stdout.strip()


@contextlib.contextmanager
def postgres(*, newest: bool = False, settings: t.Sequence[str] = ()) -> t.Iterator[Postgres]:
    """A PostgreSQL server of its own (trust authentication, fsync off)."""
    programs = binaries.postgres(newest=newest)
    directory = Path(tempfile.mkdtemp(prefix="wops-pg-"))
    prefix = list(unprivileged.prefix())
    if prefix and prefix[0] == "setpriv":
        shutil.chown(directory, 65534, 65534)
    data = directory / "data"
    subprocess.run(
        [
            *prefix,
            programs.path("initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C",
        ],
        check=True,
        capture_output=True,
        env=programs.environ(),
    )
    port = free_port()
    options = [
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        f"unix_socket_directories={directory}",
        "listen_addresses=127.0.0.1",
        *settings,
    ]
    words = [*prefix, programs.path("postgres"), "-D", str(data), "-p", str(port)]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            words + [word for option in options for word in ("-c", option)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=programs.environ(),
            start_new_session=True,
        )
    server = Postgres(programs, directory, port, process)
    try:
        wait_until(lambda: psycopg2.connect(server.dsn()), what=f"PostgreSQL on port {port}").close()
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Redis:
    """A running server with its URL and its unix socket."""

    programs: binaries.Programs
    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cli(self, *words: str) -> str:
        """Runs redis-cli, the witness that shares no code with ours."""
        done = subprocess.run(
            [self.programs.path("redis-cli"), "-p", str(self.port), *words],
            capture_output=True,
            text=True,
            env=self.programs.environ(),
            check=True,
        )
        return done.stdout.strip()


@contextlib.contextmanager
def redis(*, options: t.Sequence[str] = ()) -> t.Iterator[Redis]:
    """A Redis server of its own, without persistence unless ``options`` ask for it."""
    programs = binaries.redis()
    directory = Path(tempfile.mkdtemp(prefix="wops-redis-"))
    port = free_port()
    words = [programs.path("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    if "--cluster-enabled" in options:
        # Its own choice is 10000 above the port, where a connection of some other program may be.
        words += ["--cluster-port", str(free_port())]
    words += [
        "--save",
        "",
        "--unixsocket",
        str(directory / "redis.sock"),
        "--logfile",
        str(directory / "log"),
        *options,
    ]
    process = subprocess.Popen(words, env=programs.environ(), start_new_session=True)
    server = Redis(programs, directory, port, process)
    try:
        wait_until(lambda: port_open(port) and redis_client.Redis(port=port).ping(), what=f"Redis on port {port}")
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)
