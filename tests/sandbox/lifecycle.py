# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts, breaks and stops the sandbox. Readiness is asked for, never slept for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import typing as t
import xmlrpc.client

import psutil
import psycopg2
import redis as redis_client
import requests

from tests.backend.materialise import materialise
from tests.sandbox import binaries, breakage, supervisor, unprivileged
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import PROGRAMS, Facts, Sandbox
from tests.support.waiting import wait_until

DATABASE = REPOSITORY / "tests/backend/database"
SHIM = REPOSITORY / "tests/support/supabase_shim.sql"


#: Releases whose own files keep the application from starting.
NEVER_STARTS = ("august",)


def say(text: str) -> None:
    sys.stdout.write(f"  {text}\n")
    sys.stdout.flush()


def up(sandbox: Sandbox) -> int:
    """Starts what does not run yet, in order, and waits for each until it answers."""
    started = time.monotonic()
    start_servers(sandbox)
    facts = sandbox.facts()
    if not _start_applications(sandbox):
        say(f"the release {sandbox.release} does not start by itself; deploy to it")
        return 0
    say(f"the backend answers on {facts.base_url}")
    say(f"the Celery worker and beat run; sandbox up in {time.monotonic() - started:.1f} s")
    return 0


def start_servers(sandbox: Sandbox) -> None:
    """Starts supervisord, PostgreSQL and Redis where they do not run yet, and makes what they need."""
    if supervisor.running(sandbox):
        facts = sandbox.facts(rewrite=True)
    else:
        reap(sandbox)
        sandbox.make()
        facts = sandbox.facts(create=True)
        if not (sandbox.postgres / "PG_VERSION").exists():
            _initdb(sandbox, facts)
        if not (sandbox.backend / "app/main.py").exists():
            materialise(sandbox.release, sandbox.backend)
        supervisor.write_configuration(sandbox, facts)
        supervisor.start_daemon(sandbox)
        wait_until(lambda: supervisor.running(sandbox), what="supervisord")
    _start(sandbox, "postgres")
    wait_until(
        lambda: psycopg2.connect(facts.database_dsn.replace("dbname=pam", "dbname=postgres")),
        timeout=30,
        what="PostgreSQL",
    ).close()
    _seed(facts)
    say(f"PostgreSQL answers on port {facts.postgres_port}")
    _start(sandbox, "redis")
    wait_until(lambda: redis_client.Redis.from_url(facts.redis_url).ping(), what="Redis")
    say(f"Redis answers on port {facts.redis_port}")
    if sandbox.nginx:
        _start(sandbox, "nginx")


def _start_applications(sandbox: Sandbox) -> bool:
    """Whether they run: some releases do not before they were deployed to."""
    facts = sandbox.facts()
    if sandbox.release in NEVER_STARTS and not _deployed(sandbox):
        return False
    for name in ("pam-backend", "celery-worker", "celery-beat"):
        _start(sandbox, name)
    wait_until(
        lambda: requests.get(f"{facts.base_url}/health", timeout=5).status_code == 200,
        timeout=60,
        what=f"{facts.base_url}/health",
    )
    connection = redis_client.Redis.from_url(facts.redis_url)
    wait_until(
        lambda: connection.exists("_kombu.binding.celery.pidbox"), timeout=60, what="the Celery worker's mailbox"
    )
    wait_until(
        lambda: supervisor.rpc(sandbox).getProcessInfo("celery-beat")["statename"] == "RUNNING", what="celery-beat"
    )
    return True


def break_it(sandbox: Sandbox) -> int:
    """Puts the release's files and the eight incidents back, whatever was repaired since.

    The applications need not run before; they do afterwards.
    """
    facts = sandbox.facts()
    for name in ("celery-beat", "celery-worker", "pam-backend"):
        _stop(sandbox, name)
    shutil.rmtree(sandbox.backend, ignore_errors=True)
    materialise(sandbox.release, sandbox.backend)
    sandbox.env_file.unlink(missing_ok=True)
    shutil.rmtree(sandbox.state, ignore_errors=True)
    sandbox.state.mkdir(mode=0o700)
    say(f"the files of the release {sandbox.release} are back")
    breakage.database(facts, reset=lambda: _seed(facts, fresh=True))
    breakage.cache(facts)
    breakage.disk(sandbox)
    _start_applications(sandbox)
    return 0


