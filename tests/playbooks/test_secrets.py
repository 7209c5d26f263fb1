# SPDX-License-Identifier: GPL-3.0-or-later
"""No playbook writes a secret anywhere but into the files whose job it is to hold it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import typing as t
import xmlrpc.client
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.playbooks.conftest import Stage
from tests.sandbox.binaries import REPOSITORY

pytestmark = pytest.mark.slow
#: Everything that is shown at all, and quick gates.
SHOWN = ("-vvv", "--diff")
#: In places where this sandbox has no secret of its own.
MARKS = {"environment_extra": "m4rk-Environment/+x1", "header": "m4rk-Header-x2", "cookie": "m4rk-Cookie-x3"}


@pytest.fixture(scope="module")
def extra(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> t.Tuple[str, ...]:
    """Variables with a secret in every place that takes one. The Redis URL has it in the query, the DSN as a URL."""
    facts = stage.facts
    redis = f"redis://127.0.0.1:{facts.redis_port}/0?password={quote(facts.redis_password, safe='')}"
    headers = {
        "Authorization": f"Bearer {MARKS['header']}",
        "Cookie": f"a={MARKS['cookie']}",
        "X-Forwarded-Proto": "https",
    }
    services = [
        {"name": "redis", "unit": "redis", "gate": {"type": "redis", "url": redis}},
        {
            "name": "pam-backend",
            "depends_on": ["redis"],
            "gate": {"type": "http", "url": f"{facts.base_url}/health", "headers": headers},
        },
        {"name": "celery-worker", "depends_on": ["redis"], "gate": {"type": "celery", "url": redis}},
    ]
    variables = {
        "wheels_ops_redis_url": redis,
        "wheels_ops_database_dsn": (
            f"postgresql://postgres:{facts.database_password}@127.0.0.1:{facts.postgres_port}/pam"
        ),
        "wheels_ops_environment_extra": {
            "FEED_PHRASE": MARKS["environment_extra"],
            "WEBSOCKET_HEARTBEAT_INTERVAL": "2",
        },
        "wheels_ops_services": services,
        "wheels_ops_websocket_heartbeat_within": 0,
        "wheels_ops_websocket_dead_peer_within": 0,
    }
    path = tmp_path_factory.mktemp("variables") / "variables.json"
    path.write_text(json.dumps(variables))
    return ("-e", f"@{path}", *SHOWN)


def secrets(stage: Stage) -> t.Dict[str, str]:
    """Every secret of this sandbox by what it is."""
    facts = stage.facts
    own = {
        "database": facts.database_password,
        "application's database": facts.app_database_password,
        "redis": facts.redis_password,
        "secret key": facts.secret_key,
        "websocket": facts.health_token,
        **MARKS,
    }
    token = stage.sandbox.etc / "ops-token"
    return {**own, "ops token": token.read_text().strip()} if token.exists() else own


def leaks(stage: Stage, text: str) -> t.List[str]:
    """Which secrets are in a text, as they are or percent-encoded."""
    return [name for name, secret in secrets(stage).items() if secret in text or quote(secret, safe="") in text]


def holders(stage: Stage) -> t.Dict[Path, t.List[str]]:
    """Every file of the sandbox that has a secret in it, and whose."""
    found = {}
    for path in stage.sandbox.directory.rglob("*"):
        # Databases hold what the application stores.
        if (
            path.is_file()
            and not path.is_symlink()
            and "postgres" not in path.parts[len(stage.sandbox.directory.parts) :][:1]
        ):
            names = leaks(stage, path.read_bytes().decode("latin-1"))
            if names:
                found[path] = names
    return found


@contextlib.contextmanager
def watched() -> t.Iterator[t.Set[str]]:
    """The command lines of every process that lives while something runs, but of those that lived before."""
    seen: t.Set[str] = set()
    before = {entry for entry in os.listdir("/proc") if entry.isdigit()}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for pid in os.listdir("/proc"):
                if pid.isdigit() and pid not in before:
                    with contextlib.suppress(OSError):
                        seen.add(
                            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        )

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


#: In this order they build on each other; recover has something to do, as a service was stopped.
RUNS = (
    "prepare",
    "verify",
    "deploy --check",
    "deploy",
    "health",
    "monitor --check",
    "monitor",
    "maintenance --check",
    "maintenance",
    "recover --check",
    "recover",
    "rollback --check",
    "rollback",
)


@pytest.fixture(scope="module")
def before(stage: Stage) -> t.Set[Path]:
    """What holds secrets before any playbook ran: the sandbox's own servers and the application."""
    return set(holders(stage))


@pytest.mark.parametrize("words", RUNS)
def test_no_playbook_shows_or_keeps_a_secret(
    stage: Stage, extra: t.Tuple[str, ...], before: t.Set[Path], words: str
) -> None:
    if words.startswith("recover"):
        with contextlib.suppress(xmlrpc.client.Fault):
            stage.rpc().stopProcess("celery-worker")
    # One run measures everything that has a secret; for the others two subjects do.
    subjects = (
        ["http", "redis", "database", "websocket", "celery", "services"] if words == "verify" else ["http", "redis"]
    )
    with watched() as lines:
        run = stage.playbook(*words.split(), *extra, "-e", json.dumps({"monitoring_subjects": subjects}))
    # Line by line, so that a failure says where.
    assert [(names, line[:300]) for line in run.output.splitlines() if (names := leaks(stage, line))] == []
    assert len(lines) > 5, "the watcher saw the run"
    assert [line[:300] for line in lines if leaks(stage, line)] == []
    # It did its work, as a refusal at the beginning would show nothing.
    assert "PLAY RECAP" in run.output
    if words in ("deploy", "monitor", "maintenance", "rollback"):
        assert run.status == 0, run.output[-4000:]
    if words == "deploy":
        assert "FEED_PHRASE='***'" in run.output, "the difference of the environment names what changes"
        assert "127.0.0.1" in run.output, "addresses are shown"
    # What holds a secret by its purpose is readable by its owner only, and nothing else holds one.
    held = {path: names for path, names in holders(stage).items() if path not in before}
    purpose = {stage.sandbox.env_file, stage.sandbox.etc / "ops-token", stage.sandbox.etc / "monitor.json"}
    originals = {
        path for path in held if stage.sandbox.state in path.parents and path.name == stage.sandbox.env_file.name
    }
    assert {str(path): names for path, names in held.items() if path not in purpose | originals} == {}
    for path in held:
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid()), path
    if words == "monitor":
        assert stage.sandbox.etc / "monitor.json" in held, "the secrets are looked for in the right way"


def test_what_ansible_keeps_of_a_run_has_no_secret(stage: Stage) -> None:
    """Retry files, fact caches, temporary files: those of the run are below its own home."""
    for root in (REPOSITORY / ".ansible", Path.home() / ".ansible/tmp"):
        for path in root.rglob("*") if root.is_dir() else ():
            with contextlib.suppress(OSError):
                assert path.is_dir() or leaks(stage, path.read_bytes().decode("latin-1")) == [], path
