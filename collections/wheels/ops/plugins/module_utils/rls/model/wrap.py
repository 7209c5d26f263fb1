# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Identity calls and the sub-select around them that makes PostgreSQL evaluate them once for a query instead of once
for a row.
"""

from __future__ import annotations

import typing as t

from . import tree
from .catalog import AUTH_FUNCTIONS
from .tree import Node


def is_identity(node: Node) -> bool:
    """A call of ``auth.uid()`` and its kind, or ``current_setting`` with constants.

    Both are STABLE and depend on the session alone.
    """
    if tree.kind(node) != "FuncCall":
        return False
    name = tree.function_name(node)
    args = node.args or ()
    if len(name) == 2 and name[0] == "auth" and name[1] in AUTH_FUNCTIONS:
        return not args
    return (
        name[-1] == "current_setting"
        and name[:-1] in ((), ("pg_catalog",))
        and all(tree.kind(tree.uncast(arg)) == "A_Const" for arg in args)
    )


def fromless(node: Node) -> t.Optional[Node]:
    """The expression that ``(SELECT expression)`` stands for, else None."""
    if tree.kind(node) != "SubLink" or int(node.subLinkType) != 4:
        return None
    query = node.subselect
    plain = not any(
        getattr(query, name, None)
        for name in (
            "fromClause",
            "whereClause",
            "groupClause",
            "havingClause",
            "withClause",
            "distinctClause",
            "limitCount",
            "limitOffset",
            "valuesLists",
        )
    )
    if tree.kind(query) != "SelectStmt" or int(query.op) != 0 or not plain or len(query.targetList or ()) != 1:
        return None
    return query.targetList[0].val


def wrapped(node: Node) -> Node:
    """``(SELECT node)``."""
    holder = tree.parse("(SELECT 1)")
    holder.val.subselect.targetList[0].val = node
    return holder.val


def wrap(holder: Node) -> bool:
    """Wraps every bare identity call below ``holder.val`` and unwraps what is wrapped twice; whether anything changed.

    Running it again changes nothing.
    """
    changed = False
    for node in list(tree.walk(holder.val)):
        inner = fromless(node)
        if inner is not None and fromless(inner) is not None:
            while fromless(inner) is not None:
                inner = fromless(inner)
            node.subselect.targetList[0].val = inner
            changed = True
    covered = {id(inner) for node in tree.walk(holder.val) for inner in [fromless(node)] if inner is not None}
    # Inside (SELECT auth.jwt() ->> 'x') the call already runs once.
    covered |= {
        id(below) for node in tree.walk(holder.val) if fromless(node) is not None for below in tree.walk(fromless(node))
    }
    for node in list(tree.walk(holder.val)):
        if is_identity(node) and id(node) not in covered:
            new = wrapped(node)
            if holder.val is node:
                holder.val = new
            else:
                tree.replace(holder.val, node, new)
            changed = True
    return changed


def unwrap(holder: Node) -> bool:
    """Takes every FROM-less sub-select away: the same value, evaluated for every row. Whether anything changed."""
    changed = False
    while True:
        found = next((node for node in tree.walk(holder.val) if fromless(node) is not None), None)
        if found is None:
            return changed
        inner = fromless(found)
        changed = True
        if holder.val is found:
            holder.val = inner
        else:
            tree.replace(holder.val, found, inner)