def down(sandbox: Sandbox) -> int:
    """Stops every process of the sandbox, also those that lost their supervisord."""
    if supervisor.running(sandbox):
        pid = supervisor.rpc(sandbox).getPID()
        supervisor.rpc(sandbox).shutdown()
        wait_until(lambda: not psutil.pid_exists(pid), timeout=60, what="the end of supervisord")
    reap(sandbox)
    say("the sandbox is down; its files are in " + str(sandbox.directory))
    return 0


def status(sandbox: Sandbox) -> int:
    """0 when all five programs run."""
    if not supervisor.running(sandbox):
        say("the sandbox does not run")
        return 1
    states = {info["name"]: info["statename"] for info in supervisor.rpc(sandbox).getAllProcessInfo()}
    for name, state in states.items():
        say(f"{name:14} {state}")
    return 0 if all(states.get(name) == "RUNNING" for name in PROGRAMS) else 1


def reap(sandbox: Sandbox) -> None:
    """Ends processes that carry this sandbox's mark in their environment; nobody else's can."""
    mine: t.List[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(supervisor.MARK) == str(sandbox.directory) and process.pid not in _ancestors():
                mine.append(process)
        except psutil.Error:
            continue
    for process in mine:
        process.terminate()
    _gone, alive = psutil.wait_procs(mine, timeout=10)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)


def _ancestors() -> t.Set[int]:
    return {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}


def _start(sandbox: Sandbox, name: str) -> None:
    rpc = supervisor.rpc(sandbox)
    if rpc.getProcessInfo(name)["statename"] in ("RUNNING", "STARTING"):
        return
    try:
        rpc.startProcess(name, True)
    except xmlrpc.client.Fault as fault:
        log = sandbox.log / f"{name}.log"
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        raise SystemExit(f"{name} does not start: {fault.faultString}\n{tail}\nIts log: {log}") from None


def _stop(sandbox: Sandbox, name: str) -> None:
    rpc = supervisor.rpc(sandbox)
    if rpc.getProcessInfo(name)["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
        rpc.stopProcess(name, True)


def _deployed(sandbox: Sandbox) -> bool:
    return (sandbox.backend / "app/wheels_ops").is_dir()


def _initdb(sandbox: Sandbox, facts: Facts) -> None:
    programs = binaries.postgres()
    say(f"PostgreSQL from {programs.source}: {programs.bin}")
    password = sandbox.run / "password"
    with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(facts.database_password)
    shutil.rmtree(sandbox.postgres, ignore_errors=True)
    prefix = list(unprivileged.prefix())
    if prefix and prefix[0] == "setpriv":
        for path in (sandbox.directory, sandbox.run, password):
            shutil.chown(path, 65534, 65534)
    words = [*prefix, programs.path("initdb"), "-D", str(sandbox.postgres), "-U", "postgres", "-A", "scram-sha-256"]
    words += [f"--pwfile={password}", "-E", "UTF8", "--locale=C", "--no-sync"]
    done = subprocess.run(words, capture_output=True, text=True, env=programs.environ(), check=False)
    password.unlink()
    if done.returncode:
        raise SystemExit(f"initdb: {done.stderr.strip()}")
    with open(sandbox.postgres / "postgresql.conf", "a", encoding="utf-8") as file:
        # Only TCP: a socket directory would need a short path. The data are made up, so losing them costs a minute.
        file.write(
            "\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\nsynchronous_commit ="
            " off\nmax_connections = 50\n"
        )


def _seed(facts: Facts, *, fresh: bool = False) -> None:
    """Makes the database ``pam`` with Supabase's roles and the production tables, once, or again when ``fresh``."""
    connection = psycopg2.connect(facts.database_dsn.replace("dbname=pam", "dbname=postgres"))
    connection.autocommit = True
    with connection.cursor() as cursor:
        if fresh:
            cursor.execute("drop database if exists pam with (force)")
        cursor.execute("select 1 from pg_database where datname = 'pam'")
        if cursor.fetchone():
            connection.close()
            return
        cursor.execute("create database pam")
    connection.close()
    breakage.load(facts, SHIM, DATABASE / "seed.sql")
