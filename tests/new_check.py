# SPDX-License-Identifier: GPL-3.0-or-later
"""``make new-check NAME=certificate``: creates the file of a check and its test, registers it, and documents it.

    python -m tests.new_check NAME [--title TITLE] [--remedies MODULE,...]
    python -m tests.new_check --page

Nothing is written where the name is refused (status 2). ``--page`` only writes ``docs/checks.md`` from the registry.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import keyword
import os
import re
import subprocess
import sys
import textwrap
import typing as t
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COLLECTION = Path("collections/wheels/ops")
LIBRARY = COLLECTION / "plugins/module_utils"
REGISTRY = LIBRARY / "health/subjects.py"
SUITE = LIBRARY / "checks/suite.py"
PAGE = Path("docs/checks.md")
#: Where the list of all subjects stands literally, as it is read without running any of our code.
LITERAL = ("plugins/modules/*.py", "plugins/doc_fragments/*.py", "roles/*/*/*.yml", "playbooks/**/*.yml")
WIDTH = 120
HEAD = """\
# SPDX-License-Identifier: GPL-3.0-or-later
"""
CHECK = (
    HEAD
    + '''\
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""{title}: say in one sentence what is measured."""

from __future__ import annotations

from ..health.check import Check, unknown
from .context import HostContext, Options


def check() -> Check:
    """Say what ``value`` is and in which unit, what is ``warning`` or ``critical``, and why it may be ``unknown``."""
    return unknown("{name}", "This check is not written yet.")


def measure(_context: HostContext, _options: Options) -> Check:
    return check()
'''
)
TEST = (
    HEAD
    + '''\
"""How the check ``{name}`` grades, and that a run and its report have it."""

from __future__ import annotations

from wheels_ops.checks import {name}, suite
from wheels_ops.report import report


def test_check_that_is_not_written_is_unknown() -> None:
    """Replace it: one test for each status, with the reason in its name."""
    assert {name}.check().status == "unknown"


def test_run_and_report_have_it() -> None:
    health = suite.run(suite.Options(subjects=("{name}",)))
    (result,) = health["checks"]
    assert result["name"] == "{name}"
    (row,) = report.rows({{}}, health, {{}})
    assert row["after"] == result["status"]
