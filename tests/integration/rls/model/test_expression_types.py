# SPDX-License-Identifier: GPL-3.0-or-later
"""The server names the type of an expression without running it."""

from __future__ import annotations

import pytest

from tests.support import rls_database as db
from tests.support import servers
from wheels_ops.rls.model.expression_types import ExpressionType, ExpressionTypes
from wheels_ops.rls.model.transactions import transaction

SQL = """
create type public.mood as enum ('good');
create domain public.positive as int check (value > 0);
create function public.boom() returns uuid language plpgsql immutable as $$ begin raise exception 'it was run'; end $$;
create function public.moods() returns public.mood[] language sql stable as $$ select array['good'::public.mood] $$;
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CURRENT_USER", ExpressionType("name", True)),
        ("CURRENT_USER::text", ExpressionType("text", True)),
        ("public.boom()", ExpressionType("uuid")),
        ("public.moods()", ExpressionType("public.mood[]")),
        ("5::public.positive", ExpressionType("integer")),
        ("(SELECT 1::bigint)", ExpressionType("bigint")),
        ("ARRAY(SELECT '%s'::text)", ExpressionType("text[]", True)),
        ("public.absent()", None),
    ],
)
def test_types(server: servers.Postgres, text: str, expected: ExpressionType) -> None:
    with db.database(server, SQL) as connection, transaction(connection, read_only=True) as cursor:
        types = ExpressionTypes(cursor)
        assert types(text) == expected
        assert types("1") == ExpressionType("integer"), "the transaction goes on"
        assert types(text) == expected
