# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies of functions that policies call: the same body, run with the rights of an owner that row-level security does
not bind.

The original is never altered, as others may call it and count on its being bound by row-level security.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t
from dataclasses import dataclass

from ..audit.callgraph import short
from ..model import tree
from ..model.catalog import Catalog, Function, split_search_path
from ..model.column_details import IDENTITY_BOUND, Details, FunctionDetails
from ..model.function_bodies import Bodies
from .rewrite import CannotRewrite
from .volatility import DIFFERENCE, Volatility

#: Words of the language that stand for the caller; a copy can get them as an argument, but for ``user``, which may be a
#: label as well.
_CALLER = frozenset(("current_user", "current_role"))
_KEYWORDS = _CALLER | {"user"}
_PARAMETER = "wheels_ops_caller"
#: CURRENT_ROLE, CURRENT_USER, USER, CURRENT_CATALOG (harmless) and CURRENT_SCHEMA in a node tree.
_KEYWORD_NODE = re.compile(r"\{SQLVALUEFUNCTION :op (9|10|11|14) ")


@dataclass(frozen=True)
class Clone:
    """A function to be created in place of ``function`` (oid); has what a ``rewrite.Helper`` has.

    ``relations`` and ``calls``: oids of everything that runs or is read inside, so that the owner can be given the
    rights.
    """

    function: int
    relation_name: str
    stem: str
    shown: FunctionDetails
    language: str
    search_path: t.Tuple[str, ...]
    settings: t.Tuple[str, ...]
    source: str
    relations: t.Tuple[int, ...]
    calls: t.Tuple[int, ...]
    bound: str = "function"
    reads: t.Tuple[str, ...] = ()
    #: What a call hands over besides the function's own arguments.
    handed: t.Tuple[str, ...] = ()

    @property
    def name(self) -> str:
        content = "\0".join(
            (
                self.relation_name,
                self.shown.arguments,
                self.shown.result,
                self.source,
                *self.search_path,
                *self.settings,
            )
        )
        ending = f"_fn_{hashlib.sha256(content.encode()).hexdigest()[:10]}"
        return self.stem.encode()[: 63 - len(ending)].decode(errors="ignore") + ending

    def signature(self, schema: str) -> str:
        return f"{tree.quote(schema)}.{tree.quote(self.name)}({self.shown.identity})"

    def create(self, schema: str, *, atomic: bool) -> str:
        volatility = {"s": "STABLE", "i": "IMMUTABLE"}[self.shown.volatility]
        path = ", ".join(tree.quote(name) for name in (*self.search_path, "pg_temp"))
        lines = [
            f"CREATE FUNCTION {tree.quote(schema)}.{tree.quote(self.name)}({self.shown.arguments})",
            f"  RETURNS {self.shown.result}",
            f"  LANGUAGE {self.language} {volatility}{' STRICT' if self.shown.strict else ''} SECURITY DEFINER",
            f"  PARALLEL {self.shown.parallel} COST {self.shown.cost:g}",
            f"  SET search_path = {path}",
        ]
        for setting in self.settings:
            name, _ignored, value = setting.partition("=")
            lines.append(f"  SET {name} = {tree.literal(value)}")
        if self.shown.sqlbody and atomic:
            return "\n".join(lines) + f"\n{self.shown.sqlbody}"
        return "\n".join(lines) + f"\nAS {tree.literal(self.source)}"


