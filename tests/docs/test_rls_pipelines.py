# SPDX-License-Identifier: GPL-3.0-or-later
"""The definitions that a project's pipeline copies or refers to, run as their runners would: the hook of pre-commit, the
action of GitHub and the jobs of docs/rls.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.docs.test_rls_page import blocks
from tests.sandbox.binaries import REPOSITORY
from tests.support import servers

RECURSION = """
create table public.members (team int, person uuid);
alter table public.members enable row level security;
create policy "read" on public.members for select using (team in (select m.team from public.members m));
"""
CLEAN = "drop policy read on public.members; create policy read on public.members for select using (person is null);"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a folder of migrations, of which the last recurses, and the programs that runners have."""
    folder = tmp_path / "supabase/migrations"
    folder.mkdir(parents=True)
    (folder / "1_members.sql").write_text(RECURSION)
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "wheels-ops": f'exec "{sys.executable}" -m wheels_ops.command_line "$@"',
        "pip": "exit 0",
        "pipx": 'if [ "$1" = run ]; then [ "$2" = --spec ] && [ -e "${3%\\[rls\\]}/pyproject.toml" ] || exit 9; shift 3;'
        ' exec "$@"; fi',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return tmp_path


def run(project: Path, server: servers.Postgres, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "HOME": str(project), "DATABASE_URL": server.dsn()}
    return subprocess.run(
        list(words), cwd=project, env={**environ, **variables}, capture_output=True, text=True, check=False
    )


def repaired(project: Path) -> None:
    (project / "supabase/migrations/2_members.sql").write_text(CLEAN)


def test_hook_fails_for_a_recursion_and_passes_without(postgres: servers.Postgres, project: Path) -> None:
    """pre-commit runs `entry` and `args`, in the project's root, when a file matches `files`."""
    (hook,) = yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text())
    assert re.search(hook["files"], "supabase/migrations/1_members.sql") and not re.search(hook["files"], "seed.sql")
    assert hook["language"] == "python" and hook["pass_filenames"] is False
    words = [*hook["entry"].split(), *hook["args"]]
    found = run(project, postgres, *words)
    assert found.returncode == 1 and "Infinite recursion" in found.stdout, found.stderr
    assert "1_members.sql" in found.stdout
    repaired(project)
    assert run(project, postgres, *words).returncode == 0


def test_hook_installs_what_the_extra_names() -> None:
    """pre-commit installs the repository without extras."""
    (hook,) = yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text())
    extra = re.search(r"^rls = (\[.*\])$", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra and hook["additional_dependencies"] == json.loads(extra[1])


def test_action_annotates_a_recursion(postgres: servers.Postgres, project: Path) -> None:
    """The last step's script with its inputs' defaults in the environment, as the runner sets them."""
    action = yaml.safe_load((REPOSITORY / "action.yml").read_text())
    inputs = {name: str(spec["default"]) for name, spec in action["inputs"].items()}
    step = action["runs"]["steps"][-1]
    variables = {name: text for name, text in step["env"].items() if name != "DATABASE_URL"}
    for name, text in variables.items():
        text = text.replace("${{ github.action_path }}", str(REPOSITORY))
        variables[name] = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda place: inputs[place[1]], text)
    assert "${{" not in "".join(variables.values()) and "${{" not in step["run"]
    found = run(project, postgres, "bash", "-e", "-c", step["run"], **variables)
    assert found.returncode == 1, found.stderr
    assert re.search(r"^::error file=supabase/migrations/1_members\.sql,title=.*members", found.stdout, re.MULTILINE)
    earlier = ["--sql", "supabase/migrations", "--format", "json", "--output", "old.json"]
    run(project, postgres, "wheels-ops", "rls", "audit", "--supabase", *earlier)
    passed = run(project, postgres, "bash", "-e", "-c", step["run"], **{**variables, "BASELINE": "old.json"})
    assert passed.returncode == 0, passed.stdout + passed.stderr


def jobs() -> t.Iterator[t.Tuple[str, t.List[str]]]:
    """(name, commands) of the jobs on the page."""
    for kind, text in blocks():
        read = yaml.safe_load(text) if kind == "yaml" else {}
        if "jobs" in read:
            yield "github", [step["run"] for step in read["jobs"]["rls"]["steps"] if "run" in step]
        elif "rls" in read:
            yield "gitlab", read["rls"]["script"]
        elif "repos" in read:
            yield "pre-commit", [read["repos"][0]["hooks"][0]["entry"]]


@pytest.mark.parametrize("name, commands", list(jobs()))
def test_jobs_of_the_page_run(postgres: servers.Postgres, project: Path, name: str, commands: t.List[str]) -> None:
    """Each fails for the recursion, with its report where its runner looks, and passes without it."""
    script = "set -e\n" + "\n".join(commands)
    found = run(project, postgres, "sh", "-c", script)
    assert found.returncode == 1, found.stderr
    if name == "gitlab":
        issues = json.loads((project / "gl-code-quality-report.json").read_text())
        assert "recursion" in {issue["check_name"] for issue in issues}
    else:
        assert "recursion" in found.stdout
    repaired(project)
    assert run(project, postgres, "sh", "-c", script).returncode == 0


def test_folder_without_migrations_is_an_error(postgres: servers.Postgres, project: Path) -> None:
    """Not a clean bill."""
    (project / "empty").mkdir()
    found = run(project, postgres, "wheels-ops", "rls", "audit", "--supabase", "--sql", "empty")
    assert found.returncode == 2 and "There is no .sql file in empty." in found.stderr
