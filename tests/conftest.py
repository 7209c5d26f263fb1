# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that every test may use. Servers are real and start once in a session."""

from __future__ import annotations

import collections
import json
import os
import sys
import typing as t
from pathlib import Path

import hypothesis
import pytest

from tests import supervise
from tests.support import collection, servers
from tests.support.app_modules import app_modules as app_modules

# Of the tests and the library, also where the environment asks for none, as in many images of containers: to compile
# them anew takes each worker more than ten seconds. What the tests start still follows the environment.
sys.dont_write_bytecode = False

# How long one example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


#: Seconds by file, of those that take ten and more. ``WHEELS_OPS_RECORD_DURATIONS=1 make test`` writes it anew.
DURATIONS = Path(__file__).with_name("durations.json")


def pytest_collection_modifyitems(items: t.List[pytest.Item]) -> None:
    """The longest file first: of files that run side by side, a long one that is begun last keeps the
    others waiting.
    """
    recorded: t.Dict[Path, float] = {
        collection.REPOSITORY / name: seconds for name, seconds in json.loads(DURATIONS.read_text()).items()
    }
    marked = {item.path: 30.0 for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: -recorded.get(item.path, marked.get(item.path, 0.0)))


class _RecordDurations:
    """Adds up what each file takes, also its fixtures."""

    def __init__(self) -> None:
        self._seconds: t.Dict[str, float] = collections.defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid.split("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        longest = sorted(self._seconds.items(), key=lambda item: -item[1])
        rounded = {name: round(seconds) for name, seconds in longest if seconds >= 10}
        DURATIONS.write_text(json.dumps(rounded, indent=1) + "\n")


class _NameFailures:
    """Names a failed test at once: the run takes minutes, and the details come at its end."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._reporter.ensure_newline()
            self._reporter.write_line(f"FAILED {report.nodeid} ({report.when})", red=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    supervise.interrupt_on_terminate()
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_NameFailures(reporter))
        if os.environ.get("WHEELS_OPS_RECORD_DURATIONS"):
            config.pluginmanager.register(_RecordDurations())


@pytest.fixture(scope="session")
def postgres() -> t.Iterator[servers.Postgres]:
    """The machine's PostgreSQL (Debian 12: 15). Take a database of your own with ``postgres.database()``."""
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def newest_postgres() -> t.Iterator[servers.Postgres]:
    """The newest PostgreSQL that wheels offer (no pgcrypto, no uuid-ossp)."""
    with servers.postgres(newest=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> t.Iterator[servers.Redis]:
    with servers.redis() as server:
        yield server


@pytest.fixture
def redis(redis_server: servers.Redis) -> servers.Redis:
    """The session's Redis, emptied."""
    redis_server.cli("FLUSHALL")
    return redis_server


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that ANSIBLE_COLLECTIONS_PATH names, holding nothing but our installed tarball."""
    return collection.install(tmp_path_factory.mktemp("installed"))
