# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reader of the ops token reads a file in the same way: the library, the role, and the backend."""

from __future__ import annotations

import ast
import hashlib
import hmac
import importlib
import os
import sys
import time
import typing as t
from pathlib import Path

import pytest

from tests.support.collection import COLLECTION, REPOSITORY
from wheels_ops.core.results import OpsError
from wheels_ops.state import ops_token
from wheels_ops.state.ops_token import token_of

SYSTEM_HEALTH = COLLECTION / "roles/backend_patches/files/app/api/v1/system_health.py"
LONG, OTHER = "k#9f-0123456789abcdef", "second 0123456789abcdef"
#: What stands in the file, and which tokens are in it.
FILES: t.Dict[str, t.List[str]] = {
    f"{LONG}\n": [LONG],
    f"# rotated every quarter\n\n  {LONG}  \r\n\t# the next\n{OTHER}": [LONG, OTHER],
    f"{LONG} # until Friday\n": [f"{LONG} # until Friday"],
    f"short\n{LONG}\n": [LONG],
    "0123456789abcdef\n": ["0123456789abcdef"],
    f"\ufeff# rotated every quarter, by hand\n{LONG}\n": [LONG],
    f"\ufeff{LONG}\r\n": [LONG],
    "0123456789abcde\n": [],
    f"#{LONG}\n": [],
    "k#9f\n": [],
    "": [],
}


class Log:
    def __init__(self) -> None:
        self.lines: t.List[str] = []

    def error(self, line: str) -> None:
        self.lines.append(line)


def backend_reader() -> t.Tuple[t.Any, Log]:
    """The class of the backend, without the backend: its file imports the application."""
    tree = ast.parse(SYSTEM_HEALTH.read_text(encoding="utf-8"))
    wanted: t.List[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "OpsTokens"
    ]
    log = Log()
    names: t.Dict[str, t.Any] = {"t": t, "hashlib": hashlib, "hmac": hmac, "os": os, "time": time, "logger": log}
    exec(compile(ast.Module(wanted, []), str(SYSTEM_HEALTH), "exec"), names)
    return names["OpsTokens"], log


@pytest.mark.parametrize(("text", "tokens"), FILES.items())
def test_every_reader_finds_the_same_tokens(
    tmp_path: Path, text: str, tokens: t.List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ops-token"
    path.write_bytes(text.encode())
    assert ops_token.parse(text)[0] == tokens
    if tokens:
        assert token_of("", str(path)) == tokens[0]
    else:
        with pytest.raises(OpsError) as caught:
            token_of("", str(path))
        assert str(path) in str(caught.value)
        assert "k#9f" not in str(caught.value)
    # The backend.
    reader, _log = backend_reader()
    monkeypatch.setenv("WHEELS_OPS_TOKEN", "")
    monkeypatch.setenv("WHEELS_OPS_TOKEN_FILE", str(path))
    assert list(reader().all()) == tokens
    # The role, which sends it with the module uri.
    tasks = (COLLECTION / "roles/host_cleanup/tasks/cache.yml").read_text()
    assert "{{ host_cleanup_token.content | default('') | b64decode | wheels.ops.ops_tokens }}" in tasks
    if str(REPOSITORY / "collections") not in sys.path:
        sys.path.append(str(REPOSITORY / "collections"))
    plugin = importlib.import_module("ansible_collections.wheels.ops.plugins.filter.ops_tokens")
    assert plugin.FilterModule().filters()["ops_tokens"](text) == tokens


def test_a_short_token_is_told_once_and_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ops-token"
    path.write_text("k#9f\n")
    reader, log = backend_reader()
    monkeypatch.setenv("WHEELS_OPS_TOKEN", f"tiny, {LONG}")
    monkeypatch.setenv("WHEELS_OPS_TOKEN_FILE", str(path))
    tokens = reader()
    for _request in range(50):
        # As if the second between two looks had passed.
        tokens._looked = -1.0
        assert tokens.all() == (LONG,)
        assert tokens.match("tiny") == tokens.match("k#9f") == tokens.match("k") == ""
    assert len(log.lines) == 2, "one for each place, not one for each request"
    assert "WHEELS_OPS_TOKEN" in log.lines[0]
    assert str(path) in log.lines[1]
    assert not [line for line in log.lines if "tiny" in line or "k#9f" in line]


def test_a_token_that_is_given_is_judged_alike() -> None:
    assert token_of(f" {LONG}\n", "/nowhere") == LONG
    with pytest.raises(OpsError, match="at least 16 characters") as caught:
        token_of("k#9f", "")
    assert "k#9f" not in str(caught.value)


def test_a_token_file_that_others_made_a_trap_of_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    for name in ("pipe", "endless", "large"):
        with pytest.raises(OpsError, match="holds no ops token"):
            token_of("", str(tmp_path / name))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who could follow any link")
def test_a_link_of_a_lesser_user_is_not_followed(tmp_path: Path) -> None:
    secret, link = tmp_path / "shadow", tmp_path / "ops-token"
    secret.write_text("root:0123456789abcdef:::\n")
    link.symlink_to(secret)
    assert token_of("", str(link)) == "root:0123456789abcdef:::", "one of root's own, as a secret store makes them"
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(OpsError, match="a link of another user"):
        token_of("", str(link))
    # The same for a directory on the way; his own token in a directory of his own is read.
    his = tmp_path / "his"
    his.mkdir()
    (his / "etc").symlink_to(tmp_path)
    (his / "ops-token").write_text(f"{LONG}\n")
    for place in (his, his / "etc", his / "ops-token"):
        os.chown(place, 65534, 65534, follow_symlinks=False)
    with pytest.raises(OpsError, match="through a symbolic link of another user"):
        token_of("", str(his / "etc/shadow"))
    assert token_of("", str(his / "ops-token")) == LONG
