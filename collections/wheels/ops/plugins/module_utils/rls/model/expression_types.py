# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The types of expressions, from the server, which parses them and runs nothing."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .transactions import Cursor


@dataclass(frozen=True)
class ExpressionType:
    """``name``: as SQL writes it; ``collatable``: whether values are compared in an order that can be chosen."""

    name: str
    collatable: bool = False


class ExpressionTypes:
    """Asks each expression once, inside the caller's transaction, whose ``search_path`` must be empty."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self._asked: t.Dict[str, t.Optional[ExpressionType]] = {}

    def __call__(self, text: str) -> t.Optional[ExpressionType]:
        """The type of an expression without columns; a domain's is the one below it. None where the server refuses it."""
        if text not in self._asked:
            self._asked[text] = self._ask(text)
        return self._asked[text]

    def _ask(self, text: str) -> t.Optional[ExpressionType]:
        import psycopg2

        self.cursor.execute("savepoint wheels_ops_type")
        try:
            # A parameter gets the type of what it stands beside. PREPARE parses; it neither plans nor runs, and asks
            # for no privilege.
            self.cursor.execute(
                f"PREPARE wheels_ops_type (unknown) AS SELECT CASE WHEN false THEN ({text}) ELSE $1 END"
            )
            self.cursor.execute(
                "select t.oid::pg_catalog.regtype::text, t.typcollation <> 0 from pg_catalog.pg_prepared_statements s,"
                " pg_catalog.pg_type t where s.name = 'wheels_ops_type' and t.oid = s.parameter_types[1]"
            )
            name, collatable = self.cursor.fetchone()
            self.cursor.execute("DEALLOCATE wheels_ops_type")
        except (psycopg2.errors.QueryCanceled, psycopg2.OperationalError):
            raise
        except psycopg2.Error:
            self.cursor.execute("rollback to savepoint wheels_ops_type")
            return None
        self.cursor.execute("release savepoint wheels_ops_type")
        return ExpressionType(name, bool(collatable))
