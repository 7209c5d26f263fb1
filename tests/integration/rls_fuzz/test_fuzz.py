# SPDX-License-Identifier: GPL-3.0-or-later
"""Random schemas: found, repaired, compared with an independent evaluation of the original policies, taken back.

``WHEELS_OPS_FUZZ=500`` runs that many on PostgreSQL 15 and a fifth of it on the newest; ``WHEELS_OPS_FUZZ_SEED=123``
begins with that seed (``WHEELS_OPS_FUZZ_SEED=123 WHEELS_OPS_FUZZ=1`` runs it alone). A failing schema is made smaller
and printed as SQL: put it into ``tests/integration/rls/cases`` when the defect is mended.
"""

from __future__ import annotations

import os
import re
import typing as t
from pathlib import Path

import pytest

from tests.integration.rls_fuzz.checking import Checker, Outcome
from tests.integration.rls_fuzz.generator import PEOPLE, Generator, Group, Policy, Schema, Table, quote
from tests.integration.rls_fuzz.shrinking import shrink
from tests.support import servers
from wheels_ops import rls

#: About a third of a second each on a quiet machine; ``make stress`` tries more.
COUNT = int(os.environ.get("WHEELS_OPS_FUZZ", "60"))
FIRST = int(os.environ.get("WHEELS_OPS_FUZZ_SEED", "0"))
pytestmark = pytest.mark.slow


def campaign(server: servers.Postgres, first: int, count: int, *, allow_unbounded: bool) -> Outcome:
    """Checks ``count`` schemas and gives the sums; fails at the first that does not hold, with its shrunk SQL."""
    checker = Checker(server.database(supabase=True))
    total = Outcome()
    recursive = 0
    for seed in range(first, first + count):
        schema = Generator(seed, invoker_views=server.major >= 15).make()
        outcome = checker.check(schema, allow_unbounded=allow_unbounded)
        if outcome.problem and not outcome.problem.startswith("too large"):
            small = shrink(checker, schema, outcome, allow_unbounded=allow_unbounded)
            pytest.fail(f"seed {seed}: {outcome.problem}\nShrunk:\n{small.text()}")
        recursive += bool(outcome.failing)
        for name in ("failing", "cuts", "split", "unwrapped", "review", "d1", "d2", "left"):
            setattr(total, name, getattr(total, name) + getattr(outcome, name))
    print(  # the seeds belong to the result
        f"\nseeds {first}..{first + count - 1}: {recursive} recursive schemas, {total.failing} failing accesses,"
        f" {total.cuts} cuts ({total.split} split, {total.unwrapped} unwrapped), {total.review} refused, {total.left}"
        f" accesses left; {total.d1} comparisons under D1 and {total.d2} under D2, 0 differences"
    )
    assert recursive >= count // 4, "the generator makes too few recursive schemas to prove anything"
    return total


def test_random_schemas(postgres: servers.Postgres) -> None:
    total = campaign(postgres, FIRST, COUNT, allow_unbounded=True)
    if COUNT >= 60:
        assert total.cuts and total.d1 and total.d2


def test_random_schemas_on_the_newest_server(newest_postgres: servers.Postgres) -> None:
    campaign(newest_postgres, FIRST + 100_000, max(1, COUNT // 5), allow_unbounded=True)


def test_random_schemas_with_cautious_options(postgres: servers.Postgres) -> None:
    """Unbounded functions are not allowed: more is refused, and what is repaired is as right as before."""
    campaign(postgres, FIRST + 200_000, max(1, COUNT // 5), allow_unbounded=False)


class Written(Schema):
    """A schema from a file: what the fuzzer found, made smaller, kept."""

    @classmethod
    def read(cls, file: Path) -> Written:
        text = file.read_text()
        tables = [Table(name) for name in re.findall(r'^create table fuzz_found\."?([^" ]+)', text, re.MULTILINE)]
        made = cls(0, "fuzz_found", tables, [], [], [])
        made.text_of_file = text
        return made

    text_of_file = ""

    def statements(self) -> t.List[str]:
        return [self.text_of_file]


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "found").glob("*.sql")), ids=lambda path: path.stem)
@pytest.mark.parametrize("allow_unbounded", [True, False])
def test_what_was_found(postgres: servers.Postgres, file: Path, allow_unbounded: bool) -> None:
    outcome = Checker(postgres.database(supabase=True)).check(Written.read(file), allow_unbounded=allow_unbounded)
    assert outcome.problem == "" and outcome.failing


@pytest.mark.parametrize(
    ("tamper", "noticed"),
    [
        ("alter policy {policy} on {table} using (true)", {"D1", "D2"}),
        ("alter policy {policy} on {table} using (false)", {"D1", "D2"}),
        ("alter policy {policy} on {table} to service_role", {"D1", "D2"}),
        ("create policy more on {table} as restrictive for select using (id <> 1)", {"D1", "D2"}),
        ("create index on {table} (grp)", {"undo"}),
    ],
)
def test_the_judge_notices(
    postgres: servers.Postgres, monkeypatch: pytest.MonkeyPatch, tamper: str, noticed: t.Set[str]
) -> None:
    """A repair that gives more, gives less or leaves something behind is found: the judge is not blind."""
    checker = Checker(postgres.database(supabase=True))
    really_apply = rls.apply

    def apply(connection: t.Any, plan: rls.Plan, **options: t.Any) -> t.Dict[str, t.Any]:
        result = really_apply(connection, plan, **options)
        if not options.get("check_mode"):
            change = plan.changes[0]
            with connection, connection.cursor() as cursor:
                cursor.execute(tamper.format(policy=quote(change.before[0].name), table=change.relation.qualified))
        return result

    schema = Schema(
        0,
        "fuzz_judge",
        [Table("trips", rows=[f"({n}, '{PEOPLE[n % 3]}', null, {n}, 1, true, 'a')" for n in range(1, 6)])],
        [],
        [],
        [
            Policy(
                "trips",
                "see",
                "select",
                "public",
                True,
                Group(
                    "or",
                    [
                        'fuzz_judge."trips".id in (select s.ref from fuzz_judge."trips" s where s.owner = auth.uid())',
                        "grp = 2",
                    ],
                ),
                None,
            )
        ],
    )
    assert checker.check(schema).problem == ""
    monkeypatch.setattr(rls, "apply", apply)
    assert checker.check(schema).kind in noticed
