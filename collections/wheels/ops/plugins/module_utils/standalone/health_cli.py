# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``wheels-ops health``: every check that needs no host, from a laptop, a pipeline or a scheduled job, with the report
and the exit status of the health monitor.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import typing as t
import urllib.parse
from dataclasses import replace

from ..core.results import OpsError
from ..health.subjects import FROM_OUTSIDE, NAMES, subject_of
from . import report_options
from .launcher import PACKAGES

if t.TYPE_CHECKING:
    from .monitor import Report
    from .settings import Settings

#: The option's attribute -> the variables that stand in for it, the first that is set.
VARIABLES: t.Mapping[str, t.Tuple[str, ...]] = {
    "url": ("BASE_URL",),
    "dsn": ("DATABASE_URL", "SUPABASE_DB_URL"),
    "redis": ("REDIS_URL",),
    "ops_token": ("WHEELS_OPS_TOKEN",),
}
#: What each check imports.
LIBRARIES: t.Mapping[str, t.Tuple[str, ...]] = {
    "database": ("psycopg2",),
    "rls": ("psycopg2",),
    "redis": ("redis",),
    "celery": ("redis",),
    "http": ("requests",),
    "cors": ("requests",),
    "websocket": ("requests", "websocket"),
    "tts": ("requests",),
}
#: How the suite names what here are options.
_WORDS: t.Tuple[t.Tuple[str, str], ...] = (
    ("wheels_ops_base_url", "--url"),
    ("wheels_ops_database_dsn", "--dsn or DATABASE_URL"),
    ("wheels_ops_redis_url", "--redis or REDIS_URL"),
    ("wheels_ops_cors_origins", "--origin"),
    ("monitoring_websocket_path", "--websocket-path"),
    ("monitoring_tts_path", "--tts-path"),
)


def register(commands: t.Any) -> None:
    """Adds ``health``."""
    parser = commands.add_parser(
        "health",
        help="every check that needs no host, from anywhere",
        description=(
            "Measure a backend from another machine: "
            + ", ".join(subject_of(name).title for name in FROM_OUTSIDE)
            + ". What needs the host is named as not checked. Changes nothing."
        ),
        epilog=(
            "Exit status: 0 everything that was checked is healthy, 1 warning, 2 critical, 3 unknown. Secrets belong"
            " into the variables: a command line can be read by others. The ops token is read from WHEELS_OPS_TOKEN"
            " alone."
        ),
    )
    parser.add_argument("--url", default="", help="where the backend answers, https://... (default: BASE_URL)")
    parser.add_argument(
        "--dsn", default="", help="postgresql://USER@HOST/DATABASE (default: DATABASE_URL, SUPABASE_DB_URL)"
    )
    parser.add_argument("--redis", default="", metavar="URL", help="redis://HOST:PORT/0 (default: REDIS_URL)")
    parser.add_argument(
        "--origin", action="append", metavar="URL", help="an origin that CORS has to let in; may be repeated"
    )
    parser.add_argument("--http-path", action="append", metavar="PATH", help="what to ask for; may be repeated")
    parser.add_argument("--websocket-path", metavar="PATH", help="where the chat's socket is; empty: not checked")
    parser.add_argument("--tts-path", metavar="PATH", help="what speaks a sentence; empty: not checked")
    parser.add_argument("--schema", action="append", metavar="NAME", help="check policies of this schema only")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="of the whole run (default: 60)")
    report_options.add(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures and reports; gives the exit status of a monitor, whose 3 is unknown."""
    from . import monitor

    url = _value(options, "url", os.environ)
    try:
        host = urllib.parse.urlsplit(url if "://" in url else f"//{url}").hostname if url else ""
    except ValueError:  # the check says so of the address
        host = ""
    return monitor.measure_and_report(options, lambda: settings_of(options, os.environ), host or "outside", words)


def settings_of(options: argparse.Namespace, environment: t.Mapping[str, str]) -> Settings:
    """The settings of one measurement from outside. Raises ``OpsError`` where nothing could be measured with them, and where a
    library is missing that one of the checks needs.
    """
    from ..checks import suite
    from ..core.options import choices, in_range
    from . import settings

    values = {name: _value(options, name, environment) for name in VARIABLES}
    if not (values["url"] or values["dsn"] or values["redis"]):
        raise OpsError(
            "There is nothing to measure.",
            hint="Give --url, --dsn or --redis, or set BASE_URL, DATABASE_URL or REDIS_URL.",
        )
    deadline = 60.0 if options.deadline is None else options.deadline
    in_range("deadline", deadline, settings.MARGIN + 1, 3600, unit="seconds")
    only = tuple(filter(None, options.only.replace(" ", "").split(",")))
    if only:
        choices("only", only, NAMES)
    further = {
        "cors_origins": options.origin or settings.REPORTED["cors_origins"],
        "websocket_path": settings.REPORTED["websocket_path"]
        if options.websocket_path is None
        else options.websocket_path,
    }
    checks = suite.Options(
        timeout=deadline - settings.MARGIN,
        base_url=values["url"].rstrip("/"),
        database_dsn=values["dsn"],
        redis_url=values["redis"],
        schemas=options.schema,
        subjects=only or NAMES,
        **further,
    )
    if options.http_path:
        checks = replace(checks, http_paths=tuple(options.http_path))
    if options.tts_path is not None:
        checks = replace(checks, tts_path=options.tts_path)
    _require_libraries(checks)
    return settings.Settings(
        checks=checks,
        deadline=deadline,
        source="command line and environment",
        view=suite.View(outside=True, ops_token=values["ops_token"]),
    )


def words(report: Report) -> Report:
    """A report in which what has to be set is named as here."""
    return t.cast("Report", _replaced(report))


def _replaced(value: t.Any) -> t.Any:
    if isinstance(value, str):
        for variable, option in _WORDS:
            value = value.replace(variable, option)
        return value
    if isinstance(value, dict):
        return {key: _replaced(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(entry) for entry in value]
    return value


def _value(options: argparse.Namespace, name: str, environment: t.Mapping[str, str]) -> str:
    named = getattr(options, name, "")
    return str(named or next((environment[each] for each in VARIABLES[name] if environment.get(each)), "")).strip()


def _require_libraries(checks: t.Any) -> None:
    """Raises ``OpsError`` that names what the checks need and this Python lacks, as pip knows it."""
    needed = [
        library
        for name, libraries in LIBRARIES.items()
        if name in checks.subjects
        and not [need for need in subject_of(name).needs if not all(getattr(checks, each) for each in need.options)]
        for library in libraries
    ]
    missing = [PACKAGES[library] for library in dict.fromkeys(needed) if importlib.util.find_spec(library) is None]
    if missing:
        raise OpsError(
            f"This Python lacks {', '.join(missing)}.",
            hint=f"pip install 'wheels-ops[health]', or: pip install {' '.join(missing)}",
        )
