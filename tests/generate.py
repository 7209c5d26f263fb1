# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what is generated: the defaults in the roles' ``argument_specs.yml``, ``docs/variables.md``, the drawing of
``docs/architecture.md``, the facts of the runbooks, and the JSON schemas of ``docs/schemas/``.

``make docs`` runs it; ``python -m tests.generate --check`` only names what is stale.

Of a specification, a person writes the description, type and choices of each option, once, in any entry point. Which
entry point reads it and what its default is are taken from the role's tasks and defaults.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import yaml

from tests import drawing, runbooks, schemas

REPOSITORY = Path(__file__).resolve().parents[1]
COLLECTION = REPOSITORY / "collections/wheels/ops"
ROLES = COLLECTION / "roles"
PLAYBOOKS = COLLECTION / "playbooks"
PAGE = REPOSITORY / "docs/variables.md"
DRAWING = REPOSITORY / "docs/pictures/architecture.svg"
HEADER = (
    "---\n# SPDX-License-Identifier: GPL-3.0-or-later\n# Defaults and the options of each entry point: make docs.\n"
)
#: Options whose default is a file of the role.
FILES = frozenset({"database_scripts"})
#: Plain Ansible resolves a name that is no template.
_HOST = "INVENTORY_HOSTNAME"
#: Variables of a role that replace a shared one for that role alone: docs/variables.md says so once.
_PYTHON = "_python"
_INCLUDES = ("include_tasks", "import_tasks", "include_role", "import_role", "import_playbook")


