# SPDX-License-Identifier: GPL-3.0-or-later
"""``make site``: the documentation as a site in build/site/html, from the pages in docs/ and from what the modules,
roles and the change log say of themselves.

Sphinx builds it, strictly: a broken link or anchor fails the build. It needs no network and asks for nothing from
elsewhere, so the directory can be opened from a disk, put on any web server, or sent to a host.

WHEELS_OPS_REPOSITORY_URL, where it is set, is where files of the repository that are no pages are linked to.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml
from antsibull_docs_parser.md import to_md
from antsibull_docs_parser.parser import Context, parse

REPOSITORY = Path(__file__).resolve().parents[1]
COLLECTION = REPOSITORY / "collections/wheels/ops"
DOCS = REPOSITORY / "docs"
SITE = REPOSITORY / "build/site"
#: Heading of the menu -> pages, in reading order. A page of docs/ that is not named goes below "Further pages".
MENU: t.Mapping[str, t.Tuple[str, ...]] = {
    "Start": ("start", "your-own-hosts", "where-it-runs", "on-call", "faq"),
    "Operate": (
        "runbooks/index",
        "recovery",
        "upgrade",
        "fleet",
        "procedures",
        "event-driven",
        "awx",
        "standalone",
        "health-api",
    ),
    "Use a part": ("rls", "use-modules-alone"),
    "Reference": (
        "variables",
        "checks",
        "scores",
        "tags",
        "schemas/index",
        "modules/index",
        "roles/index",
        "changelog",
    ),
    "How it works": ("architecture", "guarantees", "faults", "benchmarks", "comparison", "decisions/index"),
    "Change it": ("contributing", "adding-a-check"),
}
#: Pages whose source is outside of docs/.
ELSEWHERE: t.Mapping[str, Path] = {
    "contributing": REPOSITORY / "CONTRIBUTING.md",
    "changelog": REPOSITORY / "CHANGELOG.md",
}
#: A link or picture of Markdown: its text in brackets, and its target without blanks.
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\(([^()\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)


def pages() -> t.Dict[str, str]:
    """Every page of the site, its text by its name without suffix."""
    sources = {_name_of(path): path for path in [*sorted(DOCS.rglob("*.md")), *ELSEWHERE.values()]}
    written = {name: _with_links(path.read_text(encoding="utf-8"), path) for name, path in sources.items()}
    written.update(_module_pages())
    written.update(_role_pages())
    for index in ("decisions/index", "runbooks/index"):
        if index in written:
            root = index[: -len("index")]
            names = [name for name in written if name.startswith(root) and name != index]
            written[index] += "\n" + _toctree(names, root=root, hidden=True)
    placed = {name for names in MENU.values() for name in names} | {"index"}
    below = tuple(f"{name.split('/')[0]}/" for name in placed if name.endswith("/index"))
    further = [name for name in written if name not in placed and not name.startswith(below)]
    menu = [_toctree([name for name in names if name in written], heading=heading) for heading, names in MENU.items()]
    if further:
        menu.append(_toctree(further, heading="Further pages"))
    written["index"] += "\n" + "\n".join(menu)
    return written


def _toctree(names: t.Sequence[str], *, heading: str = "", root: str = "", hidden: bool = False) -> str:
    options = [f":caption: {heading}"] if heading else []
    options += [":hidden:"] if heading or hidden else []
    entries = [name[len(root) :] for name in names]
    return "\n".join(["```{toctree}", ":maxdepth: 1", *options, "", *entries, "```", ""])


def _with_links(text: str, source: Path) -> str:
    """The text of a page of the repository, its links to files of the repository as links of the site."""

    def replace(match: t.Match[str]) -> str:
        return _site_link(match[1], match[2], source)

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


def _site_link(words: str, target: str, source: Path) -> str:
    path_text, _hash, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not path_text:
        return f"{words}({target})"
    path = (source.parent / path_text).resolve()
    if not path.exists():
        raise SystemExit(f"{source.relative_to(REPOSITORY)}: there is no {target}.")
    name = page_of(path)
    if name is None and DOCS in path.parents:
        name = str(path.relative_to(DOCS))
    elif name is not None:
        name += ".md"
    if name is not None:
        here = _name_of(source)
        relative = os.path.relpath(name, Path(here).parent)
        return f"{words}({relative}{'#' + anchor if anchor else ''})"
    url = os.environ.get("WHEELS_OPS_REPOSITORY_URL", "").rstrip("/")
    return f"{words}({url}/{path.relative_to(REPOSITORY)})" if url else words[1:-1]


def _name_of(source: Path) -> str:
    """The page that a file becomes, or becomes a part of."""
    name = page_of(source)
    if name is None:
        raise SystemExit(f"{source.relative_to(REPOSITORY)} becomes no page of the site.")
    return name


def page_of(path: Path) -> t.Optional[str]:
    """The page of the site that says what a file or directory of the repository says, if there is one."""
    for name, elsewhere in ELSEWHERE.items():
        if path == elsewhere:
            return name
    if DOCS in path.parents and path.suffix == ".md":
        name = str(path.relative_to(DOCS).with_suffix(""))
        return f"{name[: -len('README')]}index" if path.name == "README.md" else name
    if path.is_dir() and DOCS in path.parents:
        return f"{path.relative_to(DOCS)}/index"
    if path == REPOSITORY / "README.md":
        return "index"
    if path.parent == COLLECTION / "plugins/modules":
        return f"modules/{path.stem}"
    if path.name == "README.md" and path.parent.parent == COLLECTION / "roles":
        return f"roles/{path.parent.name}"
    return None


# -- modules -----------------------------------------------------------------------------------------------------------


def module_documents(path: Path) -> t.Dict[str, t.Any]:
    """``DOCUMENTATION`` with its fragments, ``EXAMPLES`` as text, and ``RETURN`` of a module."""
    texts = _constants(path)
    document = yaml.safe_load(texts["DOCUMENTATION"])
    for fragment in _words(document.get("extends_documentation_fragment")):
        name, _dot, part = fragment.removeprefix("wheels.ops.").partition(".")
        # A fragment may derive one text from another, so its file is run; it imports nothing.
        fragments = runpy.run_path(str(COLLECTION / f"plugins/doc_fragments/{name}.py"))["ModuleDocFragment"]
        shared = yaml.safe_load(getattr(fragments, part.upper() or "DOCUMENTATION"))
        for key in ("options", "attributes"):
            document[key] = _merged(shared.get(key) or {}, document.get(key) or {})
        for key in ("notes", "requirements"):
            document[key] = [*(document.get(key) or []), *(shared.get(key) or [])]
    return {
        "document": document,
        "examples": texts.get("EXAMPLES", "").strip(),
        "return": yaml.safe_load(texts.get("RETURN", "")) or {},
    }


def _merged(shared: t.Mapping[str, t.Any], own: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    """Entries of a fragment below those of the module itself, key by key."""
    return {name: {**shared.get(name, {}), **own.get(name, {})} for name in [*own, *shared]}


def _constants(path: Path) -> t.Dict[str, str]:
    """The texts that a file assigns to names."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def _words(value: t.Any) -> t.List[str]:
    return [value] if isinstance(value, str) else list(value or [])


