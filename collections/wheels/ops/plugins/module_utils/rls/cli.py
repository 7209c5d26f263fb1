# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``wheels_ops rls audit|repair|undo`` for a developer's laptop and for a pull request's checks."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import sys
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..core.version import VERSION
from ..database import connect
from .audit import baseline, explanations, formats, progress, scratch
from .audit.audits import Audit, audit
from .model.findings import KINDS, SEVERITIES, Finding
from .module_api import sentence, undo_name
from .repair import captured, matrix, matrix_page, migration_source
from .repair.apply import apply, undo
from .repair.plans import FIXES, HELPER_SCHEMA, Plan, plan

CLEAN, FOUND = 0, 1
#: Where a DSN is taken from that no option gives, in this order; then libpq's own variables.
DSN_VARIABLES = ("DATABASE_URL", "SUPABASE_DB_URL")


def register(commands: t.Any) -> None:
    """Adds ``rls`` with its own subcommands."""
    rls = commands.add_parser(
        "rls",
        help="row-level-security policies: find, repair, undo",
        description="Find and repair row-level-security policies that fail (42P17), leak or are slow.",
    )
    actions = rls.add_subparsers(dest="action", required=True, metavar="ACTION")

    find = actions.add_parser("audit", help="find what fails, leaks or is slow; changes nothing")
    _common(find)
    find.add_argument("--format", choices=sorted(formats.WRITERS), default="text")
    find.add_argument(
        "--output", type=Path, metavar="FILE", help="write the report there instead of to standard output"
    )
    find.add_argument(
        "--fail-on",
        default="error",
        metavar="WHAT",
        help=(
            "exit with 1 for findings of these severities (error, warning, info: and all worse) or kinds, comma"
            " separated; 'never' for none (default: error). Kinds: "
        )
        + ", ".join(KINDS),
    )
    find.add_argument("--only", metavar="KIND", default="", help="report these kinds only, comma separated")
    find.add_argument("--quiet", action="store_true", help="print the last line only")
    find.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="a report of an earlier audit (--format json): report and fail on new findings only",
    )
    find.set_defaults(run=run_audit)

    fix = actions.add_parser(
        "repair", help="repair in one transaction and verify it; exits with 1 where a person is needed"
    )
    _common(fix)
    fix.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help=(
            "write a migration, and its undo script as FILE.undo, and change no database; STAMP in the name becomes"
            " the time (20260131093000)"
        ),
    )
    fix.add_argument("--check", action="store_true", help="do everything, verify it, and roll it back")
    fix.add_argument("--diff", action="store_true", help="show policies before and after, and the functions")
    fix.add_argument(
        "--fix", default="recursion", help="comma separated: " + ", ".join(FIXES) + " (default: recursion)"
    )
    fix.add_argument("--allow-unbounded", action="store_true", help="allow functions that return all rows of a table")
    fix.add_argument(
        "--accept-captured-columns", action="store_true", help="repair policies that compare a column with itself"
    )
    fix.add_argument("--helper-schema", default=HELPER_SCHEMA, metavar="NAME")
    fix.add_argument("--owner", metavar="ROLE", help="role with BYPASSRLS to own the functions")
    fix.add_argument(
        "--undo-dir", type=Path, default=Path(), metavar="DIR", help="where the undo script is kept (default: here)"
    )
    fix.add_argument("--format", choices=("text", "json"), default="text")
    fix.set_defaults(run=run_repair)

    explain = actions.add_parser("explain", help="what a kind of finding means, and how to fix it by hand")
    explain.add_argument("kind", nargs="?", choices=sorted(KINDS), metavar="KIND", help=", ".join(KINDS))
    explain.set_defaults(run=run_explain)

    back = actions.add_parser("undo", help="undo a repair")
    _connection(back)
    back.add_argument("script", type=Path, help="the undo script that the repair kept")
    back.add_argument("--check", action="store_true", help="undo it and roll that back")
    back.add_argument("--force", action="store_true", help="even where policies were changed since")
    back.add_argument("--format", choices=("text", "json"), default="text")
    back.set_defaults(run=run_undo)


def _connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dsn",
        default="",
        help=(
            "postgresql://USER@HOST/DATABASE or key=value (default: DATABASE_URL, SUPABASE_DB_URL, then libpq's"
            " PGHOST, PGUSER, ...)"
        ),
    )
    parser.add_argument("--lock-timeout", type=float, default=5, metavar="SECONDS")
    parser.add_argument("--statement-timeout", type=float, default=60, metavar="SECONDS")


