# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit: the server's answer, explained by the simulation, which must agree with it in every single access."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import typing as t
from dataclasses import dataclass, field

from ...core.results import OpsError
from ..model import catalog
from ..model.findings import Finding
from ..model.roles import RoleClass
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection, Cursor, transaction
from . import callgraph, lints, meanings, openings, oracle
from .oracle import VARIANTS, Failure
from .progress import Progress, silent
from .simulate import Simulator

#: An access and the witness path in words that the simulation gives for it.
Predicted = t.Tuple[RoleClass, catalog.Relation, str, t.Optional[t.List[str]]]


@dataclass
class Audit:
    """What was asked and what was found.

    ``checked``: accesses that the server was asked for, and those that are predicted, as the session may not become the
    role; ``failing``: those that PostgreSQL refuses with a recursion (or with another error while it rewrites);
    ``findings``: everything worth a person's attention, most severe first; ``catalog``: what the rest is based on.
    """

    checked: int
    failing: t.List[Failure]
    findings: t.List[Finding]
    catalog: catalog.Catalog = field(repr=False)
    unasked: t.List[str] = field(default_factory=list)
    tables: int = 0
    policies: int = 0

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "checked": self.checked,
            "tables": self.tables,
            "policies": self.policies,
            "failing": [failure.as_dict() for failure in self.failing],
            "findings": [finding.as_dict() for finding in self.findings],
            "unasked": self.unasked,
        }


