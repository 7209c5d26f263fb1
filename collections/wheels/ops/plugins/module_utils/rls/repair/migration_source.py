# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a migration comes from: SQL files in a scratch database, or a database that is only read."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ...core.results import OpsError
from ...host.files import make_directories, write_atomically
from ..audit import scratch
from ..audit.audits import Audit, audit
from ..audit.progress import Progress, silent
from ..model import catalog
from ..model.transactions import Connection, transaction
from . import apply
from .migration import MARK, UNDO_SUFFIX, Verification, render, render_undo
from .plans import Plan, plan

#: Is called with the connection that the plan was made on, before anything is changed there.
Observer = t.Callable[[Connection, Audit, Plan], None]


def _unobserved(_connection: Connection, _audit: Audit, _plan: Plan) -> None:
    """Nobody looks."""


@dataclass
class Draft:
    """A plan with what was measured of it. ``errors`` are statements of the files that did not load."""

    audit: Audit
    plan: Plan
    inputs: t.List[str]
    verification: Verification
    errors: t.List[str] = field(default_factory=list)

    def texts(self, *, version: str, path: Path) -> t.Tuple[str, str]:
        """(migration, undo script) for a migration that is kept at ``path``."""
        undo_name = path.name + UNDO_SUFFIX
        return (
            render(
                self.plan,
                version=version,
                inputs=self.inputs,
                verification=self.verification,
                undo_name=undo_name,
            ),
            render_undo(self.plan, version=version, name=path.name),
        )


def from_files(
    dsn: str,
    files: t.Sequence[Path],
    *,
    supabase: bool,
    keep_going: bool,
    schemas: t.Optional[t.Sequence[str]],
    roles: t.Optional[t.Sequence[str]],
    version: str,
    path: Path,
    options: t.Mapping[str, t.Any],
    timeouts: t.Mapping[str, t.Any],
    observe: Observer = _unobserved,
    progress: Progress = silent,
) -> Draft:
    """Loads the files into a scratch database, plans, and runs the migration there: twice, and its undo script.

    ``options`` are those of ``plans.plan``. Raises ``OpsError`` where a file does not load, or the migration does not
    do in the scratch database what its plan says.
    """
    with scratch.scratch_database(dsn, supabase=supabase, migration_role=True) as connection:
        schema = scratch.load_into(
            connection,
            files,
            schemas=schemas,
            roles=roles,
            keep_going=keep_going,
            each=False,
            progress=progress,
            **timeouts,
        )
        progress("planning")
        draft = Draft(
            schema.audit,
            plan(connection, schema.audit, **options, **timeouts),
            [str(file) for file in files],
            Verification(len(schema.audit.failing), sources=schema.policies),
            schema.errors,
        )
        observe(connection, draft.audit, draft.plan)
        if not draft.plan.empty:
            progress("running the migration in the scratch database, twice, and its undo script")
            _rehearse(connection, draft, version=version, path=path, timeouts=timeouts)
    return draft


def from_database(
    connection: Connection,
    *,
    schemas: t.Optional[t.Sequence[str]],
    roles: t.Optional[t.Sequence[str]],
    options: t.Mapping[str, t.Any],
    timeouts: t.Mapping[str, t.Any],
    observe: Observer = _unobserved,
    progress: Progress = silent,
) -> Draft:
    """Plans on a database in read-only transactions: nothing is locked or changed there, so that nothing is verified
    either.
    """
    present = audit(connection, schemas=schemas, roles=roles, progress=progress, **timeouts)
    progress("planning")
    repair_plan = plan(connection, present, **options, **timeouts)
    observe(connection, present, repair_plan)
    verification = Verification(
        len(present.failing),
        len(repair_plan.left),
        sentences=[
            "The number after is predicted, and nothing was run: rls repair --check verifies it on the database"
            " and rolls that back."
        ],
    )
    return Draft(present, repair_plan, [f"the database {present.catalog.database}"], verification)


