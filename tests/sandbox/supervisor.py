# SPDX-License-Identifier: GPL-3.0-or-later
"""supervisord of the sandbox: its configuration, and talking to it over its unix socket."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import typing as t
import xmlrpc.client
from pathlib import Path

from supervisor.xmlrpc import SupervisorTransport

from tests.sandbox import binaries, unprivileged
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Facts, Sandbox

#: Stands in the environment of every process of a sandbox, with its directory, so that none is ever taken for
#: another's.
MARK = "WHEELS_OPS_SANDBOX_PROCESS"


def rpc(sandbox: Sandbox) -> t.Any:
    """supervisord's XML-RPC namespace ``supervisor``."""
    transport = SupervisorTransport(None, None, serverurl=f"unix://{sandbox.socket}")
    return xmlrpc.client.ServerProxy("http://supervisor", transport=transport).supervisor


def running(sandbox: Sandbox) -> bool:
    """Whether supervisord answers."""
    if not sandbox.socket.exists():
        return False
    try:
        return bool(rpc(sandbox).getState()["statename"] == "RUNNING")
    except (OSError, xmlrpc.client.Error):
        return False


def start_daemon(sandbox: Sandbox) -> None:
    subprocess.run(
        [str(Path(sys.executable).with_name("supervisord")), "-c", str(sandbox.supervisor_conf)],
        check=True,
        cwd=sandbox.directory,
    )


def write_configuration(sandbox: Sandbox, facts: Facts) -> None:
    """``supervisord.conf`` for the five programs; nothing starts by itself, ``up`` starts them in order."""
    postgres, redis, espeak = binaries.postgres(), binaries.redis(), binaries.espeak()
    backend_bin = REPOSITORY / ".venv-backend/bin"
    redis_conf = sandbox.etc / "redis.conf"
    redis_conf.write_text(
        f"port {facts.redis_port}\nbind 127.0.0.1\nrequirepass {facts.redis_password}\ndir {sandbox.redis}\n"
        "appendonly yes\nappendfsync everysec\nsave 900 1\ndaemonize no\n"
    )
    redis_conf.chmod(0o600)
    # What the release itself reads. The variables of the deployment come from the environment file, as on a real host.
    release_env = {
        "DATABASE_URL": facts.database_url,
        "REDIS_URL": facts.redis_url,
        "SECRET_KEY": facts.secret_key,
        "ENVIRONMENT": "production",
        "NODE_ENV": "production",
        "PORT": str(facts.http_port),
        "LOG_DIR": str(sandbox.log),
        "TMPDIR": str(sandbox.tmp),
        "PYTHONPATH": str(sandbox.backend),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LEAK_MB": os.environ.get("SANDBOX_LEAK_MB", "260"),
        **espeak.env,
        "PATH": os.pathsep.join([str(espeak.bin), str(backend_bin), "/usr/local/bin", "/usr/bin", "/bin"]),
    }

    def application(command: str) -> str:
        # supervisord has no EnvironmentFile=; the file's format is that of systemd and of sh.
        file = shlex.quote(str(sandbox.env_file))
        return shlex.join(["/bin/sh", "-c", f"set -a; [ ! -f {file} ] || . {file}; set +a; exec {command}"])

    python = f"{backend_bin}/python -m"
    schedule = shlex.quote(str(sandbox.run / "celerybeat-schedule"))
    server = shlex.join(
        [*unprivileged.prefix(), postgres.path("postgres"), "-D", str(sandbox.postgres), "-p", str(facts.postgres_port)]
    )
    celery = f"{python} celery -A app.workers.celery"
    programs: t.List[t.Tuple[str, str, t.Mapping[str, str], Path, str]] = [
        ("postgres", server, postgres.env, sandbox.directory, "INT"),
        ("redis", shlex.join([redis.path("redis-server"), str(redis_conf)]), redis.env, sandbox.redis, "TERM"),
        (
            "pam-backend",
            application(_serve(sandbox, facts, python)),
            release_env,
            sandbox.backend,
            "TERM",
        ),
        (
            "celery-worker",
            application(f"{celery} worker --loglevel=info --concurrency=2"),
            release_env,
            sandbox.backend,
            "TERM",
        ),
        (
            "celery-beat",
            application(f"{celery} beat --loglevel=info -s {schedule}"),
            release_env,
            sandbox.backend,
            "TERM",
        ),
    ]
    if sandbox.nginx:
        programs.append(("nginx", _nginx(sandbox, facts), {}, sandbox.directory, "QUIT"))
    lines = [
        "[supervisord]",
        f"logfile={sandbox.log}/supervisord.log",
        f"pidfile={sandbox.run}/supervisord.pid",
        f"childlogdir={sandbox.log}",
        "nocleanup=true",
        *(["user=root"] if os.geteuid() == 0 else []),
        "[unix_http_server]",
        f"file={sandbox.socket}",
        "chmod=0700",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisorctl]",
        f"serverurl=unix://{sandbox.socket}",
    ]
    for name, command, env, directory, signal in programs:
        environment = {**env, MARK: str(sandbox.directory)}
        lines += [
            f"[program:{name}]",
            f"command={_escape(command)}",
            f"directory={directory}",
            "autostart=false",
            "autorestart=true",
            "startsecs=1",
            "startretries=3",
            f"stopsignal={signal}",
            "stopwaitsecs=20",
            "stopasgroup=false",
            "killasgroup=true",
            f"stdout_logfile={sandbox.log}/{name}.log",
            "redirect_stderr=true",
            "stdout_logfile_maxbytes=0",
            "environment=" + ",".join(f'{key}="{_escape(value)}"' for key, value in environment.items()),
        ]
    sandbox.supervisor_conf.write_text("\n".join(lines) + "\n")
    sandbox.supervisor_conf.chmod(0o600)