def markdown(text: t.Any) -> str:
    """Ansible's markup as Markdown, paragraphs apart."""
    return "\n\n".join(_markup(paragraph) for paragraph in _words(text))


def _markup(text: str) -> str:
    written = to_md(parse(text, Context(current_plugin=None), errors="message")) if text else ""
    return re.sub(r"\[wheels\\?\.ops\\?\.(\w+)\]\([^)]*\)", r"`\1`", written.strip())


def _cell(text: t.Any) -> str:
    return markdown(text).replace("|", "\\|").replace("\n\n", "<br>").replace("\n", " ")


def _module_pages() -> t.Dict[str, str]:
    written, rows = {}, []
    for path in sorted((COLLECTION / "plugins/modules").glob("*.py")):
        if path.is_symlink() or path.stem.startswith("_"):
            continue
        documents = module_documents(path)
        written[f"modules/{path.stem}"] = _module_page(path.stem, **documents)
        rows.append(f"| [`{path.stem}`]({path.stem}.md) | {_cell(documents['document']['short_description'])} |")
    written["modules/index"] = "\n".join(
        [
            "# Modules",
            "",
            "Each page is made from what `ansible-doc wheels.ops.NAME` shows. Six of them work on any host, for any"
            " service: [use these modules alone](../use-modules-alone.md).",
            "",
            "| Module | |",
            "| --- | --- |",
            *rows,
            "",
            _toctree([name for name in written if name != "modules/index"], root="modules/", hidden=True),
        ]
    )
    return written