def _rehearse(
    connection: Connection, draft: Draft, *, version: str, path: Path, timeouts: t.Mapping[str, t.Any]
) -> None:
    """Runs what will be written, as the tools that run migration files do, and compares the catalog."""
    verified = apply.apply(connection, draft.plan, check_mode=True, **timeouts)
    draft.plan.needs_review = verified["needs_review"]
    before = _fingerprints(connection, draft)
    text, undo_text = draft.texts(version=version, path=path)
    _run(connection, text, "The migration")
    once = _fingerprints(connection, draft)
    present = audit(connection, schemas=draft.plan.schemas, roles=draft.plan.roles, **timeouts)
    failures = [failure for failure in present.failing if failure.recursive]
    if len(failures) > len(draft.plan.left):
        raise OpsError(
            f"The migration would leave {len(failures)} accesses that fail.",
            hint="Nothing was written. Please report it.",
        )
    _run(connection, text, "The second run of the migration")
    if _fingerprints(connection, draft) != once:
        raise OpsError("A second run of the migration changes policies.", hint="Nothing was written. Please report it.")
    _run(connection, undo_text, "The undo script")
    if _fingerprints(connection, draft) != before:
        raise OpsError("The undo script does not restore the policies.", hint="Nothing was written. Please report it.")
    me = (
        "a role that is no superuser, with BYPASSRLS"
        if draft.audit.catalog.current_user.startswith("wheels_ops_scratch_")
        else f"the role {draft.audit.catalog.current_user}"
    )
    draft.verification.failing_after = len(failures)
    draft.verification.sentences = [
        f"Verified in a scratch database, as {me}: run twice, the second run changed nothing;"
        " the undo script restored every policy exactly.",
        "Policies that working accesses read are the same texts as before"
        + (", but for the columns that were asked to be qualified" if draft.plan.reworded else "")
        + ". There were no rows to compare.",
    ]


def _fingerprints(connection: Connection, draft: Draft) -> t.Dict[str, str]:
    tables = {change.relation.qualified for change in draft.plan.changes}
    with transaction(connection, read_only=True) as cursor:
        return apply.fingerprint(catalog.read(cursor), tables)


def _run(connection: Connection, text: str, label: str) -> None:
    """One transaction, as ``psql -1`` has it."""
    import psycopg2

    with connection.cursor() as cursor:
        try:
            cursor.execute("begin")
            cursor.execute(text)
            cursor.execute("commit")
        except psycopg2.Error as error:
            cursor.execute("rollback")
            raise OpsError(
                f"{label} fails in the scratch database: {(error.diag.message_primary or str(error)).strip()}",
                hint="Nothing was written. Please report it.",
                sqlstate=error.pgcode,
            ) from error


def target(requested: Path, stamp: str) -> Path:
    """The file to write: STAMP in its name becomes ``stamp``; in a directory it is ``STAMP_rls.sql``."""
    path = requested / "STAMP_rls.sql" if requested.is_dir() else requested
    return path.with_name(path.name.replace("STAMP", stamp))


def check_target(path: Path) -> None:
    """Raises ``OpsError`` for a file that is somebody else's, which is not overwritten."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            foreign = not file.read(len(MARK)).startswith(MARK)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OpsError(f"Cannot write {path}: {error.strerror}.", hint="Name a file that can be written.") from error
    if foreign:
        raise OpsError(
            f"{path} exists and was not written by wheels-ops.", hint="Nothing was changed. Name another file."
        )


def write(draft: Draft, path: Path, *, version: str) -> t.Tuple[Path, Path]:
    """Keeps the undo script, then the migration. Gives both paths."""
    text, undo_text = draft.texts(version=version, path=path)
    undo_path = path.with_name(path.name + UNDO_SUFFIX)
    try:
        make_directories(path.parent)
        write_atomically(undo_path, undo_text.encode(), mode=0o644)
        write_atomically(path, text.encode(), mode=0o644)
    except (OSError, OpsError) as error:
        raise OpsError(f"Cannot write {path}: {error}", hint="Name a file that can be written.") from error
    return path, undo_path