def _common(parser: argparse.ArgumentParser) -> None:
    _connection(parser)
    parser.add_argument("--schema", action="append", metavar="NAME", help="this schema only; may be repeated")
    parser.add_argument("--role", action="append", metavar="NAME", help="as this role only; may be repeated")
    parser.add_argument(
        "--sql",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=(
            "load these migrations, in this order, into a scratch database of the server and use that; a folder stands"
            " for its .sql files in the order of their names"
        ),
    )
    parser.add_argument(
        "--supabase", action="store_true", help="with --sql: start from the roles and the auth schema that Supabase has"
    )
    parser.add_argument(
        "--matrix",
        type=Path,
        metavar="FILE",
        help=(
            "write there who can do what (role, table, command; rows as a sample of people sees them), for repair before"
            " and after: a page if FILE ends in .html, else text; - for standard output"
        ),
    )
    parser.add_argument(
        "--progress",
        action="store_true",
        help="say on standard error what is being done (default: on a terminal only; without colours if NO_COLOR is set)",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="with --sql: report statements that fail and go on (default: exit with 2)",
    )


def dsn_of(options: argparse.Namespace, environ: t.Optional[t.Mapping[str, str]] = None) -> str:
    """The DSN that was given, else the one of the environment; empty leaves it to libpq's own variables."""
    variables = os.environ if environ is None else environ
    return options.dsn or next((variables[name] for name in DSN_VARIABLES if variables.get(name)), "")


def _files(paths: t.Optional[t.Sequence[Path]]) -> t.List[Path]:
    """Folders replaced by their migrations."""
    result: t.List[Path] = []
    for path in paths or ():
        files = sorted(path.glob("*.sql")) if path.is_dir() else [path]
        if not files:
            raise OpsError(f"There is no .sql file in {path}.", hint="Name the folder of the migrations, or files.")
        result += files
    return result


def _timeouts(options: argparse.Namespace) -> t.Dict[str, t.Any]:
    return {
        "lock_timeout_ms": max(1, int(options.lock_timeout * 1000)),
        "statement_timeout_ms": max(1, int(options.statement_timeout * 1000)),
    }


def run_audit(options: argparse.Namespace) -> int:
    options.sql = _files(options.sql)
    fails = _judge(options.fail_on)
    only = _kinds(options.only, "--only")
    earlier = baseline.read(options.baseline) if options.baseline else frozenset()
    introduced: t.Dict[t.Tuple[str, ...], str] = {}
    errors: t.List[str] = []
    _check_matrix(options)

    def observe(connection: t.Any, present: Audit) -> None:
        if options.matrix:
            made = matrix.of_audit(connection, present, counted=not options.sql, **_timeouts(options))
            line.close()
            _write_matrix(options, made)

    shared = {"schemas": options.schema, "roles": options.role, **_timeouts(options)}
    with progress.Line(sys.stderr, wanted=options.progress) as line:
        if options.sql:
            schema = scratch.load(
                dsn_of(options),
                options.sql,
                supabase=options.supabase,
                keep_going=options.keep_going,
                observe=observe,
                progress=line,
                **shared,
            )
            present, introduced, errors = schema.audit, schema.introduced, schema.errors
        else:
            with contextlib.closing(connect.connect(dsn_of(options))) as connection:
                present = audit(connection, progress=line, **shared)
                observe(connection, present)
    conclusion = sentence(present)
    if earlier:
        conclusion += f" {len([f for f in present.findings if f.identity in earlier])} of them are in the baseline."
    present.findings = [
        finding
        for finding in present.findings
        if finding.identity not in earlier and (not only or finding.kind in only)
    ]
    report = formats.WRITERS[options.format](formats.Report(present, introduced, errors, conclusion))
    if options.output:
        try:
            options.output.write_text(report, encoding="utf-8")
        except OSError as error:
            raise OpsError(
                f"Cannot write {options.output}: {error.strerror}.", hint="Name a file that can be written."
            ) from error
    elif options.quiet:
        sys.stdout.write(conclusion + "\n")
    else:
        sys.stdout.write(report)
    return FOUND if any(fails(finding) for finding in present.findings) else CLEAN


def _check_matrix(options: argparse.Namespace) -> None:
    """Before anything is done, so that no repair ends with a matrix that cannot be kept."""
    path: t.Optional[Path] = options.matrix
    if path is None:
        return
    if str(path) == "-":
        if options.format != "text" and not getattr(options, "output", None):
            raise OpsError(
                f"--matrix - and --format {options.format} both write to standard output.",
                hint="Name a file for one of them.",
            )
        return
    place = path if path.exists() else path.parent
    if path.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        raise OpsError(f"Cannot write {path}.", hint="Name a file that can be written, or - for standard output.")


