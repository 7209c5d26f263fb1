# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Policy texts that PostgreSQL reads back into the very tree from which it wrote them.

``IN`` with columns on its right side, ``BETWEEN`` and the comparison of rows become an AND or OR of their own
(transformAExprIn and its neighbours in parse_expr.c), and are written out as one. The grammar makes one list of ``(a OR
b) OR c`` when it reads that text (makeOrExpr in gram.y), whatever its parentheses: the same condition, but no longer
the same tree, nor the same text. Only the construct that made the inner list makes it again.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

_CONNECTIVES = ("AND", "OR")
_COMPARISONS = ("=", "<>", "<", ">", "<=", ">=")

Item = t.Union[str, "_Group"]


@dataclass
class _Group:
    """What stands between two parentheses: texts and groups, ``gap`` the white space before each."""

    items: t.List[Item] = field(default_factory=list)
    gaps: t.List[str] = field(default_factory=list)

    def add(self, gap: str, item: Item) -> None:
        self.gaps.append(gap)
        self.items.append(item)

    def part(self, start: int, end: int) -> _Group:
        return _Group(self.items[start:end], self.gaps[start:end])

    def text(self) -> str:
        return "".join(
            gap + (item if isinstance(item, str) else f"({item.text()})") for gap, item in zip(self.gaps, self.items)
        )


class _Comparison(t.NamedTuple):
    left: str
    operator: str
    right: _Group


def same_tree(text: str) -> str:
    """``text`` (of ``pg_get_expr``), with the constructs put back without which reading it would give another tree. The
    meaning is the same in any case; an inner list that none of them makes stays as it is.
    """
    from pglast.parser import scan

    if not any(f" {word} " in text for word in _CONNECTIVES):
        return text
    open_groups = [_Group()]
    at = 0
    for token in scan(text):
        gap, word = text[at : token.start], text[token.start : token.end + 1]
        at = token.end + 1
        if word == "(":
            inner = _Group()
            open_groups[-1].add(gap, inner)
            open_groups.append(inner)
        elif word == ")":
            # White space before a closing parenthesis belongs to nobody.
            group = open_groups.pop()
            if gap:
                group.add(gap, "")
        else:
            open_groups[-1].add(gap, word)
    return text if not _restore(open_groups[0]) else open_groups[0].text() + text[at:]


def _restore(group: _Group) -> bool:
    """Whether anything had to be put back in a group or below it."""
    changed = False
    for item in group.items:
        if isinstance(item, _Group):
            changed |= _restore(item)
    if not _nested(group):
        return changed
    word = str(group.items[1])
    whole = _membership(word, _spine(group, word))
    if whole:
        group.items, group.gaps = [whole], [""]
        return True
    first = group.items[0]
    if isinstance(first, _Group):
        node = _membership(word, _spine(first, word)) or _construct(
            word, [_comparison(item) for item in _joined(first, word)]
        )
        if node:
            group.items[0] = f"({node})"
            return True
    return changed


def _nested(group: _Group) -> bool:
    """Whether the grammar would make one list of a group and its first member."""
    if len(group.items) < 3 or group.items[1] not in _CONNECTIVES or not isinstance(group.items[0], _Group):
        return False
    return bool(_joined(group.items[0], str(group.items[1])))


def _joined(group: _Group, word: str) -> t.List[Item]:
    """The members of a group that joins them by ``word``; none where it is anything else."""
    members = group.items[::2]
    alike = len(group.items) > 2 and len(group.items) % 2 and all(item == word for item in group.items[1::2])
    return members if alike and all(isinstance(item, _Group) for item in members) else []


def _spine(group: _Group, word: str) -> t.List[Item]:
    """The members of a list made two by two, from the left, as IN makes it; none where it is anything else."""
    members = _joined(group, word)
    if len(members) != 2 or not isinstance(members[0], _Group):
        return []
    return [*(_spine(members[0], word) or [members[0]]), members[1]]


def _comparison(item: Item) -> t.Optional[_Comparison]:
    if not isinstance(item, _Group):
        return None
    places = [number for number, word in enumerate(item.items) if word in _COMPARISONS]
    if len(places) != 1 or not 0 < places[0] < len(item.items) - 1:
        return None
    left, right = item.part(0, places[0]), item.part(places[0] + 1, len(item.items))
    return _Comparison(left.text().strip(), str(item.items[places[0]]), right)


def _membership(word: str, members: t.Sequence[Item]) -> str:
    """``x IN (...)`` or ``x NOT IN (...)``; empty where the members are no such list."""
    parts = [_comparison(item) for item in members]
    operator = {"OR": "=", "AND": "<>"}[word]
    elements: t.List[str] = []
    for part in parts:
        if part is None or part.operator != operator or (parts[0] and part.left != parts[0].left):
            return ""
        if part.right.items[0] in ("ANY", "ALL"):
            # The constants of the list, where there are several, come first, as an array.
            array = part.right.items[1] if len(part.right.items) == 2 else None
            if (
                part is not parts[0]
                or not isinstance(array, _Group)
                or array.items[:2] != ["ARRAY", "["]
                or array.items.index("]") != len(array.items) - 1
            ):
                return ""
            elements.append(array.part(2, len(array.items) - 1).text())
        else:
            elements.append(part.right.text().strip())
    return f"{parts[0].left} {'IN' if word == 'OR' else 'NOT IN'} ({', '.join(elements)})" if parts and parts[0] else ""


def _construct(word: str, parts: t.Sequence[t.Optional[_Comparison]]) -> str:
    """BETWEEN, or the comparison of rows; empty where the parts are neither."""
    comparisons = [part for part in parts if part is not None and part.right.items[0] not in ("ANY", "ALL")]
    if len(comparisons) != len(parts) or not comparisons:
        return ""
    lefts, operators, rights = (
        [part.left for part in comparisons],
        [part.operator for part in comparisons],
        [part.right.text().strip() for part in comparisons],
    )
    if len(set(lefts)) == 1 and (word, operators) in (("AND", [">=", "<="]), ("OR", ["<", ">"])):
        return f"{lefts[0]} {'BETWEEN' if word == 'AND' else 'NOT BETWEEN'} ({rights[0]}) AND ({rights[1]})"
    if (word, set(operators)) in (("AND", {"="}), ("OR", {"<>"})):
        return f"ROW({', '.join(lefts)}) {operators[0]} ROW({', '.join(rights)})"
    return ""
