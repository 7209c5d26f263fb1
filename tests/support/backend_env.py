# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the stand-in backend under its own interpreter, as it is deployed: uvicorn, PostgreSQL, Redis,
one directory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import tempfile
import time
import typing as t
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg2.extensions
import yaml

from tests.backend import database
from tests.backend.materialise import materialise
from tests.support.waiting import free_port, wait_until
from wheels_ops.remedies import backend_patch

REPOSITORY = Path(__file__).resolve().parents[2]
#: The interpreter of the backend's own environment (dependency group ``backend``).
BACKEND_PYTHON = Path(os.environ.get("WHEELS_OPS_BACKEND_PYTHON", REPOSITORY / ".venv-backend" / "bin" / "python"))
ROLE = REPOSITORY / "collections" / "wheels" / "ops" / "roles" / "backend_patches"
PATCHES = ROLE / "files" / "app"
SECRET_KEY = "stand-in-secret-key-of-32-bytes-or-more"  # noqa: S105 - signs tokens of tests only
_START_TIMEOUT = 90.0


class DidNotStart(RuntimeError):
    """The backend ended, or did not answer, before it was ready; the message ends with what it wrote."""


class Answer(t.NamedTuple):
    status: int
    headers: t.Mapping[str, str]
    body: bytes

    def json(self) -> t.Any:
        return json.loads(self.body)


@dataclass
class Backend:
    """A running backend. ``log`` is what the process wrote, ``app_log`` the application's own log file."""

    release: str
    url: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    log: Path
    app_log: Path
    environment: t.Dict[str, str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def jwt(self, user_id: str, *, role: str = "authenticated", seconds: int = 3600, **claims: t.Any) -> str:
        """A token that this backend accepts."""
        return make_jwt(user_id, role=role, seconds=seconds, **claims)

    def websocket_url(self, user_id: str, token: t.Optional[str] = None) -> str:
        """Where this release has the chat's socket: the user is in its path since August 2025."""
        path = "/api/v1/pam/ws" + (f"/{user_id}" if self.release == "august" else "")
        return f"ws://127.0.0.1:{self.port}{path}?token={quote(token or self.jwt(user_id))}"

    def request(
        self,
        method: str,
        path: str,
        *,
        user: t.Optional[str] = None,
        body: t.Optional[t.Any] = None,
        headers: t.Optional[t.Mapping[str, str]] = None,
        timeout: float = 30.0,
    ) -> Answer:
        """One request (a status of 400 or more is an answer, not an error); ``user`` signs in, ``body`` is sent as
        JSON.
        """
        sent = dict(headers or {})
        if user:
            sent["Authorization"] = f"Bearer {self.jwt(user)}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(
                    answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
                )
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {name.lower(): value for name, value in error.headers.items()}, error.read())

    def rss_mb(self) -> float:
        """Resident memory of the process in MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1_048_576

    def logged(self) -> str:
        """Everything that the process wrote so far."""
        return self.log.read_text(errors="replace")

    def stop(self, timeout: float = 15.0) -> int:
        """Ends the process in an orderly way, killing it when it does not; gives its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return int(self.process.returncode)


def make_jwt(
    user_id: str, *, role: str = "authenticated", seconds: int = 3600, key: str = SECRET_KEY, **claims: t.Any
) -> str:
    """A JWT signed with HS256."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    now = int(time.time())
    payload = {"sub": user_id, "role": role, "aud": "authenticated", "iat": now, "exp": now + seconds, **claims}
    text = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps(payload).encode())}"
    return f"{text}.{part(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest())}"


def postgres_url(dsn: str) -> str:
    """A libpq DSN as the URL that asyncpg reads."""
    if "://" in dsn:
        return dsn
    parts = psycopg2.extensions.parse_dsn(dsn)
    password = f":{quote(parts['password'], safe='')}" if "password" in parts else ""
    user = quote(parts.get("user", "postgres"), safe="")
    return f"postgresql://{user}{password}@{parts.get('host', '127.0.0.1')}:{parts.get('port', 5432)}/{quote(parts.get('dbname', 'postgres'), safe='')}"


def overlay(directory: Path, patched: t.Sequence[str]) -> None:
    """Copies files or folders of ``backend_patches/files/app`` over the release; names are relative to it (``app/`` may
    lead).
    """
    for name in patched:
        relative = name[4:] if name.startswith("app/") else name
        source, target = PATCHES / relative, directory / "app" / relative
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def install_blocks(directory: Path) -> None:
    """Writes the marked blocks of the role's defaults into ``main.py`` and the worker, as a deployment does."""
    from wheels_ops.host import marked_blocks

    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    for name, lines in {**defaults["backend_patches_blocks"], **defaults["backend_patches_optional_blocks"]}.items():
        path = directory / name
        path.write_text(marked_blocks.insert(path.read_text(), lines, path=name))


