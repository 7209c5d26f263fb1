# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes what was found on a host as files of an inventory, beside what a person keeps there.

Two files are ours: ``HOST.yml`` with the address, where no other file has the host, and
``host_vars/HOST/00-discovered.yml``. Both have the checksum of their content in them: one that somebody edited is never
replaced. A variable that a person sets anywhere in the inventory is left out of ours, as variables of a host would win
over those of a group.
"""

from __future__ import annotations

import hashlib
import os
import re
import textwrap
import typing as t
from pathlib import Path

from ..core.options import absolute_path, matching
from ..core.results import OpsError, Result
from ..host.files import make_directories, write_atomically

GROUP = "backend"
NAME = "00-discovered.yml"
_MARK = re.compile(r"^# Checksum of what follows: ([0-9a-f]{16})\n", re.MULTILINE)
#: What Ansible reads from an inventory directory; other endings are no files of variables.
_ENDINGS = ("", ".yml", ".yaml", ".json")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


def write(
    directory: str,
    host: str,
    *,
    connection: t.Mapping[str, t.Any],
    variables: t.Sequence[t.Mapping[str, t.Any]],
    missing: t.Sequence[t.Mapping[str, str]] = (),
    notes: t.Sequence[str] = (),
    groups: t.Sequence[str] = (GROUP,),
    complete: bool = True,
    check_mode: bool = False,
    want_diff: bool = False,
) -> Result:
    """``variables``, ``missing`` and ``notes`` as the module ``backend_info`` gives them. ``groups``: those of the host.
    ``complete``: everything ran; otherwise what an earlier run had found stays.

    Raises ``OpsError``, and has changed nothing, where a person edited our file or one cannot be read.
    """
    absolute_path("directory", directory)
    matching("host", host, _HOST, "letters, digits and _ . : - (not first)")
    place = Path(directory)
    ours = {place / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}.yml", place / "host_vars" / host / NAME}
    address, facts = sorted(ours, key=lambda path: path.name == NAME)
    theirs = names_set_by_others(place, host, groups, facts)
    before = _read(facts)
    former = _body(before, facts) if before else {}
    absent = {each["variable"] for each in missing}
    rows = [dict(row) for row in variables if row["name"] not in theirs]
    names = {row["name"] for row in rows}
    rows += [
        {"name": name, "value": value, "evidence": "an earlier run; not found this time"}
        for name, value in former.items()
        if name not in names and name not in theirs and (name in absent or not complete)
    ]
    lacking = [each for each in missing if each["variable"] not in theirs and each["variable"] not in former]
    contents: t.Dict[Path, str] = {facts: _sealed(_variables(rows, lacking, notes))}
    if not _names_host(place, host, ours):
        contents[address] = _sealed(_host_file(host, connection))
    changes = {path: text for path, text in contents.items() if _read(path) != text}
    for path in sorted(changes):
        _require_unedited(path)
    former_texts = {path: _read(path) for path in sorted(changes)}
    if not check_mode:
        for path, text in changes.items():
            make_directories(path.parent)
            write_atomically(path, text.encode("utf-8"), mode=0o644)
    word = "would be" if check_mode else "were"
    return Result(
        changed=bool(changes),
        msg=f"{', '.join(map(str, sorted(changes)))} {word} written." if changes else f"{facts} is up to date.",
        actions=[
            {"action": "replace" if former_text else "create", "target": str(path), "changed": True}
            for path, former_text in former_texts.items()
        ],
        diff=[
            {"before_header": str(path), "after_header": str(path), "before": text, "after": changes[path]}
            for path, text in former_texts.items()
            if want_diff
        ],
        extra={
            "directory": directory,
            "files": [str(path) for path in sorted(contents)],
            "kept": [
                f"{name} is set in {os.path.relpath(path, directory)}, which stays in force."
                for name, path in sorted(theirs.items())
                if name in {row["name"] for row in variables}
            ],
            "missing": [f"Not found: {each['what']}. {each['advice']}" for each in lacking],
        },
    )


# What a person keeps in the inventory


def names_set_by_others(place: Path, host: str, groups: t.Collection[str], ours: Path) -> t.Dict[str, Path]:
    """The variables that any other file of the inventory sets for a host, each with the last file that does so."""
    names: t.Dict[str, Path] = {}
    for path in _inventory_files(place):
        for each in _vars_of_inventory(_read(path), path, host):
            names[each] = path
    for folder, entities in (("group_vars", ["all", *groups]), ("host_vars", [host])):
        for entity in entities:
            for path in _files_of(place / folder, entity):
                if path != ours:
                    names.update(dict.fromkeys(_keys(_read(path), path), path))
    return names


def _inventory_files(place: Path) -> t.List[Path]:
    if not place.is_dir():
        return []
    skipped = (".orig", ".ini~", ".cfg", ".retry", ".pyc", ".md", ".txt", "~")
    files = (path for path in sorted(place.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if not path.name.endswith(skipped) and not os.access(path, os.X_OK)]


def _files_of(folder: Path, entity: str) -> t.List[Path]:
    found: t.List[Path] = []
    for ending in _ENDINGS:
        path = folder / f"{entity}{ending}"
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            found += [each for each in sorted(path.rglob("*")) if each.is_file() and each.suffix in _ENDINGS]
    return found


def _load(text: str, path: Path) -> t.Any:
    """What a file says, without what is encrypted in it. Raises ``OpsError`` where it is no YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads tags such as ``!vault`` as nothing."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    if text.startswith("$ANSIBLE_VAULT"):
        return None
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise OpsError(
            f"{path} is no YAML{where}.", hint="Correct it first; it may set variables that must not be replaced."
        ) from None


