# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/tags.md has the tags that Ansible lists."""

from __future__ import annotations

import re
import typing as t

import pytest

from tests.support.collection import BIN, REPOSITORY, run

PLAYBOOKS = sorted((REPOSITORY / "playbooks").glob("*.yml"))


@pytest.fixture(scope="module")
def listed() -> t.Dict[str, t.Set[str]]:
    """The tags of each playbook, as Ansible lists them."""
    words = ["-i", "localhost,", "--list-tags", *map(str, PLAYBOOKS)]
    done = run(str(BIN / "ansible-playbook"), *words, cwd=REPOSITORY, ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"))
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^playbook: .*/(\w+)\.yml$", done.stdout, flags=re.M)[1:]
    return {
        name: {tag for tags in re.findall(r"TAGS: \[(.*)\]", text) for tag in re.findall(r"[\w-]+", tags)}
        for name, text in zip(parts[::2], parts[1::2])
    }


def test_the_page_has_the_tags_of_every_playbook(listed: t.Dict[str, t.Set[str]]) -> None:
    page = (REPOSITORY / "docs/tags.md").read_text(encoding="utf-8")
    documented: t.Dict[str, t.Set[str]] = {}
    for name, tag in re.findall(r"^\| (\w+) \| (?:none|`([\w-]+)`) \|", page, re.M):
        documented.setdefault(name, set()).update({tag} - {""})
    assert set(listed) == {path.stem for path in PLAYBOOKS}
    assert documented == {name: tags - {"always"} for name, tags in listed.items()}
    assert [name for name, tags in listed.items() if "always" in tags] == ["maintenance"]
