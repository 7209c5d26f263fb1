# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Drains and restores one server of HAProxy, through its stats socket (``stats socket PATH level admin``).

    haproxy_server.py drain BACKEND/SERVER [--socket PATH] [--seconds N]
    haproxy_server.py restore BACKEND/SERVER [--socket PATH] [--seconds N]

``drain`` ends when the server has no session left, or after N seconds (10): a WebSocket may stay open for days, and is
closed by the backend when that restarts. ``restore`` ends with 0 when HAProxy counts the server as UP, and with 1 where
that takes longer than N seconds (30). Both may be repeated. HAProxy forgets them when it is started again.
"""

from __future__ import annotations

import argparse
import csv
import socket
import sys
import time
import typing as t

SOCKET = "/run/haproxy/admin.sock"
SECONDS = {"drain": 10.0, "restore": 30.0}


def ask(path: str, command: str) -> str:
    """HAProxy's answer to one command; it closes the connection after it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(command.encode() + b"\n")
        parts = []
        while True:
            part = sock.recv(65536)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)


def row(path: str, name: str) -> t.Dict[str, str]:
    """The server's row of ``show stat``: ``status``, and ``scur``, its sessions at this moment."""
    backend, _separator, server = name.partition("/")
    rows = csv.DictReader(ask(path, "show stat").lstrip("# ").splitlines())
    for each in rows:
        if (each["pxname"], each["svname"]) == (backend, server):
            return each
    raise SystemExit(f"HAProxy has no server {name}. Name it as in its configuration: BACKEND/SERVER.")


def main(words: t.Optional[t.Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=sorted(SECONDS))
    parser.add_argument("server", metavar="BACKEND/SERVER")
    parser.add_argument("--socket", default=SOCKET)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args(words)
    seconds = SECONDS[options.action] if options.seconds is None else options.seconds
    try:
        row(options.socket, options.server)
        state = "drain" if options.action == "drain" else "ready"
        answer = ask(options.socket, f"set server {options.server} state {state}").strip()
        if answer:
            raise SystemExit(f"HAProxy refused: {answer}")
        until = time.monotonic() + seconds
        while True:
            now = row(options.socket, options.server)
            if now["scur"] == "0" if options.action == "drain" else now["status"] == "UP":
                return 0
            if time.monotonic() >= until:
                break
            time.sleep(0.1)
    except OSError as error:
        raise SystemExit(f"HAProxy does not answer at {options.socket}: {error}. Is it running?") from None
    if options.action == "drain":
        sys.stdout.write(f"{options.server} is drained; {now['scur']} sessions are still open.\n")
        return 0
    raise SystemExit(f"{options.server} is {now['status']} after {seconds:g} seconds, not UP. Does its check pass?")


if __name__ == "__main__":
    sys.exit(main())
