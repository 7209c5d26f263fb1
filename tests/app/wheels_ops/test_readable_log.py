# SPDX-License-Identifier: GPL-3.0-or-later
"""The incident report's commands on the JSON log of a release; what must not reach a terminal stays escaped."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import types
import typing as t
from pathlib import Path

import pytest

from tests.backend.materialise import RELEASES, materialise
from tests.support.backend_env import BACKEND_PYTHON, PATCHES, install_blocks, overlay

SPECIFICATION = importlib.util.spec_from_file_location("readable_log", PATCHES / "wheels_ops/readable_log.py")
assert SPECIFICATION is not None and SPECIFICATION.loader is not None
readable_log = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(readable_log)

#: As the report writes them, for `tail -f LOG |`.
COMMANDS = ("🧹\\|📊\\|🗑️", "💓\\|🔗\\|🔌", "affiliate_sales\\|user_wishlists\\|recursion", "CORS\\|OPTIONS\\|preflight")
PROGRAM = """
from app.core.logging import get_logger, setup_logging
log = get_logger("app.some")
log.info("🧹 Memory cleanup", note="Zürich")
setup_logging()  # as app.services.cache_service does when it is imported
log.info("🔌 WebSocket closed")
log.error("Table doesn't exist yet", error='relation "user_wishlists" does not exist')
log.warning("CORS preflight denied", origin="https://\\u202eevil\\x9b.example")
"""


def logged(directory: Path, **environment: str) -> Path:
    variables = {"PATH": os.environ["PATH"], "LOG_DIR": str(directory / "logs"), **environment}
    done = subprocess.run(
        [str(BACKEND_PYTHON), "-c", PROGRAM], cwd=directory, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Logging error" not in done.stderr, done.stderr[-2000:]
    return directory / "logs/app.log"


def matches(log: Path, pattern: str) -> int:
    return subprocess.run(["grep", "-c", pattern, str(log)], capture_output=True, check=False, text=True).stdout.count(
        "1"
    )


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_the_reports_commands_find_their_lines_as_long_as_the_patches_are_there(release: str, tmp_path: Path) -> None:
    root = materialise(release, tmp_path)
    own = (root / "app/core/logging.py").read_bytes()
    log = logged(root)
    assert [matches(log, pattern) for pattern in COMMANDS] == [0, 0, 1, 1], "the escapes of the release"
    log.unlink()
    overlay(root, ["wheels_ops"])
    install_blocks(root)
    logged(root)
    assert [matches(log, pattern) for pattern in COMMANDS] == [1, 1, 1, 1]
    documents = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert documents[0]["note"] == "Zürich" and "Zürich" in log.read_text("utf-8")
    assert documents[3]["origin"] == "https://\u202eevil\x9b.example"
    assert not {"\u202e", "\x9b"} & set(log.read_text("utf-8"))
    (root / "app/core/logging.py").write_bytes(own)  # a rollback
    log.unlink()
    logged(root)
    assert [matches(log, pattern) for pattern in COMMANDS] == [0, 0, 1, 1]


def test_a_log_in_another_encoding_loses_no_line(tmp_path: Path) -> None:
    root = materialise("incident", tmp_path)
    path = root / "app/core/logging.py"
    path.write_text(path.read_text().replace('encoding="utf-8"', 'encoding="latin-1"'))
    overlay(root, ["wheels_ops"])
    install_blocks(root)
    lines = logged(root).read_text("latin-1").splitlines()
    assert len(lines) == 4 and "Zürich" in lines[0] and "Memory cleanup" in lines[0]


@pytest.mark.parametrize("text", ["🧹", "ü", "\ud800", "\x00\x1b[31m", "\u2028", '"\\'])
def test_every_text_comes_back_from_one_printable_line(text: str) -> None:
    line = readable_log.dumps({"event": text})
    assert json.loads(line) == {"event": text}
    assert len(line.splitlines()) == 1 and line.encode("utf-8")
    assert not [letter for letter in line if ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0]


def test_formatters_of_the_standard_library_and_a_serialiser_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(value: t.Any, **_options: t.Any) -> str:
        return str(value)

    theirs, plain = types.SimpleNamespace(_dumps=own), types.SimpleNamespace(_dumps=json.dumps)
    formatter = logging.Formatter()
    formatter.processors = [theirs, plain]  # type: ignore[attr-defined]  # as structlog's ProcessorFormatter
    formatter.json_serializer = json.dumps  # type: ignore[attr-defined]  # as python-json-logger's
    handler = logging.NullHandler()
    handler.setFormatter(formatter)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    readable_log.apply()
    assert theirs._dumps is own
    assert plain._dumps is readable_log.dumps and formatter.json_serializer is readable_log.dumps  # type: ignore[attr-defined]  # see above