def _write_matrix(options: argparse.Namespace, made: matrix.Matrix, planned: t.Optional[Plan] = None) -> None:
    path: Path = options.matrix
    if options.sql:  # the scratch database's own name means nothing to anybody
        made.database = "the migrations"
    if str(path) == "-":
        sys.stdout.write(matrix.text(made) + "\n")
        return
    text = matrix_page.page(made, planned) if path.suffix.lower() in (".html", ".htm") else matrix.text(made)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OpsError(f"Cannot write {path}: {error.strerror}.", hint="Name a file that can be written.") from error


def _words(text: str) -> t.List[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _kinds(text: str, option: str) -> t.FrozenSet[str]:
    names = _words(text)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise OpsError(f"{option} has unknown kinds: {', '.join(unknown)}.", hint=f"Kinds: {', '.join(KINDS)}.")
    return frozenset(names)


def _judge(words: str) -> t.Callable[[Finding], bool]:
    names = _words(words)
    unknown = [name for name in names if name not in (*SEVERITIES, *KINDS, "never")]
    if unknown:
        raise OpsError(
            f"--fail-on does not know {', '.join(unknown)}.",
            hint=f"It knows {', '.join((*SEVERITIES, 'never'))} and {', '.join(KINDS)}.",
        )
    worst = max((SEVERITIES.index(name) for name in names if name in SEVERITIES), default=-1)
    return lambda finding: finding.kind in names or SEVERITIES.index(finding.severity) <= worst


def _plan_options(options: argparse.Namespace) -> t.Dict[str, t.Any]:
    return {
        "fix": _words(options.fix),
        "allow_unbounded": options.allow_unbounded,
        "accept_captured_columns": options.accept_captured_columns,
        "helper_schema": options.helper_schema,
        "owner": options.owner,
    }


def run_repair(options: argparse.Namespace) -> int:
    options.sql = _files(options.sql)
    if options.sql or options.write:
        return _write_migration(options)
    _check_matrix(options)
    with progress.Line(sys.stderr, wanted=options.progress) as line:
        repair_plan, result = _repair(options, line)
    if options.format == "json":
        sys.stdout.write(json.dumps({**result, "plan": repair_plan.as_dict()}, indent=1, default=str) + "\n")
    else:
        _show(repair_plan, result["needs_review"], diff=options.diff)
        sys.stdout.write(result["msg"] + "\n" + (f"undo: {result['undo']}\n" if result.get("undo") else ""))
    return FOUND if result["needs_review"] else CLEAN


def _repair(options: argparse.Namespace, line: progress.Line) -> t.Tuple[Plan, t.Dict[str, t.Any]]:
    timeouts = _timeouts(options)
    wanted = options.matrix is not None
    with contextlib.closing(connect.connect(dsn_of(options))) as connection:
        present: Audit = audit(connection, schemas=options.schema, roles=options.role, progress=line, **timeouts)
        line("planning")
        planned = plan(connection, present, **_plan_options(options), **timeouts)
        before = matrix.before_repair(connection, present, **timeouts) if wanted and not options.check else None
        path = None if planned.empty or options.check else options.undo_dir / undo_name(present.catalog.database)
        line("repairing and verifying")
        result = apply(connection, planned, check_mode=options.check, undo_path=path, **timeouts)
        if wanted:
            line.close()
            _matrix_of_repair(connection, options, present, planned, before)
    return planned, result


def _matrix_of_repair(
    connection: t.Any,
    options: argparse.Namespace,
    present: Audit,
    planned: Plan,
    before: t.Optional[t.Tuple[matrix.Matrix, t.Any]],
) -> None:
    """The repair was done, or verified and rolled back: what it gave is told in any case."""
    timeouts = _timeouts(options)
    try:
        if before is None or planned.empty:
            made = matrix.of_plan(connection, present, planned, run=True, **timeouts)
        else:
            made = matrix.of_repair(connection, before[0], before[1], present, **timeouts)
        _write_matrix(options, made, planned)
    except OpsError as error:
        sys.stderr.write(f"warning: no matrix was written: {error}\n")


def _show(repair_plan: Plan, reviews: t.Sequence[t.Mapping[str, t.Any]], *, diff: bool) -> None:
    if diff:
        for entry in repair_plan.diff():
            sys.stdout.write(f"--- {entry['before_header']}\n{entry['before']}+++\n{entry['after']}\n")
    for review in reviews:
        sys.stdout.write(f"needs a person: {review['object']}\n  {review['reason']}\n  {review['advice']}\n")
        for proposal in review.get("proposals", ()):
            sys.stdout.writelines(f"    {line}\n" for line in captured.sentences(proposal))
    for warning in repair_plan.warnings:
        sys.stdout.write(f"not fixed: {warning}\n")


def _write_migration(options: argparse.Namespace) -> int:
    """``--sql`` or ``--write``: the repair as a file. No database but the scratch one is changed."""
    stamp = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d%H%M%S}"
    path = migration_source.target(options.write or Path("STAMP_rls.sql"), stamp)
    if options.write:
        migration_source.check_target(path)
    _check_matrix(options)
    with progress.Line(sys.stderr, wanted=options.progress) as line:
        draft = _draft(options, path, line)
    repair_plan, numbers = draft.plan, draft.verification
    files: t.List[str] = []
    if options.write and not options.check and not repair_plan.empty:
        files = [str(file) for file in migration_source.write(draft, path, version=VERSION)]
    if options.format == "json":
        result = {
            "changed": bool(files),
            "migration": files[0] if files else "",
            "undo": files[1] if files else "",
            "failing_before": numbers.failing_before,
            "failing_after": numbers.failing_after,
            "load_errors": draft.errors,
            "needs_review": repair_plan.needs_review,
            "plan": repair_plan.as_dict(),
        }
        sys.stdout.write(json.dumps(result, indent=1, default=str) + "\n")
        return FOUND if repair_plan.needs_review else CLEAN
    for error in draft.errors:
        sys.stdout.write(f"could not load: {error}\n")
    _show(repair_plan, repair_plan.needs_review, diff=options.diff)
    if repair_plan.empty:
        sys.stdout.write("Nothing to repair; no file was written.\n")
    else:
        sys.stdout.write(
            f"{len(repair_plan.changes)} policies, {len(repair_plan.functions)} functions: failing accesses"
            f" {numbers.failing_before} -> {numbers.failing_after}.\n"
        )
        sys.stdout.writelines(f"{line}\n" for line in numbers.sentences)
        if files:
            sys.stdout.write(f"migration: {files[0]}\nundo: {files[1]}\n")
        else:
            sys.stdout.write("No file was written. To write the migration: --write FILE.sql\n")
    return FOUND if repair_plan.needs_review else CLEAN


