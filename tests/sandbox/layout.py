# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything of a sandbox lies, and the facts that the inventory reads: ports, addresses, secrets."""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import secrets
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.backend.materialise import RELEASES
from tests.sandbox.binaries import REPOSITORY
from tests.support.waiting import free_port, port_open

#: A unix socket's address holds 107 bytes.
_LONGEST_SOCKET = 107
PROGRAMS = ("postgres", "redis", "pam-backend", "celery-worker", "celery-beat")
#: How the application is served: ``uvicorn`` or ``gunicorn`` (which loads it before it forks), the processes, and
#: whether nginx is in front.
_SERVER = re.compile(r"(?P<program>uvicorn|gunicorn)(:(?P<processes>[1-9]))?(?P<nginx>\+nginx)?")


@dataclass(frozen=True)
class Facts:
    """What ``sandbox.json`` holds; the inventory builds its variables from it."""

    directory: str
    postgres_port: int
    redis_port: int
    http_port: int
    database_password: str
    app_database_password: str
    redis_password: str
    secret_key: str
    #: Where the application listens, if nginx has the ``http_port``; 0 without nginx.
    app_port: int = 0

    @property
    def database_dsn(self) -> str:
        return f"host=127.0.0.1 port={self.postgres_port} dbname=pam user=postgres password={self.database_password}"

    @property
    def database_url(self) -> str:
        """What the backend itself connects with: Supabase's ``authenticator``, which may become ``authenticated``."""
        return f"postgresql://authenticator:{self.app_database_password}@127.0.0.1:{self.postgres_port}/pam"

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0"

    @property
    def health_token(self) -> str:
        """A JWT (HS256) with which the health check opens the backend's WebSocket; it names no person."""

        def part(content: bytes) -> str:
            return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

        claims = {"sub": "wheels-ops-health", "role": "authenticated", "aud": "authenticated", "exp": 4102444800}
        signed = ".".join(part(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT"}, claims))
        return f"{signed}.{part(hmac.new(self.secret_key.encode(), signed.encode(), 'sha256').digest())}"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


class Sandbox:
    """The paths below one directory, ``.sandbox`` in the repository unless WHEELS_OPS_SANDBOX names another."""

    def __init__(
        self, directory: t.Optional[Path] = None, *, release: t.Optional[str] = None, server: t.Optional[str] = None
    ) -> None:
        named = os.environ.get("WHEELS_OPS_SANDBOX")
        self.directory = (directory or Path(named or REPOSITORY / ".sandbox")).resolve()
        self.release = release or os.environ.get("WHEELS_OPS_SANDBOX_RELEASE", "incident")
        if self.release not in RELEASES:
            raise SystemExit(
                f"WHEELS_OPS_SANDBOX_RELEASE must be one of {', '.join(sorted(RELEASES))}, got {self.release}."
            )
        self.server = server or os.environ.get("WHEELS_OPS_SANDBOX_SERVER", "uvicorn")
        parts = _SERVER.fullmatch(self.server)
        if not parts:
            raise SystemExit(
                "WHEELS_OPS_SANDBOX_SERVER must be uvicorn or gunicorn with the number of processes, and +nginx for a"
                f" proxy in front, such as gunicorn:2+nginx, got {self.server}."
            )
        self.server_program, self.processes = parts["program"], int(parts["processes"] or 1)
        self.nginx = bool(parts["nginx"])
        self.etc = self.directory / "etc"
        self.run = self.directory / "run"
        self.log = self.directory / "log"
        self.tmp = self.directory / "tmp"
        self.backend = self.directory / "backend"
        self.postgres = self.directory / "postgres"
        self.redis = self.directory / "redis"
        self.state = self.directory / "state"
        self.reports = self.directory / "reports"
        self.socket = self.run / "supervisor.sock"
        self.facts_file = self.directory / "sandbox.json"
        self.env_file = self.etc / "backend.env"
        self.supervisor_conf = self.etc / "supervisord.conf"
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise SystemExit(
                f"The path {self.socket} is too long for a socket. Clone the repository to a shorter path, or set"
                " WHEELS_OPS_SANDBOX."
            )

    def make(self) -> None:
        for path in (self.directory, self.etc, self.run, self.log, self.tmp, self.redis, self.state, self.reports):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def facts(self, *, create: bool = False, rewrite: bool = False) -> Facts:
        """The sandbox's facts; ``create`` makes them, and changes ports that somebody else has taken meanwhile.

        ``rewrite`` brings what is derived from them up to date.
        """
        if self.facts_file.exists():
            facts = Facts(**json.loads(self.facts_file.read_text())["facts"])
        elif create:
            facts = Facts(
                directory=str(self.directory),
                postgres_port=free_port(),
                redis_port=free_port(),
                http_port=free_port(),
                database_password=secrets.token_hex(16),
                app_database_password=secrets.token_hex(16),
                redis_password=secrets.token_hex(16),
                secret_key=secrets.token_hex(32),
                app_port=free_port() if self.nginx else 0,
            )
        else:
            raise SystemExit("There is no sandbox. Make one: make sandbox-up")
        if create:
            names = ("postgres_port", "redis_port", "http_port", *(["app_port"] if facts.app_port else []))
            ports = {name: getattr(facts, name) for name in names}
            facts = Facts(
                **{**asdict(facts), **{name: free_port() if port_open(port) else port for name, port in ports.items()}}
            )
        if create or rewrite:
            self._write(facts)
        return facts

    def _write(self, facts: Facts) -> None:
        derived: t.Dict[str, t.Any] = {
            name: getattr(facts, name)
            for name in ("database_dsn", "database_url", "redis_url", "base_url", "health_token")
        }
        # What one process has after the deployment stays below two thirds of it; before, it is above.
        derived["memory_limit_mb"] = 430 * self.processes
        new = self.facts_file.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"facts": asdict(facts), **derived, "paths": self.paths()}, file, indent=1)
        new.replace(self.facts_file)

    def paths(self) -> t.Dict[str, str]:
        """The paths that the inventory uses."""
        named = ("directory", "etc", "run", "log", "tmp", "backend", "redis", "state", "reports", "socket", "env_file")
        return {name: str(getattr(self, name)) for name in named} | {
            "backend_python": str(REPOSITORY / ".venv-backend/bin/python")
        }