def clone(
    function: Function, catalog: Catalog, details: Details, bodies: Bodies, *, read_volatile: bool = False
) -> Clone:
    """The copy of a function; ``CannotRewrite`` with the reason where running it with other rights could change what it
    does. ``read_volatile``: the copy of a VOLATILE function that only reads is STABLE.
    """
    function_details = details.functions.get(function.oid)
    if function_details is None:
        raise CannotRewrite(f"{short(function)} is not known any more")
    if function.volatility == "v":
        effect = Volatility(catalog, details, bodies).effect(function)
        if effect:
            raise CannotRewrite(f"{short(function)} is VOLATILE and cannot be STABLE: {effect}")
        if not read_volatile:
            raise CannotRewrite(
                f"{short(function)} is VOLATILE, though its body only reads: --fix volatile (fix: [volatile]) uses a"
                f" STABLE copy in the policy and leaves the function alone. {DIFFERENCE}"
            )
        function_details = dataclasses.replace(function_details, volatility="s")
    others = [
        candidate
        for candidate in catalog.functions.values()
        if (candidate.schema, candidate.name) == (function.schema, function.name) and candidate.oid != function.oid
    ]
    if any(
        candidate.accepts(count) and function.accepts(count)
        for candidate in others
        for count in range(max(candidate.arguments, function.arguments) + 1)
    ):
        raise CannotRewrite(
            f"there are several functions called {short(function)} that take the same number of arguments"
        )
    inner = _inside(function, catalog, bodies)
    relations: t.Set[int] = set()
    for candidate in inner:
        body = bodies.of(candidate)
        if body.unknown:
            raise CannotRewrite(
                f"what {short(candidate)} reads cannot be told: {'; '.join(dict.fromkeys(body.unknown))}"
            )
        if body.writes:
            raise CannotRewrite(f"{short(candidate)} changes data")
        relations |= {oid for oid, _ignored in body.relations}
        asked = _asked(candidate, details)
        if candidate is function and _can_be_handed(function, function_details, asked):
            continue
        if asked:
            raise CannotRewrite(
                f"{short(candidate)} asks for {asked[0]}, which is another inside a SECURITY DEFINER function"
            )
    path = split_search_path(function.search_path) if function.search_path is not None else catalog.search_path
    path = tuple(name for name in path if name in details.schemas and name != "pg_temp")
    unsafe = [name for name in path if details.open_schemas.get(name)]
    if unsafe and function.body is None:
        who = ", ".join(sorted({role for name in unsafe for role in details.open_schemas[name]}))
        raise CannotRewrite(
            f"{short(function)} looks names up in {', '.join(unsafe)}, where {who} may create objects that it would"
            " then use with its owner's rights. REVOKE CREATE ON SCHEMA"
            f" {', '.join(tree.quote(name) for name in unsafe)} FROM PUBLIC, {who}"
        )
    settings = tuple(setting for setting in function.settings if not setting.startswith("search_path="))
    source, handed = function.source or function_details.sqlbody or "", _asked(function, details)
    if handed:
        parameter = f"{_PARAMETER} name"
        function_details = dataclasses.replace(
            function_details,
            arguments=", ".join(filter(None, (function_details.arguments, parameter))),
            identity=", ".join(filter(None, (function_details.identity, parameter))),
        )
        source = _with_parameter(source)
    return Clone(
        function=function.oid,
        relation_name=function.qualified,
        stem=function.name,
        shown=function_details,
        language=function.language,
        search_path=path,
        settings=settings,
        source=source,
        handed=("CURRENT_USER",) if handed else (),
        relations=tuple(sorted(relations)),
        calls=tuple(sorted(candidate.oid for candidate in inner if candidate.oid != function.oid)),
    )


def _asked(function: Function, details: Details) -> t.List[str]:
    """The words in a body whose meaning depends on who runs it; not those in its strings and comments."""
    if function.body is not None:
        names = [details.identity_bound[oid] for oid in function.body.functions if oid in details.identity_bound]
        return sorted(names) + (["current_user"] if _KEYWORD_NODE.search(function.body.tree) else [])
    return [word for word, _start, _end in _words(function.source)]


def _words(source: str) -> t.List[t.Tuple[str, int, int]]:
    """(word, start, end) of each."""
    from pglast.parser import ParseError, scan

    try:
        tokens = scan(source)
    except ParseError as error:
        raise CannotRewrite("its text cannot be read") from error
    result = []
    before = ""
    for token in tokens:
        word = source[token.start : token.end + 1].lower()
        if word in IDENTITY_BOUND and not (word in _KEYWORDS and before == "."):
            result.append((word, token.start, token.end + 1))
        before = word
    return result


def _can_be_handed(function: Function, shown: FunctionDetails, asked: t.Sequence[str]) -> bool:
    """Whether all that a body asks for is the caller's name, and a parameter can be added for it."""
    return (
        bool(asked)
        and _CALLER.issuperset(asked)
        and function.body is None
        and function.optional == 0
        and _PARAMETER not in function.source
        and not re.search(r"\b(OUT|INOUT|VARIADIC)\b", shown.arguments)
    )


def _with_parameter(source: str) -> str:
    for _word, start, end in reversed(_words(source)):
        source = source[:start] + _PARAMETER + source[end:]
    return source


def _inside(function: Function, catalog: Catalog, bodies: Bodies) -> t.List[Function]:
    """The function and those that run with its rights: what it calls, but for SECURITY DEFINER functions, which have
    their own.
    """
    functions: t.List[Function] = []
    todo = [function]
    while todo:
        current = todo.pop()
        if current in functions or (current.definer and current is not function):
            continue
        functions.append(current)
        todo += [catalog.functions[oid] for oid in bodies.of(current).functions]
    return functions
