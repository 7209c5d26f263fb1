# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a page tells somebody to type exists: programs, make targets, playbooks, options, variables; YAML, JSON and
Python parse. Pages whose blocks are run for real (rls, recovery, procedures, use-modules-alone, adding-a-check) have
tests of their own beside this one.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests import generate
from tests.support.collection import COLLECTION, REPOSITORY
from wheels_ops.report import metrics

PAGES = sorted(
    [
        *(REPOSITORY / "docs").rglob("*.md"),
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        COLLECTION / "README.md",
        *(COLLECTION / "roles").glob("*/README.md"),
    ]
)
#: A block's language -> how it is checked; "" is read for commands, as an indented block is.
SHELL = ("sh", "bash", "console", "")
#: What is shown as it is, and cannot be typed.
SHOWN = ("text", "sql", "diff", "html", "toml", "ini", "dockerfile", "toctree")
#: Programs of the system, of Ansible and of other projects, whose options are not ours.
_OTHERS = """
.venv/bin/pytest ansible ansible-doc ansible-galaxy ansible-inventory ansible-rulebook ansible-vault
antsibull-changelog apt-get cat cd chmod command cp createdb curl cut date df do docker done du echo exit export fi
for gh git grep head if journalctl jq kill kubectl logrotate ls lsof mkdir molecule mv openssl pg_dump pip pipx podman
pre-commit printf promtool ps psql pytest python python3 redis-cli rm ruff set sh sha256sum sort source ss sudo
supabase supervisorctl systemctl tail tar tee test then timedatectl top touch umask uv uvx
"""
OTHERS = frozenset(_OTHERS.split())
PROGRAMS: t.Mapping[str, str] = {
    "production_health_monitor.py": "production_health_monitor.py",
    "automated_recovery.py": "scripts/automated_recovery.py",
}


class Block(t.NamedTuple):
    page: Path
    language: str
    text: str


@functools.cache
def blocks() -> t.Tuple[Block, ...]:
    """Every block of every page: fenced ones, also in lists, and indented ones."""
    every = []
    for page in PAGES:
        fence: t.Optional[t.Tuple[str, str]] = None
        lines: t.List[str] = []
        indented: t.List[str] = []
        before = ""
        for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
            match = re.match(r"( *)```\{?([\w-]*)", line)
            if fence is None and match:
                fence, lines = (match[1], match[2]), []
            elif fence is not None and line.strip() == "```":
                every.append(Block(page, fence[1], "\n".join(lines)))
                fence = None
            elif fence is not None:
                lines.append(line.removeprefix(fence[0]))
            elif line.startswith("    ") and (indented or not before.strip()):
                indented.append(line[4:])
            elif indented and line.strip():
                every.append(Block(page, "", "\n".join(indented)))
                indented = []
            before = line
    return tuple(every)


def of_language(*languages: str) -> t.List[Block]:
    return [block for block in blocks() if block.language in languages]


def name(block: Block) -> str:
    return str(block.page.relative_to(REPOSITORY))


def commands(block: Block) -> t.Iterator[t.List[str]]:
    """The words of every command of a shell block. Of a session only what is typed counts; an indented block is no
    shell unless its lines begin with a program of ours.
    """
    text = re.sub(r"\\\n\s*", " ", block.text)
    # A text between quotes may go over lines; nothing of ours is in it.
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        part: t.List[str] = []
        for word in [*words, ";"]:
            if word in (";", "|", "&&", "||", "&") or word.endswith(";"):
                part += [word.rstrip(";")] if len(word) > 1 and word.endswith(";") else []
                while part and re.match(r"\w+=", part[0]):
                    part = part[1:]
                if part:
                    yield part
                part = []
            elif not word.startswith((">", "2>", "<")):
                part.append(word)


