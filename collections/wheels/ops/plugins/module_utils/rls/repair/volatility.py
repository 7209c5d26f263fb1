# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Functions that are VOLATILE because nobody said otherwise, and do nothing but read."""

from __future__ import annotations

import typing as t

from ..audit.callgraph import short
from ..model.catalog import Catalog, Function
from ..model.column_details import Details
from ..model.function_bodies import Bodies

#: What is different about a STABLE function, for whoever has to decide.
DIFFERENCE = (
    "STABLE, it sees the data as the statement found it, not what the statement has changed so far, and may run once for"
    " several rows."
)


class Volatility:
    """Tells of the functions of one catalog what keeps them from being STABLE."""

    def __init__(self, catalog: Catalog, details: Details, bodies: Bodies) -> None:
        self.catalog = catalog
        self.details = details
        self.bodies = bodies
        self._effects: t.Dict[int, str] = {}

    def effect(self, function: Function) -> str:
        """Why the function may not be STABLE, as far as its parsed body tells; empty where it only reads."""
        if function.oid not in self._effects:
            self._effects[function.oid] = ""  # for functions that call each other
            self._effects[function.oid] = self._effect(function)
        return self._effects[function.oid]

    def _effect(self, function: Function) -> str:
        body = self.bodies.of(function)
        if body.unknown:
            return f"what it does cannot be told: {body.unknown[0]}"
        if body.writes:
            return "it changes data"
        if body.effects:
            return body.effects[0]
        for oid in sorted(body.functions):
            inner = self.catalog.functions[oid]
            reason = self.effect(inner) if inner.volatility == "v" else ""
            if reason:
                return f"it calls {short(inner)}: {reason}"
        known = {(one.schema, one.name) for one in self.catalog.functions.values()}
        for schema, name in sorted(body.calls - known):
            if (schema, name) in self.details.volatile:
                return f"it calls {name}(), which is VOLATILE"
        if body.oids & self.details.volatile_oids - self.catalog.functions.keys():
            return "it calls a VOLATILE function"
        return ""

    def reading(self) -> t.FrozenSet[t.Tuple[str, str]]:
        """The VOLATILE functions (schema, name) that policies call and that only read, whatever their arguments."""
        called = {
            oid
            for policy in self.catalog.policies()
            for expression in (policy.using, policy.check)
            for oid in (expression.functions if expression else ())
        }
        by_name: t.Dict[t.Tuple[str, str], t.List[Function]] = {}
        for function in self.catalog.functions.values():
            if function.volatility == "v":
                by_name.setdefault((function.schema, function.name), []).append(function)
        return frozenset(
            name
            for name, functions in by_name.items()
            if not called.isdisjoint(one.oid for one in functions) and not any(self.effect(one) for one in functions)
        )