def _keys(text: str, path: Path) -> t.List[str]:
    content = _load(text, path)
    return [str(key) for key in content] if isinstance(content, dict) else []


def _vars_of_inventory(text: str, path: Path, host: str) -> t.Set[str]:
    """The names in every ``vars`` of a YAML inventory and those of the host in it; of an INI file the words before
    ``=``.
    """
    if path.suffix not in (".yml", ".yaml", ".json"):
        return set(re.findall(r"(\w+)\s*=", re.sub(r"^\s*[#;].*$", "", text, flags=re.MULTILINE)))
    names: t.Set[str] = set()

    def visit(groups: t.Any) -> None:
        for group in groups.values() if isinstance(groups, dict) else ():
            if isinstance(group, dict):
                names.update(map(str, group.get("vars") or {}))
                hosts = group.get("hosts")
                variables = hosts.get(host) if isinstance(hosts, dict) else None
                names.update(map(str, variables if isinstance(variables, dict) else {}))
                visit(group.get("children"))

    visit(_load(text, path))
    return names


def _names_host(place: Path, host: str, ours: t.Collection[Path]) -> bool:
    """Whether another file of the inventory has the host, or ours was edited by a person and has it."""
    for path in _inventory_files(place):
        text = _read(path)
        if path in ours and _is_sealed(text):
            continue
        if re.search(rf"^\s*[\"']?{re.escape(host)}[\"']?\s*(:|\s|$)", text, re.MULTILINE):
            return True
    return False


# Our own files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise OpsError(f"{path} cannot be read: {reason}.", hint="Nothing was written.") from None


def _sealed(body: str) -> str:
    return (
        "---\n# Written by wheels.ops (make inventory), which replaces it. Put your own values into main.yml beside this"
        " file,\n# which wins, or anywhere in the inventory: the next run leaves out here what is set elsewhere.\n"
        f"# Checksum of what follows: {hashlib.sha256(body.encode('utf-8')).hexdigest()[:16]}\n{body}"
    )


def _is_sealed(text: str) -> bool:
    match = _MARK.search(text)
    return bool(match) and text == _sealed(text[match.end() :] if match else "")


def _body(text: str, path: Path) -> t.Dict[str, t.Any]:
    content = _load(text, path)
    return content if isinstance(content, dict) else {}


def _require_unedited(path: Path) -> None:
    text = _read(path)
    if text and not _is_sealed(text):
        raise OpsError(
            f"{path} was edited by hand, and this run would replace it. Nothing was written.",
            hint=f"Move your lines to {path.parent / 'main.yml'}, which wins, delete {path.name}, and run it again.",
        )


def _host_file(host: str, connection: t.Mapping[str, t.Any]) -> str:
    return _yaml({GROUP: {"hosts": {host: dict(connection)}}})


def _variables(
    rows: t.Sequence[t.Mapping[str, t.Any]], missing: t.Sequence[t.Mapping[str, str]], notes: t.Sequence[str]
) -> str:
    lines = [f"# {line}\n" for note in notes for line in _wrapped(note)]
    for row in rows:
        lines.append(f"\n# {_one_line(row['evidence'])}\n{_yaml({row['name']: row['value']})}")
    if missing:
        lines.append("\n# Not found:\n")
    for each in missing:
        text = f"{each['variable']}: {each['what']}. {each['advice']}"
        lines += [f"#   {line}\n" for line in _wrapped(text)]
    return "".join(lines)


def _wrapped(text: str) -> t.List[str]:
    return textwrap.wrap(_one_line(text), 112, break_long_words=False, break_on_hyphens=False)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _yaml(content: t.Mapping[str, t.Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(content), sort_keys=False, width=120, allow_unicode=True))
