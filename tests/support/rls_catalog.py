# SPDX-License-Identifier: GPL-3.0-or-later
"""Catalogs for tests without a server: tables by name, each with what its policies read."""

from __future__ import annotations

import typing as t

from wheels_ops.rls.model.catalog import Catalog, Expression, Function, Policy, Relation, Role
from wheels_ops.rls.model.roles import RoleClass

#: The oids of the two roles of every catalog here: who owns the tables, and who reads them.
OWNER, READER = 10, 20
WHO = RoleClass("authenticated", READER, ("authenticated",), frozenset(), frozenset({"public"}), True)


def expression(
    relations: t.Sequence[int] = (), functions: t.Sequence[int] = (), *, text: str = "true", sublink: bool = False
) -> Expression:
    """An expression that reads relations and calls functions, by oid. Whoever reads a relation has a sub-select."""
    return Expression(text, "", tuple(relations), frozenset(functions), sublink or bool(relations))


def policy(relation: int, using: t.Optional[Expression], **values: t.Any) -> Policy:
    """A permissive policy for every role and command, unless ``values`` say otherwise."""
    name = str(values.get("name", f"policy of {relation}"))
    defaults: t.Dict[str, t.Any] = {
        "oid": 1000 + relation,
        "name": name,
        "quoted": f'"{name}"',
        "command": "*",
        "permissive": True,
        "roles": (0,),
        "role_names": ("public",),
        "check": None,
    }
    return Policy(**{**defaults, "relation": relation, "using": using, **values})


def relation(oid: int, name: str, policies: t.Sequence[Policy] = (), **values: t.Any) -> Relation:
    """A table of ``public`` under row-level security, unless ``values`` say otherwise."""
    defaults: t.Dict[str, t.Any] = {
        "schema": "public",
        "qualified": f"public.{name}",
        "kind": "r",
        "owner": OWNER,
        "secured": True,
        "forced": False,
        "invoker": False,
        "ruled": False,
        "estimated_rows": 1.0,
        "extension": False,
        "owned": True,
    }
    return Relation(**{**defaults, "oid": oid, "name": name, "policies": list(policies), **values})


def function(oid: int, name: str, source: str, **values: t.Any) -> Function:
    """A function of ``public`` in SQL that runs as its caller, unless ``values`` say otherwise."""
    defaults: t.Dict[str, t.Any] = {
        "schema": "public",
        "qualified": f"public.{name}",
        "signature": f"public.{name}()",
        "language": "sql",
        "definer": False,
        "volatility": "s",
        "owner": OWNER,
        "settings": (),
        "body": None,
        "definition": None,
        "arguments": 0,
        "optional": 0,
        "returns_trigger": False,
        "extension": False,
        "public_execute": True,
    }
    return Function(**{**defaults, "oid": oid, "name": name, "source": source, **values})


def catalog(relations: t.Iterable[Relation], functions: t.Iterable[Function] = ()) -> Catalog:
    """A database with these relations and functions, read by the owner."""
    return Catalog(
        version=150000,
        database="pam",
        current_user="owner",
        session_user="owner",
        search_path=("public",),
        relations={one.oid: one for one in relations},
        functions={one.oid: one for one in functions},
        roles={
            OWNER: Role(OWNER, "owner", superuser=False, bypass=False),
            READER: Role(READER, "authenticated", superuser=False, bypass=False),
        },
        classes=[WHO],
        held={},
        identity={},
    )
