# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``wheels_ops rls audit|repair|undo`` for a developer's laptop and for a pull request's checks."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..database import connect
from .audit import formats, scratch
from .audit.audits import Audit, audit
from .model.findings import KINDS, SEVERITIES, Finding
from .module_api import sentence, undo_name
from .repair.apply import apply, undo
from .repair.plans import FIXES, HELPER_SCHEMA, plan

CLEAN, FOUND = 0, 1


def register(commands: t.Any) -> None:
    """Adds ``rls`` with its own subcommands."""
    rls = commands.add_parser("rls", help="row-level-security policies: find, repair, take back")
    actions = rls.add_subparsers(dest="action", required=True, metavar="ACTION")

    look = actions.add_parser("audit", help="find what fails, leaks or is slow; changes nothing")
    _common(look)
    look.add_argument("--format", choices=sorted(formats.WRITERS), default="text")
    look.add_argument(
        "--output", type=Path, metavar="FILE", help="write the report there instead of to standard output"
    )
    look.add_argument(
        "--fail-on",
        default="error",
        metavar="WHAT",
        help=(
            "exit with 1 for findings of these severities (error, warning, info: and all worse) or kinds, comma"
            " separated; 'never' for none (default: error). Kinds: "
        )
        + ", ".join(KINDS),
    )
    look.add_argument(
        "--sql",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="load these migrations, in this order, into a scratch database of the server and audit that",
    )
    look.add_argument(
        "--supabase", action="store_true", help="with --sql: start from the roles and the auth schema that Supabase has"
    )
    look.add_argument(
        "--keep-going",
        action="store_true",
        help="with --sql: report statements that fail and go on (default: exit with 2)",
    )
    look.set_defaults(run=run_audit)

    mend = actions.add_parser(
        "repair", help="repair in one transaction with its proof; exits with 1 where a person is needed"
    )
    _common(mend)
    mend.add_argument("--check", action="store_true", help="do everything, prove it, and roll it back")
    mend.add_argument("--diff", action="store_true", help="show policies before and after, and the functions")
    mend.add_argument(
        "--fix", default="recursion", help="comma separated: " + ", ".join(FIXES) + " (default: recursion)"
    )
    mend.add_argument(
        "--allow-unbounded", action="store_true", help="allow functions that give back all rows of a table"
    )
    mend.add_argument(
        "--accept-captured-columns", action="store_true", help="repair policies that compare a column with itself"
    )
    mend.add_argument("--helper-schema", default=HELPER_SCHEMA, metavar="NAME")
    mend.add_argument("--owner", metavar="ROLE", help="role with BYPASSRLS to own the functions")
    mend.add_argument(
        "--undo-dir", type=Path, default=Path(), metavar="DIR", help="where the undo script is kept (default: here)"
    )
    mend.add_argument("--format", choices=("text", "json"), default="text")
    mend.set_defaults(run=run_repair)

    back = actions.add_parser("undo", help="take a repair back")
    _connection(back)
    back.add_argument("script", type=Path, help="the undo script that the repair kept")
    back.add_argument("--check", action="store_true", help="take it back and roll that back")
    back.add_argument("--force", action="store_true", help="even where policies were changed since")
    back.add_argument("--format", choices=("text", "json"), default="text")
    back.set_defaults(run=run_undo)


def _connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dsn",
        default="",
        help="postgresql://USER@HOST/DATABASE or key=value; what it leaves out comes from PGHOST, PGUSER, ...",
    )
    parser.add_argument("--lock-timeout", type=float, default=5, metavar="SECONDS")
    parser.add_argument("--statement-timeout", type=float, default=60, metavar="SECONDS")


def _common(parser: argparse.ArgumentParser) -> None:
    _connection(parser)
    parser.add_argument("--schema", action="append", metavar="NAME", help="look at this schema only; may be repeated")
    parser.add_argument("--role", action="append", metavar="NAME", help="look through this role only; may be repeated")


def _timeouts(options: argparse.Namespace) -> t.Dict[str, t.Any]:
    return {
        "lock_timeout_ms": max(1, int(options.lock_timeout * 1000)),
        "statement_timeout_ms": max(1, int(options.statement_timeout * 1000)),
    }


def run_audit(options: argparse.Namespace) -> int:
    fails = _judge(options.fail_on)
    if options.sql:
        loaded = scratch.load(
            options.dsn,
            options.sql,
            schemas=options.schema,
            roles=options.role,
            supabase=options.supabase,
            keep_going=options.keep_going,
            **_timeouts(options),
        )
        found, introduced, errors = loaded.audit, loaded.introduced, loaded.errors
    else:
        with contextlib.closing(connect.connect(options.dsn)) as connection:
            found, introduced, errors = (
                audit(connection, schemas=options.schema, roles=options.role, **_timeouts(options)),
                {},
                [],
            )
    report = formats.WRITERS[options.format](formats.Report(found, introduced, errors, sentence(found)))
    if options.output:
        options.output.write_text(report, encoding="utf-8")
    else:
        sys.stdout.write(report)
    return FOUND if any(fails(finding) for finding in found.findings) else CLEAN


def _judge(words: str) -> t.Callable[[Finding], bool]:
    names = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [name for name in names if name not in (*SEVERITIES, *KINDS, "never")]
    if unknown:
        raise OpsError(
            f"--fail-on does not know {', '.join(unknown)}.",
            hint=f"It knows {', '.join((*SEVERITIES, 'never'))} and {', '.join(KINDS)}.",
        )
    worst = max((SEVERITIES.index(name) for name in names if name in SEVERITIES), default=-1)
    return lambda finding: finding.kind in names or SEVERITIES.index(finding.severity) <= worst


def run_repair(options: argparse.Namespace) -> int:
    timeouts = _timeouts(options)
    with contextlib.closing(connect.connect(options.dsn)) as connection:
        found: Audit = audit(connection, schemas=options.schema, roles=options.role, **timeouts)
        made = plan(
            connection,
            found,
            fix=[word.strip() for word in options.fix.split(",") if word.strip()],
            allow_unbounded=options.allow_unbounded,
            accept_captured_columns=options.accept_captured_columns,
            helper_schema=options.helper_schema,
            owner=options.owner,
            **timeouts,
        )
        path = None if made.empty or options.check else options.undo_dir / undo_name(found.catalog.database)
        result = apply(connection, made, check_mode=options.check, undo_path=path, **timeouts)
    if options.format == "json":
        sys.stdout.write(json.dumps({**result, "plan": made.as_dict()}, indent=1, default=str) + "\n")
    else:
        if options.diff:
            for entry in made.diff():
                sys.stdout.write(f"--- {entry['before_header']}\n{entry['before']}+++\n{entry['after']}\n")
        for review in result["needs_review"]:
            sys.stdout.write(f"needs a person: {review['object']}\n  {review['reason']}\n  {review['advice']}\n")
        for warning in made.warnings:
            sys.stdout.write(f"left: {warning}\n")
        sys.stdout.write(result["msg"] + "\n" + (f"undo: {result['undo']}\n" if result.get("undo") else ""))
    return FOUND if result["needs_review"] else CLEAN


def run_undo(options: argparse.Namespace) -> int:
    with contextlib.closing(connect.connect(options.dsn)) as connection:
        result = undo(connection, options.script, check_mode=options.check, force=options.force, **_timeouts(options))
    sys.stdout.write((json.dumps(result, indent=1, default=str) if options.format == "json" else result["msg"]) + "\n")
    return CLEAN