class Specs(yaml.SafeDumper):
    """Names an anchor after the option that it holds, and indents lists as yamllint wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: t.Any) -> bool:
        return not isinstance(data, (dict, list)) or not data

    def serialize(self, node: yaml.Node) -> None:
        self.names: t.Dict[int, str] = {}
        stack = [node]
        while stack:
            each = stack.pop()
            if isinstance(each, yaml.MappingNode):
                for key, value in each.value:
                    self.names.setdefault(id(value), str(key.value))
                    stack.append(value)
            elif isinstance(each, yaml.SequenceNode):
                stack.extend(each.value)
        super().serialize(node)

    def generate_anchor(self, node: yaml.Node) -> str:
        return self.names[id(node)]


@functools.cache
def _yaml(path: Path) -> t.Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


@functools.cache
def role_names() -> t.Tuple[str, ...]:
    return tuple(sorted(path.name for path in ROLES.iterdir() if path.is_dir()))


@functools.cache
def specs(role: str) -> t.Dict[str, t.Any]:
    return t.cast("t.Dict[str, t.Any]", _yaml(ROLES / role / "meta/argument_specs.yml")["argument_specs"])


@functools.cache
def options(role: str) -> t.Dict[str, t.Dict[str, t.Any]]:
    """Every option of a role, as its first entry point describes it."""
    every: t.Dict[str, t.Dict[str, t.Any]] = {}
    for entry in specs(role).values():
        for name, option in (entry.get("options") or {}).items():
            every.setdefault(name, option)
    return every


@functools.cache
def definitions(role: str) -> t.Dict[str, str]:
    """The text of every default and variable of a role, by name."""
    texts = {}
    for directory in ("defaults", "vars"):
        for name, value in (_yaml(ROLES / role / directory / "main.yml") or {}).items():
            texts[name] = json.dumps(value)
    return texts


def _tasks(value: t.Any) -> t.Iterator[t.Dict[str, t.Any]]:
    """Every task and play in the content of a file, those in blocks as well."""
    if isinstance(value, list):
        for entry in value:
            yield from _tasks(entry)
    elif isinstance(value, dict):
        yield value
        for key in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks"):
            yield from _tasks(value.get(key))


def files_of(path: Path, role: str = "") -> t.Set[t.Tuple[Path, str]]:
    """A file of tasks and all that it includes, each with the role that it belongs to."""
    reached: t.Set[t.Tuple[Path, str]] = set()
    waiting = [(path, role)]
    while waiting:
        file, owner = waiting.pop()
        if (file, owner) in reached or not file.exists():
            continue
        reached.add((file, owner))
        for task in _tasks(_yaml(file)):
            for word in _INCLUDES:
                waiting.extend(_included(word, task.get(f"ansible.builtin.{word}"), file, owner))
            template = task.get("ansible.builtin.template")
            if owner and template:
                # Where its name is a template itself, any of the role's.
                name = template["src"] if "{" not in template["src"] else "*.j2"
                reached.update((each, owner) for each in sorted((ROLES / owner / "templates").glob(name)))
    return reached


def _included(word: str, target: t.Any, file: Path, owner: str) -> t.Iterator[t.Tuple[Path, str]]:
    if target is None:
        return
    if word == "import_playbook":
        yield PLAYBOOKS / f"{target.rpartition('.')[2]}.yml", ""
    elif word.endswith("_tasks"):
        name = target["file"] if isinstance(target, dict) else target
        yield file.parent / name, owner
    elif "{" in target["name"]:
        # The remedies of the playbook recover: each is one of these.
        for role in ("database", "host_cleanup", "services"):
            for tasks in sorted((ROLES / role / "tasks").glob("*.yml")):
                if not tasks.stem.startswith(("preflight", "program", "idle")):
                    yield tasks, role
    else:
        role = target["name"].rpartition(".")[2]
        yield ROLES / role / "tasks" / target.get("tasks_from", "main.yml"), role


def names_in(files: t.Iterable[t.Tuple[Path, str]]) -> t.Set[str]:
    """Every variable that files name, and that the definitions of those, in the same role, name."""
    read: t.Set[t.Tuple[str, str]] = set()
    waiting = [(role, name) for path, role in files for name in _words(_without_comments(path))]
    while waiting:
        role, name = waiting.pop()
        if (role, name) not in read:
            read.add((role, name))
            definition = definitions(role).get(name, "") if role else ""
            named = _words(definition) | (_named_by_default(name) if name in _shared() else set())
            waiting.extend((role, each) for each in named)
    return {name for _role, name in read}


def _words(text: str) -> t.Set[str]:
    """Every name in a text; a shared variable is read only by a lookup, which has it in quotes, and messages name it
    too.
    """
    return {name for name in re.findall(r"[a-z_][a-z0-9_]+", text) if not name.startswith("wheels_ops_")} | set(
        re.findall(r"'(wheels_ops_\w+)'", text)
    )


def _named_by_default(name: str) -> t.Set[str]:
    """The variables that the default of a shared variable names; one of a role with the shared one of its name."""
    named = set(re.findall(r"\{(\w+)\}", json.dumps(_shared()[name].default)))
    return named | ({"wheels_ops_" + each.partition("_")[2] for each in named} & set(_shared()))


@functools.cache
def _without_comments(path: Path) -> str:
    if path.suffix != ".yml":
        return path.read_text(encoding="utf-8")
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in path.read_text(encoding="utf-8").splitlines())


@functools.cache
def _shared() -> t.Dict[str, t.Any]:
    """The table of shared variables, loaded by its path: its package is Ansible's."""
    namespace: t.Dict[str, t.Any] = {"__name__": "shared_variables"}
    source = (COLLECTION / "plugins/plugin_utils/shared_variables.py").read_text(encoding="utf-8")
    module = type(sys)("shared_variables")
    sys.modules["shared_variables"] = module
    namespace = vars(module)
    exec(compile(source, "shared_variables.py", "exec"), namespace)
    return t.cast("t.Dict[str, t.Any]", namespace["SHARED"])


def table() -> t.Set[str]:
    return set(_shared())


@functools.cache
def defaults() -> t.Dict[str, t.Any]:
    """What every default of every role is where nobody has set anything, as Ansible evaluates it."""
    plays = []
    with tempfile.TemporaryDirectory() as place:
        for role in role_names():
            own = [name for name in _yaml(ROLES / role / "defaults/main.yml") or {} if name not in FILES]
            files = [str(ROLES / role / part / "main.yml") for part in ("vars", "defaults")]
            # As an argument of a task, what is omitted by default is left out.
            values = {name: f"{{{{ {name} }}}}" for name in own}
            plays.append(
                {
                    "hosts": "all",
                    "gather_facts": False,
                    "vars_files": [file for file in files if Path(file).exists()],
                    "tasks": [
                        {"ansible.builtin.set_fact": {"generate": values}},
                        {
                            "ansible.builtin.copy": {
                                "content": "{{ generate | to_json }}",
                                "dest": f"{place}/{role}.json",
                                "mode": "0600",
                            }
                        },
                    ],
                }
            )
        Path(place, "play.yml").write_text(json.dumps(plays))
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                "-i",
                f"{_HOST},",
                "-c",
                "local",
                f"{place}/play.yml",
                "-e",
                f"ansible_python_interpreter={sys.executable}",
            ],
            cwd=place,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": place,
                "ANSIBLE_HOME": f"{place}/home",
                "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
                "ANSIBLE_LOCALHOST_WARNING": "false",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        evaluated: t.Dict[str, t.Any] = {}
        for role in role_names():
            text = Path(place, f"{role}.json").read_text(encoding="utf-8")
            # A path on the controller is below the directory in which Ansible was started.
            text = text.replace(f"{Path(place).resolve()}/", "").replace(_HOST, "{{ inventory_hostname }}")
            evaluated.update(json.loads(text))
    return evaluated


