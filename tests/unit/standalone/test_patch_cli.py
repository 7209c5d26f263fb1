# SPDX-License-Identifier: GPL-3.0-or-later
"""``wheels-ops patch`` as a build calls it: exit status, output, and the words of its refusals."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from wheels_ops.command_line import main


@pytest.fixture
def place(tmp_path: Path) -> Path:
    root = tmp_path / "backend"
    (root / "app/core").mkdir(parents=True)
    (root / "app/main.py").write_text("from fastapi import FastAPI\n\napp = FastAPI()\n")
    (root / "app/core/cors_config.py").write_text("ORIGINS = []\n")
    return root


def call(capsys: pytest.CaptureFixture[str], *words: t.Union[str, Path]) -> t.Tuple[int, str, str]:
    status = main(["patch", *map(str, words)])
    out, err = capsys.readouterr()
    # What a variable of a playbook is called says nothing to whoever calls a program.
    assert "wheels_ops_force" not in out + err and "-e wheels_ops" not in out + err
    return status, out, err


def test_exit_status_tells_a_build_what_is_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "check", place)[0] == 1
    assert call(capsys, "install", "--check", place)[0] == 1
    status, out, _err = call(capsys, "install", place)
    assert status == 0 and "replace       app/core/cors_config.py\n" in out
    assert "insert block  app/main.py\n" in out and "install       app/wheels_ops/wiring.py\n" in out
    assert call(capsys, "install", place)[:2] == (0, f"Every file below {place} is in place.\n")
    assert call(capsys, "check", place)[0] == 0
    assert call(capsys, "remove", "--check", place)[0] == 1
    assert call(capsys, "remove", place)[0] == 0
    assert call(capsys, "remove", place)[:2] == (0, f"Nothing of ours is installed below {place}.\n")


def test_json_has_the_result_and_the_refusal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _err = call(capsys, "install", place, "--json", "--diff")
    document = json.loads(out)
    assert status == 0 and document["changed"]
    assert {each["action"] for each in document["actions"]} == {"install", "replace", "insert block"}
    assert any("+_wheels_ops_install(app, globals())" in each["prepared"] for each in document["diff"])
    (place / "app/core/cors_config.py").write_text("ORIGINS = ['https://mine.example']\n")
    status, out, err = call(capsys, "install", place, "--json")
    document = json.loads(out)
    assert status == 2 and document["failed"] and document["foreign"] == ["app/core/cors_config.py"]
    assert "--force" in document["msg"] and "--force" in err
    status, out, err = call(capsys, "install", place, "--diff")
    assert status == 2 and "-ORIGINS = ['https://mine.example']" in out
    status, out, _err = call(capsys, "remove", place)
    assert status == 1 and "Left alone, because somebody changed them since" in out and "with --force" in out
    assert call(capsys, "install", place, "--force")[0] == 0


def test_refusal_names_the_option_that_helps(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "app/main.py").rename(place / "main.py")
    status, _out, err = call(capsys, "install", place)
    assert status == 2 and "holds no app/main.py" in err
    (place / "main.py").rename(place / "app/main.py")
    place.chmod(0o777)
    status, _out, err = call(capsys, "install", place)
    assert status == 2 and "--state-dir" in err
    kept = place.parent / "kept"
    assert call(capsys, "install", place, "--state-dir", kept)[0] == 0
    assert list(kept.rglob("manifest.json")) and not (place / ".wheels-ops").exists()
    assert call(capsys, "remove", place, "--state-dir", kept)[0] == 0
    status, _out, err = call(capsys, "install", place, "--state-dir", kept, "--python", "/none/python")
    assert status == 2 and "'/none/python' does not exist" in err and "with --python" in err


def test_lock_of_another_run_is_named_with_the_way_past_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after a build that was killed in a container of another name."""
    call(capsys, "install", place)
    (place / "app/core/cors_config.py").unlink()
    lock = place / ".wheels-ops/deploy.lock"
    holder = "other-container:12:345:abcdef-01234567-1"
    lock.write_text(
        json.dumps({"holder": holder, "since": os.stat(place).st_mtime, "at": "2026-01-31T09:30:00Z", "host": "a"})
    )
    lock.chmod(0o600)
    status, _out, err = call(capsys, "install", place)
    assert status == 2 and f"--lock-force {holder}" in err and "automated_recovery" not in err
    assert call(capsys, "install", place, "--lock-force", holder)[0] == 0
    assert (place / "app/core/cors_config.py").is_file()