@functools.cache
def targets() -> t.FrozenSet[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def help_of(*words: str) -> str:
    """What a program says of its options."""
    done = subprocess.run([*words, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout


@functools.cache
def variables() -> t.FrozenSet[str]:
    """Everything that an inventory or ``-e`` may set: shared, of a role, and the former names that roles still read."""
    names = set(generate.table())
    for role in generate.role_names():
        names |= set(generate.options(role)) | set(generate.definitions(role))
    for path in (COLLECTION / "roles").rglob("*.yml"):
        names |= set(re.findall(r"'(recovery_\w+|\w+_python)'", path.read_text(encoding="utf-8")))
    return frozenset(names)


def options_in(words: t.Sequence[str]) -> t.List[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def unknown_options(words: t.Sequence[str], text: str) -> t.List[str]:
    return [option for option in options_in(words) if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)]


def problems(words: t.List[str], *, strict: bool) -> t.Iterator[str]:
    program, *rest = words
    script = Path(rest[0]).name if program.startswith("python") and rest else Path(program).name
    if program == "make":
        yield from (f"make {word}" for word in rest if re.fullmatch(r"[a-z][a-z-]*", word) and word not in targets())
    elif Path(program).name == "ansible-playbook":
        yield from unknown_options(rest, help_of(str(Path(sys.executable).with_name("ansible-playbook"))))
        for word in rest:
            if "playbooks/" in word and not (REPOSITORY / word).is_file():
                yield f"no {word}"
        for flag, value in zip(rest, rest[1:]):
            if flag in ("-e", "--extra-vars") and re.match(r"\w+=", value) and value.split("=")[0] not in variables():
                yield f"no variable {value.split('=')[0]}"
    elif script in PROGRAMS:
        yield from unknown_options(rest, help_of(sys.executable, str(REPOSITORY / PROGRAMS[script])))
    elif program == "wheels-ops" or rest[:2] == ["-m", "wheels_ops.command_line"]:
        rest = rest[2:] if rest[:2] == ["-m", "wheels_ops.command_line"] else rest
        subcommands = [word for word in rest[:2] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        yield from unknown_options(rest, help_of(sys.executable, "-m", "wheels_ops.command_line", *subcommands))
    elif strict and program not in OTHERS and re.fullmatch(r"[\w./-]+", program):
        yield f"{program} is no program that the pages name elsewhere: is it right? Then add it to OTHERS."


def test_every_block_says_what_it_is() -> None:
    checked = {*SHELL, *SHOWN, "yaml", "json", "python"}
    assert sorted({f"{name(block)}: {block.language}" for block in blocks() if block.language not in checked}) == []


def test_commands_exist_with_their_options() -> None:
    wrong = []
    for block in of_language(*SHELL):
        for words in commands(block):
            strict = block.language in ("sh", "bash")
            wrong += [f"{name(block)}: {' '.join(words)}: {what}" for what in problems(words, strict=strict)]
    assert wrong == []


def test_a_wrong_command_is_noticed() -> None:
    """The check itself: each of these is refused."""
    for line in (
        "make no-such-target",
        "ansible-playbook -i INVENTORY playbooks/no_such.yml",
        "ansible-playbook playbooks/verify.yml --no-such-option",
        "ansible-playbook playbooks/verify.yml -e wheels_ops_no_such=1",
        "python3 /opt/wheels-ops/production_health_monitor.py --no-such",
        "wheels-ops rls audit --no-such",
        "no-such-program",
    ):
        [words] = commands(Block(Path(), "sh", line))
        assert list(problems(words, strict=True)), line


@pytest.mark.parametrize("language", ["yaml", "json", "python"])
def test_data_and_code_parse(language: str) -> None:
    wrong = []
    for block in of_language(language):
        try:
            if language == "yaml":
                list(yaml.safe_load_all(block.text))
            elif language == "json":
                json.loads(block.text)
            else:
                compile(block.text, name(block), "exec")
        except (yaml.YAMLError, ValueError, SyntaxError) as error:
            wrong.append(f"{name(block)}: {error}")
    assert wrong == []


def test_named_playbooks_targets_and_variables_exist() -> None:
    """In sentences and tables as well; ``wheels_ops_*`` may also be a metric."""
    # The last one is the misspelt name that the page warns of.
    known = variables() | set(metrics.METRICS) | {"wheels_ops_", "wheels_ops_servcies"}
    wrong = []
    for page in PAGES:
        if "decisions" in page.parts:
            continue  # they say what was, too
        text = page.read_text(encoding="utf-8")
        place = str(page.relative_to(REPOSITORY))
        for word in set(re.findall(r"(?<![\w./])playbooks/\w+\.yml", text)):
            wrong += [] if (REPOSITORY / word).is_file() else [f"{place}: {word}"]
        for word in set(re.findall(r"`make ([a-z][a-z-]*)", text)):
            wrong += [] if word in targets() else [f"{place}: make {word}"]
        for word in set(re.findall(r"(?<![\w./{-])wheels_ops_[a-z0-9_]+(?![\w./*-])", text)):
            wrong += [] if word in known else [f"{place}: {word}"]
    assert sorted(wrong) == []