@functools.cache
def spec_text(role: str) -> str:
    """``argument_specs.yml`` of a role as it must be."""
    described = options(role)
    entries = {}
    for option in described.values():
        option.pop("default", None)
    for name, option in described.items():
        if name in defaults():
            option["default"] = defaults()[name]
            if option["type"] in ("int", "float") and isinstance(option["default"], str):
                option["default"] = float(option["default"]) if option["type"] == "float" else int(option["default"])
    # What only a playbook reads belongs to the role as a whole.
    by_playbooks = set(described) & {name for name, files in readers().items() if files}
    read_by = {entry: names_in(files_of(ROLES / role / f"tasks/{entry}.yml", role)) for entry in specs(role)}
    read_by["main"] |= by_playbooks - set().union(*read_by.values())
    unread = set(described)
    for entry, content in specs(role).items():
        chosen = {name: option for name, option in described.items() if name in read_by[entry]}
        unread -= set(chosen)
        entries[entry] = {**{key: value for key, value in content.items() if key != "options"}}
        if described:
            entries[entry]["options"] = chosen
    if unread:
        raise SystemExit(f"{role}: no entry point reads {', '.join(sorted(unread))}")
    return HEADER + yaml.dump({"argument_specs": entries}, Dumper=Specs, sort_keys=False, width=118, allow_unicode=True)


@functools.cache
def readers() -> t.Dict[str, t.List[str]]:
    """The playbooks that read a variable, by its name."""
    by_name: t.Dict[str, t.List[str]] = {}
    for playbook in sorted(PLAYBOOKS.glob("*.yml")):
        if playbook.stem == "require_hosts":
            continue
        for name in names_in(files_of(playbook)):
            by_name.setdefault(name, []).append(playbook.stem)
    return by_name


