# SPDX-License-Identifier: GPL-3.0-or-later
"""A supervisord of its own in a temporary directory, with the programs that a test names."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import wait_until

FAULTY_APP = Path(__file__).with_name("faulty_app.py")


@dataclass
class Program:
    """One program section; ``options`` are further lines of it (``startsecs``)."""

    command: str
    autostart: bool = True
    environment: t.Dict[str, str] = field(default_factory=dict)
    options: t.Dict[str, str] = field(default_factory=dict)


@dataclass
class Supervisord:
    """A running supervisord. ``ctl`` is supervisorctl, the witness that shares no code with ours."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return str(self.directory / "s.sock")

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.directory / "supervisord.conf"), *words],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    def pid(self, name: str) -> int:
        """The process of a program, 0 where it does not run."""
        text = self.ctl("pid", name)
        return int(text) if text.isdigit() else 0


@contextlib.contextmanager
def supervisord(
    programs: t.Mapping[str, Program],
    *,
    username: str = "",
    password: str = "",
    section: str = "program",
    extra: t.Sequence[str] = (),
) -> t.Iterator[Supervisord]:
    directory = Path(tempfile.mkdtemp(prefix="wops-sv-"))
    account = [f"username={username}", f"password={password}"] if username else []
    lines = [
        "[supervisord]",
        f"logfile={directory}/supervisord.log",
        f"pidfile={directory}/pid",
        f"childlogdir={directory}",
        "nodaemon=true",
        "nocleanup=true",
        *(["user=root"] if os.geteuid() == 0 else []),
        "[unix_http_server]",
        f"file={directory}/s.sock",
        "chmod=0700",
        *account,
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisorctl]",
        f"serverurl=unix://{directory}/s.sock",
        *account,
    ]
    for name, program in programs.items():
        options = {
            "startsecs": "1",
            "startretries": "1",
            "autorestart": "true",
            "stopwaitsecs": "5",
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": f"{directory}/{name}.log",
            "directory": str(directory),
            **program.options,
        }
        lines += [
            f"[{section}:{name}]",
            f"command={program.command}",
            f"autostart={'true' if program.autostart else 'false'}",
        ]
        lines += [f"{key}={value}" for key, value in options.items()]
        if program.environment:
            lines.append("environment=" + ",".join(f'{key}="{value}"' for key, value in program.environment.items()))
    (directory / "supervisord.conf").write_text("\n".join([*lines, *extra]) + "\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(directory / "supervisord.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    running = Supervisord(directory, process)
    try:
        wait_until(
            lambda: (directory / "s.sock").exists() and "RUNNING" in running.ctl("status") + "RUNNING",
            what="supervisord",
        )
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)
