# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Variables in the files that give a service its environment, and references to them.

A reference is ``file:///etc/api.env#DATABASE_URL``: the variable ``DATABASE_URL`` of that file, read on the host when
it is needed, so that a secret stays where the backend itself reads it. Four formats are understood: a file of systemd's
``EnvironmentFile=`` (also what ``sh`` reads), a ``.env``, a unit or drop-in with ``Environment=``, and the
configuration of supervisord with ``environment=``.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import typing as t
from urllib.parse import unquote

from ..core.results import OpsError

_REFERENCE = re.compile(r"file://(/[^#\n]*)#([A-Za-z_][A-Za-z0-9_]*)")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=(.*)")
#: ``environment=`` of supervisord: ``KEY="value"`` or ``KEY=value``, with commas between them.
_PAIR = re.compile(r"""([A-Za-z_][A-Za-z0-9_]*)\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^,\s]+)""")
#: A quoted value before a comment, which may have quotes of its own.
_COMMENT = re.compile(r"""^("(?:[^"\\]|\\.)*"|'[^']*')\s+#.*$""")
_LARGEST = 1 << 20
#: What libpq reads from a file that a connection string names. Whoever writes one must not make root read their choice.
_FILE_OPTIONS = frozenset({"passfile", "service", "servicefile", "sslkey", "sslcert"})
#: Options whose value may be a reference: the ends of their names.
_SUFFIXES = ("dsn", "url", "password")


def reference(path: str, name: str) -> str:
    """The reference to a variable of a file."""
    return f"file://{path}#{name}"


def is_reference(value: t.Any) -> bool:
    """Whether a value refers to a variable of a file."""
    return isinstance(value, str) and value.startswith("file://")


def resolve(value: t.Any, key: str = "") -> t.Any:
    """A copy of options in which every reference is what it refers to; ``key`` is the name of the option.

    Raises ``OpsError`` for a reference that is none, a file that cannot be read and a variable that is not in it. No
    message has a value in it.
    """
    if isinstance(value, dict):
        return {name: resolve(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(resolve(entry, key) for entry in value)
    if not is_reference(value) or not key.endswith(_SUFFIXES):
        return value
    match = _REFERENCE.fullmatch(value)
    if not match:
        raise OpsError(
            f"{key} must name a variable of a file, got {value!r}.",
            hint="For example file:///etc/api.env#DATABASE_URL.",
        )
    return value_of(match[1], match[2])


def value_of(path: str, name: str) -> str:
    """The value of a variable in a file; where it is set several times the last one counts.

    Raises ``OpsError`` as ``resolve`` does, and where sections of one file (programs of supervisord) disagree.
    """
    text, owner = _read(path)
    values = [value for each, value in assignments(text) if each == name]
    if not values or not values[-1]:
        raise OpsError(
            f"{path} does not set the variable {name}.",
            hint="Correct the reference file://PATH#VARIABLE in the inventory, or run make inventory again.",
        )
    if _is_supervisor(text) and len(set(values)) > 1:
        raise OpsError(
            f"{path} sets the variable {name} to several values.", hint="Refer to a file that sets it to one."
        )
    value = values[-1]
    if owner not in (0, os.geteuid()) and _FILE_OPTIONS & _option_names(value):
        raise OpsError(
            f"{name} in {path} names a file of its own ({', '.join(sorted(_FILE_OPTIONS))}), and {path} can be changed"
            " by another user.",
            hint=f"Give the file to root, or set the address in the inventory: chown root {path}",
        )
    return value


def names_of(path: str) -> t.Set[str]:
    """The variables that a file sets. Raises ``OpsError`` where it cannot be read."""
    return {name for name, _value in assignments(_read(path)[0])}


def assignments(text: str) -> t.List[t.Tuple[str, str]]:
    """Every variable that a file sets, with its value, in their order."""
    if _is_supervisor(text):
        joined = re.sub(r"\n[ \t]+", " ", text)
        lines = re.findall(r"^environment\s*=\s*(.*)$", joined, re.MULTILINE)
        # supervisord expands %(ENV_X)s; a percent sign of the value is written twice.
        return [(name, _unquoted(value).replace("%%", "%")) for line in lines for name, value in _PAIR.findall(line)]
    if re.search(r"^\[Service\]", text, re.MULTILINE):
        lines = re.findall(r"^Environment\s*=\s*(.*)$", text.replace("\\\n", " "), re.MULTILINE)
        words = [word for line in lines for word in _words(line)]
        pairs = [word.partition("=") for word in words if "=" in word]
        return [(name, value.replace("%%", "%")) for name, _sign, value in pairs]
    found = []
    for line in text.replace("\\\n", "").splitlines():
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match:
            found.append((match[1], _unquoted(match[2].strip())))
    return found


def _is_supervisor(text: str) -> bool:
    return bool(re.search(r"^\[(program:|supervisord\])", text, re.MULTILINE))


def _words(line: str) -> t.List[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _unquoted(value: str) -> str:
    if value[:1] in ("'", '"') and value[0]:
        value = _COMMENT.sub(r"\1", value)
        end = value.rfind(value[0])
        inner = value[1:end] if end else value[1:]
        return re.sub(r'\\(["\\$`])', r"\1", inner) if value[0] == '"' else inner
    return re.sub(r"\s+#.*$", "", value)


def _option_names(value: str) -> t.Set[str]:
    """Every word before an equals sign. libpq splits a URL otherwise than Python does: too many names refuse an address
    that would do, and one too few lets another user name a file that root reads.
    """
    return set(re.findall(r"(\w+)\s*=", unquote(value), re.ASCII))


def _read(path: str) -> t.Tuple[str, int]:
    """The text of a file and its owner."""
    try:
        # Not to wait for the other end of a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OpsError(f"{path} is no regular file.", hint="Name the file that sets the variables.")
            if status.st_size > _LARGEST:
                raise OpsError(f"{path} is larger than 1 MiB.", hint="Name the file that sets the variables.")
            return file.read(_LARGEST), status.st_uid
    except OSError as error:
        hint = (
            "Run as root (ansible_become: true), or as the user of the backend."
            if isinstance(error, PermissionError)
            else "Correct the reference file://PATH#VARIABLE in the inventory, or run make inventory again."
        )
        raise OpsError(f"{path} cannot be read: {error.strerror}.", hint=hint) from None
