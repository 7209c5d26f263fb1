# SPDX-License-Identifier: GPL-3.0-or-later
"""``make new-check``: which names it refuses, and how it extends a list."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest
import yaml

from tests import new_check
from tests.sandbox.binaries import REPOSITORY
from wheels_ops.health.subjects import NAMES


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what it reads."""
    root = tmp_path_factory.mktemp("tree")
    for part in ("plugins", "roles/monitoring", "changelogs"):
        shutil.copytree(REPOSITORY / new_check.COLLECTION / part, root / new_check.COLLECTION / part)
    (root / "tests/unit/checks").mkdir(parents=True)
    (root / "tests/unit/checks/test_leftover.py").touch()
    return root


def contents(root: Path) -> t.Dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([""], "NAME must be up to 30 lower-case letters, digits and _ (neither first nor last), got ''."),
        (["Certificate"], "got 'Certificate'"),
        (["tls-certificate"], "got 'tls-certificate'"),
        (["_certificate"], "got '_certificate'"),
        (["certificate_"], "got 'certificate_'"),
        (["9lives"], "got '9lives'"),
        (["../certificate"], "got '../certificate'"),
        (["a" * 31], "NAME must be up to 30"),
        (["zertifikat\u00e4"], "NAME must be up to 30"),
        (["redis"], "There is a check redis already: collections/wheels/ops/plugins/module_utils/checks/redis.py."),
        (["class"], "class is a word of Python"),
        (["sorted"], "sorted is a word of Python"),
        (["health"], "health is a word of Python or of collections/"),
        (["trim"], "module_utils/remedies/memory/trim.py exists."),
        (["remedies"], "module_utils/remedies exists."),
        (["leftover"], "tests/unit/checks/test_leftover.py exists."),
        (["certificate", "--title", 'quoted " title'], "TITLE must be"),
        (["certificate", "--title", "T" * 32], "TITLE must be"),
        (
            ["certificate", "--remedies", "service_restart,prayer"],
            "REMEDIES must be modules of the collection, got prayer.",
        ),
    ],
)
def test_main_refuses_and_writes_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: t.List[str], reason: str
) -> None:
    monkeypatch.setattr(new_check, "REPOSITORY", tree)
    before = contents(tree)
    assert new_check.main(words) == 2
    output = capsys.readouterr()
    assert output.err.startswith("Nothing was written. ") and reason in output.err and output.out == ""
    assert contents(tree) == before


def test_names_are_those_of_the_registry() -> None:
    assert tuple(new_check.names()) == NAMES


EVERY = ("memory", "cpu", "disk")


@pytest.mark.parametrize(
    "text",
    [
        "subjects: [memory, cpu, disk]\n",
        'subjects: ["memory", "cpu", "disk"]\n',
        "subjects: [memory, cpu,\n           disk]\n",
        "subjects:\n  - memory\n  - cpu\n  - disk\n",
        "subjects:\n- memory\n- cpu\n- disk\nother: [memory, cpu]\n",
    ],
)
def test_listed_extends_the_whole_list_only(text: str) -> None:
    before = yaml.safe_load(text)
    after = yaml.safe_load(new_check.listed(text, EVERY, "certificate"))
    assert after == {**before, "subjects": [*EVERY, "certificate"]}


@pytest.mark.parametrize("text", ["a: [memory, cpu]\n", "a: [memory, cpu, disk, tts]\n", "a:\n  - cpu\n  - disk\n"])
def test_listed_leaves_other_lists(text: str) -> None:
    assert new_check.listed(text, EVERY, "certificate") == text


def test_listed_breaks_a_line_that_becomes_too_long() -> None:
    text = f"  {'x' * 90}: [memory, cpu, disk]\n"
    longer = new_check.listed(text, EVERY, "certificate")
    assert max(map(len, longer.splitlines())) <= new_check.WIDTH
    assert yaml.safe_load(longer) == {"x" * 90: [*EVERY, "certificate"]}
    once_more = new_check.listed(longer, [*EVERY, "certificate"], "tls")
    assert yaml.safe_load(once_more) == {"x" * 90: [*EVERY, "certificate", "tls"]}


def test_listed_lists_of_each_file_are_complete() -> None:
    """Every place where the registry's test wants the whole list is one that ``make new-check`` extends."""
    changed = set(map(str, new_check.changed_files("certificate", "Certificate", ())))
    collection = str(new_check.COLLECTION)
    assert {
        str(new_check.REGISTRY),
        str(new_check.SUITE),
        f"{collection}/plugins/modules/health_info.py",
        f"{collection}/roles/monitoring/defaults/main.yml",
        f"{collection}/roles/monitoring/meta/argument_specs.yml",
    } <= changed
