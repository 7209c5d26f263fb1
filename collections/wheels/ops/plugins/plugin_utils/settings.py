# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the variables that a site sets, so that none is silently replaced by a default.

Jinja's ``default`` cannot tell a variable that nobody set from one that an inventory names and that cannot be
evaluated, such as ``"{{ vault_dsn }}"`` without the vault. Here the first has its default, the second is an error that
names both.
"""

from __future__ import annotations

import difflib
import functools
import re
import typing as t
from pathlib import Path

import yaml
from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible_collections.wheels.ops.plugins.module_utils.core.results import OpsError
from ansible_collections.wheels.ops.plugins.module_utils.health.thresholds import parse
from ansible_collections.wheels.ops.plugins.plugin_utils.shared_variables import FORMER_PREFIXES, PREFIX, SHARED

_WORDS: t.Dict[str, str] = {
    "str": "a text",
    "path": "a text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "dict": "a dictionary",
    "list": "a list",
    "list of str": "a list of texts",
    "list of path": "a list of texts",
    "list of dict": "a list of dictionaries",
    "dict of float": "a dictionary of numbers",
    "dict of scalar": "a dictionary of texts and numbers",
    "dict of dict": "a dictionary of dictionaries",
}
_TRUTH = ("true", "false", "yes", "no", "on", "off", "1", "0")


@functools.cache
def role_options() -> t.Mapping[str, str]:
    """Every option of every role of this collection with its kind, from the argument specifications."""
    kinds: t.Dict[str, str] = {}
    for path in sorted(Path(__file__).resolve().parents[2].glob("roles/*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            for name, option in (entry.get("options") or {}).items():
                kind, elements = option.get("type", "str"), option.get("elements")
                kinds[name] = (
                    f"{kind} of {elements}" if kind == "list" and elements in ("str", "path", "dict") else kind
                )
    for former, prefix in FORMER_PREFIXES.items():
        renamed = {former + name[len(prefix) :]: kind for name, kind in kinds.items() if name.startswith(prefix)}
        kinds = {**renamed, **kinds}
    return kinds


def kind_problem(value: t.Any, kind: str) -> str:
    """What is wrong with the kind of a value, in words that do not repeat it; empty where nothing is.

    Stricter than Ansible, which makes a list of a text and then measures what nobody meant.
    """
    outer, _sign, inner = kind.partition(" of ")
    if outer in ("str", "path"):
        if isinstance(value, str):
            return "blank" if value and not value.strip() else ""
        return "" if isinstance(value, (int, float)) and not isinstance(value, bool) else _name(value)
    if outer == "bool":
        return "" if isinstance(value, (bool, int)) or str(value).strip().lower() in _TRUTH else _name(value)
    if outer in ("int", "float"):
        try:
            # A variable of a command line is always a text.
            good = (
                isinstance(value, (int, float, str))
                and not isinstance(value, bool)
                and {"int": int, "float": float}[outer](value) is not None
            )
        except ValueError:
            good = False
        return "" if good else _name(value)
    if outer == "scalar":
        return "" if isinstance(value, (str, int, float)) else _name(value)
    if outer == "dict":
        return _inside(value.values(), inner, "a dictionary") if isinstance(value, t.Mapping) else _name(value)
    if outer == "list":
        if isinstance(value, (str, t.Mapping)) or not isinstance(value, t.Sequence):
            return _name(value)
        return _inside(value, inner, "a list")
    return ""


def _inside(values: t.Iterable[t.Any], kind: str, where: str) -> str:
    return (
        next((f"{where} with {problem} in it" for value in values if (problem := kind_problem(value, kind))), "")
        if kind
        else ""
    )


def _name(value: t.Any) -> str:
    if value is None:
        return "nothing (null)"
    names = (
        (bool, "true or false"),
        (str, "a text"),
        ((int, float), "a number"),
        (t.Mapping, "a dictionary"),
        (t.Sequence, "a list"),
    )
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


class Unusable(AnsibleError):
    """A variable that is set and cannot be used; ``missing`` where it names one that is not set."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.sentence = message
        self.missing = missing


def values_of(templar: t.Any, variables: t.Mapping[str, t.Any], name: str, kind: str = "") -> t.List[t.Any]:
    """The value of a variable that is set, in a list; empty where it is set to C(omit).

    Raises ``Unusable``, with the variable's name and without any value, where it cannot be evaluated or is of another
    kind.
    """
    try:
        # In a list, as what is omitted is left out of one.
        values: t.List[t.Any] = list(templar.template([variables[name]]))
        _walk(values)
    except Exception as error:
        raise _unusable(name, error) from None
    expected = kind or _kind_of(name)
    problem = kind_problem(values[0], expected) if values else ""
    if values and not problem and name == "wheels_ops_thresholds":
        try:
            parse(values[0])
        except OpsError as error:
            raise Unusable(f"{name} must be usable as thresholds. {error}") from None
    if values and name == "wheels_ops_services" and not values[0] and not problem:
        raise Unusable(f"{name} must be a list with at least one service, got an empty one.")
    if problem:
        raise Unusable(
            f"{name} must be {_WORDS[expected]}, got {problem}. {_example(name, expected, values[0])}".strip()
        )
    return values


def _kind_of(name: str) -> str:
    return SHARED[name].kind if name in SHARED else "raw"


def default_of(templar: t.Any, variables: t.Mapping[str, t.Any], name: str) -> t.Any:
    """The default of a shared variable, with the variables that it names filled in.

    Raises ``Unusable`` as ``value_of``.
    """
    return _filled(SHARED[name].default, lambda other: value_of(templar, variables, other))


