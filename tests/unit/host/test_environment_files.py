# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables of a service in the file where they lie, and references to them."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host import environment_files

DSN = "postgresql+asyncpg://app:s3cr#t=1@db.example/pam?ssl=require"
FILES = {
    "api.env": f"# the database\nOTHER=1\nDATABASE_URL={DSN}\n",
    "quoted.env": f"DATABASE_URL='first'\nDATABASE_URL=\"{DSN}\"\n",
    ".env": f"export DATABASE_URL = {DSN}   # of the pooler\n",
    "api.service": f'[Unit]\nDescription=x\n[Service]\nEnvironment=A=1 "DATABASE_URL={DSN}"\nExecStart=/bin/true\n',
    "api.conf": f'[program:api]\ncommand=x\nenvironment=A="1,2",\n    DATABASE_URL="{DSN}",B=2\n',
}


@pytest.mark.parametrize("name", FILES)
def test_value_of_every_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    assert environment_files.value_of(str(tmp_path / name), "DATABASE_URL") == DSN


def test_resolve_replaces_references_of_addresses_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "api.env")
    Path(path).write_text("REDIS_URL=redis://:pw@127.0.0.1:6379/0\n")
    reference = environment_files.reference(path, "REDIS_URL")
    options: t.Dict[str, t.Any] = {
        "services": [{"name": "x", "gate": {"url": reference}}],
        "content": reference,
        "n": 1,
    }
    resolved = environment_files.resolve(options)
    assert resolved["services"][0]["gate"]["url"] == "redis://:pw@127.0.0.1:6379/0"
    assert resolved["content"] == reference
    assert options["services"][0]["gate"]["url"] == reference, "the options themselves stay as they were"


@pytest.mark.parametrize(
    ("content", "value", "message"),
    [
        ("A=1\n", "file://{}#DATABASE_URL", "{} does not set the variable DATABASE_URL."),
        ("DATABASE_URL=\n", "file://{}#DATABASE_URL", "{} does not set the variable DATABASE_URL."),
        ("", "file://{}", "dsn must name a variable of a file, got"),
        ("", "file://{}/nothing#A", "cannot be read: Not a directory."),
        (
            '[program:a]\nenvironment=A="1"\n[program:b]\nenvironment=A="2"\n',
            "file://{}#A",
            "{} sets the variable A to several values.",
        ),
    ],
)
def test_resolve_refuses(tmp_path: Path, content: str, value: str, message: str) -> None:
    path = tmp_path / "api.env"
    path.write_text(content)
    with pytest.raises(OpsError) as caught:
        environment_files.resolve({"dsn": value.format(path)})
    assert message.format(path) in str(caught.value)
    assert caught.value.hint


def test_resolve_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "api.env")
    with pytest.raises(OpsError, match="is no regular file"):
        environment_files.value_of(str(tmp_path / "api.env"), "A")


@pytest.mark.root
def test_another_user_cannot_make_root_read_a_file_of_their_choice(tmp_path: Path) -> None:
    path = tmp_path / "api.env"
    path.write_text("A=postgresql://host/db?passfile=/root/.pgpass\nB=postgresql://host/db?sslmode=require\n")
    assert environment_files.value_of(str(path), "A")
    os.chown(path, 65534, 65534)
    with pytest.raises(OpsError, match="can be changed by another user"):
        environment_files.value_of(str(path), "A")
    assert environment_files.value_of(str(path), "B")


@pytest.mark.root
@pytest.mark.parametrize(
    "value",
    [
        "password=a://b host=h passfile=/root/.pgpass",
        "postgresql://h/db#?passfile=/root/.pgpass",
        "postgresql://h/db?pass%66ile=/root/.pgpass",
    ],
)
def test_another_user_cannot_hide_the_file_that_root_reads(tmp_path: Path, value: str) -> None:
    path = tmp_path / "api.env"
    path.write_text(f"A={value}\n")
    os.chown(path, 65534, 65534)
    with pytest.raises(OpsError, match="can be changed by another user"):
        environment_files.value_of(str(path), "A")


@pytest.mark.parametrize("line", ['A="x y" # the "main" one', "A='x y' # it's the main one"])
def test_comment_after_a_quoted_value_is_no_part_of_it(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"{line}\n")
    assert environment_files.value_of(str(tmp_path / ".env"), "A") == "x y"


def test_file_that_is_too_large_is_not_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "api.env"
    path.write_text(f"A=old\n#{'x' * (1 << 20)}\nA=new\n")
    with pytest.raises(OpsError, match="larger than 1 MiB"):
        environment_files.value_of(str(path), "A")