def _serve(sandbox: Sandbox, facts: Facts, python: str) -> str:
    """The command that serves the application; the proxy in front is believed as the release believes it."""
    port = facts.app_port or facts.http_port
    if sandbox.server_program == "uvicorn":
        workers = f" --workers {sandbox.processes}" if sandbox.processes > 1 else ""
        return f"{python} uvicorn app.main:app --host 127.0.0.1 --port {port}{workers}"
    return (
        f"{python} gunicorn app.main:app --preload --workers {sandbox.processes} --timeout 60 --bind 127.0.0.1:{port}"
        f" --worker-class uvicorn.workers.UvicornWorker --worker-tmp-dir {shlex.quote(str(sandbox.tmp))}"
    )


def _nginx(sandbox: Sandbox, facts: Facts) -> str:
    """Writes nginx's configuration, with WebSocket and the client's address as its manual has it; gives the command."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if not program:
        raise SystemExit("nginx is not installed: apt-get install nginx-light")
    place = sandbox.run / "nginx"
    place.mkdir(mode=0o700, exist_ok=True)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    configuration = sandbox.etc / "nginx.conf"
    configuration.write_text(
        "\n".join(
            [
                *(["user root;"] if os.geteuid() == 0 else []),
                f"pid {place}/pid;",
                f"error_log {sandbox.log}/nginx.log;",
                "events {}",
                "http {",
                "    access_log off;",
                *(f"    {kind}_temp_path {place}/{kind};" for kind in kinds),
                "    map $http_upgrade $connection_upgrade { default upgrade; '' close; }",
                "    server {",
                f"        listen 127.0.0.1:{facts.http_port};",
                "        location / {",
                f"            proxy_pass http://127.0.0.1:{facts.app_port};",
                "            proxy_http_version 1.1;",
                "            proxy_set_header Host $http_host;",
                "            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
                "            proxy_set_header X-Forwarded-Proto $scheme;",
                "            proxy_set_header Upgrade $http_upgrade;",
                "            proxy_set_header Connection $connection_upgrade;",
                "        }",
                "    }",
                "}",
                "",
            ]
        )
    )
    return shlex.join([program, "-e", f"{sandbox.log}/nginx.log", "-c", str(configuration), "-g", "daemon off;"])


def _escape(text: str) -> str:
    return text.replace("%", "%%")
