# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The registry: every fact about a subject of a health run, once.

``checks/suite.py`` runs what stands here, ``report/report.py`` has its rows from here, and so have the standalone
programs, the scores, the choices of ``health_info`` and the recovery plan. What must be literal (the documentation of
modules and roles) is compared with it by ``tests/unit/health/test_subjects.py``. ``make new-check NAME=...`` adds a
subject.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """What a check cannot do without.

    ``options`` are names of ``checks.context.Options``, ``what`` is their name in a sentence, ``variables`` give them.
    """

    what: str
    variables: str
    options: t.Tuple[str, ...]


@dataclass(frozen=True)
class ScoreInput:
    """One input of a score: ``argument`` of the function ``score`` in ``health/scores.py``.

    It is the check's value, or what the check has under ``detail``; where only the services are graded (scope
    ``services``), under ``services_detail`` if that is another.
    """

    score: str
    argument: str
    detail: str = ""
    services_detail: str = ""


@dataclass(frozen=True)
class Subject:
    """What a health run measures, one entry of the registry.

    ``incident`` is the number in the incident report, 0 for a subject that it does not have. ``thresholds`` are the
    names of those that grade the check, ``remedies`` the modules that it may name. ``backend_reports``: what a backend
    says about its own component of this name counts as well, as it has a login of its own there. ``needs_host``: only
    a program on the host itself can measure it.
    """

    name: str
    title: str
    incident: int = 0
    needs: t.Tuple[Need, ...] = ()
    thresholds: t.Tuple[str, ...] = ()
    remedies: t.Tuple[str, ...] = ()
    scores: t.Tuple[ScoreInput, ...] = ()
    backend_reports: bool = False
    needs_host: bool = False

    @property
    def check(self) -> str:
        """The function that measures it, by its dotted name: this room is below ``checks`` and cannot import it."""
        return f"checks.{self.name}.measure"


BASE_URL = Need("base URL", "wheels_ops_base_url", ("base_url",))
DATABASE_DSN = Need("database DSN", "wheels_ops_database_dsn", ("database_dsn",))
REDIS_URL = Need("Redis URL", "wheels_ops_redis_url", ("redis_url",))
ORIGIN = Need("base URL and origin", "wheels_ops_base_url and wheels_ops_cors_origins", ("base_url", "cors_origins"))
WEBSOCKET_PATH = Need(
    "WebSocket path", "wheels_ops_base_url and monitoring_websocket_path", ("base_url", "websocket_path")
)
SPEECH_PATH = Need("speech path", "monitoring_tts_path", ("tts_path",))
SERVICES = Need("service", "wheels_ops_services", ("services",))

#: Every subject, in the order of a health run.
REGISTRY: t.Tuple[Subject, ...] = (
    Subject(
        "memory",
        "Memory",
        incident=1,
        thresholds=("memory",),
        remedies=("memory_trim",),
        scores=(ScoreInput("performance", "memory_percent"),),
        needs_host=True,
    ),
    Subject(
        "cpu",
        "CPU",
        incident=6,
        thresholds=("cpu", "response_time_ms"),
        remedies=("celery_throttle", "cpu_relief", "managed_files"),
        scores=(
            ScoreInput("performance", "cpu_percent", detail="host_percent", services_detail="services_percent"),
            ScoreInput("performance", "loop_lag_ms", detail="stall_ms"),
        ),
        needs_host=True,
    ),
    Subject(
        "disk",
        "Disk",
        incident=7,
        thresholds=("disk",),
        remedies=("log_rotate", "disk_cleanup"),
        scores=(ScoreInput("performance", "disk_percent"),),
        needs_host=True,
    ),
    Subject(
        "database",
        "Database",
        incident=3,
        needs=(DATABASE_DSN,),
        remedies=("sql_script",),
        backend_reports=True,
    ),
    Subject(
        "rls",
        "Row-level security",
        incident=3,
        needs=(DATABASE_DSN,),
        remedies=("rls_repair",),
        backend_reports=True,
    ),
    Subject(
        "redis",
        "Redis",
        incident=8,
        needs=(REDIS_URL,),
        thresholds=("memory",),
        remedies=("disk_cleanup", "service_restart", "cache_purge"),
        backend_reports=True,
    ),
    Subject(
        "http",
        "HTTP",
        needs=(BASE_URL,),
        thresholds=("response_time_ms", "error_rate"),
        remedies=("service_restart",),
        scores=(
            ScoreInput("user_experience", "response_time_ms"),
            ScoreInput("user_experience", "error_rate", detail="error_rate_percent"),
        ),
    ),
    Subject("cors", "CORS", incident=5, needs=(ORIGIN,), remedies=("service_restart", "managed_files")),
    Subject(
        "websocket",
        "WebSocket",
        incident=4,
        needs=(WEBSOCKET_PATH,),
        thresholds=("websocket_ms",),
        remedies=("service_restart", "managed_files"),
    ),
    Subject(
        "tts",
        "Text to speech",
        incident=2,
        needs=(BASE_URL, SPEECH_PATH),
        remedies=("service_restart", "tts_engine"),
    ),
    Subject(
        "celery",
        "Background work",
        needs=(REDIS_URL,),
        thresholds=("waiting_tasks",),
        remedies=("cache_purge", "disk_cleanup", "service_restart", "celery_throttle"),
        backend_reports=True,
    ),
    Subject(
        "services",
        "Services",
        needs=(SERVICES,),
        remedies=("service_restart",),
        backend_reports=True,
        needs_host=True,
    ),
)

#: What the incident report calls its incidents, by number. One incident may have several subjects.
INCIDENTS: t.Mapping[int, str] = {
    1: "Memory",
    2: "Text to speech",
    3: "Database",
    4: "WebSocket",
    5: "CORS",
    6: "CPU, slow answers",
    7: "Disk",
    8: "Cache",
}

NAMES: t.Tuple[str, ...] = tuple(subject.name for subject in REGISTRY)
#: What can be measured from another machine.
FROM_OUTSIDE: t.Tuple[str, ...] = tuple(subject.name for subject in REGISTRY if not subject.needs_host)


def subject_of(name: str) -> Subject:
    """The subject of that name. Raises ``KeyError`` for another."""
    return {subject.name: subject for subject in REGISTRY}[name]


def with_remedy(remedy: str) -> t.Tuple[str, ...]:
    """The names of the subjects whose checks may name a remedy, in the order of a health run."""
    return tuple(subject.name for subject in REGISTRY if remedy in subject.remedies)


def report_rows() -> t.List[t.Tuple[str, str, t.Tuple[str, ...]]]:
    """Number, title and subjects of every row of a report.

    The incidents stand in their order, then every subject that belongs to none.
    """
    rows = [
        (str(number), title, tuple(subject.name for subject in REGISTRY if subject.incident == number))
        for number, title in INCIDENTS.items()
    ]
    return [*rows, *(("", subject.title, (subject.name,)) for subject in REGISTRY if not subject.incident)]
