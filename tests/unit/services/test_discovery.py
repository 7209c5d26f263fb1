# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the addresses of a backend lie, and what a discovery makes of odd hosts."""

from __future__ import annotations

import http.server
import threading
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.services import discovery
from wheels_ops.services.discovery import Discovery, Unit
from wheels_ops.services.model import Configuration, ServiceState

POSTGRES = ("postgresql", "postgres")


def test_variable_is_found_by_its_value_and_preferred_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text("A_DB=postgresql://a@h/a\nDATABASE_URL=postgresql+asyncpg://b@h/b\nNOTE=mysql://c\n")
    place, reason = discovery.find_variable([str(path)], {}, ("DATABASE_URL",), POSTGRES)
    assert place is not None
    assert (place.reference, reason) == (f"file://{path}#DATABASE_URL", "")
    assert "b@h" not in repr(place)
    other, _reason = discovery.find_variable([str(path)], {}, (), POSTGRES)
    assert other is not None
    assert other.name == "A_DB"


def test_variable_that_the_process_has_otherwise_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text("DATABASE_URL=postgresql://old@h/a\n")
    environment = {"DATABASE_URL": "postgresql://secret-new@h/a"}
    place, reason = discovery.find_variable([str(path)], environment, ("DATABASE_URL",), POSTGRES)
    assert place is None
    assert f"DATABASE_URL of {path} is not what the running process has" in reason
    assert "secret-new" not in reason


def test_variable_of_the_process_alone_is_named(tmp_path: Path) -> None:
    place, reason = discovery.find_variable([], {"DB": "postgres://u:pw@h/d"}, ("DATABASE_URL",), POSTGRES)
    assert (place, reason) == (None, "DB is in the environment of the process, and in no file that was read.")


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *_words: t.Any) -> None:
        pass


def test_health_path_is_the_first_that_answers() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert discovery.health_path(f"http://127.0.0.1:{server.server_port}") == "/api/health"
        server.shutdown()
    assert discovery.health_path(f"http://127.0.0.1:{server.server_port}") == ""


class Fake:
    """A manager of services that do not run."""

    def __init__(self, commands: t.Mapping[str, t.Sequence[str]], directory: str = "", name: str = "systemd") -> None:
        self.commands, self.directory, self.name = commands, directory, name

    def units(self) -> t.List[str]:
        return list(self.commands)

    def states(self, units: t.Sequence[str]) -> t.Dict[str, ServiceState]:
        return {unit: ServiceState(unit, exists=True, state="inactive/dead") for unit in units}

    def definition(self, state: ServiceState) -> t.Tuple[t.List[str], str]:
        return list(self.commands[state.unit]), self.directory

    def configuration(self, state: ServiceState) -> Configuration:
        return Configuration(user="web", files=(f"{self.directory}/web.env",))


def discovered(monkeypatch: pytest.MonkeyPatch, *managers: Fake) -> Discovery:
    monkeypatch.setattr(
        discovery, "_candidates", lambda kind, socket: [(str(index), "") for index in range(len(managers))]
    )
    monkeypatch.setattr(discovery.managers, "open_manager", lambda kind, socket, **words: managers[int(kind)])
    return discovery.discover()


def test_stopped_backend_is_described_by_its_definitions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    (tmp_path / "web.env").write_text(
        "DATABASE_URL=postgres://u:hunter22@h/d\nREDIS_URL=redis://:pw123456@127.0.0.1/0\n"
    )
    fake = Fake(
        {
            "store": ["/usr/bin/valkey-server", "/etc/v.conf"],
            "front": ["uvicorn", "app.main:app", "--port", "9000"],
            "jobs": ["celery", "-A", "app.jobs", "worker"],
            "sshd": ["/usr/sbin/sshd"],
        },
        str(tmp_path),
    )
    result = discovered(monkeypatch, fake)
    assert result.variables["wheels_ops_backend_dir"] == str(tmp_path)
    assert result.variables["wheels_ops_backend_user"] == "web"
    assert result.variables["wheels_ops_base_url"] == "http://127.0.0.1:9000"
    assert result.variables["wheels_ops_database_dsn"] == f"file://{tmp_path}/web.env#DATABASE_URL"
    assert result.variables["wheels_ops_redis_unit"] == "store"
    assert [service["name"] for service in result.variables["wheels_ops_services"]] == ["store", "front", "jobs"]
    assert result.variables["environment_units"] == ["front", "jobs"]
    assert {each["variable"] for each in result.missing} >= {"wheels_ops_services", "monitoring_websocket_path"}
    text = str(result.as_dict())
    assert "hunter22" not in text
    assert "pw123456" not in text


def test_host_without_a_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    result = discovered(monkeypatch, Fake({"sshd": ["/usr/sbin/sshd"]}))
    assert "uvicorn, gunicorn" in result.missing[0]["what"]
    assert "wheels_ops_services" not in result.variables


def test_two_managers_with_a_backend_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Fake({"web": ["uvicorn", "a:b"]}), Fake({"api": ["gunicorn", "a:b"]}, name="supervisor")
    with pytest.raises(OpsError, match="web of systemd; api of supervisor") as caught:
        discovered(monkeypatch, first, second)
    assert "wheels_ops_service_manager" in caught.value.hint


@pytest.mark.parametrize(
    ("environment", "origins"),
    [
        (
            {"BACKEND_CORS_ORIGINS": '["https://a.example", "https://b.example:8443"]'},
            ["https://a.example", "https://b.example:8443"],
        ),
        ({"ALLOWED_ORIGINS": "https://a.example, https://b.example"}, ["https://a.example", "https://b.example"]),
        ({"CORS_ORIGINS": "*"}, []),
        ({}, []),
    ],
)
def test_origins(environment: t.Mapping[str, str], origins: t.Sequence[str]) -> None:
    assert discovery._origins(environment) == origins


def test_unit_without_processes_has_no_main_one() -> None:
    assert Unit("x", "api", ServiceState("x")).main == 0


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("head", "commit", "release"),
    [
        (COMMIT, "", COMMIT),
        ("ref: refs/heads/main", COMMIT, f"{COMMIT} (main)"),
        ("root:$6$hash:1::", "", ""),
        ("ref: refs/heads/main", "root:$6$hash:1::", ""),
        ("ref: ../../private", COMMIT, ""),
    ],
)
def test_release_is_a_commit_and_nothing_else_of_a_file(tmp_path: Path, head: str, commit: str, release: str) -> None:
    git = tmp_path / "app/.git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{head}\n")
    (git / "refs/heads/main").write_text(f"{commit}\n")
    (tmp_path / "private").write_text(COMMIT)
    unit = Unit("api", "api", ServiceState(unit="api"))
    assert discovery._release(str(tmp_path / "app"), unit) == release


@pytest.mark.parametrize("name", ["HEAD", "refs/heads/main"])
def test_release_follows_no_link_to_a_file_of_another_user(tmp_path: Path, name: str) -> None:
    git = tmp_path / "app/.git"
    (git / "refs/heads").mkdir(parents=True)
    (tmp_path / "private").write_text(COMMIT)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / name).unlink(missing_ok=True)
    (git / name).symlink_to(tmp_path / "private")
    unit = Unit("api", "api", ServiceState(unit="api"))
    assert not discovery._release(str(tmp_path / "app"), unit)