'''
)
FRAGMENT = (
    "---\n"
    + HEAD
    + """\
minor_changes:
  - >-
    health_info - new check ``{name}``.
"""
)
#: What every runbook answers, in this order.
HEADINGS = ("What it means", "Look first", "What recover does", "What a person decides", "How to verify")
BEGIN, END = "<!-- Facts: `make docs` writes this list. -->", "<!-- End of the facts. -->"
UNWRITTEN = "To be written."
RUNBOOK = "\n\n".join(["# {title}", f"{BEGIN}\n{END}", *(f"## {each}\n\n{UNWRITTEN}" for each in HEADINGS)]) + "\n"
NEXT = """\
Next:
  1. Write check() in {check}.
     The first sentence of that file is its entry in {page}.
  2. Complete its line in {registry}:
     title, needs, thresholds, remedies.
  3. If it needs an option: Options in checks/context.py, the module health_info, and the variable of the role
     monitoring. tests/unit/health/test_subjects.py says what is still missing.
  4. Replace the first test in {test}.
  5. Write its runbook, {runbook}: what whoever is woken by it has to know.
  6. make docs lint, and make test T="tests/unit/health tests/unit/checks"
"""


class Refused(Exception):
    """A name, title or remedy that cannot be used; the text says why and what can."""


def source(path: Path) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def assigned(path: Path, name: str) -> ast.expr:
    """The value of a constant of a file."""
    for node in ast.parse(source(path)).body:
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = t.cast("t.Union[ast.Assign, ast.AnnAssign]", node).value
            assert value is not None
            return value
    raise LookupError(f"{path} has no {name}.")


def names() -> t.List[str]:
    """The subjects of the registry, in its order."""
    subjects = t.cast(ast.Tuple, assigned(REGISTRY, "REGISTRY")).elts
    return [t.cast(str, t.cast(ast.Constant, t.cast(ast.Call, each).args[0]).value) for each in subjects]


def require_name(name: str) -> None:
    """Raises ``Refused`` for a name that is taken, or that would hide something else."""
    if not re.fullmatch(r"[a-z](?:[a-z0-9_]{0,28}[a-z0-9])?", name):
        raise Refused(
            f"NAME must be up to 30 lower-case letters, digits and _ (neither first nor last), got {name!r}."
            " For example: make new-check NAME=certificate."
        )
    if name in names():
        raise Refused(f"There is a check {name} already: {LIBRARY}/checks/{name}.py. Choose another name.")
    nodes = list(ast.walk(ast.parse(source(SUITE))))
    in_use = {node.id for node in nodes if isinstance(node, ast.Name)}
    in_use |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    in_use |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    if keyword.iskeyword(name) or hasattr(builtins, name) or name in in_use:
        raise Refused(f"{name} is a word of Python or of {SUITE}. Choose another name.")
    taken = [
        *(REPOSITORY / LIBRARY).rglob(f"{name}.py"),
        *(path for path in (REPOSITORY / LIBRARY).rglob(name) if path.is_dir()),
        *(path for path in new_files(name, name) if (REPOSITORY / path).exists()),
    ]
    if taken:
        path = taken[0].relative_to(REPOSITORY) if taken[0].is_absolute() else taken[0]
        raise Refused(f"{path} exists. Files of the library have names of their own: choose another name.")


def require_title(title: str) -> None:
    if not re.fullmatch(r"[A-Z][A-Za-z0-9 ,/-]{0,30}", title):
        raise Refused(
            "TITLE must be up to 31 letters, digits, spaces and , / -, beginning with a capital letter,"
            f" got {title!r}. For example: TITLE='TLS certificate'."
        )


def require_remedies(remedies: t.Sequence[str]) -> None:
    modules = {path.stem for path in (REPOSITORY / COLLECTION / "plugins/modules").glob("*.py")}
    unknown = [each for each in remedies if each not in modules]
    if unknown:
        raise Refused(
            f"REMEDIES must be modules of the collection, got {', '.join(unknown)}. They are in plugins/modules."
        )


def new_files(name: str, title: str) -> t.Dict[Path, str]:
    """What is created, by its path."""
    return {
        LIBRARY / f"checks/{name}.py": CHECK.format(name=name, title=title),
        Path(f"tests/unit/checks/test_{name}.py"): TEST.format(name=name),
        COLLECTION / f"changelogs/fragments/check_{name}.yml": FRAGMENT.format(name=name),
        Path(f"docs/runbooks/{name}.md"): RUNBOOK.format(title=title),
    }


def registered(text: str, node: ast.expr, line: str) -> str:
    """The registry with one more subject at its end."""
    lines = text.splitlines(keepends=True)
    end = t.cast(int, node.end_lineno) - 1
    return "".join([*lines[:end], f"    {line}\n", *lines[end:]])


def imported(text: str, name: str) -> str:
    """The suite with one more file of checks in its import and in its table."""
    tree = ast.parse(text)
    statement = next(
        node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None
    )
    table = t.cast(ast.Tuple, t.cast(ast.DictComp, assigned(SUITE, "MEASURES")).generators[0].iter)
    modules = sorted([*(alias.name for alias in statement.names), name])
    for node, replacement in (
        (table, f"({', '.join(modules)})"),
        (statement, f"from . import ({', '.join(modules)})"),
    ):
        old = t.cast(str, ast.get_source_segment(text, node))
        assert text.count(old) == 1
        text = text.replace(old, replacement)
    return text


def listed(text: str, every: t.Sequence[str], name: str) -> str:
    """A text in which each literal list of ``every`` subject has one more.

    It is ``[memory, cpu]``, with or without quotes and line breaks, or a line ``- memory`` for each.
    """

    def flow(match: t.Match[str]) -> str:
        quote, begin = match["quote"], text.rfind("\n", 0, match.start()) + 1
        before = text[begin : match.start()]
        line = before + f"[{', '.join(f'{quote}{each}{quote}' for each in [*every, name])}]"
        return "\n".join(textwrap.wrap(line, WIDTH - 2, subsequent_indent=" " * (len(before) + 1)))[len(before) :]

    def block(match: t.Match[str]) -> str:
        return f"{match[0]}{match['indent']}- {name}\n"

    separated = r",\s*".join(rf"(?P=quote){each}(?P=quote)" for each in every[1:])
    text = re.sub(rf"\[\s*(?P<quote>[\"']?){every[0]}(?P=quote),\s*{separated}\s*\]", flow, text)
    lines = "".join(rf"(?P=indent)- {each}\n" for each in every[1:])
    return re.sub(rf"(?m)^(?P<indent> *)- {every[0]}\n{lines}", block, text)


def changed_files(name: str, title: str, remedies: t.Sequence[str]) -> t.Dict[Path, str]:
    """What becomes of the files that there are, by path."""
    further = ", remedies=(" + "".join(f'"{each}", ' for each in remedies) + ")" if remedies else ""
    line = f'Subject("{name}", "{title}"{further}),'
    contents = {
        REGISTRY: registered(source(REGISTRY), assigned(REGISTRY, "REGISTRY"), line),
        SUITE: imported(source(SUITE), name),
    }
    every = names()
    for pattern in LITERAL:
        for path in sorted((REPOSITORY / COLLECTION).glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if (longer := listed(text, every, name)) != text:
                contents[path.relative_to(REPOSITORY)] = longer
    return contents


def sentence_of(subject: t.Any) -> str:
    """What a check measures: the first paragraph of its file."""
    docstring = importlib.import_module(f"wheels_ops.{subject.check.rpartition('.')[0]}").__doc__ or ""
    return " ".join(docstring.strip().partition("\n\n")[0].split()).replace("``", "`")


def facts_of(subject: t.Any, *, remedies: bool = True) -> t.List[str]:
    """What the registry says of a subject (``health.subjects.Subject``), a sentence each."""
    from wheels_ops.health import subjects
    from wheels_ops.health.thresholds import DEFAULTS

    facts = [f"Incident {subject.incident}: {subjects.INCIDENTS[subject.incident]}"] if subject.incident else []
    facts += [f"Needs the {need.what}: {need.variables}" for need in subject.needs]
    for name in subject.thresholds:
        limits = [f"{level} {limit:g}" for level, limit in DEFAULTS[name].as_dict().items() if limit is not None]
        facts.append(f"Threshold `{name}`: {', '.join(limits)}")
    if remedies and subject.remedies:
        facts.append(f"Remedies: {', '.join(f'`{each}`' for each in subject.remedies)}")
    return [re.sub(r"(wheels_ops|monitoring)_[a-z_]+", r"`\g<0>`", fact) for fact in facts]


def page() -> str:
    """``docs/checks.md``: every subject of the registry, with the docstring of its check's file."""
    from wheels_ops.health import subjects

    lines = [
        "<!-- `make checks-page` writes this file from health/subjects.py and the docstrings of the checks' files. -->",
        "# Checks",
        "",
        "What `health_info`, the report and the standalone programs measure, in this order. A check without what it",
        "needs is `skipped`. [adding-a-check.md](adding-a-check.md) says how to add one.",
    ]
    for subject in subjects.REGISTRY:
        lines += ["", f"## {subject.title} (`{subject.name}`)", "", *textwrap.wrap(sentence_of(subject), WIDTH), ""]
        facts = [*facts_of(subject), f"Runbook: [{subject.name}](runbooks/{subject.name}.md)"]
        lines += [line for fact in facts for line in textwrap.wrap("- " + fact, WIDTH, subsequent_indent="  ")]
    return "\n".join(lines).rstrip() + "\n"


def create(name: str, title: str, remedies: t.Sequence[str]) -> None:
    """Writes everything. The contents are all known before the first file is touched."""
    created, changed = new_files(name, title), changed_files(name, title, remedies)
    for path, content in {**created, **changed}.items():
        (REPOSITORY / path).write_text(content, encoding="utf-8")
    scripts = [str(path) for path in {**created, **changed} if path.suffix == ".py"]
    for words in (
        ["-m", "ruff", "format", "--quiet", *scripts],
        ["-m", "ruff", "check", "--quiet", "--fix", "--select", "I", *scripts],
        ["-m", "tests.new_check", "--page"],
    ):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
        subprocess.run([sys.executable, *words], cwd=REPOSITORY, env=environment, check=True)
    for path in created:
        print(f"created  {path}")
    for path in [*changed, PAGE]:
        print(f"changed  {path}")
    paths = {"check": LIBRARY / f"checks/{name}.py", "test": f"tests/unit/checks/test_{name}.py"}
    paths["runbook"] = f"docs/runbooks/{name}.md"
    print(NEXT.format(**paths, page=PAGE, registry=REGISTRY), end="")


def main(words: t.Optional[t.Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.new_check", description="Create a check and register it.")
    parser.add_argument("name", nargs="?", default="", help="what it measures, such as certificate")
    parser.add_argument("--title", default="", help="in the report; by default the name")
    parser.add_argument("--remedies", default="", help="modules that it may name, separated by commas or spaces")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE} from the registry")
    options = parser.parse_args(words)
    if options.page:
        (REPOSITORY / PAGE).write_text(page(), encoding="utf-8")
        return 0
    title = options.title or options.name.replace("_", " ").capitalize()
    remedies = options.remedies.replace(",", " ").split()
    try:
        require_name(options.name)
        require_title(title)
        require_remedies(remedies)
    except Refused as reason:
        print(f"Nothing was written. {reason}", file=sys.stderr)
        return 2
    create(options.name, title, remedies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
