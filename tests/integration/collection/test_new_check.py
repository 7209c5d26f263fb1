# SPDX-License-Identifier: GPL-3.0-or-later
"""A check that ``make new-check`` created in a copy of the tree is everywhere without another edit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from tests import new_check
from tests.sandbox.binaries import REPOSITORY

# Each test starts several programs that import Ansible or mypy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BIN = Path(sys.executable).parent
CRITICAL = {"status": "critical", "value": 3, "unit": "days", "message": "It expires.", "details": {}, "duration_ms": 1}


class Tree(t.NamedTuple):
    """The copy, and what ``make new-check`` printed there."""

    root: Path
    output: str

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root / "src"),
            "ANSIBLE_HOME": str(self.root / ".ansible"),
            "ANSIBLE_CONFIG": str(self.root / "ansible.cfg"),
            "WHEELS_OPS_STATE_DIR": str(self.root / "state"),
        }
        return subprocess.run(
            words, cwd=self.root, env=environment, capture_output=True, text=True, check=False, timeout=240
        )

    def python(self, program: str) -> t.Any:
        """What a program prints as JSON, with the library of the copy."""
        done = self.run(sys.executable, "-c", f"import json; from wheels_ops.health import subjects; {program}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("copy") / "tree"
    parts = (".git", ".venv*", ".cache", ".sandbox", ".ansible", ".*_cache", "build", "__pycache__")
    shutil.copytree(REPOSITORY, root, symlinks=True, ignore=shutil.ignore_patterns(*parts))
    (root / ".venv").symlink_to(BIN.parent)
    copy = Tree(root, "")
    words = ["certificate", "--title", "TLS certificate", "--remedies", "service_restart"]
    done = copy.run(sys.executable, "-m", "tests.new_check", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy._replace(output=done.stdout)


def paths_of(output: str) -> t.List[str]:
    return [line.split()[1] for line in output.splitlines() if line.startswith(("created  ", "changed  "))]


def test_new_check_says_what_to_edit_next(tree: Tree) -> None:
    assert "  1. Write check() in collections/wheels/ops/plugins/module_utils/checks/certificate.py." in tree.output
    assert all((tree.root / path).is_file() for path in paths_of(tree.output))
    done = tree.run("make", "--no-print-directory", "--assume-old=lint-tools", "new-check", "NAME=certificate")
    assert done.returncode != 0 and "There is a check certificate already" in done.stderr


def test_new_check_is_in_health_info(tree: Tree) -> None:
    done = tree.run(
        str(BIN / "ansible"),
        "localhost",
        "--module-name=wheels.ops.health_info",
        f"--args={json.dumps({'subjects': ['certificate']})}",
        f"--extra-vars=ansible_python_interpreter={sys.executable}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = yaml.safe_load(done.stdout.partition("=>")[2])
    assert [(check["name"], check["status"]) for check in result["checks"]] == [("certificate", "unknown")]
    assert result["failing"] == ["certificate"]


def test_new_check_has_a_row_in_the_report(tree: Tree) -> None:
    health = json.dumps({"checks": [{**CRITICAL, "name": "certificate"}]})
    rows = tree.python(
        "from wheels_ops.report import report;"
        f" print(json.dumps([report.rows({{}}, json.loads({health!r}), {{}}), subjects.report_rows()[-1]]))"
    )
    assert [(row["incident"], row["after"], row["after_value"]) for row in rows[0]] == [
        ("TLS certificate", "critical", "3 days")
    ]
    assert rows[1] == ["", "TLS certificate", ["certificate"]]


def test_new_check_is_in_the_monitor(tree: Tree) -> None:
    program = str(tree.root / "production_health_monitor.py")
    done = tree.run(sys.executable, program, "--only", "certificate", "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["detailed_results"]["certificate"]["status"] == "unknown"
    assert [each["check"] for each in report["issues_found"]] == ["certificate"]
    assert "TLS certificate" in " ".join(tree.run(sys.executable, program, "--help").stdout.split())


def test_new_check_is_documented(tree: Tree) -> None:
    text = (tree.root / new_check.PAGE).read_text(encoding="utf-8")
    section = text.split("## TLS certificate (`certificate`)\n")[1]
    assert "- Remedies: `service_restart`" in section
    done = tree.run(str(BIN / "ansible-doc"), "--json", "wheels.ops.health_info")
    options = json.loads(done.stdout)["wheels.ops.health_info"]["doc"]["options"]
    assert options["subjects"]["choices"][-1] == "certificate"


@pytest.mark.skipif(
    not (REPOSITORY / new_check.LIBRARY / "remedies/plan.py").exists(), reason="there is no recovery plan in this tree"
)
def test_new_check_is_in_the_plan(tree: Tree) -> None:
    def steps(remedy: str) -> t.Any:
        check = json.dumps({**CRITICAL, "name": "certificate", "remedy": remedy})
        return tree.python(
            "from wheels_ops.remedies import plan;"
            " allowed = plan.Allowed(services=[{'name': 'web', 'unit': 'web'}]);"
            f" steps = plan.plan([json.loads({check!r})], allowed, plan.State(now=0.0));"
            " print(json.dumps([[step.remedy, step.subjects, step.refused] for step in steps]))"
        )

    assert steps("service_restart") == [["service_restart", ["certificate"], ""]]
    assert steps("") == [["", ["certificate"], "No remedy is known for it."]]


def test_new_check_passes_the_linters(tree: Tree) -> None:
    paths = paths_of(tree.output)
    assert len(paths) >= 8
    scripts = [path for path in paths if path.endswith(".py")]
    own = [path for path in scripts if "certificate" in path]
    for words in (
        ["ruff", "check", *scripts],
        ["ruff", "format", "--check", *scripts],
        ["mypy", "--cache-dir", str(tree.root / ".mypy_cache"), *own],
        ["yamllint", "--strict", *(path for path in paths if path.endswith(".yml"))],
    ):
        done = tree.run(sys.executable, "-m", *words)
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"


def test_new_check_passes_its_tests_and_those_of_the_registry(tree: Tree) -> None:
    tests = ["tests/unit/checks/test_certificate.py", "tests/unit/health/test_subjects.py"]
    done = tree.run(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout
    assert "test_rows_of_a_critical_check_are_never_empty[certificate]" in done.stdout


def without_times(text: str) -> str:
    return re.sub(r"\(\d+\.\d s\)", "(s)", text)


def test_page_adding_a_check_can_be_followed(tree: Tree) -> None:
    """What the page shows is what is printed; its code goes into the files that it names."""
    page = (REPOSITORY / "docs/adding-a-check.md").read_text(encoding="utf-8")
    consoles = re.findall(r"```console\n\$ (.*)\n((?:.|\n)*?)```", page)
    (make, created), (monitor, draft), (pytest_command, failures), (monitor_again, _measured) = consoles
    check, line, test = re.findall(r"```python\n((?:.|\n)*?)```", page)
    done = tree.run(*shlex.split(make), "--no-print-directory", "--assume-old=lint-tools")
    assert done.returncode == 0 and done.stdout.startswith(created), done.stdout + done.stderr
    check_file, test_file = (tree.root / path for path in paths_of(done.stdout)[:2])
    assert without_times(tree.run(sys.executable, *shlex.split(monitor)[1:]).stdout).startswith(without_times(draft))
    check_file.write_text(check, encoding="utf-8")
    done = tree.run(sys.executable, *shlex.split(monitor_again)[1:])
    assert re.search(r"^OK: .*\n\nok         file_handles  \d+ of \d+ file handles are open\.\n", done.stdout)
    tests = shlex.split(pytest_command)[2:]
    done = tree.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    names = re.findall(r"^FAILED \S+", done.stdout, re.MULTILINE)
    assert list(dict.fromkeys(names)) == failures.splitlines()
    registry = tree.root / new_check.REGISTRY
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace('Subject("file_handles", "File handles")', line.strip()), encoding="utf-8")
    head, rest = test_file.read_text(encoding="utf-8").split("def test_check_that_is_not_written_is_unknown")
    head = head.replace("from wheels_ops", "from pathlib import Path\n\nimport pytest\n\nfrom wheels_ops", 1)
    test_file.write_text(f"{head}{test}\n\ndef {rest.partition(chr(10) + 'def ')[2]}", encoding="utf-8")
    assert tree.run("make", "--assume-old=lint-tools", "checks-page").returncode == 0
    done = tree.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout
    changed = [new_check.REGISTRY, check_file, test_file]
    for words in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = tree.run(sys.executable, "-m", *words, *map(str, changed))
        assert done.returncode == 0, done.stdout