def _draft(options: argparse.Namespace, path: Path, line: progress.Line) -> migration_source.Draft:
    def observe(connection: t.Any, present: Audit, planned: Plan) -> None:
        if options.matrix:
            scratched = bool(options.sql)  # has no rows of anybody's, and nobody who waits for a lock
            made = matrix.of_plan(
                connection, present, planned, run=scratched, counted=not scratched, **_timeouts(options)
            )
            line.close()
            _write_matrix(options, made, planned)

    shared: t.Dict[str, t.Any] = {
        "schemas": options.schema,
        "roles": options.role,
        "options": _plan_options(options),
        "timeouts": _timeouts(options),
        "observe": observe,
        "progress": line,
    }
    if not options.sql:
        with contextlib.closing(connect.connect(dsn_of(options))) as connection:
            return migration_source.from_database(connection, **shared)
    return migration_source.from_files(
        dsn_of(options),
        options.sql,
        supabase=options.supabase,
        keep_going=options.keep_going,
        version=VERSION,
        path=path,
        **shared,
    )


def run_explain(options: argparse.Namespace) -> int:
    """The meaning of one kind, or the list of all."""
    if not options.kind:
        sys.stdout.writelines(f"{kind:22} {severity:8} {title}\n" for kind, (severity, title) in KINDS.items())
        return CLEAN
    severity, title = KINDS[options.kind]
    sys.stdout.write(f"{title} ({options.kind}, {severity})\n\n{explanations.EXPLANATIONS[options.kind].strip()}\n")
    return CLEAN


def run_undo(options: argparse.Namespace) -> int:
    with contextlib.closing(connect.connect(dsn_of(options))) as connection:
        result = undo(connection, options.script, check_mode=options.check, force=options.force, **_timeouts(options))
    sys.stdout.write((json.dumps(result, indent=1, default=str) if options.format == "json" else result["msg"]) + "\n")
    return CLEAN