@contextlib.contextmanager
def _without_collector() -> t.Iterator[None]:
    """What is read stays, so that the collector of cycles would go through all of it again and again for nothing: a
    quarter of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_without_collector()
def audit(
    connection: Connection,
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    absent_schemas: bool = False,
    progress: Progress = silent,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> Audit:
    """Looks at every access of every role class in one READ ONLY transaction that creates nothing.

    ``connection`` is a psycopg2 connection outside of a transaction. Raises ``OpsError`` where the server and the
    simulation disagree (a defect of ours: nothing may be built on it), when a timeout strikes, and where a role does
    not exist, or a schema, unless ``absent_schemas``: a misspelt one would look clean.
    """
    for last in (False, True):
        with transaction(
            connection, read_only=True, statement_timeout_ms=statement_timeout_ms, lock_timeout_ms=lock_timeout_ms
        ) as cursor:
            if schemas is not None and not absent_schemas:
                _require_schemas(cursor, schemas)
            try:
                return inspect(cursor, schemas=schemas, roles=roles, progress=progress)
            except Disagreement:
                # PREPARE sees definitions that were committed after our snapshot; a second look tells a migration from
                # a defect.
                if last:
                    raise
    raise AssertionError("two looks end in an answer or an error")


def _require_schemas(cursor: Cursor, schemas: t.Sequence[str]) -> None:
    cursor.execute("select nspname from pg_catalog.pg_namespace where nspname = any(%s)", (list(schemas),))
    missing = sorted(set(schemas) - {name for (name,) in cursor.fetchall()})
    if missing:
        raise OpsError(f"There is no schema {', '.join(missing)}.", hint="Name schemas of this database.")


class Disagreement(OpsError):
    """The server and the simulation of its rewriter say different things about an access."""


def inspect(
    cursor: Cursor,
    *,
    schemas: t.Optional[t.Sequence[str]] = None,
    roles: t.Optional[t.Sequence[str]] = None,
    progress: Progress = silent,
) -> Audit:
    """The audit inside a transaction of the caller, whose ``search_path`` must be empty."""
    import concurrent.futures  # slow to import, and ``wheels-ops --version`` needs none

    progress("reading the catalog")
    classes, build = catalog.fetch(cursor, schemas=schemas, roles=roles)
    leading = lints.leading(cursor)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as aside:
        asking = aside.submit(oracle.ask, cursor, classes, schemas=schemas)
        # The cursor is the server's until it has answered; what follows needs only what was read before.
        read = build()
        progress(f"asking for every access to {len(read.relations)} relations as {len(classes)} classes of roles")
        predicted = predict(read)
        review = lints.Review(cursor, read, leading)
        static = [*meanings.findings(read), *openings.from_catalog(read)]
        probe = asking.result()
    failing = explain(read, probe, predicted)
    progress("looking at policies, views and functions")
    findings = [
        *lints.recursion(read, failing),
        *callgraph.findings(read, accesses(read)),
        *review.findings(lambda: working(read, failing)),
        *static,
        *openings.findings(cursor, read),
    ]
    secured = [relation for relation in read.relations.values() if read.audited(relation) and relation.secured]
    return Audit(
        probe.checked + sum(1 for who, _relation, _variant, _path in predicted if not who.settable),
        failing,
        sorted(findings, key=Finding.order),
        read,
        probe.unasked,
        tables=len(secured),
        policies=sum(len(relation.policies) for relation in secured),
    )


def predict(read: catalog.Catalog) -> t.List[Predicted]:
    """What the simulation says of every access: the path that fails, None where none does."""
    simulator = Simulator(read)
    predicted: t.List[Predicted] = []
    for who, relation, variant in accesses(read):
        path = simulator.check(who, relation, variant)
        predicted.append((who, relation, variant, simulator.words(path) if path else None))
    return predicted


def explain(read: catalog.Catalog, probe: oracle.Probe, predicted: t.Sequence[Predicted]) -> t.List[Failure]:
    """The server's failures with their witness paths, and those that it could not be asked for; raises
    ``Disagreement``.
    """
    relations = {relation.qualified: relation for relation in read.relations.values()}
    failures = {(failure.role, failure.relation, failure.command): failure for failure in probe.failing}
    failing, disputed = [], []
    for who, relation, variant, path in predicted:
        key = (who.name, relation.qualified, variant)
        failure = failures.pop(key, None)
        if failure is None and path and not who.settable:
            failure = Failure(
                *key, oracle.RECURSION, "predicted: the session may not become this role", roles=who.members
            )
        elif who.settable and not relation.ruled and bool(path) != bool(failure and failure.recursive):
            outcome = f"{failure.sqlstate} {failure.message}" if failure else "no error"
            disputed.append(
                f"{who.name}, {variant} of {relation.qualified}: the server says {outcome}, the simulation"
                f" {'recursion' if path else 'no error'}"
            )
        if failure:
            failing.append(dataclasses.replace(failure, witness=path or []))
    # What the simulation does not model (a rule's own commands) is the server's word alone.
    failing += [failure for key, failure in failures.items() if relations[key[1]].ruled]
    if disputed:
        raise Disagreement(
            f"The server and the simulation disagree about {len(disputed)} accesses, the first: {disputed[0]}.",
            hint=(
                "Nothing was changed. This is a defect of wheels.ops: please report it with the policies of these"
                " tables."
            ),
            disagreements=disputed,
        )
    return failing


def working(
    read: catalog.Catalog, failing: t.Sequence[Failure]
) -> t.Iterator[t.Tuple[RoleClass, catalog.Relation, str]]:
    """The accesses that do not fail."""
    keys = {(failure.role, failure.relation, failure.command) for failure in failing}
    for who, relation, variant in accesses(read):
        if (who.name, relation.qualified, variant) not in keys:
            yield who, relation, variant


def accesses(read: catalog.Catalog) -> t.Iterator[t.Tuple[RoleClass, catalog.Relation, str]]:
    """Every access that the oracle asks for, in the same order."""
    subjects = [
        relation
        for relation in read.relations.values()
        if read.audited(relation)
        and (
            (relation.kind in ("r", "p") and (relation.secured or relation.ruled))
            or (relation.kind == "v" and not relation.extension)
        )
    ]
    for who in read.classes:
        for relation in subjects:
            if relation.schema in who.schemas:
                for variant in VARIANTS if relation.kind != "v" else ("select",):
                    yield who, relation, variant