def _module_page(name: str, **documents: t.Any) -> str:
    document = documents["document"]
    lines = [f"# {name}", "", f"{_markup(document['short_description'])}.", ""]
    lines += [f"- {_markup(paragraph)}" for paragraph in _words(document.get("description"))]
    for heading, key in (("Needs on the host", "requirements"), ("Notes", "notes")):
        if document.get(key):
            lines += ["", f"## {heading}", "", *(f"- {_markup(entry)}" for entry in document[key])]
    if document.get("attributes"):
        lines += ["", "## Attributes", "", "| Attribute | Support | |", "| --- | --- | --- |"]
        for attribute, entry in sorted(document["attributes"].items()):
            text = [*_words(entry.get("description")), *_words(entry.get("details"))]
            lines.append(f"| `{attribute}` | {entry.get('support', '')} | {_cell(text)} |")
    if document.get("options"):
        lines += ["", "## Options", "", "| Option | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
        lines += _option_rows(document["options"])
    if documents["examples"]:
        lines += ["", "## Examples", "", "```yaml", documents["examples"], "```"]
    if documents["return"]:
        lines += ["", "## Return values", "", "| Value | Type | Returned | Meaning |", "| --- | --- | --- | --- |"]
        lines += _return_rows(documents["return"])
    return "\n".join(lines) + "\n"


def _option_rows(options: t.Mapping[str, t.Any], parent: str = "") -> t.Iterator[str]:
    for name, option in options.items():
        kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
        default = "required" if option.get("required") else _value(option.get("default"))
        text = _words(option.get("description"))
        if option.get("choices"):
            text = [*text, "One of " + ", ".join(f"V({choice})" for choice in option["choices"]) + "."]
        yield f"| `{parent}{name}` | {kind} | {default} | {_cell(text)} |"
        yield from _option_rows(option.get("suboptions") or {}, f"{parent}{name}.")


def _return_rows(values: t.Mapping[str, t.Any], parent: str = "") -> t.Iterator[str]:
    for name, value in values.items():
        kind = value.get("type", "") + (f" of {value['elements']}" if value.get("elements") else "")
        yield f"| `{parent}{name}` | {kind} | {_cell(value.get('returned', ''))} | {_cell(value.get('description'))} |"
        yield from _return_rows(value.get("contains") or {}, f"{parent}{name}.")


def _value(default: t.Any) -> str:
    if default is None:
        return ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"`{text}`".replace("|", "\\|") if text else "empty"


# -- roles -------------------------------------------------------------------------------------------------------------


def role_variables(role: str) -> str:
    """The table of a role in docs/variables.md, which is made from its argument specification."""
    section = re.search(
        rf"^### {re.escape(role)}\n(.*?)(?=^###? |\Z)",
        (DOCS / "variables.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return section[1].strip() if section else ""


def _role_pages() -> t.Dict[str, str]:
    written, rows = {}, []
    for path in sorted((COLLECTION / "roles").glob("*/README.md")):
        role = path.parent.name
        specs = yaml.safe_load((path.parent / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
        text = _with_links(path.read_text(encoding="utf-8"), path).rstrip()
        parts = [text, "", "## Entry points", "", "| `tasks_from` | |", "| --- | --- |"]
        parts += [f"| `{name}` | {_cell(entry['short_description'])} |" for name, entry in specs.items()]
        if role_variables(role):
            parts += ["", "## Variables", "", role_variables(role)]
        written[f"roles/{role}"] = "\n".join(parts) + "\n"
        summary = next(iter(specs.values()))["short_description"]
        rows.append(f"| [`{role}`]({role}.md) | {_cell(summary)} |")
    written["roles/index"] = "\n".join(
        [
            "# Roles",
            "",
            "The playbooks use these; `ansible-doc -t role wheels.ops.NAME` shows the same on a terminal."
            " What they share is set by [shared variables](../variables.md).",
            "",
            "| Role | |",
            "| --- | --- |",
            *rows,
            "",
            _toctree([name for name in written if name != "roles/index"], root="roles/", hidden=True),
        ]
    )
    return written


# -- build -------------------------------------------------------------------------------------------------------------


def build(site: Path = SITE) -> int:
    """Writes the source below ``site``/source and the pages below ``site``/html. Gives Sphinx's exit status."""
    source, pages_directory = site / "source", site / "html"
    for directory in (source, pages_directory):
        shutil.rmtree(directory, ignore_errors=True)
    for name, text in pages().items():
        path = source / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in sorted(DOCS.rglob("*")):
        if path.is_file() and path.suffix != ".md" and path.name != "conf.py":
            (source / path.relative_to(DOCS)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, source / path.relative_to(DOCS))
    words = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", str(DOCS), "-d", str(site / "doctrees")]
    done = subprocess.run(
        [sys.executable, *words, "-E", str(source), str(pages_directory)], cwd=REPOSITORY, check=False
    )
    return done.returncode


def main() -> int:
    status = build()
    if not status:
        print(f"The site is in {(SITE / 'html').relative_to(REPOSITORY)}; open index.html.")
    return status


if __name__ == "__main__":
    sys.exit(main())