def _cell(value: t.Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _default(value: t.Any) -> str:
    if value is None or value in ("", [], {}):
        return {"": "empty", "[]": "`[]`", "{}": "`{}`", "None": "none"}[str(value)]
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if len(text) <= 100 else "see below"


def _plain(text: str) -> str:
    """Ansible's markup as Markdown."""
    text = re.sub(r"\b[CVE]\(((?:[^()\\]|\\.)*)\)", r"`\1`", text)
    text = re.sub(r"\b[MP]\(([\w.]+)(?:#\w+)?\)", r"`\1`", text)
    return re.sub(r"\bO\((?:[\w.]+#\w+:)?(?:\w+:)?([^()]*)\)", r"`\1`", text)


def page_text() -> str:
    """``docs/variables.md`` as it must be."""
    read = readers()
    every = [path.stem for path in sorted(PLAYBOOKS.glob("*.yml")) if path.stem != "require_hosts"]

    def playbooks(name: str) -> str:
        names = read.get(name, [])
        return "all" if names == every else ", ".join(names) or "none"

    lines = [
        INTRODUCTION.rstrip(),
        "",
        "| Variable | Type | Default | Meaning | Playbooks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, variable in sorted(_shared().items()):
        default = "required" if variable.required else _default(_named(variable.default))
        users = "rulebook recover" if name.startswith("wheels_ops_eda_") else playbooks(name)
        lines.append(f"| `{name}` | {variable.kind} | {default} | {_cell(variable.description)} | {users} |")
    services = {"wheels_ops_services": _named(_shared()["wheels_ops_services"].default)}
    text = yaml.dump(services, Dumper=Specs, sort_keys=False)
    # Templates in double quotes, as the inventories have them.
    text = re.sub(r"'({{[^']*)'", r'"\1"', text)
    lines += ["", SERVICES.replace("DEFAULT", text.rstrip()).rstrip(), ""]
    lines += [ROLES_INTRODUCTION.rstrip(), ""]
    for role in role_names():
        if not options(role):
            continue
        # As they stand in the specification that is written now: a page is not one run behind.
        written = yaml.safe_load(spec_text(role))["argument_specs"]
        described = {name: option for entry in written.values() for name, option in entry["options"].items()}
        lines += [f"### {role}", "", written["main"]["short_description"] + ".", ""]
        lines += ["| Variable | Type | Default | Meaning | Playbooks |", "| --- | --- | --- | --- | --- |"]
        for name, option in described.items():
            kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
            default = "a file of the role" if name in FILES else _default(defaults().get(name))
            meaning = (
                option["description"] if isinstance(option["description"], str) else " ".join(option["description"])
            )
            lines.append(f"| `{name}` | {kind} | {default} | {_cell(_plain(meaning))} | {playbooks(name)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _named(value: t.Any) -> t.Any:
    """A default of the table with the variables that it names as a person would write them."""
    if isinstance(value, str):
        return re.sub(
            r"\{(\w+)\}",
            lambda name: (
                "{{ "
                + (
                    name[1]
                    if name[1] in table() | {"inventory_hostname"}
                    else "wheels_ops_" + name[1].partition("_")[2]
                )
                + " }}"
            ),
            value,
        )
    if isinstance(value, dict):
        return {key: _named(entry) for key, entry in value.items()}
    return [_named(entry) for entry in value] if isinstance(value, list) else value


INTRODUCTION = """\
# Variables

<!-- Generated by `make docs` from plugins/plugin_utils/shared_variables.py and roles/*/meta/argument_specs.yml. Do not edit. -->

Set the variables that begin with `wheels_ops_` in the inventory: roles and playbooks share them. The variables of a single role,
further below, are for what differs in that role only. `inventories/production.example` is an inventory to start from.

Every playbook checks the variables before it changes anything:

- A variable that cannot be evaluated, or has another type, stops the run. The message names the variable and never its value.
- An unknown `wheels_ops_*` variable is a warning that names the likely variable, for example
  `Unknown variable wheels_ops_servcies: did you mean wheels_ops_services?`. The run continues, because a site may have
  variables of its own; one that another variable uses is not reported.

## Shared variables
"""

SERVICES = """\
### wheels_ops_services

The default is the services of the incident report:

```yaml
DEFAULT
```

Where the units have other names, list them in dependency order. `unit` is the name that the service manager knows, by default `name`;
`gate` is how a service proves that it works (`ansible-doc wheels.ops.service_restart` describes every type):

```yaml
wheels_ops_services:
  - name: redis
    unit: redis-server
    gate: {type: redis, url: "{{ wheels_ops_redis_url }}"}
  - name: api
    depends_on: [redis]
    gate: {type: http, url: "{{ wheels_ops_base_url }}/health"}
  - name: api-worker
    depends_on: [redis]
    gate: {type: celery, url: "{{ wheels_ops_redis_url }}"}
# The units that get the environment variables, and those of the backend itself.
environment_units: [api, api-worker]
environment_backend_unit: api
backend_patches_service: api
services_backend_unit: api
wheels_ops_memory_limits_mb:
  api: 1024
```
"""

ROLES_INTRODUCTION = """\
## Variables of the roles

Where a default is that of a shared variable, set the shared one. To run the modules of one role with another interpreter than
`wheels_ops_python`, set `ROLE_python`, for example `database_python`. Each variable `host_cleanup_X` is also read under its
former name `recovery_X`. "none" under Playbooks: only a play that includes the role itself uses it.
"""


def outputs() -> t.Dict[Path, str]:
    texts = {ROLES / role / "meta/argument_specs.yml": spec_text(role) for role in role_names() if options(role)}
    return {**texts, PAGE: page_text(), DRAWING: drawing.svg(), **runbooks.texts(), **schemas.texts()}


def main() -> int:
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(REPOSITORY)} is stale: run make docs")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(outputs()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
