# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults that can be put into one file of the library.

A fault changes one place of the syntax tree: a comparison, a constant, a condition, a piece of arithmetic, a returned
value, a keyword or an element, a branch, a handler, a statement. Left alone is what grades nothing: docstrings, types,
imports, the text of messages and of the log, and limits that only bound a wait.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import os
import random
import re
import typing as t
from dataclasses import dataclass

#: Keywords, parameters and variables whose value is text for a person, or says nothing of the outcome.
_TEXT = re.compile(r"message|msg|hint|why|encoding|errors|daemon|thread_name_prefix|.*timeout.*", re.IGNORECASE)
#: Calls whose arguments are text for a person.
_SPEAKERS = re.compile(r"OpsError|print|warn|log|logger|debug|info|warning|error|exception")
_NEGATED: t.Dict[t.Type[ast.cmpop], t.Type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_BOUNDARY: t.Dict[t.Type[ast.cmpop], t.Type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_ARITHMETIC: t.Dict[t.Type[ast.operator], t.Type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_STATUSES = {"critical": "ok", "emergency": "ok", "warning": "ok", "unknown": "ok", "ok": "critical", "skipped": "ok"}


@dataclass(frozen=True)
class Mutant:
    """One fault: ``kind`` is a word for the report, ``source`` the whole file with the fault, ``diff`` what differs."""

    kind: str
    line: int
    diff: str
    source: str


class _Edit(t.NamedTuple):
    kind: str
    line: int
    owner: t.Any
    field: str
    value: t.Any


def mutants(source: str) -> t.List[Mutant]:
    """Every mutant of a file, in the order of its lines; those that Python does not compile are left out."""
    tree = ast.parse(source)
    original = ast.unparse(tree)
    collection: t.List[Mutant] = []
    sources = {original}
    for edit in sorted(_edits(tree), key=lambda each: each.line):
        mutant = _built(tree, original, edit)
        if mutant is not None and mutant.source not in sources:
            sources.add(mutant.source)
            collection.append(mutant)
    return collection


def _built(tree: ast.AST, original: str, edit: _Edit) -> t.Optional[Mutant]:
    """The mutant of an edit; None where it changes nothing, or is nothing that Python compiles."""
    before = getattr(edit.owner, edit.field)
    setattr(edit.owner, edit.field, edit.value)
    try:
        changed = ast.unparse(ast.fix_missing_locations(tree))
        compile(changed, "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    finally:
        setattr(edit.owner, edit.field, before)
    return None if changed == original else Mutant(edit.kind, edit.line, _difference(original, changed), changed)


def sample(source: str, number: int, seed: str) -> t.List[Mutant]:
    """``number`` mutants of a file (all for 0) in the order of its lines, the same for the same source and seed."""
    everything = mutants(source)
    if not number or number >= len(everything):
        return everything
    return [everything[index] for index in sorted(random.Random(seed).sample(range(len(everything)), number))]


def gradings(source: str, seed: str) -> t.List[Mutant]:
    """One mutant of each way in which a check can grade wrongly, as far as the file has one of that kind."""
    generator = random.Random(seed)
    tree = ast.parse(source)
    original = ast.unparse(tree)
    edits = sorted(_edits(tree), key=lambda each: each.line)
    choices: t.List[Mutant] = []
    for kinds in (("comparison", "boundary"), ("value dropped", "condition"), ("early ok", "status", "return")):
        # Only what is chosen is built: to build every mutant of a long file takes seconds.
        candidates = [each for each in edits if each.kind in kinds]
        generator.shuffle(candidates)
        choices += itertools.islice(filter(None, (_built(tree, original, each) for each in candidates)), 1)
    return choices


def _called(call: ast.Call) -> str:
    """The last word of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _difference(before: str, after: str) -> str:
    marked = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    lines = [line for line in marked if line[:2] not in ("--", "++", "@@")]
    words = [line[1:].strip() for line in lines]
    if len(lines) == 2 and max(map(len, words)) > 100:
        # Of two long lines, the place where they differ.
        start = max(0, len(os.path.commonprefix(words)) - 50)
        end = max(
            0,
            min(len(os.path.commonprefix([word[::-1] for word in words])), *(len(word) - start for word in words)) - 50,
        )
        words = [f"{'... ' if start else ''}{word[start : len(word) - end]}{' ...' if end else ''}" for word in words]
    return "\n".join(f"{line[0]} {word}" for line, word in list(zip(lines, words))[:6])


def _edits(tree: ast.AST) -> t.Iterator[_Edit]:
    yield from _within(tree, "")


def _within(node: ast.AST, returns: str) -> t.Iterator[_Edit]:
    """``returns`` is the annotation of the function around ``node``."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        returns = ast.unparse(node.returns) if node.returns else ""
    yield from _of_node(node, returns)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST) and not _silent(child, node, field):
                yield from _within(child, returns)


def _silent(node: ast.AST, parent: ast.AST, field: str) -> bool:
    """Whether a part of the tree grades nothing."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).startswith(("t.", "typing.")):
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if ast.unparse(targets[0]) == "__all__":
            return True
        return all(isinstance(target, ast.Name) and _TEXT.fullmatch(target.id) for target in targets)
    if isinstance(parent, ast.keyword):
        return bool(parent.arg and _TEXT.fullmatch(parent.arg))
    if isinstance(parent, ast.Call) and field in ("args", "keywords"):
        return bool(_SPEAKERS.fullmatch(_called(parent)))
    if isinstance(parent, ast.arguments) and field in ("defaults", "kw_defaults"):
        names, defaults = parent.kwonlyargs, t.cast("t.List[t.Any]", parent.kw_defaults)
        if field == "defaults":
            names, defaults = [*parent.posonlyargs, *parent.args][-len(parent.defaults) :], parent.defaults
        return any(default is node and _TEXT.fullmatch(name.arg) for name, default in zip(names, defaults))
    return False


def _of_node(node: t.Any, returns: str) -> t.Iterator[_Edit]:
    line = getattr(node, "lineno", 0)

    def edit(kind: str, field: str, value: t.Any) -> _Edit:
        return _Edit(kind, line, node, field, value)

    def without(kind: str, field: str) -> t.Iterator[_Edit]:
        values = getattr(node, field)
        for index in range(len(values)):
            yield edit(kind, field, values[:index] + values[index + 1 :])

    def opposite(condition: ast.expr) -> ast.expr:
        if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
            return condition.operand
        return ast.UnaryOp(ast.Not(), condition)

    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for kind, table in (("comparison", _NEGATED), ("boundary", _BOUNDARY)):
                if type(operator) in table:
                    yield edit(kind, "ops", [*node.ops[:index], table[type(operator)](), *node.ops[index + 1 :]])
    elif isinstance(node, ast.BoolOp):
        yield edit("condition", "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        if len(node.values) > 1:
            for index in range(len(node.values)):
                rest = node.values[:index] + node.values[index + 1 :]
                yield edit("value dropped", "values", rest)
    elif isinstance(node, ast.Constant):
        yield from (edit(*change) for change in _constants(node.value))
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _ARITHMETIC:
        if not any(isinstance(getattr(node, side, None), ast.JoinedStr) for side in ("left", "right", "value")):
            yield edit("arithmetic", "op", _ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.Return) and node.value is not None:
        yield from (edit(kind, "value", value) for kind, value in _returns(node.value, returns))
    elif isinstance(node, ast.Call):
        yield from _calls(node, edit)
    elif isinstance(node, (ast.List, ast.Tuple, ast.Set)) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        yield from without("value dropped", "elts")
    elif isinstance(node, ast.Dict):
        for index, key in enumerate(node.keys):
            # Renamed, so that whoever reads it misses it; keys and values are two lists, of which an edit changes one.
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield edit(
                    "value dropped",
                    "keys",
                    [*node.keys[:index], ast.Constant(f"no {key.value}"), *node.keys[index + 1 :]],
                )
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield edit("condition", "test", opposite(node.test))
    if isinstance(node, ast.comprehension) and node.ifs:
        yield _Edit("value dropped", node.ifs[0].lineno, node, "ifs", [])
    if isinstance(node, ast.Try):
        for index, handler in enumerate(node.handlers):
            # It raises what it catches, as if it were not there: a try statement needs one handler at least.
            bare = ast.ExceptHandler(handler.type, handler.name, [ast.Raise(None, None)])
            yield _Edit(
                "handler removed",
                handler.lineno,
                node,
                "handlers",
                [*node.handlers[:index], bare, *node.handlers[index + 1 :]],
            )
        if node.finalbody:
            yield _Edit("branch removed", node.finalbody[0].lineno, node, "finalbody", [ast.Pass()])
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if isinstance(block, list):
            yield from _statements(node, field, block)


def _constants(value: t.Any) -> t.Iterator[t.Tuple[str, str, t.Any]]:
    if isinstance(value, bool):
        yield "constant", "value", not value
    elif isinstance(value, (int, float)):
        yield "constant", "value", value + 1
        if value not in (0, 1):
            yield "constant", "value", value * 2
    elif isinstance(value, str) and value in _STATUSES:
        yield "status", "value", _STATUSES[value]
    elif isinstance(value, str):
        yield "constant", "value", f"{value}?" if value else "?"


def _returns(value: ast.expr, returns: str) -> t.Iterator[t.Tuple[str, ast.expr]]:
    """An early ok: whatever was measured, the answer is that nothing is wrong."""
    if returns in ("Check", "health.Check"):
        arguments = {keyword.arg: keyword.value for keyword in value.keywords} if isinstance(value, ast.Call) else {}
        if "remedy" not in arguments and ast.unparse(arguments.get("status", value)) == "'ok'":
            return
        keywords = [ast.keyword("status", ast.Constant("ok")), ast.keyword("remedy", ast.Constant(""))]
        replace = ast.Attribute(ast.Call(ast.Name("__import__"), [ast.Constant("dataclasses")], []), "replace")
        yield "early ok", ast.Call(replace, [value], keywords)
    elif returns in ("Status", "thresholds.Status"):
        yield "early ok", ast.Constant("ok")
    elif returns == "bool":
        yield "return", ast.UnaryOp(ast.Not(), value)
    elif not (isinstance(value, ast.Constant) and value.value is None):
        yield "return", ast.Constant(None)


def _calls(node: ast.Call, edit: t.Callable[[str, str, t.Any], _Edit]) -> t.Iterator[_Edit]:
    for index, keyword in enumerate(node.keywords):
        # A message that is missing is a fault, though its words are none.
        counts = keyword.arg and (not _TEXT.fullmatch(keyword.arg) or keyword.arg in ("message", "msg"))
        if counts and not _silent(keyword, node, "keywords"):
            yield edit("value dropped", "keywords", node.keywords[:index] + node.keywords[index + 1 :])
    if isinstance(node.func, ast.Name) and node.func.id in ("max", "min"):
        yield edit("arithmetic", "func", ast.Name("min" if node.func.id == "max" else "max"))
    if isinstance(node.func, ast.Name) and node.func.id in ("any", "all"):
        yield edit("condition", "func", ast.Name("all" if node.func.id == "any" else "any"))


def _statements(owner: ast.AST, field: str, block: t.List[ast.stmt]) -> t.Iterator[_Edit]:
    for index, statement in enumerate(block):
        kind = ""
        if isinstance(statement, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(statement.test):
                kind = "branch removed"
        elif isinstance(statement, ast.Raise):
            kind = "raise removed"
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            name = _called(statement.value)
            if not (_SPEAKERS.fullmatch(name) or name in ("close", "shutdown")):
                kind = "call removed"
        elif isinstance(statement, (ast.AugAssign, ast.Break, ast.Continue)) and not _silent(statement, owner, field):
            kind = "statement removed"
        if kind:
            rest: t.List[ast.stmt] = statement.orelse if isinstance(statement, ast.If) else []
            yield _Edit(
                kind,
                statement.lineno,
                owner,
                field,
                [*block[:index], *(rest or [ast.Pass()]), *block[index + 1 :]],
            )