def value_of(templar: t.Any, variables: t.Mapping[str, t.Any], name: str) -> t.Any:
    """The value of a variable, otherwise its default. A variable of a role that is not set is the shared one of its
    name.

    Raises ``Unusable`` where it is set and cannot be used.
    """
    shared = name if name in SHARED else PREFIX + name.partition("_")[2]
    for each in dict.fromkeys((name, shared)):
        if each in variables and (values := values_of(templar, variables, each)):
            return values[0]
    return default_of(templar, variables, shared)


def _filled(value: t.Any, read: t.Callable[[str], t.Any]) -> t.Any:
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda match: str(read(match[1])), value)
    if isinstance(value, dict):
        return {key: _filled(entry, read) for key, entry in value.items()}
    return [_filled(entry, read) for entry in value] if isinstance(value, list) else value


def values_of_run(templar: t.Any, variables: t.Mapping[str, t.Any], name: str) -> t.List[t.Any]:
    """The one value that the inventory has for a variable of ``RUN_WIDE``, in a list; empty where it has none.

    Raises ``Unusable`` where hosts have different ones: a play has one order and one pattern. Before the first play of
    a run Ansible knows no host, and the list is empty.
    """
    hosts = variables.get("hostvars") or {}
    values: t.Dict[str, t.Any] = {}
    for host in sorted(hosts):
        if name in hosts[host]:
            for value in values_of(templar, hosts[host], name):
                values[host] = value
    different = [host for host, value in values.items() if value != next(iter(values.values()))]
    if different:
        raise Unusable(
            f"{name} must be the same for every host, as it is of the whole run: that of {different[0]} is not that of"
            f" {next(iter(values))}. Set it for all of them, or give it with -e."
        )
    return list(values.values())[:1]


def _walk(value: t.Any) -> None:
    """Reads everything in a value: what is in a list or a dictionary is evaluated only then."""
    if isinstance(value, t.Mapping):
        for entry in value.values():
            _walk(entry)
    elif isinstance(value, t.Sequence) and not isinstance(value, (str, bytes)):
        for entry in value:
            _walk(entry)


def _chain(error: t.Optional[BaseException]) -> t.Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _unusable(name: str, error: BaseException) -> Unusable:
    """Why, without any value: the message of a filter or a parser may repeat what it was given, that of a missing name
    does not.
    """
    chain = list(_chain(error))
    missing = [each for each in chain if isinstance(each, AnsibleUndefinedVariable)]
    if missing:
        reason = str(getattr(missing[-1], "_original_message", "") or missing[-1]).strip().splitlines()[0].rstrip(".")
        advice = (
            f"Define what it names (in the vault or the inventory), or take {name} out where it is not meant to be set."
        )
        return Unusable(f"{name} cannot be evaluated: {reason}. {advice}", missing=True)
    plugin = next(
        (match.group(0) for each in chain if (match := re.search(r"The \w+ plugin '[\w.]+' failed", str(each)))), ""
    )
    advice = f"To see more: ansible -m ansible.builtin.debug -a var={name} HOST"
    return Unusable(f"{name} cannot be evaluated: {plugin or type(chain[-1]).__name__}. {advice}")


def _example(name: str, kind: str, value: t.Any) -> str:
    if value is None:
        return "Give it a value, or take its line out."
    if kind.startswith("list of") and isinstance(value, str):
        return f'Write it as a list, on a command line as -e \'{{"{name}": ["..."]}}\'.'
    return ""


def is_ours(name: str) -> bool:
    return name.startswith(PREFIX) or name in role_options()


def problems(templar: t.Any, variables: t.Mapping[str, t.Any]) -> t.List[str]:
    """One sentence for every variable of ours that is set and that cannot be used, by name."""
    sentences = []
    for name in sorted(filter(is_ours, variables)):
        shared = name.startswith(PREFIX)
        try:
            values_of(templar, variables, name, _kind_of(name) if shared else role_options()[name])
        except Unusable as error:
            # An option of a role may need that role's own files, which only it has.
            if shared or error.missing or " must be " in error.sentence:
                sentences.append(error.sentence)
    return sentences + _half_of_a_pair(templar, variables)


def _half_of_a_pair(templar: t.Any, variables: t.Mapping[str, t.Any]) -> t.List[str]:
    """A host that is drained and never restored serves nobody, after a run that succeeded."""
    pair = ("wheels_ops_drain_command", "wheels_ops_restore_command")
    if not any(name in variables for name in pair):
        return []
    try:
        missing = [name for name in pair if not value_of(templar, variables, name)]
    except Unusable:
        return []  # which has a sentence of its own
    if len(missing) != 1:
        return []
    return [f"{missing[0]} must be set as well: what one of {pair[0]} and {pair[1]} does, the other undoes."]


def unknown_variables(variables: t.Mapping[str, t.Any]) -> t.List[str]:
    """One sentence for every variable with our prefix that this collection does not know, with the name that is likely
    meant.

    A variable that another one names in its value is a site's own.
    """
    unknown = sorted(name for name in variables if name.startswith(PREFIX) and name not in SHARED)
    names = {name[len(PREFIX) :]: name for name in SHARED}
    sentences = []
    for name in unknown:
        if _is_named(name, variables):
            continue
        likely = difflib.get_close_matches(name[len(PREFIX) :], names, 1, 0.7)
        reason = f"did you mean {names[likely[0]]}?" if likely else "nothing reads it. See docs/variables.md."
        sentences.append(f"Unknown variable {name}: {reason}")
    return sentences


def _is_named(name: str, variables: t.Mapping[str, t.Any]) -> bool:
    """Whether the value of another variable of the inventory names it; what Ansible itself provides is not searched."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    return any(
        word.search(str(value))
        for other, value in variables.items()
        if other not in (name, "hostvars", "groups", "vars") and isinstance(value, (str, list, dict))
    )