def patch_request(root: Path) -> backend_patch.Request:
    """Everything that the role installs below the backend's directory, as it hands it to the module."""
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    paths = [path for name in defaults["backend_patches_directories"] for path in (ROLE / "files" / name).iterdir()]
    return backend_patch.Request(
        root=str(root),
        files={str(path.relative_to(ROLE / "files")): path.read_bytes() for path in paths if path.is_file()},
        blocks=defaults["backend_patches_blocks"],
        optional_blocks=defaults["backend_patches_optional_blocks"],
    )


def environment(
    directory: Path, *, database_url: str, redis_url: t.Optional[str], port: int, **extra: t.Optional[str]
) -> t.Dict[str, str]:
    """The backend's environment, and nothing of this process's that it would read; ``extra`` wins, None leaves a name
    out.
    """
    for name in ("logs", "tmp", "state"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    base: t.Dict[str, t.Optional[str]] = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TZ") if name in os.environ},
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET_KEY,
        "PORT": str(port),
        "ENVIRONMENT": "production",
        "NODE_ENV": "production",
        "LOG_DIR": str(directory / "logs"),
        "TMPDIR": str(directory / "tmp"),
        "WHEELS_OPS_STATE_DIR": str(directory / "state"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **extra,
    }
    return {name: value for name, value in base.items() if value is not None}


@contextlib.contextmanager
def running_backend(
    release: str,
    postgres_dsn: str,
    redis_url: t.Optional[str],
    *,
    patched: t.Sequence[str] = (),
    install_block: bool = False,
    prepare: t.Optional[t.Callable[[Path], None]] = None,
    uvicorn_options: t.Sequence[str] = (),
    seed: bool = True,
    **env: t.Optional[str],
) -> t.Iterator[Backend]:
    """One release, materialised into a directory of its own and running on a free port until the block ends.

    ``patched`` files replace those of the release, ``install_block`` writes the marked blocks, ``prepare`` is called
    with the directory before the start (for a change of one's own), ``env`` adds to the environment (None takes a name
    out; ``redis_url`` None leaves ``REDIS_URL`` unset). Raises ``DidNotStart``.
    """
    if seed:
        database.seed(postgres_dsn)
    directory = Path(tempfile.mkdtemp(prefix=f"wops-{release}-"))
    try:
        materialise(release, directory)
        overlay(directory, patched)
        if install_block:
            install_blocks(directory)
        if prepare:
            prepare(directory)
        port = free_port()
        variables = environment(
            directory, database_url=postgres_url(postgres_dsn), redis_url=redis_url, port=port, **env
        )
        log = directory / "uvicorn.log"
        words = [
            str(BACKEND_PYTHON),
            "-m",
            "uvicorn",
            "app.main:app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            *uvicorn_options,
        ]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                words, cwd=directory, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        backend = Backend(
            release,
            f"http://127.0.0.1:{port}",
            port,
            directory,
            process,
            log,
            directory / "logs" / "app.log",
            variables,
        )
        try:
            _wait_for_health(backend)
            yield backend
        finally:
            backend.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_health(backend: Backend) -> None:
    def answered() -> bool:
        return backend.process.poll() is not None or backend.request("GET", "/health", timeout=5).status == 200

    try:
        wait_until(answered, timeout=_START_TIMEOUT, what=f"/health of {backend.url}")
    except AssertionError as error:
        raise DidNotStart(f"{error}\n{backend.logged()[-4000:]}") from error
    if backend.process.poll() is not None:
        raise DidNotStart(f"uvicorn ended with {backend.process.returncode}:\n{backend.logged()[-4000:]}")
